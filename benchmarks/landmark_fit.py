"""The morphable model fitted to 68 landmarks of 1,000 faces at once, beside SciPy one face after the other:
`python -m benchmarks.landmark_fit`.

SciPy minimises the same function from the same start, with differences for the Jacobian as by default and with the
analytic one; it runs on a part of the faces, and the time of 1,000 is in proportion.
"""

from __future__ import annotations

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from benchmarks.compare import record
from facejax.morphable import fit, parameters
from facejax.morphable.parameters import LinearFace, Parameters
from facejax.morphable.procedural import procedural
from facejax.ops import rotation

FACES, SOLVED, NOISE = 1000, 20, 0.5


def problems(face: LinearFace, rng: np.random.Generator) -> np.ndarray:
    """Noisy landmarks [N, 68, 2] of random faces, yaw up to 70 degrees, in crops of 64 pixels, y up."""
    angles = np.stack([rng.normal(0, 0.2, FACES), rng.uniform(-1.2, 1.2, FACES), rng.normal(0, 0.2, FACES)], 1)
    shift = np.concatenate([rng.uniform(25, 40, (FACES, 2)), np.zeros((FACES, 1))], 1)
    pose = parameters.compose(jnp.full(FACES, 25.0), rotation.from_euler(jnp.asarray(angles)), jnp.asarray(shift))
    coefficients = (jnp.asarray(np.clip(rng.normal(size=(FACES, n)), -2, 2)) for n in face.layout)
    points = parameters.reconstruct(face, parameters.join(Parameters(pose, *coefficients)))[..., :2]
    return np.asarray(points) + NOISE * rng.normal(size=points.shape)


def residuals(mean: np.ndarray, bases: np.ndarray, points: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Of a rotation vector, log f, two translations and the coefficients: errors over the noise, and the prior."""
    placed = np.exp(u[3]) * (mean + bases @ u[6:]) @ Rotation.from_rotvec(u[:3]).as_matrix().T
    return np.concatenate([((placed[:, :2] + u[4:6] - points) / NOISE).ravel(), u[6:]])


def jacobian(mean: np.ndarray, bases: np.ndarray, points: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Derivatives of `residuals`; of the rotation by the left Jacobian of the rotation vector."""
    turn, f = Rotation.from_rotvec(u[:3]).as_matrix(), np.exp(u[3])
    placed = f * (mean + bases @ u[6:]) @ turn.T
    angle = max(np.linalg.norm(u[:3]), 1e-12)
    skew = np.cross(np.eye(3), u[:3] / angle).T
    left = np.eye(3) + (1 - np.cos(angle)) / angle * skew + (1 - np.sin(angle) / angle) * skew @ skew
    x, y, z = placed.T
    zero, one = np.zeros_like(x), np.ones_like(x)
    turns = np.stack([np.stack([zero, z, -y], -1), np.stack([-z, zero, x], -1)], 1) @ left
    rest = np.stack([np.stack([x, one, zero], -1), np.stack([y, zero, one], -1)], 1)
    form = f * np.einsum("ij,vjk->vik", turn[:2], bases)
    top = np.concatenate([turns, rest, form], -1).reshape(-1, len(u)) / NOISE
    return np.concatenate([top, np.eye(len(u))[6:]])


def main() -> None:
    """Checks that both find equal minima and prints the ratios."""
    model = procedural()
    face = parameters.at_vertices(parameters.linear_face(model), model.landmarks68)
    face = face.replace(landmarks68=jnp.arange(68))
    points = problems(face, np.random.default_rng(0))
    given = jnp.asarray(points, jnp.float32)
    solve = partial(fit.fit_landmarks, face, noise=NOISE)
    found = np.asarray(solve(given))
    mean, bases = np.asarray(face.mean, np.float64), np.asarray(face.bases, np.float64)
    starts = np.asarray(jax.vmap(lambda y: fit.affine_pose(face.mean, y, jnp.ones(68)))(given[:SOLVED]))

    def start(pose: np.ndarray) -> np.ndarray:
        scale, turn, shift = (np.asarray(x, np.float64) for x in parameters.decompose(jnp.asarray(pose)))
        return np.r_[Rotation.from_matrix(turn).as_rotvec(), np.log(scale), shift[:2], np.zeros(bases.shape[-1])]

    def scipy(**options: object) -> list[np.ndarray]:
        return [
            least_squares(partial(residuals, mean, bases, y), start(p), method="lm", **options).x
            for y, p in zip(points, starts, strict=False)
        ]

    def analytic() -> list[np.ndarray]:
        return [
            least_squares(
                partial(residuals, mean, bases, y), start(p), partial(jacobian, mean, bases, y), method="lm"
            ).x
            for y, p in zip(points, starts, strict=False)
        ]

    for i, u in enumerate(analytic()):
        own = start(found[i, :12].reshape(3, 4))
        own[6:] = found[i, 12:]
        costs = [(residuals(mean, bases, points[i], x) ** 2).sum() for x in (own, u)]
        if costs[0] > costs[1] * 1.001:
            raise RuntimeError(f"face {i}: the cost is {costs[0]:.5f} and SciPy's {costs[1]:.5f}")

    def seconds(call: object, times: int, share: float = 1.0) -> list[float]:
        taken = []
        for _ in range(times):
            begin = time.perf_counter()
            jax.block_until_ready(call())
            taken.append((time.perf_counter() - begin) / share)
        return taken

    taken = {"facejax": seconds(lambda: solve(given), 7)}
    for name, call in (("differences", scipy), ("analytic Jacobian", analytic)):
        taken[f"SciPy, {name}, one by one"] = seconds(call, 2, SOLVED / FACES)
    for name, values in taken.items():
        print(f"{name}: {min(values):.3f} s for {FACES} faces, {min(values) / min(taken['facejax']):.0f} of facejax's")
    record(f"68 landmarks of {FACES:,} faces fitted", taken)


if __name__ == "__main__":
    main()
