"""Conversion of CenterNet's published weights (xingyizhou/CenterNet): ResNet, DLA-34 and Hourglass-104.

The authors' networks see BGR; here the inputs of the first kernel are reversed, so that they see RGB.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop import hourglass_torch as hourglass
from facejax.interop.names import Rule, batch_norm, convert
from facejax.interop.pytorch import read_weights
from facejax.interop.torchvision import resnet_rules as torchvision_rules

HEADS = {"hm": "heat", "wh": "size", "reg": "offset"}
FIRST = ("conv1.weight", "base.base_layer.0.weight", "pre.0.conv.weight")
"""Kernels that see the image, by trunk."""


def load(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables of a `facejax.detection.centernet.Net`, for images in RGB; the tensor names determine the trunk.

    Args:
      path: such as ctdet_coco_dla_2x.pth.
      template: shapes of the network's variables.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the weights do not match the template.
    """
    tensors = read_weights(path, key)
    return convert(rgb(tensors), rules(tensors), template)


def rgb(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with the input channels of the first kernel in reverse order."""
    return {name: x[:, ::-1] if name in FIRST and x.ndim == 4 else x for name, x in tensors.items()}


def rules(tensors: Mapping[str, np.ndarray]) -> list[Rule]:
    """Of the trunk whose first kernel is among the tensors."""
    if FIRST[2] in tensors:
        return hourglass_rules(max(name.count(".low2") for name in tensors) + 1)
    return dla_rules() if FIRST[1] in tensors else resnet_rules()


def resnet_rules() -> list[Rule]:
    """models/networks/resnet_dcn.py."""
    found = head_rules()
    for rule in torchvision_rules():
        kind, _, rest = rule.target.partition("/")
        if not rest.startswith("fc"):
            found.append(Rule(rule.source, f"{kind}/trunk/trunk/{rest}", rule.layout))
    for i in range(3):
        found += deformable_rules(rf"deconv_layers\.{6 * i}", f"trunk/conv{i}")
        found += batch_norm(rf"deconv_layers\.{6 * i + 1}", f"trunk/conv_bn{i}")
        found.append(Rule(rf"deconv_layers\.{6 * i + 3}\.weight", f"params/trunk/up{i}/kernel", "conv_transpose"))
        found += batch_norm(rf"deconv_layers\.{6 * i + 4}", f"trunk/up_bn{i}")
    return found


def dla_rules() -> list[Rule]:
    """models/networks/pose_dla_dcn.py; the classifier of the trunk, which nothing uses, is left out."""
    found, base = head_rules(), "trunk/trunk"
    found.append(Rule(r"base\.fc\..*", "", dropped="of a part that the template lacks"))
    found += hourglass.pair(r"base\.base_layer", f"{base}/base")
    found += hourglass.pair(r"base\.level([01])", rf"{base}/level\1_0")
    for source, target in (
        (r"base\.level(\d)", rf"{base}/level\1"),
        (r"base\.level(\d)\.tree(\d)", rf"{base}/level\1/tree\2"),
    ):
        found += hourglass.pair(rf"{source}\.project", f"{target}/project")
        found += hourglass.convolution(rf"{source}\.root", f"{target}/root")
        groups = source.count("(")
        place, ours = rf"{source}\.tree(\d)\.", rf"{target}/tree\{groups + 1}/conv\{groups + 2}"
        found.append(Rule(rf"{place}conv(\d)\.weight", f"params/{ours}/conv/kernel", "conv"))
        found += batch_norm(rf"{place}bn(\d)", f"{ours}/bn")
    for source, target, number in (
        (r"dla_up\.ida_(\d)\.", r"trunk/ida\1/", r"\2"),
        (r"ida_up\.", "trunk/last/", r"\1"),
    ):
        found.append(Rule(rf"{source}up_(\d)\.weight", f"params/{target}up{number}/kernel", "conv"))
        for theirs, ours in (("proj", "project"), ("node", "node")):
            layer = rf"{source}{theirs}_(\d)"
            found += deformable_rules(rf"{layer}\.conv", f"{target}{ours}{number}_conv")
            found += batch_norm(rf"{layer}\.actf\.0", f"{target}{ours}{number}_bn")
    return found


def hourglass_rules(order: int) -> list[Rule]:
    """models/networks/large_hourglass.py."""
    found = hourglass.rules(order)
    for theirs, ours in HEADS.items():
        found += hourglass.head(rf"{theirs}\.(\d+)", rf"{ours}\1")
    return found


def head_rules() -> list[Rule]:
    """The heads on one map: 3x3 convolution, ReLU, 1x1 convolution."""
    found = []
    for theirs, ours in HEADS.items():
        for place, layer in ((0, "conv"), (2, "output")):
            found.append(Rule(rf"{theirs}\.{place}\.weight", f"params/{ours}0/{layer}/kernel", "conv"))
            found.append(Rule(rf"{theirs}\.{place}\.bias", f"params/{ours}0/{layer}/bias"))
    return found


def deformable_rules(source: str, target: str) -> list[Rule]:
    """DCNv2's kernel, bias and convolution of offsets and masks."""
    offset = r"\.conv_offset_mask\."
    return [
        Rule(rf"{source}\.weight", f"params/{target}/kernel", "conv"),
        Rule(rf"{source}\.bias", f"params/{target}/bias"),
        Rule(rf"{source}{offset}weight", f"params/{target}/offset/kernel", "conv"),
        Rule(rf"{source}{offset}bias", f"params/{target}/offset/bias"),
    ]
