"""Images for learning without labels: random views for training, and labelled images for probing the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from facejax.data import classification, sources, transforms
from facejax.data.pipeline import Load, Source
from facejax.data.synthetic import faces


def train_images(path: str, data_dir: str, count: int) -> Source:
    """Training images; their labels serve evaluation only.

    Args:
      path: folder that contains "train"; empty: the first `count` images of the face world.
      data_dir: folder of prepared data; empty: the default.
      count: see `path`.
    """
    if path:
        return classification.splits(path)[0]
    source = faces.load("recognition", "train", data_dir or None)
    return sources.Subset(source, range(min(count, len(source))))


def probe_images(path: str, data_dir: str, count: int) -> tuple[Source, Source]:
    """Labelled images for fitting a probe, and others for testing it.

    Args:
      path: folder that contains "train" and "val"; empty: two halves of the face world's held-out images.
      data_dir: see `train_images`.
      count: largest number of images of "train", evenly spaced.
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
      size: side of the images, pixels.
      area: smallest and largest fraction of the image's area that a crop covers, 0..1.
      rotation: largest rotation in either direction, degrees.
      jitter, gray: see `recolour`.
    """

    def view(example: Any, rng: np.random.Generator) -> np.ndarray:
        image = classification.random_crop(transforms.decode(example["image"]), rng, area)
        image = transforms.random_flip(transforms.resize(image, size, size), rng)
        turn = cv2.getRotationMatrix2D((size / 2 - 0.5,) * 2, rng.uniform(-1, 1) * rotation, 1.0)
        image = transforms.warp(image, turn, (size, size))
        return recolour(image, jitter, gray, rng)

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        images = [view(example, rng) for example, rng in zip(examples, rngs, strict=True)]
        return {"image": np.stack(images), "index": np.array([e["index"] for e in examples], np.int32)}

    return load


def recolour(
    image: np.ndarray, jitter: tuple[float, float, float, float], gray: float, rng: np.random.Generator
) -> np.ndarray:
    """Random brightness, contrast, saturation and hue in random order, then greyscale with some probability.

    Args:
      image: [H, W, 3] uint8.
      jitter: strengths j of the four; factors lie in max(0, 1 - j)..1 + j, the hue shift in -j..j turns.
      gray: probability of greyscale, 0..1.
      rng: generator of all draws.
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
