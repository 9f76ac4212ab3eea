"""Images for generators, aligned by a face model: its origin is at the centre, in one size, and the roll is kept.

With them come the parameters of the faces: rendered ones' true values, or a file.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import cv2
import numpy as np

from facejax.data import pipeline, transforms
from facejax.data.generation import Decoded, GenerationImages
from facejax.data.pipeline import Source
from facejax.data.synthetic import faces
from facejax.formats import arrays
from facejax.morphable.parameters import face_region
from facejax.morphable.procedural import procedural


class Truth(NamedTuple):
    """True values of N rendered faces.

    Attributes:
      identity, albedo, expression: [N, I], [N, A] and [N, E] coefficients of the procedural head.
      pose: [N, 3] angles of `facejax.ops.rotation.from_euler`.
      light: [N, 9] direction, colour and ambient of `facejax.morphable.lighting.directional_light`.
    """

    identity: np.ndarray
    albedo: np.ndarray
    expression: np.ndarray
    pose: np.ndarray
    light: np.ndarray


@dataclasses.dataclass(frozen=True)
class ModelAlignedImages(GenerationImages):
    """The `data` section; other fields are those of `GenerationImages`, whose folders hold aligned images.

    Attributes:
      parameters: with source "folder", an .npy file [N, D] of the images' coefficients.
      zoom: of the face world, half sides of the image per unit of the model at its origin.
    """

    parameters: str = ""
    zoom: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source not in ("face_world", "folder"):
            raise ValueError(f"data.source is {self.source!r}: expected face_world or folder")

    def training(self) -> Source:
        """All training images, as {"image": encoded bytes}."""
        return Aligned(self._faces("train"), self.image_size, self.zoom) if self._rendered else super().training()

    def real(self, count: int) -> tuple[Decoded, Decoded | None]:
        """See `GenerationImages.real`."""
        if not self._rendered:
            return super().real(count)
        found = []
        for split in ("train", "test"):
            source = Aligned(self._faces(split), self.image_size, self.zoom)
            if len(source) < count:
                raise ValueError(f"eval.images is {count}: expected at most the {len(source)} images of {split}")
            rows = np.linspace(0, len(source) - 1, count).round().astype(int)
            found.append(Decoded(source, rows, self.image_size))
        return tuple(found)

    def pictures(self, split: str) -> np.ndarray:
        """All images of the face world's "train" or "test", uint8 [N, S, S, 3]."""
        source = Aligned(self._faces(split), self.image_size, self.zoom)
        return Decoded(source, np.arange(len(source)), self.image_size)[:]

    def truth(self, split: str) -> Truth:
        """The true values of all images of the face world's "train" or "test"."""
        source = self._faces(split)
        examples = pipeline.fetch(source, range(len(source)))
        found = {name: np.stack([e[name] for e in examples]) for name in Truth._fields}
        found["expression"] = found["expression"] @ np.stack(list(procedural().expressions.values()))
        return Truth(**found)

    def coefficients(self, size: int) -> np.ndarray:
        """The file of `parameters`, [N, size]. Raises ValueError for another one."""
        path = pathlib.Path(self.parameters).expanduser()
        if not self.parameters:
            raise ValueError("data.parameters is empty: expected an .npy file of the images' coefficients")
        found = arrays.load(path)
        if found.dtype.kind not in "biuf" or found.ndim != 2 or found.shape[1] != size or not np.isfinite(found).all():
            raise ValueError(f"{path}: an array {found.shape}, expected [N, {size}] of finite numbers")
        return found.astype(np.float32)

    @property
    def _rendered(self) -> bool:
        return self.source == "face_world"

    def _faces(self, split: str) -> Source:
        return faces.load("portraits", split, self.data_dir or None)


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Portraits of the face world, each turned, scaled and cut anew.

    Beyond the border of a portrait its outermost pixels are repeated.

    Attributes:
      source: portraits.
      size: side of the results, pixels.
      zoom: half sides per unit of the model.
    """

    source: Source
    size: int
    zoom: float

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._cut(self.source[index])

    def __getitems__(self, rows: Any) -> list[dict[str, Any]]:
        return [self._cut(example) for example in pipeline.fetch(self.source, rows)]

    def _cut(self, example: dict[str, Any]) -> dict[str, Any]:
        image = transforms.decode(example["image"], upright=False)
        move = alignment(example["camera"], example["pose"], 2 * self.size, self.zoom)
        wide = cv2.warpAffine(
            image, move, (2 * self.size,) * 2, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return {"image": faces.png(transforms.resize(wide, self.size, self.size))}


def alignment(camera: np.ndarray, pose: np.ndarray, size: int, zoom: float) -> np.ndarray:
    """The transform [2, 3] of OpenCV, whose pixels' centres are integers, from a picture to an aligned one.

    Args:
      camera: [4] scale, roll and shift of the picture's framing.
      pose: [3] angles.
      size: side of the aligned picture.
      zoom: half sides per unit of the model.
    """
    scale, roll = camera[:2]
    cos, sin = np.cos(roll), np.sin(roll)
    framed = scale * np.array([[cos, -sin], [sin, cos]])
    origin = framed @ (np.asarray(_turned_centre(pose))[:2] * [1, -1]) + camera[2:]
    matrix = zoom * size / 2 * np.linalg.inv(framed)
    shift = size / 2 - matrix @ origin
    return np.concatenate([matrix, (shift + matrix @ [0.5, 0.5] - 0.5)[:, None]], 1)


def _turned_centre(pose: np.ndarray) -> np.ndarray:
    """The centre of the face's region [3] after the head is turned."""
    (a, b, c), centre = pose, _centre()
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z @ centre


@functools.cache
def _centre() -> np.ndarray:
    model = procedural()
    return np.asarray(model.mean_shape)[face_region(model)].mean(0)
