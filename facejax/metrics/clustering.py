"""Pairwise F, BCubed F and normalised mutual information of clusterings, from a sparse contingency table."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Score:
    """Precision, recall and their harmonic mean; NaN where the denominator is zero."""

    precision: float
    recall: float

    @property
    def f(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else float("nan")


def _contingency(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, ...]:
    """Counts of the non-empty cells, the row and column sums of each, and the sums of all rows and all columns."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 1 or truth.shape != predicted.shape or not len(truth):
        raise ValueError(f"labels are {truth.shape}, predictions {predicted.shape}: expected two of [N], N above 0")
    _, rows, truths = np.unique(truth, return_inverse=True, return_counts=True)
    _, columns, found = np.unique(predicted, return_inverse=True, return_counts=True)
    cells, counts = np.unique(rows.astype(np.int64) * len(found) + columns, return_counts=True)
    return counts, truths[cells // len(found)], found[cells % len(found)], truths, found


def pairwise(truth: np.ndarray, predicted: np.ndarray) -> Score:
    """Pairwise precision and recall over unordered pairs of distinct items.

    Args:
      truth, predicted: [N] integer labels. Label -1 is an ordinary cluster here; `singletons` splits it.

    Raises:
      ValueError: the lengths differ or are zero.
    """
    counts, _, _, truths, found = _contingency(truth, predicted)
    pairs = [float(np.sum(n.astype(np.float64) * (n - 1))) for n in (counts, truths, found)]
    return Score(*(pairs[0] / n if n else float("nan") for n in (pairs[2], pairs[1])))


def bcubed(truth: np.ndarray, predicted: np.ndarray) -> Score:
    """BCubed: mean over items of the fraction of its cluster in its class (precision) and the reverse (recall)."""
    counts, row, column, _, _ = _contingency(truth, predicted)
    square = counts.astype(np.float64) ** 2 / counts.sum()
    return Score(float(np.sum(square / column)), float(np.sum(square / row)))


def normalized_mutual_information(truth: np.ndarray, predicted: np.ndarray, *, average: str = "arithmetic") -> float:
    """Mutual information divided by the "arithmetic" or "geometric" mean of the two entropies, in 0..1."""
    if average not in ("arithmetic", "geometric"):
        raise ValueError(f"average is {average!r}: expected arithmetic or geometric")
    counts, row, column, truths, found = _contingency(truth, predicted)
    n = counts.sum()
    mutual = float(np.sum(counts / n * np.log(counts * float(n) / (row.astype(np.float64) * column))))
    a, b = (float(-np.sum(c / n * np.log(c / n))) for c in (truths, found))
    mean = (a + b) / 2 if average == "arithmetic" else np.sqrt(a * b)
    if a == b == 0:
        return 1.0
    return max(mutual, 0.0) / mean if mean > 0 else float("nan")


def singletons(predicted: np.ndarray) -> np.ndarray:
    """Gives every unclustered item (label -1) a cluster of its own."""
    predicted = np.asarray(predicted)
    predicted = np.array(predicted, np.result_type(predicted, np.int64))  # narrow integers would wrap
    alone = predicted < 0
    predicted[alone] = predicted.max(initial=-1) + 1 + np.arange(alone.sum())
    return predicted


def report(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """All metrics of a clustering; each item labelled -1 is a cluster of one."""
    predicted = singletons(predicted)
    found = {}
    for name, score in (("pairwise", pairwise(truth, predicted)), ("bcubed", bcubed(truth, predicted))):
        found |= {f"{name}_precision": score.precision, f"{name}_recall": score.recall, f"{name}_f": score.f}
    return found | {
        "nmi": normalized_mutual_information(truth, predicted),
        "clusters": float(len(np.unique(predicted))),
    }
