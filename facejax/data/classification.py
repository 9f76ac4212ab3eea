"""Labelled images for classifiers: folders in ImageNet's layout, and the identities of the face world."""

from __future__ import annotations

import dataclasses
import pathlib
import warnings
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
      path: folder with train/CLASS/IMAGE and val/CLASS/IMAGE; empty: the face world, with its identities as classes.
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: side of the network's input, pixels.
      classes: number of classes; in the face world, the first identities; 0 takes all.
      crops: true: training images are random crops (`random_crop`); false: resized whole images.
      centre: side of the centre crop in evaluation, as a fraction of the image's shorter side, 0..1.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
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
        """The training source and the test source."""
        return splits(self.path, self.data_dir or None, self.classes)

    def count(self) -> int:
        """The number of classes of the training source."""
        return folders(self.path, ("train",))[0].num_classes if self.path else faces.TASKS["recognition"].train

    def batches(self, source: Source, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless training batches of `loader`."""
        load = loader(self.image_size, self.classes, self.crops)
        return pipeline.train_batches(source, load, batch_size, seed=seed, threads=self.threads, workers=self.workers)

    def test_batch(self, examples: Sequence[Any]) -> dict[str, np.ndarray]:
        """The evaluation batch of `centre_batch`."""
        return centre_batch(examples, self.image_size, self.centre)


def splits(path: str, data_dir: str | None = None, classes: int = 0, every: int = 4) -> tuple[Source, Source]:
    """The training source and the test source of labelled images.

    Args:
      path: folder that contains "train" and "val", each with CLASS/IMAGE; empty: the face world, where every `every`-th
        image of each identity is a test image, so that both parts contain the same identities.
      data_dir: folder of prepared data.
      classes: number of classes that the folder may have, or of identities of the face world; 0 takes all.
      every: see `path`.

    Raises:
      ValueError: the folder has more classes, or the face world fewer identities.
    """
    if path:
        return folders(path, classes=classes)
    task = faces.TASKS["recognition"]
    people = classes or task.train
    if people > task.train:
        raise ValueError(f"data.classes is {people}: expected at most {task.train}, the identities of the face world")
    source = faces.load(task, "train", data_dir)
    rows = np.arange(people * task.per_person)
    test = rows % every == every - 1
    return sources.Subset(source, rows[~test]), sources.Subset(source, rows[test])


def check_classes(path: str, found: int, classes: int) -> None:
    """Raises ValueError if data has more classes than a run expects, and warns if it has fewer."""
    if found > classes:
        raise ValueError(
            f"{path}: found label {found - 1} with data.classes {classes}: expected 0 to {classes - 1} (data.classes=0 "
            "counts the classes)"
        )
    if found < classes:
        warnings.warn(f"{path}: {found} classes with data.classes {classes}", stacklevel=2)


def folders(path: str, parts: Sequence[str] = ("train", "val"), classes: int = 0) -> tuple[Source, ...]:
    """One source per part of a data set; each part is a folder in `path` that `facejax.data.readers.read` opens.

    Where classes have names, the first part numbers them for all parts; a warning names the classes that another part
    lacks. With `classes`, `check_classes` compares it with the first part.

    Raises:
      ValueError: a part has a class that the first part lacks, or the first part has more classes than `classes`.
    """
    roots = [pathlib.Path(path).expanduser() / part for part in parts]
    first, *others = map(readers.read, roots)
    if classes:
        check_classes(path, first.num_classes, classes)
    first.whole = sources.Chain(first, *others)  # `Batches.check_images` reads all parts
    return first, *(_numbered_as(first, other, root) for other, root in zip(others, roots[1:], strict=True))


def _numbered_as(first: Source, other: Source, root: pathlib.Path) -> Source:
    """`other` with the labels of the classes that have the same name in `first`."""
    names, own = (getattr(source, "class_names", None) for source in (first, other))
    if not names or not own or names == own:
        return other
    numbers = {name: i for i, name in enumerate(names)}
    unknown, missing = sorted(set(own) - set(names)), sorted(set(names) - set(own))
    if unknown:
        raise ValueError(f"{root}: classes that training lacks ({len(unknown)}, such as {unknown[0]!r}): expected none")
    if missing:
        text = f"{root}: no image of {len(missing)} of {len(names)} classes, such as {missing[0]!r}"
        warnings.warn(text, stacklevel=3)
    labels = np.array([numbers[name] for name in own])[sources.labels(other)]
    return sources.Subset(other, np.arange(len(other)), labels)


def first_people(people: int, train: int, data_dir: str | None = None) -> tuple[list[Any], list[Any]]:
    """The first identities of the face world: `train` training images of each, the others for the test; in memory."""
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
    """Examples of the face world with "label" 1 if an attribute, such as "glasses", is positive, else 0."""

    def __init__(self, source: Source, name: str):
        self._source, self._name = source, name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[int(index)]
        return {**example, "label": int(example[self._name] > 0)}


def loader(size: int, classes: int, crops: bool) -> Load:
    """Training batches {"image": uint8 [n, size, size, 3], "label": int32 [n]}, flipped with probability 0.5.

    Args:
      size: side of the images, pixels.
      classes: number of classes; a label outside 0..classes - 1 raises ValueError.
      crops: true: `random_crop`, then resize; false: resize the whole image.
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
    """(examples, generators) -> batch as of `loader`: resizes the shorter side to `size` pixels, then crops.

    With generators, the crop is random and flipped with probability 0.5; with None, it is the centre.
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
        raise ValueError(f"labels range from {labels.min()} to {labels.max()}: expected 0 to {classes - 1}")
    return labels


def centre_batch(examples: Sequence[Any], size: int, fraction: float = 1.0) -> dict[str, np.ndarray]:
    """The evaluation batch: the centre crop, `fraction` of the shorter side, resized to `size` pixels.

    It has the field of view of resizing the shorter side to size / fraction and then cropping the centre.
    """
    images = [transforms.resize(centre(transforms.decode(e["image"]), fraction), size, size) for e in examples]
    return {"image": np.stack(images), "label": np.array([e["label"] for e in examples], np.int32)}


def centre(image: np.ndarray, fraction: float) -> np.ndarray:
    """The centre crop, a square of `fraction` times the shorter side."""
    side = max(1, round(min(image.shape[:2]) * fraction))
    top, left = ((n - side) // 2 for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def random_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """GoogLeNet's training crop: a random fraction of the area and a random aspect ratio (Sec. 6).

    The logarithm of the aspect ratio is uniform. If ten draws exceed the image, the crop is the central square.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        pixels, ratio = rng.uniform(*area) * height * width, np.exp(rng.uniform(*np.log(aspect)))
        w, h = round(np.sqrt(pixels * ratio)), round(np.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            return np.ascontiguousarray(image[top : top + h, left : left + w])
    return centre(image, 1.0)
