"""From the axes of the parameters to an image and back, and the square crops of the 3DDFA family.

Vertices of `parameters.reconstruct` have y up and refer to a square crop. Published code flips them in three ways that
differ by a pixel; a `Convention` says which, and which coordinates come out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Convention(NamedTuple):
    """Image coordinates are x + right, size + down - y and z + near."""

    right: float
    down: float
    near: float


FACEJAX = Convention(0, 0, 0)
"""The origin is the corner of the first pixel, whose centre is (0.5, 0.5), as everywhere in `facejax.morphable`."""
V1 = Convention(0, 1, 0)
"""3DDFA: y = size + 1 - y; the first pixel's centre is (1, 1)."""
V2 = Convention(-1, 0, -1)
"""3DDFA_V2: x and z one less, y = size - y; the first pixel's centre is (0, 0)."""
PUBLISHED = Convention(-0.5, 0.5, 0)
"""The vectors of 3DDFA's published crops, which agree with V1 and V2, with the first pixel's centre at (0.5, 0.5)."""
FACE3D = Convention(0, -1, 0)
"""face3d and PRNet: y = size - y - 1; the first pixel's centre is (0, 0)."""


def to_image(vertices: Any, size: float, convention: Convention = FACEJAX) -> Any:
    """Vertices [..., V, 3] with y up -> image coordinates [..., V, 3] with y down, in a crop of `size` pixels."""
    flip, shift = np.float32([1, -1, 1]), np.float32([convention.right, size + convention.down, convention.near])
    return vertices * flip + shift


def from_image(points: Any, size: float, convention: Convention = FACEJAX) -> Any:
    """Inverse of `to_image`."""
    flip, shift = np.float32([1, -1, 1]), np.float32([convention.right, size + convention.down, convention.near])
    return (points - shift) * flip


def roi_from_box(box: np.ndarray, scale: float = 1.58, lift: float = 0.14) -> np.ndarray:
    """The square that is cropped around detected boxes [..., 4] (x1, y1, x2, y2): [..., 4].

    Its side is `scale` times the mean of width and height, cut to whole pixels, and its centre is `lift` of that mean
    below the box's (3DDFA, 3DDFA_V2 and PRNet).

    Raises:
      ValueError: a box without area, or with values that are not finite.
    """
    box = _boxes(box, "roi_from_box")
    size = (box[..., 2] - box[..., 0] + box[..., 3] - box[..., 1]) / 2
    centre = np.stack([(box[..., 0] + box[..., 2]) / 2, (box[..., 1] + box[..., 3]) / 2 + lift * size], -1)
    return _square(centre, np.trunc(scale * size))


def roi_from_landmarks(points: np.ndarray) -> np.ndarray:
    """The square [..., 4] around landmarks [..., L, 2]: its side is the diagonal of their bounding square.

    Raises:
      ValueError: landmarks that are all in one place, or not finite.
    """
    low, high = _bounds(points, "roi_from_landmarks")
    return _square((low + high) / 2, np.sqrt(2) * (high - low).max(-1))


def roi_around(points: np.ndarray, factor: float) -> np.ndarray:
    """The square [..., 4] around landmarks [..., L, 2], `factor` times the mean of their box's width and height.

    PRNet takes 1.5 for its training data, and 1.6, cut to whole pixels, for photographs.
    """
    low, high = _bounds(points, "roi_around")
    return _square((low + high) / 2, factor * (high - low).mean(-1))


def crop_points(points: Any, roi: Any, size: int) -> Any:
    """Points [..., L, 2 or 3] of the image, in the crop of `size` pixels that shows the region [..., 4].

    The depth is scaled by the mean of both sides' factors. With coordinates whose first pixel has its centre at 0, as
    the published code uses them, the formula is that code's and off by half of (factor - 1).
    """
    factor, shift = _factors(roi, size)
    depth = points.shape[-1] == 3
    return (points - shift[..., : points.shape[-1]]) * (factor if depth else factor[..., :2])


def uncrop_points(points: Any, roi: Any, size: int) -> Any:
    """Inverse of `crop_points`."""
    factor, shift = _factors(roi, size)
    depth = points.shape[-1] == 3
    return points / (factor if depth else factor[..., :2]) + shift[..., : points.shape[-1]]


def crop_parameters(vector: Any, roi: Any, size: int, height: float, convention: Convention = FACEJAX) -> Any:
    """Vectors [..., D] of faces in an image of `height` rows -> those of the same faces in crops of `size` pixels.

    Args:
      vector: whitening undone; a NumPy array gives a NumPy array.
      roi: [..., 4] the regions that the crops show.
      size: of the crops.
      height: of the image.
      convention: by which the vertices of both become image coordinates.
    """
    factor, shift = _moves(roi, size, height, convention)
    return _moved(vector, factor, shift)


def uncrop_parameters(vector: Any, roi: Any, size: int, height: float, convention: Convention = FACEJAX) -> Any:
    """Inverse of `crop_parameters`."""
    factor, shift = _moves(roi, size, height, convention)
    return _moved(vector, 1 / factor, -shift / factor)


def _moves(roi: Any, size: int, height: float, convention: Convention) -> tuple[Any, Any]:
    """Factors [..., 3] of the rows of a pose, and what is added to its translation after that."""
    factor, corner = (x[..., 0, :] for x in _factors(roi, size))
    right = factor[..., 0] * (convention.right - corner[..., 0]) - convention.right
    down = size + convention.down - factor[..., 1] * (height + convention.down - corner[..., 1])
    return factor, _numpy_or_jax(roi).stack([right, down, (factor[..., 2] - 1) * convention.near], -1)


def _moved(vector: Any, factor: Any, shift: Any) -> Any:
    """Vectors with the rows of their poses scaled by `factor` [..., 3] and moved by `shift` [..., 3]."""
    xp = _numpy_or_jax(vector)
    rows = vector[..., :12].reshape(*vector.shape[:-1], 3, 4) * factor[..., None]
    rows = xp.concatenate([rows[..., :3], rows[..., 3:] + shift[..., None]], -1)
    return xp.concatenate([rows.reshape(*rows.shape[:-2], 12), vector[..., 12:]], -1).astype(vector.dtype)


def _numpy_or_jax(array: Any) -> Any:
    return np if isinstance(array, np.ndarray) else jnp


def _factors(roi: Any, size: int) -> tuple[Any, Any]:
    """Factors [..., 1, 3] of x, y and z, and the corner [..., 1, 3] of regions [..., 4]."""
    if roi.shape[-1] != 4:
        raise ValueError(f"regions {roi.shape}, expected [..., 4]")
    xp = _numpy_or_jax(roi)
    width, height = roi[..., 2] - roi[..., 0], roi[..., 3] - roi[..., 1]
    factor = xp.stack([size / width, size / height, 2 * size / (width + height)], -1)
    return factor[..., None, :], xp.stack([roi[..., 0], roi[..., 1], xp.zeros_like(width)], -1)[..., None, :]


def _square(centre: np.ndarray, side: np.ndarray) -> np.ndarray:
    corner = centre - side[..., None] / 2
    return np.concatenate([corner, corner + side[..., None]], -1)


def _boxes(box: np.ndarray, name: str) -> np.ndarray:
    box = np.asarray(box, np.float64)
    if box.shape[-1:] != (4,) or not np.isfinite(box).all() or not (box[..., 2:] > box[..., :2]).all():
        raise ValueError(f"{name}: boxes {box.shape}, expected [..., 4] finite with x1 < x2 and y1 < y2")
    return box


def _bounds(points: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    points = np.asarray(points, np.float64)
    if points.ndim < 2 or points.shape[-1] < 2 or not np.isfinite(points).all():
        raise ValueError(f"{name}: landmarks {points.shape}, expected [..., L, 2] finite numbers")
    low, high = points[..., :2].min(-2), points[..., :2].max(-2)
    if not ((high - low).max(-1) > 0).all():
        raise ValueError(f"{name}: landmarks that are all in one place, expected a face")
    return low, high
