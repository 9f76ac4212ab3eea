"""Photographs in, faces with everything out: a detector, alignment, and networks that look at each face.

`FaceAnalyzer.from_weights(["weights"])("photo.jpg").boxes`, and so on; see `Faces`.
"""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from facejax.analysis import photographs
from facejax.analysis.crops import Aligned, Pixels, Regions, Rule, cut
from facejax.analysis.faces import Faces
from facejax.analysis.stages import NamedDetector, Stage, batches, checksum
from facejax.data import transforms
from facejax.detection.base import Detections
from facejax.predictor import SMALLEST, Picture, Predictor, opened

SLOTS = {
    "recogniser": "embeddings", "landmarks": "landmarks", "pose": "pose", "age": "age", "quality": "quality",
    "mesh": "meshes",
}  # fmt: skip
"""Argument of `FaceAnalyzer` -> attribute of `Faces` that the stage fills."""


TOGETHER = 1 << 26
"""Pixels of the photographs of a list that are looked at together, if they are several."""


class FaceAnalyzer:
    """A photograph, or a list of photographs -> `Faces`, or a list of them.

    Every network is one compiled call for a number of faces of `stages.BATCHES`, and all crops of a call's faces
    another; the faces of all photographs of a list go through them together. A photograph in which the detector finds
    nothing is looked at again at half the size: the face of a close-up may be larger than those it was trained on.

    Args:
      detector: a `Predictor` of one class, or one with its name. If it finds no points, `landmarks` must be a stage:
        the five points are then taken from the 68.
      recogniser, landmarks, pose, age, quality, mesh: stages, or None; one stage may serve several.
      size: side of the square that the detector sees, pixels; None: the `size` of the `Predictor`.
      tiled: photographs with a longer side than this are searched in tiles at their own scale; 0: none.
      max_pixels: larger photographs are refused.

    Raises:
      ValueError: a stage does not fill its place, the detector is none of faces, or a number is out of range.
    """

    def __init__(
        self,
        detector: Predictor | NamedDetector,
        recogniser: Stage | None = None,
        landmarks: Stage | None = None,
        pose: Stage | None = None,
        age: Stage | None = None,
        quality: Stage | None = None,
        mesh: Stage | None = None,
        *,
        size: int | None = None,
        tiled: int = 0,
        max_pixels: int = photographs.MAX_PIXELS,
    ):
        self.detector = detector if isinstance(detector, NamedDetector) else NamedDetector(detector)
        given = dict(zip(SLOTS, (recogniser, landmarks, pose, age, quality, mesh), strict=True))
        self.stages: dict[str, Stage] = {slot: stage for slot, stage in given.items() if stage is not None}
        self.size = self.detector.predict.size if size is None else size
        self.tiled, self.max_pixels = tiled, max_pixels
        for name, value, least in (("size", self.size, SMALLEST), ("tiled", tiled, 0), ("max_pixels", max_pixels, 1)):
            if not isinstance(value, int) or not least <= value <= 1 << 30:
                raise ValueError(f"{name} is {value!r}: expected a whole number of {least} to {1 << 30}")
        self._workers = ThreadPoolExecutor(os.cpu_count())
        self._compiled: set[Any] = set()
        self._locks: dict[Any, threading.Lock] = collections.defaultdict(threading.Lock)
        faces = self.detector.predict.detector
        if faces.classes != 1 or faces.points not in (0, 5):
            raise ValueError(f"{self.detector.name} finds {faces.classes} classes with {faces.points} points: "
                             "expected one class with five or none")  # fmt: skip
        self._points = faces.points == 5
        if not self._points and landmarks is None:
            raise ValueError(f"{self.detector.name} finds no points: expected a stage of landmarks beside it")
        for slot, stage in self.stages.items():
            gives = stage.gives or tuple(stage.shapes)
            if SLOTS[slot] not in gives:
                raise ValueError(f"{slot} is {stage.name}, which gives {', '.join(gives)}: expected {SLOTS[slot]}")

    @classmethod
    def from_weights(
        cls,
        paths: str | os.PathLike[str] | Iterable[Any],
        *,
        demo: bool = False,
        dtype: str = "float32",
        **options: Any,
    ) -> FaceAnalyzer:
        """An analyzer of the published weights in files and folders, found by content (`facejax.analysis.weights`).

        Args:
          paths: one or several; of two files for one place, that of the earlier path is taken.
          demo: small networks of this project take the places that no file fills.
          dtype: in which the networks of the files compute, such as "bfloat16".
          **options: `size`, `tiled` and `max_pixels`.

        Raises:
          ValueError: no detector is among them, or a file fits no network.
        """
        from facejax.analysis import weights

        paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        parts = weights.load(paths, dtype) if paths else {}
        if demo:
            from facejax.analysis import demo as own

            parts = own.parts() | parts
        if "detector" not in parts:
            raise ValueError(f"no detector of faces among the weights in {', '.join(map(str, paths))}: expected one of "
                             f"{', '.join(weights.names('detector'))}")  # fmt: skip
        return cls(**parts, **options)

    @property
    def identity(self) -> dict[str, dict[str, str]]:
        """Stage -> its "name", and "sha256" of its file or else of its variables."""
        used = {"detector": (self.detector, self.detector.predict.variables)}
        used |= {slot: (stage, stage.variables) for slot, stage in self.stages.items()}
        return {
            slot: {"name": part.name, "sha256": part.sha256 or checksum(variables)}
            for slot, (part, variables) in used.items()
        }

    @property
    def settings(self) -> dict[str, int]:
        """What else changes the results."""
        return {"size": self.size, "tiled": self.tiled}

    def __call__(self, photos: Picture | Sequence[Picture]) -> Faces | list[Faces]:
        """The faces of a photograph, or of each photograph of a list.

        Args:
          photos: see `facejax.predictor.opened`; files beyond `max_pixels` are refused before they are decoded.

        Raises:
          ValueError: a photograph is refused.
          OSError: a file cannot be read.
        """
        if not isinstance(photos, (list, tuple)):
            return self([photos])[0]
        found: list[Faces] = []
        for images in self._together(photos):
            found += self._analysed(images)
        return found

    def _together(self, photos: Iterable[Picture]) -> Iterator[list[np.ndarray]]:
        """The opened photographs, as many at once as have `TOGETHER` pixels."""
        part: list[np.ndarray] = []
        for photo in photos:
            image = self._opened(photo)
            if part and sum(image.size for image in [*part, image]) > 3 * TOGETHER:
                yield part
                part = []
            part.append(image)
        if part:
            yield part

    def _analysed(self, images: Sequence[np.ndarray]) -> list[Faces]:
        """The faces of opened photographs, whose pixels are put on the device together."""
        found = list(self._workers.map(self._detected, images))
        sizes = [image.shape[1::-1] for image in images]
        counts = [len(boxes) for boxes, *_ in found]
        boxes, scores, points = (np.concatenate(parts) for parts in zip(*found, strict=True))
        fields: dict[str, np.ndarray] = {}
        if len(boxes):
            pixels = Pixels.of(images)
            programs = (len(pixels.packed), *sorted(set(batches(len(boxes)))))
            fields = self._once(programs, lambda: self._looked_at(images, pixels, sizes, counts, boxes, points))
        ends = np.cumsum(counts)
        return [
            Faces(size, boxes[end - n : end], scores[end - n : end],
                  **{name: value[end - n : end] for name, value in (fields or self._nothing()).items()})
            for size, n, end in zip(sizes, counts, ends, strict=True)
        ]  # fmt: skip

    def _opened(self, photo: Picture) -> np.ndarray:
        if isinstance(photo, (str, os.PathLike)):
            return photographs.read(photo, self.max_pixels)[0]
        image = opened(photo)
        if image.shape[0] * image.shape[1] > self.max_pixels:
            raise ValueError(f"a photograph of {image.shape[1]} x {image.shape[0]} pixels, expected at most "
                             f"{self.max_pixels} (max_pixels)")  # fmt: skip
        return image

    def _detected(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, scores and points by falling score; boxes without area, as of broken networks, are left out."""
        tiled = self.tiled and max(image.shape[:2]) > self.tiled
        predict = self.detector.predict.tiled if tiled else self.detector.predict
        found = self._seen(predict, image, self.size)
        if not len(found[0]) and self.size >= 2 * SMALLEST:
            found = self._seen(self.detector.predict, image, self.size // 2)
        return found

    def _seen(
        self, predict: Callable[[np.ndarray, int], Detections], image: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = self._once(("detector", size), lambda: predict(image, size))
        real = found.mask & np.isfinite(found.boxes).all(1) & (found.boxes[:, 2:] > found.boxes[:, :2]).all(1)
        return found.boxes[real], found.scores[real], found.points[real]

    def _once(self, programs: Any, call: Callable[[], Any]) -> Any:
        """What a call gives; the first with these programs compiles them while others wait, who would do so as well."""
        if programs in self._compiled:
            return call()
        with self._locks[programs]:
            found = call()
        self._compiled.add(programs)
        return found

    def _looked_at(
        self,
        images: Sequence[np.ndarray],
        pixels: Pixels,
        sizes: Sequence[tuple[int, int]],
        counts: Sequence[int],
        boxes: np.ndarray,
        points: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Attributes of `Faces` by name, of the faces of all photographs one after the other."""
        owner = np.repeat(np.arange(len(images)), counts)
        packed = jax.device_put(pixels.packed)

        def look(stages: Mapping[str, Stage], points: np.ndarray | None) -> dict[str, np.ndarray]:
            rules = tuple(dict.fromkeys([stage.rule for stage in stages.values()] + [Aligned()] * (points is not None)))
            regions = [_regions(rule, owner, sizes, boxes, points) for rule in rules]
            unique = list(dict.fromkeys(stages.values()))
            parts, start = [], 0
            for size in batches(len(boxes)):
                rows = np.minimum(np.arange(start, start + size), len(boxes) - 1)
                start += size
                where = {k: (np.float32(r.matrices[rows]), np.float32(r.limits[rows])) for k, r in enumerate(regions)}
                cropped = dict(zip(rules, cut(packed, pixels.places[owner[rows]], where, rules), strict=True))
                outputs = list(self._workers.map(lambda stage, crops=cropped: stage(crops[stage.rule]), unique))
                parts.append((outputs, cropped.get(Aligned())))
            found = {
                stage: stage.placed(
                    {name: _joined([outputs[i][name] for outputs, _ in parts], len(boxes)) for name in parts[0][0][i]},
                    regions[rules.index(stage.rule)],
                )
                for i, stage in enumerate(unique)
            }
            fields = {SLOTS[slot]: found[stage][SLOTS[slot]].astype(np.float32) for slot, stage in stages.items()}
            if points is not None:
                fields["crops"] = _joined([crops for _, crops in parts], len(boxes))
            return fields

        if self._points:
            return {"points": points, **look(self.stages, points)}
        first = look({"landmarks": self.stages["landmarks"]}, None)
        points = transforms.five_points(first["landmarks"])
        others = {slot: stage for slot, stage in self.stages.items() if slot != "landmarks"}
        return {"points": points, **first, **look(others, points)}

    def _nothing(self) -> dict[str, np.ndarray]:
        """The attributes of a photograph without faces."""
        found = {"points": np.zeros((0, 5, 2), np.float32), "crops": np.zeros((0, 112, 112, 3), np.uint8)}
        for slot, stage in self.stages.items():
            found[SLOTS[slot]] = np.zeros((0, *stage.shapes[SLOTS[slot]]), np.float32)
        return found


def _regions(
    rule: Rule, owner: np.ndarray, sizes: Sequence[tuple[int, int]], boxes: np.ndarray, points: np.ndarray | None
) -> Regions:
    """Of faces whose photographs are `owner` [F], in the faces' order; photographs follow each other."""
    parts = [
        rule(boxes[owner == n], points if points is None else points[owner == n], size)
        for n, size in enumerate(sizes)
        if (owner == n).any()
    ]
    return Regions(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _joined(parts: Sequence[jax.Array], count: int) -> np.ndarray:
    return np.concatenate([np.asarray(part) for part in parts])[:count]
