"""Detectors run on images of any size: average precision by the data's protocol, landmark error, and pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np

from facejax.data import decoding, pipeline, transforms
from facejax.data.augment_boxes import decoded
from facejax.data.detection import letterboxed
from facejax.data.pipeline import Source
from facejax.detection.base import Detector
from facejax.evaluate import speed
from facejax.metrics import detection as metrics
from facejax.metrics import wider_face
from facejax.metrics.detection import Detections, Objects
from facejax.metrics.wider_face import Curve
from facejax.train import Report, image_grid, map_batches, new_figure
from facejax.train.dry_run import count, multiply_adds

HEIGHTS = {"": (0, np.inf), "_tiny": (0, 16), "_small": (16, 32), "_large": (32, np.inf)}
"""Suffix of the metric -> lowest face height in pixels, and the first above."""
SHOWN = 12
PROTOCOLS = ("faces", "wider", "coco", "voc2007", "voc2012")


def fitted(example: Mapping[str, Any], size: int, stretch: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An example's image on a square of `size` pixels: at the top left with its aspect ratio, or stretched.

    Returns:
      (uint8 [size, size, 3], scale [2], offset [2]); original (x, y) times the scale plus the offset lies at its place.
    """
    if not stretch:
        image, scale, offset = letterboxed(example, size)
        return image, np.array([scale, scale]), offset
    image = decoded(example)
    return transforms.resize(image, size, size), size / np.array(image.shape[1::-1]), np.zeros(2)


def detect(
    model: Detector, variables: Any, source: Source, size: int, *, batch_size: int, stretch: bool = False
) -> list[Detections]:
    """Detections in all images of a source, in pixels of the stored images.

    Boxes of a detector that `clips` end at the border of the image, which is not that of the network's square input.

    Args:
      model, variables: the detector.
      source: examples with "image".
      size: side of the network's input, pixels.
      batch_size: images a call.
      stretch: see `fitted`.
    """

    def load(rows: Sequence[int]) -> dict[str, np.ndarray]:
        examples = pipeline.fetch(source, rows)
        parts = [fitted(example, size, stretch) for example in examples]
        images, scales, offsets = (np.stack(x) for x in zip(*parts, strict=True))
        extents = np.array([decoding.size(example["image"]) for example in examples], np.float32)
        return {"image": images, "scale": scales, "offset": offsets, "extent": extents}

    def predict(variables: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        raw = model.net.apply(variables, model.preprocess(batch["image"]), train=False)
        return {"found": model.decode(raw, (size, size)), **{k: batch[k] for k in ("scale", "offset", "extent")}}

    out = map_batches(predict, variables, range(len(source)), batch_size, load)
    found = out["found"]
    images = []
    for i, mask in enumerate(found.mask):
        scale, offset = out["scale"][i], out["offset"][i]
        boxes = (found.boxes[i][mask] - np.tile(offset, 2)) / np.tile(scale, 2)
        if getattr(model, "clips", False):
            boxes = np.clip(boxes, 0, np.tile(out["extent"][i], 2))
        points = (found.points[i][mask] - offset) / scale
        images.append(Detections(boxes, found.scores[i][mask], found.labels[i][mask], points if model.points else None))
    return images


def milliseconds(model: Detector, variables: Any, size: int) -> float:
    """Shortest time of one image on the first device, network and post-processing."""

    def run(variables: Any, images: jax.Array) -> Any:
        return model.decode(model.net.apply(variables, model.preprocess(images), train=False), (size, size))

    return speed.milliseconds(run, variables, np.zeros((1, size, size, 3), np.uint8))


def objects(source: Source) -> list[Objects]:
    """Annotations of all examples of a source; boxes of negative size, which are ignored, have none."""
    return [
        Objects(
            np.maximum(example["boxes"], np.tile(np.asarray(example["boxes"])[:, :2], 2)),
            example["labels"],
            example.get("ignored"),
            example.get("areas"),
            example["points"] if np.shape(example["points"])[1] else None,
        )
        for example in pipeline.fetch(source, range(len(source)))
    ]


def report(
    model: Detector,
    variables: Any,
    source: Source,
    size: int,
    *,
    protocol: str,
    batch_size: int,
    stretch: bool = False,
    timed: bool = False,
    truth: str = "",
    heights: Mapping[str, tuple[float, float]] = HEIGHTS,
) -> Report:
    """Average precision, landmark error, cost, precision against recall, and images with detections.

    Args:
      model, variables, size, batch_size, stretch: see `detect`.
      source: annotated examples.
      protocol: "faces" (WIDER FACE's matching, by face height), "wider" (its official subsets), "coco", "voc2007" or
        "voc2012".
      timed: whether to add `milliseconds`.
      truth: with "wider", folder of the four .mat files of the official evaluation tools.
      heights: with "faces", see `HEIGHTS`.
    """
    found, true = detect(model, variables, source, size, batch_size=batch_size, stretch=stretch), objects(source)
    if protocol == "wider":
        numbers, figures = wider_scores(found, source, truth), {}
    else:
        numbers, figures = scores(found, true, protocol, heights)
    if model.points and any(o.points is not None for o in true):
        numbers |= landmark_scores(found, source, true)
    threshold, precision, recall = working_point(found, true)
    numbers |= {"precision": 100 * precision, "recall": 100 * recall, "score_threshold": threshold}
    numbers["million_multiply_adds"] = multiply_adds(model.net, variables, size)
    numbers["million_parameters"] = count(variables["params"]) / 1e6
    if timed:
        numbers["milliseconds"] = milliseconds(model, variables, size)
    shown = [decoded(source[i]) for i in range(min(SHOWN, len(source)))]
    drawn = [draw(image, d, t, threshold) for image, d, t in zip(shown, found, true)]
    return Report(
        numbers,
        figures=figures,
        images={f"Annotated faces (green) and detections with scores of {threshold:.2f} or more (red)": tiled(drawn)},
        notes={
            "precision": "at the score threshold of the highest F1 on these images, %",
            "recall": "at the score threshold of the highest F1 on these images, %",
        },
    )


def scores(
    found: Sequence[Detections],
    true: Sequence[Objects],
    protocol: str,
    heights: Mapping[str, tuple[float, float]] = HEIGHTS,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Average precision in % and its figure, by a protocol of `report`."""
    if protocol == "faces":
        curves = metrics.size_split_ap(found, true, heights)
        numbers = {f"ap{name}": 100 * curve.ap for name, curve in curves.items()}
        return numbers, {"Precision against recall, by face height": curve_figure(curves, heights)}
    if protocol == "coco":
        return {name: 100 * value for name, value in metrics.coco_ap(found, true).items()}, {}
    if protocol in ("voc2007", "voc2012"):
        result = metrics.voc_ap(found, true, eleven_points=protocol == "voc2007", plus_one=False)
        return {"map": 100 * result.mean}, {}
    raise ValueError(f"protocol is {protocol!r}: expected faces, wider, coco, voc2007 or voc2012")


def wider_scores(found: Sequence[Detections], source: Source, folder: str) -> dict[str, float]:
    """Official average precision in % on the easy, medium and hard faces of WIDER FACE's validation images.

    Args:
      found: detections in the images of `source`.
      source: examples whose "name" is event/image.jpg; images of the official lists that it lacks have no detections.
      folder: of the official .mat files.

    Raises:
      ValueError: an image is not in the official lists.
    """
    truth = wider_face.read_truth(folder)
    rows = {name: np.zeros((0, 5)) for name in truth.names}
    for row, entry in enumerate(found):
        name = check_name(source[row]["name"], rows, folder)
        sides = entry.boxes[:, 2:] - entry.boxes[:, :2]
        rows[name] = np.column_stack([entry.boxes[:, :2], sides, entry.scores])
    curves = wider_face.evaluate([rows[name] for name in truth.names], truth.boxes, truth.subsets)
    return {name: 100 * curve.ap for name, curve in curves.items()}


def check_name(name: str, names: Collection[str], folder: str) -> str:
    """An image's name without its extension; ValueError if it is not one of the official lists in `folder`."""
    if name.removesuffix(".jpg") not in names:
        raise ValueError(f"{name}: expected an image of {folder}")
    return name.removesuffix(".jpg")


def landmark_scores(found: Sequence[Detections], source: Source, true: Sequence[Objects]) -> dict[str, float]:
    """Normalised error of the landmarks of detected faces and failure rate, both in %, over faces with all points."""
    annotated = []
    for row, entry in enumerate(true):
        whole = np.asarray(source[row]["visible"], bool).all(1)
        annotated.append(Objects(entry.boxes, entry.classes, entry.ignored | ~whole, points=entry.points))
    result = metrics.landmark_error(found, annotated)
    return {"nme": 100 * result.nme, "landmark_failures": 100 * result.failure_rate}


def working_point(found: Sequence[Detections], true: Sequence[Objects]) -> tuple[float, float, float]:
    """(score, precision, recall) at the score threshold of the highest F1; (1, 0, 0) without a right detection."""
    every = np.concatenate([d.scores for d in found])
    best = (0.0, 1.0, 0.0, 0.0)
    for score in np.unique(np.quantile(every, np.linspace(0, 1, 101))) if len(every) else ():
        precision, recall = metrics.precision_recall(found, true, score)
        f1 = 2 * precision * recall / max(precision + recall, 1e-9)
        best = max(best, (f1, float(score), precision, recall)) if np.isfinite(f1) else best
    return best[1:]


def draw(
    image: np.ndarray, found: Detections | None, true: Objects | None, threshold: float, scale: int = 2
) -> np.ndarray:
    """An enlarged image with annotated boxes in green, and detections of at least `threshold` in red with points."""
    shown = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)

    def box(corners: np.ndarray, colour: tuple[int, int, int]) -> None:
        low, high = (np.rint(np.clip(corners[i : i + 2] * scale, -9999, 9999)).astype(int).tolist() for i in (0, 2))
        cv2.rectangle(shown, low, high, colour, 1)

    for corners in true.boxes if true else ():
        box(corners, (0, 220, 0))
    for i in np.flatnonzero(found.scores >= threshold) if found else ():
        box(found.boxes[i], (255, 40, 40))
        for point in found.points[i] if found.points is not None else ():
            cv2.circle(shown, np.rint(np.clip(point * scale, -9999, 9999)).astype(int).tolist(), 1, (80, 160, 255), -1)
    return shown


def tiled(images: Sequence[np.ndarray], side: int = 256, columns: int = 4) -> np.ndarray:
    """Images of any size, each shrunk or padded to a square of `side` pixels, as one grid."""
    squares = np.zeros((len(images), side, side, 3), np.uint8)
    for square, image in zip(squares, images, strict=True):
        height, width = (round(n * side / max(image.shape[:2])) for n in image.shape[:2])
        square[:height, :width] = transforms.resize(image, height, width)
    return image_grid(squares, columns)


def curve_figure(curves: Mapping[str, Curve], heights: Mapping[str, tuple[float, float]]) -> Any:
    """Precision against recall of every range of face heights."""
    figure, axis = new_figure(5, 3.6)
    for name, curve in curves.items():
        low, high = heights[name]
        label = (
            "all faces"
            if name == ""
            else f"{low:g} pixels and more"
            if np.isinf(high)
            else f"{low:g} to {high:g} pixels"
        )
        axis.plot(curve.recall, curve.precision, label=f"{label}: AP {100 * curve.ap:.1f} %")
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    axis.legend(fontsize=7)
    return figure
