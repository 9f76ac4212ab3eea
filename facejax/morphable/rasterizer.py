"""A z-buffer rasterizer with static shapes, for meshes whose triangles are small in the image.

A work list of fixed capacity holds the pixels of every front-facing triangle's bounding box, clipped to the image; each
entry tests one pixel against one triangle. Two scatters find the nearest triangle of a pixel: the largest depth, then
the lowest triangle index at that depth. This is exact for any mesh size, because depth and index are not packed into
one number. Barycentric coordinates come from the selected entry, so interpolated attributes are differentiable with
respect to the attributes and the vertices.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

EDGE = 1e-6  # tolerance for rounding of a barycentric weight


class Fragments(NamedTuple):
    """Visible surface at every pixel.

    Attributes:
      triangle: [H, W] int32 triangle index, -1 for background.
      barycentric: [3, H, W] weights of the triangle's vertices, zero for background.
      depth: [H, W] interpolated depth, larger is nearer; minus infinity for background.
      overflow: [] bool: the work list was full and triangles are missing (see `check`).
    """

    triangle: jax.Array
    barycentric: jax.Array
    depth: jax.Array
    overflow: jax.Array


def rasterize(
    vertices: jax.Array,
    triangles: jax.Array,
    height: int,
    width: int,
    *,
    capacity: int | None = None,
    cull: bool = True,
) -> Fragments:
    """Rasterizes one mesh. A triangle covers a pixel if it contains the pixel's centre, edges included.

    Args:
      vertices: [V, 3] x right and y down in pixels (the first pixel's centre is at 0.5), larger depth is nearer.
      triangles: [T, 3] int; counter-clockwise in the image is the front.
      height, width: of the image.
      capacity: entries of the work list, 4 * height * width when None. A head needs about 2 to 3 entries per pixel.
      cull: leaves out back-facing triangles.
    """
    if vertices.ndim != 2 or vertices.shape[1] != 3 or triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(
            f"rasterize: vertices {vertices.shape} and triangles {triangles.shape}, expected [V, 3], [T, 3]"
        )
    capacity = capacity or 4 * height * width
    x, y, z = ([vertices[:, axis][triangles[:, i]] for i in range(3)] for axis in range(3))
    left, right = _pixels(x, width)
    top, bottom = _pixels(y, height)
    area = (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0])
    pixels = jnp.where(area < 0 if cull else area != 0, (right - left) * (bottom - top), 0).astype(jnp.int32)
    end = lax.associative_scan(jnp.add, pixels)  # four times as fast as cumsum on a CPU

    entry, numbers = jnp.arange(capacity), jnp.arange(len(triangles), dtype=jnp.int32)
    first = jnp.where(pixels > 0, end - pixels, capacity)
    owner = jnp.zeros(capacity, jnp.int32).at[first].max(numbers, mode="drop")
    owner = lax.associative_scan(jnp.maximum, owner)
    setup = [left, top, jnp.maximum(right - left, 1), z[2], z[0] - z[2], z[1] - z[2]]
    inverse = jnp.where(area != 0, 1 / jnp.where(area != 0, area, 1.0), 0.0)
    for p, q in ((1, 2), (2, 0)):  # weights of the first two corners at the first pixel of the box, and their slopes
        along_x, along_y = (y[p] - y[q]) * inverse, (x[q] - x[p]) * inverse
        setup += [(left + 0.5 - x[p]) * along_x + (top + 0.5 - y[p]) * along_y, along_x, along_y]
    setup = lax.optimization_barrier(jnp.stack(setup, -1)[owner])  # without it XLA repeats the gather for every use
    left, top, columns, z, dz0, dz1, *lines = setup.T
    place = (entry - first[owner]).astype(jnp.float32)
    row = jnp.floor((place + 0.5) / columns)
    column = place - row * columns
    w0, w1 = (start + column * along_x + row * along_y for start, along_x, along_y in (lines[:3], lines[3:]))
    depth = z + w0 * dz0 + w1 * dz1
    inside = jnp.minimum(jnp.minimum(w0, w1), 1 - w0 - w1) >= -EDGE
    pixel = ((top + row) * width + left + column).astype(jnp.int32)
    pixel = jnp.where(inside & (entry < end[-1]), pixel, height * width)
    depth, pixel = lax.optimization_barrier((depth, pixel))

    nearest = jnp.full(height * width + 1, -jnp.inf).at[pixel].max(depth)
    wins = (pixel < height * width) & (depth == nearest[pixel])
    winner = jnp.full(height * width + 1, capacity).at[jnp.where(wins, pixel, height * width)].min(entry)[:-1]
    hit = winner < capacity
    winner = jnp.where(hit, winner, 0)
    weights = jnp.stack([w0[winner], w1[winner], 1 - w0[winner] - w1[winner]])
    return Fragments(
        jnp.where(hit, owner[winner], -1).reshape(height, width),
        jnp.where(hit, weights, 0.0).reshape(3, height, width),
        nearest[:-1].reshape(height, width),
        end[-1] > capacity,
    )


def rasterize_batch(vertices: jax.Array, triangles: jax.Array, height: int, width: int, **options: object) -> Fragments:
    """`rasterize` for vertices [N, V, 3] and one list of triangles; sequential on a CPU."""

    def one(v: jax.Array) -> Fragments:
        return rasterize(v, triangles, height, width, **options)

    return lax.platform_dependent(vertices, cpu=lambda v: lax.map(one, v), default=jax.vmap(one))


def interpolate(fragments: Fragments, triangles: jax.Array, attributes: jax.Array) -> jax.Array:
    """Per-vertex attributes [V, C] at every pixel: [C, H, W], zero for background. Affine in image space."""
    corners = jnp.asarray(triangles).T[:, jnp.maximum(fragments.triangle, 0)]
    planes = [
        sum(w * column[c] for w, c in zip(fragments.barycentric, corners, strict=True)) for column in attributes.T
    ]
    return jnp.stack(planes)


def check(fragments: Fragments) -> None:
    """Raises ValueError if a work list was full. Not for use under jit."""
    if bool(jnp.any(fragments.overflow)):
        raise ValueError("rasterize: the work list is full and triangles are missing: increase capacity")


def _pixels(corners: list[jax.Array], limit: int) -> tuple[jax.Array, jax.Array]:
    """Range (first, one past the last) of pixels with centres inside a triangle's extent along an axis."""
    low, high = reduce(jnp.minimum, corners), reduce(jnp.maximum, corners)
    low = jnp.clip(jnp.ceil(low - 0.5), 0, limit)
    return low, jnp.maximum(jnp.clip(jnp.floor(high + 0.5), 0, limit), low)
