"""Prepared data sets on disk: made once, by one process, whole or not at all."""

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
    """Where prepared data lies: `given`, else $FACEJAX_DATA_DIR, else ~/.cache/facejax."""
    return pathlib.Path(given or os.environ.get("FACEJAX_DATA_DIR") or "~/.cache/facejax").expanduser()


def prepared(builder: tfds.core.DatasetBuilder, split: str, decoders: Mapping[str, Any] | None = None) -> Any:
    """The split as a random-access source; prepares the whole set first where it does not exist yet.

    tfds writes into a folder of another name and renames it when it is complete, so a set that was interrupted is
    never read; a lock makes other processes wait, and what an interrupted preparation left is removed.

    Args:
      builder: whose files are ArrayRecord.
      split: such as "train".
      decoders: tfds decoders by feature; images given `Encoded()` come as encoded bytes.
    """
    folder = pathlib.Path(builder.data_dir)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / ".lock"):
            if not folder.exists():
                for left in folder.parent.glob("incomplete.*"):
                    shutil.rmtree(left)
                builder.download_and_prepare(file_format="array_record")
    builder.info.read_from_directory(folder)  # who made the set may have been another process, after the builder was
    return builder.as_data_source(split, decoders=decoders)


class Encoded(tfds.decode.SkipDecoding):
    """Images stay the bytes that were stored; of a sequence, an array of bytes, which tfds's own class cannot do."""

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
        return serialized_example


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
