"""Evaluation of quality scores: error against the fraction of comparisons discarded for low quality.

Discarding the comparisons of lowest quality should lower the false non-match rate (FNMR). Two families of curves are in
use, and their values are not comparable:

A. `error_discard_curve` (ISO/IEC 29794-1, the FIQAT toolkit): genuine pairs only; one decision threshold, fixed on all
   pairs; pairs of equal quality are discarded together; the area is a step integral.
B. `fnmr_discard_curve` (MagFace, CR-FIQA, SDD-FIQA): genuine and impostor pairs, discarded in steps of 5 % of all
   pairs; at each step a new threshold gives the requested false match rate (FMR) on the remaining pairs; pairs of
   equal quality are discarded in input order; the area is a trapezoidal integral.

State with every result the family, the FMR or threshold, and the limits. The quality of a pair is the lower of the
qualities of its two images.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from facejax.metrics.verification import check_fars, check_pairs

DISCARD_RATIOS = np.arange(0, 0.98, 0.05)


class DiscardCurve(NamedTuple):
    """Error [P] in 0..1 over the fraction [P] of comparisons discarded, ascending from 0."""

    discarded: np.ndarray
    errors: np.ndarray


def pair_quality(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """The lower quality of each pair. [N], [N] -> [N]."""
    return np.minimum(*_columns(first, second))


def starting_threshold(similarities: ArrayLike, error: float) -> float:
    """Threshold at which a fraction `error` of the genuine similarities [N] are errors: an interpolated quantile."""
    similarities, _ = _columns(similarities, similarities)
    (error,) = check_fars(error)
    return float(np.quantile(similarities, error))


def error_discard_curve(similarities: ArrayLike, qualities: ArrayLike, threshold: float) -> DiscardCurve:
    """Curve A: FNMR of genuine pairs at a fixed threshold.

    The curve has one point per distinct quality, with all lower qualities discarded, and ends at (1, 0). A constant
    quality has only the point at 0.

    Args:
      similarities: [N], of genuine pairs.
      qualities: [N], of the pairs; higher is better.
      threshold: a similarity strictly below it is an error; see `starting_threshold`.
    """
    similarities, qualities = _columns(similarities, qualities)
    order = np.argsort(qualities, kind="stable")
    qualities = qualities[order]
    left = np.cumsum((similarities[order] < threshold)[::-1])[::-1]
    discarded = np.flatnonzero(np.r_[True, qualities[1:] != qualities[:-1]])
    total = len(qualities)
    return DiscardCurve(np.r_[discarded / total, 1.0], np.r_[left[discarded] / (total - discarded), 0.0])


def partial_area(curve: DiscardCurve, limit: float) -> float:
    """Area under a curve A from 0 to `limit` (in 0..1), as a step integral."""
    (limit,) = check_fars(limit)
    edges = np.minimum(np.r_[curve.discarded, 1.0], limit)
    return float(np.sum(curve.errors * np.diff(edges)))


def theoretical_best_area(start: float, limit: float) -> float:
    """Area from 0 to `limit` under the line from (0, starting error) to (starting error, 0).

    FIQAT subtracts it from `partial_area`. Even an ideal order, which discards errors first, stays above this line: its
    curve is (start - x) / (1 - x).
    """
    return start**2 / 2 - max(0.0, start - limit) ** 2 / 2


def excess_area(curve: DiscardCurve, limit: float) -> float:
    """The usually reported pAUC of a curve A: `partial_area` minus `theoretical_best_area`. Lower is better."""
    return partial_area(curve, limit) - theoretical_best_area(float(curve.errors[0]), limit)


def fnmr_discard_curve(
    distances: ArrayLike,
    same: ArrayLike,
    qualities: ArrayLike,
    fmr: float = 1e-3,
    convention: Literal["crfiqa", "magface"] = "crfiqa",
) -> DiscardCurve:
    """Curve B: FNMR at a fixed FMR, its threshold recomputed after each discarded fraction 0, 0.05 ... 0.95.

    A genuine pair is an error unless its distance is strictly below the threshold.

    Args:
      distances: [N], such as `verification.angular_distances`.
      same: [N] bool.
      qualities: [N], of the pairs; higher is better.
      fmr: false match rate; a power of ten for "magface".
      convention: how to find the threshold among the remaining pairs. "crfiqa": the distance of any pair whose FMR
        (fraction of impostors at that distance or less) is nearest to `fmr`; of equals the larger distance. "magface":
        an impostor distance; with the n impostors sorted, the index starts at n - 1 and is divided by ten, rounded
        down, for each power of ten of the FMR; if it reaches 0 earlier (100 impostors or fewer for 1e-3), the curve
        has no point.

    Returns:
      The curve; "magface" may leave out points.

    Raises:
      ValueError: invalid pairs, or no genuine pair (for "crfiqa" also no impostor pair) remains at some fraction.
    """
    distances, same = check_pairs(distances, same)
    distances, qualities = _columns(distances, qualities)
    (fmr,) = check_fars(fmr)
    powers = round(-np.log10(fmr)) if fmr > 0 else 0
    if convention not in ("crfiqa", "magface"):
        raise ValueError(f"convention {convention!r}; expected 'crfiqa' or 'magface'")
    if convention == "magface" and not np.isclose(fmr, 10.0**-powers, rtol=1e-9):
        raise ValueError(f"fmr {fmr}; expected a power of ten with convention 'magface'")
    place = np.empty(len(qualities), np.int64)
    place[np.argsort(qualities, kind="stable")] = np.arange(len(qualities))
    order = np.argsort(distances, kind="stable")
    distances, same, place = distances[order], same[order], place[order]
    points = []
    for ratio in DISCARD_RATIOS:
        kept = place >= int(ratio * len(place))
        genuine, impostors = distances[kept & same], distances[kept & ~same]
        if not len(genuine) or (convention == "crfiqa" and not len(impostors)):
            kind = "impostor" if len(genuine) else "genuine"
            raise ValueError(f"no {kind} pair remains with {ratio:.2f} of {len(place)} discarded; expected both kinds")
        if convention == "crfiqa":
            candidates = distances[kept][::-1]
            reached = np.searchsorted(impostors, candidates, side="right") / len(impostors)
            threshold = candidates[np.argmin(np.abs(reached - fmr))]
        elif not len(impostors) or (powers and (len(impostors) - 1) // 10 ** (powers - 1) == 0):
            continue
        else:
            threshold = impostors[(len(impostors) - 1) // 10**powers]
        points.append((ratio, 1 - np.searchsorted(genuine, threshold) / len(genuine)))
    return DiscardCurve(*np.array(points).reshape(-1, 2).T)


def area(curve: DiscardCurve, limit: float = 1.0) -> float:
    """Area under a curve B up to `limit`, by trapezoids; CR-FIQA's AUC. Lower is better."""
    (limit,) = check_fars(limit)
    inside = curve.discarded < limit
    shares = np.r_[curve.discarded[inside], min(limit, curve.discarded[-1])]
    return float(np.trapezoid(np.interp(shares, curve.discarded, curve.errors), shares))


def area_over_curve(curve: DiscardCurve) -> float:
    """AOC of SDD-FIQA: 1 minus the area under FNMR(x) / FNMR(0), for a curve B. Higher is better.

    The area is not divided by the length of the interval, so a constant curve over 0..0.95 has 0.05, not 0.

    Raises:
      ValueError: FNMR(0) is zero.
    """
    return 1 - area(curve) / _start(curve)


def relative_partial_area(curve: DiscardCurve, limit: float = 0.3) -> float:
    """Mean of FNMR(x) / FNMR(0) over 0..`limit` of a curve B. Lower is better; a constant curve has 1.

    Unlike `area_over_curve`, it divides the area by the length of the interval, which agrees with the range of pAUC
    values that CLIB-FIQA reports.

    Raises:
      ValueError: FNMR(0) is zero, or the curve ends before `limit`.
    """
    start = _start(curve)
    if not 0 < limit <= curve.discarded[-1]:
        raise ValueError(f"limit {limit}; expected a fraction above 0, at most the curve's last, {curve.discarded[-1]}")
    return area(curve, limit) / limit / start


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation of two vectors [N], in -1..1; tied values share their mean rank."""
    return float(stats.spearmanr(*_ranked(first, second)).statistic)


def kendall(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's tau-b of two vectors [N], in -1..1, in O(N log N)."""
    return float(stats.kendalltau(*_ranked(first, second)).statistic)


def _start(curve: DiscardCurve) -> float:
    if not len(curve.errors) or curve.discarded[0] != 0 or curve.errors[0] == 0:
        raise ValueError("curve: FNMR(0) is 0; expected FNMR(0) > 0")
    return float(curve.errors[0])


def _columns(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"shapes {first.shape} and {second.shape}; expected two vectors of one length, not empty")
    for values in (first, second):
        if not np.isfinite(values).all():
            where = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"value {values[where]} at {where} is not finite; expected finite scores and qualities")
    return first, second


def _ranked(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first, second = _columns(first, second)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        raise ValueError(f"all {len(first)} values of a vector are equal; expected values that can be ranked")
    return first, second
