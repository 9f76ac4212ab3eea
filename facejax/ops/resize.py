"""MATLAB's `imresize`, with which super-resolution makes its low-resolution images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def imresize(
    images: jax.Array, scale: float | None = None, *, size: tuple[int, int] | None = None, antialias: bool = True
) -> jax.Array:
    """Bicubic resizing equal to MATLAB's, borders included.

    The kernel is Keys' with a = -0.5, stretched by 1 / scale when the image shrinks; borders are mirrored. Values may
    overshoot, and integers are not rounded: MATLAB clips and rounds images of uint8. `jax.image.resize` has the same
    kernel, but cuts it at the borders.

    Args:
      images: [..., H, W, C].
      scale: of both sides; a side of n pixels gets ceil(scale n).
      size: (height, width) of the result, in place of the scale.
      antialias: stretches the kernel when the image shrinks.

    Returns:
      [..., H', W', C] float32.

    Raises:
      ValueError: not exactly one of scale and size, or not above 0.
    """
    target, steps = _checked(images, scale, size)
    found = jnp.asarray(images, jnp.float32)
    for axis in (-3, -2):
        plan = _plan(images.shape[axis], target[axis], steps[axis], antialias)
        found = _along(found, axis, plan, partial(jnp.matmul, precision=lax.Precision.HIGHEST))
    return found


def imresize_on_host(
    images: np.ndarray, scale: float | None = None, *, size: tuple[int, int] | None = None, antialias: bool = True
) -> np.ndarray:
    """`imresize` in NumPy, without compiling anything: for images of many sizes. Returns float32."""
    target, steps = _checked(images, scale, size)
    found = images.astype(np.float32)
    for axis in (-3, -2):
        found = _along(found, axis, _plan(images.shape[axis], target[axis], steps[axis], antialias), np.matmul)
    return found


def _checked(images: Any, scale: float | None, size: tuple[int, int] | None) -> tuple[dict[int, int], dict[int, float]]:
    """Sides of the result and their scales, by axis."""
    if (scale is None) == (size is None) or min(size or (scale,)) <= 0:
        raise ValueError(f"imresize: scale {scale} and size {size}: expected one of them, above 0")
    if images.ndim < 3 or 0 in images.shape[-3:-1]:
        raise ValueError(f"imresize: images {images.shape}: expected [..., H, W, C]")
    sides = dict(zip((-3, -2), images.shape[-3:-1], strict=True))
    if size:
        target = dict(zip((-3, -2), size, strict=True))
        return target, {axis: target[axis] / side for axis, side in sides.items()}
    return {axis: math.ceil(scale * side) for axis, side in sides.items()}, dict.fromkeys(sides, scale)


class _Plan(NamedTuple):
    """The banded matrix of a resampling, cut into blocks of B outputs that read L inputs.

    Attributes:
      rows: [blocks, L] int, the inputs of each block.
      weights: [blocks, B, L].
      length: number of outputs; the last block is filled up.
    """

    rows: np.ndarray
    weights: np.ndarray
    length: int


def contributions(length: int, target: int, scale: float, antialias: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Unmirrored inputs [target, P] of every output, P consecutive ones from 0, and their weights [target, P]."""
    shrink = min(scale, 1.0) if antialias else 1.0
    taps = math.ceil(4 / shrink) + 2
    centres = (np.arange(target) + 0.5) / scale - 0.5
    places = np.floor(centres - 2 / shrink).astype(int)[:, None] + np.arange(taps)
    x = np.abs(centres[:, None] - places) * shrink
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
    return places, weights / weights.sum(1, keepdims=True)


@functools.lru_cache(maxsize=256)
def _plan(length: int, target: int, scale: float, antialias: bool) -> _Plan:
    places, weights = contributions(length, target, scale, antialias)
    taps = places.shape[1]
    block = math.ceil(2 * taps * scale)  # half of what a block reads is shared with its neighbours
    blocks = -(-target // block)
    filled = np.minimum(np.arange(blocks * block), target - 1).reshape(blocks, block)
    starts = places[filled[:, 0], 0]
    offsets = places[filled, 0] - starts[:, None]
    count = offsets.max() + taps
    banded = np.zeros((blocks, block, count), np.float32)
    np.put_along_axis(banded, offsets[..., None] + np.arange(taps), weights[filled].astype(np.float32), -1)
    rows = (starts[:, None] + np.arange(count)) % (2 * length)
    return _Plan(np.where(rows < length, rows, 2 * length - 1 - rows), banded, target)


def _along(images: Any, axis: int, plan: _Plan, matmul: Callable[[Any, Any], Any]) -> Any:
    """Resamples one axis of an array of NumPy or JAX."""
    axis += images.ndim
    order = (axis, *(i for i in range(images.ndim) if i != axis))
    first = images.transpose(order)
    inputs = first.reshape(len(first), -1)[plan.rows]
    outputs = matmul(plan.weights, inputs)
    outputs = outputs.reshape(-1, outputs.shape[-1])[: plan.length].reshape(plan.length, *first.shape[1:])
    return outputs.transpose(np.argsort(order))
