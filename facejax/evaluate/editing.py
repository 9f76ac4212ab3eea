"""Errors of edits: of edited attributes from their targets, and the drift of all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from facejax.train import new_figure


def edit_metrics(
    before: np.ndarray, after: np.ndarray, values: np.ndarray, active: np.ndarray, binary: Sequence[bool]
) -> dict[str, float]:
    """Errors of numbers, in their units, and shares of binary attributes.

    Args:
      before, after: [N, A] attributes of unedited and edited images; binary ones count by their sign.
      values: [N, A] targets, -1 or 1 of binary attributes.
      active: [N, A] bool, what was to be edited.
      binary: [A].

    Returns:
      "control_error": mean |after - target| of edited numbers; "drift": mean |after - before| of the others;
      "accuracy": share of edited binary attributes that are as wanted; "kept": share of the others that are as before;
      "joint": mean over all attributes of |after - wanted|, where a wrong binary attribute counts 1 and a number in
      -1..1 half of its error. Measures of no attribute are left out.
    """
    numbers = ~np.asarray(binary)
    wanted = np.where(active, values, before)
    error = np.where(numbers, np.abs(after - wanted), (after > 0) != (wanted > 0))
    parts = {
        "control_error": error[active & numbers],
        "drift": error[~active & numbers],
        "accuracy": 1 - error[active & ~numbers],
        "kept": 1 - error[~active & ~numbers],
        "joint": np.where(numbers, error / 2, error),
    }
    return {name: float(part.mean()) for name, part in parts.items() if part.size}


def by_count(
    before: np.ndarray, after: np.ndarray, values: np.ndarray, active: np.ndarray, binary: Sequence[bool]
) -> list[dict[str, Any]]:
    """Rows of `edit_metrics` by the number of attributes edited at once; measures of no attribute are not numbers."""
    rows, counts = [], active.sum(1)
    for count in np.unique(counts[counts > 0]):
        part = counts == count
        found = edit_metrics(before[part], after[part], values[part], active[part], binary)
        names = ("control_error", "drift", "accuracy", "kept", "joint")
        rows.append({"edited": int(count), "faces": int(part.sum()), **{n: found.get(n, float("nan")) for n in names}})
    return rows


def count_figure(rows: Sequence[dict[str, Any]]) -> Any:
    """Errors over the number of attributes edited at once."""
    figure, axis = new_figure(5, 3.2)
    for name, label in (("control_error", "edited, to the target"), ("drift", "others, drift")):
        axis.plot([row["edited"] for row in rows], [row[name] for row in rows], marker="o", label=label)
    axis.set(xlabel="attributes edited at once", ylabel="mean error of numbers in -1..1")
    axis.set_xticks([row["edited"] for row in rows])
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)
    return figure


def sweeps(attributes: int, binary: Sequence[bool], columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Wishes of a sheet: a row for each attribute alone, from -1 to 1, and a last row for all numbers together.

    Returns:
      values, active: [(attributes + 1) * columns, attributes].
    """
    ramp = np.linspace(-1, 1, columns)
    values = np.zeros((attributes + 1, columns, attributes), np.float32)
    values += np.where(binary, np.where(ramp[:, None] < 0, -1, 1), ramp[:, None])
    active = np.concatenate([np.eye(attributes, dtype=bool), ~np.asarray(binary)[None]])
    active = np.repeat(active[:, None], columns, 1)
    return values.reshape(-1, attributes), active.reshape(-1, attributes)
