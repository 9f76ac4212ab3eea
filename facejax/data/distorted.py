"""Batches for learning from rankings (RankIQA): images distorted at increasing levels, and images with a rating."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from facejax.data import pipeline, readers, sources, transforms
from facejax.data.decoding import ImageFile
from facejax.data.distortions import DISTORTIONS

RATED, PADDING = -1, -2
"""Kinds of the images of a batch that belong to no distortion series."""


@dataclasses.dataclass(frozen=True)
class Distorter:
    """Makes distortion series: of each kind, the image itself (level 0) and its distorted versions (levels 1, 2, ...).

    Attributes:
      levels: kind (of `DISTORTIONS`) -> strengths from mild to strong; kinds without strengths are left out.
      kinds_per_image: random kinds of an image in a training batch; 0 is all.

    Raises:
      ValueError: more kinds than there are, or a random choice among kinds with different numbers of levels.
    """

    levels: Mapping[str, Sequence[float]]
    kinds_per_image: int = 0

    def __post_init__(self) -> None:
        lengths = {len(self.levels[kind]) for kind in self.kinds}
        count = len(self.kinds)
        if not 0 <= self.kinds_per_image <= count or (self.kinds_per_image and len(lengths) > 1):
            raise ValueError(
                f"kinds_per_image is {self.kinds_per_image}: expected 0, or 1 to {count} where all kinds have equally "
                "many levels"
            )

    @property
    def kinds(self) -> list[str]:
        """The kinds that have levels, in the order of `DISTORTIONS`."""
        return [kind for kind in DISTORTIONS if len(self.levels[kind])]

    @property
    def size(self) -> int:
        """Images that one image becomes in a training batch."""
        return sum([len(self.levels[kind]) + 1 for kind in self.kinds][: self.kinds_per_image or None])

    def series(self, image: np.ndarray, rng: np.random.Generator, kinds: int = 0) -> list[dict[str, Any]]:
        """All levels of all kinds, or of `kinds` random ones, as examples.

        Args:
          image: [H, W, 3] uint8.
          rng: of the distortions.
          kinds: how many; 0 is all.

        Returns:
          {"image": [H, W, 3] uint8, "level", "kind": int32, "opinion": float32, minus the level}.
        """
        rows, numbers = [], list(DISTORTIONS)
        for kind in rng.choice(self.kinds, kinds, replace=False) if kinds else self.kinds:
            images = [image, *(DISTORTIONS[kind](image, strength, rng) for strength in self.levels[kind])]
            rows += [_example(x, level, numbers.index(kind), -level) for level, x in enumerate(images)]
        return rows

    def rated(self, images: pipeline.Source, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
        """`count` images at a random level of a random kind each, as examples of kind `RATED`, minus the level rated.

        Args:
          images: examples with "image" [H, W, 3] uint8.
          count: how many; an image may be drawn repeatedly.
          rng: of the images, kinds, levels and distortions.
        """
        rows = []
        for place in rng.choice(len(images), count):
            series = self.series(images[int(place)]["image"], rng)
            rows.append({**series[int(rng.integers(len(series)))], "kind": np.int32(RATED)})
        return rows

    def load(self, size: int) -> pipeline.Load:
        """Batches of encoded images, distorted whole; of each version a crop [size, size, 3] at a place of its own."""

        def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
            rows = []
            for example, rng in zip(examples, rngs, strict=True):
                for row in self.series(transforms.decode(example["image"]), rng, self.kinds_per_image):
                    rows.append({**row, "image": crop(row["image"], size, rng, "an image of data.path")})
            return pipeline.stacked_batch(rows, rngs)

        return load


def load_rated(size: int, total: int) -> pipeline.Load:
    """Batches of {"path", "opinion"}: a crop [size, size, 3] of each image, padded to `total` with kind `PADDING`."""

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        rows = []
        for example, rng in zip(examples, rngs, strict=True):
            image = transforms.decode(ImageFile.read(example["path"]))
            rows.append(_example(crop(image, size, rng, example["path"]), 0, RATED, example["opinion"]))
        rows += (total - len(rows)) * [_example(np.zeros((size, size, 3), np.uint8), 0, PADDING, 0)]
        return pipeline.stacked_batch(rows, rngs)

    return load


def images_of(path: str, split: str) -> sources.Subset:
    """Encoded images to be distorted: the first four fifths at `path` ("train"), or the others ("test")."""
    if not path:
        raise ValueError("data.path is empty: expected a folder FOLDER/image.bmp of images to be distorted")
    found = readers.read(path)
    cut = len(found) * 4 // 5
    return sources.Subset(found, range(cut) if split == "train" else range(cut, len(found)))


class Crops:
    """Random crops of image files, read when they are asked for: sliced like an array [M * count, S, S, 3] uint8.

    Args:
      paths: of M image files.
      size: S, pixels.
      count: crops of an image, which follow one another.
      seed: of the crops; those of an image depend on its position, too.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths: Sequence[pathlib.Path], size: int, count: int, seed: int):
        self.shape = (len(paths) * count, size, size, 3)

        @functools.lru_cache(maxsize=1)
        def crops_of(number: int) -> list[np.ndarray]:
            image, rng = transforms.decode(ImageFile.read(paths[number])), np.random.default_rng([seed, number])
            return [crop(image, size, rng, str(paths[number])) for _ in range(count)]

        self._at = lambda place: crops_of(place // count)[place % count]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.stack([self._at(place) for place in range(*rows.indices(len(self)))])


def crop(image: np.ndarray, size: int, rng: np.random.Generator, name: str) -> np.ndarray:
    """A random square [size, size, 3] of an image. Raises ValueError with `name` where the image is smaller."""
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise ValueError(f"{name} has {height} x {width} pixels: expected {size} x {size} or more")
    top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
    return image[top : top + size, left : left + size]


def _example(image: np.ndarray, level: int, kind: int, opinion: float) -> dict[str, Any]:
    return {"image": image, "level": np.int32(level), "kind": np.int32(kind), "opinion": np.float32(opinion)}
