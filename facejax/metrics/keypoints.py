"""Body keypoints by the official protocols: COCO's object keypoint similarity (OKS) and average precision, OKS-NMS and
rescoring of detections, and MPII's PCKh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

COCO_SIGMAS = np.array(
    [0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89]
) / 10  # fmt: skip
"""Annotators' standard deviation as a fraction of sqrt(area): nose, eyes, ears, shoulders, elbows, wrists, hips,
knees, ankles."""

OKS_LEVELS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0, 1, 101)
AREAS = {"": (0.0, 1e10), "_medium": (32.0**2, 96.0**2), "_large": (96.0**2, 1e10)}
MOST_PEOPLE = 20

MPII_JOINTS = {
    "head": (9,), "shoulder": (12, 13), "elbow": (11, 14), "wrist": (10, 15), "hip": (2, 3), "knee": (1, 4),
    "ankle": (0, 5),
}  # fmt: skip
"""Indices of MPII's 16 joints; the head is its top. The neck, index 8, is in the means only."""
MPII_EXCLUDED = (6, 7)
"""Pelvis and thorax, which no mean includes."""


@dataclasses.dataclass(frozen=True)
class People:
    """Annotated people of one image.

    Attributes:
      points: [G, K, 2] (x, y) in pixels.
      labelled: [G, K] bool.
      areas: [G] areas of the segments, square pixels.
      boxes: [G, 4] (x, y, width, height).
      crowd: [G] bool, crowd regions, which are ignored.
    """

    points: np.ndarray
    labelled: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray


@dataclasses.dataclass(frozen=True)
class Detections:
    """Detected people of one image: points [D, K, 2] in pixels and scores [D]."""

    points: np.ndarray
    scores: np.ndarray


def object_keypoint_similarity(predicted: ArrayLike, people: People, sigmas: np.ndarray = COCO_SIGMAS) -> np.ndarray:
    """Mean over labelled keypoints of exp(-d^2 / (2 area (2 sigma)^2)).

    For a person without labelled keypoints, d is the distance of each keypoint to a box three times the person's size,
    as in COCO's code; the metrics ignore such people.

    Args:
      predicted: [D, K, 2].
      people: annotations of the same image.
      sigmas: [K].

    Returns:
      [D, G], in 0..1.
    """
    predicted = np.asarray(predicted, np.float64)
    if predicted.ndim != 3 or predicted.shape[1:] != (len(sigmas), 2) or people.points.shape[1:] != (len(sigmas), 2):
        raise ValueError(
            f"object_keypoint_similarity: predicted {predicted.shape} and people {people.points.shape}, "
            f"expected [D, {len(sigmas)}, 2] and [G, {len(sigmas)}, 2]"
        )
    corner, extent = people.boxes[:, None, :2], people.boxes[:, None, 2:]
    outside = np.maximum(0, corner - extent - predicted[:, None]) + np.maximum(
        0, predicted[:, None] - corner - 2 * extent
    )
    any_labelled = people.labelled.any(1)
    offsets = np.where(any_labelled[:, None, None], predicted[:, None] - people.points, outside)
    variance = (2 * sigmas) ** 2 * (people.areas[:, None] + np.spacing(1))
    similarity = np.exp(-(offsets**2).sum(-1) / variance / 2)
    counted = people.labelled | ~any_labelled[:, None]
    return (similarity * counted).sum(-1) / counted.sum(-1)


def coco_keypoint_ap(
    detections: Sequence[Detections], people: Sequence[People], sigmas: np.ndarray = COCO_SIGMAS
) -> dict[str, float]:
    """COCO's average precision and recall of detected people, at most 20 per image.

    Args:
      detections, people: one entry per image, in the same order; an image may have none.
      sigmas: [K].

    Returns:
      "ap" (the mean over OKS 0.50 to 0.95), "ap50", "ap75", "ap_medium", "ap_large", and the same for "ar"; NaN where
      no person has that size (COCO's code prints -1).
    """
    if len(detections) != len(people):
        raise ValueError(f"coco_keypoint_ap: {len(detections)} images of detections and {len(people)} of people")
    images = []
    for found, true in zip(detections, people, strict=True):
        order = np.argsort(-found.scores, kind="stable")[:MOST_PEOPLE]
        found = Detections(np.asarray(found.points, np.float64)[order], found.scores[order])
        images.append((found, true, object_keypoint_similarity(found.points, true, sigmas)))
    results = {}
    for name, limits in AREAS.items():
        precision, recall = _precision_recall([_match(*image, limits) for image in images])
        results |= {f"ap{name}": precision.mean(), f"ar{name}": recall.mean()}
        if not name:
            results |= {f"ap{round(100 * OKS_LEVELS[i])}": precision[i].mean() for i in (0, 5)}
            results |= {f"ar{round(100 * OKS_LEVELS[i])}": recall[i] for i in (0, 5)}
    return {name: float(value) for name, value in results.items()}


@dataclasses.dataclass(frozen=True)
class _Matched:
    scores: np.ndarray  # [D], descending
    hit: np.ndarray  # [T, D] bool: matched to a person
    ignored: np.ndarray  # [T, D] bool: neither true nor false positive
    truths: int  # people that are not ignored


def _match(found: Detections, true: People, similarity: np.ndarray, limits: tuple[float, float]) -> _Matched:
    """Matches each detection, best first, to the most similar free person; ignored people match last."""
    low, high = limits
    skipped = true.crowd | ~true.labelled.any(1) | (true.areas < low) | (true.areas > high)
    order = np.argsort(skipped, kind="stable")
    areas = np.ptp(found.points, axis=1).prod(-1)
    hit = np.zeros((len(OKS_LEVELS), len(found.scores)), bool)
    ignored = np.broadcast_to((areas < low) | (areas > high), hit.shape).copy()
    for t, level in enumerate(OKS_LEVELS):
        taken = np.zeros(len(skipped), bool)
        for d in range(len(found.scores)):
            best, chosen = min(level, 1 - 1e-10), -1
            for g in order:
                if taken[g] and not true.crowd[g]:
                    continue
                if chosen >= 0 and not skipped[chosen] and skipped[g]:
                    break
                if similarity[d, g] >= best:
                    best, chosen = similarity[d, g], g
            if chosen >= 0:
                taken[chosen] = hit[t, d] = True
                ignored[t, d] = skipped[chosen]
    return _Matched(found.scores, hit, ignored, int((~skipped).sum()))


def _precision_recall(images: Sequence[_Matched]) -> tuple[np.ndarray, np.ndarray]:
    """Precision [T, 101] at the recall levels, and the highest recall [T]; NaN without people."""
    total = sum(p.truths for p in images)
    if not total:
        return np.full((len(OKS_LEVELS), len(RECALL_LEVELS)), np.nan), np.full(len(OKS_LEVELS), np.nan)
    order = np.argsort(-np.concatenate([p.scores for p in images]), kind="stable")
    hit, ignored = (np.concatenate([getattr(p, n) for p in images], 1)[:, order] for n in ("hit", "ignored"))
    true, false = (np.cumsum(kind & ~ignored, 1) for kind in (hit, ~hit))
    recall, precision = true / total, true / (true + false + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    padded = np.concatenate([precision, np.zeros((len(precision), 1))], 1)
    reached = [np.searchsorted(r, RECALL_LEVELS, side="left") for r in recall]
    sampled = np.stack([p[places] for p, places in zip(padded, reached, strict=True)])
    return sampled, recall[:, -1] if recall.shape[1] else np.zeros(len(OKS_LEVELS))


def rescored(box_scores: ArrayLike, joint_scores: ArrayLike, threshold: float = 0.2) -> np.ndarray:
    """Rescored detections: box score [D] times the mean of the joint scores [D, K] above the threshold, else 0."""
    joint_scores = np.asarray(joint_scores, np.float64)
    sure = joint_scores > threshold
    return np.asarray(box_scores) * np.sum(joint_scores * sure, 1) / np.maximum(sure.sum(1), 1)


def oks_nms(
    points: ArrayLike, scores: ArrayLike, areas: ArrayLike, threshold: float = 0.9, sigmas: np.ndarray = COCO_SIGMAS
) -> np.ndarray:
    """OKS-NMS: repeatedly keeps the best detection and drops those whose similarity to it exceeds the threshold.

    The similarity covers all keypoints and uses the mean of the two areas.

    Args:
      points: [D, K, 2].
      scores: [D].
      areas: [D], of the boxes that the network's input was cropped from (HRNet's code).

    Returns:
      Indices of the detections kept, best first.
    """
    points, areas = np.asarray(points, np.float64), np.asarray(areas, np.float64)
    order, kept = np.argsort(-np.asarray(scores), kind="stable"), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        area = (areas[best] + areas[order]) / 2 + np.spacing(1)
        distance = ((points[order] - points[best]) ** 2).sum(-1)
        similarity = np.exp(-distance / ((2 * sigmas) ** 2 * area[:, None]) / 2).mean(1)
        order = order[similarity <= threshold]
    return np.array(kept, int)


def head_sizes(boxes: ArrayLike) -> np.ndarray:
    """MPII's head size: 0.6 times the diagonal of the head's box. [N, 4] (x1, y1, x2, y2) -> [N]."""
    boxes = np.asarray(boxes, np.float64)
    return 0.6 * np.linalg.norm(boxes[:, 2:] - boxes[:, :2], axis=1)


def pckh(
    predicted: ArrayLike,
    truth: ArrayLike,
    visible: ArrayLike,
    sizes: ArrayLike,
    groups: Mapping[str, Sequence[int]] = MPII_JOINTS,
    excluded: Sequence[int] = MPII_EXCLUDED,
) -> dict[str, float]:
    """Percentage of keypoints within half a head size, MPII's official measure.

    Args:
      predicted, truth: [N, K, 2].
      visible: [N, K] bool, annotated joints.
      sizes: [N], from `head_sizes`.
      groups: name -> indices of the joints whose percentages are averaged.
      excluded: joints left out of the means, which weight every other joint by its number of visible occurrences.

    Returns:
      Percentages of the groups, "mean", and "mean@0.1", which is computed at 0.11 head sizes because the commonly used
      evaluation code has this error. NaN for a group that is never visible.
    """
    predicted, truth, visible = np.asarray(predicted, float), np.asarray(truth, float), np.asarray(visible, bool)
    sizes = np.asarray(sizes, float)
    if predicted.shape != truth.shape or visible.shape != truth.shape[:2] or sizes.shape != truth.shape[:1]:
        raise ValueError(
            f"pckh: predicted {predicted.shape}, truth {truth.shape}, visible {visible.shape} and sizes {sizes.shape}, "
            "expected [N, K, 2] twice, [N, K] and [N]"
        )
    errors = np.linalg.norm(predicted - truth, axis=-1) / sizes[:, None]
    seen = visible.sum(0)
    counted = np.setdiff1d(np.arange(truth.shape[1]), excluded)

    def percentage(level: float) -> np.ndarray:
        return 100 * ((errors <= level) & visible).sum(0) / np.where(seen, seen, np.nan)

    def mean(level: float) -> float:
        return float(np.nansum((percentage(level) * seen)[counted]) / seen[counted].sum())

    half = percentage(0.5)
    found = {name: float(half[list(joints)].mean()) for name, joints in groups.items()}
    return {**found, "mean": mean(0.5), "mean@0.1": mean(0.11)}
