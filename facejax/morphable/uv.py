"""UV position maps: vertex positions rasterized in the texture plane (Feng et al., PRNet, arXiv:1803.07835)."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from facejax.morphable.model import MorphableModel
from facejax.morphable.parameters import face_region
from facejax.morphable.rasterizer import Fragments, interpolate, rasterize
from facejax.ops.sampling import bilinear_sample


def uv_fragments(uv: jax.Array, triangles: jax.Array, size: int) -> Fragments:
    """Fragments [size, size] of the texture plane, the same for every face."""
    flat = jnp.concatenate([uv * size, jnp.zeros_like(uv[:, :1])], 1)
    return rasterize(flat, triangles, size, size, cull=False, capacity=8 * size * size)


def uv_position_map(fragments: Fragments, triangles: jax.Array, vertices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Positions [size, size, 3] of vertices [V, 3], and the mask [size, size] of texels covered by the mesh."""
    return jnp.moveaxis(interpolate(fragments, triangles, vertices), 0, -1), fragments.triangle >= 0


def read_points(position_map: jax.Array, uv: jax.Array) -> jax.Array:
    """Positions [N, 3] at texture coordinates [N, 2]: such as landmarks, read from a position map [size, size, 3]."""
    return bilinear_sample(position_map, uv * jnp.array([position_map.shape[1], position_map.shape[0]]))


def texture_of(image: jax.Array, position_map: jax.Array) -> jax.Array:
    """The image [H, W, C] seen at every texel of a position map [size, size, 3] in its pixels: [size, size, C]."""
    return bilinear_sample(image, position_map[..., :2])


def grid_triangles(mask: np.ndarray) -> np.ndarray:
    """Triangles [T, 3] that join neighbouring texels of a mask [H, W], each a vertex with its row-major index.

    Of four neighbours that are all set come two triangles, counter-clockwise seen from outside where u runs to the
    viewer's right and v down.
    """
    height, width = mask.shape
    index = np.arange(height * width).reshape(height, width)
    whole = mask[:-1, :-1] & mask[:-1, 1:] & mask[1:, :-1] & mask[1:, 1:]
    top_left = index[:-1, :-1][whole]
    top_right, bottom_left, bottom_right = top_left + 1, top_left + width, top_left + width + 1
    upper = np.stack([top_left, bottom_left, top_right], -1)
    lower = np.stack([top_right, bottom_left, bottom_right], -1)
    return np.concatenate([upper, lower]).astype(np.int32)


class UVLayout(NamedTuple):
    """What the texels of a position map of a face model stand for.

    Attributes:
      mask: [size, size] bool, texels of the face.
      landmarks68: [68, 2] int, (row, column) of the landmarks.
      weights: [size, size] float32 of the texels in PRNet's loss; zero outside of the face.
    """

    mask: np.ndarray
    landmarks68: np.ndarray
    weights: np.ndarray


WEIGHTS = {"landmarks": 16, "features": 4, "face": 3}
"""PRNet's weights of the 68 landmarks, of eyes, nose and mouth, and of the rest of the face; the neck has 0."""


def uv_layout(model: MorphableModel, size: int) -> UVLayout:
    """The layout of a model's own texture coordinates: its face without neck, ears and the back of the head.

    A landmark has the nearest texel of the face: at the edge of an eye its own texel can be empty.
    """

    def vertices(*names: str) -> jax.Array:
        none = jnp.zeros(len(model.uv), bool)
        return sum((model.regions.get(name, none) for name in names), none)

    face = jnp.zeros(len(model.uv), bool).at[face_region(model)].set(True)
    columns = jnp.stack([face, vertices("eyes", "nose", "lips")], 1).astype(jnp.float32)
    fragments = uv_fragments(model.uv, model.triangles, size)
    inside, features = interpolate(fragments, model.triangles, columns)
    mask = np.asarray((fragments.triangle >= 0) & (inside > 0.5))
    weights = np.where(mask, np.where(np.asarray(features) > 0.5, WEIGHTS["features"], WEIGHTS["face"]), 0)
    exact, texels = np.asarray(model.uv[model.landmarks68])[:, ::-1] * size, np.argwhere(mask)
    places = np.stack([texels[((texels + 0.5 - place) ** 2).sum(1).argmin()] for place in exact])
    weights[tuple(places.T)] = WEIGHTS["landmarks"]
    return UVLayout(mask, places, weights.astype(np.float32))


def read_prnet_layout(folder: str | os.PathLike[str]) -> UVLayout:
    """PRNet's own layout of 256 x 256, from its files uv_kpt_ind.txt, uv_face_mask.png and uv_weight_mask.png.

    The weights are the grey levels over 16: 16 at landmarks, 4 around eyes, nose and mouth, 3 elsewhere. The published
    picture has 3 outside of the face, too; here the mask makes that 0.

    Raises:
      ValueError: a file is missing or has another shape.
    """
    import cv2  # only the published files need it

    folder = pathlib.Path(folder)
    pictures = []
    for name in ("uv_face_mask.png", "uv_weight_mask.png"):
        picture = cv2.imread(os.fspath(folder / name), cv2.IMREAD_GRAYSCALE)
        if picture is None or picture.shape != (256, 256):
            raise ValueError(f"{folder / name}: expected a picture of 256 x 256")
        pictures.append(picture)
    path = folder / "uv_kpt_ind.txt"
    try:
        columns, rows = np.loadtxt(path).astype(int)
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: not a table of columns and rows: {error}") from error
    if columns.shape != (68,) or min(columns.min(), rows.min()) < 0 or max(columns.max(), rows.max()) > 255:
        raise ValueError(f"{path}: expected 68 columns and 68 rows of 0 to 255")
    mask = pictures[0] > 127
    return UVLayout(mask, np.stack([rows, columns], 1), (pictures[1] / np.float32(16)) * mask)
