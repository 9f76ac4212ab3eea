"""Pixel normalisation of the published weights: uint8 RGB [..., H, W, 3] to float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN, IMAGENET_STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
"""Per-channel statistics of ImageNet's training images in 0..255 (torchvision)."""
CAFFE_MEAN = np.float32([123.0, 117.0, 104.0])
"""RGB mean that Caffe's GoogLeNet subtracts."""


def symmetric(images: jax.Array) -> jax.Array:
    """(x - 127.5) / 127.5, in -1..1: face recognition networks and TensorFlow's classifiers."""
    return (images.astype(jnp.float32) - 127.5) / 127.5


def imagenet(images: jax.Array) -> jax.Array:
    """Subtracts ImageNet's mean and divides by its standard deviation, per channel (torchvision)."""
    return (images.astype(jnp.float32) - IMAGENET_MEAN) / IMAGENET_STD


def centred(images: jax.Array, mean: np.ndarray = IMAGENET_MEAN) -> jax.Array:
    """Subtracts a mean colour [3] in 0..255."""
    return images.astype(jnp.float32) - mean


def bgr_unit(images: jax.Array) -> jax.Array:
    """BGR in 0..1 (MagFace)."""
    return images[..., ::-1].astype(jnp.float32) / 255


def unit(images: jax.Array) -> jax.Array:
    """Divides by 255, in 0..1."""
    return images.astype(jnp.float32) / 255


def bgr_symmetric(images: jax.Array) -> jax.Array:
    """BGR, (x - 127.5) / 128: the 3DDFA family."""
    return (images[..., ::-1].astype(jnp.float32) - 127.5) / 128
