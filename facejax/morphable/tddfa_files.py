"""The parameter files of cleardusk/3DDFA and cleardusk/3DDFA_V2: whitening, mean, bases, triangles and vertex subsets.

The files are derived from the Basel Face Model (University of Basel, research only) and not part of facejax.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.formats import arrays, matfile, pickles
from facejax.morphable.bfm import outward
from facejax.morphable.parameters import Layout, LinearFace, Whitening, from_column

BFM_VERTICES = 53_215
"""Of the mesh that 3DDFA and 300W-LP use."""
BFM_TRIANGLES = 105_840
NO_NECK_VERTICES = 38_365
"""Of 3DDFA_V2's mesh, which ends above the neck."""


def read_whitening(path: str | os.PathLike[str], size: int | None = None) -> Whitening:
    """Mean and deviation of param_whitening.pkl (3DDFA) or param_mean_std_62d_120x120.pkl (3DDFA_V2).

    The two files differ: weights decode with the statistics that they were trained with only.

    Args:
      path: the file.
      size: of the vectors, if known.

    Raises:
      ValueError: not such a file, or one of vectors of another size.
    """
    found = pickles.load(path)
    names = next(
        (
            names
            for names in (("param_mean", "param_std"), ("mean", "std"))
            if isinstance(found, dict) and all(_numeric(found.get(name)) for name in names)
        ),
        None,
    )
    if names is None:
        raise ValueError(f"{path}: expected the arrays mean and std, or param_mean and param_std")
    mean, std = (np.asarray(found[name], np.float64).ravel() for name in names)
    if mean.shape != std.shape or (size and len(mean) != size):
        raise ValueError(f"{path}: mean {mean.shape} and std {std.shape}, expected {size or 'as many'} numbers each")
    if not np.isfinite(mean).all() or not np.isfinite(std).all() or not (std > 0).all():
        raise ValueError(f"{path}: expected finite numbers and deviations above 0")
    return Whitening(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))


def _numeric(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "iuf"


def read_landmark_face(
    folder: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]], layout: Layout | None = None
) -> LinearFace:
    """The 68 landmarks as a `LinearFace`, from u_base.txt, w_shp_base.txt and w_exp_base.txt of 3DDFA.

    Args:
      folder: of the files, or the path of each of them by these names.
      layout: of the bases; None: that of 3DDFA.

    Raises:
      ValueError: a file is missing, or holds another number of landmarks or of components.
    """
    layout = layout or Layout()
    expected = {"u_base.txt": (204,), "w_shp_base.txt": (204, layout.shape), "w_exp_base.txt": (204, layout.expression)}
    arrays = []
    for name, shape in expected.items():
        path = folder[name] if isinstance(folder, Mapping) else pathlib.Path(folder) / name
        try:
            array = np.loadtxt(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: not a readable table of numbers: {error}") from error
        if array.shape != shape:
            raise ValueError(f"{path}: {array.shape}, expected {shape}, 68 landmarks of three coordinates")
        arrays.append(from_column(array))
    mean, *bases = arrays
    bases = jnp.asarray(np.concatenate(bases, -1), jnp.float32)
    none, all68 = jnp.zeros((0, 3), jnp.int32), jnp.arange(68, dtype=jnp.int32)
    return LinearFace(jnp.asarray(mean, jnp.float32), bases, none, all68, layout)


def dense_face(
    mean: np.ndarray,
    shape_basis: np.ndarray,
    expression_basis: np.ndarray,
    triangles: np.ndarray,
    landmarks: np.ndarray,
) -> LinearFace:
    """A `LinearFace` of columns as the published files hold them.

    Args:
      mean: [3V] or [3V, 1], u_shp + u_exp.
      shape_basis, expression_basis: [3V, S] and [3V, E].
      triangles: [3, T] or [T, 3], zero-based, of either orientation.
      landmarks: [68] vertex indices, or the [204] indices of their coordinates (keypoints_sim.npy).

    Raises:
      ValueError: the arrays do not belong together.
    """
    mean, shape_basis, expression_basis = (np.asarray(x, np.float64) for x in (mean, shape_basis, expression_basis))
    triangles, landmarks = np.asarray(triangles), np.asarray(landmarks).ravel()
    count = len(mean) // 3
    for name, basis in (("shape", shape_basis), ("expression", expression_basis)):
        if basis.ndim != 2 or len(basis) != len(mean):
            raise ValueError(f"the {name} basis is {basis.shape}, expected {len(mean)} rows as the mean has")
    if triangles.shape[-1] != 3:
        triangles = triangles.T
    if triangles.ndim != 2 or triangles.shape[-1] != 3 or triangles.min() < 0 or triangles.max() >= count:
        raise ValueError(f"triangles {triangles.shape}, expected [T, 3] of vertex indices 0 to {count - 1}")
    if len(landmarks) == 204:
        landmarks = landmark_vertices(landmarks)
    if len(landmarks) != 68 or landmarks.min() < 0 or landmarks.max() >= count:
        raise ValueError(f"landmarks {landmarks.shape}, expected 68 vertex indices 0 to {count - 1}")
    points = from_column(mean)
    bases = from_column(np.concatenate([shape_basis, expression_basis], 1))
    return LinearFace(
        jnp.asarray(points, jnp.float32),
        jnp.asarray(bases, jnp.float32),
        jnp.asarray(outward(points, triangles), jnp.int32),
        jnp.asarray(landmarks, jnp.int32),
        Layout(shape_basis.shape[1], expression_basis.shape[1]),
    )


def read_dense_face(folder: str | os.PathLike[str], layout: Layout) -> LinearFace:
    """3DDFA's mesh from u_shp.npy, u_exp.npy, w_shp_sim.npy, w_exp_sim.npy, keypoints_sim.npy and tri.mat.

    Raises:
      ValueError: a file is missing, or belongs to another mesh or layout.
    """
    folder = pathlib.Path(folder)

    names = ("u_shp.npy", "u_exp.npy", "w_shp_sim.npy", "w_exp_sim.npy", "keypoints_sim.npy")
    u_shape, u_expression, shape, expression, landmarks = (arrays.load(folder / name) for name in names)
    triangles = matfile.numbers(folder / "tri.mat", ("tri",))["tri"].real.astype(int) - 1
    if shape.ndim != 2 or expression.ndim != 2:
        raise ValueError(f"{folder}: bases {shape.shape} and {expression.shape}, expected matrices")
    if (shape.shape[1], expression.shape[1]) != layout:
        raise ValueError(f"{folder}: bases of {shape.shape[1]} and {expression.shape[1]} components, expected {layout}")
    if u_shape.shape != u_expression.shape:
        raise ValueError(f"{folder}: u_shp {u_shape.shape} and u_exp {u_expression.shape}, expected equal shapes")
    return dense_face(u_shape + u_expression, shape, expression, triangles, landmarks)


def dense_shapes(layout: Layout) -> LinearFace:
    """Shapes of `read_dense_face`'s result for the published files."""

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    bases = array(BFM_VERTICES, 3, layout.shape + layout.expression)
    triangles, landmarks = array(BFM_TRIANGLES, 3, dtype=jnp.int32), array(68, dtype=jnp.int32)
    return LinearFace(array(BFM_VERTICES, 3), bases, triangles, landmarks, layout)


def landmark_vertices(flat: np.ndarray) -> np.ndarray:
    """Vertex indices [68] of the coordinate indices 3v, 3v + 1, 3v + 2 in keypoints_sim.npy."""
    flat = np.asarray(flat).reshape(-1, 3)
    if (flat != flat[:, :1] + np.arange(3)).any() or (flat[:, 0] % 3).any():
        raise ValueError("landmark indices: expected 3v, 3v + 1, 3v + 2 of one vertex after the other")
    return flat[:, 0] // 3
