"""Keypoints of persons and faces: crops and augmentation of top-down pose estimation.

As in the published code, integer coordinates are pixel centres, except in `placed_loader`, and coordinates refer to the
stored pixels: the EXIF orientation of an image is ignored.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from facejax.data import pipeline, sources, transforms
from facejax.data.landmarks import MIRROR_68
from facejax.data.pipeline import Load, Source
from facejax.data.readers.people import CocoPeople, PeopleSource, read_mpii, read_mpii_truth
from facejax.data.synthetic import faces


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of K keypoints.

    Attributes:
      partners: [K] int, each point's mirror partner.
      upper: indices of the points of the upper body.
      links: pairs of points that plots connect by a line.
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
LAYOUTS = {"face_world": FACE_68, "coco": COCO, "mpii": MPII}
FILES = {
    "coco": ("annotations/person_keypoints_{}2017.json", "images/{}2017"),
    "files": ("annotations/{}.json", "images/{}"),
}
"""Annotations in COCO's format and the folder of their images, by the kind of `KeypointImages`; {} is train or val."""


def mirror_partners(names: Sequence[str]) -> np.ndarray:
    """The keypoint [K] on the other side of each by its name: left_ear and right_ear; else the keypoint itself."""
    sides = {"left": "right", "right": "left", "l": "r", "r": "l"}
    side = re.compile(r"left|right|(?<![a-z])[lr](?![a-z])")
    swapped = [side.sub(lambda found: sides[found[0]], name.lower()) for name in names]
    places = {name.lower(): place for place, name in enumerate(names)}
    return np.array([places.get(name, place) for place, name in enumerate(swapped)])


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of training images (JointsDataset of HRNet's code).

    Attributes:
      scale: standard deviation of the crop's size around 1; sizes are clipped to 1 - scale and 1 + scale.
      rotation: standard deviation of the angle, degrees, clipped at twice that; 40 % of the angles are zero.
      flip: probability of a horizontal flip.
      half_body: probability that the crop shows the upper or the lower body only.
      half_body_joints: persons with at most this many visible points are never cropped to half.
    """

    scale: float = 0.35
    rotation: float = 45.0
    flip: float = 0.5
    half_body: float = 0.3
    half_body_joints: int = 8


def shaped(size: Sequence[float], aspect: float) -> np.ndarray:
    """The smallest (width, height) with the ratio `aspect` that contains `size`."""
    width, height = size
    return np.array([max(width, aspect * height), max(height, width / aspect)])


def crop_matrix(centre: np.ndarray, width: float, angle: float, output: tuple[int, int]) -> np.ndarray:
    """The similarity transform [2, 3] from a region of the image to the whole output, for OpenCV and for points.

    Args:
      centre: (x, y) of the region in pixels, mapped to the output's centre.
      width: width of the region in pixels, mapped to the output's width.
      angle: degrees, clockwise in the image.
      output: (height, width) in pixels.
    """
    if width <= 0:
        raise ValueError(f"crop_matrix: region of width {width} at {tuple(centre)}, expected a width above 0")
    scale, radians = output[1] / width, np.radians(angle)
    turn = scale * np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]])
    middle = np.array([output[1], output[0]]) / 2
    return np.concatenate([turn, (middle - turn @ centre)[:, None]], 1)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Applies a matrix [2, 3] to points [..., 2]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def half_body(
    points: np.ndarray, visible: np.ndarray, upper: Sequence[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Centre and size of a box around the upper or the lower body, enlarged 1.5 times; None with too few points.

    As in HRNet's code: with more than two visible points, the upper body is selected if a normal variate is below 0.5.
    """
    is_upper = np.isin(np.arange(len(points)), upper)
    above, below = (points[visible & part] for part in (is_upper, ~is_upper))
    take_upper = (rng.normal() < 0.5 and len(above) > 2) or len(below) <= 2
    chosen = above if take_upper else below
    if len(chosen) < 2:
        return None
    return chosen.mean(0, dtype=np.float64), 1.5 * np.ptp(chosen, axis=0)


def augmented(
    example: dict[str, Any],
    output: tuple[int, int],
    layout: Layout,
    augmentation: Augmentation,
    enlarge: float,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """A training crop {"image", "points", "visible"} with random half body, scale, rotation and flip."""
    image = transforms.decode(example["image"], upright=False)
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
    """An evaluation crop {"image", "matrix"}; the matrix [2, 3] maps the image to the crop."""
    size = enlarge * shaped(example["size"], output[1] / output[0])
    matrix = crop_matrix(np.asarray(example["centre"], float), size[0], 0.0, output)
    return {"image": warped(transforms.decode(example["image"], upright=False), matrix, output), "matrix": matrix}


def warped(image: np.ndarray, matrix: np.ndarray, output: tuple[int, int]) -> np.ndarray:
    """The crop, black outside the image."""
    return transforms.warp(image, matrix, output)


def loader(output: tuple[int, int], layout: Layout, augmentation: Augmentation, enlarge: float = 1.25) -> Load:
    """Training batches {"image": uint8 [n, H, W, 3], "points": [n, K, 2] in pixels of the crop, "visible": [n, K]}.

    Args:
      output: (H, W) in pixels.
      layout: layout of the keypoints.
      augmentation: random changes of the images.
      enlarge: size of the cropped region relative to the person's box.
    """

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        found = [augmented(e, output, layout, augmentation, enlarge, r) for e, r in zip(examples, rngs, strict=True)]
        return {
            "image": np.stack([f["image"] for f in found]),
            "points": np.stack([f["points"] for f in found]).astype(np.float32),
            "visible": np.stack([f["visible"] for f in found]),
        }

    return load


class FaceWorld:
    """A split of the face world's landmark task in this module's format; each region is the whole image.

    Args:
      split: "train" or "test".
      data_dir: folder of prepared data; None: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
    """

    def __init__(self, split: str, data_dir: str | None = None):
        self._source = faces.load("landmarks", split, data_dir)
        self._side = faces.TASKS["landmarks"].image_size

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example, side = self._source[index], self._side
        points = np.asarray(example["landmarks68"]) - 0.5  # origin: from the corner of the first pixel to its centre
        region = {"centre": (side / 2, side / 2), "size": (side, side)}
        return {"image": example["image"], "points": points, "visible": np.ones(len(points), bool), **region}


@dataclasses.dataclass(frozen=True)
class KeypointImages:
    """The `data` section of a keypoint experiment.

    Attributes:
      kind: "face_world" (68 landmarks), "coco" (17 joints), "mpii" (16 joints), or "files" (a category with any number
        of keypoints; flips exchange those whose names differ in left and right).
      path: folder of COCO (annotations/person_keypoints_{train,val}2017.json, images/{train,val}2017), of MPII
        (annot/{train,valid}.json and annot/gt_valid.mat of HRNet's authors, images), or of files in COCO's format
        (annotations/{train,val}.json, images/{train,val}).
      detections: COCO result file with person boxes; empty: evaluation uses the annotated boxes.
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: height and width of the network's input, pixels.
      enlarge: size of the cropped region relative to the person's box.
      scale: standard deviation of the region's size around 1; sizes are clipped to 1 - scale and 1 + scale.
      rotation: standard deviation of the angle, degrees, clipped at twice that.
      flip: probability of a horizontal flip.
      half_body: probability that the crop shows the upper or the lower body only.
      sigma: standard deviation of the Gaussians in the target heatmaps, heatmap pixels.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    kind: str = "face_world"
    path: str = ""
    detections: str = ""
    data_dir: str = ""
    image_size: tuple[int, int] = (64, 64)
    enlarge: float = 1.0
    scale: float = 0.15
    rotation: float = 20.0
    flip: float = 0.5
    half_body: float = 0.0
    sigma: float = 1.5
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in (*LAYOUTS, "files"):
            raise ValueError(f"data.kind is {self.kind!r}: expected one of {', '.join(LAYOUTS)}, files")

    @property
    def layout(self) -> Layout:
        """Layout of the keypoints."""
        if self.kind != "files":
            return LAYOUTS[self.kind]
        names, links = _named(*self._files("train"))
        if not names:
            raise ValueError(f"{self.path}: no category of annotations/train.json names its keypoints: expected one")
        partners = mirror_partners(names)
        if self.flip and (partners == np.arange(len(partners))).all():
            text = f"{self.path}: no names of keypoints differ in left and right: flips exchange none (data.flip)"
            warnings.warn(text, stacklevel=2)
        return Layout(partners, links=links)

    def _files(self, part: str) -> list[pathlib.Path]:
        return [pathlib.Path(self.path).expanduser() / place.format(part) for place in FILES[self.kind]]

    def train(self) -> Source:
        """Training examples."""
        root = pathlib.Path(self.path).expanduser()
        if self.kind == "face_world":
            return FaceWorld("train", self.data_dir or None)
        if self.kind == "mpii":
            return PeopleSource(read_mpii(root / "annot/train.json", root / "images"))
        return PeopleSource(CocoPeople(*self._files("train")).people())

    def test(self) -> tuple[Source, Any]:
        """Test examples and ground truth: points [N, 68, 2], the result of `read_mpii_truth`, or `CocoPeople`."""
        root = pathlib.Path(self.path).expanduser()
        if self.kind == "face_world":
            source = FaceWorld("test", self.data_dir or None)
            return source, np.stack([source[i]["points"] for i in range(len(source))])
        if self.kind == "mpii":
            people = read_mpii(root / "annot/valid.json", root / "images")
            return PeopleSource(people), read_mpii_truth(root / "annot/gt_valid.mat")
        annotated = CocoPeople(*self._files("val"))
        return PeopleSource(annotated.detected(self.detections) if self.detections else annotated.people()), annotated

    def batches(self, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless training batches of `loader`. Raises ValueError if a file that `test` needs does not exist."""
        root = pathlib.Path(self.path).expanduser()
        needed = [root / "annot/valid.json", root / "annot/gt_valid.mat"] if self.kind == "mpii" else []
        if self.kind in FILES:
            needed = [self._files("val")[0], self.detections]
        for file in filter(None, needed):
            if not pathlib.Path(file).is_file():
                raise ValueError(f"{file} does not exist: expected the test data of {self.kind}")
        augmentation = Augmentation(self.scale, self.rotation, self.flip, self.half_body)
        load = loader(tuple(self.image_size), self.layout, augmentation, self.enlarge)
        source, workers = self.train(), {"threads": self.threads, "workers": self.workers}
        return pipeline.train_batches(
            source, load, batch_size, seed=seed, **workers, checked=lambda: sources.Chain(source, self.test()[0])
        )


@functools.lru_cache(maxsize=4)
def _named(annotations: pathlib.Path, pictures: pathlib.Path) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Names of the keypoints of a file, and its links."""
    found = CocoPeople(annotations, pictures)
    return found.names, found.skeleton


@dataclasses.dataclass(frozen=True)
class Placement:
    """Random size, rotation and position of a face.

    Attributes:
      face: smallest and largest sqrt(width * height) of the landmarks' box, relative to the input's side.
      turn: largest in-plane rotation in either direction, degrees.
      shift: largest distance of the box's centre from the input's centre along each axis, relative to its side.
    """

    face: tuple[float, float] = (0.25, 0.7)
    turn: float = 60.0
    shift: float = 0.12


def placed_loader(size: int, placement: Placement) -> Load:
    """Batches {"image": uint8 [n, size, size, 3], "points": [n, 68, 2]} of faces placed at random.

    Points are relative to the input's side, 0..1, with the origin at the corner of the first pixel. Examples contain
    "image" and "landmarks68", the latter in pixels with the same origin.
    """

    def place(example: dict[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        points = example["landmarks68"]
        low, high = points.min(0), points.max(0)
        face = np.exp(rng.uniform(*np.log(placement.face))) * size
        angle = np.radians(rng.uniform(-placement.turn, placement.turn))
        middle = size * (0.5 + rng.uniform(-placement.shift, placement.shift, 2))
        scale = face / np.sqrt(np.prod(high - low))
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = middle - turn @ ((low + high) / 2)
        matrix = np.concatenate([turn, (shift + turn @ [0.5, 0.5] - 0.5)[:, None]], 1)  # OpenCV: integers are centres
        image = transforms.decode(example["image"], upright=False)
        image = transforms.warp(image, matrix, (size, size), cv2.BORDER_REPLICATE)
        return image, (points @ turn.T + shift) / size

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        images, points = zip(*(place(e, rng) for e, rng in zip(examples, rngs, strict=True)), strict=True)
        return {"image": np.stack(images), "points": np.stack(points).astype(np.float32)}

    return load
