"""Bilinear image sampling, and random sampling without replacement."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def bilinear_sample(image: jax.Array, points: jax.Array) -> jax.Array:
    """Bilinear interpolation with edge padding beyond the outermost pixel centres.

    Args:
      image: [H, W, C].
      points: [..., 2] (x, y) in pixels, x to the right, y down; the centre of pixel (row, column) lies at
        (column + 0.5, row + 0.5).

    Returns:
      [..., C].
    """
    height, width, channels = image.shape
    x = jnp.clip(points[..., 0] - 0.5, 0, width - 1)
    y = jnp.clip(points[..., 1] - 0.5, 0, height - 1)
    column = jnp.minimum(x.astype(jnp.int32), max(width - 2, 0))
    row = jnp.minimum(y.astype(jnp.int32), max(height - 2, 0))
    fx, fy = (x - column)[..., None], (y - row)[..., None]
    right, below = jnp.minimum(column + 1, width - 1), jnp.minimum(row + 1, height - 1)
    flat = image.reshape(-1, channels)  # a flat index is cheaper than two
    top = flat[row * width + column] * (1 - fx) + flat[row * width + right] * fx
    bottom = flat[below * width + column] * (1 - fx) + flat[below * width + right] * fx
    return top * (1 - fy) + bottom * fy


def without_replacement(rng: jax.Array, totals: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Samples `count` distinct numbers below the total of each row, uniformly, by Floyd's method.

    The j-th draw is uniform over the first total - count + j + 1 numbers, and replaced by the last of these if it has
    occurred before.

    Args:
      rng: key; equal keys give equal draws.
      totals: [B] int.
      count: samples per row; a row with a total of at most `count` returns all numbers in order.

    Returns:
      numbers: [B, count] int32; and mask [B, count], False for padding.
    """
    first = jnp.maximum(totals - count, 0)
    draws = jax.random.uniform(rng, (count, len(totals)))
    chosen = jnp.full((len(totals), count), -1)
    for j in range(count):
        last = first + j
        draw = jnp.minimum((draws[j] * (last + 1)).astype(jnp.int32), last)
        pick = jnp.where((chosen == draw[:, None]).any(1), last, draw)
        chosen = chosen.at[:, j].set(jnp.where(totals > count, pick, j))
    return chosen, jnp.arange(count) < totals[:, None]
