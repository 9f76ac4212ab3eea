"""Models out: a jitted function with its weights as StableHLO, which runs without its Python code."""

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
    """Writes `fn` for arguments of these shapes and types.

    Args:
      path: the file, by habit ending in .stablehlo.
      fn: such as `lambda images: net.apply(variables, images, train=False)`; what it closes over is stored with it.
      *arguments: arrays or ShapeDtypeStructs.
      platforms: where the file can run.
    """
    exported = jax.export.export(jax.jit(fn), platforms=platforms)(*arguments)
    pathlib.Path(path).write_bytes(exported.serialize())


def read_stablehlo(path: str | os.PathLike[str]) -> Callable[..., Any]:
    """The function that `write_stablehlo` wrote."""
    try:
        return jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call
    except Exception as error:  # a damaged file raises anything
        raise ValueError(f"{path}: not a StableHLO export that can be read: {error}") from error
