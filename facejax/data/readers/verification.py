"""Verification packs (`.bin`): pairs of encoded images, labelled as same or different identity."""

from __future__ import annotations

import dataclasses
import pathlib
import pickle

import numpy as np

from facejax.data.decoding import ImageFile
from facejax.formats import limits, pickles


@dataclasses.dataclass(frozen=True)
class VerificationPack:
    """2N encoded images, and [N] bool whether images 2k and 2k + 1 show the same identity."""

    images: list[bytes]
    same: np.ndarray


def read_pack(path: str | pathlib.Path) -> VerificationPack:
    """Reads a pack in InsightFace's format, written by Python 2 or 3, without running code from the file.

    Raises:
      ValueError: another format, or a pickle that refers to anything but arrays and plain containers.
    """
    loaded = pickles.load(path, "verification pack", encodings=("ASCII", "bytes"))
    if (
        not isinstance(loaded, tuple | list)
        or len(loaded) != 2
        or not all(isinstance(x, list | tuple | np.ndarray) for x in loaded)
    ):
        raise ValueError(f"{path}: expected a pickled pair (images, labels of the pairs)")
    images, same = loaded
    if len(images) != 2 * len(same):
        raise ValueError(f"{path}: {len(images)} images for {len(same)} pairs, expected two per pair")
    if not all(isinstance(i, bytes) or (isinstance(i, np.ndarray) and i.dtype == np.uint8) for i in images) or not all(
        isinstance(s, bool | np.bool_ | int | np.integer) and s in (0, 1) for s in same
    ):
        raise ValueError(f"{path}: expected images as bytes and labels as booleans")
    limits.memory(sum(map(len, (i for i in images if not isinstance(i, bytes)))), f"{path}")
    contents = (i if isinstance(i, bytes) else i.tobytes() for i in images)
    named = [ImageFile(content, f"{path}, image {number}") for number, content in enumerate(contents)]
    return VerificationPack(named, np.array(same, bool))


def write_pack(path: str | pathlib.Path, pack: VerificationPack) -> None:
    """Writes a pack that `read_pack` and InsightFace's code read."""
    content = [bytes(image) for image in pack.images], [bool(s) for s in pack.same]
    pathlib.Path(path).write_bytes(pickle.dumps(content, protocol=4))
