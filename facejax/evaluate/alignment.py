"""Face alignment on test faces: normalised errors, failures, the cumulative curve, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from facejax.data.keypoints import moved
from facejax.data.landmark_images import Faces
from facejax.evaluate import speed
from facejax.metrics import landmarks
from facejax.train import Report, map_batches, new_figure
from facejax.train.dry_run import count, flops

Predict = Callable[[Any, jax.Array], dict[str, jax.Array]]
"""(variables, uint8 crops [n, S, S, 3]) -> {"points": [n, L, 2] in pixels of the crops, ...other estimates}."""


def find(predict: Predict, variables: Any, faces: Faces, batch_size: int) -> dict[str, np.ndarray]:
    """The estimates of `predict` for all test faces, name -> [N, L, 2] in pixels of the images.

    Args:
      predict, variables: the aligner.
      faces: the test faces.
      batch_size: crops a call.
    """

    def load(rows: Sequence[int]) -> np.ndarray:
        return faces.crops(rows)

    found = map_batches(predict, variables, range(len(faces)), batch_size, load)
    return {name: faces.original(points.astype(np.float64)) for name, points in found.items()}


def report(faces: Faces, found: dict[str, np.ndarray], *, normalizer: str, limit: float) -> Report:
    """Errors in percent of the face's size.

    Args:
      faces: the test faces.
      found: of `find`; "points" is the final estimate, others are reported as nme_NAME.
      normalizer: a kind of `facejax.metrics.landmarks.face_sizes`, whose boxes are those of the faces, if they have
        any.
      limit: error at which a face counts as failed and the curve ends, a fraction of the face's size.
    """
    sizes = landmarks.face_sizes(faces.points, normalizer, faces.boxes)
    errors = {n: landmarks.normalized_mean_error(points, faces.points, sizes) for n, points in found.items()}
    final, percent = errors["points"], round(100 * limit)
    subsets = {name: mask for name, mask in faces.subsets.items() if mask.any()}
    rows = [
        {
            "faces": name,
            "number": int(mask.sum()),
            **{f"NME {n}" if n != "points" else "NME": 100 * float(e[mask].mean()) for n, e in errors.items()},
            f"failures at {percent}": 100 * landmarks.failure_rate(final[mask], limit),
            f"AUC at {percent}": 100 * landmarks.area_under_curve(final[mask], limit),
        }
        for name, mask in {"all": np.ones(len(faces), bool), **subsets}.items()
    ]
    metrics = {
        "nme": 100 * float(final.mean()),
        f"failures_at_{percent}": 100 * landmarks.failure_rate(final, limit),
        f"auc_at_{percent}": 100 * landmarks.area_under_curve(final, limit),
        **{f"nme_{name}": 100 * float(final[mask].mean()) for name, mask in subsets.items()},
        **{f"nme_{name}": 100 * float(e.mean()) for name, e in errors.items() if name != "points"},
    }
    order = np.argsort(final)
    return Report(
        metrics,
        tables={f"Errors in % of the face's size ({normalizer})": rows},
        figures={
            "Faces below an error": error_figure(errors, limit),
            "Best and worst faces (true green, predicted red)": overlay(
                faces, found["points"], np.concatenate([order[:6], order[-6:]])
            ),
        },
        arrays={"landmarks": found["points"].astype(np.float32), "errors": final},
        notes={"nme": f"mean distance of the landmarks in % of the face's size, {normalizer}"},
    )


def error_figure(errors: dict[str, np.ndarray], limit: float) -> Any:
    """Cumulative error curves up to twice the limit; errors [N] by name, in parts of the face's size."""
    figure, axis = new_figure(5, 3.2)
    levels = np.linspace(0, 2 * limit, 201)
    for name, found in errors.items():
        axis.plot(100 * levels, 100 * landmarks.cumulative_error(found, levels), label=name)
    axis.axvline(100 * limit, color="grey", linewidth=0.8, linestyle=":")
    axis.set(xlabel="error, % of the face's size", ylabel="faces, %", ylim=(0, 101), xlim=(0, 200 * limit))
    if len(errors) > 1:
        axis.legend(fontsize=7)
    return figure


def overlay(faces: Faces, points: np.ndarray, rows: np.ndarray) -> Any:
    """Crops with true landmarks in green and predicted ones in red.

    Args:
      faces: the test faces.
      points: [N, L, 2] in pixels of the images.
      rows: [n] int, faces shown.
    """
    columns = -(-len(rows) // 2)
    figure, axes = new_figure(1.8 * columns, 3.6, 2, columns)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, i, image in zip(axes.ravel(), rows, faces.crops(rows), strict=False):
        axis.imshow(image)
        for shown, colour in ((faces.points[i], "lime"), (points[i], "red")):
            axis.plot(*moved(shown, faces.matrices[i]).T, ".", color=colour, markersize=2)
        axis.set(xlim=(-0.5, faces.size - 0.5), ylim=(faces.size - 0.5, -0.5))
    return figure


def cost(predict: Predict, variables: Any, size: int) -> dict[str, float]:
    """Size and speed for one crop of `size` pixels: million_parameters, million_multiply_adds, milliseconds."""
    image = np.zeros((1, size, size, 3), np.uint8)
    return {
        "million_parameters": count(variables["params"]) / 1e6,
        "million_multiply_adds": flops(jax.make_jaxpr(predict)(variables, image).jaxpr) / 2e6,
        "milliseconds": speed.milliseconds(predict, variables, image),
    }


def cluster_errors(
    found: Mapping[str, np.ndarray], truth: np.ndarray, clusters: Mapping[str, Sequence[int]], normalizer: str
) -> list[dict[str, Any]]:
    """Mean errors of the landmarks of clusters, % of the face's size.

    Args:
      found: name of a network -> landmarks [N, L, 2].
      truth: [N, L, 2].
      clusters: name -> its landmarks.
      normalizer: of `facejax.metrics.landmarks.face_sizes`.

    Returns:
      A row for all landmarks and for each cluster, with a column for each network.
    """
    sizes = landmarks.face_sizes(truth, normalizer)

    def mean(points: np.ndarray, places: list[int]) -> float:
        return 100 * float(landmarks.normalized_mean_error(points[:, places], truth[:, places], sizes).mean())

    return [
        {"cluster": name, "landmarks": len(places), **{net: mean(x, list(places)) for net, x in found.items()}}
        for name, places in {"all": range(truth.shape[1]), **clusters}.items()
    ]
