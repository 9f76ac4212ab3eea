"""Export of a jitted function with its weights as StableHLO, which runs without the model's Python code."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

MARK = b"facejax sha256 "
"""Stands, with the digest of all bytes before it, at a file's end, which JAX ignores."""


def write_stablehlo(
    path: str | os.PathLike[str],
    fn: Callable[..., Any],
    *arguments: Any,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> None:
    """Writes `fn` for arguments of the given shapes and dtypes.

    Args:
      path: the file, usually with the suffix .stablehlo.
      fn: such as `lambda images: net.apply(variables, images, train=False)`; the file includes its closure variables.
      *arguments: arrays or ShapeDtypeStructs.
      platforms: platforms that can run the file.
    """
    exported = jax.export.export(jax.jit(fn), platforms=platforms)(*arguments)
    content = bytes(exported.serialize())
    pathlib.Path(path).write_bytes(content + MARK + hashlib.sha256(content).digest())


def read_stablehlo(path: str | os.PathLike[str]) -> Callable[..., Any]:
    """Loads a function that `write_stablehlo` wrote. Raises ValueError for other files and for changed ones."""
    content = pathlib.Path(path).read_bytes()
    content, mark, digest = content.rpartition(MARK)
    if not mark:
        content = digest  # of JAX itself, or of facejax before it wrote digests
    elif hashlib.sha256(content).digest() != digest:
        raise ValueError(f"{path}: its content is not what was written: a damaged file")
    try:
        return jax.export.deserialize(bytearray(content)).call
    except Exception as error:  # damaged files raise various exceptions
        raise ValueError(f"{path}: not a readable StableHLO export: {error}") from error
