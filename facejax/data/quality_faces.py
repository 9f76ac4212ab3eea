"""Face images for quality estimation: rendered with known degradations, or photographs with identity labels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from facejax.data import pipeline, sources, transforms
from facejax.data.pipeline import Source
from facejax.data.sources import Images
from facejax.data.synthetic import faces

FAULTS = ("motion", "defocus", "resolution", "noise", "occluder")
"""Degradations of the face world; each degraded image has one of them."""


class Faces(NamedTuple):
    """Face images with identities and degradations. Unknown values are NaN.

    Attributes:
      images: [N, S, S, 3] uint8; of a path, `Images`.
      people: [N] int, identities from 0.
      fault: [N] strength of the degradation, 0 to 1.
      kind: [N] int, index in `FAULTS`, -1 for none.
      yaw: [N] radians.
      light: [N] angle between light and camera in the head's frame, radians.
      landmarks: [N, 5, 2] eyes, nose tip and mouth corners, pixels of `images`.
    """

    images: np.ndarray | Images
    people: np.ndarray
    fault: np.ndarray
    kind: np.ndarray
    yaw: np.ndarray
    light: np.ndarray
    landmarks: np.ndarray


class Sets(NamedTuple):
    """Sets of T images of one identity.

    Attributes:
      images: [M, T, S, S, 3] uint8; of a path, `Images`.
      people: [M] int, identities.
      fault: [M, T] strength of the degradation, 0 to 1; NaN if unknown.
    """

    images: np.ndarray | Images
    people: np.ndarray
    fault: np.ndarray

    @property
    def flat(self) -> np.ndarray | Images:
        """[M * T, S, S, 3], set by set."""
        return self.images.reshape(-1, *self.images.shape[2:])


@dataclasses.dataclass(frozen=True)
class QualityFaces:
    """The `data` section of a quality experiment.

    Attributes:
      source: "face_world" (rendered), or "path".
      path: with source "path", what `facejax.data.readers.read` opens.
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: side of the images, pixels.
      people: number of training identities.
      test_people: number of held-out identities for evaluation.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    source: str = "face_world"
    path: str = ""
    data_dir: str = ""
    image_size: int = 48
    people: int = 80
    test_people: int = 60
    threads: int = 2
    workers: int = 0

    @property
    def view(self) -> dict[str, Any]:
        """What an embedder of these images depends on (`facejax.recipes.recogniser.Recogniser`)."""
        return {"image_size": self.image_size, "data_dir": self.data_dir, "photographs": self.source == "path"}

    def load(self, split: str, task: str = "quality") -> Faces:
        """Training ("train") or held-out ("test") identities; of a path, the first `people` and the next `test_people`.

        In the face world, an identity has 24 images, 20 of them with one degradation of random kind and strength; in
        the task "sets", it has four sets of 8 images. The most recent results stay in memory.

        Raises:
          ValueError: the source has fewer identities.
        """
        return _load(self, split, task)

    def sets(self, split: str, size: int) -> Sets:
        """Each identity's images of the task "sets" in sets of `size`; an incomplete last set is dropped."""
        known = self.load(split, "sets")
        own = (np.flatnonzero(known.people == person) for person in np.unique(known.people))
        rows = np.concatenate([mine[: len(mine) // size * size].reshape(-1, size) for mine in own])
        if not len(rows):
            raise ValueError(f"no identity has sets.size {size} images: expected a smaller number")
        return Sets(sources.take(known.images, rows), known.people[rows[:, 0]], known.fault[rows])

    def undegraded(self, split: str) -> sources.Rows:
        """Images without a degradation as {"image"}; all of them where degradations are unknown."""
        known = self.load(split)
        return sources.Rows({"image": sources.take(known.images, np.flatnonzero(~(known.fault > 0)))})

    def batches(
        self, source: Source, batch_size: int, seed: int, load: pipeline.Load = pipeline.flipped_batch
    ) -> Iterator[dict[str, np.ndarray]]:
        """Endless batches of `load`."""
        return pipeline.train_batches(source, load, batch_size, seed=seed, threads=self.threads, workers=self.workers)


def unmeasured(images: np.ndarray | Images, people: np.ndarray) -> Faces:
    """`Faces` of images with identities [N] and no other annotation."""
    unknown = np.full((len(people), 5, 2), np.nan)
    nothing = unknown[:, 0, 0]
    return Faces(images, people, nothing, np.full(len(people), -1), nothing, nothing, unknown)


@functools.lru_cache(maxsize=4)
def _load(data: QualityFaces, split: str, name: str) -> Faces:
    count = data.people if split == "train" else data.test_people
    if data.source == "face_world":
        task = faces.TASKS[name]
        most = task.train if split == "train" else task.test
        if not 0 < count <= most:
            raise ValueError(
                f"data.people or data.test_people is {count}: expected 1 to {most}, the face world's {split} set"
            )
        opened = faces.load(task, split, data.data_dir or None)
        examples = pipeline.fetch(opened, range(len(opened)))
        first = min(e["person"] for e in examples)
        return _rendered([e for e in examples if e["person"] < first + count], data.image_size)
    from facejax.data import readers  # imports tfds, which is slow

    opened = readers.read(data.path)
    labels = sources.labels(opened)
    people = np.unique(labels)
    if len(people) < data.people + data.test_people:
        raise ValueError(
            f"{data.path}: {len(people)} identities: expected data.people + data.test_people, "
            f"{data.people + data.test_people}"
        )
    chosen = people[: data.people] if split == "train" else people[data.people : data.people + data.test_people]
    rows = np.flatnonzero(np.isin(labels, chosen))
    return unmeasured(Images(opened, rows, data.image_size), np.searchsorted(chosen, labels[rows]))


def _rendered(examples: Any, size: int) -> Faces:
    decoded = [transforms.decode(image, upright=False) for e in examples for image in np.asarray(e["image"])]
    images = [transforms.resize(image, size, size) for image in decoded]
    levels = np.stack(
        [
            np.stack([(e[k] - (k == "resolution")) / (faces.STRONGEST[k] - (k == "resolution")) for k in FAULTS], 1)
            for e in examples
        ]
    ).reshape(-1, len(FAULTS))
    numbers = np.array([e["person"] for e in examples])
    views = len(images) // len(examples)
    scale = size / decoded[0].shape[0]
    marks = scale * np.concatenate([e["landmarks68"] for e in examples])
    towards = np.concatenate([e["light"][:, :3] for e in examples])
    eyes = [marks[:, eye].mean(1) for eye in (slice(36, 42), slice(42, 48))]
    return Faces(
        images=np.stack(images),
        people=np.repeat(numbers - numbers.min(), views),
        fault=levels.max(1),
        kind=np.where(levels.max(1) > 0, levels.argmax(1), -1),
        yaw=np.concatenate([e["pose"][:, 1] for e in examples]),
        light=np.arccos(towards[:, 2] / np.linalg.norm(towards, axis=1)),
        landmarks=np.stack([*eyes, marks[:, 30], marks[:, 48], marks[:, 54]], 1),
    )
