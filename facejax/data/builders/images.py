"""`facejax_images`: any source of labelled, encoded images as ArrayRecord, written once and read fast from then on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from facejax.data import transforms
from facejax.data.builders import store


class FacejaxImages(tfds.core.GeneratorBasedBuilder):
    """Encoded images and labels in the order of their source, bytes unchanged."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, source: Any, name: str, data_dir: str | os.PathLike[str] | None = None):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"facejax_images: the name {name!r} must be of lower-case letters, digits and underscores")
        self._source = source
        config = tfds.core.BuilderConfig(name=name, version="1.0.0", description=type(source).__name__)
        super().__init__(config=config, data_dir=store.data_dir(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(), "label": np.int32}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(num_classes=self._source.num_classes),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(len(self._source)):
            example = self._source[index]
            if not 0 <= example["label"] < self._source.num_classes:
                raise ValueError(
                    f"image {index} has the label {example['label']}, expected 0 to {self._source.num_classes - 1}"
                )
            try:
                transforms.decode(example["image"])
            except ValueError as error:
                raise ValueError(f"image {index}: {error}") from error
            yield index, {"image": example["image"], "label": example["label"]}


def prepare(source: Any, name: str, data_dir: str | os.PathLike[str] | None = None) -> Any:
    """The source's images from ArrayRecord, written first where they are not there yet: a random-access source.

    Every image is decoded once on the way, so that a broken one is named now and not in the middle of a run.

    Args:
      source: any of `facejax.data.readers`.
      name: of the prepared set, such as "ms1mv3"; give another one to other data.
      data_dir: see `store.data_dir`.
    """
    builder = FacejaxImages(source=source, name=name, data_dir=data_dir)
    prepared = store.prepared(builder, "train", {"image": tfds.decode.SkipDecoding()})
    if len(prepared) != len(source):
        raise ValueError(f"facejax_images: {builder.data_dir} holds {len(prepared)} images, the source {len(source)}")
    return prepared
