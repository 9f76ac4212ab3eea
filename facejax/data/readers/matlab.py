"""MATLAB face sets with a matrix of pixels and a vector of identities, such as ORL and Yale."""

from __future__ import annotations

import pathlib
from typing import Any

import cv2
import numpy as np
import scipy.io


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
