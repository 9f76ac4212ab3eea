"""Pictures with a class: folders of photographs as ImageNet's networks see them, and the face world's known people."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from facejax.data import readers, transforms
from facejax.data.pipeline import Load
from facejax.data.synthetic import faces


class Pictures:
    """Some pictures of a source, with their class under "label".

    Args:
      source: examples with "image" (encoded) and "label", or the face world's "person".
      indices: which of them.
    """

    def __init__(self, source: Any, indices: Sequence[int]):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[int(self._indices[index])]
        return {"image": example["image"], "label": int(example.get("person", example.get("label", -1)))}


def splits(path: str, data_dir: str | None = None, classes: int = 0, every: int = 4) -> tuple[Any, Any]:
    """Training and test pictures.

    Args:
      path: a folder with "train" and "val" in it, each class/picture.jpg; empty takes the face world's people, whose
        every `every`-th picture is for testing: the same people, other pictures.
      data_dir: where the face world lies once it is prepared.
      classes: how many people of the face world; 0 takes all.
      every: see `path`.
    """
    if path:
        root = pathlib.Path(path).expanduser()
        return tuple(readers.read(root / part) for part in ("train", "val"))
    task = faces.TASKS["recognition"]
    people = classes or task.train
    if people > task.train:
        raise ValueError(f"data.classes is {people}: expected at most {task.train}, the face world's people")
    source = faces.load(task, "train", data_dir)
    numbers = np.arange(people * task.per_person)
    test = numbers % every == every - 1
    return Pictures(source, numbers[~test]), Pictures(source, numbers[test])


def loader(size: int, classes: int, crops: bool) -> Load:
    """Training batches {"image": uint8 [n, size, size, 3], "label": int32 [n]}, mirrored at random.

    Args:
      size: pixels.
      classes: labels must lie below.
      crops: whether `random_crop` is cut out first; otherwise the whole picture is resized.
    """

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        labels = np.array([e["label"] for e in examples], np.int32)
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"labels go from {labels.min()} to {labels.max()}: expected 0 to {classes - 1}")
        images = []
        for example, rng in zip(examples, rngs, strict=True):
            image = transforms.decode(example["image"])
            image = random_crop(image, rng) if crops else image
            images.append(transforms.random_flip(transforms.resize(image, size, size), rng))
        return {"image": np.stack(images), "label": labels}

    return load


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
    """GoogLeNet's training crop: a share of the area and an aspect ratio at random (Sec. 6).

    The aspect is drawn evenly in its logarithm; after ten draws that do not fit, the central square is taken.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        pixels, ratio = rng.uniform(*area) * height * width, np.exp(rng.uniform(*np.log(aspect)))
        w, h = round(np.sqrt(pixels * ratio)), round(np.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            return np.ascontiguousarray(image[top : top + h, left : left + w])
    return centre(image, 1.0)
