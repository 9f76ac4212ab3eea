"""Estimates of age and head pose on test faces: errors by protocol, and pictures with pose cubes and ages."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from facejax.data import pipeline
from facejax.data.attribute_images import AttributeImages
from facejax.data.pipeline import Source
from facejax.metrics import age, pose
from facejax.train import Report, map_batches, new_figure

Predict = Callable[[Any, jax.Array], dict[str, jax.Array]]
"""(variables, uint8 RGB [n, S, S, 3]) -> {"number": ages [n] or labels [n, 3], ...further estimates}."""
BINS = ((0, 30), (30, 60), (60, 99))
"""Ranges of |yaw|, degrees, by which errors are listed."""


def find(
    predict: Predict, variables: Any, source: Source, data: AttributeImages, batch_size: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Estimates by name, and the truth, of all examples.

    Args:
      predict, variables: the estimator.
      source: the test faces.
      data: how they are cropped.
      batch_size: images a call.
    """

    def load(rows: Sequence[int]) -> dict[str, np.ndarray]:
        return data.load_test(pipeline.fetch(source, rows))

    def run(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {**predict(variables, batch["image"]), "target": batch["target"]}

    found = map_batches(run, variables, range(len(source)), batch_size, load)
    return found, found.pop("target")


def pose_report(
    found: dict[str, np.ndarray], truth: np.ndarray, crops: Callable[[Sequence[int]], np.ndarray]
) -> Report:
    """Mean absolute errors in degrees, faces with an angle beyond 99 degrees left out.

    Args:
      found: labels [N, 3] by name; "number" is the final estimate, others are reported as mae_NAME.
      truth: labels [N, 3].
      crops: rows -> uint8 [n, S, S, 3], for the pictures.
    """
    predicted, whole = found["number"], pose.pose_errors(found["number"], truth)
    metrics = {
        "mae": whole.mean,
        "yaw": whole.yaw,
        "pitch": whole.pitch,
        "roll": whole.roll,
        "geodesic": whole.geodesic,
    }
    metrics |= {f"mae_{n}": pose.pose_errors(x, truth).mean for n, x in found.items() if n != "number"}
    metrics["mae_of_the_mean_pose"] = pose.pose_errors(np.tile(truth.mean(0), (len(truth), 1)), truth).mean
    rows = []
    for low, high in BINS:
        inside = (np.abs(truth[:, 0]) >= low) & (np.abs(truth[:, 0]) < high) & pose.within(truth)
        if inside.any():
            rows.append({"|yaw|": f"{low} to {high}", **pose.pose_errors(predicted[inside], truth[inside])._asdict()})
    errors = np.where(pose.within(truth), np.abs(predicted - truth).mean(1), np.inf)
    order = np.argsort(errors)[: int(np.isfinite(errors).sum())]
    shown = order[np.linspace(0, len(order) - 1, min(12, len(order))).astype(int)]
    return Report(
        metrics,
        tables={"Mean absolute errors in degrees": rows},
        figures={
            "Faces from the smallest error to the largest: true (green) and predicted (red) pose": cubes(
                crops(shown), truth[shown], predicted[shown]
            ),
            "Predicted over true angles, degrees": scatter(predicted, truth, ("yaw", "pitch", "roll")),
        },
        arrays={"predicted": predicted, "truth": truth},
        notes={"geodesic": "angle of the rotation between the predicted and the true pose, mean in degrees"},
    )


def yaw_report(found: dict[str, np.ndarray], yaw: np.ndarray, crops: Callable[[Sequence[int]], np.ndarray]) -> Report:
    """Mean absolute error of yaw on photographs of which no other angle is known.

    Args:
      found: labels [N, 3] by name; "number" counts.
      yaw: [N] degrees; faces beyond 99 are left out.
      crops: rows -> uint8 [n, S, S, 3], for the pictures.
    """
    rows = np.flatnonzero(np.abs(yaw) <= pose.LIMIT)
    predicted, truth = found["number"][rows], yaw[rows]
    errors = np.abs(predicted[:, 0] - truth)
    table = []
    for low, high in BINS:
        inside = (np.abs(truth) >= low) & (np.abs(truth) < high)
        if inside.any():
            table.append({"|yaw|": f"{low} to {high}", "yaw": float(errors[inside].mean()), "faces": int(inside.sum())})
    shown = np.argsort(errors)[np.linspace(0, len(errors) - 1, min(12, len(errors))).astype(int)]
    return Report(
        {"photographs_yaw": float(errors.mean()), "photographs_yaw_of_zero": float(np.abs(truth).mean())},
        tables={"Photographs: mean absolute error of yaw in degrees": table},
        figures={
            "Photographs from the smallest error of yaw to the largest": cubes(crops(rows[shown]), predicted[shown])
        },
        arrays={"photographs_predicted": predicted, "photographs_yaw": truth},
    )


def age_report(found: dict[str, np.ndarray], truth: np.ndarray, crops: Callable[[Sequence[int]], np.ndarray]) -> Report:
    """Mean absolute error in years, and the shares of faces with an error of less than 3 and 5 years, in percent.

    Args:
      found: ages [N] by name; "number" is the final estimate.
      truth: ages [N].
      crops: rows -> uint8 [n, S, S, 3], for the pictures.
    """
    predicted = found["number"]
    metrics = {
        "mae": age.age_error(predicted, truth),
        "ca_3": 100 * age.cumulative_score(predicted, truth, 3),
        "ca_5": 100 * age.cumulative_score(predicted, truth, 5),
        "mae_of_the_median_age": age.age_error(np.full(len(truth), np.median(truth)), truth),
    }
    order = np.argsort(np.abs(predicted - truth))
    shown = order[np.linspace(0, len(order) - 1, min(12, len(order))).astype(int)]
    return Report(
        metrics,
        figures={
            "Faces from the smallest error to the largest: true and predicted age": captioned(
                crops(shown), [f"{truth[i]:.0f}: {predicted[i]:.1f}" for i in shown]
            ),
            "Predicted over true age, years": scatter(predicted[:, None], truth[:, None], ("age",)),
            "Faces within an error": score_figure(np.abs(predicted - truth)),
        },
        arrays={"predicted": predicted, "truth": truth},
        notes={"ca_3": "share of the faces with an error of less than 3 years, in percent"},
    )


def cubes(images: np.ndarray, *poses: np.ndarray) -> Any:
    """Faces with a cube for each of their poses, the last red, one before green. Thick: the side the face looks to.

    Args:
      images: uint8 [n, S, S, 3].
      *poses: labels [n, 3] each.
    """
    figure, axes = _grid(images)
    for axis, *labels in zip(axes, *poses, strict=False):
        for label, colour in zip(labels, ("lime", "red")[-len(poses) :], strict=True):
            for line, front in cube_lines(label, images.shape[1]):
                axis.plot(*line.T, color=colour, linewidth=1.8 if front else 0.7)
    return figure


def cube_lines(label: np.ndarray, size: int) -> list[tuple[np.ndarray, bool]]:
    """Edges of a cube in the middle of an image, half as wide, turned to a pose and seen from afar.

    Args:
      label: yaw, pitch, roll in degrees.
      size: side of the image, pixels.

    Returns:
      Per edge, its ends [2, 2] (x, y) in pixels, and whether it belongs to the front.
    """
    corners = np.array(list(itertools.product((-1, 1), repeat=3)))
    turned = corners @ pose.rotation(label).T
    flat = (size - 1) / 2 + size / 4 * turned[:, :2] * [1, -1]
    pairs = [(i, j) for i, j in itertools.combinations(range(8), 2) if np.abs(corners[i] - corners[j]).sum() == 2]
    return [(flat[[i, j]], bool(corners[i, 2] == 1 and corners[j, 2] == 1)) for i, j in pairs]


def captioned(images: np.ndarray, captions: Sequence[str]) -> Any:
    """Images [n, S, S, 3], each below its caption."""
    figure, axes = _grid(images)
    for axis, caption in zip(axes, captions, strict=False):
        axis.set_title(caption, fontsize=8)
    return figure


def _grid(images: np.ndarray) -> tuple[Any, np.ndarray]:
    """A figure with the images in rows of six, and its axes."""
    rows, side = -(-len(images) // 6), images.shape[1]
    figure, axes = new_figure(9, 1.7 * rows, rows, 6)
    axes = np.ravel(axes)
    for axis in axes:
        axis.set_axis_off()
    for axis, image in zip(axes, images, strict=False):
        axis.imshow(image)
        axis.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
    return figure, axes


def scatter(predicted: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> Any:
    """Predicted over true numbers [N, D], a panel for each of D names."""
    figure, axes = new_figure(3.2 * len(names), 3.2, 1, len(names))
    for axis, x, y, name in zip(np.ravel(axes), truth.T, predicted.T, names, strict=True):
        axis.plot(x, y, ".", markersize=2, alpha=0.6)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axis.plot(ends, ends, color="grey", linewidth=0.8)
        axis.set(xlabel=f"true {name}", ylabel=f"predicted {name}")
    return figure


def score_figure(errors: np.ndarray) -> Any:
    """The cumulative score of errors [N] in years, up to 15 years."""
    figure, axis = new_figure(5, 3.2)
    levels = np.arange(1, 16)
    axis.plot(levels, [100 * np.mean(errors < level) for level in levels], marker="o", markersize=3)
    axis.set(xlabel="error below, years", ylabel="faces, %", ylim=(0, 101))
    return figure
