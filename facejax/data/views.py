"""Images for learning without labels: random views to train on, and labelled images to probe the features with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from facejax.data import classification, sources, transforms
from facejax.data.pipeline import Load, Source
from facejax.data.synthetic import faces


def train_images(path: str, data_dir: str, count: int) -> Source:
    """Training images; their labels are for evaluation.

    Args:
      path: a folder with "train" in it, all of whose images are taken; empty takes the face world's first `count`.
      data_dir: where the face world lies once it is prepared; may be empty.
      count: see `path`.
    """
    if path:
        return classification.splits(path)[0]
    source = faces.load("recognition", "train", data_dir or None)
    return sources.Subset(source, range(min(count, len(source))))


def probe_images(path: str, data_dir: str, count: int) -> tuple[Source, Source]:
    """Labelled images to fit a probe to, and others to test it on.

    Args:
      path: a folder with "train" and "val" in it; empty takes halves of the face world's held-out identities.
      data_dir: as of `train_images`.
      count: at most so many images of "train", evenly spaced.
    """
    if path:
        train, test = classification.splits(path)
        return sources.Subset(train, np.linspace(0, len(train) - 1, min(count, len(train))).astype(int)), test
    source = faces.load("recognition", "test", data_dir or None)
    numbers = np.arange(len(source))
    return tuple(sources.Subset(source, numbers[numbers % 2 == part]) for part in (0, 1))


def loader(
    size: int, *, area: tuple[float, float], rotation: float, jitter: tuple[float, float, float, float], gray: float
) -> Load:
    """Batches {"image": uint8 [n, size, size, 3], "index": int32 [n]} of `facejax.data.sources.Indexed`.

    Args:
      size: pixels.
      area: smallest and largest share of the image that a crop covers, 0..1.
      rotation: degrees, at most, in either direction.
      jitter, gray: as of `recolour`.
    """

    def view(example: Any, rng: np.random.Generator) -> np.ndarray:
        image = classification.random_crop(transforms.decode(example["image"]), rng, area)
        image = transforms.random_flip(transforms.resize(image, size, size), rng)
        turn = cv2.getRotationMatrix2D((size / 2 - 0.5,) * 2, rng.uniform(-1, 1) * rotation, 1.0)
        image = cv2.warpAffine(np.ascontiguousarray(image), turn, (size, size), flags=cv2.INTER_LINEAR)
        return recolour(image, jitter, gray, rng)

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        images = [view(example, rng) for example, rng in zip(examples, rngs, strict=True)]
        return {"image": np.stack(images), "index": np.array([e["index"] for e in examples], np.int32)}

    return load


def recolour(
    image: np.ndarray, jitter: tuple[float, float, float, float], gray: float, rng: np.random.Generator
) -> np.ndarray:
    """Random brightness, contrast, saturation and hue, in random order; sometimes grey.

    Args:
      image: [H, W, 3] uint8.
      jitter: j of the four: factors are drawn from 1 - j, at least 0, to 1 + j; a shift of the hue from -j to j turns.
      gray: probability of a grey image, 0..1.
      rng: of all draws.
    """

    def luma(x: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)

    for kind in rng.permutation(np.flatnonzero(jitter)):
        most = jitter[kind]
        if kind == 3:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
            hsv[..., 0] += np.uint8(round(256 * rng.uniform(-most, most)) % 256)
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
            continue
        factor = rng.uniform(max(0, 1 - most), 1 + most)
        towards = (0.0, luma(image).mean(), luma(image)[..., None])[kind]
        image = np.clip(factor * image + (1 - factor) * towards, 0, 255).astype(np.uint8)
    return np.repeat(luma(image)[..., None], 3, -1) if rng.random() < gray else image
