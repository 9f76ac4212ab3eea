"""Image sets that `python -m facejax.data.builders.images` wrote as ArrayRecord."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from facejax.data.decoding import ImageFile


class PreparedImages:
    """Random access to encoded images and labels.

    Args:
      folder: folder of the prepared set, which contains dataset_info.json.

    Attributes:
      folder: the argument.
      num_classes: number of classes.
      labels: [N] labels of all images, in order.
      names: names of all images, in order; None if the source had none.
      class_names: "identity" of the names "identity/image.jpg", in the order of the labels; None without such names.
      digest: SHA-256 of all images in order, each after its length; empty in sets of older versions.

    Raises:
      ValueError: the folder contains another data set, or its metadata is missing or inconsistent.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        builder = tfds.builder_from_directory(folder)
        metadata = builder.info.metadata or {}
        if builder.info.name != "facejax_images" or "labels" not in metadata:
            raise ValueError(
                f"{folder}: {builder.info.full_name} without labels: expected a set that this version of "
                "facejax.data.builders.images prepared"
            )
        self.num_classes, self.names = metadata["num_classes"], metadata["names"] or None
        self.digest = metadata.get("digest", "")
        self.labels = np.array(metadata["labels"], np.int32)
        owners = dict(zip(self.labels.tolist(), (n.rpartition("/")[0] for n in self.names or ()), strict=False))
        complete = sorted(owners) == list(range(self.num_classes)) and all(owners.values())
        self.class_names = [owners[label] for label in range(self.num_classes)] if complete else None
        self._source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
        if len(self._source) != len(self.labels):
            raise ValueError(f"{folder}: {len(self._source)} images: expected {len(self.labels)} as in its metadata")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._named(self._source[index], index)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return list(map(self._named, self._source.__getitems__(indices), indices))

    def _named(self, example: dict[str, Any], index: int) -> dict[str, Any]:
        name = self.names[index] if self.names else f"image {index}"
        return {**example, "image": ImageFile(example["image"], f"{self.folder}: {name}")}
