"""Rendered faces with UV position maps: crops, their maps and landmarks for training and testing.

Coordinates are pixels of the crop, the first one's centre at 0.5; z grows towards the viewer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from facejax.data import pipeline, sources, transforms
from facejax.data.synthetic import faces
from facejax.morphable import crops
from facejax.morphable.procedural import procedural
from facejax.morphable.uv import UVLayout, uv_layout

SIDE = 64
"""Side of the face world's position maps."""


class Faces(NamedTuple):
    """N crops of S pixels.

    Attributes:
      images: [N, S, S, 3] uint8 RGB.
      positions: [N, S, S, 3].
      landmarks68: [N, 68, 2].
      yaw: [N] degrees.
    """

    images: np.ndarray
    positions: np.ndarray
    landmarks68: np.ndarray
    yaw: np.ndarray


@dataclasses.dataclass(frozen=True)
class PositionFaces:
    """The `data` section of an experiment that regresses position maps, of rendered faces.

    Attributes:
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: side of the crops and of the maps, pixels.
      enlarge: side of the crop over the mean of width and height of the landmarks' box.
      rotation: largest in-plane rotation of training crops, degrees.
      shift: largest movement along each axis, relative to the crop's side.
      scale: largest relative change of the side.
      colour: largest change of each channel's gain.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    data_dir: str = ""
    image_size: int = 64
    enlarge: float = 1.5
    rotation: float = 45.0
    shift: float = 0.1
    scale: float = 0.1
    colour: float = 0.4
    threads: int = 2
    workers: int = 0

    @property
    def layout(self) -> UVLayout:
        """What the texels stand for."""
        return _layout(self.image_size)

    def batches(self, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless batches {"image": uint8 [n, S, S, 3], "positions": [n, S, S, 3]}."""
        source = sources.Rows(_load("train", self.data_dir))
        workers = {"threads": self.threads, "workers": self.workers}
        return pipeline.train_batches(source, self._load, batch_size, seed=seed, **workers)

    def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch."""
        shape = (batch_size, self.image_size, self.image_size, 3)
        return {"image": jax.ShapeDtypeStruct(shape, jnp.uint8), "positions": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def test(self) -> Faces:
        """The held-out faces, without random changes."""
        known = _load("test", self.data_dir)
        rows = [{name: values[i] for name, values in known.items()} for i in range(len(known["yaw"]))]
        still = dataclasses.replace(self, rotation=0.0, shift=0.0, scale=0.0, colour=0.0)
        batch = still._load(rows, [np.random.default_rng(0)] * len(rows))
        matrices = [still._matrix(row, np.random.default_rng(0)) for row in rows]
        marks = np.stack([_moved(r["landmarks68"], m) for r, m in zip(rows, matrices, strict=True)])
        return Faces(batch["image"], batch["positions"], marks, known["yaw"])

    def _matrix(self, example: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
        """[2, 3] from the picture's coordinates to the crop's."""
        x1, y1, x2, _ = crops.roi_around(example["landmarks68"], self.enlarge)
        draw = rng.uniform(-1, 1, 4)
        side = (x2 - x1) * (1 + self.scale * draw[0])
        centre = np.array([x1 + x2, 2 * y1 + x2 - x1]) / 2 + side * self.shift * draw[1:3]
        angle, factor = np.radians(self.rotation * draw[3]), self.image_size / side
        turn = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return np.concatenate([turn, (self.image_size / 2 - turn @ centre)[:, None]], 1)

    def _load(self, examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        images, maps, size = [], [], self.image_size
        for example, rng in zip(examples, rngs, strict=True):
            matrix = self._matrix(example, rng)
            centres = matrix.copy()
            centres[:, 2] += centres[:, :2] @ [0.5, 0.5] - 0.5  # OpenCV: integers are centres
            image = transforms.warp(example["images"], centres, (size, size))
            gain = 1 + rng.uniform(-self.colour, self.colour, 3)
            images.append(np.clip(image * gain, 0, 255).astype(np.uint8) if self.colour else image)
            near = np.sqrt(np.linalg.det(matrix[:, :2])) * example["positions"][..., 2:]
            positions = np.concatenate([_moved(example["positions"][..., :2], matrix), near], -1)
            if size != SIDE:
                filled = _filled(positions, example["positions"].any(-1))
                positions = cv2.resize(filled, (size, size), interpolation=cv2.INTER_LINEAR)
            positions[..., 2] -= positions[..., 2][self.layout.mask].min()
            maps.append(positions.astype(np.float32))
        return {"image": np.stack(images), "positions": np.stack(maps)}


@functools.lru_cache(maxsize=4)
def _layout(size: int) -> UVLayout:
    return uv_layout(procedural(), size)


@functools.lru_cache(maxsize=2)
def _load(split: str, data_dir: str) -> dict[str, np.ndarray]:
    opened = faces.load("reconstruction", split, data_dir or None)
    examples = pipeline.fetch(opened, range(len(opened)))
    return {
        "images": np.stack([transforms.decode(e["image"], upright=False) for e in examples]),
        "positions": np.stack([e["position_map"] for e in examples]).astype(np.float32),
        "landmarks68": np.stack([e["landmarks68"] for e in examples]).astype(np.float32),
        "yaw": np.degrees([e["pose"][1] for e in examples]),
    }


def _filled(positions: np.ndarray, known: np.ndarray) -> np.ndarray:
    """A map [S, S, 3] whose texels outside of `known` [S, S] have the position of the nearest one inside."""
    rows, columns = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return positions[rows, columns]


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]
