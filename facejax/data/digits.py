"""Handwritten digits as arrays: scikit-learn's 8 x 8 and MNIST's 28 x 28."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from facejax.data import pipeline, sources
from facejax.data.builders import store

PIXELS = {"digits": 64, "mnist": 784}
Digits = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DigitImages:
    """The `data` section of an experiment on digits.

    Attributes:
      source: "digits" (scikit-learn, 8 x 8) or "mnist".
      train: with "digits", number of training images, drawn with the seed; the remaining images are the test set.
      data_dir: folder where tfds prepared mnist; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      train_split: with "mnist", the training split in tfds' notation.
      test_split: with "mnist", the test split in tfds' notation.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    source: str = "digits"
    train: int = 200
    data_dir: str = ""
    train_split: str = "train"
    test_split: str = "test"
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.source not in PIXELS:
            raise ValueError(f"data.source is {self.source!r}: expected {' or '.join(PIXELS)}")

    @property
    def pixels(self) -> int:
        """Number of pixels of an image."""
        return PIXELS[self.source]

    def split(self, seed: int) -> tuple[Digits, Digits]:
        """Training and test images: {"image": float32 [N, pixels] in -1..1, "label": int32 [N]}."""
        if self.source == "mnist":
            return tuple(read_mnist(self.data_dir, split) for split in (self.train_split, self.test_split))
        from sklearn.datasets import load_digits

        digits = load_digits()
        if not 0 < self.train < len(digits.target):
            raise ValueError(f"data.train is {self.train}: expected 1 to {len(digits.target) - 1} of the digits")
        order = np.random.default_rng(seed).permutation(len(digits.target))
        images, labels = (digits.data / 8 - 1).astype(np.float32), digits.target.astype(np.int32)
        return tuple({"image": images[i], "label": labels[i]} for i in np.split(order, [self.train]))

    def batches(self, batch_size: int, seed: int) -> Iterator[Digits]:
        """Endless training batches."""
        train, _ = self.split(seed)
        workers = {"threads": self.threads, "workers": self.workers}
        return pipeline.train_batches(sources.Rows(train), _stacked, batch_size, seed=seed, **workers)


def _stacked(rows: list[Digits], rngs: list[np.random.Generator]) -> Digits:
    del rngs
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def read_mnist(data_dir: str, split: str) -> Digits:
    """A split of MNIST from the tfds catalogue, prepared as ArrayRecord on first use.

    Raises:
      ValueError: MNIST is not prepared, and preparing it fails because TensorFlow is not installed.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder("mnist", data_dir=store.data_dir(data_dir), file_format="array_record")
    try:
        examples = store.prepared(builder, split)
    except ImportError as error:
        raise ValueError(
            f"MNIST is not prepared in {builder.data_dir}, and preparation needs TensorFlow ({error}): install it, "
            "or set data.data_dir to a folder where tfds has prepared mnist as ArrayRecord"
        ) from error
    rows = [examples[i] for i in range(len(examples))]
    images = np.stack([row["image"] for row in rows]).reshape(len(rows), -1)
    return {"image": (images / 127.5 - 1).astype(np.float32), "label": np.array([r["label"] for r in rows], np.int32)}
