"""MATLAB files: checked variables, and face sets with a matrix of pixels and a vector of identities (ORL, Yale)."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import scipy.io

LIMIT = 1 << 26
"""The most elements of one variable that `variables` reads."""


def variables(path: str | pathlib.Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Named variables of a MATLAB file of version 7.2 or older; their sizes are checked before they are read.

    Raises:
      ValueError: not a MATLAB file, or a needed variable is missing or has more than `LIMIT` elements.
    """
    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
        if missing := [name for name in needed if name not in shapes]:
            raise ValueError(f"no variable {missing[0]}, only {', '.join(shapes) or 'none'}")
        wanted = [name for name in (*needed, *optional) if name in shapes]
        for name in wanted:
            if math.prod(shapes[name]) > LIMIT:
                raise ValueError(f"variable {name} of shape {shapes[name]}: expected at most {LIMIT} elements")
        found = scipy.io.loadmat(path, variable_names=wanted)
        return {name: found[name] for name in wanted}
    except Exception as error:  # damaged files raise various exceptions
        raise ValueError(f"{path}: expected a MATLAB file with {', '.join(needed)}: {error}") from error


def numbers(path: str | pathlib.Path, name: str, value: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    """`value`, the variable `name` of a file, as float64 of `shape`; None stands for any length.

    Raises:
      ValueError: another shape, or anything but finite numbers.
    """
    value = np.asarray(value)
    fits = value.ndim == len(shape) and all(want in (None, have) for have, want in zip(value.shape, shape))
    if not fits or value.dtype.kind not in "buif" or not np.isfinite(value).all():
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(
            f"{path}: {name} of shape {value.shape} and type {value.dtype}: expected finite numbers [{expected}]"
        )
    return value.astype(np.float64)


class MatlabFaces:
    """Images from X [N, H * W], grey values in column-major order, and identities Y [N, 1] from 1; encoded as PNG.

    Grey values are 0..255, or 0..1 as of MATLAB's im2double; fractions are rounded to bytes.

    Args:
      path: the .mat file.
      size: (height, width); None: square.

    Raises:
      ValueError: not a MATLAB file, X or Y is missing, has another shape or holds anything but numbers, or grey values
        lie outside 0..255.
    """

    def __init__(self, path: str | pathlib.Path, size: tuple[int, int] | None = None):
        try:
            content = scipy.io.loadmat(path)
        except Exception as error:  # damaged files raise various exceptions
            raise ValueError(f"{path}: not a readable MATLAB file: {error}") from error
        if "X" not in content or "Y" not in content:
            raise ValueError(f"{path}: expected the variables X (pixels) and Y (identities)")
        pixels, people = np.asarray(content["X"]), np.asarray(content["Y"]).ravel()
        side = round((pixels.shape or (0,))[-1] ** 0.5)
        height, width = size or (side, side)
        if pixels.ndim != 2 or pixels.shape[1] != height * width or len(people) != len(pixels):
            raise ValueError(f"{path}: X {pixels.shape} and Y {people.shape}, expected [N, {height * width}] and [N]")
        for name, values in (("X", pixels), ("Y", people)):
            if values.dtype.kind not in "buif" or not np.isfinite(values).all():
                raise ValueError(f"{path}: {name} of type {values.dtype}, expected finite numbers only")
        low, high = pixels.min(initial=0), pixels.max(initial=0)
        if low < 0 or high > 255:
            raise ValueError(f"{path}: grey values range from {low} to {high}, expected 0..255 or 0..1")
        scale = 255.0 if high <= 1 else 1.0
        self._images = np.rint(pixels * scale).astype(np.uint8).reshape(-1, width, height).swapaxes(1, 2)
        names, labels = np.unique(people, return_inverse=True)
        self.labels, self.num_classes = labels.tolist(), len(names)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.ascontiguousarray(self._images[index])
        return {"image": cv2.imencode(".png", image)[1].tobytes(), "label": self.labels[index]}
