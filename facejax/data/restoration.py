"""Pairs of small and large images for super-resolution: training patches and whole test images.

The small image is made from the large one by MATLAB's `imresize`, rounded to 8 bits, as in DIV2K and the benchmarks. A
training patch is a part of the pair of whole images: its small side knows the pixels around it.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from facejax.data import decoding, pipeline, sources, transforms
from facejax.data.landmarks import MIRROR_68
from facejax.data.pipeline import Load, Source
from facejax.data.readers.folder import SUFFIXES
from facejax.data.synthetic import faces
from facejax.data.synthetic.factors import Ranges
from facejax.ops.resize import imresize_on_host

PHOTOGRAPHS = {"train": ("chelsea", "coffee", "rocket", "brick", "grass", "gravel"), "test": ("astronaut", "camera")}
"""Photographs that come with scikit-image and need no download."""

PORTRAITS = faces.Task("portraits", 128, 200, 24, 2, Ranges(defocus=0.0, noise=0.0, jpeg=0.0), seed=7)
CATALOGUE = {"div2k": ("hr", "train", "validation"), "celeb_a": ("image", "train", "test")}
"""Sets of the tfds catalogue: (feature of the images, split for training, split for the test)."""
CELEBA_POINTS = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
MIRROR_5 = np.array([1, 0, 2, 4, 3])

PARSING = (
    "background",
    "skin",
    "right brow",
    "left brow",
    "nose",
    "right eye",
    "left eye",
    "upper lip",
    "mouth",
    "lower lip",
)
"""Parsing maps: Helen's classes but for hair, which landmarks do not mark; sides are the person's."""
REGIONS = (
    (*range(17), *range(26, 16, -1)), range(17, 22), range(22, 27), (27, *range(31, 36)), range(36, 42), range(42, 48),
    (*range(48, 55), *range(64, 59, -1)), range(60, 68), (*range(54, 60), 48, 60, *range(67, 63, -1)),
)  # fmt: skip
"""Outlines of all classes but the background, as indices of the 68 landmarks; brows are lines."""

MARGIN = 2
"""Pixels of the small image around a patch that its pixels depend on."""


class Pair(NamedTuple):
    """A test image.

    Attributes:
      name: of the image.
      low: [h, w, 3] uint8.
      high: [scale h, scale w, 3] uint8.
      points: [P, 2] landmarks in pixels of `high`, (x, y) with the origin at the corner of the first pixel; or None.
    """

    name: str
    low: np.ndarray
    high: np.ndarray
    points: np.ndarray | None = None


def decoded(encoded: bytes, name: str) -> np.ndarray:
    """An image file of 8 bits, grey or RGB, as it is stored: uint8 [H, W, 3].

    Raises:
      ValueError: the file does not decode, has more than 8 bits, or an alpha channel.
    """
    image = decoding.pixels(decoding.ImageFile(encoded, name), cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint8:
        raise ValueError(f"{name}: an image of {image.dtype}: expected 8 bits a channel")
    if image.ndim == 3 and image.shape[2] != 3:
        raise ValueError(f"{name}: an image with {image.shape[2]} channels: expected RGB or grey, without alpha")
    return image[..., ::-1] if image.ndim == 3 else np.repeat(image[..., None], 3, -1)


def divisible(image: np.ndarray, scale: int) -> np.ndarray:
    """The image [..., H, W, C] less its last rows and columns, so that `scale` divides both sides."""
    height, width = (side - side % scale for side in image.shape[-3:-1])
    return image[..., :height, :width, :]


def small(images: np.ndarray, scale: int) -> np.ndarray:
    """[..., H, W, 3] uint8 -> [..., H / scale, W / scale, 3] uint8.

    Raises:
      ValueError: `scale` does not divide a side.
    """
    if any(side % scale for side in images.shape[-3:-1]):
        height, width = images.shape[-3:-1]
        raise ValueError(f"small: images of {height} x {width} pixels: expected sides that {scale} divides")
    return _rounded(imresize_on_host(images, 1 / scale))


def _rounded(images: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(images, 0, 255)).astype(np.uint8)


def window(image: np.ndarray, scale: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random patch with `MARGIN` * scale further pixels on every side, mirrored beyond the image's border.

    Args:
      image: [H, W, 3].
      scale: the patch begins at a multiple of it.
      size: of the patch, pixels; a multiple of `scale`.
      rng: of the position.
    """
    margin, picked = MARGIN * scale, divisible(image, scale)
    if min(picked.shape[:2]) < size:
        height, width = image.shape[:2]
        raise ValueError(f"an image of {height} x {width} pixels: expected at least data.patch {size} on each side")
    for axis in (0, 1):
        side = picked.shape[axis]
        start = scale * int(rng.integers((side - size) // scale + 1))
        places = np.arange(start - margin, start + size + margin) % (2 * side)
        picked = np.take(picked, np.where(places < side, places, 2 * side - 1 - places), axis)
    return picked


def parsing_maps(points: np.ndarray, side: int, size: int) -> np.ndarray:
    """Which class of `PARSING` each pixel has.

    Args:
      points: [68, 2] landmarks of an image of `side` pixels, with the origin at the corner of the first pixel.
      side: see `points`.
      size: of the maps, pixels.

    Returns:
      [size, size, 10] uint8, one-hot.
    """
    classes = np.zeros((size, size), np.uint8)
    places = np.rint((points * size / side - 0.5) * 16).astype(np.int32)  # sixteenths of a pixel
    for number, region in enumerate(REGIONS, 1):
        outline = places[list(region)][None]
        if "brow" in PARSING[number]:
            cv2.polylines(classes, outline, False, number, max(1, size // 32), shift=4)
        else:
            cv2.fillPoly(classes, outline, number, shift=4)
    return (classes[..., None] == np.arange(len(PARSING))).astype(np.uint8)


def loader(scale: int, size: int, points: bool = False) -> Load:
    """Training batches {"low": uint8 [n, size / scale, size / scale, 3], "high": uint8 [n, size, size, 3]}.

    Args:
      scale, size: see `window`.
      points: the patches are whole faces of `size` pixels, mirrored at random, and the batch has their "points"
        [n, P, 2] float32 and "parsing" [n, size / 2, size / 2, M] uint8 (`parsing_maps` of 68 points, M = 0 of five);
        otherwise patches are mirrored and turned by quarters at random.
    """

    def part(example: Any, rng: np.random.Generator) -> np.ndarray:
        try:
            return window(example["image"], scale, size, rng)
        except ValueError as error:
            raise ValueError(f"{example['name']}: {error}") from error

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        if points and any("points" not in e or e["image"].shape[:2] != (size, size) for e in examples):
            raise ValueError(f"data.points: expected faces with landmarks, of data.patch {size} pixels")
        cut = np.stack([part(e, rng) for e, rng in zip(examples, rngs, strict=True)])
        edge = MARGIN * scale
        lows, highs = small(cut, scale)[:, MARGIN:-MARGIN, MARGIN:-MARGIN], cut[:, edge:-edge, edge:-edge]
        marks, found = [e.get("points") for e in examples], []
        for low, high, mark, rng in zip(lows, highs, marks, rngs, strict=True):
            mirrored, turns = rng.random() < 0.5, 0 if points else int(rng.integers(4))
            views = [np.rot90(x[:, ::-1] if mirrored else x, turns) for x in (low, high)]
            if points:
                order = MIRROR_68 if len(mark) == 68 else MIRROR_5
                mark = [size, 0] + mark[order] * [-1, 1] if mirrored else mark
                maps = (
                    parsing_maps(mark, size, size // 2)
                    if len(mark) == 68
                    else np.zeros((size // 2, size // 2, 0), np.uint8)
                )
                views += [np.float32(mark), maps]
            found.append(views)
        names = ("low", "high", "points", "parsing")[: len(found[0])]
        return {name: np.stack(values) for name, values in zip(names, zip(*found, strict=True), strict=True)}

    return load


class Faces:
    """Images of the face world, of `size` pixels, with their 68 landmarks."""

    def __init__(self, split: str, size: int = 128, data_dir: str | None = None):
        self._source = faces.load(dataclasses.replace(PORTRAITS, image_size=size), split, data_dir)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[int(index)]
        image = transforms.decode(example["image"])
        return {"image": image, "points": example["landmarks68"], "name": f"face {index}"}


class Photographs:
    """Photographs of scikit-image."""

    def __init__(self, split: str):
        self._names = PHOTOGRAPHS[split]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self._names[int(index)]
        return {"image": _photograph(name), "name": name}


@functools.cache
def _photograph(name: str) -> np.ndarray:
    from skimage import data  # slow

    image = getattr(data, name)()
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, -1)


class Folder:
    """All image files below a folder, sorted by path; hidden ones are ignored.

    Raises:
      ValueError: there are none.
    """

    def __init__(self, root: str):
        folder = pathlib.Path(root).expanduser()
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        self._files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
        if not self._files:
            raise ValueError(f"{folder}: no images: expected files such as .png or .jpg")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self._files[int(index)]
        return {"image": decoded(file.read_bytes(), str(file)), "name": file.stem}


class Catalogue:
    """The large images of a prepared set of the tfds catalogue; CelebA's are cut to 178 x 178 and have five landmarks.

    Raises:
      ValueError: another set, or the set is not prepared as ArrayRecord.
    """

    def __init__(self, name: str, split: str, size: int, data_dir: str | None = None):
        import tensorflow_datasets as tfds  # slow

        base = name.partition("/")[0]
        if base not in CATALOGUE:
            raise ValueError(f"tfds set {name!r}: expected one of {', '.join(CATALOGUE)}")
        self._feature, *splits = CATALOGUE[base]
        self._size = size
        try:
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            decoders = {self._feature: tfds.decode.SkipDecoding()}
            self._source = builder.as_data_source(splits[split == "test"], decoders=decoders)
        except Exception as error:  # tfds raises various exceptions
            place = data_dir or "its default"
            raise ValueError(f"tfds set {name!r}, not prepared as ArrayRecord in {place}: {error}") from error

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[int(index)]
        image = decoded(example[self._feature], f"example {index}")
        if self._feature == "hr":
            return {"image": image, "name": str(index)}
        return {**celeba_face(image, example["landmarks"], self._size), "name": str(index)}


def celeba_face(image: np.ndarray, landmarks: Mapping[str, Any], size: int) -> dict[str, np.ndarray]:
    """An aligned image of CelebA [218, 178, 3], rows 20 to 197, resized; its five landmarks in the same pixels."""
    face = _rounded(imresize_on_host(image[20:198], size=(size, size)))
    points = np.array([[landmarks[f"{name}_x"] + 0.5, landmarks[f"{name}_y"] + 0.5 - 20] for name in CELEBA_POINTS])
    return {"image": face, "points": points * size / 178}


class Kept:
    """A source whose examples stay in memory once read."""

    def __init__(self, source: Source):
        self._source, self._found = source, {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        if index not in self._found:
            self._found[index] = self._source[index]
        return self._found[index]


class Mixed:
    """Several sources; the examples of smaller ones are repeated, so that each has about as many as the largest."""

    def __init__(self, parts: Sequence[Source]):
        most = max(map(len, parts))
        self._parts = parts
        self._places = [
            (s, i) for s, x in enumerate(parts) for _ in range(max(1, most // len(x))) for i in range(len(x))
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        part, place = self._places[index]
        return self._parts[part][place]


@dataclasses.dataclass(frozen=True)
class RestorationImages:
    """The `data` section of a super-resolution experiment.

    Attributes:
      train, test: where images come from, with commas between: "faces" (face world), "photographs" (of scikit-image), a
        folder, or "tfds:NAME", a prepared set of the tfds catalogue: "tfds:div2k/bicubic_x4", "tfds:celeb_a". Test sets
        are evaluated one by one.
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      scale: of the enlargement.
      patch: side of the large training patches, pixels.
      face_size: side of the face world's images, pixels.
      points: whether training takes whole images with landmarks, of `patch` pixels.
      repeats: how often each image occurs in an epoch, each time with another patch.
      memory: keeps decoded training images in memory (DIV2K: 7 GB).
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    train: str = "faces,photographs"
    test: str = "faces,photographs"
    data_dir: str = ""
    scale: int = 4
    patch: int = 64
    face_size: int = 128
    points: bool = False
    repeats: int = 1
    memory: bool = False
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.scale < 2 or self.patch % self.scale:
            raise ValueError(f"data.patch {self.patch} and data.scale {self.scale}: expected a multiple of 2 or more")

    def source(self, name: str, split: str) -> Source:
        """The images of one entry of `train` or `test`."""
        if name == "faces":
            return Faces(split, self.face_size, self.data_dir or None)
        if name == "photographs":
            return Photographs(split)
        if name.startswith("tfds:"):
            return Catalogue(name.removeprefix("tfds:"), split, self.patch, self.data_dir or None)
        return Folder(name)

    def batches(self, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless training batches of `loader`."""
        found = [self.source(name, "train") for name in self.train.split(",")]
        mixed = Mixed([Kept(source) for source in found] if self.memory else found)
        rows = _Repeated(mixed, self.repeats)
        load = loader(self.scale, self.patch, self.points)
        options = {"threads": self.threads, "workers": self.workers}
        return pipeline.train_batches(rows, load, batch_size, seed=seed, **options, checked=self._all)

    def _all(self) -> Source:
        parts = [(name, part) for part in ("train", "test") for name in getattr(self, part).split(",")]
        return sources.Chain(*(self.source(name, part) for name, part in parts))

    def tests(self) -> dict[str, list[Pair]]:
        """The test images by the name of their set."""
        return {pathlib.Path(name).name: self.pairs(name) for name in self.test.split(",")}

    def pairs(self, name: str) -> list[Pair]:
        """The test images of one entry of `test`, cut so that the scale divides their sides."""
        source, found = self.source(name, "test"), []
        for i in range(len(source)):
            example = source[i]
            high = divisible(example["image"], self.scale)
            if 0 in high.shape:
                height, width = example["image"].shape[:2]
                raise ValueError(
                    f"{example['name']}: an image of {height} x {width} pixels: expected at least {self.scale} on each "
                    "side, as data.scale"
                )
            found.append(Pair(example["name"], small(high, self.scale), high, example.get("points")))
        return found


class _Repeated:
    """A source, `times` over."""

    def __init__(self, source: Source, times: int):
        self._source, self._times = source, times

    def __len__(self) -> int:
        return len(self._source) * self._times

    def __getitem__(self, index: int) -> Any:
        return self._source[index % len(self._source)]
