"""Text and JSON files."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import zlib
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
        return _decoded(pathlib.Path(path).read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a readable {kind}: byte {error.start} is no UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # an OSError's own text has the path once more
        raise ValueError(f"{path}: not a readable {kind}: {reason}") from error


def read_packed(path: str | os.PathLike[str]) -> str:
    """As `read`, of a text that gzip compressed."""
    kept, parts = 0, []
    try:
        with gzip.open(path) as file:
            while part := file.read(1 << 20):
                kept = limits.memory(kept + len(part), "the text")
                parts.append(part)
        return _decoded(b"".join(parts))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: not a readable text file packed by gzip: {error}") from error


def lines(text: str) -> list[str]:
    """The lines of a text that ends with a newline or without; unlike `str.splitlines`, cut at newlines only."""
    return text.removesuffix("\n").split("\n") if text else []


def _decoded(data: bytes) -> str:
    return data.decode("utf-8-sig").replace("\r\n", "\n")


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
