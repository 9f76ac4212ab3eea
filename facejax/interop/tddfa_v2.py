"""Published weights of 3DDFA and 3DDFA_V2 (cleardusk) into their MobileNets."""

from __future__ import annotations

import os
from typing import Any

from facejax.interop.names import IGNORED, Rule, batch_norm, convert
from facejax.interop.pytorch import read_weights

LAYERS = ("2_1", "2_2", "3_1", "3_2", "4_1", "4_2", *(f"5_{i}" for i in range(1, 7)), "6")


def load(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables from mb05_120x120.pth or mb1_120x120.pth.

    Args:
      path: the file.
      template: variables of `tddfa_v2.mb05()` or `mb1()`, or their shapes.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the file is not of this network.
    """
    return convert(read_weights(path, key), [*_trunk("trunk/"), *_dense("fc_param"), *_dense("fc_lm")], template)


def load_3ddfa(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables from a checkpoint of 3DDFA, such as phase1_wpdc_vdc.pth.tar.

    Args:
      path: the file.
      template: variables of `tddfa.mobilenet(width)`, or their shapes.
      key: of the state dict in the checkpoint, if it contains several.

    Raises:
      ValueError: the file is not of this network.
    """
    return convert(read_weights(path, key), [*_trunk(""), *_dense("fc")], template)


def _trunk(place: str) -> list[Rule]:
    rules = [*_conv_norm("conv1", "bn1", f"{place}stem"), IGNORED]
    for number, layer in enumerate(LAYERS, 1):
        rules += _conv_norm(rf"dw{layer}\.conv_dw", rf"dw{layer}\.bn_dw", f"{place}depthwise{number}")
        rules += _conv_norm(rf"dw{layer}\.conv_sep", rf"dw{layer}\.bn_sep", f"{place}pointwise{number}")
    return rules


def _conv_norm(conv: str, norm: str, place: str) -> list[Rule]:
    return [Rule(rf"{conv}\.weight", f"params/{place}/conv/kernel", "conv"), *batch_norm(norm, f"{place}/bn")]


def _dense(name: str) -> list[Rule]:
    return [Rule(rf"{name}\.weight", f"params/{name}/kernel", "linear"), Rule(rf"{name}\.bias", f"params/{name}/bias")]
