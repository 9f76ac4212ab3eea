"""Is a quality score any good? Error against the share of comparisons discarded for low quality.

Discarding the comparisons of lowest quality should lower the false non-match rate (FNMR). Two families of curves are in
use, and their numbers do not compare:

A. `error_discard_curve` (ISO/IEC 29794-1, the FIQAT toolkit): genuine pairs only, the decision threshold is fixed
   before anything is discarded, pairs of equal quality leave together, and the area is that of steps.
B. `fnmr_discard_curve` (MagFace, CR-FIQA, SDD-FIQA): genuine and impostor pairs, discarded in steps of 5 % of all
   pairs, the threshold that gives the wanted false match rate (FMR) is found anew among the pairs left, and the area is
   that of trapezoids. Pairs of equal quality leave in the order given.

With every number say which family, FMR or threshold, and limits. The quality of a pair is the lower of its images'.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from facejax.metrics.verification import check_fars, check_pairs

DISCARD_RATIOS = np.arange(0, 0.98, 0.05)


class DiscardCurve(NamedTuple):
    """Error [P] in 0..1 over the share [P] of comparisons discarded, from 0 upwards."""

    discarded: np.ndarray
    errors: np.ndarray


def pair_quality(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """The lower quality of each pair. [N], [N] -> [N]."""
    return np.minimum(*_columns(first, second))


def starting_threshold(similarities: ArrayLike, error: float) -> float:
    """Threshold at which about `error` of the genuine similarities [N] are errors: their quantile, interpolated."""
    similarities, _ = _columns(similarities, similarities)
    (error,) = check_fars(error)
    return float(np.quantile(similarities, error))


def error_discard_curve(similarities: ArrayLike, qualities: ArrayLike, threshold: float) -> DiscardCurve:
    """Curve A: FNMR of genuine pairs at a fixed threshold.

    One point for each value of quality, at which all lower ones are discarded, and (1, 0) at the end. A constant
    quality has the point at 0 only.

    Args:
      similarities: [N] of genuine pairs.
      qualities: [N] of the pairs, high is good.
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
    """Area under a curve A from 0 to `limit` (in 0..1), each error holding until the next point."""
    (limit,) = check_fars(limit)
    edges = np.minimum(np.r_[curve.discarded, 1.0], limit)
    return float(np.sum(curve.errors * np.diff(edges)))


def theoretical_best_area(start: float, limit: float) -> float:
    """Area from 0 to `limit` under the line from the starting error down to 0 at a discarded share of the same size.

    It is what FIQAT subtracts from `partial_area`. Even the perfect order, which discards errors only, stays above this
    line: it follows (start - x) / (1 - x).
    """
    return start**2 / 2 - max(0.0, start - limit) ** 2 / 2


def excess_area(curve: DiscardCurve, limit: float) -> float:
    """The usually reported pAUC of a curve A: `partial_area` less `theoretical_best_area`. Lower is better."""
    return partial_area(curve, limit) - theoretical_best_area(float(curve.errors[0]), limit)


def fnmr_discard_curve(
    distances: ArrayLike,
    same: ArrayLike,
    qualities: ArrayLike,
    fmr: float = 1e-3,
    convention: Literal["crfiqa", "magface"] = "crfiqa",
) -> DiscardCurve:
    """Curve B: FNMR at an FMR that is set anew on what is left, for 20 shares 0, 0.05 ... 0.95 of pairs discarded.

    A genuine pair is an error unless its distance is strictly below the threshold.

    Args:
      distances: [N], such as `verification.angular_distances`.
      same: [N] bool.
      qualities: [N] of the pairs, high is good.
      fmr: false match rate; a power of ten for "magface".
      convention: "crfiqa" takes as threshold the distance, of any pair left, whose FMR (impostors at that distance or
        less) is nearest to `fmr`, the larger of equals. "magface" takes an impostor's: with the n impostors sorted it
        starts at index n - 1 and divides the index by ten, rounded down, for each power of ten of the FMR; where index
        0 is reached before, which happens with too few impostors left (100 or less for 1e-3), there is no point.

    Returns:
      The curve; under "magface" possibly with fewer points.

    Raises:
      ValueError: bad pairs; or no genuine pair (or, for "crfiqa", impostor pair) is left at some share.
    """
    distances, same = check_pairs(distances, same)
    distances, qualities = _columns(distances, qualities)
    (fmr,) = check_fars(fmr)
    powers = round(-np.log10(fmr)) if fmr > 0 else 0
    if convention not in ("crfiqa", "magface"):
        raise ValueError(f"convention {convention!r}; expected 'crfiqa' or 'magface'")
    if convention == "magface" and not np.isclose(fmr, 10.0**-powers, rtol=1e-9):
        raise ValueError(f"fmr {fmr}; expected a power of ten for the convention 'magface'")
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
            raise ValueError(f"no {kind} pair is left with {ratio:.2f} of {len(place)} discarded; expected both kinds")
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
    """Area under a curve B over the shares it spans, up to `limit`, by trapezoids; CR-FIQA's AUC. Lower is better."""
    (limit,) = check_fars(limit)
    inside = curve.discarded < limit
    shares = np.r_[curve.discarded[inside], min(limit, curve.discarded[-1])]
    return float(np.trapezoid(np.interp(shares, curve.discarded, curve.errors), shares))


def area_over_curve(curve: DiscardCurve) -> float:
    """AOC of SDD-FIQA: 1 minus the area under FNMR(share) / FNMR(0), for a curve B. Higher is better.

    Over shares 0..0.95 a flat curve has 0.05, not 0: the area is not divided by the length of the interval.

    Raises:
      ValueError: there is no error to begin with.
    """
    return 1 - area(curve) / _start(curve)


def relative_partial_area(curve: DiscardCurve, limit: float = 0.3) -> float:
    """Mean of FNMR(share) / FNMR(0) over the shares 0..`limit` of a curve B. Lower is better, a flat curve has 1.

    Unlike in `area_over_curve`, the area is divided by the length of the interval, as the values that CLIB-FIQA prints
    for its pAUC (0.7 to 0.9 at a limit of 0.3) need it.

    Raises:
      ValueError: there is no error to begin with, or the curve ends before `limit`.
    """
    start = _start(curve)
    if not 0 < limit <= curve.discarded[-1]:
        raise ValueError(f"limit {limit}; expected a share above 0, up to the curve's last, {curve.discarded[-1]}")
    return area(curve, limit) / limit / start


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation of two vectors [N], in -1..1; ties get their mean rank."""
    return float(stats.spearmanr(*_ranked(first, second)).statistic)


def kendall(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's tau-b of two vectors [N], in -1..1, in O(N log N)."""
    return float(stats.kendalltau(*_ranked(first, second)).statistic)


def _start(curve: DiscardCurve) -> float:
    if not len(curve.errors) or curve.discarded[0] != 0 or curve.errors[0] == 0:
        raise ValueError("curve: no error with nothing discarded; expected FNMR(0) > 0")
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
