"""Errors of age: mean absolute error and cumulative score."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

YEARS = (0.0, 120.0)
"""Smallest and largest true age."""


def age_error(predicted: ArrayLike, truth: ArrayLike) -> float:
    """Mean absolute error of ages [N], years."""
    return float(_errors(predicted, truth).mean())


def cumulative_score(predicted: ArrayLike, truth: ArrayLike, years: float, *, strict: bool = True) -> float:
    """Fraction of faces with an error of less than (unless strict, at most) `years`: CA(years) of MegaAge.

    Args:
      predicted, truth: ages [N].
      years: the bound, above 0.
      strict: SSR-Net's CA; papers on MORPH2 count errors equal to the bound too.
    """
    if not years > 0:
        raise ValueError(f"cumulative_score: years {years}, expected a number above 0")
    errors = _errors(predicted, truth)
    return float(np.mean(errors < years if strict else errors <= years))


def _errors(predicted: ArrayLike, truth: ArrayLike) -> np.ndarray:
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if predicted.shape != truth.shape or truth.ndim != 1 or not len(truth):
        raise ValueError(f"ages: predicted {predicted.shape} and truth {truth.shape}, expected [N] twice, N above 0")
    if not np.isfinite(predicted).all():
        raise ValueError("ages: a prediction is not finite, expected finite numbers only")
    if not ((truth >= YEARS[0]) & (truth <= YEARS[1])).all():
        wrong = truth[~((truth >= YEARS[0]) & (truth <= YEARS[1]))][0]
        raise ValueError(f"ages: true age {wrong:g}, expected {YEARS[0]:g} to {YEARS[1]:g} years")
    return np.abs(predicted - truth)
