"""FSA-Net's published Keras weights."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

import numpy as np

from facejax.interop.files import read_keras
from facejax.interop.names import Rule, convert
from facejax.interop.ssrnet import batch_norm, layer, rgb

AGGREGATES = {
    "caps/W": "weights",
    r"net_vlad_\d+/kernel_W1": "weights",
    r"net_vlad_\d+/kernel_B1": "biases",
    r"net_vlad_\d+/kernel_W2": "centres",
    r"net_vlad_\d+/kernel_H1": "hidden",
    r"mat_mul_layer_\d+/kernel_type1": "entries",
    r"mat_mul_layer_\d+/kernel_type2": "mixture",
}


def load(path: str | os.PathLike[str], template: Any) -> Any:
    """Variables of `facejax.attributes.fsanet.FSANet` from the authors' HDF5 file.

    The file's network sees BGR; here the inputs of the first kernels are reversed, so that it sees RGB.

    Args:
      path: the file.
      template: shapes of the model's variables.

    Raises:
      ValueError: no weights file, or weights of another network.
    """
    try:
        tensors = rgb(read_keras(path), ("separable_conv2d_1", "separable_conv2d_8"))
        tensors = {name: _laid_out(name, x) for name, x in tensors.items()}
        return convert(tensors, [*trunk_rules(), *head_rules("mapping" in template["params"])], template)
    except ValueError as error:
        raise ValueError(f"{path}: not the weights of this FSA-Net: {error}") from error


def file_of(folder: str | os.PathLike[str], scoring: str, aggregation: str = "capsule") -> pathlib.Path:
    """The authors' file of a network in a folder such as pre-trained/300W_LP_models, or in folders below it.

    Raises:
      ValueError: no such file, or several.
    """
    structure, vectors = {"conv": ("", 21), "variance": ("var_", 21), "none": ("noS_", 192)}[scoring]
    name = f"fsanet_{structure}{aggregation}_3_16_2_{vectors}_5.h5"
    found = [p for p in sorted(pathlib.Path(folder).rglob(f"*{name}")) if not p.name.startswith("history")]
    if len(found) != 1:
        raise ValueError(f"{folder}: {len(found)} files {name}: expected one, as in pre-trained/300W_LP_models")
    return found[0]


def _laid_out(name: str, tensor: np.ndarray) -> np.ndarray:
    """Depthwise kernels [H, W, C, 1] become [H, W, 1, C]; the 1x1 kernel of the scores and the centres lose an axis."""
    if name.endswith("depthwise_kernel"):
        return tensor.swapaxes(2, 3)
    if re.search(r"conv2d_7/kernel$", name) and tensor.shape[:2] == (1, 1):
        return tensor[0, 0]
    return tensor[0] if name.endswith("kernel_W2") else tensor


def trunk_rules() -> list[Rule]:
    """Layers are numbered in the order of the code: seven blocks of the first stream, then of the second."""
    found = []
    for number in range(14):
        place = f"trunk/{('first', 'second')[number // 7]}{number % 7}"
        theirs = rf"separable_conv2d_{number + 1}"
        found += [
            Rule(rf"(?:.*/)?{theirs}/depthwise_kernel", f"params/{place}_depthwise/kernel"),
            Rule(rf"(?:.*/)?{theirs}/pointwise_kernel", f"params/{place}_pointwise/conv/kernel"),
            Rule(rf"(?:.*/)?{theirs}/bias", f"params/{place}_pointwise/conv/bias"),
            *batch_norm(f"batch_normalization_{number + 1}", f"{place}_pointwise/bn/norm"),
        ]
    for number in range(6):
        stream = ("second", "first")[number % 2]
        found += layer(rf"conv2d_{number + 1}", f"trunk/{stream}_reduced{number // 2 + 1}")
    return found


def head_rules(mapped: bool) -> list[Rule]:
    """Rules of the mapping, if there is one, the aggregation and the stages."""
    names = ["mapping/pixels", "mapping/vectors"] if mapped else []
    names += [f"scores_{stage}" for stage in range(3)]
    found = layer("conv2d_7", "mapping/score") if mapped else []
    for number, name in enumerate(names, 1):
        found += layer(f"dense_{number}", name)
    for stage in range(3):
        found += layer(f"delta_s{stage + 1}", f"stretch_{stage}")
        found += layer(f"local_delta_stage{stage + 1}", f"shift_{stage}")
    return found + [Rule(rf"(?:.*/)?{theirs}", f"params/aggregate/{ours}") for theirs, ours in AGGREGATES.items()]
