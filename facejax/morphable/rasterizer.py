"""A z-buffer rasterizer of static shapes, for meshes whose triangles are small on the picture.

The pixels of every front-facing triangle's bounding box, clipped to the picture, are laid end to end in one work list
of fixed capacity; each entry tests one pixel against one triangle. The nearest triangle of a pixel is found by two
scatters (greatest depth, then lowest triangle among those that have it), which is exact for any mesh size: no bits are
shared between depth and triangle number. Barycentric coordinates are computed again from the winner, a gather, so
interpolated attributes are differentiable in the attributes and in the vertices.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Point = tuple[jax.Array, ...]


class Fragments(NamedTuple):
    """What is seen at every pixel.

    Attributes:
      triangle: [H, W] int32, or -1 where there is none.
      barycentric: [H, W, 3] weights of the triangle's vertices, zero where there is none.
      depth: [H, W] interpolated depth, larger is nearer; minus infinity where there is none.
      overflow: [] bool: the work list was too short and triangles are missing (see `check`).
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
    """Rasterizes one mesh. A pixel belongs to a triangle that covers its centre, edges included.

    Args:
      vertices: [V, 3] x to the right and y down in pixels (the first pixel's centre is at 0.5), depth larger nearer.
      triangles: [T, 3] int; counter-clockwise as seen is the front.
      height, width: of the picture.
      capacity: entries of the work list, 4 * height * width when None. A head needs about 2 to 3 times the pixels.
      cull: leaves out triangles seen from behind.
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
    end = jnp.cumsum(pixels)

    entry, numbers = jnp.arange(capacity), jnp.arange(len(triangles), dtype=jnp.int32)
    first = jnp.where(pixels > 0, end - pixels, capacity)
    owner = jnp.zeros(capacity, jnp.int32).at[first].max(numbers, mode="drop")
    owner = lax.associative_scan(jnp.maximum, owner)
    corners = jnp.stack([x[0], y[0], z[0], x[1], y[1], z[1], x[2], y[2], z[2]], -1)
    setup = jnp.concatenate([corners, jnp.stack([left, top, right - left], -1)], -1)
    setup = lax.optimization_barrier(setup[owner])  # else XLA gathers again for every use
    place = entry - first[owner]
    columns = jnp.maximum(setup[:, 11].astype(jnp.int32), 1)
    row = place // columns
    centre = setup[:, 9] + (place - row * columns) + 0.5, setup[:, 10] + row + 0.5
    a, b, c = (tuple(setup[:, 3 * i + k] for k in range(3)) for i in range(3))
    weights = _barycentric(a, b, c, centre)
    depth = weights[0] * a[2] + weights[1] * b[2] + weights[2] * c[2]
    inside = (jnp.minimum(jnp.minimum(*weights[:2]), weights[2]) >= 0) & (entry < end[-1])
    pixel = jnp.where(inside, centre[1].astype(jnp.int32) * width + centre[0].astype(jnp.int32), height * width)
    depth, pixel = lax.optimization_barrier((depth, pixel))

    nearest = jnp.full(height * width + 1, -jnp.inf).at[pixel].max(depth)
    wins = (pixel < height * width) & (depth == nearest[pixel])
    none = jnp.iinfo(jnp.int32).max
    winner = jnp.full(height * width + 1, none).at[jnp.where(wins, pixel, height * width)].min(owner)[:-1]
    hit = winner != none
    winner = jnp.where(hit, winner, 0)

    ys, xs = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    seen = lax.optimization_barrier(corners[winner])
    a, b, c = (tuple(seen[:, 3 * i + k] for k in range(3)) for i in range(3))
    weights = jnp.where(hit[:, None], jnp.stack(_barycentric(a, b, c, (xs.ravel(), ys.ravel())), -1), 0.0)
    depth = jnp.where(hit, weights[:, 0] * a[2] + weights[:, 1] * b[2] + weights[:, 2] * c[2], -jnp.inf)
    return Fragments(
        jnp.where(hit, winner, -1).reshape(height, width),
        weights.reshape(height, width, 3),
        depth.reshape(height, width),
        end[-1] > capacity,
    )


def rasterize_batch(vertices: jax.Array, triangles: jax.Array, height: int, width: int, **options: object) -> Fragments:
    """`rasterize` for vertices [N, V, 3] over one list of triangles; on a CPU one face after the other."""

    def one(v: jax.Array) -> Fragments:
        return rasterize(v, triangles, height, width, **options)

    return lax.platform_dependent(vertices, cpu=lambda v: lax.map(one, v), default=jax.vmap(one))


def interpolate(fragments: Fragments, triangles: jax.Array, attributes: jax.Array) -> jax.Array:
    """Per-vertex attributes [V, C] at every pixel: [H, W, C], zero where nothing is seen. Affine in the picture."""
    corners = attributes[jnp.asarray(triangles)[jnp.maximum(fragments.triangle, 0)]]
    return jnp.einsum("hwk,hwkc->hwc", fragments.barycentric, corners)


def check(fragments: Fragments) -> None:
    """Raises ValueError when a work list was too short (not under jit: reads the flag)."""
    if bool(jnp.any(fragments.overflow)):
        raise ValueError("rasterize: the work list is full and triangles are missing: expected a larger capacity")


def _pixels(corners: list[jax.Array], limit: int) -> tuple[jax.Array, jax.Array]:
    """First pixel, and the one after the last, whose centres lie between a triangle's corners along an axis."""
    low, high = reduce(jnp.minimum, corners), reduce(jnp.maximum, corners)
    low = jnp.clip(jnp.ceil(low - 0.5), 0, limit)
    return low, jnp.maximum(jnp.clip(jnp.floor(high + 0.5), 0, limit), low)


def _barycentric(a: Point, b: Point, c: Point, point: Point) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights of a triangle's corners at a point, all given as (x, y, ...) arrays; zero for one without area."""

    def side(p: Point, q: Point, r: Point) -> jax.Array:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    area = side(a, b, c)
    inverse = jnp.where(area != 0, 1 / jnp.where(area != 0, area, 1.0), 0.0)
    return side(b, c, point) * inverse, side(c, a, point) * inverse, side(a, b, point) * inverse
