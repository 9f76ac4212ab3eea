"""PRNet: a 3D face and its dense alignment from one map of positions.

Feng, Wu, Shao, Wang, Zhou. "Joint 3D Face Reconstruction and Dense Alignment with Position Map Regression Network".
ECCV 2018. arXiv:1803.07835. An encoder of residual blocks and a decoder of transposed convolutions turn a crop into a
picture of the face's texture plane, in which every texel holds the place of its point in the crop. Landmarks, mesh and
texture are read from it. The loss weighs landmarks, eyes, nose and mouth more than the rest, and the neck not at all.

The layers are those of the authors' code (YadiraF/PRNet); it has no training. Differs: the sum of residual blocks'
widths is the same, but other sizes of crops and other widths are possible.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.morphable.uv import UVLayout
from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import ConvTranspose
from facejax.nn.norm import BatchNorm

Dtype = Any
RANGE = 1.1
"""Largest coordinate of a position map, in sides of the crop."""
EPSILON = 1e-3  # of batch norm
GLOROT = nn.initializers.glorot_uniform()


class ResidualBlock(nn.Module):
    """1x1 to half the channels, 4x4, 1x1; the shortcut is a 1x1 convolution where the shape changes.

    Attributes:
      features: output channels.
      stride: of the 4x4 convolution and of the shortcut.
      block: constructor of a convolution with batch norm and ReLU.
      momentum: of the last batch norm.
      dtype: of the computation.
    """

    features: int
    stride: int
    block: Any
    momentum: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, features]."""
        linear = partial(nn.Conv, use_bias=False, kernel_init=GLOROT, dtype=self.dtype)
        y = self.block(self.features // 2, 1, name="conv1")(x, train=train)
        y = self.block(self.features // 2, 4, self.stride, name="conv2")(y, train=train)
        y = linear(self.features, (1, 1), name="conv3")(y)
        if self.stride > 1 or x.shape[-1] != self.features:
            x = linear(self.features, (1, 1), (self.stride, self.stride), name="shortcut")(x)
        norm = BatchNorm(momentum=self.momentum, epsilon=EPSILON, dtype=self.dtype, name="bn")
        return nn.relu(norm(x + y, train=train))


class Net(nn.Module):
    """Crops to position maps of the same size.

    Attributes:
      width: of the first layer; 32 times as many at the smallest maps.
      momentum: of batch norm's running averages.
      dtype: of the computation.
    """

    width: int = 16
    momentum: float = 0.999
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, S, S, 3] RGB in 0..1, S a multiple of 32 (published 256) -> [N, S, S, 3], 0..1 of `RANGE` sides."""
        side = images.shape[1]
        if images.ndim != 4 or images.shape[2] != side or side % 32 or not side:
            raise ValueError(f"PRNet: images {images.shape}, expected [N, S, S, 3] with S a multiple of 32")
        norm = {"momentum": self.momentum, "epsilon": EPSILON, "dtype": self.dtype}
        block = partial(ConvNorm, padding="SAME", kernel_init=GLOROT, **norm)
        x = block(self.width, 4, name="stem")(images, train=train)
        for level in range(1, 6):
            for i, stride in enumerate((2, 1), 1):
                width, name = self.width << level, f"block{level}_{i}"
                residual = ResidualBlock(width, stride, block, self.momentum, self.dtype, name=name)
                x = residual(x, train=train)
        layers = [(self.width << 5, 1)]
        for level, repeats in ((4, 3), (3, 3), (2, 3), (1, 2), (0, 2)):
            layers += [(self.width << level, 2 if i == 0 else 1) for i in range(repeats)]
        for i, (features, stride) in enumerate([*layers, (3, 1), (3, 1), (3, 1)], 1):
            cut = ((1, 1), (1, 1)) if stride == 2 else ((1, 2), (1, 2))
            x = ConvTranspose(features, 4, stride, cut, kernel_init=GLOROT, dtype=self.dtype, name=f"up{i}")(x)
            x = BatchNorm(**norm, name=f"up{i}_bn")(x, train=train)
            x = nn.relu(x) if i < len(layers) + 3 else nn.sigmoid(x.astype(jnp.float32))
        return x


def in_pixels(outputs: jax.Array, size: int) -> jax.Array:
    """Outputs of the network for crops of `size` pixels -> positions (x, y, z) in pixels."""
    return RANGE * size * outputs


def position_loss(found: jax.Array, truth: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean over the texels of weights times squared distance.

    Args:
      found, truth: [N, S, S, 3].
      weights: [S, S], of a `UVLayout`.

    Returns:
      [N] float32.
    """
    squares = jnp.sum((found.astype(jnp.float32) - truth) ** 2, -1)
    return jnp.mean(weights * squares, (1, 2))


def landmarks(positions: jax.Array, layout: UVLayout) -> jax.Array:
    """The 68 landmarks [N, 68, 3] of position maps [N, S, S, 3]."""
    rows, columns = jnp.asarray(layout.landmarks68).T
    return positions[:, rows, columns]
