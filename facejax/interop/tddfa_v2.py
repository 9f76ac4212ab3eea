"""Published weights of 3DDFA_V2 (cleardusk/3DDFA_V2) into `facejax.reconstruction.tddfa_v2.Net`."""

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
    rules = [*_conv_norm("conv1", "bn1", "stem"), IGNORED]
    for number, layer in enumerate(LAYERS, 1):
        rules += _conv_norm(rf"dw{layer}\.conv_dw", rf"dw{layer}\.bn_dw", f"depthwise{number}")
        rules += _conv_norm(rf"dw{layer}\.conv_sep", rf"dw{layer}\.bn_sep", f"pointwise{number}")
    for head in ("fc_param", "fc_lm"):
        rules += [
            Rule(rf"{head}\.weight", f"params/{head}/kernel", "linear"),
            Rule(rf"{head}\.bias", f"params/{head}/bias"),
        ]
    return convert(read_weights(path, key), rules, template)


def _conv_norm(conv: str, norm: str, target: str) -> list[Rule]:
    place = f"trunk/{target}"
    return [Rule(rf"{conv}\.weight", f"params/{place}/conv/kernel", "conv"), *batch_norm(norm, f"{place}/bn")]
