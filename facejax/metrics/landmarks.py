"""Errors of facial landmarks: normalised mean error, failure rate, cumulative error curve and its area.

The error of a face is its mean distance divided by a face size. Papers use different sizes, so state which one: on
300W the inter-ocular error is about 0.71 times the inter-pupil error of the same predictions.
`normalized_mean_error` and `face_sizes` accept NumPy and JAX arrays, so a training step can report them; the other
functions run on the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate

OCULAR = {68: (36, 45), 98: (60, 72), 29: (8, 9)}
"""The outer corners of the eyes, by the number of landmarks (300W, WFLW, COFW)."""

PUPILS = {68: (slice(36, 42), slice(42, 48)), 98: (slice(96, 97), slice(97, 98)), 29: (slice(16, 17), slice(17, 18))}
"""The points whose mean is a pupil: six around each eye of 300W's 68, marked pupils of WFLW's 98 and COFW's 29."""

NORMALIZERS = ("inter_ocular", "inter_pupil", "box", "box_diagonal")


def face_sizes(truth: Any, kind: str, boxes: Any = None) -> Any:
    """Face sizes that normalise the errors.

    Args:
      truth: [N, L, 2] true landmarks.
      kind: "inter_ocular", between the outer corners of the eyes (300W and WFLW's official); "inter_pupil"; "box",
        sqrt(width * height) (AFLW, 3DDFA); "box_diagonal" (DAN).
      boxes: [N, 4] (x1, y1, x2, y2) for the last two; None takes the box around the true landmarks.

    Returns:
      [N].

    Raises:
      ValueError: unknown kind, another shape, or (of NumPy arrays) a face whose size is not positive, such as one with
        both eyes in one place or with a coordinate that is not finite.
    """
    if kind not in NORMALIZERS:
        raise ValueError(f"face_sizes: kind {kind!r}, expected one of {', '.join(NORMALIZERS)}")
    if truth.ndim != 3 or truth.shape[-1] != 2:
        raise ValueError(f"face_sizes: landmarks {truth.shape}, expected [N, L, 2]")
    if kind.startswith("box"):
        low, high = (truth.min(1), truth.max(1)) if boxes is None else (boxes[:, :2], boxes[:, 2:])
        sides = high - low
        return _positive(sides.prod(-1) ** 0.5 if kind == "box" else (sides**2).sum(-1) ** 0.5, kind)
    table = OCULAR if kind == "inter_ocular" else PUPILS
    if truth.shape[1] not in table:
        known = ", ".join(map(str, table))
        raise ValueError(f"face_sizes: no {kind} distance is known for {truth.shape[1]} landmarks, only for {known}")
    left, right = table[truth.shape[1]]
    first, second = truth[:, left], truth[:, right]
    if kind == "inter_pupil":
        first, second = first.mean(1), second.mean(1)
    return _positive(((first - second) ** 2).sum(-1) ** 0.5, kind)


def _positive(sizes: Any, kind: str) -> Any:
    """The sizes [N], looked at on the host alone."""
    if isinstance(sizes, np.ndarray) and (wrong := np.flatnonzero(~(sizes > 0))).size:
        raise ValueError(f"face_sizes: face {wrong[0]} has the size {sizes[wrong[0]]:g} ({kind}), expected above 0")
    return sizes


def normalized_mean_error(predicted: Any, truth: Any, sizes: Any) -> Any:
    """Mean distance over a face's landmarks, divided by the face size: a fraction (papers print percent).

    Args:
      predicted, truth: [N, L, 2].
      sizes: [N], from `face_sizes`.

    Returns:
      [N]; a data set's error is their mean.
    """
    if predicted.shape != truth.shape or truth.ndim != 3 or sizes.shape != truth.shape[:1]:
        raise ValueError(
            f"normalized_mean_error: predicted {predicted.shape}, truth {truth.shape} and sizes {sizes.shape}, "
            "expected [N, L, 2] twice and [N]"
        )
    return (((predicted - truth) ** 2).sum(-1) ** 0.5).mean(-1) / sizes


def failure_rate(errors: ArrayLike, threshold: float, *, strict: bool = True) -> float:
    """Fraction of the errors [N] above (unless strict, at or above) the threshold: WFLW 0.1, 300W private set 0.08."""
    errors = _errors(errors)
    return float(np.mean(errors > threshold if strict else errors >= threshold))


def cumulative_error(errors: ArrayLike, levels: ArrayLike) -> np.ndarray:
    """Cumulative error distribution: the fraction [P] of the errors [N] at or below each of the levels [P]."""
    errors = _errors(errors)
    return np.searchsorted(np.sort(errors), np.asarray(levels), side="right") / len(errors)


def area_under_curve(errors: ArrayLike, threshold: float, step: float = 1e-4) -> float:
    """AUC: Simpson's integral of the cumulative error from 0 to the threshold, divided by the threshold; in 0..1.

    Args:
      errors: [N].
      threshold: where the curve ends (0.1 for WFLW, 0.08 for 300W's private set).
      step: distance between the levels.
    """
    if threshold <= 0 or step <= 0:
        raise ValueError(f"area_under_curve: threshold {threshold} and step {step}, expected both above 0")
    levels = np.linspace(0, threshold, round(threshold / step) + 1)
    return float(integrate.simpson(cumulative_error(errors, levels), x=levels) / threshold)


def _errors(errors: ArrayLike) -> np.ndarray:
    errors = np.asarray(errors, np.float64)
    if errors.ndim != 1 or not len(errors):
        raise ValueError(f"errors of shape {errors.shape}, expected [N], at least one")
    if (wrong := np.flatnonzero(~np.isfinite(errors))).size:
        raise ValueError(f"the error of face {wrong[0]} is {errors[wrong[0]]}, expected finite numbers only")
    return errors
