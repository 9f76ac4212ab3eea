"""Text and JSON files."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any, TypeVar

from facejax.formats import limits

T = TypeVar("T")


def read(path: str | os.PathLike[str], kind: str = "text file") -> str:
    """The text of a UTF-8 file, with newlines as in the file but for carriage returns before them.

    Args:
      path: the file.
      kind: what errors call it.

    Raises:
      ValueError: not UTF-8, not readable, or larger than `facejax.formats.limits` allow.
    """
    try:
        limits.memory(pathlib.Path(path).stat().st_size, "the file")
        return pathlib.Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a readable {kind}: byte {error.start} is no UTF-8") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable {kind}: {error}") from error


def read_json(path: str | os.PathLike[str], kind: type[T]) -> T:
    """The content of a JSON file whose outermost value is a `kind`, dict or list.

    Raises:
      ValueError: not such a file, or as `read`.
    """
    text = read(path, "JSON file")
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(found, kind):
        raise ValueError(f"{path}: holds a {type(found).__name__}, expected a {kind.__name__}")
    return found
