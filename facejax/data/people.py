"""From people in pictures to a network's input: the crop around each and its augmentation, as top-down pose papers do.

Points are whole numbers at pixels' centres here, as in the published code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from facejax.data import transforms
from facejax.data.landmarks import MIRROR_68
from facejax.data.pipeline import Load


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the keypoints mean.

    Attributes:
      partners: [K] number of each point's mirror partner.
      upper: numbers of the upper body's.
      links: pairs to draw a line between.
    """

    partners: np.ndarray
    upper: tuple[int, ...] = ()
    links: tuple[tuple[int, int], ...] = ()


COCO = Layout(
    np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]),
    tuple(range(11)),
    ((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12), (11, 13),
     (13, 15), (12, 14), (14, 16)),
)  # fmt: skip
MPII = Layout(
    np.array([5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 15, 14, 13, 12, 11, 10]),
    tuple(range(7, 16)),
    ((0, 1), (1, 2), (2, 6), (3, 6), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (10, 11), (11, 12), (12, 7), (7, 13),
     (13, 14), (14, 15)),
)  # fmt: skip
FACE_68 = Layout(MIRROR_68)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How far training pictures vary (JointsDataset of HRNet's code).

    Attributes:
      scale: deviation of the size around 1, and its limit either way.
      rotation: deviation of the angle in degrees, which is cut at twice that; in six pictures of ten.
      flip: chance of the mirror image.
      half_body: chance that the crop shows the upper or the lower body only, of those with more than
        `half_body_joints` visible points.
    """

    scale: float = 0.35
    rotation: float = 45.0
    flip: float = 0.5
    half_body: float = 0.3
    half_body_joints: int = 8


def shaped(size: Sequence[float], aspect: float) -> np.ndarray:
    """The smallest (width, height) of that width to height that holds `size`."""
    width, height = size
    return np.array([max(width, aspect * height), max(height, width / aspect)])


def crop_matrix(centre: np.ndarray, width: float, angle: float, output: tuple[int, int]) -> np.ndarray:
    """The similarity [2, 3], for OpenCV and for points, from a region of the picture to the whole output.

    Args:
      centre: (x, y) of the region, which comes to the output's middle.
      width: of the region, which fills the output's width.
      angle: degrees that the region is turned clockwise as seen.
      output: (height, width).
    """
    if width <= 0:
        raise ValueError(f"crop_matrix: a region {width} pixels wide around {tuple(centre)}, expected above 0")
    scale, radians = output[1] / width, np.radians(angle)
    turn = scale * np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]])
    middle = np.array([output[1], output[0]]) / 2
    return np.concatenate([turn, (middle - turn @ centre)[:, None]], 1)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points [..., 2] through a matrix [2, 3]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def half_body(
    points: np.ndarray, visible: np.ndarray, upper: Sequence[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Centre and size of the box around the upper or the lower body, half as large again; None with too few points.

    The upper body, where more than two of its points are visible, is taken with the chance that a normal number is
    below 0.5: 69 %, as in HRNet's code.
    """
    is_upper = np.isin(np.arange(len(points)), upper)
    above, below = (points[visible & part] for part in (is_upper, ~is_upper))
    take_upper = (rng.normal() < 0.5 and len(above) > 2) or len(below) <= 2
    chosen = above if take_upper else below
    if len(chosen) < 2:
        return None
    return chosen.mean(0), 1.5 * np.ptp(chosen, axis=0)


def augmented(
    example: dict[str, Any],
    output: tuple[int, int],
    layout: Layout,
    augmentation: Augmentation,
    enlarge: float,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """A training crop {"image", "points", "visible"}: half body, scale, rotation, mirror image."""
    image = transforms.decode(example["image"])
    points, visible = np.asarray(example["points"], float), np.asarray(example["visible"], bool)
    centre, size, aspect = np.asarray(example["centre"], float), example["size"], output[1] / output[0]
    size = enlarge * shaped(size, aspect)
    if visible.sum() > augmentation.half_body_joints and rng.random() < augmentation.half_body:
        half = half_body(points, visible, layout.upper, rng)
        if half is not None and half[1].any():
            centre, size = half[0], shaped(half[1], aspect)
    scale, degrees = augmentation.scale, augmentation.rotation
    size = size * np.clip(1 + scale * rng.normal(), 1 - scale, 1 + scale)
    angle = np.clip(degrees * rng.normal(), -2 * degrees, 2 * degrees) if rng.random() <= 0.6 else 0.0
    if rng.random() < augmentation.flip:
        last = image.shape[1] - 1
        image, centre = transforms.flip(image), np.array([last - centre[0], centre[1]])
        points = (np.array([last, 0]) + points * [-1, 1])[layout.partners]
        visible = visible[layout.partners]
    matrix = crop_matrix(centre, size[0], angle, output)
    return {"image": warped(image, matrix, output), "points": moved(points, matrix), "visible": visible}


def plain(example: dict[str, Any], output: tuple[int, int], enlarge: float) -> dict[str, np.ndarray]:
    """An evaluation crop {"image", "matrix"}, the matrix [2, 3] from the picture to the crop."""
    size = enlarge * shaped(example["size"], output[1] / output[0])
    matrix = crop_matrix(np.asarray(example["centre"], float), size[0], 0.0, output)
    return {"image": warped(transforms.decode(example["image"]), matrix, output), "matrix": matrix}


def warped(image: np.ndarray, matrix: np.ndarray, output: tuple[int, int]) -> np.ndarray:
    """The crop, black where the picture ends."""
    return cv2.warpAffine(np.ascontiguousarray(image), matrix, (output[1], output[0]), flags=cv2.INTER_LINEAR)


def loader(output: tuple[int, int], layout: Layout, augmentation: Augmentation, enlarge: float = 1.25) -> Load:
    """Training batches {"image": uint8 [n, H, W, 3], "points": [n, K, 2] in pixels of the crop, "visible": [n, K]}.

    Args:
      output: (H, W).
      layout, augmentation: of the keypoints; how pictures vary.
      enlarge: the region around a box, in parts of the box.
    """

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        found = [augmented(e, output, layout, augmentation, enlarge, r) for e, r in zip(examples, rngs, strict=True)]
        return {
            "image": np.stack([f["image"] for f in found]),
            "points": np.stack([f["points"] for f in found]).astype(np.float32),
            "visible": np.stack([f["visible"] for f in found]),
        }

    return load
