"""Sharp and blurred images that are no pairs, for training; and pairs, for testing: heads, text, or folders."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import string
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from facejax.data import pipeline, streams, transforms
from facejax.data.readers.folder import image_files
from facejax.data.synthetic import degrade, faces
from facejax.data.videos import read_frame

TASK = "pairs_blur"
SOURCES = ("face_world", "text", "path")
TEXTS = {"train": 900, "test": 180}
"""Numbers of images of text."""


class Pairs(NamedTuple):
    """Test images.

    Attributes:
      blurred, sharp: [N, S, S, 3] uint8.
      kernels: [N, 2] length in pixels and angle in radians of the motion; NaN if unknown.
    """

    blurred: np.ndarray
    sharp: np.ndarray
    kernels: np.ndarray


def blur(image: np.ndarray, length: float, angle: float) -> np.ndarray:
    """Motion of `length` pixels at `angle` radians from the horizontal: [H, W, 3] uint8 -> [H, W, 3] uint8."""
    moved = degrade.motion_blur(image.astype(np.float32), length, angle)
    return np.rint(np.clip(moved, 0, 255)).astype(np.uint8)


def text_image(size: int, rng: np.random.Generator) -> np.ndarray:
    """Lines of random letters, dark on a light ground: [size, size, 3] uint8."""
    paper, ink = rng.uniform(190, 255, 3), rng.uniform(0, 90, 3)
    large = 4 * size
    image = np.full((large, large, 3), paper).astype(np.uint8)
    height = rng.uniform(0.16, 0.3) * large
    scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_SIMPLEX, int(height * 0.7))
    font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX]))
    letters = list(string.ascii_letters + string.digits + "   ")
    for baseline in np.arange(rng.uniform(0.4, 1.0) * height, large + height, height):
        line = "".join(rng.choice(letters, 14))
        place = (int(-rng.uniform(0, 0.2) * large), int(baseline))
        cv2.putText(image, line, place, font, scale, ink.tolist(), int(rng.integers(2, 6)), cv2.LINE_AA)
    return transforms.resize(image, size, size)


@dataclasses.dataclass(frozen=True)
class UnpairedImages:
    """The `data` section of an experiment on unpaired images.

    Attributes:
      source: "face_world" (rendered heads), "text" (random letters), or "path".
      path: with source "path", a folder with trainA (sharp), trainB (blurred), testA and testB (pairs of equal names).
      data_dir: folder of prepared data; empty: $FACEJAX_DATA_DIR, else ~/.cache/facejax.
      image_size: side of the images, pixels; of a path, of random crops for training and of central ones for testing.
      resize: with source "path", the shorter side before the crop, pixels.
      shortest, longest: motion of heads and text, pixels.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads.
    """

    source: str = "face_world"
    path: str = ""
    data_dir: str = ""
    image_size: int = 32
    resize: int = 36
    shortest: float = 6.0
    longest: float = 14.0
    threads: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"data.source is {self.source!r}: expected one of {', '.join(SOURCES)}")
        if not 0 < self.shortest <= self.longest:
            raise ValueError(f"data.shortest is {self.shortest}: expected above 0, at most data.longest {self.longest}")
        if self.source == "path" and self.resize < self.image_size:
            raise ValueError(f"data.resize is {self.resize}: expected at least data.image_size {self.image_size}")

    def batches(self, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """Endless training batches {"sharp", "blurred"} of different people, texts or files: uint8 [N, S, S, 3]."""
        sources = self._training()
        options = {"threads": self.threads, "workers": self.workers}
        return streams.Zip(
            *(
                pipeline.train_batches(
                    source, functools.partial(self._load, name), batch_size, seed=seed + number, **options
                )
                for number, (name, source) in enumerate(sources.items())
            )
        )

    def pairs(self) -> Pairs:
        """The test images. Raises ValueError if the names in testA and testB differ."""
        if self.source == "path":
            found = [image_files(self._root / part) for part in ("testB", "testA")]
            names = [[path.stem for path in files] for files in found]
            if names[0] != names[1] or not names[0]:
                odd = sorted(set(names[0]) ^ set(names[1]))
                raise ValueError(
                    f"{self._root}: {len(names[1])} images in testA and {len(names[0])} in testB"
                    + (f", {odd[0]} in one of them only" if odd else "")
                    + ": expected the same file names, at least one"
                )
            blurred, sharp = (np.stack([self._cropped(read_frame(path)) for path in files]) for files in found)
            return Pairs(blurred, sharp, np.full((len(sharp), 2), np.nan))
        sharp = self._sharp("test")
        kernels = np.stack([self._kernel(np.random.default_rng([i, 7])) for i in range(len(sharp))])
        blurred = np.stack([blur(image, *kernel) for image, kernel in zip(sharp, kernels, strict=True)])
        return Pairs(blurred, sharp, kernels)

    @property
    def _root(self) -> pathlib.Path:
        return pathlib.Path(self.path).expanduser()

    def _training(self) -> dict[str, Sequence[Any]]:
        if self.source == "path":
            found = {
                name: image_files(self._root / part) for name, part in (("sharp", "trainA"), ("blurred", "trainB"))
            }
            for name, files in found.items():
                if not files:
                    raise ValueError(f"{self._root}: no {name} images: expected trainA/*.png and trainB/*.png")
            return found
        sharp = self._sharp("train")
        return {"sharp": sharp[: len(sharp) // 2], "blurred": sharp[len(sharp) // 2 :]}

    def _sharp(self, split: str) -> np.ndarray:
        return _sharp(self.source, self.data_dir, self.image_size, split)

    def _kernel(self, rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.uniform(self.shortest, self.longest), rng.uniform(0, np.pi)])

    def _load(self, name: str, examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        images = []
        for example, rng in zip(examples, rngs, strict=True):
            image = self._cropped(read_frame(example), rng) if self.source == "path" else example
            image = transforms.random_flip(image, rng)
            blurs = name == "blurred" and self.source != "path"
            images.append(blur(image, *self._kernel(rng)) if blurs else image)
        return {name: np.stack(images)}

    def _cropped(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """A random crop, or the central one, of an image whose shorter side is `resize` pixels."""
        scale = self.resize / min(image.shape[:2])
        height, width = (max(round(side * scale), self.resize) for side in image.shape[:2])
        shrinks = scale < 1
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        spare = height - self.image_size, width - self.image_size
        top, left = (rng.integers(s + 1) for s in spare) if rng else (s // 2 for s in spare)
        return image[top : top + self.image_size, left : left + self.image_size]


@functools.lru_cache(maxsize=2)
def _sharp(source: str, data_dir: str, size: int, split: str) -> np.ndarray:
    """All sharp images of heads or text, person by person."""
    if source == "text":
        first = 0 if split == "train" else TEXTS["train"]
        return np.stack([text_image(size, np.random.default_rng([i, 3])) for i in range(first, first + TEXTS[split])])
    opened = faces.load(TASK, split, data_dir or None)
    examples = pipeline.fetch(opened, range(len(opened)))
    examples = sorted(examples, key=lambda example: int(example["person"]))
    return np.stack([transforms.resize(transforms.decode(e["image"][1], upright=False), size, size) for e in examples])
