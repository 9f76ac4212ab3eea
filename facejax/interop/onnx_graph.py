"""Layers of an ONNX graph in its order: convolutions with their batch norms, whether folded or not, without names.

PyTorch's exporter folds batch norms into the convolutions before them and gives the result numbers as names, which
differ between versions; the order of the layers on a path through the network does not.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop import files
from facejax.interop.damage import unreadable

EPSILON = 1e-5
"""Of our batch norms."""
ROLES = {
    "Conv": ("weight", "bias"),
    "ConvTranspose": ("weight", "bias"),
    "BatchNormalization": ("scale", "bias", "mean", "var"),
    "PRelu": ("slope",),
    "Gemm": ("weight", "bias"),
    "MatMul": ("weight",),
}


@dataclasses.dataclass
class Layer:
    """A node with weights.

    Attributes:
      kind: "Conv", "ConvTranspose", "BatchNormalization", "PRelu" or "Gemm" (also a MatMul).
      tensors: by role, "weight" and "bias" as PyTorch has them, "scale", "bias", "mean" and "var", or "slope".
      norm: tensors of the batch norm that follows a convolution.
      name: of the weight in the file.
    """

    kind: str
    tensors: dict[str, np.ndarray]
    norm: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    name: str = ""


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a file may be ONNX: it begins with the field of the version, as no zip file or pickle does."""
    with open(path, "rb") as file:
        return file.read(1) == b"\x08"


def read_layers(path: str | os.PathLike[str]) -> list[Layer]:
    """All nodes with weights, in the order of the graph; a batch norm after a convolution is part of it.

    Variances are given for an epsilon of 1e-5, whatever the file's is.

    Raises:
      ValueError: not an ONNX file, or a floating-point tensor that no layer uses, or two.
    """
    import onnx

    tensors = files.read_onnx(path)
    graph = onnx.load(os.fspath(path), load_external_data=False).graph
    users: dict[str, int] = {}
    found: list[Layer] = []
    by_output: dict[str, Layer] = {}
    for node in graph.node:  # newer exporters write a tensor once for all that have its values
        if node.op_type == "Identity" and node.input[0] in tensors:
            tensors[node.output[0]] = tensors[node.input[0]]
            users[node.input[0]] = 0
    for node in graph.node:
        roles = ROLES.get(node.op_type, ())
        names = dict(zip(roles, [n for n in node.input[1:] if n], strict=False))
        if not names or any(name not in tensors for name in names.values()):
            continue
        for name in names.values():
            users[name] = users.get(name, 0) + 1
        layer = _layer(node, {role: tensors[name] for role, name in names.items()}, next(iter(names.values())))
        before = by_output.get(node.input[0])
        if node.op_type == "BatchNormalization" and before is not None and not before.norm:
            before.norm = layer.tensors
            by_output[node.output[0]] = before
            continue
        found.append(layer)
        if node.op_type.startswith("Conv"):
            by_output[node.output[0]] = layer
    unused = [name for name, x in tensors.items() if x.dtype.kind == "f" and x.ndim and name not in users]
    if unused:
        raise unreadable(path, "ONNX file of layers", f"no layer uses {unused[0]} {tensors[unused[0]].shape}")
    return found


def _layer(node: Any, tensors: dict[str, np.ndarray], name: str) -> Layer:
    options = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "BatchNormalization":
        epsilon = options["epsilon"].f if "epsilon" in options else EPSILON
        tensors["var"] = tensors["var"] + np.float32(epsilon - EPSILON)
    elif node.op_type == "PRelu":
        tensors["slope"] = tensors["slope"].reshape(-1)
    elif node.op_type == "MatMul" or (node.op_type == "Gemm" and not ("transB" in options and options["transB"].i)):
        tensors["weight"] = tensors["weight"].T
    return Layer("Gemm" if node.op_type == "MatMul" else node.op_type, tensors, name=name)


def norm_of(layer: Layer) -> dict[str, np.ndarray]:
    """The roles of a batch norm after a convolution; of a folded one, a scale of 1 with the convolution's bias."""
    width = len(layer.norm["scale"]) if layer.norm else len(layer.tensors["bias"])
    if not layer.norm:
        bias = layer.tensors["bias"]
        return {"scale": np.ones(width), "bias": bias, "mean": np.zeros(width), "var": np.full(width, 1 - EPSILON)}
    if "bias" in layer.tensors:
        return {**layer.norm, "mean": layer.norm["mean"] - layer.tensors["bias"]}
    return layer.norm


def placed_norm(norm: Mapping[str, np.ndarray], target: str) -> dict[str, np.ndarray]:
    """The tensors of a batch norm by the path of our variables."""
    kinds = {"scale": "params", "bias": "params", "mean": "batch_stats", "var": "batch_stats"}
    return {f"{kinds[role]}/{target}/norm/{role}": np.asarray(x, np.float32) for role, x in norm.items()}
