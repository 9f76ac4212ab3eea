"""The published PFLD of cunjian/pytorch_face_landmark (ONNX) into `facejax.alignment.pfld.Net`."""

from __future__ import annotations

import os
from typing import Any

from facejax.interop import files
from facejax.interop.names import Rule, batch_norm, convert


def _block(source: str, target: str, norm: str) -> list[Rule]:
    return [Rule(rf"{source}\.weight", f"params/{target}/conv/kernel", "conv"), *batch_norm(norm, f"{target}/bn")]


NAMES = [
    *_block("conv1", "conv1", "bn1"),
    *_block("dw_pool", "conv2", "dw_bn"),
    Rule(r"conv1_extra\.weight", "params/conv2_pointwise/kernel", "conv"),
    *(
        rule
        for part, (conv, norm) in {"expand": (0, 1), "depthwise": (3, 4), "project": (6, 7)}.items()
        for rule in _block(
            rf"(?:conv|block)(\d)_(\d)\.conv\.{conv}", rf"group\1_\2/{part}", rf"(?:conv|block)(\d)_(\d)\.conv\.{norm}"
        )
    ),
    *_block(r"conv7\.0", "conv7", r"conv7\.1"),
    Rule(r"conv8\.weight", "params/conv8/kernel", "conv"),
    Rule(r"conv8\.bias", "params/conv8/bias"),
    Rule(r"fc\.weight", "params/fc/kernel", "linear"),
    Rule(r"fc\.bias", "params/fc/bias"),
    Rule(r"\d+", "", dropped="a shape"),
]


def load(path: str | os.PathLike[str], template: Any) -> Any:
    """Variables of `pfld_68_compressed` in evaluation from pfld.onnx.

    The file has no auxiliary branch, and neither have the variables: the network is to be used with `train` False.

    Args:
      path: the file.
      template: variables of the network, or their shapes; an auxiliary branch is left out.

    Raises:
      ValueError: the file is not of this network.
    """
    landmarks = {kind: {k: v for k, v in tree.items() if k != "auxiliary"} for kind, tree in template.items()}
    return convert(files.read_onnx(path), NAMES, landmarks)
