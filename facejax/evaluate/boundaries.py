"""Figures of boundary heatmaps: over faces, and the error of landmarks against that of the boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from facejax.data.landmark_images import Faces
from facejax.train import new_figure


def quality_figure(rows: Sequence[dict[str, Any]]) -> Any:
    """NME against the error of the boundaries."""
    figure, axis = new_figure(5, 3.4)
    by_name = {row["boundaries"]: (row["their error"], row["NME"]) for row in rows}
    for kind in ("blurred", "noisy"):
        steps = [by_name["true"], *(place for name, place in by_name.items() if name.startswith(kind))]
        axis.plot(*zip(*steps, strict=True), "o-", markersize=3, label=f"true, {kind} in steps")
    for name, marker in (("true", "*"), ("predicted", "s"), ("none", "x")):
        axis.plot(*by_name[name], marker, color="black", label=name)
    axis.set(xlabel="error of the boundaries (0: true, 1: none)", ylabel="NME, %", xlim=(-0.05, 1.6))
    axis.legend(fontsize=7)
    return figure


def maps_figure(faces: Faces, given: np.ndarray, true: np.ndarray) -> Any:
    """Heatmaps [n, side, side] over the first n crops."""
    figure, axes = new_figure(1.8 * len(given), 3.6, 2, len(given))
    edge = (-0.5, faces.size - 0.5)
    for row, maps in zip(axes, (given, true), strict=True):
        for axis, image, values in zip(row, faces.crops(range(len(maps))), maps, strict=True):
            axis.imshow(image)
            axis.imshow(values, cmap="magma", alpha=0.6, extent=(*edge, *edge[::-1]), vmin=0, vmax=1)
            axis.set_axis_off()
    return figure
