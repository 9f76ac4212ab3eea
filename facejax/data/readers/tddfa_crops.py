"""The published training crops of cleardusk/3DDFA: 120-pixel pictures of 300W-LP with whitened 62-vectors.

train_aug_120x120.zip holds the pictures, train.configs a list of their names and param_all_norm.pkl the vectors.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from facejax.data import transforms
from facejax.data.decoding import ImageFile
from facejax.data.readers.boxes import inside
from facejax.formats import pickles, texts
from facejax.morphable.parameters import Whitening

SIZE = 120


class TrainingCrops:
    """Examples {"image": uint8 [120, 120, 3] RGB, "parameters": float32 [62], whitening undone}.

    Args:
      folder: holds train_aug_120x120.list.SPLIT, param_all_norm.pkl (of "val": param_all_norm_val.pkl) and the folder
        train_aug_120x120.
      whitening: of the file param_whitening.pkl.
      split: "train" or "val".

    Raises:
      ValueError: a file is missing or damaged, or the vectors are not as many as the names.
    """

    def __init__(self, folder: str | os.PathLike[str], whitening: Whitening, split: str = "train"):
        folder = pathlib.Path(folder)
        path = folder / f"train_aug_120x120.list.{split}"
        self.names = texts.read(path).split()
        path = folder / ("param_all_norm.pkl" if split == "train" else f"param_all_norm_{split}.pkl")
        vectors = pickles.load(path)
        if not isinstance(vectors, np.ndarray) or vectors.dtype.kind != "f":
            raise ValueError(f"{path}: holds no array of numbers")
        if vectors.shape != (len(self.names), *whitening.mean.shape) or not np.isfinite(vectors).all():
            expected = (len(self.names), *whitening.mean.shape)
            raise ValueError(f"{path}: {vectors.shape}, expected {expected} finite numbers as the list has names")
        mean, std = np.asarray(whitening.mean), np.asarray(whitening.std)
        self._folder, self._vectors, self._mean, self._std = folder / "train_aug_120x120", vectors, mean, std

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = inside(self._folder, self.names[index], "train_aug_120x120.list")
        try:
            image = transforms.decode(ImageFile.read(path), upright=False)
        except OSError as error:
            raise ValueError(f"{path}: not a readable picture: {error}") from error
        if image.shape != (SIZE, SIZE, 3):
            raise ValueError(f"{path}: {image.shape[0]} x {image.shape[1]} pixels, expected {SIZE} x {SIZE}")
        vector = self._vectors[index] * self._std + self._mean
        return {"image": image, "parameters": vector.astype(np.float32)}
