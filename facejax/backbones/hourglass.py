"""Hourglass networks for detection: stacked encoder-decoders with a shortcut at every resolution.

Newell, Yang, Deng. Stacked hourglass networks for human pose estimation. ECCV 2016. arXiv:1603.06937. Here in the form
of CornerNet (Law, Deng, arXiv:1808.01244) and CenterNet (Zhou et al., arXiv:1904.07850): residual blocks of two 3x3
convolutions, strided ones in place of max pooling, and nearest upsampling.
Differs from the authors' code: nothing known. Maps that `order` halvings don't divide, which that code can't add up,
raise an error.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.blocks import ConvNorm
from facejax.nn.init import torch_default
from facejax.ops.pooling import upsample_nearest

Dtype = Any


class Residual(nn.Module):
    """Two 3x3 convolutions; a 1x1 shortcut where shapes change.

    Attributes:
      features: output channels.
      stride: of the first convolution and of the shortcut.
      conv: constructor of a convolution with batch norm and ReLU.
    """

    features: int
    stride: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, features]."""
        shortcut = x
        if self.stride > 1 or x.shape[-1] != self.features:
            shortcut = self.conv(self.features, 1, self.stride, activation=None, name="shortcut")(x, train=train)
        x = self.conv(self.features, 3, self.stride, 1, name="conv1")(x, train=train)
        x = self.conv(self.features, 3, 1, 1, activation=None, name="conv2")(x, train=train)
        return nn.relu(x + shortcut)


class HourglassModule(nn.Module):
    """Shortcut plus: a strided step down, a smaller hourglass (blocks in the innermost), a step up.

    Attributes:
      widths: channels at this resolution and at each coarser one; their number less one is the order.
      depths: residual blocks at each resolution.
      conv: see `Residual`.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, widths[0]] -> the same shape."""
        (here, below), depth = self.widths[:2], self.depths[0]

        def blocks(x: jax.Array, name: str, plan: list[tuple[int, int]]) -> jax.Array:
            for i, (width, stride) in enumerate(plan):
                x = Residual(width, stride, self.conv, name=f"{name}_{i}")(x, train=train)
            return x

        shortcut = blocks(x, "up1", [(here, 1)] * depth)
        x = blocks(x, "low1", [(below, 2)] + [(below, 1)] * (depth - 1))
        if len(self.widths) > 2:
            x = HourglassModule(self.widths[1:], self.depths[1:], self.conv, name="low2")(x, train=train)
        else:
            x = blocks(x, "low2", [(below, 1)] * self.depths[1])
        x = blocks(x, "low3", [(below, 1)] * (depth - 1) + [(here, 1)])
        return shortcut + upsample_nearest(x, 2)


class Hourglass(nn.Module):
    """Images to one feature map per stack, of stride 4.

    Attributes:
      stacks: number of hourglasses; each next one also reads the features of the last.
      widths: channels at strides 4, 8, ...; one more than the order of the hourglasses.
      depths: residual blocks at each of these strides.
      stem: channels of the first convolution.
      features: channels of the result.
      axis_name: mapped axis over which batch statistics are averaged; the published runs average over none.
      dtype: of the computation.
    """

    stacks: int = 2
    widths: tuple[int, ...] = (256, 256, 384, 384, 384, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2, 2, 4)
    stem: int = 128
    features: int = 256
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """Features of each stack.

        Args:
          images: [N, H, W, 3], normalised per channel; ceil(H / 4) and ceil(W / 4) are multiples of 2^order.
          train: whether batch norm uses the batch's statistics.

        Returns:
          `stacks` maps [N, ceil(H / 4), ceil(W / 4), features], after ReLU.
        """
        cells = 2 ** (len(self.widths) - 1)
        if images.ndim != 4 or any(side == 0 or -(-side // 4) % cells for side in images.shape[1:3]):
            raise ValueError(
                f"Hourglass: images {images.shape}, expected [N, H, W, 3] with H / 4 and W / 4, rounded up, "
                f"multiples of {cells}"
            )
        conv = partial(ConvNorm, kernel_init=torch_default, axis_name=self.axis_name, dtype=self.dtype)
        x = conv(self.stem, 7, 2, 3, name="stem_conv")(images, train=train)
        x = Residual(self.widths[0], 2, conv, name="stem_block")(x, train=train)
        found = []
        for i in range(self.stacks):
            if i:
                old = conv(self.widths[0], 1, activation=None, name=f"old{i}")(x, train=train)
                new = conv(self.widths[0], 1, activation=None, name=f"new{i}")(found[-1], train=train)
                x = Residual(self.widths[0], 1, conv, name=f"between{i}")(nn.relu(old + new), train=train)
            whole = HourglassModule(self.widths, self.depths, conv, name=f"stack{i}")(x, train=train)
            found.append(conv(self.features, 3, 1, 1, name=f"features{i}")(whole, train=train))
        return found


hourglass104 = partial(Hourglass)
