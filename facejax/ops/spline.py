"""Polyharmonic splines through scattered points, and the warp of an image by the displacements of such points."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from facejax.ops.sampling import bilinear_sample


class Spline(NamedTuple):
    """f(p) = sum_i weights_i phi(|p - points_i|) + [p, 1] affine.

    Attributes:
      points: [P, D].
      weights: [P, C].
      affine: [D + 1, C]; the last row is the constant.
    """

    points: jax.Array
    weights: jax.Array
    affine: jax.Array


def basis(squared: jax.Array, order: int) -> jax.Array:
    """The radial function of squared distances: -r (order 1) or r^2 log r (order 2, the thin plate).

    Value and slope at 0 are 0. The sign of order 1 makes both conditionally positive definite, so that a positive
    diagonal smooths.
    """
    if order not in (1, 2):
        raise ValueError(f"a spline of order {order}: expected 1 or 2")
    safe = jnp.where(squared > 0, squared, 1.0)
    return jnp.where(squared > 0, -jnp.sqrt(safe) if order == 1 else 0.5 * safe * jnp.log(safe), 0.0)


def fit(points: jax.Array, values: jax.Array, *, order: int = 1, smoothing: float = 0.0) -> Spline:
    """The spline with given values at given points.

    In single precision the points should lie within about 0..1; they must not all lie on a line.

    Args:
      points: [P, D], distinct unless there is smoothing.
      values: [P, C].
      order: see `basis`.
      smoothing: added to the diagonal; 0 interpolates.
    """
    if points.ndim != 2 or values.ndim != 2 or len(points) != len(values):
        raise ValueError(f"spline: points {points.shape} and values {values.shape}, expected [P, D] and [P, C]")
    count = len(points)
    radial = basis(_squared_distances(points, points), order) + smoothing * jnp.eye(count)
    linear = jnp.concatenate([points, jnp.ones((count, 1))], 1)
    corner = jnp.zeros((linear.shape[1],) * 2)
    matrix = jnp.block([[radial, linear], [linear.T, corner]])
    right = jnp.concatenate([values, jnp.zeros((linear.shape[1], values.shape[1]))])
    found = jnp.linalg.solve(matrix, right)
    return Spline(points, found[:count], found[count:])


def evaluate(spline: Spline, queries: jax.Array, *, order: int = 1) -> jax.Array:
    """Values [..., C] of a spline at queries [..., D]."""
    flat = queries.reshape(-1, queries.shape[-1])
    radial = basis(_squared_distances(flat, spline.points), order)
    highest = jax.lax.Precision.HIGHEST
    found = jnp.matmul(radial, spline.weights, precision=highest)
    found += jnp.matmul(flat, spline.affine[:-1], precision=highest) + spline.affine[-1]
    return found.reshape(*queries.shape[:-1], -1)


def border_points(per_side: int) -> np.ndarray:
    """[4 * per_side, 2] points at equal distances on the outline of the unit square: 1 corners, 2 middles too."""
    t = np.arange(per_side, dtype=np.float32) / max(per_side, 1)
    zero, one = np.zeros_like(t), np.ones_like(t)
    return np.concatenate([np.stack(side, 1) for side in ((t, zero), (one, t), (1 - t, one), (zero, 1 - t))])


def displacements(
    source: jax.Array,
    target: jax.Array,
    height: int,
    width: int,
    *,
    order: int = 1,
    border: int = 2,
    smoothing: float = 0.0,
) -> jax.Array:
    """[height, width, 2] displacement in pixels at the centre of each pixel; arguments as in `warp`."""
    sides = jnp.array([width, height], jnp.float32)
    fixed = jnp.asarray(border_points(border))
    points = jnp.concatenate([target / sides, fixed])
    values = jnp.concatenate([(target - source) / sides, jnp.zeros_like(fixed)])
    spline = fit(points, values, order=order, smoothing=smoothing)
    return evaluate(spline, _centres(height, width) / sides, order=order) * sides


def warp(
    image: jax.Array,
    source: jax.Array,
    target: jax.Array,
    *,
    order: int = 1,
    border: int = 2,
    smoothing: float = 0.0,
) -> jax.Array:
    """Moves what an image shows at some points to others, and the rest smoothly with them.

    The displacements are interpolated between the points of the result, and each of its pixels is sampled where it
    comes from, so that nothing remains open.

    Args:
      image: [H, W, C]; beyond its outermost pixels it is continued by them.
      source, target: [P, 2] (x, y) in pixels, the first one's centre at 0.5; where points are and where they go.
      order: of the spline, see `basis`.
      border: points on each side of the image that stay, see `border_points`; 0: none.
      smoothing: see `fit`; 0 moves the points exactly.

    Returns:
      [H, W, C], differentiable with respect to the image and both sets of points.
    """
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2:
        raise ValueError(f"warp: points {source.shape} to {target.shape}, expected [P, 2] twice")
    height, width = image.shape[:2]
    moved = displacements(source, target, height, width, order=order, border=border, smoothing=smoothing)
    return bilinear_sample(image, _centres(height, width) - moved)


def _squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """[N, D], [M, D] -> [N, M], without the cancellation of a product."""
    return sum((a[:, None, i] - b[None, :, i]) ** 2 for i in range(a.shape[1]))


def _centres(height: int, width: int) -> jax.Array:
    """[height, width, 2] centres (x, y) of pixels."""
    x, y = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
    return jnp.stack([x, y], -1)
