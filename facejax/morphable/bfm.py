"""The Basel Face Model 2009 as a `MorphableModel`. Its files are not part of facejax (University of Basel).

Paysan, Knothe, Amberg, Romdhani, Vetter. AVSS 2009. Shape and texture from 01_MorphableModel.mat; expressions from the
FaceWarehouse-style basis of 300W-LP (Model_Exp.mat), as the 3DDFA family uses them.
"""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from facejax.formats import matfile
from facejax.morphable.model import MorphableModel
from facejax.morphable.uv import uv_fragments, uv_position_map

SCALE = 1e-5
"""Model units per unit of the file (about a micrometre): the half height of the head becomes about 1."""

LANDMARKS68 = (
    21873, 22149, 21653, 21036, 43236, 44918, 46166, 47135, 47914, 48695, 49667, 50924, 52613, 33678, 33005,
    32469, 32709, 38695, 39392, 39782, 39987, 40154, 40893, 41059, 41267, 41661, 42367, 8161, 8177, 8187,
    8192, 6515, 7243, 8204, 9163, 9883, 2215, 3886, 4920, 5828, 4801, 3640, 10455, 11353, 12383, 14066, 12653,
    11492, 5522, 6025, 7495, 8215, 8935, 10395, 10795, 9555, 8836, 8236, 7636, 6915, 5909, 7384, 8223, 9064,
    10537, 8829, 8229, 7629,
)  # fmt: skip
"""Vertices of the 68 landmarks in the 53,215-vertex mesh of 3DDFA, zero-based."""


def from_bfm(
    path: str | os.PathLike[str],
    expression_path: str | os.PathLike[str],
    *,
    vertices: np.ndarray | None = None,
    landmarks68: tuple[int, ...] = LANDMARKS68,
    albedo: int = 40,
    texture_size: int = 192,
) -> MorphableModel:
    """Reads the model.

    The function orthonormalises the bases on the vertices kept (by an SVD of the scaled columns). The coefficients are
    therefore in standard deviations and sorted by variance, but differ from those of the file.

    Args:
      path: 01_MorphableModel.mat: shapeMU [3V, 1], shapePC [3V, K], shapeEV [K, 1]; texMU, texPC, texEV likewise,
        0..255; tl [T, 3], one-based.
      expression_path: mu_exp [3v, 1], w_exp [3v, E] and optionally sigma_exp [E, 1], over the vertices kept.
      vertices: [v] zero-based indices of the file's vertices to keep (the trimmed mesh of `expression_path`).
      landmarks68: vertices of the landmarks in the trimmed mesh.
      albedo: number of albedo dimensions kept; each becomes a texture.
      texture_size: side of the square albedo texture, a cylindrical map of the head, texels.

    Returns:
      A model without the 98 landmarks, boundaries, named expressions, or regions other than the skin.
    """
    shape = _load(path, ("shapeMU", "shapePC", "shapeEV", "texMU", "texPC", "texEV", "tl"))
    expression = _load(expression_path, ("mu_exp", "w_exp"), ("sigma_exp",))
    if not 1 < shape["texMU"].max() <= 256:
        raise ValueError(f"{path}: texMU goes up to {shape['texMU'].max():.3g}, expected colours of 0..255")
    total = shape["shapeMU"].size // 3
    keep = np.arange(total) if vertices is None else np.asarray(vertices)
    if keep.min() < 0 or keep.max() >= total:
        raise ValueError(f"from_bfm: vertices range from {keep.min()} to {keep.max()}, but the model has {total}")
    rows = (3 * keep[:, None] + np.arange(3)).ravel()
    given = expression["w_exp"].shape[0]
    if given != len(rows):
        raise ValueError(f"{expression_path}: w_exp has {given} rows, expected {len(rows)} for {len(keep)} vertices")
    if max(landmarks68) >= len(keep) or len(landmarks68) != 68:
        raise ValueError(f"from_bfm: expected 68 landmarks below {len(keep)}, the largest is {max(landmarks68)}")
    mean = (shape["shapeMU"].ravel()[rows] + expression["mu_exp"].ravel()).reshape(-1, 3) * SCALE
    mean -= [0, mean[:, 1].mean(), mean[:, 2].mean()]
    identity = _orthonormal(shape["shapePC"][rows] * shape["shapeEV"].ravel() * SCALE)
    sigma = expression.get("sigma_exp", np.ones(expression["w_exp"].shape[1])).ravel()
    expressions = _orthonormal(expression["w_exp"] * sigma * SCALE)
    place = np.full(total, -1)
    place[keep] = np.arange(len(keep))
    triangles = place[shape["tl"].astype(int) - 1]
    triangles = triangles[(triangles >= 0).all(1)]
    triangles = outward(mean, triangles)
    uv = np.stack([0.5 + np.arctan2(mean[:, 0], mean[:, 2]) / (2 * np.pi), _unit_range(-mean[:, 1])], -1)
    spread = shape["texPC"][rows, :albedo] * shape["texEV"].ravel()[:albedo]
    columns = [shape["texMU"].ravel()[rows] / 255, *(spread / 255).T]
    textures = _textures(uv, triangles, np.stack(columns, -1).reshape(len(keep), 3, -1), texture_size)
    basis = _orthonormal(textures[..., 1:].reshape(-1, len(columns) - 1))
    partner = cKDTree(mean).query(mean * [-1, 1, 1])[1]
    none = jnp.zeros(0, jnp.int32)
    return MorphableModel(
        mean_shape=_array(mean),
        identity_basis=_array(identity[0].reshape(len(keep), 3, -1)),
        identity_std=_array(identity[1]),
        expression_basis=_array(expressions[0].reshape(len(keep), 3, -1)),
        expression_std=_array(expressions[1]),
        expressions={},
        albedo_mean=_array(textures[..., 0]),
        albedo_basis=_array(basis[0].reshape(texture_size, texture_size, 3, -1)),
        albedo_std=_array(basis[1]),
        triangles=jnp.asarray(triangles, jnp.int32),
        uv=_array(uv),
        landmarks68=jnp.asarray(landmarks68, jnp.int32),
        landmarks98=none,
        boundaries={},
        symmetry=jnp.asarray(partner, jnp.int32),
        regions={"skin": jnp.ones(len(keep), bool)},
    )


def _load(
    path: str | os.PathLike[str], names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    return {name: value.real.astype(np.float64) for name, value in matfile.numbers(path, names, optional).items()}


def _orthonormal(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal directions and descending standard deviations of sum_i columns[:, i] * n_i, n standard normal."""
    values, vectors = np.linalg.eigh(columns.T @ columns)
    order = np.argsort(values)[::-1]
    std = np.sqrt(np.maximum(values[order], 1e-20))
    return columns @ vectors[:, order] / std, std


def outward(mean: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Reorients triangles counter-clockwise from outside, whatever the order in the file."""
    a, b, c = (mean[triangles[:, i]] for i in range(3))
    outside = np.sum(np.cross(b - a, c - a) * ((a + b + c) / 3 - mean.mean(0)), 1)
    return triangles if (outside > 0).mean() > 0.5 else triangles[:, ::-1]


def _unit_range(x: np.ndarray) -> np.ndarray:
    return 0.01 + 0.98 * (x - x.min()) / (x.max() - x.min())


def _textures(uv: np.ndarray, triangles: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Per-vertex values [v, 3, K] as textures [size, size, 3, K]; without triangles across the cylinder's seam."""
    seam = np.ptp(uv[triangles, 0], axis=1) > 0.5
    flat = jnp.asarray(triangles[~seam], jnp.int32)
    fragments = jax.jit(lambda u: uv_fragments(u, flat, size))(_array(uv))
    draw = jax.jit(lambda v: uv_position_map(fragments, flat, v)[0])
    return np.stack([np.asarray(draw(_array(values[..., i]))) for i in range(values.shape[-1])], -1)


def _array(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.float32)
