"""Conversion of torchvision's published weights: ResNet, VGG-16, MobileNet V2, GoogLeNet and Inception V3.

Our models must have torchvision's layout: `resnet50` and other depths, `vgg16`, `mobilenet_v2(padding=1,
epsilon=1e-5)`, `googlenet_torchvision()`, `inception_v3_torchvision()`. The last two expect images in -1..1, the result
of torchvision's `transform_input`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from facejax.interop import keras_applications
from facejax.interop.names import Rule, batch_norm, convert
from facejax.interop.pytorch import read_weights


def load(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables from a PyTorch file; the tensor names determine the architecture.

    Args:
      path: a state dict, or a checkpoint that contains one, see `read_weights`; or an HDF5 file of
        `facejax.interop.keras_applications`.
      template: shapes of the model's variables. It may lack the auxiliary classifiers, and the last layer of VGG and
        ResNet.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the weights do not match the template.
    """
    if keras_applications.is_hdf5(path):
        return keras_applications.load(path, template)
    tensors = read_weights(path, key)
    if "layer1.0.conv1.weight" in tensors:
        last = [] if "fc" in template["params"] else [_absent(r"fc\..*")]
        return convert(tensors, [*last, *resnet_rules()], template)
    if "features.28.weight" in tensors:
        last = [] if "fc8" in template["params"]["classifier"] else [_absent(r"classifier\.6\..*")]
        return convert(tensors, [*last, *vgg16_rules()], template)
    if "features.0.0.weight" in tensors:
        return convert(tensors, mobilenet_v2_rules(), template)
    parts = [] if any("auxiliary" in name for name in template["params"]) else [_absent(r"(aux1|aux2|AuxLogits)\..*")]
    rules = inception_v3_rules() if "Mixed_5b.branch1x1.conv.weight" in tensors else googlenet_rules()
    return convert(tensors, [*parts, *rules], template)


def load_vgg_convolutions(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Parameters of a VGG's convolutions, of any depth.

    Args:
      path: a state dict, or a checkpoint that contains one; only `features` is used.
      template: shapes of the convolutions' parameters, with names that sort in the order of the layers.
      key: as in `load`.

    Raises:
      ValueError: the number of layers or a shape differs.
    """
    tensors = {k: v for k, v in read_weights(path, key).items() if k.startswith("features.")}
    places = sorted({int(name.split(".")[1]) for name in tensors})
    if len(places) != len(template):
        raise ValueError(f"{path}: {len(places)} layers in 'features': expected {len(template)} convolutions")
    rules = vgg_convolution_rules(dict(zip(places, sorted(template), strict=True)))
    return convert(tensors, rules, {"params": template})["params"]


def resnet_rules() -> list[Rule]:
    """models/resnet.py of any depth: conv1, the blocks layerS.B with downsample, fc."""
    block, ours = r"layer(\d)\.(\d+)\.", r"layer\1_\2/"
    return [
        Rule(r"conv1\.weight", "params/conv1/kernel", "conv"),
        *batch_norm("bn1", "bn1"),
        Rule(block + r"conv(\d)\.weight", rf"params/{ours}conv\3/kernel", "conv"),
        *batch_norm(block + r"bn(\d)", ours + r"bn\3"),
        Rule(block + r"downsample\.0\.weight", rf"params/{ours}shortcut_conv/kernel", "conv"),
        *batch_norm(block + r"downsample\.1", ours + "shortcut_bn"),
        *_dense("fc", "fc"),
    ]


def vgg16_rules() -> list[Rule]:
    """models/vgg.py: features, with a ReLU after each convolution and a pool after each stage; classifier."""
    names, place = {}, 0
    for stage, depth in enumerate((2, 2, 3, 3, 3), 1):
        for layer in range(1, depth + 1):
            names[place] = f"conv{stage}_{layer}"
            place += 2
        place += 1
    rules = vgg_convolution_rules(names)
    rules.append(Rule(r"classifier\.0\.weight", "params/classifier/fc6/kernel", "flatten", 512))
    rules.append(Rule(r"classifier\.0\.bias", "params/classifier/fc6/bias"))
    return [*rules, *_dense(r"classifier\.3", "classifier/fc7"), *_dense(r"classifier\.6", "classifier/fc8")]


def vgg_convolution_rules(names: Mapping[int, str]) -> list[Rule]:
    """Rules of convolutions with biases; `names` maps the index in features to our name."""
    rules = []
    for place, name in names.items():
        rules.append(Rule(rf"features\.{place}\.weight", f"params/{name}/kernel", "conv"))
        rules.append(Rule(rf"features\.{place}\.bias", f"params/{name}/bias"))
    return rules


def mobilenet_v2_rules() -> list[Rule]:
    """models/mobilenetv2.py: the stem features.0, the blocks from features.1, the last convolution, classifier."""
    rules = []

    def conv_norm(conv: str, bn: str, target: str) -> None:
        rules.append(Rule(rf"features\.{conv}\.weight", f"params/{target}/conv/kernel", "conv"))
        rules.extend(batch_norm(rf"features\.{bn}", f"{target}/bn"))

    conv_norm(r"0\.0", r"0\.1", "stem")
    blocks = [f"group{group}_{i}" for group, count in enumerate((1, 2, 3, 4, 3, 3, 1)) for i in range(count)]
    for number, block in enumerate(blocks, 1):
        layers = ["depthwise"] if number == 1 else ["expand", "depthwise"]  # the first block does not expand
        for i, layer in enumerate(layers):
            conv_norm(rf"{number}\.conv\.{i}\.0", rf"{number}\.conv\.{i}\.1", f"{block}/{layer}")
        conv_norm(rf"{number}\.conv\.{len(layers)}", rf"{number}\.conv\.{len(layers) + 1}", f"{block}/project")
    conv_norm(rf"{len(blocks) + 1}\.0", rf"{len(blocks) + 1}\.1", "last")
    return [*rules, *_dense(r"classifier\.1", "fc")]


def googlenet_rules(side_channels: int = 128) -> list[Rule]:
    """models/googlenet.py: conv1 to conv3, inception3a to inception5b, aux1, aux2, fc.

    Args:
      side_channels: channels of the convolution in an auxiliary classifier; fewer in narrower networks.
    """
    rules = []
    for source, target in (("conv1", "conv1"), ("conv2", "conv2_reduce"), ("conv3", "conv2")):
        rules += _conv_norm(source, target)
    module, ours = r"inception(\d[a-e])\.", r"mixed\1/"
    rules += _conv_norm(module + "branch1", ours + "branch0_0")
    rules += _conv_norm(module + r"branch2\.([01])", ours + r"branch1_\2")
    rules += _conv_norm(module + r"branch3\.([01])", ours + r"branch2_\2")
    rules += _conv_norm(module + r"branch4\.1", ours + "pool")
    for source, target in (("aux1", "auxiliary4a"), ("aux2", "auxiliary4d")):
        rules += _conv_norm(rf"{source}\.conv", f"{target}/conv")
        rules.append(Rule(rf"{source}\.fc1\.weight", f"params/{target}/fc1/kernel", "flatten", side_channels))
        rules.append(Rule(rf"{source}\.fc1\.bias", f"params/{target}/fc1/bias"))
        rules += _dense(rf"{source}\.fc2", f"{target}/fc2")
    return [*rules, *_dense("fc", "fc")]


def inception_v3_rules() -> list[Rule]:
    """models/inception.py: Conv2d_1a_3x3 to Conv2d_4a_3x3, Mixed_5b to Mixed_7c, AuxLogits, fc."""
    rules = []
    stem = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")
    for number, source in enumerate(stem, 1):
        rules += _conv_norm(f"Conv2d_{source}", f"conv{number}")
    branches = {
        "5[bcd]": ("branch1x1", "branch5x5", "branch3x3dbl"),
        "6a": ("branch3x3", "branch3x3dbl"),
        "6[b-e]": ("branch1x1", "branch7x7", "branch7x7dbl"),
        "7a": ("branch3x3", "branch7x7x3"),
        "7[bc]": ("branch1x1", "branch3x3", "branch3x3dbl"),
    }
    for modules, names in branches.items():
        source, target = rf"Mixed_({modules})\.", r"mixed\1/"
        for b, name in enumerate(names):
            rules += _conv_norm(source + name, f"{target}branch{b}_0")  # branches with one convolution
            for i in range(5):
                rules += _conv_norm(rf"{source}{name}_{i + 1}([ab]?)", rf"{target}branch{b}_{i}\2")
        rules += _conv_norm(source + "branch_pool", target + "pool")
    rules += _conv_norm(r"AuxLogits\.conv0", "auxiliary_conv1")
    rules += _conv_norm(r"AuxLogits\.conv1", "auxiliary_conv2")
    return [*rules, *_dense(r"AuxLogits\.fc", "auxiliary_fc"), *_dense("fc", "fc")]


def _absent(source: str) -> Rule:
    return Rule(source, "", dropped="of a part that the template lacks")


def _conv_norm(source: str, target: str) -> list[Rule]:
    kernel = Rule(rf"{source}\.conv\.weight", f"params/{target}/conv/kernel", "conv")
    return [kernel, *batch_norm(rf"{source}\.bn", f"{target}/bn")]


def _dense(source: str, target: str) -> list[Rule]:
    return [
        Rule(rf"{source}\.weight", f"params/{target}/kernel", "linear"),
        Rule(rf"{source}\.bias", f"params/{target}/bias"),
    ]
