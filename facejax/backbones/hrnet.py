"""HRNet: parallel branches of strides 4 to 32 exchange features, so the finest map is never upsampled from coarse ones.

Sun, Xiao, Liu, Wang. Deep high-resolution representation learning for human pose estimation. CVPR 2019.
arXiv:1902.09212. Wang et al. Deep high-resolution representation learning for visual recognition. TPAMI 2020.
arXiv:1908.07919. The trunk returns four named maps; one head predicts a heat map per keypoint, one classifies. The
baseline of the first paper is here too.
Differs from the papers: nothing known. Sizes that are no multiples of 32, which the authors' code can't add up, raise
an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.backbones.resnet import ResidualBlock
from facejax.nn.blocks import ConvNorm, rematerialised
from facejax.nn.conv import Conv, ConvTranspose
from facejax.nn.init import kaiming_normal_fan_out, torch_default
from facejax.nn.norm import BatchNorm
from facejax.ops.pooling import upsample_nearest

Dtype = Any

HEAD_WIDTHS = (32, 64, 128, 256)
"""Inner width of the classifier's bottleneck on each branch; its output has four times as many channels."""


class HighResolutionModule(nn.Module):
    """Residual blocks on every branch, then an exchange: each output is the sum of all branches at its resolution.

    Attributes:
      blocks: of two 3x3 convolutions, on each branch.
      outputs: number of branches returned, finest first; 0 returns all.
      axis_name, dtype: see `HRNet`.
    """

    blocks: int
    outputs: int = 0
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, branches: Sequence[jax.Array], *, train: bool) -> list[jax.Array]:
        """Maps [N, H / 2^i, W / 2^i, C_i] of branch i -> maps of the same shapes."""
        maps = []
        for i, x in enumerate(branches):
            for block in range(self.blocks):
                x = ResidualBlock(
                    x.shape[-1],
                    1,
                    1,
                    False,
                    Conv,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"branch{i}_{block}",
                )(x, train=train)
            maps.append(x)
        widths = [x.shape[-1] for x in maps]
        layer = partial(ConvNorm, axis_name=self.axis_name, dtype=self.dtype)

        def moved(j: int, i: int) -> jax.Array:
            """Branch j at the resolution and width of branch i."""
            x = maps[j]
            if j > i:
                x = layer(widths[i], 1, activation=None, name=f"fuse{i}_{j}")(x, train=train)
                return upsample_nearest(x, 2 ** (j - i))
            for step in range(i - j):
                last = step == i - j - 1
                x = layer(
                    widths[i if last else j],
                    3,
                    2,
                    1,
                    activation=None if last else nn.relu,
                    name=f"fuse{i}_{j}_{step}",
                )(x, train=train)
            return x

        outputs = range(self.outputs or len(maps))
        return [nn.relu(sum(moved(j, i) for j in range(len(maps)))) for i in outputs]


class HRNet(nn.Module):
    """The trunk.

    Attributes:
      width: C, channels of the finest branch; each next branch has twice as many.
      modules: of stages 2, 3 and 4, which have two, three and four branches.
      blocks: residual blocks on each branch of a module.
      stem_width: channels of the two stem convolutions of stride 2.
      first_blocks, first_width: number of bottlenecks of stage 1 and their inner width.
      finest_only: whether the last module returns only its finest map, which suffices for heat maps.
      axis_name: mapped axis over which batch statistics are averaged; the published runs average over none.
      dtype: of the computation.
      remat: whether the backward pass computes the insides of modules and of stage 1 anew; see
        `rematerialised`.
    """

    width: int
    modules: tuple[int, int, int] = (1, 4, 3)
    blocks: int = 4
    stem_width: int = 64
    first_blocks: int = 4
    first_width: int = 64
    finest_only: bool = False
    axis_name: str | None = None
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Feature maps of images.

        Args:
          images: [N, H, W, 3] RGB, normalised to mean 0 and deviation 1 per channel; H and W multiples of 32.
          train: whether batch norm uses the batch's statistics.

        Returns:
          {"c2", "c3", "c4", "c5"} of strides 4, 8, 16, 32 and C, 2C, 4C, 8C channels; "c2" alone if `finest_only`.
        """
        if images.ndim != 4 or any(side == 0 or side % 32 for side in images.shape[1:3]):
            raise ValueError(f"HRNet: images {images.shape}, expected [N, H, W, 3] with H and W multiples of 32")
        places = images.shape[0] * images.shape[1] * images.shape[2] // 32**2
        if train and places == 1 and self.axis_name is None:
            raise ValueError(
                f"HRNet: images {images.shape} leave batch norm one number to average on the coarsest map, "
                "expected more than one image, or larger ones, in training"
            )
        layer = partial(ConvNorm, axis_name=self.axis_name, dtype=self.dtype)
        x = images
        for i in (1, 2):
            x = layer(self.stem_width, 3, 2, 1, name=f"stem{i}")(x, train=train)
        for block in range(self.first_blocks):
            first = ResidualBlock(
                self.first_width,
                1,
                1,
                True,
                Conv,
                axis_name=self.axis_name,
                dtype=self.dtype,
                name=f"first{block}",
            )
            x = rematerialised(first, self.remat)(x, train=train)
        maps = [x]
        for stage, modules in enumerate(self.modules, 2):
            coarser = layer(self.width * 2 ** (stage - 1), 3, 2, 1, name=f"transition{stage}_new")(
                maps[-1], train=train
            )
            if stage == 2:
                maps = [layer(self.width, 3, 1, 1, name="transition2_first")(x, train=train)]
            maps = [*maps, coarser]
            for module in range(modules):
                last = self.finest_only and stage == 4 and module == modules - 1
                exchange = HighResolutionModule(
                    self.blocks,
                    1 if last else 0,
                    self.axis_name,
                    self.dtype,
                    name=f"stage{stage}_{module}",
                )
                maps = rematerialised(exchange, self.remat)(maps, train=train)
        return {f"c{i}": x for i, x in enumerate(maps, 2)}


hrnet_w18_small = partial(HRNet, 16, (1, 1, 1), 2, first_blocks=1, first_width=32)
hrnet_w18_small_v2 = partial(HRNet, 18, (1, 3, 2), 2, first_blocks=2)
hrnet_w18 = partial(HRNet, 18)
hrnet_w32 = partial(HRNet, 32)
hrnet_w48 = partial(HRNet, 48)


class PoseNet(nn.Module):
    """One heat map per keypoint, by a 1x1 convolution on the finest map.

    Attributes:
      trunk: gives "c2"; an `HRNet` that is `finest_only` has no parameters to spare.
      joints: L.
    """

    trunk: nn.Module
    joints: int = 17

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] -> [N, H / 4, W / 4, L], float32."""
        found = self.trunk(images, train=train)["c2"]
        return Conv(self.joints, 1, use_bias=True, name="maps")(found.astype(jnp.float32))


class Classifier(nn.Module):
    """Class scores: bottlenecks widen each branch, strided convolutions add finer maps to coarser ones, then a mean.

    Attributes:
      trunk: an `HRNet` with all four maps.
      num_classes: C.
    """

    trunk: HRNet
    num_classes: int = 1000

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] -> [N, C], float32."""
        shared = {"axis_name": self.trunk.axis_name, "dtype": self.trunk.dtype}
        maps = self.trunk(images, train=train)
        y = None
        for i, (x, width) in enumerate(zip(maps.values(), HEAD_WIDTHS, strict=True)):
            x = ResidualBlock(width, 1, 1, True, Conv, **shared, name=f"widen{i}")(x, train=train)
            if y is not None:
                halve = ConvNorm(4 * width, 3, 2, 1, use_bias=True, **shared, name=f"halve{i - 1}")
                x = x + halve(y, train=train)
            y = x
        y = ConvNorm(2048, 1, use_bias=True, **shared, name="last")(y, train=train)
        y = y.astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.num_classes, kernel_init=torch_default, name="classifier")(y)


class SimpleBaseline(nn.Module):
    """The paper's baseline: a trunk of stride 32 and three transposed convolutions up to stride 4.

    Xiao, Wu, Wei. Simple baselines for human pose estimation and tracking. ECCV 2018. arXiv:1804.06208.

    Attributes:
      trunk: a `facejax.backbones.resnet.ResNet`.
      joints: L.
      width: channels of the transposed convolutions.
    """

    trunk: nn.Module
    joints: int = 17
    width: int = 256

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] -> [N, H / 4, W / 4, L], float32."""
        shared = {"axis_name": self.trunk.axis_name, "dtype": self.trunk.dtype}
        x = self.trunk(images, train=train, features=True)["c5"]
        for i in range(3):
            x = ConvTranspose(
                self.width, 4, 2, 1, kernel_init=kaiming_normal_fan_out, dtype=self.trunk.dtype, name=f"up{i}"
            )(x)
            x = nn.relu(BatchNorm(**shared, name=f"up{i}_bn")(x, train=train))
        return Conv(self.joints, 1, use_bias=True, name="maps")(x.astype(jnp.float32))


def small_kernels(rng: jax.Array, params: Any, deviation: float = 1e-3) -> Any:
    """Every kernel redrawn from N(0, deviation^2), as the authors initialise their pose networks."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(rng, len(leaves))
    drawn = [
        deviation * jax.random.normal(k, p.shape, p.dtype) if p.ndim > 1 else p
        for k, p in zip(keys, leaves, strict=True)
    ]
    return tree.unflatten(drawn)
