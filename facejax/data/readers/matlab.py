"""MATLAB files: checked numbers, and face sets with a matrix of pixels and a vector of identities (ORL, Yale)."""

from __future__ import annotations

import pathlib
from typing import Any

import cv2
import numpy as np

from facejax.formats import matfile


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
        pixels, people = matfile.variables(path, ("X", "Y")).values()
        people = people.ravel()
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
