"""DLA: networks whose blocks are aggregated in trees, and an upsampling path that aggregates their scales.

Yu, Wang, Shelhamer, Darrell. Deep layer aggregation. CVPR 2018. arXiv:1707.06484. The upsampling path is that of Zhou,
Wang, Kraehenbuehl. Objects as points. arXiv:1904.07850: its 3x3 convolutions are of a given kind, there deformable, and
maps are enlarged by depthwise transposed convolutions that start as bilinear interpolation.
As in the authors' code, trees of two levels have a projection whose result nothing reads: 41,728 parameters of DLA-34.
Differs from it: nothing known. Sizes that are no multiples of 32, which it can't add up, raise an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv
from facejax.nn.init import torch_default
from facejax.nn.norm import BatchNorm
from facejax.ops.pooling import max_pool

Dtype = Any


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the second added to a shortcut that its caller may provide.

    Attributes:
      features: output channels.
      stride: of the first convolution.
      conv: constructor of a convolution with batch norm and ReLU.
    """

    features: int
    stride: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, shortcut: jax.Array | None = None, *, train: bool) -> jax.Array:
        """[N, H, W, C] and [N, H / stride, W / stride, features] -> the shape of the latter."""
        shortcut = x if shortcut is None else shortcut
        x = self.conv(self.features, 3, self.stride, 1, name="conv1")(x, train=train)
        return nn.relu(self.conv(self.features, 3, 1, 1, activation=None, name="conv2")(x, train=train) + shortcut)


class Tree(nn.Module):
    """Hierarchical aggregation: 2^levels blocks, whose outputs 1x1 convolutions (roots) merge.

    Attributes:
      levels: depth of the tree.
      features: output channels.
      stride: of its first block; max pooling in the shortcut.
      root_input: whether its root also reads the tree's pooled input.
      conv: see `BasicBlock`.
    """

    levels: int
    features: int
    stride: int
    root_input: bool
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, children: Sequence[jax.Array] = (), *, train: bool) -> jax.Array:
        """[N, H, W, C] and more maps for the root, of the output's size -> [N, H / stride, W / stride, features]."""
        window = (self.stride, self.stride)
        bottom = max_pool(x, window, window) if self.stride > 1 else x
        shortcut = bottom
        if x.shape[-1] != self.features:
            shortcut = self.conv(self.features, 1, activation=None, name="project")(bottom, train=train)
        if self.root_input:
            children = [*children, bottom]
        if self.levels > 1:
            first = Tree(self.levels - 1, self.features, self.stride, False, self.conv, name="tree1")(x, train=train)
            second = Tree(self.levels - 1, self.features, 1, False, self.conv, name="tree2")
            return second(first, [*children, first], train=train)
        first = BasicBlock(self.features, self.stride, self.conv, name="tree1")(x, shortcut, train=train)
        second = BasicBlock(self.features, 1, self.conv, name="tree2")(first, train=train)
        return self.conv(self.features, 1, name="root")(jnp.concatenate([second, first, *children], -1), train=train)


class DLA(nn.Module):
    """The trunk.

    Attributes:
      levels: convolutions of the first two stages, depths of the trees of the other four.
      widths: channels of the six stages, of strides 1 to 32.
      axis_name: mapped axis over which batch statistics are averaged; the published runs average over none.
      dtype: of the computation.
    """

    levels: tuple[int, ...] = (1, 1, 1, 2, 2, 1)
    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """Maps of images.

        Args:
          images: [N, H, W, 3], normalised per channel; H and W multiples of 32.
          train: whether batch norm uses the batch's statistics.

        Returns:
          Six maps of strides 1, 2, 4, 8, 16 and 32.
        """
        if images.ndim != 4 or any(side == 0 or side % 32 for side in images.shape[1:3]):
            raise ValueError(f"DLA: images {images.shape}, expected [N, H, W, 3] with H and W multiples of 32")
        conv = partial(ConvNorm, kernel_init=torch_default, axis_name=self.axis_name, dtype=self.dtype)
        x, found = conv(self.widths[0], 7, 1, 3, name="base")(images, train=train), []
        for stage, (levels, width) in enumerate(zip(self.levels, self.widths, strict=True)):
            if stage < 2:
                for i in range(levels):
                    x = conv(width, 3, 2 if stage and not i else 1, 1, name=f"level{stage}_{i}")(x, train=train)
            else:
                x = Tree(levels, width, 2, stage > 2, conv, name=f"level{stage}")(x, train=train)
            found.append(x)
        return found


dla34 = partial(DLA)


class Enlarge(nn.Module):
    """Depthwise transposed convolution of kernel 2 f, stride f and padding f / 2, at first bilinear interpolation.

    Every output pixel reads the 2 x 2 nearest inputs, with weights that depend on its place in a cell of f x f.

    Attributes:
      factor: f, even.
      dtype: of the computation.
    """

    factor: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, f H, f W, C]."""
        (n, height, width, channels), f = x.shape, self.factor
        kernel = self.param("kernel", _bilinear, (2 * f, 2 * f, 1, channels)).astype(self.dtype)
        parts = kernel.reshape(2, f, 2, f, channels)
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
        full = sum(
            x[:, 1 - a : height + 2 - a, None, 1 - b : width + 2 - b, None] * parts[a, :, b][:, None]
            for a in (0, 1)
            for b in (0, 1)
        )
        full = full.reshape(n, (height + 1) * f, (width + 1) * f, channels)
        return full[:, f // 2 : f // 2 + height * f, f // 2 : f // 2 + width * f]


def _bilinear(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
    """Weights of bilinear interpolation in a kernel [2 f, 2 f, 1, C]."""
    del key
    f = shape[0] // 2
    profile = 1 - np.abs(np.arange(2 * f) / f - (2 * f - 1) / (2 * f))
    return jnp.broadcast_to(jnp.asarray(np.outer(profile, profile), dtype)[:, :, None, None], shape)


class IDAUp(nn.Module):
    """Iterative aggregation: each coarser map is converted, enlarged, added to the last result and merged.

    Attributes:
      features: output channels.
      conv: constructor of the 3x3 convolutions, see `DLAUp`.
      axis_name, dtype: see `DLA`.
    """

    features: int
    conv: Any
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], *, train: bool) -> list[jax.Array]:
        """Maps from fine to coarse -> the first, and all results at its resolution."""
        found = [maps[0]]
        for i, x in enumerate(maps[1:], 1):
            x = Enlarge(maps[0].shape[1] // x.shape[1], self.dtype, name=f"up{i}")(self._layer(f"project{i}", x, train))
            found.append(self._layer(f"node{i}", x + found[-1], train))
        return found

    def _layer(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(
            self.features,
            3,
            padding=1,
            use_bias=True,
            kernel_init=torch_default,
            dtype=self.dtype,
            name=f"{name}_conv",
        )(x)
        return nn.relu(BatchNorm(self.axis_name, dtype=self.dtype, name=f"{name}_bn")(x, train=train))


class DLAUp(nn.Module):
    """DLA and its upsampling path: images to one map of stride 4.

    Attributes:
      trunk: gives six maps, of strides 1 to 32.
      conv: constructor of the path's 3x3 convolutions; called as `conv(features, 3, padding=1, use_bias=True,
        kernel_init=..., dtype=..., name=...)`.
      axis_name, dtype: see `DLA`.
    """

    trunk: nn.Module
    conv: Any = Conv
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """[N, H, W, 3] -> one map [N, H / 4, W / 4, C] in a list; see `DLA`."""
        maps = self.trunk(images, train=train)[2:]
        path = partial(IDAUp, conv=self.conv, axis_name=self.axis_name, dtype=self.dtype)
        ends, widths = [maps[-1]], [x.shape[-1] for x in maps]
        for i in range(len(maps) - 1):
            first = len(maps) - 2 - i
            maps[first:] = path(widths[first], name=f"ida{i}")(maps[first:], train=train)
            ends.insert(0, maps[-1])
        return path(widths[0], name="last")(ends[:-1], train=train)[-1:]
