"""Conversion of published HRNet weights with the tensor names of the authors' and timm's code."""

from __future__ import annotations

import os
import re
from typing import Any

from facejax.interop.names import Rule, batch_norm, convert
from facejax.interop.pytorch import read_weights


def load(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables from a PyTorch file of a pose network or a classifier; the template determines which.

    Args:
      path: a state dict, or a checkpoint that contains one; see `read_weights`.
      template: shapes of the variables of `facejax.backbones.hrnet.PoseNet` or `Classifier`.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the weights do not match the template.
    """
    return convert(read_weights(path, key), rules("classifier" in template["params"]), template)


def rules(classifier: bool) -> list[Rule]:
    """The names of pose_hrnet.py, or those of cls_hrnet.py and timm."""
    found: list[Rule] = []

    def conv_norm(conv: str, bn: str, target: str) -> None:
        found.append(Rule(rf"{conv}\.weight", f"params/{target}/conv/kernel", "conv"))
        found.append(Rule(rf"{conv}\.bias", f"params/{target}/conv/bias"))
        found.extend(batch_norm(bn, f"{target}/bn"))

    def block(source: str, target: str) -> None:
        number = rf"\{re.compile(source).groups + 1}"
        found.append(Rule(source + r"\.conv(\d)\.weight", f"params/{target}/conv{number}/kernel", "conv"))
        found.extend(batch_norm(source + r"\.bn(\d)", f"{target}/bn{number}"))
        found.append(Rule(rf"{source}\.downsample\.0\.weight", f"params/{target}/shortcut_conv/kernel", "conv"))
        found.extend(batch_norm(rf"{source}\.downsample\.1", f"{target}/shortcut_bn"))

    for i in (1, 2):
        conv_norm(f"conv{i}", f"bn{i}", f"trunk/stem{i}")
    block(r"layer1\.(\d+)", r"trunk/first\1")
    conv_norm(r"transition1\.0\.0", r"transition1\.0\.1", "trunk/transition2_first")
    for stage in (2, 3, 4):
        new = rf"transition{stage - 1}\.{stage - 1}\.0\."
        conv_norm(f"{new}0", f"{new}1", f"trunk/transition{stage}_new")
    module, ours = r"stage(\d)\.(\d+)\.", r"trunk/stage\1_\2/"
    block(module + r"branches\.(\d)\.(\d+)", ours + r"branch\3_\4")
    exchange = module + r"fuse_layers\.(\d)\.(\d)\."
    conv_norm(exchange + "0", exchange + "1", ours + r"fuse\3_\4")
    steps = exchange + r"(\d)\."
    conv_norm(steps + "0", steps + "1", ours + r"fuse\3_\4_\5")
    if not classifier:
        return [
            *found,
            Rule(r"final_layer\.weight", "params/maps/kernel", "conv"),
            Rule(r"final_layer\.bias", "params/maps/bias"),
        ]
    block(r"incre_modules\.(\d)\.0", r"widen\1")
    conv_norm(r"downsamp_modules\.(\d)\.0", r"downsamp_modules\.(\d)\.1", r"halve\1")
    conv_norm(r"final_layer\.0", r"final_layer\.1", "last")
    return [
        *found,
        Rule(r"classifier\.weight", "params/classifier/kernel", "linear"),
        Rule(r"classifier\.bias", "params/classifier/bias"),
    ]
