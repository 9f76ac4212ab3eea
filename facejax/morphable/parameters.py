"""The vector of pose, shape and expression that the 3DDFA family regresses, its whitening, and the face it stands for.

A vector holds the 3 x 4 matrix [f R | t] of a weak perspective camera row by row, then the coefficients of shape and of
expression: 12 + 40 + 10 = 62 numbers in the published networks. A face's vertices are f R (mean + bases alpha) + t, in
pixels with x to the right, y up and z towards the viewer; `facejax.morphable.crops` takes them to an image.

Files and papers write vertices as one column x0, y0, z0, x1, ... and the code of 3DDFA as 3 x V: here they are [V, 3],
of which the column is the row-major content (`from_column`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from facejax.morphable.model import MorphableModel

POSE = 12
DEPTH = 11
"""Index of t_z, which no image shows."""


class Layout(NamedTuple):
    """Numbers of shape and expression coefficients in a vector."""

    shape: int = 40
    expression: int = 10

    @property
    def size(self) -> int:
        return POSE + self.shape + self.expression


LAYOUTS = {layout.size: layout for layout in (Layout(), Layout(40, 20), Layout(100, 29))}
"""The published layouts by size: 62 (3DDFA, 3DDFA_V2, 2DASL), 72 and 141 (3DDFA_V2)."""


class Parameters(NamedTuple):
    """The parts of vectors: pose [..., 3, 4], shape [..., S] and expression [..., E]."""

    pose: jax.Array
    shape: jax.Array
    expression: jax.Array


@struct.dataclass
class LinearFace:
    """The linear model to which vectors refer.

    Attributes:
      mean: [V, 3] mean face.
      bases: [V, 3, S + E] displacements of a coefficient of 1, of shape and then of expression.
      triangles: [T, 3] int32, counter-clockwise seen from outside.
      landmarks68: [68] int32 vertex indices.
      layout: S and E.
    """

    mean: jax.Array
    bases: jax.Array
    triangles: jax.Array
    landmarks68: jax.Array
    layout: Layout = struct.field(pytree_node=False)


def linear_face(model: MorphableModel, layout: Layout | None = None) -> LinearFace:
    """The leading components of a morphable model; coefficients are in standard deviations.

    Raises:
      ValueError: the model has fewer components.
    """
    layout = layout or Layout()
    given = Layout(len(model.identity_std), len(model.expression_std))
    if layout.shape > given.shape or layout.expression > given.expression:
        raise ValueError(
            f"linear_face: {layout.shape} shape and {layout.expression} expression components, but the model has "
            f"{given.shape} and {given.expression}"
        )
    shape, expression = (slice(count) for count in layout)
    bases = (
        model.identity_basis[..., shape] * model.identity_std[shape],
        model.expression_basis[..., expression] * model.expression_std[expression],
    )
    return LinearFace(model.mean_shape, jnp.concatenate(bases, -1), model.triangles, model.landmarks68, layout)


def face_region(model: MorphableModel) -> np.ndarray:
    """Indices of the vertices of the face: no neck, ears, scalp, or inside of the mouth, and none behind the jaw."""
    others = ("neck", "ears", "scalp", "teeth", "mouth")
    left_out = [np.asarray(model.regions[name]) for name in others if name in model.regions]
    depth = np.asarray(model.mean_shape[:, 2])
    left_out.append(depth < depth[np.asarray(model.landmarks68)].min())
    return np.flatnonzero(~np.any(left_out, 0))


def subset(face: LinearFace, vertices: np.ndarray) -> LinearFace:
    """The face of some vertices, in their order, with the triangles whose corners are all among them.

    Args:
      face: the whole face.
      vertices: [V'] int, distinct indices. Landmarks outside of them become -1.

    Raises:
      ValueError: an index is out of range or occurs twice.
    """
    vertices, count = np.asarray(vertices), len(face.mean)
    if vertices.ndim != 1 or not len(vertices) or vertices.min() < 0 or vertices.max() >= count:
        raise ValueError(f"subset: vertices {vertices.shape}, expected [V'] of indices 0 to {count - 1}")
    place = np.full(count, -1, np.int32)
    place[vertices] = np.arange(len(vertices))
    if (place >= 0).sum() != len(vertices):
        raise ValueError("subset: an index occurs twice, expected distinct vertices")
    triangles = place[np.asarray(face.triangles)]
    triangles = triangles[(triangles >= 0).all(1)]
    landmarks = jnp.asarray(place[np.asarray(face.landmarks68)])
    return LinearFace(face.mean[vertices], face.bases[vertices], jnp.asarray(triangles), landmarks, face.layout)


def at_vertices(face: LinearFace, vertices: jax.Array) -> LinearFace:
    """The face of any vertices [P], without triangles and landmarks; indices may repeat and be traced."""
    none = jnp.zeros((0, 3), jnp.int32), jnp.zeros(0, jnp.int32)
    return LinearFace(face.mean[vertices], face.bases[vertices], *none, face.layout)


def split(vector: jax.Array, layout: Layout | None = None) -> Parameters:
    """The parts of vectors [..., D].

    Args:
      vector: whitening undone.
      layout: None: the published layout of that size.

    Raises:
      ValueError: a vector of another size.
    """
    size = vector.shape[-1]
    if layout is None:
        if size not in LAYOUTS:
            raise ValueError(f"parameters of {size} numbers, expected one of {', '.join(map(str, LAYOUTS))}")
        layout = LAYOUTS[size]
    if size != layout.size:
        raise ValueError(
            f"parameters of {size} numbers, expected {layout.size}: {POSE} of pose, {layout.shape} of shape, "
            f"{layout.expression} of expression"
        )
    end = POSE + layout.shape
    pose = vector[..., :POSE].reshape(*vector.shape[:-1], 3, 4)
    return Parameters(pose, vector[..., POSE:end], vector[..., end:])


def join(parameters: Parameters) -> jax.Array:
    """Inverse of `split`."""
    pose = parameters.pose.reshape(*parameters.pose.shape[:-2], POSE)
    return jnp.concatenate([pose, parameters.shape, parameters.expression], -1)


def with_depth(vector: jax.Array, depth: float = 0.0) -> jax.Array:
    """[..., D - 1] without t_z, as some networks of 3DDFA give (61 numbers) -> [..., D]."""
    before, after = vector[..., :DEPTH], vector[..., DEPTH:]
    return jnp.concatenate([before, jnp.full_like(before[..., :1], depth), after], -1)


def model_shape(face: LinearFace, parameters: Parameters) -> jax.Array:
    """Vertices mean + bases alpha [..., V, 3] in the model's own axes."""
    coefficients = jnp.concatenate([parameters.shape, parameters.expression], -1)
    return face.mean + jnp.tensordot(coefficients, face.bases, ((-1,), (-1,)), precision=lax.Precision.HIGHEST)


def reconstruct(face: LinearFace, vector: jax.Array) -> jax.Array:
    """Vertices [..., V, 3] of vectors [..., D]: pixels, y up.

    Coefficients of the Basel face model go up to 1e6 and its f is 5e-4, so that float32 is accurate to 1e-2 pixels.

    Raises:
      ValueError: vectors of another size than the face's.
    """
    parameters = split(vector, face.layout)
    return place(model_shape(face, parameters), parameters.pose)


def reconstruct_on_host(face: LinearFace, vector: np.ndarray) -> np.ndarray:
    """`reconstruct` in NumPy, for loaders: a face of NumPy arrays, vectors [..., D] -> vertices [..., V, 3]."""
    pose = vector[..., :POSE].reshape(*vector.shape[:-1], 3, 4)
    vertices = face.mean + np.einsum("vjk,...k->...vj", face.bases, vector[..., POSE:])
    return vertices @ np.swapaxes(pose[..., :3], -1, -2) + pose[..., None, :, 3]


def place(vertices: jax.Array, pose: jax.Array) -> jax.Array:
    """[f R | t] [..., 3, 4] applied to vertices [..., V, 3]."""
    turned = jnp.einsum("...vj,...ij->...vi", vertices, pose[..., :3], precision=lax.Precision.HIGHEST)
    return turned + pose[..., None, :, 3]


def compose(scale: jax.Array, rotation: jax.Array, translation: jax.Array) -> jax.Array:
    """Pose [..., 3, 4] of scales [...], rotations [..., 3, 3] and translations [..., 3]."""
    return jnp.concatenate([scale[..., None, None] * rotation, translation[..., None]], -1)


def decompose(pose: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scale, "rotation" and translation of poses [..., 3, 4], as the published code takes them (P2sRt).

    The scale is the mean length of the first two rows, the third row of R their cross product. The rows of a regressed
    pose need not be orthogonal: R is then no rotation, see `nearest_rotation`.

    Returns:
      [...], [..., 3, 3], [..., 3].
    """
    first, second = pose[..., 0, :3], pose[..., 1, :3]
    lengths = [jnp.sqrt(jnp.maximum(jnp.sum(row * row, -1), 1e-24)) for row in (first, second)]
    first, second = first / lengths[0][..., None], second / lengths[1][..., None]
    rotation = jnp.stack([first, second, jnp.cross(first, second)], -2)
    return (lengths[0] + lengths[1]) / 2, rotation, pose[..., 3]


def nearest_rotation(matrix: jax.Array) -> jax.Array:
    """The rotation [..., 3, 3] nearest to matrices [..., 3, 3] in the Frobenius norm."""
    u, _, vt = jnp.linalg.svd(matrix)
    sign = jnp.sign(jnp.linalg.det(u @ vt))
    return (u * jnp.stack([jnp.ones_like(sign), jnp.ones_like(sign), sign], -1)[..., None, :]) @ vt


def pose_scale(pose: jax.Array) -> jax.Array:
    """The scale f = ||T[:, :3]||_F / sqrt(3) [...] of poses [..., 3, 4]."""
    return jnp.sqrt(jnp.sum(pose[..., :3] ** 2, (-2, -1)) / 3)


def from_column(column: np.ndarray) -> np.ndarray:
    """x0, y0, z0, x1, ... along the first axis, [3V, ...] -> [V, 3, ...]; a trailing axis of 1 is dropped.

    Raises:
      ValueError: the first axis is no multiple of three.
    """
    column = np.asarray(column)
    if len(column) % 3:
        raise ValueError(f"a column of {len(column)} coordinates, expected a multiple of three")
    column = column[:, 0] if column.shape[1:] == (1,) else column
    return column.reshape(-1, 3, *column.shape[1:])


@struct.dataclass
class Whitening:
    """Mean and standard deviation [D] of the vectors of a training set; networks regress (p - mean) / std."""

    mean: jax.Array
    std: jax.Array

    @classmethod
    def of(cls, vectors: np.ndarray) -> Whitening:
        """The statistics of vectors [N, D]. An element that does not vary has the deviation 1.

        Raises:
          ValueError: fewer than two vectors, or values that are not finite.
        """
        vectors = np.asarray(vectors, np.float64)
        if vectors.ndim != 2 or len(vectors) < 2 or not np.isfinite(vectors).all():
            raise ValueError(f"whitening: vectors {vectors.shape}, expected [N, D] finite numbers, N at least 2")
        std = vectors.std(0)
        std[std <= 1e-12 * np.abs(vectors).max(0, initial=1e-300)] = 1.0
        return cls(jnp.asarray(vectors.mean(0), jnp.float32), jnp.asarray(std, jnp.float32))

    def whiten(self, vector: jax.Array) -> jax.Array:
        """(p - mean) / std of [..., D]."""
        self._check(vector)
        return (vector - self.mean) / self.std

    def restore(self, vector: jax.Array) -> jax.Array:
        """Inverse of `whiten`."""
        self._check(vector)
        return vector * self.std + self.mean

    def _check(self, vector: jax.Array) -> None:
        if vector.shape[-1:] != self.mean.shape:
            raise ValueError(f"parameters of {vector.shape[-1]} numbers, but the whitening has {len(self.mean)}")
