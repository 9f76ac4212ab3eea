"""Faces cut out of rendered scenes, with 68 landmarks, head pose and age: surroundings as a detector meets them.

Integer coordinates are pixel centres, in scenes and in crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from facejax.data import landmark_images, transforms
from facejax.data.attribute_images import labels
from facejax.data.keypoints import moved
from facejax.data.landmark_images import Augmentation
from facejax.data.landmarks import MIRROR_68
from facejax.data.pipeline import Load
from facejax.data.synthetic import factors, scenes
from facejax.data.synthetic.scenes import Scenes
from facejax.morphable import camera, model
from facejax.morphable.procedural import procedural
from facejax.ops import rotation

STILL = Augmentation(rotation=0.0, scale=0.0, shift=0.0, flip=0.0, colour=0.0)
"""Changes nothing: test crops."""


class SceneFaces:
    """The faces of a split of scenes that lie inside their image.

    An example is a dict of "image" (encoded bytes of the scene), "points" [68, 2], "box" (x1, y1, x2, y2) as the scene
    gives it, "pose" (pitch, yaw, roll in radians, as `facejax.ops.rotation.from_euler`) and "age" (years).

    Args:
      settings: of the scenes.
      split: "train" or "test".
      lowest: smallest height of a face's box, pixels.
      hidden: largest covered part of the box, 0..1.
      data_dir: folder of prepared data; None: the default.
    """

    def __init__(
        self, settings: Scenes, split: str, lowest: float, hidden: float = 0.4, data_dir: str | None = None
    ) -> None:
        self._scenes = scenes.load(settings, split, data_dir)
        found: dict[str, list[np.ndarray]] = {}
        for number in range(len(self._scenes)):
            example = self._scenes[number]
            heights = example["boxes"][:, 3] - example["boxes"][:, 1]
            rows = np.flatnonzero((heights >= lowest) & (example["occlusion"] <= hidden))
            kept = {
                name: example[name][rows] for name in ("boxes", "person", "identity", "expression", "pose", "camera")
            }
            for name, value in {**kept, "scene": np.full(len(rows), number)}.items():
                found.setdefault(name, []).append(value)
        every = {name: np.concatenate(values) for name, values in found.items()}
        points = mesh_landmarks(*(every[name] for name in ("identity", "expression", "pose", "camera")))
        inside = ((points > 0) & (points < settings.image_size)).all((1, 2))
        self._scene, self._boxes, self._points = every["scene"][inside], every["boxes"][inside], points[inside]
        self._pose, self._age = every["pose"][inside], ages(settings, every["person"][inside])

    def __len__(self) -> int:
        return len(self._scene)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._scenes[int(self._scene[index])]["image"]
        points = self._points[index] - 0.5  # from corners of pixels to their centres
        return {
            "image": image, "points": points, "box": self._boxes[index], "pose": self._pose[index],
            "age": self._age[index],
        }  # fmt: skip


def mesh_landmarks(identity: np.ndarray, expression: np.ndarray, angles: np.ndarray, place: np.ndarray) -> np.ndarray:
    """68 landmarks [N, 68, 2] of the meshes that `facejax.data.synthetic.scenes` describes, continuous pixels."""
    face = procedural()
    vertices = model.shape(_landmarks_alone(face), identity, expression)
    turned = rotation.from_euler(angles)
    return np.asarray(camera.perspective(vertices, turned, place[:, 0], place[:, 1:3], place[:, 3])[..., :2])


def _landmarks_alone(face: model.MorphableModel) -> model.MorphableModel:
    rows = np.asarray(face.landmarks68)
    bases = {name: getattr(face, name)[rows] for name in ("mean_shape", "identity_basis", "expression_basis")}
    return face.replace(**bases)


def ages(settings: Scenes, people: np.ndarray) -> np.ndarray:
    """Ages [N] in years of the people [N] of scenes."""
    face = procedural()
    dimensions = (face.identity_std.shape[0], face.albedo_std.shape[0])
    numbers, rows = np.unique(people, return_inverse=True)
    known = [factors.person(settings.seed, int(n), dimensions, factors.Ranges())["age"] for n in numbers]
    return np.array(known, np.float32)[rows]


def square(box: Sequence[float], factor: float) -> tuple[float, float, float]:
    """(x, y, side) of the square around the middle of a box in continuous pixels, `factor` times its longer side."""
    x1, y1, x2, y2 = box
    return (x1 + x2 - 1) / 2, (y1 + y2 - 1) / 2, factor * max(x2 - x1, y2 - y1)


def loader(size: int, factor: float, augmentation: Augmentation, grey: float = 0.0) -> Load:
    """Batches {"image": uint8 [n, S, S, 3], "points": [n, 68, 2], "pose": [n, 3], "age": [n]}.

    Points are pixels of the crop, poses yaw, pitch, roll in degrees as `facejax.metrics.pose` calls labels.

    Args:
      size: side S of the crops, pixels.
      factor: see `square`.
      augmentation: random changes; the pose follows turns and flips.
      grey: probability of a grey crop.
    """

    def example(found: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        image = transforms.decode(found["image"], upright=False)
        region, angle = landmark_images.jittered(square(found["box"], factor), augmentation, rng)
        mirror = rng.random() < augmentation.flip
        matrix = landmark_images.region_matrix(region, angle, size, mirror)
        points = moved(found["points"], matrix)
        crop = landmark_images.changed(landmark_images.crop(image, matrix, size), augmentation, rng)
        return {
            "image": greyed(crop) if rng.random() < grey else crop,
            "points": (points[MIRROR_68] if mirror else points).astype(np.float32),
            "pose": labels(turned(found["pose"], angle, mirror)).astype(np.float32),
            "age": np.float32(found["age"]),
        }

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        made = [example(e, rng) for e, rng in zip(examples, rngs, strict=True)]
        return {name: np.stack([one[name] for one in made]) for name in made[0]}

    return load


def greyed(image: np.ndarray) -> np.ndarray:
    """[..., 3] uint8 RGB without colour."""
    grey = image @ np.array([0.299, 0.587, 0.114])
    return np.repeat(np.rint(grey)[..., None], 3, -1).astype(np.uint8)


def turned(angles: np.ndarray, degrees: float, mirror: bool) -> np.ndarray:
    """Angles [3] in radians of a head after its image was turned clockwise and then mirrored, or not."""
    whole = Rotation.from_euler("z", -degrees, degrees=True) * Rotation.from_euler("XYZ", angles)
    return whole.as_euler("XYZ") * ([1, -1, -1] if mirror else [1, 1, 1])
