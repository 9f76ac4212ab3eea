"""Faces with landmarks: crops, geometric and photometric augmentation, and the `data` section of alignment runs.

Integer coordinates are pixel centres, in images and in crops; coordinates refer to the stored pixels (the EXIF
orientation of an image is ignored). An example of a source is a dict of "image" (encoded bytes), "points" [L, 2],
"visible" [L] bool, "region" (x, y, side) of the square around the face, "attributes" [A] bool, and "box" [4] where the
data set gives one.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from facejax.data import pipeline, sources, transforms
from facejax.data.keypoints import moved
from facejax.data.landmarks import MIRRORS
from facejax.data.pipeline import Load, Source
from facejax.data.readers import landmarks as readers
from facejax.data.readers.aflw2000_crops import SIZE, Aflw2000Crops
from facejax.data.synthetic import faces
from facejax.morphable.procedural import procedural

KINDS = {"face_world": (68, 98), "300w": (68,), "wflw": (98,), "cofw": (29,), "aflw": (19,), "lapa": (106,)}
"""Kind of data -> possible numbers of landmarks."""
ATTRIBUTES = {
    "face_world": ("pose", "expression", "occlusion", "blur"),
    "300w": ("challenging",),
    "wflw": readers.WFLW_ATTRIBUTES,
    "aflw": ("frontal",),
}
"""Kind of data -> names of the attributes of its faces, which are also the test subsets."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of training crops.

    Attributes:
      rotation: in-plane rotation in either direction, degrees.
      scale: change of the region's side, as a fraction of it.
      shift: movement of the region along each axis, as a fraction of its side.
      normal: whether the three above are standard deviations of normal variates; false: bounds of uniform ones.
      flip: probability of a horizontal flip.
      blur: probability of a Gaussian blur with a deviation of up to 2 % of the side.
      noise: probability of Gaussian noise with a deviation of up to 12 grey levels.
      occlusion: probability that a rectangle of one colour, up to 40 % of each side, covers a part.
      colour: largest change of brightness, contrast and each channel's gain, as a fraction.
    """

    rotation: float = 30.0
    scale: float = 0.15
    shift: float = 0.05
    normal: bool = False
    flip: float = 0.5
    blur: float = 0.0
    noise: float = 0.0
    occlusion: float = 0.0
    colour: float = 0.2

    def __post_init__(self) -> None:
        for name in ("flip", "blur", "noise", "occlusion"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.augment.{name} is {getattr(self, name)}: expected a probability, 0 to 1")
        if not 0 <= self.scale < 1:
            raise ValueError(f"data.augment.scale is {self.scale}: expected 0 or more, and less than 1")


def region_matrix(region: Sequence[float], angle: float, size: int, mirror: bool = False) -> np.ndarray:
    """The transform [2, 3] from pixels of the image to pixels of the crop, for points and for OpenCV.

    Args:
      region: (x, y, side) of a square in pixels; its edges become the edges of the crop.
      angle: rotation of the content in degrees, clockwise in the image.
      size: side of the crop, pixels.
      mirror: whether the crop is flipped horizontally afterwards.

    Raises:
      ValueError: the side is not a positive finite number.
    """
    x, y, side = region
    if not (np.isfinite([x, y, side]).all() and side > 0):
        raise ValueError(f"a face region of side {side} at ({x}, {y}): expected finite numbers and a side above 0")
    scale, radians = size / side, np.radians(angle)
    turn = scale * np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    if mirror:
        turn[0] *= -1
    middle = (size - 1) / 2
    return np.concatenate([turn, (middle - turn @ [x, y])[:, None]], 1)


def crop(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The crop [size, size, 3], black outside the image; an image that shrinks is smoothed first.

    Args:
      image: uint8 [H, W, 3].
      matrix: of `region_matrix`.
      size: side of the crop, pixels.
    """
    shrink = 1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if shrink > 2:
        image = cv2.GaussianBlur(image, (0, 0), 0.35 * shrink)
    return transforms.warp(image, matrix, (size, size))


def jittered(
    region: Sequence[float], augmentation: Augmentation, rng: np.random.Generator
) -> tuple[tuple[float, float, float], float]:
    """A region moved and scaled at random, and an angle in degrees."""
    a = augmentation
    draw = rng.normal(size=4).clip(-2, 2) if a.normal else rng.uniform(-1, 1, 4)
    x, y, side = region
    zoom = max(1 + a.scale * draw[0], 0.2)
    return (x + a.shift * side * draw[1], y + a.shift * side * draw[2], side * zoom), a.rotation * draw[3]


def changed(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """A uint8 crop [S, S, 3] with random blur, occlusion, colour and noise, in this order."""
    a, size = augmentation, image.shape[0]
    if rng.random() < a.blur:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.002, 0.02) * size)
    if rng.random() < a.occlusion:
        height, width = (rng.uniform(0.1, 0.4, 2) * size).astype(int) + 1
        top, left = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
        image = image.copy()
        image[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    if not a.colour and not a.noise:
        return image
    gain = (1 + rng.uniform(-a.colour, a.colour)) * (1 + rng.uniform(-a.colour, a.colour, 3) / 2)
    offset = 127.5 * rng.uniform(-a.colour, a.colour)
    noise = rng.uniform(0, 12) * rng.normal(size=image.shape) if rng.random() < a.noise else 0.0
    return np.clip((image - 127.5) * gain + 127.5 + offset + noise, 0, 255).round().astype(np.uint8)


def loader(size: int, partners: np.ndarray, augmentation: Augmentation) -> Load:
    """Training batches {"image": uint8 [n, S, S, 3], "points": [n, L, 2], "visible": [n, L], "attributes": [n, A]}.

    A batch of a `Weighed` source has "weight" [n] too.

    Args:
      size: side S of the crops, pixels.
      partners: [L] int, each landmark's mirror partner.
      augmentation: random changes.
    """

    def example(found: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        image = transforms.decode(found["image"], upright=False)
        points, visible = np.asarray(found["points"], float), np.asarray(found["visible"], bool)
        region, angle = jittered(found["region"], augmentation, rng)
        mirror = rng.random() < augmentation.flip
        matrix = region_matrix(region, angle, size, mirror)
        points = moved(points, matrix)
        if mirror:
            points, visible = points[partners], visible[partners]
        made = {
            "image": changed(crop(image, matrix, size), augmentation, rng),
            "points": points.astype(np.float32),
            "visible": visible,
            "attributes": np.asarray(found["attributes"], bool),
        }
        return {**made, "weight": np.float32(found["weight"])} if "weight" in found else made

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        return pipeline.stacked_batch([example(e, r) for e, r in zip(examples, rngs, strict=True)], rngs)

    return load


class FaceWorld:
    """A split of the face world's landmark task; a region is the square around the box of the landmarks.

    Args:
      split: "train" or "test".
      landmarks: 68 or 98.
      data_dir: folder of prepared data; None: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
    """

    def __init__(self, split: str, landmarks: int, data_dir: str | None = None):
        self._source, self._landmarks = faces.load("landmarks", split, data_dir), landmarks

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._example(self._source[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self._example(e) for e in pipeline.fetch(self._source, indices)]

    def _example(self, found: dict[str, Any]) -> dict[str, Any]:
        points = np.asarray(found[f"landmarks{self._landmarks}"]) - 0.5  # from corners of pixels to their centres
        expression = np.asarray(found["expression"]).sum() > 0.5
        blurred = found["motion"] > 0 or found["defocus"] > 0 or found["resolution"] > 1
        attributes = [abs(found["pose"][1]) > 0.7, expression, found["occluder"] > 0, blurred]
        return {
            "image": found["image"],
            "points": points,
            "visible": np.asarray(found[f"visible{self._landmarks}"]),
            "region": square(points),
            "attributes": np.array(attributes, bool),
        }


class Annotated:
    """Faces of a reader with the regions and attributes of this module.

    Args:
      faces: annotated faces.
      kind: a key of `KINDS`.
      crop: see `LandmarkImages`.
    """

    def __init__(self, faces: readers.FaceImages, kind: str, crop: str):
        if crop == "box" and any(face.box is None for face in faces.faces):
            raise ValueError(f"data.crop is 'box': {kind} has no boxes, expected 'points'")
        self._faces, self._kind, self._crop = faces, kind, crop

    def __len__(self) -> int:
        return len(self._faces)

    def __getitem__(self, index: int) -> dict[str, Any]:
        face, points = self._faces.faces[index], self._faces.faces[index].points
        visible = np.ones(len(points), bool) if face.visible is None else face.visible
        return {
            **({} if face.box is None else {"box": face.box}),
            "image": face.encoded(),
            "points": points,
            "visible": visible,
            "region": square(face.box.reshape(2, 2) if self._crop == "box" else points),
            "attributes": np.array([self._has(face, name) for name in ATTRIBUTES.get(self._kind, ())], bool),
        }

    def _has(self, face: readers.Face, attribute: str) -> bool:
        if self._kind == "300w":
            return face.name.startswith("ibug/")
        return bool(face.visible.all()) if self._kind == "aflw" else face.attributes[attribute]


def opened(kind: str, path: str, split: str) -> readers.FaceImages:
    """The faces of a data set's "train" or "test" split in the layout of its authors; see `LandmarkImages.path`."""
    root = pathlib.Path(path).expanduser()
    if kind == "300w":
        return readers.read_300w(root, "train" if split == "train" else "full")
    if kind == "wflw":
        lists = root / "WFLW_annotations/list_98pt_rect_attr_train_test"
        return readers.read_wflw(lists / f"list_98pt_rect_attr_{split}.txt", root / "WFLW_images")
    if kind == "cofw":
        return readers.read_cofw(root / f"COFW_{split}_color.mat", split)
    if kind == "aflw":
        return readers.read_aflw(root / "AFLWinfo_release.mat", root / "flickr", split)
    return readers.read_lapa(root, split)


def square(points: np.ndarray) -> tuple[float, float, float]:
    """(x, y, side) of the smallest square around the box of points [L, 2] that has the same centre."""
    low, high = np.nanmin(points, 0), np.nanmax(points, 0)
    return (*((low + high) / 2), float((high - low).max()))


def mean_face(landmarks: int) -> np.ndarray:
    """[L, 3] landmarks of the procedural mean face: x to the right, y up, z to the viewer."""
    if landmarks not in KINDS["face_world"]:
        raise ValueError(f"the mean face has 68 or 98 landmarks: expected one of them, not {landmarks}")
    model = procedural()
    return np.asarray(model.mean_shape[model.landmarks68 if landmarks == 68 else model.landmarks98])


def mean_shape(landmarks: int, enlarge: float) -> np.ndarray:
    """[L, 2] landmarks of the mean face seen from the front, relative to the side of its crop, float32.

    Args:
      landmarks: L, 68 or 98.
      enlarge: side of the crop relative to the square around all landmarks.
    """
    points = mean_face(landmarks)[:, :2] * [1, -1]
    x, y, side = square(points)
    return (0.5 + (points - [x, y]) / (enlarge * side)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class LandmarkImages:
    """The `data` section of an alignment experiment.

    Attributes:
      kind: "face_world" (rendered), "300w", "wflw", "cofw", "aflw" or "lapa".
      path: folder of the data set in its authors' layout. 300W: afw, helen, lfpw and ibug with .pts files; WFLW:
        WFLW_annotations and WFLW_images; COFW: COFW_{train,test}_color.mat; AFLW: AFLWinfo_release.mat of Zhu et al.
        and flickr; LaPa: train and test.
      landmarks: number of landmarks; 68 or 98 in the face world.
      crop: "points": the square around the landmarks; "box": the square around the box that the data set gives.
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: side of the network's input, pixels.
      enlarge: side of the crop relative to the square around the face.
      augment: random changes of training crops.
      hard_test: whether test crops are also turned, scaled and moved at random, with a fixed seed.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    kind: str = "face_world"
    path: str = ""
    landmarks: int = 68
    crop: str = "points"
    data_dir: str = ""
    image_size: int = 64
    enlarge: float = 1.25
    augment: Augmentation = dataclasses.field(default_factory=Augmentation)
    hard_test: bool = False
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"data.kind is {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.landmarks not in KINDS[self.kind]:
            possible = " or ".join(map(str, KINDS[self.kind]))
            raise ValueError(f"data.landmarks is {self.landmarks}: {self.kind} has {possible}")
        if self.crop not in ("points", "box"):
            raise ValueError(f"data.crop is {self.crop!r}: expected points or box")
        if not isinstance(self.augment, Augmentation):
            object.__setattr__(self, "augment", Augmentation(**self.augment))

    @property
    def partners(self) -> np.ndarray:
        """[L] int, each landmark's mirror partner."""
        return MIRRORS[self.landmarks]

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the faces' attributes."""
        return ATTRIBUTES.get(self.kind, ())

    def mean_shape(self) -> np.ndarray:
        """[L, 2] landmarks of the mean face seen from the front, relative to the side of its crop, float32."""
        return mean_shape(self.landmarks, self.enlarge)

    def source(self, split: str) -> Source:
        """The examples of "train" or "test", with regions enlarged."""
        if self.kind == "face_world":
            found = FaceWorld(split, self.landmarks, self.data_dir or None)
        else:
            found = Annotated(opened(self.kind, self.path, split), self.kind, self.crop)
        return Enlarged(found, self.enlarge)

    def batches(self, batch_size: int, seed: int, source: Source | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Endless training batches of `loader`, of a source or of all training faces."""
        load = loader(self.image_size, self.partners, self.augment)
        options = {"threads": self.threads, "workers": self.workers}
        options["checked"] = lambda: sources.Chain(self.source("train"), self.source("test"))
        return pipeline.train_batches(source or self.source("train"), load, batch_size, seed=seed, **options)

    def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a training batch."""
        size, count = self.image_size, self.landmarks
        shapes = {
            "image": ((size, size, 3), jnp.uint8),
            "points": ((count, 2), jnp.float32),
            "visible": ((count,), jnp.bool_),
            "attributes": ((len(self.attributes),), jnp.bool_),
        }
        return {name: jax.ShapeDtypeStruct((batch_size, *shape), kind) for name, (shape, kind) in shapes.items()}

    def test(self) -> Faces:
        """The test faces."""
        source = self.source("test")
        examples = pipeline.fetch(source, range(len(source)))
        rows = [
            (region_matrix(e["region"], 0.0, self.image_size) if not self.hard_test else self._hard(e["region"], i))
            for i, e in enumerate(examples)
        ]
        points, visible, attributes = (
            np.stack([np.asarray(e[name]) for e in examples]) for name in ("points", "visible", "attributes")
        )
        subsets = {name: attributes[:, i] for i, name in enumerate(self.attributes)}
        boxes = np.stack([e["box"] for e in examples]) if all("box" in e for e in examples) else None
        return Faces(source, np.stack(rows), self.image_size, points, visible, subsets, boxes)

    def _hard(self, region: Sequence[float], index: int) -> np.ndarray:
        moved_region, angle = jittered(region, self.augment, np.random.default_rng([7, index]))
        return region_matrix(moved_region, angle, self.image_size)


def photographs(folder: str, size: int, enlarge: float) -> Faces:
    """The 2,000 official crops of AFLW2000-3D as test faces with 68 landmarks and the subsets of |yaw| in degrees.

    Args:
      folder: see `facejax.data.readers.aflw2000_crops`.
      size: side of the network's input, pixels.
      enlarge: side of the crop relative to the square around the landmarks.
    """
    found = Aflw2000Crops(folder)
    corner, sides = found.roi[:, None, :2], found.roi[:, None, 2:] - found.roi[:, None, :2] + 1
    points = (found.landmarks68 - corner + 0.5) * (SIZE / sides) - 0.5  # inverse of `to_originals`; then pixel centres
    source = Photographs(found)
    regions = [(x, y, enlarge * side) for x, y, side in map(square, points)]
    matrices = np.stack([region_matrix(region, 0.0, size) for region in regions])
    bins = {"yaw_0_30": found.yaw <= 30, "yaw_30_60": (found.yaw > 30) & (found.yaw <= 60), "yaw_60_90": found.yaw > 60}
    return Faces(source, matrices, size, points, np.ones(points.shape[:2], bool), bins)


@dataclasses.dataclass(frozen=True)
class Photographs:
    """The pictures of `Aflw2000Crops` as examples."""

    crops: Aflw2000Crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.crops.encoded(index)}


@dataclasses.dataclass(frozen=True)
class Enlarged:
    """A source whose regions' sides are multiplied by a factor."""

    source: Source
    factor: float

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._larger(self.source[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self._larger(e) for e in pipeline.fetch(self.source, indices)]

    def _larger(self, example: dict[str, Any]) -> dict[str, Any]:
        x, y, side = example["region"]
        return {**example, "region": (x, y, self.factor * side)}


@dataclasses.dataclass(frozen=True)
class Weighed:
    """A source whose examples have a "weight"; weights [N]."""

    source: Source
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.source[index], "weight": self.weights[index]}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        examples = pipeline.fetch(self.source, indices)
        return [{**e, "weight": self.weights[i]} for e, i in zip(examples, indices, strict=True)]


@dataclasses.dataclass(frozen=True)
class Faces:
    """Test faces.

    Attributes:
      source: the examples.
      matrices: [N, 2, 3] from each image to its crop.
      size: side of the crops, pixels.
      points: [N, L, 2] true landmarks in pixels of the images.
      visible: [N, L] bool.
      subsets: name -> [N] bool.
      boxes: [N, 4] (x1, y1, x2, y2) in pixels of the images; None where the data set gives none.
    """

    source: Source
    matrices: np.ndarray
    size: int
    points: np.ndarray
    visible: np.ndarray
    subsets: dict[str, np.ndarray]
    boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.points)

    def crops(self, rows: Sequence[int]) -> np.ndarray:
        """uint8 [n, S, S, 3]."""
        images = (transforms.decode(e["image"], upright=False) for e in pipeline.fetch(self.source, rows))
        return np.stack([crop(x, self.matrices[i], self.size) for i, x in zip(rows, images, strict=True)])

    def original(self, points: np.ndarray) -> np.ndarray:
        """Points [N, L, 2] in pixels of the crops -> in pixels of the images."""
        back = np.linalg.inv(self.matrices[:, :, :2])
        return np.einsum("nij,nlj->nli", back, points - self.matrices[:, None, :, 2])
