"""Average precision of detections by the protocols of PASCAL VOC, COCO and WIDER FACE, precision and recall at one
score, and the landmark error of detected faces.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from facejax.metrics import landmarks, wider_face

COCO_NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium",
    "ar_large",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Detections:
    """Detected objects of one image, in any order; of equal scores the first ranks higher.

    Attributes:
      boxes: [D, 4] (x1, y1, x2, y2) in pixels.
      scores: [D].
      classes: [D] integers; None: all 0.
      points: [D, P, 2] landmarks (x, y) in pixels, or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray | None = None
    points: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        _settle(self, {"boxes": (n, 4), "scores": (n,), "classes": (n,), "points": (n, None, 2)})


@dataclasses.dataclass(frozen=True)
class Objects:
    """Annotated objects of one image.

    Attributes:
      boxes: [G, 4] (x1, y1, x2, y2) in pixels.
      classes: [G] integers; None: all 0.
      ignored: [G] bool: VOC's difficult objects, COCO's crowds, faces that don't count; None: none.
      areas: [G] square pixels, of COCO's segments; None: those of the boxes.
      points: [G, P, 2] landmarks (x, y) in pixels, or None; those of ignored faces are not used.
    """

    boxes: np.ndarray
    classes: np.ndarray | None = None
    ignored: np.ndarray | None = None
    areas: np.ndarray | None = None
    points: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.boxes)
        shapes = {"boxes": (n, 4), "classes": (n,), "ignored": (n,), "areas": (n,), "points": (n, None, 2)}
        _settle(self, shapes)
        if (self.boxes[:, 2:] < self.boxes[:, :2]).any():
            raise ValueError("Objects: a box has x2 below x1 or y2 below y1, expected (x1, y1, x2, y2)")


class VocResult(NamedTuple):
    """Mean over classes, and the average precision of every class with an object that counts; NaN without any."""

    mean: float
    classes: dict[int, float]


class LandmarkResult(NamedTuple):
    """Landmark error over detected faces.

    Attributes:
      nme: mean over faces of the mean distance divided by sqrt(width * height) of the true box: a fraction.
      failure_rate: fraction of the detected faces with a larger error than the limit.
      errors: [M], of the detected faces.
      faces: number of faces that count, detected or not.
    """

    nme: float
    failure_rate: float
    errors: np.ndarray
    faces: int


def voc_ap(
    detections: Sequence[Detections],
    objects: Sequence[Objects],
    *,
    eleven_points: bool,
    strict: bool = True,
    threshold: float = 0.5,
    plus_one: bool = True,
) -> VocResult:
    """PASCAL VOC's average precision.

    A detection takes the object of its class and image with the highest IoU. It is ignored if that object is; it is
    right if it is the first to take it, and false otherwise.

    Args:
      detections, objects: one entry per image, in the same order.
      eleven_points: the mean of the highest precision at recalls of 0, 0.1, ..., 1 (VOC 2007); else the area under the
        monotone envelope (VOC 2010 and later). The levels are exact tenths; py-faster-rcnn's of 0.3, 0.6 and 0.7 are a
        rounding error above, so a recall of exactly 3/10 misses one there.
      strict: the IoU must exceed the threshold (py-faster-rcnn); else it may be equal (VOC's development kit).
      threshold: of the IoU.
      plus_one: boxes are in pixel indices, x2 and y2 the last pixel; else continuous, of width x2 - x1.
    """
    match = _match(detections, objects, threshold, strict=strict, plus=float(plus_one))
    found = {}
    for label in np.unique(match.true_classes[~match.ignored]).astype(int).tolist():
        chosen = np.flatnonzero(match.classes == label)
        chosen = chosen[np.argsort(-match.scores[chosen], kind="stable")]
        right = np.cumsum(match.right[chosen])
        precision = right / np.maximum(right + np.cumsum(match.false[chosen]), 1)
        recall = right / np.sum(~match.ignored & (match.true_classes == label))
        if eleven_points:
            found[label] = float(np.mean([precision.max(where=recall >= j / 10, initial=0.0) for j in range(11)]))
        else:
            found[label] = wider_face.average_precision(precision, recall)
    return VocResult(float(np.mean(list(found.values()))) if found else float("nan"), found)


def coco_ap(detections: Sequence[Detections], objects: Sequence[Objects]) -> dict[str, float]:
    """COCO's average precision and recall of boxes, by pycocotools.

    Args:
      detections, objects: one entry per image, in the same order; boxes are continuous, of width x2 - x1.

    Returns:
      The twelve numbers of COCO's summary by the names of `COCO_NAMES`; NaN where no object has that size (COCO's code
      prints -1).

    Raises:
      ImportError: pycocotools is not installed.
    """
    COCO, COCOeval = pycocotools()
    _check_images(detections, objects)
    if not any(len(true.boxes) for true in objects):
        return dict.fromkeys(COCO_NAMES, float("nan"))
    images = [{"id": i} for i in range(len(objects))]
    categories = [{"id": int(c)} for c in np.unique(np.concatenate([true.classes for true in objects]))]
    sides = []
    for entries in (objects, detections):
        annotations: list[dict[str, Any]] = []
        for image, entry in enumerate(entries):
            boxes = np.concatenate([entry.boxes[:, :2], np.maximum(entry.boxes[:, 2:] - entry.boxes[:, :2], 0)], 1)
            areas = getattr(entry, "areas", None)
            areas = boxes[:, 2] * boxes[:, 3] if areas is None else areas
            for i, (box, area, label) in enumerate(zip(boxes.tolist(), areas.tolist(), entry.classes, strict=True)):
                extra = {"iscrowd": int(entry.ignored[i])} if entries is objects else {"score": float(entry.scores[i])}
                annotations.append({
                    "id": len(annotations) + 1, "image_id": image, "category_id": int(label), "bbox": box, "area": area,
                    **extra,
                })  # fmt: skip
        side = COCO()
        side.dataset = {"images": images, "categories": categories, "annotations": annotations}
        sides.append(side)
    with contextlib.redirect_stdout(io.StringIO()):
        for side in sides:
            side.createIndex()
        evaluation = COCOeval(*sides, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = np.where(evaluation.stats < 0, np.nan, evaluation.stats)
    return dict(zip(COCO_NAMES, values.tolist(), strict=True))


def pycocotools() -> tuple[type, type]:
    """The classes COCO and COCOeval of pycocotools; ImportError if it is not installed."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError("coco_ap needs pycocotools: pip install pycocotools") from error
    return COCO, COCOeval


def size_split_ap(
    detections: Sequence[Detections], objects: Sequence[Objects], heights: Mapping[str, tuple[float, float]]
) -> dict[str, wider_face.Curve]:
    """Average precision at an IoU of 0.5 by WIDER FACE's protocol for several ranges of the faces' heights.

    All other faces are ignored: detections of them are neither right nor false. A detection of no face is false in
    every range. Classes are not used.

    Args:
      detections, objects: one entry per image, in the same order.
      heights: name -> (lowest height y2 - y1 that counts, lowest one above that doesn't), such as (0, inf).

    Returns:
      name -> curve; `.ap` is NaN where no face has that height.
    """
    _check_images(detections, objects)
    true = [_extents(o.boxes) for o in objects]
    found = [np.column_stack([_extents(d.boxes), d.scores]) for d in detections]
    subsets = {
        name: [(t[:, 3] >= low) & (t[:, 3] < high) & ~o.ignored for t, o in zip(true, objects, strict=True)]
        for name, (low, high) in heights.items()
    }
    return wider_face.evaluate(found, true, subsets)


def precision_recall(
    detections: Sequence[Detections], objects: Sequence[Objects], score: float, threshold: float = 0.5
) -> tuple[float, float]:
    """Precision and recall over all classes of the detections whose score is at least `score`.

    The rules are those of `voc_ap`, with continuous boxes and an IoU of at least the threshold. NaN where there is
    nothing to divide by.
    """
    match = _match(detections, objects, threshold, strict=False, plus=0.0)
    kept = match.scores >= score
    right, false = np.sum(match.right & kept), np.sum(match.false & kept)
    return float(right / ((right + false) or np.nan)), float(right / (np.sum(~match.ignored) or np.nan))


def landmark_error(
    detections: Sequence[Detections], objects: Sequence[Objects], *, threshold: float = 0.5, limit: float = 0.1
) -> LandmarkResult:
    """Normalised mean error of the landmarks of detected faces, as RetinaFace's on AFLW.

    The best detection of each face counts, by the rules of `precision_recall`. Faces without a detection have no error:
    report how many there are.

    Args:
      detections, objects: one entry per image, in the same order, all with as many points.
      threshold: lowest IoU.
      limit: largest error that is no failure.

    Returns:
      NaN for error and failure rate if no face is detected.
    """
    match = _match(detections, objects, threshold, strict=False, plus=0.0)
    if any(entry.points is None for entry in (*detections, *objects)):
        raise ValueError("landmark_error: an image has no points, expected them for all detections and objects")
    points, true = (np.concatenate([e.points for e in entries]) for entries in (detections, objects))
    found, faces = match.right, int(np.sum(~match.ignored))
    if not found.any():
        return LandmarkResult(float("nan"), float("nan"), np.zeros(0), faces)
    true, boxes = true[match.taken[found]], np.concatenate([o.boxes for o in objects])[match.taken[found]]
    errors = landmarks.normalized_mean_error(points[found], true, landmarks.face_sizes(true, "box", boxes))
    return LandmarkResult(float(errors.mean()), landmarks.failure_rate(errors, limit), errors, faces)


class _Match(NamedTuple):
    """Detections and objects of all images, in order: M detections, K objects."""

    scores: np.ndarray  # [M]
    classes: np.ndarray  # [M]
    taken: np.ndarray  # [M] object of highest IoU in the same image and class, -1 if the IoU is too low
    right: np.ndarray  # [M] bool: the best detection of an object that counts
    false: np.ndarray  # [M] bool: neither right nor on an ignored object
    true_classes: np.ndarray  # [K]
    ignored: np.ndarray  # [K] bool


def _match(
    detections: Sequence[Detections], objects: Sequence[Objects], threshold: float, *, strict: bool, plus: float
) -> _Match:
    _check_images(detections, objects)
    boxes, scores, classes = (
        np.concatenate([getattr(d, n) for d in detections]) for n in ("boxes", "scores", "classes")
    )
    true, true_classes, ignored = (
        np.concatenate([getattr(o, n) for o in objects]) for n in ("boxes", "classes", "ignored")
    )
    image, owner = (np.repeat(np.arange(len(e)), [len(i.boxes) for i in e]) for e in (detections, objects))
    labels, codes = np.unique(np.concatenate([classes, true_classes]), return_inverse=True)
    group, true_group = image * len(labels) + codes[: len(boxes)], owner * len(labels) + codes[len(boxes) :]
    order, true_order = np.lexsort((-scores, group)), np.argsort(true_group, kind="stable")
    rows, iou = wider_face.best_boxes(boxes[order], group[order], true[true_order], true_group[true_order], plus)
    hit = iou > threshold if strict else iou >= threshold
    best = np.append(true_order, -1)[np.where(hit, rows, -1)]
    first = np.zeros(len(best), bool)
    first[np.unique(best, return_index=True)[1]] = True
    taken, right = np.empty_like(best), np.empty_like(first)
    taken[order] = best
    right[order] = first
    counts = ~np.append(ignored, False)[taken]
    right &= (taken >= 0) & counts
    return _Match(scores, classes, taken, right, counts & ~right, true_classes, ignored)


def _extents(boxes: np.ndarray) -> np.ndarray:
    """(x1, y1, x2, y2) to (x, y, width, height)."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def _check_images(detections: Sequence[Detections], objects: Sequence[Objects]) -> None:
    if len(detections) != len(objects) or not objects:
        raise ValueError(f"{len(detections)} images of detections and {len(objects)} of objects, expected one or more")


def _settle(entry: Detections | Objects, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Replaces the fields by arrays of these shapes and fills in the classes and what is ignored."""
    for name, shape in shapes.items():
        value: ArrayLike | None = getattr(entry, name)
        if value is None:
            if name not in ("classes", "ignored"):
                continue
            value = np.zeros(shape, int)
        kind = {"classes": np.int64, "ignored": bool}.get(name, np.float64)
        array = np.asarray(value)
        if len(array.shape) != len(shape) or any(w not in (n, None) for n, w in zip(array.shape, shape, strict=True)):
            wanted = ", ".join("P" if n is None else str(n) for n in shape)
            raise ValueError(f"{type(entry).__name__}: {name} {array.shape}, expected [{wanted}]")
        if not np.isfinite(array).all():
            raise ValueError(f"{type(entry).__name__}: {name} has a value that is not finite")
        object.__setattr__(entry, name, array.astype(kind))
