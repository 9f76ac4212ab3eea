"""Faces with the parameters of a morphable model: square crops, 62-vectors and landmarks for training and testing.

Coordinates are `facejax.morphable.crops.FACEJAX`: pixels of the crop, the first one's centre at 0.5.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from facejax.data import pipeline, sources, transforms
from facejax.data.pipeline import Load
from facejax.data.readers import tddfa_crops
from facejax.data.synthetic import faces
from facejax.morphable import crops, fit, tddfa_files
from facejax.morphable.parameters import (
    Layout,
    LinearFace,
    Parameters,
    Whitening,
    at_vertices,
    face_region,
    join,
    linear_face,
    model_shape,
    subset,
)
from facejax.morphable.procedural import procedural

LAYOUT = Layout()


class Faces(NamedTuple):
    """N pictures of one face each, S pixels wide and high.

    Attributes:
      images: [N, S, S, 3] uint8 RGB.
      parameters: [N, 62] vectors of the faces in the pictures.
      landmarks68: [N, 68, 2] true landmarks, pixels.
      visible68: [N, 68] bool, landmarks that the camera sees.
      yaw: [N] degrees.
      roi: [N, 4] the square around each face that is cropped.
      person: [N] int, who is in the pictures.
    """

    images: np.ndarray
    parameters: np.ndarray
    landmarks68: np.ndarray
    visible68: np.ndarray
    yaw: np.ndarray
    roi: np.ndarray
    person: np.ndarray


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Random changes of the cropped square: uniform shifts along each axis and sizes, relative to its side."""

    shift: float = 0.0
    scale: float = 0.0

    def __call__(self, roi: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[4] -> [4]."""
        side = roi[2] - roi[0]
        centre = (roi[:2] + roi[2:]) / 2 + side * self.shift * rng.uniform(-1, 1, 2)
        half = side / 2 * (1 + self.scale * rng.uniform(-1, 1))
        return np.concatenate([centre - half, centre + half])


@dataclasses.dataclass(frozen=True)
class ReconstructionFaces:
    """The `data` section of an experiment that reconstructs faces.

    Attributes:
      kind: "face_world" (rendered), or "crops", the 120-pixel crops of 300W-LP that 3DDFA's authors publish.
      path: with "crops", a folder of train_aug_120x120.list.train, param_all_norm.pkl, the folder train_aug_120x120,
        and 3DDFA's train.configs: param_whitening.pkl, u_shp.npy, u_exp.npy, w_shp_sim.npy, w_exp_sim.npy,
        keypoints_sim.npy, and its visualize/tri.mat.
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: side of the crops, pixels.
      people: of the face world, training identities used; 0: all.
      shift, scale: see `Jitter`; the published crops are augmented already.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    kind: str = "face_world"
    path: str = ""
    data_dir: str = ""
    image_size: int = 64
    people: int = 0
    shift: float = 0.1
    scale: float = 0.15
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("face_world", "crops"):
            raise ValueError(f"data.kind is {self.kind!r}: expected face_world or crops")

    def load(self, split: str) -> Faces:
        """All pictures of the face world's "train" or "test"; the most recent results stay in memory."""
        return _load(self, split)

    def test(self) -> Faces:
        """The face world's held-out faces as crops of `image_size`, without jitter; `roi` is the whole crop."""
        known = self.load("test")
        size, height = self.image_size, known.images.shape[1]
        images = [crop(image, roi, size) for image, roi in zip(known.images, known.roi, strict=True)]
        moved = crops.crop_parameters(known.parameters, known.roi, size, height)
        marks = crops.crop_points(known.landmarks68, known.roi, size)
        whole = np.tile(np.float32([0, 0, size, size]), (len(images), 1))
        return Faces(np.stack(images), moved, marks.astype(np.float32), known.visible68, known.yaw, whole, known.person)

    def whitening(self) -> Whitening:
        """Mean and deviation of the training vectors: measured on jittered crops, or those of the published file."""
        if self.kind == "crops":
            return tddfa_files.read_whitening(pathlib.Path(self.path).expanduser() / "param_whitening.pkl", LAYOUT.size)
        known, jitter, rng = self.load("train"), Jitter(self.shift, self.scale), np.random.default_rng(0)
        roi = np.stack([jitter(r, rng) for r in known.roi])
        vectors = crops.crop_parameters(known.parameters, roi, self.image_size, known.images.shape[1])
        return Whitening.of(vectors)

    def face(self) -> LinearFace:
        """The linear model of the vectors: the procedural head's face region, or 3DDFA's mesh."""
        if self.kind == "face_world":
            return procedural_face()
        return tddfa_files.read_dense_face(pathlib.Path(self.path).expanduser(), LAYOUT)

    def resident_face(self) -> LinearFace:
        """`face`, read when its numbers are needed and not when only its shapes are."""
        if self.kind == "face_world":
            with jax.ensure_compile_time_eval():
                return self.face()
        return jax.pure_callback(self.face, tddfa_files.dense_shapes(LAYOUT))

    def batches(self, batch_size: int, seed: int, load: Load | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Endless batches of `loader`, or of another `load` of the same examples."""
        if self.kind == "crops":
            folder = pathlib.Path(self.path).expanduser()
            source = tddfa_crops.TrainingCrops(folder, self.whitening())
        else:
            source = sources.Rows(self.load("train")._asdict())
        options = {"seed": seed, "threads": self.threads, "workers": self.workers}
        return pipeline.train_batches(source, load or self.loader(), batch_size, **options)

    def loader(self) -> Load:
        """Batches {"image": uint8 [n, S, S, 3], "parameters": [n, 62], "landmarks68": [n, 68, 2]} of jittered crops.

        Published crops have no landmarks of their own; there, "landmarks68" is missing.
        """
        return (
            published_batch if self.kind == "crops" else functools.partial(cropped_batch, self.image_size, self.jitter)
        )

    @property
    def convention(self) -> crops.Convention:
        """From vertices of the vectors to pixels, the first one's centre at 0.5."""
        return crops.FACEJAX if self.kind == "face_world" else crops.PUBLISHED

    @property
    def jitter(self) -> Jitter:
        return Jitter(self.shift, self.scale)


def crop(image: np.ndarray, roi: np.ndarray, size: int) -> np.ndarray:
    """The region [4] of an image as [size, size, 3], bilinear, black outside of the image.

    Unlike the published code, which cuts the region at whole pixels before it resizes, any region is exact.

    Raises:
      ValueError: a region without area.
    """
    sides = roi[2:] - roi[:2]
    if not np.isfinite(sides).all() or not (sides > 0).all():
        raise ValueError(f"crop: the region {np.asarray(roi).tolist()}, expected x1 < x2 and y1 < y2")
    factor = size / sides
    shift = factor * (0.5 - roi[:2]) - 0.5  # OpenCV: integers are centres
    return transforms.warp(image, np.array([[factor[0], 0, shift[0]], [0, factor[1], shift[1]]]), (size, size))


def whole_pixel_crop(image: np.ndarray, roi: np.ndarray, size: int) -> np.ndarray:
    """The crop of the published code: corners rounded to pixels, cut with zeros outside, then resized bilinearly."""
    x1, y1, x2, y2 = (round(float(x)) for x in roi)
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"crop: the region {np.asarray(roi).tolist()}, expected x1 < x2 and y1 < y2")
    height, width = image.shape[:2]
    cut = np.zeros((y2 - y1, x2 - x1, 3), np.uint8)
    top, bottom, left, right = max(y1, 0), min(y2, height), max(x1, 0), min(x2, width)
    if top < bottom and left < right:
        cut[top - y1 : bottom - y1, left - x1 : right - x1] = image[top:bottom, left:right]
    return cv2.resize(cut, (size, size), interpolation=cv2.INTER_LINEAR)


def cropped_batch(
    size: int, jitter: Jitter, examples: Sequence[Any], rngs: Sequence[np.random.Generator]
) -> dict[str, np.ndarray]:
    """Crops of `Faces` rows, each of its own jittered square."""
    roi = np.stack([jitter(e["roi"], rng) for e, rng in zip(examples, rngs, strict=True)])
    height = examples[0]["images"].shape[0]
    images = np.stack([crop(e["images"], r, size) for e, r in zip(examples, roi, strict=True)])
    vectors, marks = (np.stack([e[name] for e in examples]) for name in ("parameters", "landmarks68"))
    moved = crops.crop_parameters(vectors, roi, size, height)
    points = crops.crop_points(marks, roi, size)
    return {"image": images, "parameters": moved, "landmarks68": points.astype(np.float32)}


def published_batch(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
    """Crops of `facejax.data.readers.tddfa_crops.TrainingCrops`."""
    del rngs
    return {name: np.stack([e[name] for e in examples]) for name in ("image", "parameters")}


@functools.cache
def procedural_face() -> LinearFace:
    """The face region of the procedural head as a linear model of 40 + 10 components."""
    model = procedural()
    return subset(linear_face(model, LAYOUT), face_region(model))


@functools.lru_cache(maxsize=2)
def _load(data: ReconstructionFaces, split: str) -> Faces:
    if data.kind != "face_world":
        raise ValueError(f"data.kind is {data.kind!r}: only the face world has pictures of the split {split!r}")
    opened = faces.load("reconstruction", split, data.data_dir or None)
    examples = pipeline.fetch(opened, range(len(opened)))
    if split == "train" and data.people:
        first = min(e["person"] for e in examples)
        examples = [e for e in examples if e["person"] < first + data.people]
    images = np.stack([transforms.decode(e["image"], upright=False) for e in examples])
    marks = np.stack([e["landmarks68"] for e in examples]).astype(np.float32)
    return Faces(
        images=images,
        parameters=np.asarray(rendered_parameters(examples, images.shape[1])),
        landmarks68=marks,
        visible68=np.stack([e["visible68"] for e in examples]),
        yaw=np.degrees(np.stack([e["pose"][1] for e in examples])),
        roi=crops.roi_from_landmarks(marks),
        person=np.array([e["person"] for e in examples]),
    )


def rendered_parameters(examples: Sequence[Any], size: int) -> jax.Array:
    """Vectors [N, 62] of the face world's examples in their pictures of `size` pixels.

    Shape and expression are the true coefficients, cut to 40 and 10. The pictures have perspective, so that the pose is
    the weak perspective that is nearest to the true 68 landmarks, as that of 300W-LP is a fit.
    """
    model = procedural()
    identity = np.stack([e["identity"] for e in examples])[:, : LAYOUT.shape]
    strengths = np.stack([e["expression"] for e in examples])
    expression = (strengths @ np.stack(list(model.expressions.values())))[:, : LAYOUT.expression]
    coefficients = Parameters(None, jnp.asarray(identity), jnp.asarray(expression, jnp.float32))
    vertices = model_shape(at_vertices(linear_face(model, LAYOUT), model.landmarks68), coefficients)
    marks = np.stack([e["landmarks68"] for e in examples])
    upright = np.stack([marks[..., 0], size - marks[..., 1]], -1)
    return join(coefficients._replace(pose=fit.fit_pose(vertices, jnp.asarray(upright, jnp.float32))))
