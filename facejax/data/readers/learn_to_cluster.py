"""The files of the learn-to-cluster benchmark: features `.bin`, labels `.meta`, neighbours `.npz`."""

from __future__ import annotations

import pathlib

import numpy as np

from facejax.data import text
from facejax.formats import arrays, limits, texts
from facejax.ops.knn import Neighbours


def read_features(path: str | pathlib.Path, width: int = 256) -> np.ndarray:
    """Features [N, width] from a file of raw float32 rows, or [N, D] from an `.npy` file.

    Raises:
      ValueError: the file size is no multiple of the row size, or the array is not two-dimensional.
    """
    path = pathlib.Path(path)
    if path.suffix == ".npy":
        features = arrays.load(path)
        if features.ndim != 2 or features.dtype.kind not in "biuf":
            raise ValueError(f"{path}: an array of {features.shape} {features.dtype}: expected numbers [N, D]")
        return features.astype(np.float32, copy=False)
    size = path.stat().st_size
    if not size or size % (4 * width):
        raise ValueError(f"{path}: {size} bytes: expected rows of {width} float32, {4 * width} bytes each")
    limits.memory(size, f"{path}")
    return np.fromfile(path, "<f4").reshape(-1, width)


def read_labels(path: str | pathlib.Path, count: int | None = None) -> np.ndarray:
    """Labels [N] from a file with one integer per line.

    Raises:
      ValueError: a line is not an integer, or the number of lines is not `count`.
    """
    labels = []
    for number, line in enumerate(text.lines(texts.read(path)), 1):
        try:
            labels.append(int(line))
        except ValueError:
            raise ValueError(f"{path}, line {number}: {line[:40]!r}: expected an integer") from None
    if count is not None and len(labels) != count:
        raise ValueError(f"{path}: {len(labels)} labels for {count} features: expected equally many")
    return np.array(labels, np.int64)


def read_neighbours(path: str | pathlib.Path) -> Neighbours:
    """Neighbours from the array `data` [N, 2, k] of ids and sorted distances 1 - cosine.

    An id of -1 stands for the row itself at distance 1.

    Raises:
      ValueError: no such array, an id out of range or no whole number, or a distance outside 0..1 by more than 0.01.
    """
    found = arrays.load_all(path)
    if "data" not in found:
        raise ValueError(f"{path}: arrays {', '.join(found)}: expected one named data")
    data = found["data"]
    if data.ndim != 3 or data.shape[1] != 2 or not data.size:
        raise ValueError(f"{path}: an array of {data.shape}: expected [N, 2, k]")
    if data.dtype.kind not in "iuf" or not (data[:, 0] == np.rint(data[:, 0])).all():
        raise ValueError(f"{path}: ids that are no whole numbers: expected [N, 2, k] of ids and distances")
    ids, distance = data[:, 0].astype(np.int32), data[:, 1].astype(np.float32)
    missing = ids < 0
    if ids.max() >= len(ids) or not (distance[~missing] >= -0.01).all() or not (distance[~missing] <= 1.01).all():
        raise ValueError(f"{path}: ids from {ids.min()} to {ids.max()}, distances from {distance.min():.3f} to "
                         f"{distance.max():.3f}: expected ids below {len(ids)} and distances 0 to 1")  # fmt: skip
    ids = np.where(missing, np.arange(len(ids))[:, None], ids)
    similarity = np.where(missing, 0.0, np.clip(1 - distance, 0, 1))
    order = np.argsort(-similarity, axis=1, kind="stable")
    return Neighbours(np.take_along_axis(ids, order, 1), np.take_along_axis(similarity, order, 1).astype(np.float32))
