"""Pairwise F, BCubed F and normalised mutual information of clusterings, from a sparse contingency table."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Score:
    """Precision, recall and their harmonic mean; NaN where there is nothing to divide by."""

    precision: float
    recall: float

    @property
    def f(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else float("nan")


def _contingency(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, ...]:
    """Counts of the cells that are not empty, with the sizes of their row and column, and all rows' and columns'."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 1 or truth.shape != predicted.shape or not len(truth):
        raise ValueError(f"labels are {truth.shape}, predictions {predicted.shape}: expected two of [N], N above 0")
    _, rows, truths = np.unique(truth, return_inverse=True, return_counts=True)
    _, columns, found = np.unique(predicted, return_inverse=True, return_counts=True)
    cells, counts = np.unique(rows.astype(np.int64) * len(found) + columns, return_counts=True)
    return counts, truths[cells // len(found)], found[cells % len(found)], truths, found


def pairwise(truth: np.ndarray, predicted: np.ndarray) -> Score:
    """Over unordered pairs of different items: how many found pairs are true, and how many true pairs are found.

    Args:
      truth, predicted: [N] labels of any integers. Label -1 is a cluster like others: see `singletons`.

    Raises:
      ValueError: lengths that differ, or no items.
    """
    counts, _, _, truths, found = _contingency(truth, predicted)
    pairs = [float(np.sum(n.astype(np.float64) * (n - 1))) for n in (counts, truths, found)]
    return Score(*(pairs[0] / n if n else float("nan") for n in (pairs[2], pairs[1])))


def bcubed(truth: np.ndarray, predicted: np.ndarray) -> Score:
    """Means over items of the share of its cluster that is of its class, and of its class that is in its cluster."""
    counts, row, column, _, _ = _contingency(truth, predicted)
    square = counts.astype(np.float64) ** 2 / counts.sum()
    return Score(float(np.sum(square / column)), float(np.sum(square / row)))


def normalized_mutual_information(truth: np.ndarray, predicted: np.ndarray, *, average: str = "arithmetic") -> float:
    """Mutual information over the "arithmetic" or "geometric" mean of the two entropies; 0 to 1."""
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
    """The labels with every -1, an item that belongs nowhere, made a cluster of its own."""
    predicted = np.array(predicted)
    alone = predicted < 0
    predicted[alone] = predicted.max(initial=-1) + 1 + np.arange(alone.sum())
    return predicted


def report(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """All numbers of a clustering; items labelled -1 count as clusters of one."""
    predicted = singletons(predicted)
    found = {}
    for name, score in (("pairwise", pairwise(truth, predicted)), ("bcubed", bcubed(truth, predicted))):
        found |= {f"{name}_precision": score.precision, f"{name}_recall": score.recall, f"{name}_f": score.f}
    return found | {
        "nmi": normalized_mutual_information(truth, predicted),
        "clusters": float(len(np.unique(predicted))),
    }
