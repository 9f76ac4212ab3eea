"""Weights in Keras HDF5, ONNX and safetensors files, by name. The readers need the packages of the extra `convert`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop.names import add, flat


def read_keras(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All weights of a Keras 2 HDF5 file, by "layer/.../weight:0"; nested models keep their path.

    Raises:
      ValueError: not an HDF5 file, or a file without weights.
    """
    import h5py

    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and "optimizer_weights" not in name:
            add(found, name.removeprefix("model_weights/"), np.asarray(item))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except Exception as error:
        raise ValueError(f"{path}: not a readable Keras HDF5 file: {error}") from error
    if not found:
        raise ValueError(f"{path}: no weights found, expected at least one")
    return found


def read_onnx(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The initialisers of an ONNX graph by name, and the floating-point tensors of its Constant nodes by their output.

    PyTorch's exporter folds batch norm into the convolutions by default and keeps their names: export with
    `optimize=False` for the numbers of the state dict.

    Raises:
      ValueError: not an ONNX file, a file without weights, or one with external data files.
    """
    import onnx
    from onnx import numpy_helper

    found: dict[str, np.ndarray] = {}
    try:
        graph = onnx.load(os.fspath(path), load_external_data=False).graph
        constants = [
            (node.output[0], attribute.t)
            for node in graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        ]
        weights = [(t.name, t) for t in graph.initializer]
        if any(t.data_location == onnx.TensorProto.EXTERNAL for _, t in weights + constants):
            raise ValueError("weights in external data files, expected all in this file")
        for name, tensor in weights:
            add(found, name, numpy_helper.to_array(tensor))
        for name, tensor in constants:
            array = numpy_helper.to_array(tensor)
            if array.ndim and array.dtype.kind == "f":
                add(found, name, array)
    except Exception as error:
        raise ValueError(f"{path}: not a readable ONNX file: {error}") from error
    if not found:
        raise ValueError(f"{path}: no initialisers found, expected at least one")
    return found


def onnx_convolutions(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Names of weight and bias of every Conv node with a bias, in the order of the graph. The file must be readable."""
    import onnx

    graph = onnx.load(os.fspath(path), load_external_data=False).graph
    return [(node.input[1], node.input[2]) for node in graph.node if node.op_type == "Conv" and len(node.input) == 3]


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, by name. Raises ValueError for other files."""
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error


def write_safetensors(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> None:
    """Writes Flax variables, each named by its path with "/" between keys.

    Raises:
      ValueError: two variables have one name.
    """
    from safetensors.numpy import save_file

    # safetensors 0.8.0 stores wrong numbers for arrays that are not contiguous
    save_file({name: np.asarray(leaf, order="C") for name, leaf in flat(variables).items()}, path)
