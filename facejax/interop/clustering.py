"""Conversion of GCN-V, GCN-E (yl-1993/learn-to-cluster) and STAR-FC (sstzal/STAR-FC) from PyTorch state dicts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop.names import Rule, convert
from facejax.interop.pytorch import read_weights


def load(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables of `facejax.clustering.vegcn.GCNV` or `GCNE`; the template determines which.

    Args:
      path: a state dict, or a checkpoint that contains one; see `read_weights`.
      template: shapes of the network's variables.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the weights do not match the template.
    """
    return convert(read_weights(path, key), rules(), template)


def rules() -> list[Rule]:
    """vegcn/models: conv1 to conv4 with [inputs, outputs] weights, then the classifier."""
    found = []
    for number in range(1, 5):
        found.append(Rule(rf"conv{number}\.weight", f"params/GraphConv_{number - 1}/Dense_0/kernel"))
        found.append(Rule(rf"conv{number}\.bias", f"params/GraphConv_{number - 1}/Dense_0/bias"))
    for place, name in ((0, "Dense_1"), (2, "Dense_0")):  # Flax numbers them in the order of construction
        found.append(Rule(rf"classifier\.{place}\.weight", f"params/PReLUHead_0/{name}/kernel", "linear"))
        found.append(Rule(rf"classifier\.{place}\.bias", f"params/PReLUHead_0/{name}/bias"))
    return [*found, Rule(r"classifier\.1\.weight", "params/PReLUHead_0/PReLU_0/slope")]


def load_star_fc(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables of `facejax.clustering.star_fc.EdgeNet` from one checkpoint, or from the authors' two.

    Args:
      path: of the graph convolution, such as backbone.pth or Backbone_Epoch_1_batch_99.pth, with the head's file beside
        it, head.pth or Head_Epoch_1_batch_99.pth; or of one file with both.
      template: shapes of the network's variables.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the weights do not match the template.
    """
    tensors = read_weights(path, key)
    head = _head_beside(path)
    if head and not any("classifier" in name for name in tensors):
        tensors = {**tensors, **read_weights(head, key)}
    return convert(_halved(tensors), star_fc_rules(), template)


def _head_beside(path: str | os.PathLike[str]) -> str:
    folder, name = os.path.split(os.fspath(path))
    other = name.replace("backbone", "head").replace("Backbone", "Head")
    return os.path.join(folder, other) if other != name and os.path.isfile(os.path.join(folder, other)) else ""


def _halved(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The layer on two joined nodes as two layers."""
    found = {}
    for name, x in tensors.items():
        if name.endswith("classifier.0.weight") and x.ndim == 2:
            half = x.shape[1] // 2
            found[f"{name}.first"], found[f"{name}.second"] = x[:, :half], x[:, half:]
        else:
            found[name] = x
    return found


def star_fc_rules() -> list[Rule]:
    """src/models/gcn.py: conv1 of the backbone, the classifier of the head, whose first weight is in two halves."""
    return [
        Rule(r"conv1\.weight", "params/convolution/Dense_0/kernel"),
        Rule(r"conv1\.bias", "params/convolution/Dense_0/bias"),
        Rule(r"classifier\.0\.weight\.(first|second)", r"params/\1/kernel", "linear"),
        Rule(r"classifier\.0\.bias", "params/first/bias"),
        Rule(r"classifier\.1\.weight", "params/slope/slope"),
        Rule(r"classifier\.2\.weight", "params/output/kernel", "linear"),
        Rule(r"classifier\.2\.bias", "params/output/bias"),
    ]
