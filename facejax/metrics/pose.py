"""Errors of head pose, and the conventions of Euler angles in which data sets state it.

Angles of different conventions are not comparable: convert both sides first.

- *facejax*: pitch, yaw, roll in radians, of R = Rx(pitch) Ry(yaw) Rz(roll) (`facejax.ops.rotation.from_euler`).
- *labels*: yaw, pitch, roll in degrees, the order and signs of Hopenet and FSA-Net and of the results they print.
  300W-LP and AFLW2000-3D store these angles in radians as pitch, yaw, roll; they are facejax's with opposite signs.
- *BIWI*: a rotation in the axes of the camera, which Hopenet and FSA-Net convert to labels.
- *zyx*: yaw, pitch, roll in degrees as 3DDFA's and PRNet's `matrix2angle` prints them: other angles of the same head.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

LIMIT = 99.0
"""Labels with an angle beyond it, degrees, are left out by Hopenet and FSA-Net: 31 of AFLW2000-3D's 2000 faces."""

_AXES = np.array([1.0, -1.0, -1.0])


def to_labels(angles: ArrayLike) -> np.ndarray:
    """Facejax's angles [N, 3] -> labels [N, 3]."""
    return -np.degrees(_triples(angles))[..., [1, 0, 2]]


def from_labels(labels: ArrayLike) -> np.ndarray:
    """Labels [N, 3] -> facejax's angles [N, 3]."""
    return -np.radians(_triples(labels))[..., [1, 0, 2]]


def rotation(labels: ArrayLike) -> np.ndarray:
    """Labels [N, 3] -> rotations [N, 3, 3] in facejax's axes (x right, y up, z to the viewer)."""
    return _rotation(labels).as_matrix()


def labels(rotations: ArrayLike) -> np.ndarray:
    """Inverse of `rotation`; yaw lies within +-90 degrees."""
    return to_labels(Rotation.from_matrix(rotations).as_euler("XYZ"))


def from_biwi(rotations: ArrayLike) -> np.ndarray:
    """Rotations [N, 3, 3] of BIWI's files (x right, y down, z away) -> labels [N, 3]."""
    return labels(np.asarray(rotations, np.float64) * _AXES[:, None] * _AXES)


def to_biwi(labels: ArrayLike) -> np.ndarray:
    """Labels [N, 3] -> rotations [N, 3, 3] as in BIWI's files."""
    return rotation(labels) * _AXES[:, None] * _AXES


def to_zyx(labels: ArrayLike) -> np.ndarray:
    """Labels [N, 3] -> yaw, pitch, roll in degrees of `matrix2angle`: of Rz(roll) Ry(-yaw) Rx(pitch)."""
    return _rotation(labels).as_euler("ZYX", degrees=True)[..., [1, 2, 0]] * [-1, 1, 1]


def from_zyx(angles: ArrayLike) -> np.ndarray:
    """Inverse of `to_zyx`."""
    turned = (_triples(angles) * [-1, 1, 1])[..., [2, 0, 1]]
    return labels(Rotation.from_euler("ZYX", turned, degrees=True).as_matrix())


class PoseErrors(NamedTuple):
    """Mean absolute errors in degrees.

    Attributes:
      yaw, pitch, roll: of the angles.
      mean: of the three; papers' MAE.
      geodesic: angle of the rotation between prediction and truth, which no choice of angles distorts.
      faces: number of faces that count.
    """

    yaw: float
    pitch: float
    roll: float
    mean: float
    geodesic: float
    faces: int


def within(truth: ArrayLike, limit: float = LIMIT) -> np.ndarray:
    """[N] bool: labels [N, 3] whose three angles lie within +-limit degrees."""
    return (np.abs(_triples(truth)) <= limit).all(-1)


def pose_errors(predicted: ArrayLike, truth: ArrayLike, limit: float | None = LIMIT) -> PoseErrors:
    """Errors of labels [N, 3] against labels [N, 3].

    As in the published code, differences are not wrapped: faces beyond `limit` are left out instead.

    Args:
      predicted, truth: yaw, pitch, roll in degrees.
      limit: largest angle of the truth, degrees; None: all faces count.

    Raises:
      ValueError: shapes differ, a number is not finite, or no face is left.
    """
    predicted, truth = _triples(predicted), _triples(truth)
    if predicted.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"pose_errors: predicted {predicted.shape} and truth {truth.shape}, expected [N, 3] twice")
    if not (np.isfinite(predicted).all() and np.isfinite(truth).all()):
        raise ValueError("pose_errors: expected finite angles only")
    keep = np.ones(len(truth), bool) if limit is None else within(truth, limit)
    if not keep.any():
        raise ValueError(f"pose_errors: none of {len(truth)} faces has all angles within {limit} degrees")
    predicted, truth = predicted[keep], truth[keep]
    each = np.abs(predicted - truth).mean(0)
    return PoseErrors(*each.tolist(), float(each.mean()), float(geodesic(predicted, truth).mean()), int(keep.sum()))


def geodesic(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Angles [N] in degrees, 0..180, between the rotations of two sets of labels [N, 3]."""
    return np.degrees((_rotation(first).inv() * _rotation(second)).magnitude())


def _rotation(labels: ArrayLike) -> Rotation:
    return Rotation.from_euler("XYZ", from_labels(labels))


def _triples(angles: ArrayLike) -> np.ndarray:
    angles = np.asarray(angles, np.float64)
    if angles.shape[-1:] != (3,):
        raise ValueError(f"angles of shape {angles.shape}: expected three angles along the last axis")
    return angles
