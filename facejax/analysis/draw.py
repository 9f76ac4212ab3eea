"""Photographs with what was found in them drawn over."""

from __future__ import annotations

import cv2
import numpy as np

from facejax.analysis.faces import Faces
from facejax.data import transforms
from facejax.metrics import pose

SIDE = 1600
"""Longer side of an annotated photograph, pixels; smaller ones are not enlarged."""
GREEN, RED, BLUE, WHITE = (60, 220, 60), (240, 60, 60), (80, 140, 255), (255, 255, 255)


def annotated(photo: np.ndarray, faces: Faces, side: int = SIDE) -> np.ndarray:
    """uint8 RGB [H, W, 3] with boxes, points, landmarks, axes of the head and the numbers; a copy.

    Args:
      photo: uint8 RGB [H, W, 3].
      faces: of it.
      side: longer side of the result at most, pixels.
    """
    scale = min(1.0, side / max(photo.shape[:2]))
    image = transforms.resize(photo, *(max(1, round(n * scale)) for n in photo.shape[:2])).copy()
    for i, box in enumerate(faces.boxes * scale):
        width = max(1, round((box[2] - box[0]) / 100))
        low, high = box[:2].round().astype(int).tolist(), box[2:].round().astype(int).tolist()
        cv2.rectangle(image, low, high, GREEN, width)
        for points, colour in ((faces.landmarks, WHITE), (faces.points, RED)):
            for point in () if points is None else points[i] * scale:
                cv2.circle(image, point.round().astype(int).tolist(), width, colour, -1, cv2.LINE_AA)
        if faces.pose is not None:
            axes(image, faces.pose[i], (box[:2] + box[2:]) / 2, (box[2] - box[0]) / 2, width)
        height = max(0.35, (box[2] - box[0]) / 300)
        place = (low[0], max(12, low[1] - 4))
        cv2.putText(image, caption(faces, i), place, cv2.FONT_HERSHEY_SIMPLEX, height, GREEN, width, cv2.LINE_AA)
    return image


def caption(faces: Faces, row: int) -> str:
    """The numbers of a face, in a few words."""
    words = [f"{faces.scores[row]:.2f}"]
    words += [] if faces.age is None else [f"{faces.age[row]:.0f} y"]
    words += [] if faces.quality is None else [f"q {faces.quality[row]:.2f}"]
    return ", ".join(words)


def axes(image: np.ndarray, angles: np.ndarray, centre: np.ndarray, length: float, width: int = 1) -> None:
    """Draws the head's axes into `image`: to its left red, up green, forward blue.

    Args:
      image: uint8 RGB [H, W, 3].
      angles: [3] yaw, pitch, roll, see `Faces.pose`.
      centre: [2] pixels.
      length: of an axis that lies in the image, pixels.
      width: of the lines.
    """
    for axis, colour in zip(pose.rotation(angles).T, (RED, GREEN, BLUE), strict=True):
        end = centre + length * axis[:2] * [1, -1]
        cv2.line(image, *(p.round().astype(int).tolist() for p in (centre, end)), colour, 2 * width, cv2.LINE_AA)
