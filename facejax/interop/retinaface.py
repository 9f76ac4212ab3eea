"""Conversion of RetinaFace weights with the tensor names of biubug6/Pytorch_Retinaface."""

from __future__ import annotations

import os
from typing import Any

from facejax.interop.names import Rule, batch_norm, convert
from facejax.interop.pytorch import read_weights
from facejax.interop.torchvision import resnet_rules


def load(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables from a PyTorch file with a MobileNet-0.25 or a ResNet trunk; the template determines which.

    Args:
      path: a state dict, or a checkpoint that contains one; see `read_weights`.
      template: shapes of the variables of `retinaface_mobilenet025()` or `retinaface_resnet50()`.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the weights do not match the template.
    """
    trunk = resnet_trunk_rules() if "layer1_0" in template["params"]["body"] else mobilenet_rules()
    return convert(read_weights(path, key), [*trunk, *rules()], template)


def mobilenet_rules() -> list[Rule]:
    """MobileNetV1 of models/net.py: the stem stage1.0, then pairs of depthwise and 1x1 convolutions in three stages."""
    found = _conv_norm(r"body\.stage1\.0\.0", r"body\.stage1\.0\.1", "body/stem")
    places = [(1, i) for i in range(1, 6)] + [(2, i) for i in range(6)] + [(3, i) for i in range(2)]
    for number, (stage, i) in enumerate(places, 1):
        source = rf"body\.stage{stage}\.{i}\."
        found += _conv_norm(source + "0", source + "1", f"body/depthwise{number}")
        found += _conv_norm(source + "3", source + "4", f"body/pointwise{number}")
    return found


def resnet_trunk_rules() -> list[Rule]:
    """Torchvision's ResNet without its classifier, under "body"."""
    return [
        Rule(r"body\." + rule.source, rule.target.replace("/", "/body/", 1), rule.layout)
        for rule in resnet_rules()
        if rule.target and not rule.source.startswith("fc")
    ]


def rules() -> list[Rule]:
    """The pyramid, the context modules and the heads of models/retinaface.py; its levels 1 to 3 are our 3 to 5."""
    found: list[Rule] = []
    heads = {"ClassHead": "logits", "BboxHead": "boxes", "LandmarkHead": "points"}
    layers = {"conv3X3": "3x3", "conv5X5_1": "5x5_1", "conv5X5_2": "5x5_2", "conv7X7_2": "7x7_2", "conv7x7_3": "7x7_3"}
    for level in (1, 2, 3):
        for source, target in {"output": "lateral", "merge": "merge"}.items():
            place = rf"fpn\.{source}{level}\."
            found += _conv_norm(place + "0", place + "1", f"{target}{level + 2}")
        for source, target in layers.items():
            place = rf"ssh{level}\.{source}\."
            found += _conv_norm(place + "0", place + "1", f"context{level + 2}/conv{target}")
        for source, target in heads.items():
            place = rf"{source}\.{level - 1}\.conv1x1\."
            found.append(Rule(place + "weight", f"params/{target}{level + 2}/kernel", "conv"))
            found.append(Rule(place + "bias", f"params/{target}{level + 2}/bias"))
    return found


def _conv_norm(conv: str, bn: str, target: str) -> list[Rule]:
    return [Rule(rf"{conv}\.weight", f"params/{target}/conv/kernel", "conv"), *batch_norm(bn, f"{target}/bn")]
