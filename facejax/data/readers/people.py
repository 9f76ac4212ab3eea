"""Persons with annotated keypoints: COCO's files, and MPII's as HRNet's authors distribute them."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from facejax.data.decoding import ImageFile
from facejax.data.readers.boxes import inside
from facejax.formats import matfile, texts

PERSON = 1
"""COCO's category id of persons."""
COCO_KEYPOINTS = 17


@dataclasses.dataclass(frozen=True)
class Person:
    """A person in an image: region and keypoints.

    Attributes:
      picture: path of the image.
      image_id: id of the image.
      centre, size: (x, y) and (width, height) of the region around the person, in pixels.
      points: [K, 2] (x, y) in pixels; integers are pixel centres.
      visible: [K] bool, annotated points.
      score: score of the detected box; 1 for an annotated box.
    """

    picture: pathlib.Path
    image_id: int
    centre: tuple[float, float]
    size: tuple[float, float]
    points: np.ndarray
    visible: np.ndarray
    score: float = 1.0


class PeopleSource:
    """`people` as examples: the fields of `Person`, with the encoded image under "image"."""

    def __init__(self, people: Sequence[Person]):
        self.people = people

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> dict[str, Any]:
        person = self.people[index]
        fields = {f.name: getattr(person, f.name) for f in dataclasses.fields(person) if f.name != "picture"}
        return {"image": ImageFile.read(person.picture), **fields}


class CocoPeople:
    """COCO's person_keypoints_*.json, or a file of its format for another category with keypoints.

    The first category that names its keypoints is read; in a file without one, persons.

    Args:
      annotations: the file.
      pictures: folder of its images.

    Attributes:
      image_ids: ids of all images.
      names: names of the keypoints; empty where the file has none.
      skeleton: pairs of keypoints, from 0, that a line connects.
      joints: K, keypoints of a person.

    Raises:
      ValueError: not a COCO file.
    """

    def __init__(self, annotations: str | pathlib.Path, pictures: str | pathlib.Path):
        found = texts.read_json(annotations, dict)
        missing = {"images", "annotations"} - set(found)
        if missing:
            raise ValueError(f"{annotations}: no {' and no '.join(sorted(missing))}, expected a COCO file")
        with _place(f"{annotations}, categories"):
            named = next((c for c in found.get("categories", ()) if "keypoints" in c), {})
            self._category = int(named.get("id", PERSON))
            self.names = tuple(map(str, named.get("keypoints", ())))
            self.skeleton = tuple((int(a) - 1, int(b) - 1) for a, b in named.get("skeleton", ()))
        self._images: dict[int, tuple[pathlib.Path, float, float]] = {}
        for number, entry in enumerate(_list(found["images"], annotations)):
            with _place(f"{annotations}, image {number}"):
                picture = inside(pictures, entry["file_name"], "file_name")
                self._images[int(entry["id"])] = picture, float(entry["width"]), float(entry["height"])
        self._people: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for number, entry in enumerate(_list(found["annotations"], annotations)):
            with _place(f"{annotations}, annotation {number}"):
                if entry.get("category_id") == self._category:
                    self._people[int(entry["image_id"])].append(_checked(entry))
        lengths = {len(entry["keypoints"]) for people in self._people.values() for entry in people}
        if len(lengths) > 1:
            raise ValueError(f"{annotations}: persons of {sorted(lengths)} numbers of keypoints, expected as many each")
        self.joints = lengths.pop() // 3 if lengths else len(self.names) or COCO_KEYPOINTS
        if len(self.names) not in (0, self.joints):
            raise ValueError(f"{annotations}: {len(self.names)} names of {self.joints} keypoints, expected as many")
        self.image_ids = sorted(self._images)

    def people(self) -> list[Person]:
        """Persons with at least one annotated keypoint; boxes are clipped to the image."""
        found = []
        for image_id in self.image_ids:
            for entry in self._people[image_id]:
                points = entry["keypoints"].reshape(-1, 3)
                box = _inside(entry["bbox"], self._images[image_id])
                if entry["area"] > 0 and box is not None and points.any():
                    found.append(self._person(image_id, box, points[:, :2], points[:, 2] > 0, 1.0))
        return found

    def detected(self, detections: str | pathlib.Path) -> list[Person]:
        """Persons at the boxes of a COCO result file, without keypoints.

        Args:
          detections: the file, a list of {"image_id", "category_id", "bbox", "score"}.

        Raises:
          ValueError: not a result file, or an image id is unknown.
        """
        nothing = np.zeros((self.joints, 2)), np.zeros(self.joints, bool)
        found = []
        for number, entry in enumerate(texts.read_json(detections, list)):
            with _place(f"{detections}, detection {number}"):
                if entry["category_id"] == self._category:
                    box, score = _numbers(entry["bbox"], (4,)), float(_numbers(entry["score"], ()))
                    found.append(self._person(entry["image_id"], box, *nothing, score))
        return found

    def truth(self, image_id: int) -> dict[str, np.ndarray]:
        """Ground truth of one image for `facejax.metrics.keypoints.People`."""
        entries = self._people[image_id]
        points = np.reshape([e["keypoints"] for e in entries], (len(entries), self.joints, 3)).astype(float)
        return {
            "points": points[..., :2],
            "labelled": points[..., 2] > 0,
            "areas": np.array([e["area"] for e in entries], float),
            "boxes": np.reshape([e["bbox"] for e in entries], (-1, 4)).astype(float),
            "crowd": np.array([e.get("iscrowd", 0) for e in entries], bool),
        }

    def _person(self, image_id: int, box: Sequence[float], points: Any, visible: Any, score: float) -> Person:
        if image_id not in self._images:
            raise ValueError(
                f"person in unknown image {image_id}: expected one of the {len(self._images)} annotated images"
            )
        x, y, width, height = map(float, box)
        file = self._images[image_id][0]
        return Person(file, image_id, (x + width / 2, y + height / 2), (width, height), points, visible, score)


def read_mpii(annotations: str | pathlib.Path, pictures: str | pathlib.Path) -> list[Person]:
    """MPII's persons from a train.json or valid.json of HRNet's authors.

    As in their code, the region has a side of 200 pixels times the annotated scale and moves down by 15 pixels times
    the scale, so that it includes the limbs. MATLAB's coordinates from 1 become coordinates from 0.
    """
    folder, found = pathlib.Path(pictures), []
    for number, entry in enumerate(texts.read_json(annotations, list)):
        with _place(f"{annotations}, person {number}"):
            (x, y), scale = _numbers(entry["center"], (2,)).tolist(), float(_numbers(entry["scale"], ()))
            points, side = _numbers(entry["joints"], (None, 2)) - 1, 200 * scale
            visible = _numbers(entry["joints_vis"], (len(points),)) > 0
            centre = x - 1, y + 15 * scale - 1
            picture = inside(folder, entry["image"], "image")
            found.append(Person(picture, number, centre, (side, side), points, visible))
    return found


def read_mpii_truth(file: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The ground truth of PCKh, from a gt_valid.mat of HRNet's authors.

    Returns:
      "points" [N, 16, 2], integers at pixel centres; "visible" [N, 16] bool; "heads" [N, 4] (x1, y1, x2, y2).
    """
    names = ("pos_gt_src", "jnt_missing", "headboxes_src")
    points, missing, heads = matfile.numbers(file, names).values()
    count = points.shape[-1]
    shapes = points.shape[1:], missing.shape, heads.shape
    if shapes != ((2, count), (len(points), count), (2, 2, count)):
        raise ValueError(f"{file}: {', '.join(names)} of {points.shape}, {shapes[1]}, {shapes[2]}: expected "
                         "[K, 2, N], [K, N] and [2, 2, N]")  # fmt: skip
    return {
        "points": points.transpose(2, 0, 1) - 1.0,
        "visible": missing.T == 0,
        "heads": heads.transpose(2, 0, 1).reshape(-1, 4),
    }


@contextlib.contextmanager
def _place(where: str) -> Iterator[None]:
    """Errors of a damaged entry begin with its place."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{where}: {reason}") from error


def _list(value: Any, file: str | pathlib.Path) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{file}: images or annotations are no list, expected a COCO file")
    return value


def _numbers(value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Finite float64 numbers of a shape; None stands for any length."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.full((), np.nan)
    fits = array.ndim == len(shape) and all(want in (None, have) for have, want in zip(array.shape, shape, strict=True))
    if not fits or not np.isfinite(array).all():
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{str(value)[:80]}: expected finite numbers [{expected}]")
    return array


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """The fields of an annotated person, as numbers."""
    keypoints = _numbers(entry["keypoints"], (None,))
    if len(keypoints) % 3:
        raise ValueError(f"{len(keypoints)} numbers of keypoints: expected three of each")
    crowd = bool(_numbers(entry.get("iscrowd", 0), ()))
    box, area = _numbers(entry["bbox"], (4,)).tolist(), float(_numbers(entry["area"], ()))
    return {"keypoints": keypoints, "bbox": box, "area": area, "iscrowd": crowd}


def _inside(box: Sequence[float], image: tuple[pathlib.Path, float, float]) -> tuple[float, ...] | None:
    """The box clipped to the image as in HRNet's code, or None if it is empty."""
    x, y, width, height = box
    left, top = max(0, x), max(0, y)
    right = min(image[1] - 1, left + max(0, width - 1))
    bottom = min(image[2] - 1, top + max(0, height - 1))
    return (left, top, right - left, bottom - top) if right >= left and bottom >= top else None
