"""Reading images between pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def bilinear_sample(image: jax.Array, points: jax.Array) -> jax.Array:
    """Bilinear interpolation; beyond the outermost pixel centres the edge is repeated.

    Args:
      image: [H, W, C].
      points: [..., 2] (x, y) in pixels, x to the right, y down; the centre of pixel (row, column) lies at
        (column + 0.5, row + 0.5).

    Returns:
      [..., C].
    """
    height, width, _ = image.shape
    x = jnp.clip(points[..., 0] - 0.5, 0, width - 1)
    y = jnp.clip(points[..., 1] - 0.5, 0, height - 1)
    column = jnp.minimum(x.astype(jnp.int32), max(width - 2, 0))
    row = jnp.minimum(y.astype(jnp.int32), max(height - 2, 0))
    fx, fy = (x - column)[..., None], (y - row)[..., None]
    right, below = jnp.minimum(column + 1, width - 1), jnp.minimum(row + 1, height - 1)
    top = image[row, column] * (1 - fx) + image[row, right] * fx
    bottom = image[below, column] * (1 - fx) + image[below, right] * fx
    return top * (1 - fy) + bottom * fy
