"""Pooling and resizing with gradients that are fast on every platform. Images are [N, H, W, C]."""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.ops.conv import Padding, Pair, windows

NO_PADDING = ((0, 0), (0, 0))


def max_pool(x: jax.Array, window: Pair, stride: Pair, padding: Padding = NO_PADDING) -> jax.Array:
    """Maximum over windows, with minus infinity as padding.

    Equal maxima share the gradient (unevenly if more than two); PyTorch assigns it to the first.
    """
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return reduce(jnp.maximum, windows(x, window, stride, padding, (1, 1), lowest))


def avg_pool(
    x: jax.Array, window: Pair, stride: Pair, padding: Padding = NO_PADDING, *, count_padding: bool = True
) -> jax.Array:
    """Mean over windows. `count_padding` counts padding in the divisor, PyTorch's default."""
    total = sum(windows(x, window, stride, padding, (1, 1)))
    if count_padding:
        return total / (window[0] * window[1])
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return total / sum(windows(ones, window, stride, padding, (1, 1)))


def ceil_padding(shape: Pair, window: Pair, stride: Pair) -> tuple[Pair, Pair]:
    """Padding at the far edges with which windows cover every pixel, the ceil mode of Caffe and PyTorch.

    A map smaller than the last window by a stride or more has no windows, as there.
    """
    ends = []
    for n, w, s in zip(shape, window, stride, strict=True):
        steps = -(-(n - w) // s)
        ends.append((0, max(0, steps * s + w - n)))
    return ends[0], ends[1]


def adaptive_avg_pool(x: jax.Array, size: Pair) -> jax.Array:
    """Means over windows that divide the map: output i of m averages pixels floor(i n / m) to ceil((i + 1) n / m) of n.

    The rule of PyTorch's AdaptiveAvgPool2d.

    Args:
      x: [N, H, W, C].
      size: (height, width) of the output, of any size.
    """
    rows, columns = (jnp.asarray(_bins(n, m), x.dtype) for n, m in zip(x.shape[1:3], size, strict=True))
    x = jnp.einsum("oh,nhwc->nowc", rows, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("pw,nowc->nopc", columns, x, precision=lax.Precision.HIGHEST)


def _bins(source: int, target: int) -> np.ndarray:
    """Weights [target, source] of the means."""
    begin, end = (np.arange(target) * source // target, -(-np.arange(1, target + 1) * source // target))
    inside = (np.arange(source) >= begin[:, None]) & (np.arange(source) < end[:, None])
    return inside / inside.sum(1, keepdims=True)


def upsample_nearest(x: jax.Array, factor: int) -> jax.Array:
    """Repeats every pixel `factor` times along both axes."""
    return jnp.repeat(jnp.repeat(x, factor, 1), factor, 2)


def resize_bilinear(x: jax.Array, size: Pair, *, align_corners: bool = False) -> jax.Array:
    """Bilinear resize by one small matrix product per axis, without anti-aliasing: PyTorch's interpolate.

    Args:
      x: [N, H, W, C].
      size: (height, width) of the output.
      align_corners: aligns the centres of corner pixels instead of the image borders.
    """
    rows = jnp.asarray(_interpolation(x.shape[1], size[0], align_corners), x.dtype)
    columns = jnp.asarray(_interpolation(x.shape[2], size[1], align_corners), x.dtype)
    x = jnp.einsum("oh,nhwc->nowc", rows, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("pw,nowc->nopc", columns, x, precision=lax.Precision.HIGHEST)


def _interpolation(source: int, target: int, align_corners: bool) -> np.ndarray:
    """Weights [target, source] of linear interpolation."""
    if align_corners:
        position = np.arange(target) * ((source - 1) / max(target - 1, 1))
    else:
        position = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, None)
    low = np.minimum(position.astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    weights = np.zeros((target, source))
    np.add.at(weights, (np.arange(target), low), 1 - (position - low))
    np.add.at(weights, (np.arange(target), high), position - low)
    return weights
