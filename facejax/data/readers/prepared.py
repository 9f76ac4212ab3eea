"""Images written as ArrayRecord by `python -m facejax.data.builders.images`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


class PreparedImages:
    """Encoded images and labels at random access.

    Args:
      folder: the prepared set, with dataset_info.json in it.

    Attributes:
      folder: as given.
      num_classes: how many.
      labels: [N] of all images, in order.
      names: of all images, in order, where the source had any; else None.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        builder = tfds.builder_from_directory(folder)
        told = builder.info.metadata or {}
        if builder.info.name != "facejax_images" or "labels" not in told:
            raise ValueError(
                f"{folder} holds {builder.info.full_name} without labels: expected what facejax.data.builders.images "
                "prepares now"
            )
        self.num_classes, self.names = told["num_classes"], told["names"] or None
        self.labels = np.array(told["labels"], np.int32)
        self._source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
        if len(self._source) != len(self.labels):
            raise ValueError(f"{folder} holds {len(self._source)} images: expected {len(self.labels)}, as it tells")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[index]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return list(self._source.__getitems__(indices))
