"""Images without labels for generators: the face world, folders of pictures, CelebA and CelebA-HQ."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from facejax.data import decoding, pipeline, streams, transforms
from facejax.data.decoding import ImageFile
from facejax.data.pipeline import Source
from facejax.data.readers.folder import SUFFIXES, natural
from facejax.data.synthetic import faces

CATALOGUE = ("celeb_a", "celeb_a_hq")
SOURCES = ("face_world", "folder", *CATALOGUE)
CELEBA_CENTRE, CELEBA_SIDE = (121, 89), 128
"""Row, column and side of the crop of aligned CelebA images that PG-GAN's data tool takes."""


@dataclasses.dataclass(frozen=True)
class GenerationImages:
    """The `data` section of a generator's experiment.

    Grey images get three equal channels; transparent pixels are laid on white. Of images that are not square, the
    centre is used; they are averaged down to `image_size`, never enlarged.

    Attributes:
      source: "face_world" (rendered), "folder" (pictures at any depth below `path`), or of the tfds catalogue "celeb_a"
        (cropped to 128 pixels around the face, as for PG-GAN) or "celeb_a_hq".
      path: with source "folder", the folder.
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: side of the images, a power of two of 4 pixels or more.
      flip: mirror training images with probability 0.5.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    source: str = "face_world"
    path: str = ""
    data_dir: str = ""
    image_size: int = 32
    flip: bool = True
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"data.source is {self.source!r}: expected one of {', '.join(SOURCES)}")
        check_size(self.image_size, "data.image_size")

    def training(self) -> Source:
        """All training images, as {"image": encoded bytes}."""
        return _opened(self, "train")

    def batches(self, batch_size: int, seed: int, size: int = 0) -> Any:
        """Endless batches {"image": uint8 [n, S, S, 3]}.

        Args:
          batch_size: images of the global batch.
          seed: of the order and of the flips.
          size: S, `image_size` over a power of two: means over blocks of pixels; 0: `image_size`.

        Raises:
          ValueError: fewer images than a batch.
        """
        load = functools.partial(_load, self.image_size, size or self.image_size, self.source == "celeb_a", self.flip)
        source = self.training()
        return pipeline.train_batches(source, load, batch_size, seed=seed, threads=self.threads, workers=self.workers)

    def staged_batches(self, stages: Sequence[tuple[int, int, int]], seed: int) -> Iterator[dict[str, np.ndarray]]:
        """The batches of a run whose images grow; the position of the whole can be saved and restored.

        Args:
          stages: (side of the images, images of a batch, steps) of every stage; the last goes on without end.
          seed: see `batches`; every stage has its own order.
        """
        parts = [self.batches(batch, seed + i, size) for i, (size, batch, _) in enumerate(stages)]
        stream = parts.pop()
        for part, (_, _, steps) in reversed(list(zip(parts, stages, strict=False))):
            stream = streams.Chain(part, stream, steps)
        return stream

    def real(self, count: int) -> tuple[Decoded, Decoded | None]:
        """Real images to compare with, spread evenly over the data.

        Args:
          count: number of images.

        Returns:
          `count` training images, and as many others, of held-out people in the face world; None instead of others if
          there are not as many.

        Raises:
          ValueError: the training set has fewer images.
        """
        train = self.training()
        if len(train) < count:
            raise ValueError(f"eval.images is {count}: expected at most the {len(train)} images of {self.source}")
        if self.source == "face_world":
            return self._spread(train, count), self._spread(_opened(self, "test"), count)
        if (both := self._spread(train, 2 * count)) is None:
            return self._spread(train, count), None
        return tuple(dataclasses.replace(both, rows=both.rows[i::2]) for i in range(2))

    def _spread(self, source: Source, count: int) -> Decoded | None:
        if len(source) < count:
            return None
        rows = np.linspace(0, len(source) - 1, count).round().astype(int)
        return Decoded(source, rows, self.image_size, self.source == "celeb_a")


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Images of a source, decoded on access: indexed like an array [N, size, size, 3] uint8.

    Attributes:
      source: examples {"image": encoded bytes}.
      rows: [N] int, indices of the images.
      size, celeba: see `square`.
    """

    source: Source
    rows: np.ndarray
    size: int
    celeba: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        found = pipeline.fetch(self.source, self.rows[places])
        return np.stack([square(example["image"], self.size, self.celeba) for example in found])


class Pictures:
    """Pictures at any depth below a folder, in natural order of their paths; names with a dot in front are ignored.

    Args:
      root: the folder.

    Raises:
      ValueError: the folder holds no picture.
    """

    def __init__(self, root: str | pathlib.Path):
        root = pathlib.Path(root).expanduser()
        found = (p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        shown = (p for p in found if not any(name.startswith(".") for name in p.relative_to(root).parts))
        self.paths = sorted(shown, key=lambda path: [natural(name) for name in path.relative_to(root).parts])
        if not self.paths:
            raise ValueError(f"{root}: no pictures, expected files {', '.join(sorted(SUFFIXES))}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        return {"image": ImageFile.read(path), "name": str(path)}


def check_size(size: int, name: str) -> None:
    """Raises ValueError unless `size` is a power of two of 4 or more; `name` is that of the field."""
    if size < 4 or size & (size - 1):
        raise ValueError(f"{name} is {size}: expected a power of two, 4 or more")


def square(encoded: bytes, size: int, celeba: bool = False) -> np.ndarray:
    """The centre of an encoded image, averaged down to uint8 [size, size, 3].

    Args:
      encoded: content of the image file.
      size: pixels.
      celeba: take CelebA's crop of the face instead of the largest square.

    Raises:
      ValueError: the image is smaller, or with `celeba` is no aligned CelebA image.
    """
    image = opaque(encoded)
    height, width = image.shape[:2]
    if celeba:
        (row, column), half = CELEBA_CENTRE, CELEBA_SIDE // 2
        if (height, width) != (218, 178):
            raise ValueError(f"an image of {height} x {width} pixels: expected CelebA's aligned 218 x 178")
        image = image[row - half : row + half, column - half : column + half]
    else:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if len(image) < size:
        raise ValueError(f"an image of {height} x {width} pixels: expected data.image_size, {size}, or more")
    return transforms.resize(image, size, size)


def opaque(encoded: bytes) -> np.ndarray:
    """Decodes an image to uint8 RGB [H, W, 3], transparent pixels on white."""
    image = transforms.decode(encoded)
    if encoded[1:4] == b"PNG" or encoded[8:12] == b"WEBP":
        stored = decoding.pixels(encoded, cv2.IMREAD_UNCHANGED)
        if stored.ndim == 3 and stored.shape[2] == 4:
            colour, alpha = np.split(stored / np.iinfo(stored.dtype).max, [3], 2)
            image = np.rint(255 * (colour[..., ::-1] * alpha + 1 - alpha)).astype(np.uint8)
    return image


def _load(full: int, size: int, celeba: bool, flip: bool, examples: Any, rngs: Any) -> dict[str, np.ndarray]:
    images = []
    for example, rng in zip(examples, rngs, strict=True):
        try:
            image = square(example["image"], full, celeba)
        except decoding.BadImage:
            raise
        except ValueError as error:
            raise ValueError(f"{example['name']}: {error}" if "name" in example else str(error)) from error
        image = transforms.resize(image, size, size)
        images.append(transforms.random_flip(image, rng) if flip else image)
    return {"image": np.stack(images)}


@functools.lru_cache(maxsize=4)
def _opened(data: GenerationImages, split: str) -> Source:
    if data.source == "face_world":
        return faces.load("portraits", split, data.data_dir or None)
    if data.source == "folder":
        return Pictures(data.path)
    name = f"celeb_a_hq/{data.image_size}" if data.source == "celeb_a_hq" else data.source
    return _catalogue(name, data.data_dir)


def _catalogue(name: str, data_dir: str) -> Source:
    import tensorflow_datasets as tfds

    from facejax.data.builders import store

    try:
        builder = tfds.builder(name, data_dir=store.data_dir(data_dir or None), file_format="array_record")
        return store.prepared(builder, "train", {"image": tfds.decode.SkipDecoding()})
    except Exception as error:  # tfds raises various exceptions
        raise ValueError(
            f"tfds set {name!r} is not prepared in {store.data_dir(data_dir or None)}, and preparing it failed: {error}"
        ) from error
