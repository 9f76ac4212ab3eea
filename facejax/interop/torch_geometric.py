"""Conversion of torch_geometric's state dicts: GAT (GATConv), and GCN (GCNConv without biases).

SAGEConv adds what GraphSAGE, the paper's and ours, concatenates, so its weights have no place here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop.names import Rule, convert
from facejax.interop.pytorch import read_weights

_PART = re.compile(r"\.(?:lin(?:_src)?\.weight|att_src|att_dst|bias)$")


def load_gat(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables of `facejax.graph.gat.GAT` from a network of GATConv layers, in the order of their names.

    GATConv has no biases in its attention: ours become 0. Its layers add self-loops: use `gat.neighborhood`.

    Args:
      path: a state dict, or a checkpoint that contains one; see `read_weights`.
      template: shapes of the model's variables, without skip connections.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the weights do not match the template.
    """
    params = template["params"]
    found: dict[str, np.ndarray] = {}
    for name, place, x in _placed(path, key, sorted(params, key=lambda n: (n == "output", len(n), n))):
        heads, inputs, width = params[place]["kernel"].shape if place in params else (1, 0, 0)
        if re.search(r"\.lin(?:_src)?\.weight$", name) and x.shape == (heads * width, inputs):
            found[f"params/{place}/kernel"] = x.reshape(heads, width, inputs).swapaxes(1, 2)
        elif name.endswith((".att_src", ".att_dst")) and x.shape == (1, heads, width):
            end = "source" if name.endswith("src") else "destination"
            found[f"params/{place}/{end}"] = x[0][..., None]
            found[f"params/{place}/{end}_bias"] = np.zeros(heads, x.dtype)
        elif name.endswith(".bias") and x.shape == (heads * width,):
            found[f"params/{place}/bias"] = x.reshape(heads, width)
        elif name.endswith(".bias") and x.shape == (width,):  # of the mean over the heads
            found[f"params/{place}/bias"] = np.tile(x, (heads, 1))
        else:
            found[name] = x
    return convert(found, [Rule("(params/.*)", r"\1")], template)


def load_gcn(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables of `facejax.graph.gcn.GCN` from two GCNConv layers, whose biases must be 0 or not there.

    Args:
      path: a state dict, or a checkpoint that contains one; see `read_weights`.
      template: shapes of the model's variables.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the weights do not match the template, or a layer has a bias.
    """
    found: dict[str, np.ndarray] = {}
    for name, place, x in _placed(path, key, ["first", "second"]):
        if name.endswith(".lin.weight") and x.ndim == 2:
            found[f"params/{place}"] = x.T[None]
        else:
            found[name] = x
    rules = [Rule(r"(params/.*)", r"\1"), Rule(r".*\.bias", "", dropped="zeros")]
    return convert(found, rules, template)


def _placed(path: str | os.PathLike[str], key: str | None, layers: list[str]) -> list[tuple[str, str, np.ndarray]]:
    """(name, our layer, tensor) of every tensor; their layers are numbered by the order of their names."""
    tensors: Mapping[str, np.ndarray] = read_weights(path, key)
    owner = {name: _PART.sub("", name) for name in tensors}
    order = sorted(set(owner.values()), key=lambda n: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", n)])
    places = dict(zip(order, layers, strict=False))
    return [(name, places.get(owner[name], ""), x) for name, x in tensors.items()]
