"""What networks expect pixels as: uint8 RGB [..., H, W, 3] to float32, by the conventions of the published weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN, IMAGENET_STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
"""Of ImageNet's training images by channel, on the scale of 0..255 (torchvision; 0.485, 0.229 ... on that of 0..1)."""
CAFFE_MEAN = np.float32([123.0, 117.0, 104.0])
"""What Caffe's GoogLeNet subtracts, RGB."""


def symmetric(images: jax.Array) -> jax.Array:
    """-1..1: (x - 127.5) / 127.5, as face recognisers and TensorFlow's classifiers take it."""
    return (images.astype(jnp.float32) - 127.5) / 127.5


def imagenet(images: jax.Array) -> jax.Array:
    """Less ImageNet's mean, divided by its standard deviation, channel by channel (torchvision)."""
    return (images.astype(jnp.float32) - IMAGENET_MEAN) / IMAGENET_STD


def centred(images: jax.Array, mean: np.ndarray = IMAGENET_MEAN) -> jax.Array:
    """Less a mean colour [3], on the scale of 0..255."""
    return images.astype(jnp.float32) - mean


def bgr_unit(images: jax.Array) -> jax.Array:
    """BGR of 0..1 (MagFace)."""
    return images[..., ::-1].astype(jnp.float32) / 255
