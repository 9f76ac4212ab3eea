"""Why a file of weights is not readable: the usual accidents of a download."""

from __future__ import annotations

import os
import pathlib
import re
import zipfile
from typing import Any

_CUT = re.compile(
    r"truncated|Ran out of input|EOFError|unpack requires a buffer|index out of range"  # pickle, in C and in Python
    r"|incomplete metadata|Error parsing message|exceeds available data"  # safetensors, onnx, h5py
)
"""Messages of readers about a file without its end."""


def unreadable(path: str | os.PathLike[str], kind: str, reason: Any) -> ValueError:
    """The error to raise for a file that is no `kind`, with the accident that its content or the reason looks like."""
    hint = " (a download cut short?)" if _CUT.search(str(reason)) else ""
    return ValueError(f"{os.fspath(path)}: not a readable {kind}: {_accident(pathlib.Path(path)) or f'{reason}{hint}'}")


def _is_zip(path: pathlib.Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a directory, but one that the module refuses
        return True


def _accident(path: pathlib.Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        first = file.read(64)
    if not first:
        return "the file is empty"
    if first.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, expected the file itself (git lfs pull)"
    if first.lstrip()[:1] == b"<":
        return "it is a web page, expected the file itself"
    if first.startswith(b"PK\3\4") and not _is_zip(path):
        return f"it ends after {path.stat().st_size} bytes, before the directory of a zip file (a download cut short?)"
    return ""
