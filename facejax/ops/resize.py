"""MATLAB's `imresize`, with which super-resolution makes its low-resolution images."""

from __future__ import annotations

import math
from typing import NamedTuple

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
      [..., H', W', C] float32, or the floating type of the images.

    Raises:
      ValueError: not exactly one of scale and size, or not above 0.
    """
    if (scale is None) == (size is None) or min(size or (scale,)) <= 0:
        raise ValueError(f"imresize: scale {scale} and size {size}: expected one of them, above 0")
    if images.ndim < 3:
        raise ValueError(f"imresize: images {images.shape}: expected [..., H, W, C]")
    found = jnp.asarray(images, jnp.promote_types(images.dtype, jnp.float32))
    for axis in (0, 1):
        length = images.shape[axis - 3]
        target, step = (size[axis], size[axis] / length) if size else (math.ceil(scale * length), scale)
        found = _along(found, found.ndim - 3 + axis, _plan(length, target, step, antialias))
    return found.astype(images.dtype) if jnp.issubdtype(images.dtype, jnp.floating) else found


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


def _along(images: jax.Array, axis: int, plan: _Plan) -> jax.Array:
    first = jnp.moveaxis(images, axis, 0)
    inputs = first.reshape(len(first), -1)[plan.rows]
    weights = jnp.asarray(plan.weights, images.dtype)
    outputs = jnp.einsum("bol,blx->box", weights, inputs, precision=lax.Precision.HIGHEST)
    outputs = outputs.reshape(-1, outputs.shape[-1])[: plan.length]
    return jnp.moveaxis(outputs.reshape(plan.length, *first.shape[1:]), 0, axis)
