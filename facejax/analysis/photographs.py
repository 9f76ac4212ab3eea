"""Image files to photographs: which files there are, their size before they are decoded, what of them is looked at."""

from __future__ import annotations

import io
import os
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from facejax.data import transforms
from facejax.data.decoding import ImageFile

MAX_PIXELS = 100_000_000
"""Pixels of the largest photograph that is decoded by default; it takes about ten bytes a pixel."""
NAMES = ("jpg", "jpeg", "jpe", "png", "webp", "gif", "tif", "tiff", "bmp", "avif", "pgm", "ppm", "pnm")
SUFFIXES = frozenset(f".{name}" for name in NAMES)
"""Files that are looked at in a folder; files that are named are looked at whatever their name."""


def read(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, str]:
    """A photograph, upright by its EXIF orientation, and a note where its file holds more than that.

    Returns:
      uint8 RGB [H, W, 3], and a sentence or "".

    Raises:
      ValueError: the file does not decode, or has more than `max_pixels` pixels.
      OSError: the file cannot be read.
    """
    content = ImageFile.read(path)
    frames = _checked(content, max_pixels)
    image = transforms.decode(content)
    return image, f"it has {frames} pictures, of which the first was analysed" if frames > 1 else ""


def files(
    paths: Sequence[str | os.PathLike[str]], leave_out: str | os.PathLike[str] | None = None
) -> list[pathlib.Path]:
    """The files among `paths`, and the image files in the folders among them, at any depth; in order, each once.

    Args:
      paths: files and folders.
      leave_out: a folder that is not looked into.

    Raises:
      ValueError: a path does not exist, or a folder has no image files.
    """
    skipped = pathlib.Path(leave_out).resolve() if leave_out else None
    found: dict[pathlib.Path, pathlib.Path] = {}
    for path in map(pathlib.Path, paths):
        if not path.exists():
            raise ValueError(f"there is no file or folder {path}")
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        inside = [p for p in inside if p.is_file() and (skipped is None or skipped not in p.resolve().parents)]
        if not inside:
            raise ValueError(f"{path}: no image files, expected at least one of {', '.join(NAMES)}")
        for p in inside:
            found.setdefault(p.resolve(), p)
    return list(found.values())


def _checked(content: ImageFile, max_pixels: int) -> int:
    """The number of pictures in a file; ValueError where the first has too many pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the budget of pixels is ours, and decoding tells of damage
            with Image.open(io.BytesIO(content)) as opened:
                size, frames = opened.size, getattr(opened, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{content.origin}: a photograph beyond any budget of pixels: {error}") from error
    except Exception:  # damaged files raise various exceptions; decoding tells what is wrong
        return 1
    if size[0] * size[1] > max_pixels:
        raise ValueError(
            f"{content.origin}: a photograph of {size[0]} x {size[1]} pixels, expected at most {max_pixels} in all "
            "(max_pixels)"
        )
    return frames
