"""Published SCRFD models into `facejax.detection.scrfd.Net`: PyTorch files, and ONNX files of models with landmarks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop import files
from facejax.interop.names import Rule, batch_norm, convert
from facejax.interop.onnx_graph import is_onnx
from facejax.interop.pytorch import read_weights

STRIDES = (8, 16, 32)
EPSILON = 1e-5
NAMED = (
    *(
        Rule(rf"neck\.{source}\.(\d)\.conv\.{part}", rf"params/pyramid/{target}\1/{leaf}", layout)
        for source, target in {
            "lateral_convs": "lateral", "fpn_convs": "fpn", "downsample_convs": "down", "pafpn_convs": "pafpn",
        }.items()
        for part, leaf, layout in (("weight", "kernel", "conv"), ("bias", "bias", "same"))
    ),
    *(
        Rule(rf"bbox_head\.stride_{kind}\.\({s}, {s}\)\.{part}", f"params/outputs{i}/{kind}/{leaf}", layout)
        for kind in ("cls", "reg", "kps")
        for i, s in enumerate(STRIDES)
        for part, leaf, layout in (("weight", "kernel", "conv"), ("bias", "bias", "same"))
    ),
    Rule(r"folded/(.+)/weight", r"params/\1/conv/kernel", "conv"),
    Rule(r"folded/(.+)/(bias|scale)", r"params/\1/bn/norm/\2"),
    Rule(r"folded/(.+)/(mean|var)", r"batch_stats/\1/bn/norm/\2"),
)  # fmt: skip


def load(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables of a `Net` from a checkpoint of InsightFace's training, or from an ONNX file of a model with landmarks.

    The batch norms of an ONNX file are folded into the convolutions, so ours become the identity with the convolution's
    bias.

    Args:
      path: a PyTorch file of any size, such as SCRFD_10G_KPS's model.pth; or scrfd_500m_kps.onnx, scrfd_2.5g_kps.onnx
        or scrfd_10g_kps.onnx.
      template: variables of the network, or their shapes.
      key: of the state dict in a PyTorch file, if it contains several.

    Raises:
      ValueError: the file is not of this network.
    """
    if not is_onnx(path):
        tensors = read_weights(path, key)
        return convert(_without_pools(tensors), state_dict_rules("stem1" in template["params"]["trunk"]), template)
    if "outputs" in template["params"]:
        raise ValueError(f"{os.fspath(path)}: an ONNX file of a model without landmarks: expected its PyTorch file")
    tensors = files.read_onnx(path)
    named = {name: tensor for name, tensor in tensors.items() if name.startswith(("neck.", "bbox_head."))}
    unnamed = [pair for pair in files.onnx_convolutions(path) if pair[0] not in named]
    layers = _layers(template["params"])
    if len(unnamed) != len(layers):
        raise ValueError(f"{path}: {len(unnamed)} convolutions of trunk and heads, expected {len(layers)}")
    for layer, (weight, bias) in zip(layers, unnamed, strict=True):
        width = len(tensors[bias])
        parts = {"weight": tensors[weight], "bias": tensors[bias], "scale": np.ones(width), "mean": np.zeros(width)}
        for part, tensor in {**parts, "var": np.full(width, 1 - EPSILON)}.items():
            named[f"folded/{layer}/{part}"] = tensor
    return convert(named, NAMED, template)


def _without_pools(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Shortcuts with a pool before the convolution get the numbers of those without."""
    found = {}
    for name, x in tensors.items():
        block, place, rest = name.partition(".downsample.")
        if place and f"{block}.downsample.0.weight" not in tensors:
            number, _, rest = rest.partition(".")
            name = f"{block}{place}{int(number) - 1}.{rest}" if number.isdigit() else name
        found[name] = x
    return found


def state_dict_rules(residual: bool) -> list[Rule]:
    """The names of mmdet's modules in detection/scrfd; `residual`: the trunk is a ResNet."""
    found = [rule for rule in NAMED if rule.source.startswith("neck")]

    def conv_norm(conv: str, norm: str, target: str) -> None:
        found.append(Rule(rf"{conv}\.weight", f"params/{target}/conv/kernel", "conv"))
        found.extend(batch_norm(norm, f"{target}/bn"))

    if residual:
        for number, place in enumerate((0, 3, 6), 1):
            conv_norm(rf"backbone\.stem\.{place}", rf"backbone\.stem\.{place + 1}", f"trunk/stem{number}")
        for layer in range(1, 5):
            block, ours = rf"backbone\.layer{layer}\.(\d+)\.", rf"trunk/stage{layer + 1}_\1/"
            conv_norm(block + r"conv(\d)", block + r"bn(\d)", ours + r"conv\2")
            conv_norm(block + r"downsample\.0", block + r"downsample\.1", ours + "shortcut")
    else:
        conv_norm(r"backbone\.stem\.0\.0", r"backbone\.stem\.0\.1", "trunk/stem")
        blocks = [(r"backbone\.stem\.1\.", "trunk/first/")]
        blocks += [(rf"backbone\.layer{n}\.(\d+)\.", rf"trunk/stage{n + 1}_\1/") for n in range(1, 5)]
        for block, ours in blocks:
            conv_norm(block + "0", block + "1", ours + "depthwise")
            conv_norm(block + "3", block + "4", ours + "pointwise")
    heads = [("0", "outputs"), *((rf"\({s}, {s}\)", f"outputs{i}") for i, s in enumerate(STRIDES))]
    for theirs, ours in heads:
        for part in ("", "depthwise", "pointwise"):
            tower = rf"bbox_head\.cls_stride_convs\.{theirs}\.(\d)\." + (rf"{part}_conv\." if part else "")
            target = rf"{ours}/tower\1" + (f"/{part}" if part else "")
            conv_norm(tower + "conv", tower + "bn", target)
            found.append(Rule(tower + r"gn\.weight", f"params/{target}/norm/scale"))
            found.append(Rule(tower + r"gn\.bias", f"params/{target}/norm/bias"))
        for kind in ("cls", "reg", "kps"):
            found.append(Rule(rf"bbox_head\.stride_{kind}\.{theirs}\.weight", f"params/{ours}/{kind}/kernel", "conv"))
            found.append(Rule(rf"bbox_head\.stride_{kind}\.{theirs}\.bias", f"params/{ours}/{kind}/bias"))
    found.append(Rule(r"bbox_head\.scales\.(\d)\.scale", r"params/scale\1"))
    found.append(Rule(r"bbox_head\.integral\.project", "", dropped="of a part that the template lacks"))
    return found


def _layers(params: Mapping[str, Any]) -> list[str]:
    """Paths of all convolutions with batch norm, in the order in which the network computes them."""

    def block(path: str, found: Mapping[str, Any]) -> list[str]:
        if "conv" in found:
            return [path]
        order = ("depthwise", "pointwise", "conv1", "conv2", "conv3", "shortcut")
        return [f"{path}/{name}" for name in order if name in found]

    trunk = params["trunk"]
    stages = sorted((n for n in trunk if n.startswith("stage")), key=lambda n: [int(x) for x in n[5:].split("_")])
    first = [name for name in ("stem", "first", "stem1", "stem2", "stem3") if name in trunk]
    found = [path for name in (*first, *stages) for path in block(f"trunk/{name}", trunk[name])]
    for i in range(len(STRIDES)):
        outputs = params[f"outputs{i}"]
        for name in sorted(n for n in outputs if n.startswith("tower")):
            found += block(f"outputs{i}/{name}", outputs[name])
    return found
