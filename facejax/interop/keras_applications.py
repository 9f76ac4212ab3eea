"""Conversion of the weights of keras.applications: MobileNet, MobileNetV2, ResNet50, VGG16 and VGG19.

Those of ResNet50 and VGG see BGR less a mean; here the inputs of the first kernel are reversed, so that they see RGB
less (123.68, 116.779, 103.939). MobileNets want even sides: Keras pads strided convolutions at the bottom and right.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop.files import read_keras
from facejax.interop.names import Rule, convert

RESNET_EPSILON, EPSILON = 1.001e-5, 1e-5
STATISTICS = {
    "gamma": "params/{}/norm/scale",
    "beta": "params/{}/norm/bias",
    "moving_mean": "batch_stats/{}/norm/mean",
    "moving_variance": "batch_stats/{}/norm/var",
}
TOP = Rule(
    r"(?:.*/)?(?:predictions|conv_preds|fc1|fc2)/(?:kernel|bias)", "", dropped="of a part that the template lacks"
)


def is_hdf5(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as HDF5 does."""
    with open(path, "rb") as file:
        return file.read(4) == b"\x89HDF"


def load(path: str | os.PathLike[str], template: Any) -> Any:
    """Variables from an HDF5 file of Keras 2 or 3, with or without its last layers; the template tells the network.

    Args:
      path: such as mobilenet_1_0_224_tf.h5, or what `save_weights` writes.
      template: shapes of the variables of `mobilenet_v1`, `mobilenet_v2`, `resnet50` with `stride_in_1x1`, or a VGG.

    Raises:
      ValueError: the weights do not match the template.
    """
    params = template["params"]
    tensors = {_short(name): x for name, x in read_keras(path).items()}
    if "depthwise1" in params:
        tensors, rules = _depthwise(tensors), mobilenet_v1_rules()
    elif "group0_0" in params:
        tensors, rules = _depthwise(tensors), mobilenet_v2_rules()
    elif "layer1_0" in params:
        tensors, rules = _without_biases(_rgb(tensors, "conv1_conv/kernel")), resnet50_rules()
    else:
        tensors, rules = _rgb(tensors, "block1_conv1/kernel"), vgg_rules()
    wanted = {"fc", "classifier"} & set(params)
    return convert(tensors, rules if wanted else [TOP, *rules], template)


def _short(name: str) -> str:
    """The layer and the weight, without the groups around them."""
    return "/".join(name.split("/")[-2:])


def _depthwise(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Depthwise kernels [H, W, C, 1] become [H, W, 1, C]; a classifier of 1x1 becomes dense."""
    found = {}
    for name, x in tensors.items():
        if re.search(r"(?:conv_dw_\d+|depthwise)/(?:depthwise_)?kernel$", name):
            name, x = name.replace("depthwise_kernel", "kernel"), x.swapaxes(2, 3)
        elif name == "conv_preds/kernel" and x.shape[:2] == (1, 1):
            x = x[0, 0]
        found[name] = x
    return found


def _rgb(tensors: Mapping[str, np.ndarray], first: str) -> dict[str, np.ndarray]:
    return {name: x[:, :, ::-1] if name == first and x.ndim == 4 else x for name, x in tensors.items()}


def _without_biases(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Biases before a batch norm go into its mean, and the difference of the epsilons into its variance."""
    found = {name: x for name, x in tensors.items() if not name.endswith("_conv/bias")}
    for name in tensors.keys() - found.keys():
        mean = name.replace("_conv/bias", "_bn/moving_mean")
        found[mean] = found[mean] - tensors[name] if mean in found else -tensors[name]
    more = np.float32(RESNET_EPSILON - EPSILON)
    return {name: x + more if name.endswith("_bn/moving_variance") else x for name, x in found.items()}


def _conv_norm(conv: str, norm: str, target: str) -> list[Rule]:
    return [Rule(f"{conv}/kernel", f"params/{target}/conv/kernel"), *_norm(norm, f"{target}/bn")]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}/{name}", place.format(target)) for name, place in STATISTICS.items()]


def _dense(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}/{part}", f"params/{target}/{part}") for part in ("kernel", "bias")]


def mobilenet_v1_rules() -> list[Rule]:
    """The stem conv1, pairs conv_dw_N and conv_pw_N, the classifier conv_preds or predictions."""
    found = [*_conv_norm("conv1", "conv1_bn", "stem"), *_dense("(?:conv_preds|predictions)", "fc")]
    for theirs, ours in (("dw", "depthwise"), ("pw", "pointwise")):
        found += _conv_norm(rf"conv_{theirs}_(\d+)", rf"conv_{theirs}_(\d+)_bn", rf"{ours}\1")
    return found


def mobilenet_v2_rules() -> list[Rule]:
    """The stem Conv1, expanded_conv and block_1 to block_16, Conv_1, predictions."""
    found = [
        *_conv_norm("Conv1", "bn_Conv1", "stem"),
        *_conv_norm("Conv_1", "Conv_1_bn", "last"),
        *_dense("predictions", "fc"),
    ]
    blocks = [f"group{group}_{i}" for group, count in enumerate((1, 2, 3, 4, 3, 3, 1)) for i in range(count)]
    for number, block in enumerate(blocks):
        source = f"block_{number}" if number else "expanded_conv"
        for part in ("expand", "depthwise", "project"):
            found += _conv_norm(f"{source}_{part}", f"{source}_{part}_BN", f"{block}/{part}")
    return found


def resnet50_rules() -> list[Rule]:
    """The stem conv1 and convS_blockB_N, of which 0 is the shortcut."""
    found = [Rule("conv1_conv/kernel", "params/conv1/kernel"), *_norm("conv1_bn", "bn1"), *_dense("predictions", "fc")]
    for stage, depth in enumerate((3, 4, 6, 3), 1):
        for block in range(depth):
            source, target = f"conv{stage + 1}_block{block + 1}_", f"layer{stage}_{block}/"
            for number in range(4):
                conv, norm = (f"conv{number}", f"bn{number}") if number else ("shortcut_conv", "shortcut_bn")
                found.append(Rule(f"{source}{number}_conv/kernel", f"params/{target}{conv}/kernel"))
                found += _norm(f"{source}{number}_bn", f"{target}{norm}")
    return found


def vgg_rules() -> list[Rule]:
    """blockS_convL, fc1, fc2, predictions."""
    found = [Rule(rf"block(\d)_conv(\d)/{part}", rf"params/conv\1_\2/{part}") for part in ("kernel", "bias")]
    for theirs, ours in (("fc1", "fc6"), ("fc2", "fc7"), ("predictions", "fc8")):
        found += _dense(theirs, f"classifier/{ours}")
    return found
