"""Faces with an age or a head pose: crops, augmentation, and the `data` section of estimators.

An example of a source is a dict of "image" (encoded bytes), "target" (an age in years, or yaw, pitch, roll in degrees
as `facejax.metrics.pose` calls labels) and, where the face has to be cut out, "box" (x1, y1, x2, y2) in pixels, whose
integers are pixel centres.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from facejax.data import landmark_images, pipeline, sources, transforms
from facejax.data.pipeline import Source
from facejax.data.readers import ages, head_pose
from facejax.data.readers.aflw2000_crops import SIZE, Aflw2000Crops
from facejax.data.readers.landmarks import FaceImages
from facejax.data.synthetic import faces

KINDS = {
    "face_world": ("age", "pose"),
    "imdb_wiki": ("age",),
    "morph2": ("age",),
    "mega_age": ("age",),
    "300w_lp": ("pose",),
}
"""Kind of data -> what it can be asked for."""
SIZES = {"age": (), "pose": (3,)}
"""Shape of a target."""
PARTS = ("AFW", "HELEN", "IBUG", "LFPW")
"""Folders of 300W-LP; each has another, with _Flip in its name, of mirrored images."""


def labels(pose: np.ndarray) -> np.ndarray:
    """Pitch, yaw, roll [..., 3] of `facejax.ops.rotation.from_euler` -> yaw, pitch, roll in degrees, as 300W-LP's."""
    return -np.degrees(pose)[..., [1, 0, 2]]


def loose_crop(image: np.ndarray, box: Sequence[float], margin: float, size: int, name: str = "a face") -> np.ndarray:
    """The box enlarged and cut at the borders of the image, stretched to [size, size, 3].

    As in the published code of FSA-Net, corners are truncated to integers, which count from 1 in the annotation and
    from 0 in the image, and the last row and column are left out.

    Args:
      image: uint8 [H, W, 3].
      box: (x1, y1, x2, y2); integers are pixel centres.
      margin: enlargement on every side, relative to the box's width or height.
      size: side of the crop, pixels.
      name: what an error calls the face.

    Raises:
      ValueError: numbers that are not finite, or nothing of the box lies in the image.
    """
    if not np.isfinite(box).all():
        raise ValueError(f"{name}: box {tuple(map(float, box))}: expected finite numbers")
    left, top, right, bottom = (int(round(float(v), 3) + 1) for v in box)
    dx, dy = margin * (right - left), margin * (bottom - top)
    left, right = max(int(left - dx), 0), min(int(right + dx), image.shape[1] - 1)
    top, bottom = max(int(top - dy), 0), min(int(bottom + dy), image.shape[0] - 1)
    if left >= right or top >= bottom:
        raise ValueError(
            f"{name}: the box {tuple(map(float, box))} leaves no pixel of an image of {image.shape[1]} x "
            f"{image.shape[0]}: expected a face inside it"
        )
    return cv2.resize(image[top:bottom, left:right], (size, size))


def moved(image: np.ndarray, matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The image transformed about its centre by `matrix` [2, 2] and `shift` [2] pixels; its border is repeated."""
    centre = (np.array(image.shape[1::-1]) - 1) / 2
    whole = np.concatenate([matrix, (centre - matrix @ centre + shift)[:, None]], 1)
    return transforms.warp(image, whole, image.shape[:2], cv2.BORDER_REPLICATE)


def age_changes(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """SSR-Net's augmentation: a flip with probability 1/2; rotation, shear, shift and zoom with 1/4 each.

    The four changes are one bilinear warp; the authors' code resamples the image up to four times.
    """
    matrix, shift = np.eye(2), np.zeros(2)
    if rng.random() < 0.25:
        angle = np.radians(rng.uniform(-20, 20))
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if rng.random() < 0.25:
        shear = rng.uniform(-0.2, 0.2)
        matrix = matrix @ [[np.cos(shear), 0], [-np.sin(shear), 1]]
    if rng.random() < 0.25:
        shift = rng.uniform(-0.2, 0.2, 2) * image.shape[1::-1]
    if rng.random() < 0.25:
        matrix = matrix * rng.uniform(0.8, 1.2, 2)
    image = moved(image, matrix, shift) if shift.any() or (matrix != np.eye(2)).any() else image
    return transforms.random_flip(image, rng)


def pose_changes(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """FSA-Net's augmentation, which keeps the angles: a random crop, then a zoom with probability 0.7.

    With a quarter each, the crop is stretched to the whole image, or put on black, or on white, or left out. It lacks
    up to 15 of 64 rows and columns. The zoom scales both axes by 0.8 to 1.2, on their own.
    """
    height, width = image.shape[:2]
    choice = rng.integers(4)
    if choice < 3:
        cut = int(rng.integers(1, max(round(15 * width / 64), 1) + 1))
        x, y, to_x, to_y = rng.integers(0, cut, 4)
        part = image[y : height - cut + y, x : width - cut + x]
        if choice == 0:
            image = cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)
        else:
            image = np.full_like(image, 0 if choice == 1 else 255)
            image[to_y : to_y + part.shape[0], to_x : to_x + part.shape[1]] = part
    if rng.random() > 0.3:
        image = moved(image, np.diag(rng.uniform(0.8, 1.2, 2)), np.zeros(2))
    return image


CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "age": age_changes,
    "pose": pose_changes,
}


@dataclasses.dataclass(frozen=True)
class AttributeImages:
    """The `data` section of an estimator's experiment.

    Attributes:
      attribute: "age" or "pose".
      kind: a key of `KINDS`.
      path: imdb_wiki: imdb.mat or wiki.mat, beside its images; morph2: folder of aligned images; mega_age: folder with
        train, test and list; 300w_lp: folder with AFW, AFW_Flip, ...; empty for the face world.
      test_path: 300w_lp: folder of AFLW2000-3D's images and .mat files.
      task: task of the face world.
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: side of the network's input, pixels.
      margin: enlargement of a face's box on every side, relative to its width or height.
      limit: poses with an angle beyond it, in degrees, are left out.
      augment: whether training images are changed at random, as in the attribute's paper.
      split_seed: of the random split of imdb_wiki and morph2: 80 % of the images for training.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    attribute: str = "age"
    kind: str = "face_world"
    path: str = ""
    test_path: str = ""
    task: str = "attributes"
    data_dir: str = ""
    image_size: int = 64
    margin: float = 0.2
    limit: float = 99.0
    augment: bool = True
    split_seed: int = 0
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"data.kind is {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.attribute not in KINDS[self.kind]:
            raise ValueError(f"data.attribute is {self.attribute!r}: {self.kind} has {' and '.join(KINDS[self.kind])}")
        if not 0 <= self.margin <= 2:
            raise ValueError(f"data.margin is {self.margin}: expected 0 to 2")

    def source(self, split: str) -> Source:
        """The examples of "train" or "test"."""
        if self.kind == "face_world":
            return FaceWorld(self.task, split, self.attribute, self.data_dir or None)
        if self.kind == "300w_lp":
            return Annotated(self._heads(split), "pose", self.limit)
        path = pathlib.Path(self.path).expanduser()
        if self.kind == "mega_age":
            return Annotated(ages.read_mega_age(path, split), "age")
        found = ages.read_morph(path) if self.kind == "morph2" else ages.read_imdb_wiki(path, path.parent)
        order = np.random.default_rng(self.split_seed).permutation(len(found))
        cut = int(0.8 * len(found))
        rows = order[:cut] if split == "train" else order[cut:]
        return Annotated(FaceImages([found.faces[row] for row in rows]), "age")

    def _heads(self, split: str) -> FaceImages:
        if split == "test":
            return head_pose.read_folder(pathlib.Path(self.test_path).expanduser())
        root = pathlib.Path(self.path).expanduser()
        folders = [root / name for part in PARTS for name in (part, f"{part}_Flip")]
        return FaceImages([face for folder in folders for face in head_pose.read_folder(folder).faces])

    def crop(self, example: dict[str, Any]) -> np.ndarray:
        """The example's image, cut out where it has a box: uint8 [S, S, 3]."""
        image = transforms.decode(example["image"], upright=False)
        if "box" in example:
            return loose_crop(image, example["box"], self.margin, self.image_size, example.get("name", "a face"))
        return cv2.resize(image, (self.image_size, self.image_size))

    def load_test(self, examples: Sequence[Any]) -> dict[str, np.ndarray]:
        """A batch {"image": uint8 [n, S, S, 3], "target": float32 [n] or [n, 3]}."""
        images = np.stack([self.crop(e) for e in examples])
        return {"image": images, "target": np.float32([e["target"] for e in examples])}

    def load(self, examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        """A training batch: that of `load_test`, augmented."""
        batch, change = self.load_test(examples), CHANGES[self.attribute]
        if self.augment:
            batch["image"] = np.stack([change(x, rng) for x, rng in zip(batch["image"], rngs, strict=True)])
        return batch

    def batches(self, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless training batches of `load`."""
        options = {"threads": self.threads, "workers": self.workers}
        options["checked"] = lambda: sources.Chain(self.source("train"), self.source("test"))
        return pipeline.train_batches(self.source("train"), self.load, batch_size, seed=seed, **options)

    def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a training batch."""
        return {
            "image": jax.ShapeDtypeStruct((batch_size, self.image_size, self.image_size, 3), jnp.uint8),
            "target": jax.ShapeDtypeStruct((batch_size, *SIZES[self.attribute]), jnp.float32),
        }


class FaceWorld:
    """A split of the face world; boxes surround the landmarks.

    Args:
      task: name of the task.
      split: "train" or "test".
      attribute: "age" or "pose".
      data_dir: folder of prepared data; None: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
    """

    def __init__(self, task: str, split: str, attribute: str, data_dir: str | None = None):
        self._source, self._attribute = faces.load(task, split, data_dir), attribute

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._example(self._source[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self._example(e) for e in pipeline.fetch(self._source, indices)]

    def _example(self, found: dict[str, Any]) -> dict[str, Any]:
        points = np.asarray(found["landmarks68"]) - 0.5  # from corners of pixels to their centres
        target = found["age"] if self._attribute == "age" else labels(np.asarray(found["pose"]))
        return {"image": found["image"], "target": target, "box": np.concatenate([points.min(0), points.max(0)])}


class Annotated:
    """Annotated faces as examples.

    Args:
      found: the faces, all with the attribute.
      attribute: "age" or "pose".
      limit: poses with an angle beyond it, in degrees, are left out.

    Raises:
      ValueError: no face is left.
    """

    def __init__(self, found: FaceImages, attribute: str, limit: float = np.inf):
        self._attribute = attribute
        kept = found.faces
        if attribute == "pose":
            kept = [face for face in kept if np.abs(labels(face.pose)).max() <= limit]
        if not kept:
            raise ValueError(f"none of {len(found)} faces has all angles within {limit:g} degrees: expected some")
        self._found = FaceImages(kept)

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._found[index]
        target = example["age"] if self._attribute == "age" else labels(example["pose"])
        return {name: example[name] for name in ("image", "name", "box") if name in example} | {"target": target}


class Photographs:
    """The official crops of AFLW2000-3D as examples; boxes surround the landmarks, targets are yaws in degrees.

    Args:
      folder: see `facejax.data.readers.aflw2000_crops`.
    """

    def __init__(self, folder: str):
        self._crops = Aflw2000Crops(folder)
        points = landmark_images.photographs(folder, SIZE, 1.0).points
        self._boxes = np.concatenate([points.min(1), points.max(1)], 1)

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> dict[str, Any]:
        fields = {"name": self._crops.names[index], "target": self._crops.signed_yaw[index]}
        return {"image": self._crops.encoded(index), "box": self._boxes[index], **fields}
