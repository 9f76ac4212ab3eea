"""`facejax_images`: any source of labelled, encoded images as ArrayRecord, written once and read fast from then on.

    python -m facejax.data.builders.images --source people --name people
    python -m experiments.arcface --config=folder --config.data.path=FOLDER ...      # which the first line prints

`--source` is a folder person/picture.jpg, an InsightFace pack or a .mat file. A few large files in place of millions
of small ones go over a network at full speed and count as a few in a quota; labels and the names of a folder's
pictures lie apart, so that a run opens the set without reading it; and every image has been decoded once. A pack on a
local disk gains the last two only.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from facejax.data import readers, transforms
from facejax.data.builders import store
from facejax.data.readers.prepared import PreparedImages


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
        labels = []
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
            labels.append(int(example["label"]))
            yield index, {"image": example["image"], "label": example["label"]}
        self.info.metadata.update(labels=labels, names=list(getattr(self._source, "names", None) or []))


def prepare(source: Any, name: str, data_dir: str | os.PathLike[str] | None = None) -> PreparedImages:
    """The source's images from ArrayRecord, written first where they are not there yet.

    Every image is decoded once on the way, so that a broken one is named now and not in the middle of a run.

    Args:
      source: any of `facejax.data.readers`.
      name: of the prepared set, such as "ms1mv3"; give another one to other data.
      data_dir: see `store.data_dir`.
    """
    builder = FacejaxImages(source=source, name=name, data_dir=data_dir)
    store.prepared(builder, "train", {"image": tfds.decode.SkipDecoding()})
    found = PreparedImages(pathlib.Path(builder.data_dir))
    if len(found) != len(source):
        raise ValueError(f"facejax_images: {builder.data_dir} holds {len(found)} images, the source {len(source)}")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Prepares a source and says where it lies."""
    parser = argparse.ArgumentParser(prog="python -m facejax.data.builders.images", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--source", required=True, help="what facejax.data.readers.read opens")
    parser.add_argument("--name", required=True, help="of the prepared set: lower-case letters, digits, underscores")
    parser.add_argument("--data_dir", help="where it goes; $FACEJAX_DATA_DIR or ~/.cache/facejax where not given")
    given = parser.parse_args(arguments)
    try:
        found = prepare(readers.read(given.source), given.name, given.data_dir)
    except (ValueError, OSError) as error:
        sys.exit(f"facejax.data.builders.images: {error}")
    print(f"{len(found)} images of {found.num_classes} people: --config.data.path={found.folder}")


if __name__ == "__main__":
    main()
