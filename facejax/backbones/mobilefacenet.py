"""MobileFaceNet: a face embedder of a million parameters.

Chen, Liu, Gao, Han. "MobileFaceNets: efficient CNNs for accurate real-time face verification on mobile devices".
CCBR 2018. arXiv:1804.07573. Inverted residuals with PReLU and, at the end, a learned weighting of all positions (a
global depthwise convolution) instead of an average.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.conv import Conv
from facejax.nn.init import kaiming_normal_fan_out
from facejax.nn.norm import BatchNorm, PReLU

Dtype = Any


class ConvBlock(nn.Module):
    """Convolution, batch norm and, unless `linear`, a PReLU."""

    features: int
    kernel_size: int | tuple[int, int]
    stride: int = 1
    padding: int = 0
    groups: int = 1
    linear: bool = False
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.padding,
            groups=self.groups,
            kernel_init=kaiming_normal_fan_out,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = BatchNorm(self.axis_name, dtype=self.dtype, name="bn")(x, train=train)
        return x if self.linear else PReLU(name="prelu")(x)


class Bottleneck(nn.Module):
    """1x1 to `expanded` channels, depthwise 3x3 with the stride, linear 1x1; if `residual`, plus the input."""

    features: int
    expanded: int
    stride: int = 1
    residual: bool = False
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        block = partial(ConvBlock, axis_name=self.axis_name, dtype=self.dtype)
        y = block(self.expanded, 1, name="expand")(x, train=train)
        y = block(self.expanded, 3, self.stride, 1, self.expanded, name="depthwise")(y, train=train)
        y = block(self.features, 1, linear=True, name="project")(y, train=train)
        return x + y if self.residual else y


class MobileFaceNet(nn.Module):
    """Images to embeddings.

    Attributes:
      blocks: residual blocks after the stem and after each of the three reductions.
      scale: multiplies the widths 64 and 128, but not the expansions.
      stem_groups: groups of the second layer, counted in the widths of scale 1.
      embedding_size: D; 0 has no layers after the last feature map, for `features`.
      last: "global_depthwise" for the arcface_torch head (depthwise 7x7, dense, BN), "linear" for the paper's
        (depthwise, linear 1x1 with batch norm).
      axis_name, dtype: as in IResNet.
    """

    blocks: tuple[int, int, int, int] = (1, 4, 6, 2)
    scale: int = 2
    stem_groups: int = 64
    embedding_size: int = 512
    last: str = "global_depthwise"
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False) -> jax.Array | dict[str, jax.Array]:
        """Embeddings [N, D] of faces [N, H, W, 3] RGB, (x - 127.5) / 127.5; see `IResNet.__call__`."""
        block = partial(ConvBlock, axis_name=self.axis_name, dtype=self.dtype)
        bottleneck = partial(Bottleneck, axis_name=self.axis_name, dtype=self.dtype)
        narrow, wide = 64 * self.scale, 128 * self.scale
        x = block(narrow, 3, 2, 1, name="stem")(images, train=train)
        if self.blocks[0] == 1:
            x = block(narrow, 3, 1, 1, self.stem_groups, name="stem_depthwise")(x, train=train)
        else:
            for i in range(self.blocks[0]):
                x = bottleneck(narrow, 128, residual=True, name=f"stage0_{i}")(x, train=train)
        found = {"stem": x}
        stages = [
            (narrow, 128, 128, self.blocks[1]),
            (wide, 256, 256, self.blocks[2]),
            (wide, 512, 256, self.blocks[3]),
        ]
        for stage, (width, reduction, expanded, count) in enumerate(stages, 1):
            x = bottleneck(width, reduction, 2, name=f"reduce{stage}")(x, train=train)
            for i in range(count):
                x = bottleneck(width, expanded, residual=True, name=f"stage{stage}_{i}")(x, train=train)
            found[f"stage{stage}"] = x
        x = block(512, 1, name="separate")(x, train=train)
        found["separate"] = x
        if not self.embedding_size:
            return found
        x = block(512, x.shape[1:3], groups=512, linear=True, name="global_depthwise")(x, train=train)
        if self.last == "linear":
            x = block(self.embedding_size, 1, linear=True, name="linear")(x, train=train)
            x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        else:
            x = x.reshape(x.shape[0], -1).astype(jnp.float32)
            dense = nn.Dense(self.embedding_size, use_bias=False, kernel_init=kaiming_normal_fan_out, name="fc")
            x = BatchNorm(self.axis_name, name="features")(dense(x), train=train)
        return {**found, "embedding": x} if features else x


mobilefacenet = partial(MobileFaceNet)
mobilefacenet_large = partial(MobileFaceNet, (2, 8, 12, 4), 4)
mobilefacenet_1x = partial(MobileFaceNet, scale=1, embedding_size=128)
