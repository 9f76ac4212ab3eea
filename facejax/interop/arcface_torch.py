"""Conversion of published recognition weights: arcface_torch's IResNet and MobileFaceNet, and the paper's MobileFaceNet
(112 x 96 pixels, 128 features) from Xiaoccer/MobileFaceNet_Pytorch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop.names import Rule, batch_norm, convert
from facejax.interop.pytorch import read_weights


def load(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables from a PyTorch file; the tensor names determine the architecture.

    Args:
      path: a state dict, or a checkpoint that contains one; see `read_weights`.
      template: shapes of the model's variables.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the weights do not match the template.
    """
    tensors = read_weights(path, key)
    if "conv1.conv.weight" in tensors:
        return convert(tensors, mobilefacenet_1x_rules(), template)
    if "layer1.0.conv1.weight" in tensors:
        return convert(tensors, iresnet_rules(tensors), template)
    return convert(tensors, mobilefacenet_rules(tensors), template)


def iresnet_rules(tensors: Mapping[str, np.ndarray]) -> list[Rule]:
    """arcface_torch/backbones/iresnet.py. Its last batch norm's weight is fixed at 1; our model omits it.

    A network that trained it, as MagFace's do, is refused.
    """
    channels = tensors["bn2.weight"].shape[0]
    block = r"layer(\d)\.(\d+)\."
    ours = r"layer\1_\2/"
    return [
        Rule(r"conv1\.weight", "params/conv1/kernel", "conv"),
        *batch_norm("bn1", "bn1"),
        Rule(r"prelu\.weight", "params/prelu/slope"),
        Rule(block + r"conv(\d)\.weight", rf"params/{ours}conv\3/kernel", "conv"),
        *batch_norm(block + r"bn(\d)", ours + r"bn\3"),
        Rule(block + r"prelu\.weight", rf"params/{ours}prelu/slope"),
        Rule(block + r"downsample\.0\.weight", rf"params/{ours}shortcut_conv/kernel", "conv"),
        *batch_norm(block + r"downsample\.1", ours + "shortcut_bn"),
        *batch_norm("bn2", "bn2"),
        Rule(r"fc\.weight", "params/fc/kernel", "flatten", channels),
        Rule(r"fc\.bias", "params/fc/bias"),
        *batch_norm("features", "features", scale=False),
    ]


def mobilefacenet_rules(tensors: Mapping[str, np.ndarray]) -> list[Rule]:
    """arcface_torch/backbones/mobilefacenet.py: layers.N.layers.M with residual groups, then conv_sep and features."""
    rules = []

    def conv_block(source: str, target: str) -> None:
        rules.append(Rule(rf"{source}\.layers\.0\.weight", f"params/{target}/conv/kernel", "conv"))
        rules.extend(batch_norm(rf"{source}\.layers\.1", f"{target}/bn"))
        rules.append(Rule(rf"{source}\.layers\.2\.weight", f"params/{target}/prelu/slope"))

    def depth_wise(source: str, target: str) -> None:
        for index, name in enumerate(("expand", "depthwise", "project")):
            conv_block(rf"{source}\.layers\.{index}", f"{target}/{name}")

    conv_block(r"layers\.0", "stem")
    if "layers.1.layers.0.weight" in tensors:
        conv_block(r"layers\.1", "stem_depthwise")
    else:
        depth_wise(r"layers\.1\.layers\.(\d+)", r"stage0_\1")
    for stage in (1, 2, 3):
        depth_wise(rf"layers\.{2 * stage}", f"reduce{stage}")
        depth_wise(rf"layers\.{2 * stage + 1}\.layers\.(\d+)", rf"stage{stage}_\1")
    conv_block("conv_sep", "separate")
    rules += [
        Rule(r"features\.layers\.0\.layers\.0\.weight", "params/global_depthwise/conv/kernel", "conv"),
        *batch_norm(r"features\.layers\.0\.layers\.1", "global_depthwise/bn"),
        Rule(r"features\.layers\.2\.weight", "params/fc/kernel", "linear"),
        *batch_norm(r"features\.layers\.3", "features"),
    ]
    return rules


def mobilefacenet_1x_rules() -> list[Rule]:
    """The paper's architecture: conv1, dw_conv1, blocks.N.conv.M, conv2, linear7, linear1."""
    rules = []

    def named(source: str, target: str) -> None:
        rules.append(Rule(rf"{source}\.conv\.weight", f"params/{target}/conv/kernel", "conv"))
        rules.extend(batch_norm(rf"{source}\.bn", f"{target}/bn"))
        rules.append(Rule(rf"{source}\.prelu\.weight", f"params/{target}/prelu/slope"))

    for source, target in (
        ("conv1", "stem"), ("dw_conv1", "stem_depthwise"), ("conv2", "separate"), ("linear7", "global_depthwise"),
        ("linear1", "linear"),
    ):  # fmt: skip
        named(source, target)
    blocks = ["reduce1", *(f"stage1_{i}" for i in range(4)), "reduce2", *(f"stage2_{i}" for i in range(6))]
    blocks += ["reduce3", *(f"stage3_{i}" for i in range(2))]
    for index, block in enumerate(blocks):
        for place, name in ((0, "expand"), (3, "depthwise"), (6, "project")):
            source = rf"blocks\.{index}\.conv\."
            rules.append(Rule(rf"{source}{place}\.weight", f"params/{block}/{name}/conv/kernel", "conv"))
            rules.extend(batch_norm(rf"{source}{place + 1}", f"{block}/{name}/bn"))
            rules.append(Rule(rf"{source}{place + 2}\.weight", f"params/{block}/{name}/prelu/slope"))
    return rules
