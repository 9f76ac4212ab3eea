"""Conversion of published recognition weights: arcface_torch's IResNet and MobileFaceNet, as state dicts and as the
ONNX files of InsightFace's packs; MagFace's IResNet; and the paper's MobileFaceNet (112 x 96 pixels, 128 features) from
Xiaoccer/MobileFaceNet_Pytorch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop import onnx_graph
from facejax.interop.names import Rule, batch_norm, convert, laid_out
from facejax.interop.pytorch import read_weights

MAGFACE_EPSILON = 2e-5


def load(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables from a PyTorch or an ONNX file; the tensor names, or the template, determine the architecture.

    Args:
      path: a state dict, or a checkpoint that contains one, see `read_weights`; or an ONNX file, batch norms folded or
        not.
      template: shapes of the model's variables.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the weights do not match the template.
    """
    if onnx_graph.is_onnx(path):
        return _load_onnx(path, template)
    tensors = read_weights(path, key)
    if "conv1.conv.weight" in tensors:
        return convert(tensors, mobilefacenet_1x_rules(), template)
    if "layer1.0.conv1.weight" in tensors:
        return convert(tensors, iresnet_rules(tensors), template)
    return convert(tensors, mobilefacenet_rules(tensors), template)


def load_magface(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables of `facejax.recognition.magface.Magnified` from MagFace's checkpoint.

    Its batch norms have an epsilon of 2e-5, ours 1e-5: the variances grow by the difference. Its last batch norm's
    scale is ours after the backbone. The head of the training run is left out.

    Args:
      path: the file, whose names begin with "features.module." or "module.features.".
      template: shapes of the model's variables.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the weights do not match the template.
    """
    tensors = read_weights(path, key)
    if "conv1.weight" not in tensors:
        place = re.compile(r"(?:module\.)?features\.(?:module\.)?")
        tensors = {
            place.sub("", name, count=1) if place.match(name) else f"head/{name}": x for name, x in tensors.items()
        }
    more = np.float32(MAGFACE_EPSILON - onnx_graph.EPSILON)
    tensors = {name: x + more if name.endswith("running_var") else x for name, x in tensors.items()}
    scale = tensors.get("features.weight", np.ones(1, np.float32))
    if not np.all(scale):
        raise ValueError(f"{path}: features.weight has a zero: expected the scale of an embedding")
    if "features.bias" in tensors:
        tensors["features.bias"] = tensors["features.bias"] / scale
    rules = [Rule("head/.*", "", dropped="of a part that the template lacks")]
    rules.append(Rule(r"features\.weight", "params/scale"))
    for rule in iresnet_rules(tensors):
        target = rule.target.replace("/", "/backbone/", 1)
        rules.append(Rule(rule.source, target, rule.layout, rule.channels, rule.dropped))
    return convert(tensors, rules, template)


def _load_onnx(path: str | os.PathLike[str], template: Any) -> Any:
    layers = onnx_graph.read_layers(path)
    params = template["params"]
    wanted = _iresnet_layers(params) if "layer1_0" in params else _mobilefacenet_layers(params)
    kinds: dict[str, list[onnx_graph.Layer]] = {}
    for layer in layers:
        shortcut = "layer1_0" in params and layer.kind == "Conv" and layer.tensors["weight"].shape[2:] == (1, 1)
        kinds.setdefault("shortcut" if shortcut else layer.kind, []).append(layer)
    counts = {kind: sum(1 for k, *_ in wanted if k == kind) for kind, *_ in wanted}
    if counts != {kind: len(found) for kind, found in kinds.items()}:
        told = ", ".join(f"{len(found)} {kind}" for kind, found in kinds.items())
        raise ValueError(f"{path}: its layers are {told}; expected {', '.join(f'{n} {k}' for k, n in counts.items())}")
    found: dict[str, np.ndarray] = {}
    for kind, target, norm in wanted:
        layer = kinds[kind].pop(0)
        if kind in ("Conv", "shortcut"):
            found[f"params/{target}/kernel"] = layer.tensors["weight"].transpose(2, 3, 1, 0)
            found |= onnx_graph.placed_norm(onnx_graph.norm_of(layer), norm)
        elif kind == "BatchNormalization":
            tensors = dict(layer.tensors)
            if "scale" not in _leaf(params, f"{target}/norm") and np.allclose(tensors["scale"], 1, atol=1e-6):
                del tensors["scale"]
            found |= onnx_graph.placed_norm(tensors, target)
        elif kind == "PRelu":
            found[f"params/{target}/slope"] = layer.tensors["slope"]
        else:
            channels = norm or layer.tensors["weight"].shape[1]
            found[f"params/{target}/kernel"] = laid_out(layer.tensors["weight"], Rule("", "-", "flatten", channels))
            found |= {f"params/{target}/{part}": x for part, x in layer.tensors.items() if part != "weight"}
    return convert(found, [Rule("(.*)", r"\1")], template)


def _iresnet_layers(params: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """(kind, path, path of the norm, or channels of the map before the dense layer) in the order of the network."""
    found: list[tuple[str, str, Any]] = [("Conv", "conv1", "bn1"), ("PRelu", "prelu", "")]
    for block in sorted((n for n in params if n.startswith("layer")), key=lambda n: [int(x) for x in n[5:].split("_")]):
        found += [
            ("BatchNormalization", f"{block}/bn1", ""), ("Conv", f"{block}/conv1", f"{block}/bn2"),
            ("PRelu", f"{block}/prelu", ""), ("Conv", f"{block}/conv2", f"{block}/bn3"),
        ]  # fmt: skip
        if "shortcut_conv" in params[block]:
            found.append(("shortcut", f"{block}/shortcut_conv", f"{block}/shortcut_bn"))
    channels = params["bn2"]["norm"]["scale"].shape[0]
    return [*found, ("BatchNormalization", "bn2", ""), ("Gemm", "fc", channels), ("BatchNormalization", "features", "")]


def _mobilefacenet_layers(params: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """As `_iresnet_layers`."""
    names = ["stem", *(["stem_depthwise"] if "stem_depthwise" in params else [])]
    for stage in range(4):
        blocks = [f"reduce{stage}"] if stage else []
        blocks += sorted((n for n in params if n.startswith(f"stage{stage}_")), key=lambda n: int(n.split("_")[1]))
        names += [f"{block}/{part}" for block in blocks for part in ("expand", "depthwise", "project")]
    names += ["separate", "global_depthwise", *(["linear"] if "linear" in params else [])]
    found: list[tuple[str, str, Any]] = []
    for name in names:
        found.append(("Conv", f"{name}/conv", f"{name}/bn"))
        if "prelu" in _leaf(params, name):
            found.append(("PRelu", f"{name}/prelu", ""))
    return found if "linear" in params else [*found, ("Gemm", "fc", 0), ("BatchNormalization", "features", "")]


def _leaf(params: Mapping[str, Any], path: str) -> Any:
    for key in path.split("/"):
        params = params[key]
    return params


def iresnet_rules(tensors: Mapping[str, np.ndarray]) -> list[Rule]:
    """arcface_torch/backbones/iresnet.py. Its last batch norm's weight is fixed at 1; our model omits it.

    A network that trained it, as MagFace's do, is refused; `load_magface` reads those.
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
