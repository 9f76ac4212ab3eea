"""A procedural human head: a morphable model from formulas, without data.

`layout` places a mesh whose edges follow eyelids, lips and brows on a smooth head; `sculpting` displaces its vertices
by smooth functions with named controls and expressions; `painting` computes the colour of every texel. All heads are
therefore in dense correspondence. The bases are principal components under the distribution of the controls: exact for
the shape, which is linear in the controls, and estimated from sampled paintings for the albedo.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from facejax.morphable.model import MorphableModel
from facejax.morphable.procedural.layout import (
    AXIS_Z,
    EYE_X,
    EYE_Y,
    MOUTH_HALF,
    NOSE_Y,
    PARTS,
    Mesh,
    brow_middle,
    landmark_points,
    lip,
    mesh,
    neckness,
    ramp,
)
from facejax.morphable.procedural.painting import paint, random_paint
from facejax.morphable.procedural.sculpting import EXPRESSIONS, SHAPE_CONTROLS, sculpt
from facejax.ops.boundaries import LINES

IDENTITY, ALBEDO = 48, 40
PAINTINGS = 80


@functools.cache
def procedural(
    seed: int = 0,
    identity: int = IDENTITY,
    expression: int = len(EXPRESSIONS) - 1,
    albedo: int = ALBEDO,
    texture_size: int = 256,
) -> MorphableModel:
    """A morphable head without data; equal arguments give equal arrays.

    Args:
      seed: of the paintings from which the albedo basis is estimated.
      identity, expression, albedo: number of dimensions kept, by descending variance; at most the number of shape
        controls, of expressions, and PAINTINGS - 1.
      texture_size: side of the square albedo texture, texels.
    """
    # The sum of both winks is eyes_closed, so one expression is not independent.
    limits = {"identity": len(SHAPE_CONTROLS), "expression": len(EXPRESSIONS) - 1, "albedo": PAINTINGS - 1}
    for name, value in {"identity": identity, "expression": expression, "albedo": albedo}.items():
        if not 1 <= value <= limits[name]:
            raise ValueError(f"procedural: {name} is {value}, expected 1 to {limits[name]}")
    m = mesh()

    def shaped(control: dict[str, float], express: dict[str, float]) -> np.ndarray:
        return sculpt(m, lambda n: control.get(n, 0.0), lambda n: express.get(n, 0.0))

    mean = shaped({}, {})
    fields = [(shaped({n: s}, {}) - shaped({n: -s}, {})) / 2 for n, s in SHAPE_CONTROLS.items()]
    identity_basis, identity_std = _principal(np.stack([f.ravel() for f in fields], 1), identity)
    faces = np.stack([(shaped({}, {n: 1.0}) - mean).ravel() for n in EXPRESSIONS], 1)
    expression_basis, expression_std = _principal(0.35 * faces, expression)
    coefficients = np.linalg.lstsq(expression_basis * expression_std, faces, rcond=None)[0]
    rng = np.random.default_rng(seed)
    paintings = np.stack([paint(random_paint(rng, i), texture_size).ravel() for i in range(PAINTINGS)], 1)
    albedo_mean = paintings.mean(1)
    albedo_basis, albedo_std = _principal((paintings - albedo_mean[:, None]) / np.sqrt(PAINTINGS - 1), albedo)

    marks = _landmarks(m)
    shape3 = (len(mean), 3)
    texture = (texture_size, texture_size, 3)
    return MorphableModel(
        mean_shape=_array(mean),
        identity_basis=_array(identity_basis.reshape(*shape3, -1)),
        identity_std=_array(identity_std),
        expression_basis=_array(expression_basis.reshape(*shape3, -1)),
        expression_std=_array(expression_std),
        expressions={n: _array(coefficients[:, i]) for i, n in enumerate(EXPRESSIONS)},
        albedo_mean=_array(albedo_mean.reshape(texture)),
        albedo_basis=_array(albedo_basis.reshape(*texture, -1)),
        albedo_std=_array(albedo_std),
        triangles=jnp.asarray(m.triangles),
        uv=_array(m.uv),
        landmarks68=jnp.asarray(marks[0]),
        landmarks98=jnp.asarray(marks[1]),
        boundaries={n: jnp.asarray(v) for n, v in _boundaries(marks[1]).items()},
        symmetry=jnp.asarray(m.symmetry),
        regions={n: jnp.asarray(v) for n, v in _regions(m).items()},
    )


def _array(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def _principal(columns: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal directions [D, count] and descending deviations of sum_i columns[:, i] * n_i, n standard normal."""
    values, vectors = np.linalg.eigh((columns.T @ columns).astype(np.float64))
    order = np.argsort(values)[::-1][:count]
    std = np.sqrt(np.maximum(values[order], 1e-20))
    basis = columns @ (vectors[:, order] / std).astype(columns.dtype)
    return basis * np.where(basis.sum(0) < 0, -1.0, 1.0), std


def _landmarks(m: Mesh) -> tuple[np.ndarray, np.ndarray]:
    skin = np.flatnonzero((m.part == 0) & (m.labels[:, 2] > -0.5))
    tree = cKDTree(m.labels[skin])
    marks68, marks98 = (skin[tree.query(landmark_points(*s))[1]] for s in ((17, False, 4), (33, True, 5)))
    front = np.where(m.part == 1, m.offset[:, 2], -np.inf)
    pupils = [np.argmax(np.where(side * m.labels[:, 0] > 0, front, -np.inf)) for side in (-1, 1)]
    return marks68.astype(np.int32), np.concatenate([marks98, pupils]).astype(np.int32)


def _boundaries(marks98: np.ndarray) -> dict[str, np.ndarray]:
    """LAB's thirteen boundaries over the 98 landmarks (Wu et al., arXiv:1805.10483, Fig. 3)."""
    return {name: marks98[list(line)] for name, line in LINES[98].items()}


def _regions(m: Mesh) -> dict[str, np.ndarray]:
    x, y, z = m.labels.T
    a, skin = np.abs(x), m.part == 0
    neck = skin & (neckness(y, np.arctan2(x, z - AXIS_Z)) > 0.5)
    skin = skin & ~neck
    face = skin & (z > 0)
    top, bottom = (lip(np.clip(x / MOUTH_HALF, -1, 1), w)[:, 1] for w in ("upper_outer", "lower_outer"))
    middle = brow_middle(np.clip((a - 0.125) / 0.345, 0, 1))
    return {
        "skin": skin,
        "eyes": (m.part == 1) | (face & (np.hypot((a - EYE_X) / 0.16, (y - EYE_Y) / 0.09) < 1)),
        "brows": face & (np.abs(y - middle) < 0.035) & (a > 0.11) & (a < 0.48),
        "nose": face & (a < 0.05 + 0.13 * ramp(EYE_Y - y, 0, 0.35)) & (y < EYE_Y + 0.02) & (y > NOSE_Y - 0.075),
        "lips": face & (a <= MOUTH_HALF + 1e-6) & (y <= top + 1e-6) & (y >= bottom - 1e-6),
        "neck": neck,
        "ears": m.part == PARTS.index("ear"),
        "teeth": m.part == PARTS.index("teeth"),
        "mouth": m.part == PARTS.index("mouth"),
        "scalp": skin & ((y > 0.66) | ((z < 0.02) & (y > -0.35)) | ((z < 0.25) & (y > 0.35))),
    }
