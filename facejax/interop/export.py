"""Export of a jitted function with its weights as StableHLO, which runs without the model's Python code."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax


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
    pathlib.Path(path).write_bytes(exported.serialize())


def read_stablehlo(path: str | os.PathLike[str]) -> Callable[..., Any]:
    """Loads a function that `write_stablehlo` wrote. Raises ValueError for other files."""
    try:
        return jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call
    except Exception as error:  # damaged files raise various exceptions
        raise ValueError(f"{path}: not a readable StableHLO export: {error}") from error
