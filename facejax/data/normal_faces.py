"""Photographs of people, each with a normalised face of the person: frontal, neutral, evenly lit, with landmarks.

Points are in pixels (x, y), the first pixel's centre at 0.5.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from facejax.data import pipeline, sources, transforms
from facejax.data.decoding import ImageFile
from facejax.data.readers.folder import ImageFolder
from facejax.data.readers.landmarks import read_pts
from facejax.data.synthetic import faces
from facejax.data.synthetic.factors import Factors, Ranges
from facejax.ops import spline

KINDS = ("face_world", "folder")


def normalised(first: Factors, view: int) -> Factors:
    """The person of a picture from the front, neutral, without glasses, in even light before a grey wall."""
    del view
    absent = ("glasses", "occluder", "motion", "defocus", "noise", "jpeg")
    return {
        **first,
        **{name: np.array(0.0) for name in absent},
        "resolution": np.array(1.0),
        "pose": np.zeros(3),
        "jitter": np.zeros(3),
        "expression_strength": np.zeros_like(first["expression_strength"]),
        "distance": np.array(8.0),
        "light_direction": np.array([0.0, 0.25, 1.0]),
        "light_colour": np.full(3, 0.65),
        "ambient": np.full(3, 0.45),
        "background": np.full((2, 3), 0.5),
    }


PHOTOGRAPHS = faces.Task("normal_photographs", 48, 240, 60, 6, Ranges(), aligned=True, seed=8)
NORMAL = dataclasses.replace(PHOTOGRAPHS, name="normal_faces", per_person=1, vary=normalised)
"""Equal seeds and ranges: the same people."""


class People(NamedTuple):
    """Normalised faces of P people and N photographs of them.

    Attributes:
      images: [P, S, S, 3] uint8 normalised faces.
      landmarks: [P, 68, 2] float32 in them.
      photographs: [N, S, S, 3] uint8.
      person: [N] int32, whose.
    """

    images: np.ndarray
    landmarks: np.ndarray
    photographs: np.ndarray
    person: np.ndarray

    @property
    def mean_landmarks(self) -> np.ndarray:
        """[68, 2] float32."""
        return self.landmarks.mean(0)


@dataclasses.dataclass(frozen=True)
class NormalFaces:
    """The `data` section of an experiment on normalised faces.

    Attributes:
      kind: "face_world" (rendered), or "folder": person/picture with person/picture.pts beside it, 68 landmarks of
        frontal, neutral, evenly lit faces. They are aligned by five points; a person's are averaged into one.
      path: with "folder", the folder.
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: side of the images, pixels, a multiple of 16.
      held_out: of a folder, every so-manieth person is a test person.
      photographs: whether the decoder's inputs in training are photographs, or the normalised faces themselves.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    kind: str = "face_world"
    path: str = ""
    data_dir: str = ""
    image_size: int = 48
    held_out: int = 10
    photographs: bool = True
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"data.kind is {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.held_out < 2:
            raise ValueError(f"data.held_out is {self.held_out}: expected 2 or more")

    def load(self, split: str) -> People:
        """The people of "train" or "test"; the most recent results stay in memory."""
        return _load(self, split)

    def textures(self, *, order: int = 1, smoothing: float = 0.0) -> np.ndarray:
        """[P, S, S, 3] uint8: the training people's normalised faces, warped to the mean landmarks.

        `order` and `smoothing` are those of `facejax.ops.spline.warp`.
        """
        return _textures(self, order, smoothing)

    def batches(self, textures: np.ndarray, neighbours: np.ndarray, batch_size: int, seed: int) -> Any:
        """Endless training batches, see `loader`.

        Args:
          textures: [P, S, S, 3] uint8 of the training people, as from the method of that name.
          neighbours: [P, k] int, people to pair each with.
          batch_size, seed: see `facejax.data.pipeline.train_batches`.
        """
        people = self.load("train")
        if not self.photographs:
            everyone = np.arange(len(people.images), dtype=np.int32)
            people = people._replace(photographs=people.images, person=everyone)
        rows = sources.Rows({"image": people.photographs, "person": people.person})
        load = loader(people.landmarks, textures, neighbours)
        options = {"threads": self.threads, "workers": self.workers}
        return pipeline.train_batches(rows, load, batch_size, seed=seed, **options)

    def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a training batch."""
        image = jax.ShapeDtypeStruct((batch_size, self.image_size, self.image_size, 3), np.uint8)
        points = jax.ShapeDtypeStruct((batch_size, 68, 2), np.float32)
        faces = {"landmarks": points, "texture": image}
        return {"image": image, **faces, **{f"other_{name}": shape for name, shape in faces.items()}}


def loader(landmarks: np.ndarray, textures: np.ndarray, neighbours: np.ndarray) -> pipeline.Load:
    """Batches {"image", "landmarks", "texture", "other_landmarks", "other_texture"}: pictures and two normalised faces.

    The first is the person's, the other that of a random one of the neighbours.

    Args:
      landmarks: [P, 68, 2].
      textures: [P, S, S, 3].
      neighbours: [P, k] int.
    """

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        person = np.array([e["person"] for e in examples])
        others = np.array([rng.choice(neighbours[p]) for p, rng in zip(person, rngs, strict=True)])
        return {
            "image": np.stack([e["image"] for e in examples]),
            "landmarks": landmarks[person],
            "texture": textures[person],
            "other_landmarks": landmarks[others],
            "other_texture": textures[others],
        }

    return load


@functools.lru_cache(maxsize=2)
def _load(data: NormalFaces, split: str) -> People:
    return _rendered(data, split) if data.kind == "face_world" else _averaged(data, split)


@functools.lru_cache(maxsize=2)
def _textures(data: NormalFaces, order: int, smoothing: float) -> np.ndarray:
    move = jax.jit(functools.partial(spline.warp, order=order, smoothing=smoothing))
    people = data.load("train")
    pairs = zip(people.images, people.landmarks, strict=True)
    found = [move(np.float32(image), points, people.mean_landmarks) for image, points in pairs]
    return np.rint(np.stack(found)).astype(np.uint8)


def _rendered(data: NormalFaces, split: str) -> People:
    tasks = (dataclasses.replace(task, image_size=data.image_size) for task in (NORMAL, PHOTOGRAPHS))
    opened = (faces.load(task, split, data.data_dir or None) for task in tasks)
    normal, seen = (pipeline.fetch(source, range(len(source))) for source in opened)
    numbers = {example["person"]: number for number, example in enumerate(normal)}
    images, photographs = (np.stack([transforms.decode(e["image"]) for e in found]) for found in (normal, seen))
    person = np.array([numbers[e["person"]] for e in seen], np.int32)
    return People(images, np.stack([e["landmarks68"] for e in normal]).astype(np.float32), photographs, person)


def _averaged(data: NormalFaces, split: str) -> People:
    folder, size = ImageFolder(pathlib.Path(data.path).expanduser()), data.image_size
    labels = np.array(folder.labels)
    if folder.num_classes < 2:
        raise ValueError(f"{data.path}: {folder.num_classes} person: expected two or more, one of them for the test")
    wanted = [p for p in range(folder.num_classes) if (p % data.held_out == 1) == (split == "test")]
    rows = np.flatnonzero(np.isin(labels, wanted))
    crops, points = zip(*(aligned(folder.paths[i], size) for i in rows), strict=True)
    crops, points = np.stack(crops), np.stack(points)
    person = np.searchsorted(wanted, labels[rows]).astype(np.int32)
    means = np.stack([points[person == p].mean(0) for p in range(len(wanted))])
    totals = np.zeros((len(wanted), size, size, 3))
    for crop, source, p in zip(crops, points, person, strict=True):
        totals[p] += _moved(np.float32(crop), source, means[p])
    images = totals / np.bincount(person)[:, None, None, None]
    return People(np.rint(images).astype(np.uint8), means, crops, person)


_moved = jax.jit(functools.partial(spline.warp, smoothing=1e-4))


def aligned(picture: pathlib.Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture with its .pts file, aligned to the recognition template: uint8 [size, size, 3] and points [68, 2].

    Raises:
      OSError: there is no .pts file.
    """
    points = read_pts(picture.with_suffix(".pts"), 68)
    matrix = transforms.similarity_transform(transforms.five_points(points), transforms.template(size))
    image = transforms.decode(ImageFile.read(picture), upright=False)
    moved = points @ matrix[:, :2].T + matrix[:, 2] + 0.5
    return transforms.warp(image, matrix, (size, size), cv2.BORDER_REPLICATE), moved.astype(np.float32)
