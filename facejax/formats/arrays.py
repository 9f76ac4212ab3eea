"""NumPy's .npy and .npz files; sizes are checked before memory is taken."""

from __future__ import annotations

import math
import os
import pathlib
import zipfile
from typing import IO

import numpy as np

from facejax.formats import limits


def load(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of an .npy file.

    Raises:
      ValueError: another format, a damaged file, objects, or more than `facejax.formats.limits` allow.
    """
    try:
        with open(path, "rb") as file:
            return _array(file, pathlib.Path(path).stat().st_size)
    except Exception as error:  # damaged headers raise various exceptions
        raise ValueError(f"{path}: not a readable array: {error or type(error).__name__}") from error


def load_all(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name. Raises ValueError as `load`."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [part for part in archive.infolist() if part.filename.endswith(".npy")]
            limits.memory(sum(part.file_size for part in parts), "the file")
            found = {}
            for part in parts:
                with archive.open(part) as file:
                    found[part.filename.removesuffix(".npy")] = _array(file, part.file_size)
            return found
    except Exception as error:  # damaged archives raise various exceptions
        raise ValueError(f"{path}: not a readable .npz file: {error or type(error).__name__}") from error


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """The array that begins at the start of a file of `size` bytes."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version}, expected 1.0 or 2.0")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype.hasobject or not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"{shape} of type {dtype}: expected numbers or strings")
    count = math.prod(shape)
    needed, there = limits.memory(count * dtype.itemsize, "the array"), size - file.tell()
    if needed > there:
        raise ValueError(f"{there} bytes, expected {needed} for {shape} of type {dtype} (a download cut short?)")
    data = bytearray(needed)
    view, place = memoryview(data), 0
    while place < needed and (step := file.readinto(view[place:])):
        place += step
    if place < needed:
        raise ValueError(f"{place} bytes, expected {needed}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
