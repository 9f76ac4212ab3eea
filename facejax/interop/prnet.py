"""The published PRNet (YadiraF/PRNet, a TensorFlow checkpoint) into `facejax.reconstruction.prnet.Net`.

Its layers are numbered in the order of the network: "Conv", "Conv_1", ...; "resBlock", ...; "Conv2d_transpose", ...
Kernels of TensorFlow's transposed convolutions are [H, W, O, I].
"""

from __future__ import annotations

import os
import re
from typing import Any

from facejax.interop.names import Rule, convert
from facejax.interop.tensorflow import read_checkpoint

SLOTS = r".*/Adam|beta[12]_power|global_step"
"""Names of what a training run keeps beside the network."""
NORM = {
    "gamma": "params/{}/norm/scale", "beta": "params/{}/norm/bias",
    "moving_mean": "batch_stats/{}/norm/mean", "moving_variance": "batch_stats/{}/norm/var",
}  # fmt: skip


def load(path: str | os.PathLike[str], template: Any) -> Any:
    """Variables from 256_256_resfcn256_weight.

    Args:
      path: of the checkpoint: its .index or its .data file, or either without the ending.
      template: variables of the network, or their shapes.

    Raises:
      ValueError: the file is not of this network.
    """
    prefix = re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", os.fspath(path))
    found = read_checkpoint(prefix, rf"(?!{SLOTS}).*")
    laid_out = {
        name: tensor.swapaxes(2, 3) if "/Conv2d_transpose" in name and tensor.ndim == 4 else tensor
        for name, tensor in found.items()
    }
    try:
        return convert(laid_out, _rules(), template)
    except ValueError as error:
        raise ValueError(f"{prefix}: not the weights of this PRNet: {error}") from error


def _rules() -> list[Rule]:
    rules = [*_conv("Conv", "stem/conv"), *_norm("Conv", "stem/bn")]
    for number in range(10):
        source, target = _numbered("resBlock", number), f"block{number // 2 + 1}_{number % 2 + 1}"
        for layer, place in (("Conv", "conv1"), ("Conv_1", "conv2")):
            rules += _conv(f"{source}/{layer}", f"{target}/{place}/conv")
            rules += _norm(f"{source}/{layer}", f"{target}/{place}/bn")
        rules += [*_conv(f"{source}/Conv_2", f"{target}/conv3"), *_conv(f"{source}/shortcut", f"{target}/shortcut")]
        rules += _norm(source, f"{target}/bn")
    for number in range(17):
        source = _numbered("Conv2d_transpose", number)
        rules += [*_conv(source, f"up{number + 1}"), *_norm(source, f"up{number + 1}_bn")]
    return rules


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def _conv(source: str, target: str) -> list[Rule]:
    return [Rule(f"resfcn256/{source}/weights", f"params/{target}/kernel")]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"resfcn256/{source}/BatchNorm/{name}", place.format(target)) for name, place in NORM.items()]
