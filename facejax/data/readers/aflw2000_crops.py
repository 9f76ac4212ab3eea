"""The official crops of AFLW2000-3D for the 3DDFA family, with their true landmarks and angles.

Pictures: AFLW2000-3D_crop of XgTu/2DASL or cleardusk/3DDFA; arrays: test.configs of cleardusk/3DDFA.
"""

from __future__ import annotations

import copy
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from facejax.data import transforms
from facejax.data.decoding import ImageFile
from facejax.data.readers.boxes import inside
from facejax.formats import arrays, texts

SIZE = 120


class Aflw2000Crops:
    """N pictures of 120 x 120 pixels, each with 68 true landmarks in pixels of the original picture.

    Args:
      folder: holds crops.list, the folder crops, AFLW2000-3D_crop.roi_box.npy, AFLW2000-3D.pts68.npy,
        AFLW2000-3D-Reannotated.pts68.npy, AFLW2000-3D.pose.npy and AFLW2000-3D-new.pose.npy.

    Attributes:
      names: of the pictures, the order of all arrays.
      roi: [N, 4] where the crops lie in the originals.
      landmarks68: [N, 68, 2] of the fitted models, the original labels.
      depths: [N, 68] of them.
      reannotated: [N, 68, 2] corrected by hand.
      signed_yaw: [N] degrees of the fitted models, with the sign of 300W-LP's labels.
      yaw: [N] |degrees| of them, by which the benchmark makes its bins.
      yaw_aflw: [N] |degrees| by AFLW's labels, the bins of the paper.

    Raises:
      ValueError: a file is missing, damaged or of another size.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = folder = pathlib.Path(folder).expanduser()
        self.names = texts.read(folder / "crops.list").split()
        count = len(self.names)
        self.roi = _array(folder / "AFLW2000-3D_crop.roi_box.npy", (count, 4))
        if not (self.roi[:, 2:] > self.roi[:, :2]).all():
            raise ValueError(f"{folder / 'AFLW2000-3D_crop.roi_box.npy'}: expected x1 < x2 and y1 < y2")
        fitted = _array(folder / "AFLW2000-3D.pts68.npy", (count, 3, 68))
        self.landmarks68, self.depths = np.moveaxis(fitted[:, :2], 1, 2), fitted[:, 2]
        by_hand = _array(folder / "AFLW2000-3D-Reannotated.pts68.npy", (count, 2, 68))
        self.reannotated = np.moveaxis(by_hand, 1, 2)
        self.signed_yaw = _array(folder / "AFLW2000-3D.pose.npy", (count,))
        self.yaw = np.abs(self.signed_yaw)
        self.yaw_aflw = np.abs(_array(folder / "AFLW2000-3D-new.pose.npy", (count,)))

    def __len__(self) -> int:
        return len(self.names)

    def images(self, rows: np.ndarray, size: int = SIZE) -> np.ndarray:
        """Pictures [n, size, size, 3] uint8 RGB; `size` other than 120 resizes."""
        found = [self._image(int(i)) for i in rows]
        return np.stack([transforms.resize(image, size, size) for image in found])

    def subset(self, rows: np.ndarray) -> Aflw2000Crops:
        """The crops of some rows [M] alone, in their order."""
        part = copy.copy(self)
        part.names = [self.names[i] for i in rows]
        for name in ("roi", "landmarks68", "depths", "reannotated", "signed_yaw", "yaw", "yaw_aflw"):
            setattr(part, name, getattr(self, name)[rows])
        return part

    def to_originals(self, points: np.ndarray) -> np.ndarray:
        """Points [N, L, 2] of the crops (pixels, the first one's centre at 0.5) in the coordinates of the labels.

        The labels count the first pixel's centre as 1, and a region includes both its first and its last pixel. The
        published benchmark instead takes x * (x2 - x1) / 120 + x1, `crops.uncrop_points` of 3DDFA's own coordinates.
        """
        corner, factors = self._moves()
        return points * factors + corner - 0.5

    def to_crops(self, points: np.ndarray) -> np.ndarray:
        """Inverse of `to_originals`."""
        corner, factors = self._moves()
        return (points - corner + 0.5) / factors

    def _moves(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the regions: corners, and pixels of the picture per pixel of the crop, both [N, 1, 2]."""
        corner = self.roi[:, None, :2]
        return corner, (self.roi[:, None, 2:] - corner + 1) / SIZE

    def encoded(self, index: int) -> bytes:
        """The file of a picture. Raises ValueError if it is not readable."""
        path = self._path(index)
        try:
            return ImageFile.read(path)
        except OSError as error:
            raise ValueError(f"{path}: not a readable picture: {error}") from error

    def _path(self, index: int) -> pathlib.Path:
        return inside(self._folder / "crops", self.names[index], f"{self._folder / 'crops.list'}")

    def _image(self, index: int) -> np.ndarray:
        path = self._path(index)
        try:
            image = transforms.decode(self.encoded(index), upright=False)
        except ValueError as error:
            raise ValueError(f"{path}: not a readable picture: {error}") from error
        if image.shape != (SIZE, SIZE, 3):
            raise ValueError(f"{path}: {image.shape[0]} x {image.shape[1]} pixels, expected {SIZE} x {SIZE}")
        return image


def read_detections(path: str | os.PathLike[str], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Detected landmarks of pictures, as in 2DASL's detect_testData_1998.txt: lines "name,x0,y0,x1,y1,...".

    Args:
      path: the file.
      names: of the pictures; those without a line are left out.

    Returns:
      rows: [M] indices of the pictures with landmarks.
      points: [M, 68, 2] as in the file, which gives whole pixels of the crops, counted from 0.

    Raises:
      ValueError: the file is not readable, a line is damaged, or no picture has one.
    """
    found, path = {}, pathlib.Path(path).expanduser()
    for number, line in enumerate(texts.lines(texts.read(path)), 1):
        name, *values = line.strip().split(",")
        try:
            points = np.array(values, np.float32).reshape(68, 2)
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: expected a name and 136 numbers") from error
        if not np.isfinite(points).all():
            raise ValueError(f"{path}: line {number}: expected finite numbers")
        found[name] = points
    rows = [i for i, name in enumerate(names) if name in found]
    if not rows:
        raise ValueError(f"{path}: no line for any of the {len(names)} pictures")
    return np.array(rows), np.stack([found[names[i]] for i in rows])


def _array(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    array = arrays.load(path)
    if array.dtype.kind not in "biuf" or array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"{path}: {array.shape}, expected {shape} finite numbers as crops.list has names")
    return array
