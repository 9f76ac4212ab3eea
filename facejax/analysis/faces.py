"""The faces of one photograph and what is known of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Faces:
    """F faces of a photograph by falling score; `faces[rows]` takes some of them. What no stage looked for is None.

    Pixels are those of the upright photograph, x to the right and y down.

    Attributes:
      size: width and height of the photograph.
      boxes: [F, 4] float32 corners x0, y0, x1, y1; they may exceed the photograph.
      scores: [F] float32 of the detector, 0..1.
      points: [F, 5, 2] float32: eyes, nose tip and mouth corners, from the photograph's left.
      crops: [F, 112, 112, 3] uint8 RGB, aligned to the template of `facejax.data.transforms`; black where
        the photograph ends.
      embeddings: [F, D] float32 of unit length.
      landmarks: [F, 68, 2] float32, the 68 points of iBUG's scheme.
      pose: [F, 3] float32, yaw, pitch and roll in degrees, the labels of `facejax.metrics.pose`: a positive yaw turns
        the face to the photograph's left, a positive pitch up, a positive roll clockwise.
      age: [F] float32, years.
      quality: [F] float32, higher is better; 0..1 where the measure has that range.
      meshes: [F, V, 3] float32; z in pixels towards the viewer, from an origin of its own.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    points: np.ndarray | None = None
    crops: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    pose: np.ndarray | None = None
    age: np.ndarray | None = None
    quality: np.ndarray | None = None
    meshes: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, value in self.arrays().items():
            if len(value) != len(self.boxes):
                raise ValueError(f"Faces.{name} has {len(value)} rows: expected {len(self.boxes)}, one a face")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Any) -> Faces:
        """The faces at a number, a slice, an array of numbers or a mask; always `Faces`."""
        rows = [rows] if isinstance(rows, (int, np.integer)) else rows
        return dataclasses.replace(self, **{name: value[rows] for name, value in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """What is known of the faces, by attribute."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "size"}
        return {name: value for name, value in values.items() if value is not None}
