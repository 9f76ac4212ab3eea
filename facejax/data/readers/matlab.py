"""MATLAB face sets with a matrix of pixels and a vector of identities, such as ORL and Yale."""

from __future__ import annotations

import pathlib
from typing import Any

import cv2
import numpy as np
import scipy.io


class MatlabFaces:
    """Images from X [N, H * W], grey values in column-major order, and identities Y [N, 1] from 1; encoded as PNG.

    Args:
      path: the .mat file.
      size: (height, width); None: square.

    Raises:
      ValueError: not a MATLAB file, X or Y is missing or has another shape, or grey values lie outside 0..255.
    """

    def __init__(self, path: str | pathlib.Path, size: tuple[int, int] | None = None):
        try:
            content = scipy.io.loadmat(path)
        except Exception as error:  # damaged files raise various exceptions
            raise ValueError(f"{path}: not a readable MATLAB file: {error}") from error
        if "X" not in content or "Y" not in content:
            raise ValueError(f"{path}: expected the variables X (pixels) and Y (identities)")
        pixels, people = np.asarray(content["X"]), np.asarray(content["Y"]).ravel()
        side = round(pixels.shape[-1] ** 0.5)
        height, width = size or (side, side)
        if pixels.ndim != 2 or pixels.shape[1] != height * width or len(people) != len(pixels):
            raise ValueError(f"{path}: X {pixels.shape} and Y {people.shape}, expected [N, {height * width}] and [N]")
        if pixels.min() < 0 or pixels.max() > 255:
            raise ValueError(f"{path}: grey values range from {pixels.min()} to {pixels.max()}, expected 0..255")
        self._images = pixels.astype(np.uint8).reshape(-1, width, height).swapaxes(1, 2)
        names, labels = np.unique(people, return_inverse=True)
        self.labels, self.num_classes = labels.tolist(), len(names)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.ascontiguousarray(self._images[index])
        return {"image": cv2.imencode(".png", image)[1].tobytes(), "label": self.labels[index]}
