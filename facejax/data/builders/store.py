"""Prepared data sets on disk: a single process prepares each set, atomically."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds


def data_dir(given: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Folder of prepared data: `given`, else $FACEJAX_DATA_DIR, else ~/.cache/facejax."""
    return pathlib.Path(given or os.environ.get("FACEJAX_DATA_DIR") or "~/.cache/facejax").expanduser()


def prepared(builder: tfds.core.DatasetBuilder, split: str, decoders: Mapping[str, Any] | None = None) -> Any:
    """The split as a random-access source; prepares the whole set first if it does not exist.

    tfds writes to a temporary folder and renames it at the end, so that an incomplete set is never read. A lock makes
    other processes wait. Remains of interrupted preparations are removed.

    Args:
      builder: builder with ArrayRecord files.
      split: such as "train".
      decoders: tfds decoders by feature; with `Encoded()`, images stay encoded bytes.
    """
    folder = pathlib.Path(builder.data_dir)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / ".lock"):
            if not folder.exists():
                for left in folder.parent.glob("incomplete.*"):
                    shutil.rmtree(left)
                builder.download_and_prepare(file_format="array_record")
    builder.info.read_from_directory(folder)  # another process may have prepared the set meanwhile
    return builder.as_data_source(split, decoders=decoders)


class Encoded(tfds.decode.SkipDecoding):
    """Keeps images as encoded bytes, also in sequences, which tfds's `SkipDecoding` does not support."""

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
        return serialized_example


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
