"""`facejax_images`: converts any source of labelled, encoded images to ArrayRecord.

    python -m facejax.data.builders.images --source people --name people
    python -m experiments.arcface --config=folder --config.data.path=FOLDER ...      # the first command prints FOLDER

`--source` is a folder identity/image.jpg, an InsightFace pack or a .mat file. A few large files read faster over a
network than millions of small ones and use less of a file quota. Labels and image names are stored separately, so that
opening the set does not read the images. Preparation decodes every image once, so that broken images show up early.
"""

from __future__ import annotations

import argparse
import hashlib
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
    """Encoded images and labels in the order of their source, with unchanged bytes."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, source: Any, name: str, data_dir: str | os.PathLike[str] | None = None):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"facejax_images: name {name!r}, expected lower-case letters, digits and underscores")
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
        labels, content = [], hashlib.sha256()
        for index in range(len(self._source)):
            example = self._source[index]
            if not 0 <= example["label"] < self._source.num_classes:
                raise ValueError(
                    f"image {index} has label {example['label']}, expected 0 to {self._source.num_classes - 1}"
                )
            try:
                transforms.decode(example["image"])
            except ValueError as error:
                raise ValueError(f"image {index}: {error}") from error
            labels.append(int(example["label"]))
            _add(content, example["image"])
            yield index, {"image": example["image"], "label": example["label"]}
        self.info.metadata.update(labels=labels, names=_names(self._source), digest=content.hexdigest())


def prepare(source: Any, name: str, data_dir: str | os.PathLike[str] | None = None) -> PreparedImages:
    """Opens the prepared set `name`; writes it from the source first if it does not exist.

    Args:
      source: a source of `facejax.data.readers`.
      name: name of the prepared set, such as "ms1mv3"; it identifies the data.
      data_dir: see `store.data_dir`.

    Raises:
      ValueError: an invalid name, label or image, or an existing set of other images, labels or image names; comparing
        them reads every image of the source.
    """
    builder = FacejaxImages(source=source, name=name, data_dir=data_dir)
    existed = pathlib.Path(builder.data_dir).exists()
    store.prepared(builder, "train", {"image": tfds.decode.SkipDecoding()})
    found = PreparedImages(pathlib.Path(builder.data_dir))
    differs = _difference(found, source) if existed else ""
    if differs:
        raise ValueError(
            f"facejax_images: {builder.data_dir} has {differs} than the source: expected the same, another name or an "
            "empty folder"
        )
    return found


def _difference(found: PreparedImages, source: Any) -> str:
    """What distinguishes a prepared set from a source, or ""."""
    if len(found) != len(source) or found.num_classes != source.num_classes:
        return f"another number of images ({len(found)}) or identities ({found.num_classes})"
    if (found.names or []) != _names(source):
        return "other image names"
    labels, content = [], hashlib.sha256()
    for index in range(len(source)):
        example = source[index]
        labels.append(example["label"])
        _add(content, example["image"])
    if found.labels.tolist() != labels:
        return "other labels"
    kept = hashlib.sha256()
    if not found.digest:  # prepared before digests were stored
        for index in range(len(found)):
            _add(kept, found[index]["image"])
    return "" if (found.digest or kept.hexdigest()) == content.hexdigest() else "other images"


def _names(source: Any) -> list[str]:
    return list(getattr(source, "names", None) or [])


def _add(content: Any, image: bytes) -> None:
    content.update(len(image).to_bytes(8, "little"))
    content.update(image)


def main(arguments: list[str] | None = None) -> None:
    """Prepares a source and prints its folder."""
    parser = argparse.ArgumentParser(prog="python -m facejax.data.builders.images", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--source", required=True, help="path that facejax.data.readers.read opens")
    parser.add_argument(
        "--name", required=True, help="name of the prepared set: lower-case letters, digits, underscores"
    )
    parser.add_argument("--data_dir", help="folder of prepared data; default: $FACEJAX_DATA_DIR, else ~/.cache/facejax")
    given = parser.parse_args(arguments)
    try:
        found = prepare(readers.read(given.source), given.name, given.data_dir)
    except (ValueError, OSError) as error:
        sys.exit(f"facejax.data.builders.images: {error}")
    print(f"{len(found)} images of {found.num_classes} identities: --config.data.path={found.folder}")


if __name__ == "__main__":
    main()
