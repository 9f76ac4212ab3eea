"""Weights in Keras HDF5, ONNX and safetensors files, by name. The readers need the packages of the extra `convert`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np


def read_keras(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All weights of a Keras 2 HDF5 file, by "layer/.../weight:0"; nested models keep their path.

    Raises:
      ValueError: not an HDF5 file, or a file without weights.
    """
    import h5py

    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and "optimizer_weights" not in name:
            found[name.removeprefix("model_weights/")] = np.asarray(item)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except Exception as error:
        raise ValueError(f"{path}: not a readable Keras HDF5 file: {error}") from error
    if not found:
        raise ValueError(f"{path}: no weights found, expected at least one")
    return found


def read_onnx(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The initialisers of an ONNX graph, by name.

    Raises:
      ValueError: not an ONNX file, a file without initialisers, or one with external data files.
    """
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load(os.fspath(path), load_external_data=False).graph
        if any(t.data_location == onnx.TensorProto.EXTERNAL for t in graph.initializer):
            raise ValueError("weights in external data files, expected all in this file")
        found = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    except Exception as error:
        raise ValueError(f"{path}: not a readable ONNX file: {error}") from error
    if not found:
        raise ValueError(f"{path}: no initialisers found, expected at least one")
    return found


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, by name. Raises ValueError for other files."""
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error


def write_safetensors(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> None:
    """Writes Flax variables, each named by its path with "/" between keys."""
    import jax
    from safetensors.numpy import save_file

    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    named = {"/".join(str(getattr(k, "key", k)) for k in keys): np.ascontiguousarray(leaf) for keys, leaf in leaves}
    save_file(named, path)
