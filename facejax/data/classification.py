"""Labelled images for classifiers: folders as ImageNet is laid out, and the people of the face world."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from facejax.data import pipeline, readers, sources, transforms
from facejax.data.pipeline import Load, Source
from facejax.data.synthetic import faces

IMAGENET: dict[str, Any] = {"path": "imagenet", "image_size": 224, "classes": 1000, "crops": True, "centre": 0.875}
"""The fields of `LabelledImages` for ImageNet; the user gives `path`."""


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """The `data` section of a classifier's experiment.

    Attributes:
      path: folder with train/CLASS/IMAGE and val/CLASS/IMAGE; empty is the face world, whose people are the classes.
      data_dir: where prepared data lies; empty is $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: side of the network's input, pixels.
      classes: number of classes; of the face world, its first people.
      crops: whether training images are random crops (`random_crop`); if not, whole images are resized.
      centre: side of the square that evaluation cuts out, as a part of the image's shorter side, 0..1.
      threads: batches loaded at once in this process.
      workers: processes that load besides; 0 loads in this one.
    """

    path: str = ""
    data_dir: str = ""
    image_size: int = 48
    classes: int = 80
    crops: bool = False
    centre: float = 1.0
    threads: int = 2
    workers: int = 0

    def split(self) -> tuple[Source, Source]:
        """Sources to train and to test on."""
        return splits(self.path, self.data_dir or None, self.classes)

    def batches(self, source: Source, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless training batches of `loader`."""
        load = loader(self.image_size, self.classes, self.crops)
        return pipeline.train_batches(source, load, batch_size, seed=seed, threads=self.threads, workers=self.workers)

    def test_batch(self, examples: Sequence[Any]) -> dict[str, np.ndarray]:
        """Evaluation's batch of `centre_batch`."""
        return centre_batch(examples, self.image_size, self.centre)


def splits(path: str, data_dir: str | None = None, classes: int = 0, every: int = 4) -> tuple[Source, Source]:
    """Sources of labelled images to train and to test on.

    Args:
      path: folder with "train" and "val" in it, each CLASS/IMAGE; empty takes the face world: every `every`-th image of
        each person is for testing, so both parts hold the same people.
      data_dir: where the face world lies once it is prepared.
      classes: people of the face world; 0 takes all.
      every: see `path`.

    Raises:
      ValueError: more classes than the face world has people.
    """
    if path:
        return folders(path)
    task = faces.TASKS["recognition"]
    people = classes or task.train
    if people > task.train:
        raise ValueError(f"data.classes is {people}: expected at most {task.train}, the face world's people")
    source = faces.load(task, "train", data_dir)
    rows = np.arange(people * task.per_person)
    test = rows % every == every - 1
    return sources.Subset(source, rows[~test]), sources.Subset(source, rows[test])


def folders(path: str, parts: Sequence[str] = ("train", "val")) -> tuple[Source, ...]:
    """Sources of the parts of a data set, each a folder in `path` that `facejax.data.readers.read` opens."""
    root = pathlib.Path(path).expanduser()
    return tuple(readers.read(root / part) for part in parts)


def first_people(people: int, train: int, data_dir: str | None = None) -> tuple[list[Any], list[Any]]:
    """The face world's first people: `train` images of each to train on, the others to test on, held in memory."""
    source = faces.load("recognition", "train", data_dir)
    parts: tuple[list[Any], list[Any]] = ([], [])
    counts = np.zeros(people, int)
    for example in pipeline.fetch(source, range(len(source))):
        person = sources.label(example)
        if person < people:
            parts[int(counts[person] >= train)].append({"image": example["image"], "label": person})
            counts[person] += 1
    return parts


class Attribute:
    """Examples of the face world with "label" 1 where an attribute is above 0, such as "glasses", else 0."""

    def __init__(self, source: Source, name: str):
        self._source, self._name = source, name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[int(index)]
        return {**example, "label": int(example[self._name] > 0)}


def loader(size: int, classes: int, crops: bool) -> Load:
    """Training batches {"image": uint8 [n, size, size, 3], "label": int32 [n]}, mirrored with probability one half.

    Args:
      size: pixels.
      classes: labels lie in 0..classes - 1; others raise ValueError.
      crops: whether `random_crop` is cut out first; otherwise the whole image is resized.
    """

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        labels = _labels(examples, classes)
        images = []
        for example, rng in zip(examples, rngs, strict=True):
            image = transforms.decode(example["image"])
            image = random_crop(image, rng) if crops else image
            images.append(transforms.random_flip(transforms.resize(image, size, size), rng))
        return {"image": np.stack(images), "label": labels}

    return load


def short_side_loader(size: int, classes: int) -> Callable[[Sequence[Any], Any], dict[str, np.ndarray]]:
    """(examples, generators) -> batch of `loader`'s form: the shorter side becomes `size` pixels, then a crop.

    With generators the crop is random and mirrored with probability one half, with None it is the centre.
    """

    def cut(image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        height, width = (round(n * size / min(image.shape[:2])) for n in image.shape[:2])
        image = transforms.resize(image, height, width)
        top, left = ((n - size) // 2 if rng is None else int(rng.integers(n - size + 1)) for n in (height, width))
        image = image[top : top + size, left : left + size]
        return image if rng is None else transforms.random_flip(image, rng)

    def load(examples: Sequence[Any], rngs: Any) -> dict[str, np.ndarray]:
        labels = _labels(examples, classes)
        rngs = rngs or [None] * len(labels)
        images = [cut(transforms.decode(e["image"]), rng) for e, rng in zip(examples, rngs, strict=True)]
        return {"image": np.stack(images), "label": labels}

    return load


def _labels(examples: Sequence[Any], classes: int) -> np.ndarray:
    labels = np.array([e["label"] for e in examples], np.int32)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}: expected 0 to {classes - 1}")
    return labels


def centre_batch(examples: Sequence[Any], size: int, fraction: float = 1.0) -> dict[str, np.ndarray]:
    """Evaluation's batch: the central square, `fraction` of the shorter side, resized to `size` pixels.

    Resizing the short side to size / fraction and cutting out the centre gives the same field of view.
    """
    images = [transforms.resize(centre(transforms.decode(e["image"]), fraction), size, size) for e in examples]
    return {"image": np.stack(images), "label": np.array([e["label"] for e in examples], np.int32)}


def centre(image: np.ndarray, fraction: float) -> np.ndarray:
    """The central square, `fraction` of the shorter side long."""
    side = max(1, round(min(image.shape[:2]) * fraction))
    top, left = ((n - side) // 2 for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def random_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """GoogLeNet's training crop: a random share of the area and a random aspect ratio (Sec. 6).

    The logarithm of the aspect ratio is uniform. After ten draws that do not fit, the central square is taken.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        pixels, ratio = rng.uniform(*area) * height * width, np.exp(rng.uniform(*np.log(aspect)))
        w, h = round(np.sqrt(pixels * ratio)), round(np.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            return np.ascontiguousarray(image[top : top + h, left : left + w])
    return centre(image, 1.0)
