"""Published SCRFD models with landmarks (InsightFace's ONNX files) into `facejax.detection.scrfd.Net`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop import files
from facejax.interop.names import Rule, convert

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


def load(path: str | os.PathLike[str], template: Any) -> Any:
    """Variables of a `Net` with the options `KEYPOINTS` from a file of a model with landmarks.

    The file's batch norms are folded into the convolutions, so ours become the identity with the convolution's bias.

    Args:
      path: scrfd_500m_kps.onnx, scrfd_2.5g_kps.onnx or scrfd_10g_kps.onnx of InsightFace.
      template: variables of the network, or their shapes.

    Raises:
      ValueError: the file is not of this network.
    """
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
