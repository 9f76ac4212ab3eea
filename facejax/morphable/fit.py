"""Pose, shape and expression from landmarks alone, without a network: a linear pose, then Gauss-Newton steps.

The classical baseline: Blanz & Vetter, "A morphable model for the synthesis of 3D faces", SIGGRAPH 1999, fitted to
points instead of pixels. A face is one small dense problem, and a batch of them runs as one program.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from facejax.morphable.parameters import LinearFace, Parameters, compose, decompose, join

MOTION = 6
"""Unknowns of the pose: a rotation vector, the scale's logarithm, two translations."""


@partial(jax.jit, static_argnames=("steps",))
def fit_landmarks(
    face: LinearFace,
    points: jax.Array,
    weights: jax.Array | None = None,
    *,
    prior: jax.Array | float = 1.0,
    noise: float = 1.0,
    steps: int = 5,
) -> jax.Array:
    """Vectors whose landmarks lie nearest to given ones, with a Gaussian prior on the coefficients.

    Minimises sum_l w_l |x_l - y_l|^2 / noise^2 + sum_i (alpha_i / prior_i)^2 over rotation, scale, translation and the
    coefficients alpha, from the pose that fits the mean face best in the linear least squares sense.

    Args:
      face: the model; its landmarks are fitted.
      points: [N, 68, 2] with y up, as of `facejax.morphable.crops.from_image`.
      weights: [N, 68]; all 1 when None. At least four points that are not in a plane need a weight above 0.
      prior: [S + E] standard deviations of the coefficients, or one number for all.
      noise: standard deviation of a coordinate, pixels.
      steps: Gauss-Newton steps.

    Returns:
      [N, D]; t_z is 0.

    Raises:
      ValueError: points of another shape.
    """
    count = len(face.landmarks68)
    if points.ndim != 3 or points.shape[1:] != (count, 2):
        raise ValueError(f"fit_landmarks: points {points.shape}, expected [N, {count}, 2]")
    weights = jnp.ones(points.shape[:2]) if weights is None else jnp.asarray(weights, jnp.float32)
    mean, bases = face.mean[face.landmarks68], face.bases[face.landmarks68]
    spread = jnp.broadcast_to(jnp.asarray(prior, jnp.float32), bases.shape[-1:])
    unit = jnp.sqrt(jnp.mean((mean - mean.mean(0)) ** 2))  # the file's unit, about 1e5 in the Basel model
    across = jnp.moveaxis(bases * spread / unit, 1, 0)
    solve = partial(_fit_one, mean / unit, across, noise=noise, steps=steps)
    pose, coefficients = lax.platform_dependent(
        points, weights, cpu=lambda *faces: lax.map(lambda face: solve(*face), faces), default=jax.vmap(solve)
    )
    scale = jnp.array([1, 1, 1, 0]) / unit + jnp.array([0, 0, 0, 1.0])
    shape, expression = jnp.split(coefficients * spread, [face.layout.shape], -1)
    return join(Parameters(pose * scale, shape, expression))


@partial(jax.jit, static_argnames=("steps",))
def fit_pose(vertices: jax.Array, points: jax.Array, weights: jax.Array | None = None, *, steps: int = 5) -> jax.Array:
    """Weak perspective poses [N, 3, 4] nearest to points, of known faces.

    Args:
      vertices: [N, L, 3] of about unit size.
      points: [N, L, 2] with y up.
      weights: [N, L]; all 1 when None.
      steps: Gauss-Newton steps.
    """
    if points.shape != (*vertices.shape[:2], 2):
        raise ValueError(f"fit_pose: points {points.shape}, expected {(*vertices.shape[:2], 2)}")
    weights = jnp.ones(points.shape[:2]) if weights is None else jnp.asarray(weights, jnp.float32)
    none = jnp.zeros((3, points.shape[1], 0))

    def solve(face: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return _fit_one(face[0], none, *face[1:], noise=1.0, steps=steps)[0]

    return lax.map(solve, (vertices, points, weights))


def affine_pose(vertices: jax.Array, points: jax.Array, weights: jax.Array) -> jax.Array:
    """The scaled rotation and translation [3, 4] of vertices [L, 3] that is nearest to the best affine map to points.

    Args:
      vertices: [L, 3].
      points: [L, 2], y up.
      weights: [L].
    """
    root = jnp.sqrt(weights)[:, None]
    ones = jnp.concatenate([vertices, jnp.ones_like(vertices[:, :1])], 1) * root
    normal = ones.T @ ones + 1e-6 * jnp.trace(ones.T @ ones) * jnp.eye(4)
    affine = cho_solve(cho_factor(normal), ones.T @ (points * root)).T
    lengths = jnp.sqrt(jnp.sum(affine[:, :3] ** 2, 1))
    u, _, vt = jnp.linalg.svd(affine[:, :3], full_matrices=False)
    first, second = u @ vt  # the nearest pair of orthonormal rows
    rotation = jnp.stack([first, second, jnp.cross(first, second)])
    return compose(lengths.mean(), rotation, jnp.append(affine[:, 3], 0.0))


def _fit_one(
    mean: jax.Array, bases: jax.Array, points: jax.Array, weights: jax.Array, *, noise: float, steps: int
) -> tuple[jax.Array, jax.Array]:
    """Pose [3, 4] and coefficients [K] in units of their prior, of one face; bases are [3, L, K]."""
    count = bases.shape[-1]
    flat = bases.reshape(3, -1)
    root = jnp.tile(jnp.sqrt(weights), 2) / noise
    regular = jnp.concatenate([jnp.full(MOTION, 1e-6), jnp.ones(count)])

    def step(_: int, state: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        scale, rotation, shift, alpha = state
        x, y, z = scale * rotation @ (mean.T + bases @ alpha)
        residual = (points.T - jnp.stack([x, y]) - shift[:, None]).ravel() * root
        zero, one = jnp.zeros_like(x), jnp.ones_like(x)
        motion = [[zero, z, -y, x, one, zero], [-z, zero, x, y, zero, one]]  # of a rotation vector, log f and t
        motion = jnp.stack([jnp.stack(row, -1) for row in motion])
        form = (scale * rotation[:2] @ flat).reshape(2, len(mean), count)
        jacobian = jnp.concatenate([motion, form], -1).reshape(len(root), MOTION + count) * root[:, None]
        normal = jacobian.T @ jacobian
        normal += jnp.diag(regular * jnp.where(jnp.arange(MOTION + count) < MOTION, jnp.diag(normal) + 1e-6, 1.0))
        gradient = jacobian.T @ residual - jnp.concatenate([jnp.zeros(MOTION), alpha])
        move = cho_solve(cho_factor(normal), gradient)
        grown = scale * jnp.exp(jnp.clip(move[3], -1, 1))
        return grown, _rotation(move[:3]) @ rotation, shift + move[4:MOTION], alpha + move[MOTION:]

    scale, rotation, translation = decompose(affine_pose(mean, points, weights))
    start = (scale, rotation, translation[:2], jnp.zeros(count))
    scale, rotation, shift, alpha = lax.fori_loop(0, steps, step, start)
    return compose(scale, rotation, jnp.append(shift, 0.0)), alpha


def _rotation(vector: jax.Array) -> jax.Array:
    """The rotation by |vector| about it (Rodrigues)."""
    squared = jnp.sum(vector * vector)
    angle = jnp.sqrt(jnp.maximum(squared, 1e-16))
    x, y, z = vector
    skew = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return jnp.eye(3) + jnp.sin(angle) / angle * skew + (1 - jnp.cos(angle)) / angle**2 * skew @ skew
