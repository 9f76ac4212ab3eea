"""Errors of face alignment in 3D by the protocols of the 3DDFA family: by bins of yaw, on 21 points, and of surfaces.

Landmark and dense errors are `facejax.metrics.landmarks.normalized_mean_error` over sqrt(width * height) of the box
around the true points ("box"). Everything here runs on the host.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

YAW_BINS = ((0, 30), (30, 60), (60, 90))
"""Degrees; a face at a boundary belongs to the lower bin, and the last bin has no upper end."""

POINTS_21 = (
    (17,), (19,), (21,), (22,), (24,), (26,), (36,), (36, 37, 38, 39, 40, 41), (39,), (42,), (42, 43, 44, 45, 46, 47),
    (45,), (2,), (31,), (30,), (35,), (14,), (48,), (60, 61, 62, 63, 64, 65, 66, 67), (54,), (8,),
)  # fmt: skip
"""Of the 68 landmarks, those whose mean is each of AFLW's 21."""


def by_yaw(errors: ArrayLike, yaw: ArrayLike) -> dict[str, float]:
    """Mean errors by bins of |yaw|, and their mean and spread as the official code of 3DDFA prints them.

    Args:
      errors: [N].
      yaw: [N] degrees; the sign is ignored, values beyond 90 count in the last bin.

    Returns:
      "0_30", "30_60" and "60_90" (NaN for an empty bin); "mean" and "std", mean and deviation of the *three bins*,
      whatever the numbers of their faces; "images", the mean over all faces.

    Raises:
      ValueError: arrays of different lengths, or values that are not finite.
    """
    errors, yaw = np.asarray(errors, np.float64), np.abs(np.asarray(yaw, np.float64))
    if errors.ndim != 1 or errors.shape != yaw.shape or not len(errors):
        raise ValueError(f"by_yaw: errors {errors.shape} and yaw {yaw.shape}, expected [N] twice")
    if not np.isfinite(errors).all() or not np.isfinite(yaw).all():
        raise ValueError("by_yaw: errors or angles that are not finite")
    bins = np.digitize(yaw, [high for _, high in YAW_BINS[:-1]], right=True)
    means = [errors[bins == i].mean() if (bins == i).any() else np.nan for i in range(len(YAW_BINS))]
    found = {f"{low}_{high}": float(mean) for (low, high), mean in zip(YAW_BINS, means, strict=True)}
    return {**found, "mean": float(np.mean(means)), "std": float(np.std(means)), "images": float(errors.mean())}


def to_21_points(points68: np.ndarray) -> np.ndarray:
    """[..., 68, C] -> AFLW's [..., 21, C]."""
    return np.stack([points68[..., list(rows), :].mean(-2) for rows in POINTS_21], -2)


def aflw_errors(predicted68: np.ndarray, truth21: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean distance over the visible points of AFLW, divided by the face's size: [N].

    Args:
      predicted68: [N, 68, 2].
      truth21: [N, 21, 2], -1 in either coordinate where a point is not visible.
      sizes: [N], of the box around 68 true points (`facejax.metrics.landmarks.face_sizes`).

    Raises:
      ValueError: arrays that do not belong together, or a face without a visible point.
    """
    if predicted68.shape != (len(truth21), 68, 2) or truth21.shape[1:] != (21, 2) or sizes.shape != (len(truth21),):
        raise ValueError(
            f"aflw_errors: predicted {predicted68.shape}, truth {truth21.shape} and sizes {sizes.shape}, "
            "expected [N, 68, 2], [N, 21, 2] and [N]"
        )
    visible = (truth21 != -1).all(-1)
    if not visible.any(1).all():
        raise ValueError(f"aflw_errors: face {int(np.argmin(visible.any(1)))} has no visible point")
    distances = np.linalg.norm(to_21_points(predicted68) - truth21, axis=-1)
    return (distances * visible).sum(1) / visible.sum(1) / sizes


def similarity(source: np.ndarray, target: np.ndarray, *, scale: bool = True) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation [3, 3] and translation [3] of the least-squares fit of points [V, 3] to points (Umeyama 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    factor = float((s * sign).sum() / (a * a).sum()) if scale else 1.0
    return factor, rotation, target.mean(0) - factor * rotation @ source.mean(0)


def procrustes_error(predicted: ArrayLike, truth: ArrayLike, size: float, *, scale: bool = True) -> float:
    """Mean distance of corresponding vertices [V, 3] after the best similarity, divided by the size.

    Raises:
      ValueError: other vertex counts, or vertices that are not finite.
    """
    predicted, truth = _surfaces(predicted, truth)
    if len(predicted) != len(truth):
        raise ValueError(f"procrustes_error: {len(predicted)} predicted and {len(truth)} true vertices")
    factor, rotation, shift = similarity(predicted, truth, scale=scale)
    return float(np.linalg.norm(factor * predicted @ rotation.T + shift - truth, axis=1).mean() / size)


def icp_error(
    predicted: ArrayLike, truth: ArrayLike, size: float, *, change: float = 0.01, most: int = 100, scale: bool = True
) -> float:
    """Mean distance to the nearest true vertex after iterative closest points, divided by the size.

    Not the number of 2DASL's code, which takes the distance of the same vertices after a rigid motion and ends when the
    mean squared distance changes by 0.01 or less.

    Args:
      predicted: [V, 3] of the face region.
      truth: [V', 3].
      size: the outer interocular distance in 3D (PRNet), or sqrt(width * height) of the true mesh's box (2DASL).
      change: ends when the mean distance falls by less, in units of the vertices.
      most: iterations at most.
      scale: whether the alignment scales.
    """
    predicted, truth = _surfaces(predicted, truth)
    tree, last = cKDTree(truth), np.inf
    for _ in range(most):
        distances, nearest = tree.query(predicted)
        if last - distances.mean() < change:
            break
        last = distances.mean()
        factor, rotation, shift = similarity(predicted, truth[nearest], scale=scale)
        predicted = factor * predicted @ rotation.T + shift
    return float(tree.query(predicted)[0].mean() / size)


def interocular_distance(landmarks68: ArrayLike) -> np.ndarray:
    """Distance [...] of the outer corners of the eyes of landmarks [..., 68, 2 or 3]."""
    landmarks68 = np.asarray(landmarks68)
    return np.linalg.norm(landmarks68[..., 36, :] - landmarks68[..., 45, :], axis=-1)


def _surfaces(predicted: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    surfaces = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    for name, surface in zip(("predicted", "true"), surfaces, strict=True):
        if surface.ndim != 2 or surface.shape[1] != 3 or len(surface) < 3 or not np.isfinite(surface).all():
            raise ValueError(f"{name} vertices {surface.shape}, expected [V, 3] finite numbers, at least three")
    return surfaces
