"""Images of identities for recognition: training set, held-out set for verification, training batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from facejax.data import classification, pipeline, readers, sources, transforms
from facejax.data.pipeline import Source
from facejax.data.readers.verification import read_pack
from facejax.data.synthetic import faces

AUGMENT = {
    "flip": transforms.random_flip,
    "dali": lambda x, rng: transforms.dali_aug(transforms.random_flip(x, rng), rng),
}


@dataclasses.dataclass(frozen=True)
class Identities:
    """The `data` section of a recognition experiment.

    Attributes:
      source: "face_world" (rendered), or "path".
      path: with source "path", what `facejax.data.readers.read` opens.
      task: task of the face world; its "train" split is the training set and its "test" split the held-out set.
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: side of the network's input, pixels.
      classes: number of training identities; 0 counts them.
      held_out: fraction of the identities at `path` held out for verification, 0..1; the seed selects them.
      augment: "flip", or "dali" (arcface_torch's optional augmentation).
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    source: str = "face_world"
    path: str = ""
    task: str = "recognition"
    data_dir: str = ""
    image_size: int = 48
    classes: int = 80
    held_out: float = 0.0
    augment: str = "flip"
    threads: int = 2
    workers: int = 0

    def split(self, seed: int, *, packs: str = "") -> tuple[Source, Source | None]:
        """The training source and the held-out source, or None without held-out identities.

        Args:
          seed: selects the held-out fold of the identities at `path`.
          packs: verification packs; with them, `held_out` may be 0.

        Raises:
          ValueError: neither held-out identities nor packs.
        """
        if self.source == "face_world":
            return tuple(faces.load(self.task, split, self.data_dir or None) for split in ("train", "test"))
        if not (self.held_out or packs):
            raise ValueError("no identity is held out for verification: set data.held_out or eval.packs")
        source = readers.read(self.path)
        if not self.held_out:
            return source, None
        labels = sources.labels(source)
        names = np.unique(labels)
        fold = np.arange(len(names)) % round(1 / self.held_out) == seed % round(1 / self.held_out)
        unseen = np.isin(labels, names[fold])
        numbers = np.cumsum(~fold) - 1
        train = sources.Subset(source, np.flatnonzero(~unseen), numbers[np.searchsorted(names, labels[~unseen])])
        return train, sources.Subset(source, np.flatnonzero(unseen), labels[unseen])

    def training(self, seed: int, *, packs: str = "") -> Source:
        """The training source of `split`, after a check of `classes` and of the packs, before anything is compiled.

        Raises:
          ValueError: more training identities than `classes`, a pack that is no pack, or as of `split`.
          OSError: a pack cannot be read.
        """
        source = self.split(seed, packs=packs)[0]
        if self.source == "path":
            classification.check_classes(self.path, _identities(source), self.classes)
            spread = np.linspace(0, len(source) - 1, min(len(source), sources.INSPECTED)).astype(int)
            sources.warn_unaligned((source[int(i)]["image"] for i in spread), self.image_size, self.path)
        check_packs(packs)
        return source

    def count(self, seed: int, *, packs: str = "") -> int:
        """The number of identities of the training source of `split`."""
        if self.source == "face_world":
            return faces.TASKS[self.task].train
        return _identities(self.split(seed, packs=packs)[0])

    def first_people(self, seed: int, *, packs: str = "") -> Source:
        """The first `classes` identities of the face world's task; at a path, the training source of `split`."""
        if self.source == "path":
            return self.training(seed, packs=packs)
        most = faces.TASKS[self.task].train
        if not 0 < self.classes <= most:
            raise ValueError(f"data.classes is {self.classes}: expected 1 to {most}, the identities of the face world")
        check_packs(packs)
        source = faces.load(self.task, "train", self.data_dir or None)
        return sources.Subset(source, np.flatnonzero(sources.labels(source) < self.classes))

    def batches(self, source: Source, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless batches {"image": uint8 [n, S, S, 3], "label": int32 [n]}, decoded and augmented."""
        return self.stream(source, self.load(), batch_size, seed)

    def stream(self, source: Source, load: pipeline.Load, batch_size: int, seed: int) -> Any:
        """Endless batches of `load`, with this section's threads and workers."""
        return pipeline.train_batches(source, load, batch_size, seed=seed, threads=self.threads, workers=self.workers)

    def load(self) -> pipeline.Load:
        """Decodes and augments a batch. Raises ValueError for a label outside 0..classes - 1."""
        if self.augment not in AUGMENT:
            raise ValueError(f"data.augment is {self.augment!r}: expected one of {', '.join(AUGMENT)}")
        change, size, classes = AUGMENT[self.augment], self.image_size, self.classes

        def load(examples: Any, rngs: Any) -> dict[str, np.ndarray]:
            labels = np.array([sources.label(e) for e in examples], np.int32)
            if labels.min() < 0 or labels.max() >= classes:
                wrong = labels.min() if labels.min() < 0 else labels.max()
                raise ValueError(f"found label {wrong} with data.classes {classes}: expected 0 to {classes - 1}")
            images = [change(sources.image(e, size), rng) for e, rng in zip(examples, rngs, strict=True)]
            return {"image": np.stack(images), "label": labels}

        return load


def check_packs(packs: str) -> None:
    """Reads the verification packs `packs`, paths with commas between. Raises ValueError or OSError for a bad one."""
    for pack in filter(None, packs.split(",")):
        read_pack(pack)


def _identities(source: Source) -> int:
    return getattr(source, "num_classes", 0) or 1 + int(np.max(source.labels))


def one_each(source: Source, size: int, name: str) -> pipeline.Load:
    """Batches {name: uint8 [n, size, size, 3]} of `sources.Groups`: a random image per identity, randomly flipped.

    Args:
      source: source that the rows of the groups refer to.
      size: side of the images, pixels.
      name: key of the images in the batch.
    """

    def load(groups: Any, rngs: Any) -> dict[str, np.ndarray]:
        rows = [int(rng.choice(rows)) for rows, rng in zip(groups, rngs, strict=True)]
        images = [sources.image(example, size) for example in pipeline.fetch(source, rows)]
        return {name: np.stack([transforms.random_flip(x, rng) for x, rng in zip(images, rngs, strict=True)])}

    return load
