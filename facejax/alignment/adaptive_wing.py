"""Adaptive Wing: a heatmap loss that is curved on the background and pointed on the foreground.

Wang, Bo, Li. "Adaptive Wing Loss for Robust Face Alignment via Heatmap Regression". ICCV 2019. arXiv:1904.07399.
Stacked hourglasses of FAN's blocks predict a Gaussian map per landmark and one map of all boundary lines. The exponent
of the loss follows the target: close to 1 on a peak, where small errors keep a large gradient, and above 2 on the
background. A weight map stresses peaks and pixels next to them. CoordConv channels tell positions, also those on the
boundary that the last stack predicted. The layers are those of the authors' code (protossw512/AdaptiveWingLoss), which
has no loss and no training; loss, weight map and constants are the paper's.

Differs: Gaussians within three pixels of the left or upper border stay centred, where the code shifts them by up to
two pixels; the boundary map has no 8-bit steps; its weight map has the paper's threshold of 0.2, where the code, which
compares 0..255 with 0.2, takes every pixel near a line; the 19 landmarks of AFLW have a right brow of three points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from facejax.nn.conv import Conv
from facejax.nn.init import torch_default
from facejax.nn.norm import BatchNorm
from facejax.ops import boundaries, heatmaps
from facejax.ops.pooling import avg_pool, max_pool, upsample_nearest

Dtype = Any
STRIDE = 4


def adaptive_wing(
    maps: jax.Array,
    targets: jax.Array,
    *,
    omega: float = 14.0,
    theta: float = 0.5,
    epsilon: float = 1.0,
    alpha: float = 2.1,
) -> jax.Array:
    """The loss of every pixel, with d = |targets - maps| and p = alpha - targets; no gradient reaches the targets.

    omega ln(1 + (d / epsilon)^p) for d below theta, and above the line A d - C that continues it smoothly.

    Args:
      maps: [...] predicted heat.
      targets: [...] in 0..1.
      omega: height of the loss.
      theta: difference at which the line begins.
      epsilon: difference at which the curved part bends; should be near 1, see the paper's Sec. 4.3.
      alpha: exponent on the background, above 2; on a peak it is alpha - 1.

    Returns:
      [...] float32.
    """
    targets = lax.stop_gradient(targets.astype(jnp.float32))
    d = jnp.abs(targets - maps.astype(jnp.float32))
    p = alpha - targets
    at_theta = (theta / epsilon) ** p
    slope = omega * p * at_theta / (theta * (1 + at_theta))
    offset = theta * slope - omega * jnp.log1p(at_theta)
    curved = omega * jnp.log1p((jnp.minimum(d, theta) / epsilon) ** p)
    return jnp.where(d < theta, curved, slope * d - offset)


def weight_map(targets: jax.Array, threshold: float = 0.2) -> jax.Array:
    """1 where the greatest of the 3x3 targets around a pixel reaches the threshold, else 0: [N, H, W, C], float32."""
    dilated = max_pool(targets, (3, 3), (1, 1), ((1, 1), (1, 1)))
    return (dilated >= threshold).astype(jnp.float32)


def coordinates(height: int, width: int) -> jax.Array:
    """CoordConv's channels [H, W, 3]: row and column in -1..1, and their norm over its greatest value."""
    row, column = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")
    radius = jnp.sqrt(row**2 + column**2)
    return jnp.stack([row, column, radius / radius.max()], -1)


class CoordConv(nn.Module):
    """A convolution that also sees the coordinates of its inputs (Liu et al., arXiv:1807.03247).

    Attributes:
      features, kernel_size, strides, padding: of the convolution, which has a bias.
      dtype: of the computation.
    """

    features: int
    kernel_size: int = 1
    strides: int = 1
    padding: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, boundary: jax.Array | None = None) -> jax.Array:
        """[N, H, W, C] -> [N, H', W', features].

        Args:
          x: the inputs; 3 coordinate channels follow them.
          boundary: [N, H, W, 1], a predicted boundary map: row and column once more, where it is above 0.05, else 0.
        """
        n, height, width, _ = x.shape
        place = jnp.broadcast_to(coordinates(height, width), (n, height, width, 3)).astype(x.dtype)
        parts = [x, place]
        if boundary is not None:
            parts.append(jnp.where(boundary > 0.05, place[..., :2], 0.0))
        return Conv(
            self.features, self.kernel_size, self.strides, self.padding, use_bias=True, kernel_init=torch_default,
            dtype=self.dtype, name="conv",
        )(jnp.concatenate(parts, -1))  # fmt: skip


class ConvBlock(nn.Module):
    """Three 3x3 convolutions, joined, plus a shortcut: the block of FAN (Bulat, Tzimiropoulos, arXiv:1703.00862).

    Attributes:
      features: F; the convolutions have F/2, F/4 and F/4 channels.
      axis_name: mapped axis over which batch statistics are shared.
      dtype: of the computation.
    """

    features: int
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, features]."""

        def layer(x: jax.Array, features: int, size: int, suffix: str) -> jax.Array:
            x = nn.relu(BatchNorm(self.axis_name, dtype=self.dtype, name=f"bn{suffix}")(x, train=train))
            return Conv(
                features, size, padding=size // 2, kernel_init=torch_default, dtype=self.dtype, name=f"conv{suffix}"
            )(x)

        first = layer(x, self.features // 2, 3, "1")
        second = layer(first, self.features // 4, 3, "2")
        third = layer(second, self.features // 4, 3, "3")
        shortcut = x if x.shape[-1] == self.features else layer(x, self.features, 1, "_shortcut")
        return jnp.concatenate([first, second, third], -1) + shortcut


class Hourglass(nn.Module):
    """A block at this resolution plus blocks at halves of it: average pooling down, nearest neighbours up.

    Attributes:
      depth: number of halvings.
      features, axis_name, dtype: see `ConvBlock`.
    """

    depth: int
    features: int
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, features] -> the same shape."""

        def block(x: jax.Array, name: str) -> jax.Array:
            return ConvBlock(self.features, self.axis_name, self.dtype, name=name)(x, train=train)

        low = block(avg_pool(x, (2, 2), (2, 2)), "down")
        if self.depth > 1:
            low = Hourglass(self.depth - 1, self.features, self.axis_name, self.dtype, name="inner")(low, train=train)
        else:
            low = block(low, "inner")
        return block(x, "skip") + upsample_nearest(block(low, "up"), 2)


class Net(nn.Module):
    """Images to the maps of every stack.

    Attributes:
      landmarks: L.
      stacks: number of hourglasses.
      depth: of each.
      features: width F of the hourglasses, a multiple of 8; the stem has F/4 and F/2.
      axis_name: mapped axis over which batch statistics are shared; the published runs share none.
      dtype: of the computation.
    """

    landmarks: int = 98
    stacks: int = 4
    depth: int = 4
    features: int = 256
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """Maps of each stack.

        Args:
          images: [N, H, W, 3] RGB in 0..1; 4 x 2^depth divides H and W.
          train: whether batch norm uses the batch's statistics.

        Returns:
          `stacks` maps [N, H / 4, W / 4, L + 1], float32; the last channel is of the boundary lines.
        """
        cells = STRIDE * 2**self.depth
        if images.ndim != 4 or any(side == 0 or side % cells for side in images.shape[1:3]):
            raise ValueError(
                f"AdaptiveWing: images {images.shape}, expected [N, H, W, 3] with sides that {cells} divides"
            )
        if self.features % 8:
            raise ValueError(f"AdaptiveWing: features is {self.features}, expected a multiple of 8")
        options = {"axis_name": self.axis_name, "dtype": self.dtype}
        quarter, half, full = self.features // 4, self.features // 2, self.features

        def conv(x: jax.Array, features: int, name: str) -> jax.Array:
            return Conv(features, 1, use_bias=True, kernel_init=torch_default, dtype=self.dtype, name=name)(x)

        x = CoordConv(quarter, 7, 2, 3, self.dtype, name="stem")(images)
        x = nn.relu(BatchNorm(**options, name="stem_bn")(x, train=train))
        x = avg_pool(ConvBlock(half, **options, name="block1")(x, train=train), (2, 2), (2, 2))
        x = ConvBlock(half, **options, name="block2")(x, train=train)
        x = ConvBlock(full, **options, name="block3")(x, train=train)
        found: list[jax.Array] = []
        for i in range(self.stacks):
            boundary = found[-1][..., -1:] if found else None
            y = CoordConv(full, dtype=self.dtype, name=f"coordinates{i}")(x, boundary)
            y = Hourglass(self.depth, full, **options, name=f"hourglass{i}")(y, train=train)
            y = conv(ConvBlock(full, **options, name=f"top{i}")(y, train=train), full, f"features{i}")
            y = nn.relu(BatchNorm(**options, name=f"features{i}_bn")(y, train=train))
            maps = conv(y, self.landmarks + 1, f"maps{i}")
            found.append(maps.astype(jnp.float32))
            if i < self.stacks - 1:
                x = x + conv(y, full, f"from_features{i}") + conv(maps, full, f"from_maps{i}")
        return found


Loss = Literal["adaptive_wing", "squared_error"]


@dataclass(frozen=True)
class AdaptiveWing:
    """The aligner: targets, losses and decoding around a network, with the published settings.

    Attributes:
      net: the network.
      loss: "adaptive_wing", or "squared_error", the usual loss of heatmaps.
      stress: W, the additional weight of pixels in the weight map; 0 for none.
      sigma, radius: deviation and half side of the landmarks' Gaussians, pixels of the map.
      boundary_sigma: deviation across the boundary lines, pixels of the map.
      samples: of each boundary line.
    """

    net: Net
    loss: Loss = "adaptive_wing"
    stress: float = 10.0
    sigma: float = 1.75
    radius: int = 3
    boundary_sigma: float = 1.0
    samples: int = 100

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise ValueError(f"AdaptiveWing: loss is {self.loss!r}, expected one of {', '.join(get_args(Loss))}")

    def targets(self, points: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Maps [N, H, W, L + 1] in 0..1 of points [N, L, 2] in pixels of the crop; the last one is of the lines.

        Args:
          points: landmarks; those outside the crop, or not finite, have no peak.
          size: (H, W) of the map.
        """
        cells = jnp.floor(points / STRIDE)
        peaks, _ = heatmaps.gaussian_maps(cells, size, sigma=self.sigma, radius=self.radius)
        lines = boundaries.curves(cells, self.samples, last=False)
        lines = lines.reshape(*lines.shape[:-3], -1, 2)
        options = {"rounded": True, "reach": boundaries.gaussian_reach(self.boundary_sigma)}
        squares = boundaries.squared_distances(lines, size, **options)
        return jnp.concatenate([peaks, boundaries.gaussian(squares, self.boundary_sigma)[..., None]], -1)

    def losses(self, outputs: list[jax.Array], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The terms "stack_1", ... [N], means over pixels and channels."""
        targets = self.targets(batch["points"], outputs[0].shape[1:3])
        weights = 1 + self.stress * weight_map(targets)
        pixels = adaptive_wing if self.loss == "adaptive_wing" else _squared_error
        return {f"stack_{i}": jnp.mean(weights * pixels(maps, targets), (1, 2, 3)) for i, maps in enumerate(outputs, 1)}

    def decode(self, outputs: list[jax.Array]) -> dict[str, jax.Array]:
        """Highest pixels, shifted by a quarter towards the higher neighbour, in pixels of the crop.

        Returns:
          "points" [N, L, 2] of the last stack, and "stack_1", ... of those before it.
        """
        names = [*(f"stack_{i}" for i in range(1, len(outputs))), "points"]
        return {name: self._points(maps) for name, maps in zip(names, outputs, strict=True)}

    def _points(self, maps: jax.Array) -> jax.Array:
        heat = maps[..., :-1]
        heat = heat - heat.min((1, 2), keepdims=True)  # the highest pixel may be negative
        points, _ = heatmaps.decode(heat, margin=1)
        return STRIDE * (points + 0.5)


def _squared_error(maps: jax.Array, targets: jax.Array) -> jax.Array:
    return (maps.astype(jnp.float32) - targets) ** 2
