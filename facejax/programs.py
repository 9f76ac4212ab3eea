"""Traced programs that are kept between runs, so that a warm start traces no network anew.

They lie beside JAX's compiled programs, in `jax_compilation_cache_dir`; without such a folder nothing is kept. A key
holds for one version of the library's source, of JAX and of Flax, so that an old program never stands for a new layer.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
from jax import export

Shapes = dict[str, Any]
"""A nested dict of `jax.ShapeDtypeStruct`."""


def kept(function: Callable[..., Any], key: str) -> Callable[..., Any]:
    """The function for calls within `jax.jit`; each set of shapes is traced once, and read from disk in later runs.

    Args:
      function: of pytrees of arrays; returns nested dicts, lists and tuples of arrays.
      key: what the function is, apart from the library's source: the network's name, settings and file. "": nothing is
        kept.
    """
    folder = _folder()
    if not key or folder is None:
        return function

    def call(*arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments)
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
        place = folder / _digest(key, jax.default_backend(), str(tree), *map(str, shapes))
        content = _read(place)
        if content is None:
            traced = export.export(jax.jit(lambda *leaves: function(*tree.unflatten(leaves))))(*shapes)
            content = traced.serialize()
            _write(place, content)
        return export.deserialize(bytearray(content)).call(*leaves)

    return call


def kept_shapes(make: Callable[[], Shapes], key: str) -> Shapes:
    """`make()`, or what an earlier run made of it.

    Args:
      make: the shapes, which depend on the library's source and on the key alone.
      key: see `kept`.
    """
    folder = _folder()
    if not key or folder is None:
        return make()
    place = folder / _digest(key, "shapes")
    content = _read(place)
    if content is None:
        made = make()
        _write(place, json.dumps(jax.tree.map(lambda x: [list(x.shape), str(x.dtype)], made)).encode())
        return made
    return _structs(json.loads(content))


def _structs(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _structs(value) for name, value in tree.items()}
    shape, dtype = tree
    return jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))


def _folder() -> pathlib.Path | None:
    folder = jax.config.jax_compilation_cache_dir
    return pathlib.Path(folder) / "traced" if folder and "://" not in folder else None


def _digest(*parts: str) -> str:
    flags = f"{jax.config.jax_enable_x64} {jax.config.jax_default_matmul_precision}"
    versions = (jax.__version__, jaxlib.__version__, flax.__version__)
    return hashlib.sha256("\0".join((_source(), *versions, flags, *parts)).encode()).hexdigest()


@functools.cache
def _source() -> str:
    """SHA-256 of the library's modules."""
    digest, root = hashlib.sha256(), pathlib.Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\0".encode() + content)
    return digest.hexdigest()


def _read(place: pathlib.Path) -> bytes | None:
    """What `_write` wrote; None if there is nothing, or something damaged."""
    try:
        content = place.read_bytes()
    except OSError:
        return None
    return content[32:] if hashlib.sha256(content[32:]).digest() == content[:32] else None


def _write(place: pathlib.Path, content: bytes) -> None:
    """Whole or not at all; a folder that takes no files costs a later run its time only."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(file.name, place)
    except OSError:
        return
