"""Conversion of VGGFace2's ResNet-50 with keras_vggface's names, also FaceQnet's trunk."""

from __future__ import annotations

import os
from typing import Any

from facejax.interop.files import read_keras
from facejax.interop.names import Rule, convert

LAYERS = {"conv1": "1x1_reduce", "conv2": "3x3", "conv3": "1x1_increase", "shortcut_conv": "1x1_proj"}
STATISTICS = {
    "gamma": "params/{}/norm/scale",
    "beta": "params/{}/norm/bias",
    "moving_mean": "batch_stats/{}/norm/mean",
    "moving_variance": "batch_stats/{}/norm/var",
}


def load(path: str | os.PathLike[str], template: Any) -> Any:
    """Variables of `backbones.resnet`'s ResNet-50 (`stride_in_1x1`, without dense layer) from a Keras HDF5 file.

    Args:
      path: the file; its dense layers are ignored.
      template: shapes of the model's variables.

    Raises:
      ValueError: the weights do not match the template.
    """
    return convert(read_keras(path), resnet50_rules(), template)


def resnet50_rules() -> list[Rule]:
    """The stem conv1/7x7_s2 and convS_B_{1x1_reduce,3x3,1x1_increase,1x1_proj}, each with a batch norm."""
    layers = [("conv1/7x7_s2", "conv1", "bn1")]
    for stage, depth in enumerate((3, 4, 6, 3), 2):
        for block in range(1, depth + 1):
            place = f"layer{stage - 1}_{block - 1}"
            layers += [
                (f"conv{stage}_{block}_{theirs}", f"{place}/{ours}", f"{place}/{ours.replace('conv', 'bn')}")
                for ours, theirs in LAYERS.items()
            ]
    rules = [Rule(r"(.*/)?(classifier|dense|fc)[^/]*/.*", "", dropped="of a dense layer")]
    for theirs, conv, norm in layers:
        rules.append(Rule(rf"(.*/)?{theirs}/kernel", f"params/{conv}/kernel"))
        rules += [Rule(rf"(.*/)?{theirs}/bn/{name}", place.format(norm)) for name, place in STATISTICS.items()]
    return rules
