"""Weights in Keras HDF5, ONNX and safetensors files, by name. The readers need the packages of the extra `convert`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.formats import hdf5, limits
from facejax.interop.damage import unreadable
from facejax.interop.names import add, flat

_ORDERS = {
    r"(dense|(depthwise_)?conv\dd(_transpose)?)(_\d+)?": ("kernel", "bias"),
    r"separable_conv\dd(_\d+)?": ("depthwise_kernel", "pointwise_kernel", "bias"),
    r"batch_normalization(_\d+)?": ("gamma", "beta", "moving_mean", "moving_variance"),
}
"""Weights of a layer in the order of a .weights.h5 file, by the layer's class."""


def read_keras(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All weights of a Keras 2 or 3 HDF5 file, by "layer/.../weight" without the ":0" of Keras 2.

    Nested models keep their path. Those of a .weights.h5 file, which has numbers, get names where their layer is dense,
    a convolution or a batch norm with both scale and bias.

    Raises:
      ValueError: not an HDF5 file, or a file without weights.
    """
    import h5py

    found: dict[str, np.ndarray] = {}
    total = [0]

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and name.partition("/")[0] not in ("optimizer_weights", "optimizer"):
            name = _named(name, item.parent) if item.parent.name.endswith("/vars") else name.removesuffix(":0")
            array = hdf5.read(item.file, item.name)
            total[0] = limits.memory(total[0] + array.nbytes, "the weights together")
            add(found, name.removeprefix("model_weights/"), array)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except Exception as error:
        raise unreadable(path, "Keras HDF5 file", error) from error
    if not found:
        raise ValueError(f"{path}: no weights found, expected at least one")
    return found


def _named(name: str, weights: Any) -> str:
    """layers/conv2d_1/vars/0 of the layer "stem" -> layers/stem/kernel."""
    *outer, kind, _, number = name.split("/") if name.count("/") > 1 else ("", *name.split("/"))
    order = next((names for pattern, names in _ORDERS.items() if re.fullmatch(pattern, kind)), ())
    biased = len(order) - len(weights) <= ("bias" in order)
    return "/".join([*outer, str(weights.attrs.get("name", kind)), order[int(number)] if order and biased else number])


def read_onnx(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The initialisers of an ONNX graph by name, and the floating-point tensors of its Constant nodes by their output.

    PyTorch's exporter folds batch norm into the convolutions by default and keeps their names: export with
    `optimize=False` for the numbers of the state dict.

    Raises:
      ValueError: not an ONNX file, a file without weights, or one whose external data file is not beside it.
    """
    import onnx
    from onnx import numpy_helper

    found: dict[str, np.ndarray] = {}
    try:
        limits.memory(os.stat(path).st_size, "the file")
        graph = onnx.load(os.fspath(path), load_external_data=False).graph
        _load_external(graph, os.path.dirname(os.fspath(path)))
        constants = [
            (node.output[0], attribute.t)
            for node in graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        ]
        weights = [(t.name, t) for t in graph.initializer]
        for name, tensor in weights:
            add(found, name, numpy_helper.to_array(tensor))
        for name, tensor in constants:
            array = numpy_helper.to_array(tensor)
            if array.ndim and array.dtype.kind == "f":
                add(found, name, array)
    except Exception as error:
        raise unreadable(path, "ONNX file", error) from error
    if not found:
        raise unreadable(path, "ONNX file", "no initialisers found, expected at least one")
    return found


def _load_external(graph: Any, folder: str) -> None:
    from onnx import TensorProto
    from onnx.external_data_helper import load_external_data_for_tensor

    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            if os.path.isabs(place) or ".." in place.split("/"):
                raise ValueError(f"its weights are in {place!r}, expected a file in its folder")
            if not os.path.isfile(os.path.join(folder, place)):
                raise ValueError(
                    f"its weights are in {place!r}, expected beside it (or export again with external_data=False)"
                )
            load_external_data_for_tensor(tensor, folder)
            tensor.data_location = TensorProto.DEFAULT


def onnx_convolutions(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Names of weight and bias of every Conv node with a bias, in the order of the graph. The file must be readable."""
    import onnx

    graph = onnx.load(os.fspath(path), load_external_data=False).graph
    return [(node.input[1], node.input[2]) for node in graph.node if node.op_type == "Conv" and len(node.input) == 3]


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, by name. Raises ValueError for other files."""
    from safetensors.numpy import load_file

    try:
        limits.memory(os.stat(path).st_size, "the file")
        return load_file(path)
    except Exception as error:
        raise unreadable(path, "safetensors file", error) from error


def write_safetensors(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> None:
    """Writes Flax variables, each named by its path with "/" between keys.

    Raises:
      ValueError: two variables have one name.
    """
    from safetensors.numpy import save_file

    # safetensors 0.8.0 stores wrong numbers for arrays that are not contiguous
    save_file({name: np.asarray(leaf, order="C") for name, leaf in flat(variables).items()}, path)
