"""WIDER FACE's official average precision: `python -m facejax.metrics.wider_face PREDICTIONS --truth FOLDER`.

PREDICTIONS holds event/image.txt with the image's name, the number of detections and a line x, y, width, height, score
for each. FOLDER holds wider_face_val.mat and wider_{easy,medium,hard}_val.mat of the official evaluation tools.

Scores are normalised to 0..1 over the whole set. In each image a detection takes the box of highest IoU (pixel-index
convention: a box is one pixel wider and higher than its width and height); the first one to take a counted box with
IoU of at least 0.5 is right and later ones are false. A detection on a box that doesn't count is neither. An image
without boxes brings no false detections. Precision and recall are taken at 1000 score thresholds.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from facejax.formats import matfile

SUBSETS = ("easy", "medium", "hard")
THRESHOLDS = 1 - np.arange(1, 1001) / 1000
BLOCK_ELEMENTS = 2**22


class Curve(NamedTuple):
    """Result of `evaluate` on one subset.

    Attributes:
      precision, recall: [1000] at normalised scores of at least 0.999, 0.998, ..., 0; precision is 0 where nothing is
        detected.
      ap: all-point average precision.
    """

    precision: np.ndarray
    recall: np.ndarray
    ap: float


class Truth(NamedTuple):
    """Annotations of the validation set.

    Attributes:
      names: "event/image" of each image, without extension.
      boxes: per image [G, 4] (x, y, width, height).
      subsets: "easy", "medium", "hard" -> per image [G] bool, the boxes that count.
    """

    names: list[str]
    boxes: list[np.ndarray]
    subsets: dict[str, list[np.ndarray]]


def evaluate(
    detections: Sequence[ArrayLike],
    boxes: Sequence[ArrayLike],
    subsets: Mapping[str, Sequence[ArrayLike]],
    threshold: float = 0.5,
) -> dict[str, Curve]:
    """Precision, recall and average precision on several subsets of the boxes.

    Args:
      detections: per image [D, 5] (x, y, width, height, score) in any order; of equal scores the first ranks higher.
      boxes: per image [G, 4] (x, y, width, height), all that are annotated.
      subsets: name -> per image the boxes that count, [G] bool or indices from 0. The others are ignored.
      threshold: lowest IoU of a match.

    Returns:
      name -> curve; recall and AP are NaN where no box counts. Detections whose scores are all equal have no normalised
      score: as officially, none of them counts, with a warning.

    Raises:
      ValueError: a wrong shape, a value that is not finite, or an index out of range.
    """
    if len(detections) != len(boxes):
        raise ValueError(f"evaluate: {len(detections)} images of detections and {len(boxes)} of boxes")
    if not 0 < threshold <= 1:
        raise ValueError(f"evaluate: threshold {threshold}, expected a number above 0 and at most 1")
    found, image_of = _flat(detections, 5, "detections")
    true, owner = _flat(boxes, 4, "boxes")
    found = found[np.lexsort((-found[:, 4], image_of))]
    taken, iou = best_boxes(_corners(found), image_of, _corners(true), owner)
    taken[iou < threshold] = -1
    sizes = np.bincount(owner, minlength=len(boxes))
    compared = sizes[image_of] > 0
    first = np.zeros(len(taken), bool)
    first[np.unique(taken, return_index=True)[1]] = True
    first &= taken >= 0
    scores = _normalized(found[:, 4])
    curves = {}
    for name, chosen in subsets.items():
        counted = _mask(name, chosen, sizes)
        relevant = np.append(counted, True)[taken]
        proposed = _at_least(scores[relevant & compared])
        recalled = _at_least(scores[first & relevant])
        precision = recalled / np.maximum(proposed, 1)
        recall = recalled / (counted.sum() or np.nan)
        curves[name] = Curve(precision, recall, average_precision(precision, recall))
    return curves


def average_precision(precision: ArrayLike, recall: ArrayLike) -> float:
    """All-point average precision of PASCAL VOC 2010 and later: the area under the monotone envelope.

    Args:
      precision, recall: [P] at falling thresholds, so that the recall does not fall.
    """
    recall = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([precision, [0.0]])[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope))


def _flat(arrays: Sequence[ArrayLike], columns: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Joins per-image arrays [N, columns] to float64 rows [M, columns] and the image [M] of each row."""
    parts = [np.asarray(a, np.float64) for a in arrays]
    for image, part in enumerate(parts):
        if part.size and (part.ndim != 2 or part.shape[1] != columns):
            raise ValueError(f"{name} of image {image}: shape {part.shape}, expected [N, {columns}]")
    rows = np.concatenate([np.zeros((0, columns)), *(p.reshape(-1, columns) for p in parts)])
    image_of = np.repeat(np.arange(len(parts)), [p.size // columns for p in parts])
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        raise ValueError(f"{name} of image {image_of[np.argmin(finite)]}: expected finite numbers only")
    return rows, image_of


def best_boxes(
    found: np.ndarray, image_of: np.ndarray, true: np.ndarray, owner: np.ndarray, plus: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the box of highest IoU in the same image, the first of equals.

    Args:
      found: [M, 4] (x1, y1, x2, y2); image_of: [M] image of each, not falling.
      true: [K, 4]; owner: [K] image of each, not falling.
      plus: added to each width and height: 1 in the pixel-index convention, 0 for continuous boxes.

    Returns:
      (row in `true` [M], IoU [M]); -1 and 0 in an image without boxes.
    """
    (x1, y1, x2, y2), (u1, v1, u2, v2) = np.ascontiguousarray(found.T), np.ascontiguousarray(true.T)
    areas, true_areas = (x2 - x1 + plus) * (y2 - y1 + plus), (u2 - u1 + plus) * (v2 - v1 + plus)
    images = np.intersect1d(image_of, owner)
    edges = [np.searchsorted(of, images, side).tolist() for of in (image_of, owner) for side in ("left", "right")]
    best, highest = np.full(len(found), -1), np.zeros(len(found))
    for start, stop, low, high in zip(*edges, strict=True):
        g, step = slice(low, high), max(1, BLOCK_ELEMENTS // (high - low))
        for begin in range(start, stop, step):
            d = slice(begin, min(begin + step, stop))
            width = np.minimum(x2[d, None], u2[g]) - np.maximum(x1[d, None], u1[g]) + plus
            height = np.minimum(y2[d, None], v2[g]) - np.maximum(y1[d, None], v1[g]) + plus
            overlap = np.maximum(width, 0) * np.maximum(height, 0)
            iou = overlap / np.where(overlap > 0, areas[d, None] + true_areas[g] - overlap, 1)
            chosen = iou.argmax(1)
            best[d], highest[d] = low + chosen, iou[np.arange(len(chosen)), chosen]
    return best, highest


def _corners(rows: np.ndarray) -> np.ndarray:
    """(x, y, width, height, ...) to (x1, y1, x2, y2)."""
    return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)


def _normalized(scores: np.ndarray) -> np.ndarray:
    """Scores shifted and scaled to 0..1; NaN if all are equal."""
    low, high = scores.min(initial=np.inf), scores.max(initial=-np.inf)
    if low == high:
        warnings.warn(f"all scores are {low:g}: they have no normalised score and no detection counts", stacklevel=3)
        return np.full_like(scores, np.nan)
    return (scores - low) / (high - low)


def _at_least(scores: np.ndarray) -> np.ndarray:
    """Number of scores at or above each threshold; a NaN is below all."""
    scores = np.sort(scores[~np.isnan(scores)])
    return len(scores) - np.searchsorted(scores, THRESHOLDS, side="left")


def _mask(name: str, chosen: Sequence[ArrayLike], sizes: np.ndarray) -> np.ndarray:
    """Joins masks or indices per image to one mask over all boxes."""
    if len(chosen) != len(sizes):
        raise ValueError(f"subset {name}: {len(chosen)} images, expected {len(sizes)}")
    counted = np.zeros(sizes.sum(), bool)
    for image, (entry, end, size) in enumerate(zip(map(np.asarray, chosen), np.cumsum(sizes), sizes, strict=True)):
        if not entry.size:
            continue
        is_mask = entry.dtype == bool and entry.shape == (size,)
        if not is_mask and (entry.dtype.kind not in "iu" or entry.min() < 0 or entry.max() >= size):
            raise ValueError(f"subset {name}, image {image}: expected [{size}] bool or indices below {size}")
        counted[end - size : end][entry] = True
    return counted


def read_truth(folder: str | pathlib.Path) -> Truth:
    """Reads the four .mat files of the official evaluation tools.

    Raises:
      ValueError: names the file that is missing, damaged or doesn't fit the others.
    """
    folder = pathlib.Path(folder)
    path = folder / "wider_face_val.mat"
    try:
        content = matfile.variables(path, ("event_list", "file_list", "face_bbx_list"))
        events = [str(event[0]) for event in content["event_list"][:, 0]]
        sizes, files = _cells(content["file_list"])
        names = [f"{event}/{file[0]}" for event, file in zip(np.repeat(events, sizes), files, strict=True)]
        subsets, (own_sizes, boxes) = {}, _cells(content["face_bbx_list"])
        if own_sizes != sizes or any(b.ndim != 2 or b.shape[1] != 4 for b in boxes):
            raise ValueError("the images of file_list and face_bbx_list differ, or a box hasn't four numbers")
        for subset in SUBSETS:
            path = folder / f"wider_{subset}_val.mat"
            own_sizes, chosen = _cells(matfile.variables(path, ("gt_list",))["gt_list"])
            if own_sizes != sizes:
                raise ValueError("the images of gt_list are not those of wider_face_val.mat")
            subsets[subset] = [np.isin(np.arange(1, len(b) + 1), i) for b, i in zip(boxes, chosen, strict=True)]
            if [mask.sum() for mask in subsets[subset]] != [i.size for i in chosen]:
                raise ValueError("gt_list has numbers that are no box of their image")
    except Exception as error:  # another structure raises various exceptions
        raise ValueError(f"{path}: not the ground truth of WIDER FACE's evaluation tools: {error}") from error
    return Truth(names, [b.astype(np.float64) for b in boxes], subsets)


def _cells(cells: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """Numbers of images of the events of a nested cell array, and the entries of all images."""
    return [len(event) for event in cells[:, 0]], [entry for event in cells[:, 0] for entry in event[:, 0]]


def read_predictions(path: str | pathlib.Path) -> np.ndarray:
    """Reads the detections of one image: its name, their number n, then n lines x, y, width, height, score.

    Returns:
      [n, 5] float64.

    Raises:
      ValueError: names the file and the line.
    """
    path = pathlib.Path(path)
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    if not lines or pathlib.PurePosixPath(lines[0].strip()).name.removesuffix(".jpg") != path.stem:
        raise ValueError(f"{path}, line 1: expected the image's name, {path.stem}")
    number, rows = (lines[1].strip() if len(lines) > 1 else ""), [line.split() for line in lines[2:]]
    if number != str(len(rows)):
        raise ValueError(f"{path}, line 2: {number[:20]!r}, expected the number of lines that follow, {len(rows)}")
    found = np.empty((len(rows), 5))
    for i, row in enumerate(rows):
        try:
            found[i] = row
        except ValueError:
            found[i] = np.nan
        if len(row) != 5 or not np.isfinite(found[i]).all():
            raise ValueError(f"{path}, line {i + 3}: expected five finite numbers: x, y, width, height, score")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates a folder of predictions and prints the three average precisions."""
    parser = argparse.ArgumentParser(prog="python -m facejax.metrics.wider_face", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("predictions", type=pathlib.Path, help="folder with event/image.txt")
    parser.add_argument("--truth", type=pathlib.Path, required=True, help="folder with the four .mat files")
    given = parser.parse_args(arguments)
    try:
        truth = read_truth(given.truth)
        paths = [given.predictions / f"{name}.txt" for name in truth.names]
        missing = [path for path in paths if not path.is_file()]
        if len(missing) == len(paths):
            raise ValueError(f"{given.predictions}: has no {truth.names[0]}.txt nor that of any other image")
        found = [read_predictions(path) if path.is_file() else np.zeros((0, 5)) for path in paths]
        curves = evaluate(found, truth.boxes, truth.subsets)
    except (ValueError, OSError) as error:
        sys.exit(f"facejax.metrics.wider_face: {error}")
    if missing:
        print(f"{len(missing)} of {len(paths)} images count as without detections: there is no {missing[0]}")
    for name, curve in curves.items():
        print(f"{name:6} AP {curve.ap:.6f}")


if __name__ == "__main__":
    main()
