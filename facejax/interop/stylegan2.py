"""StyleGAN2-ADA's published pickles (NVlabs/stylegan2-ada-pytorch) into `facejax.generation.stylegan2.Generator`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop.names import Rule, convert
from facejax.interop.pytorch import read_pickled_modules


def load(path: str | os.PathLike[str], template: Any, key: str = "G_ema") -> Any:
    """Variables of a `Generator` without labels.

    The files are pickles that carry source code: none of it runs, only tensors are read. The average w and the noise of
    the file have no place in ours, whose fixed noise comes from a constant key.

    Args:
      path: such as ffhq.pkl.
      template: shapes of the variables.
      key: of the network in the file.

    Raises:
      ValueError: another file, or weights of another network.
    """
    return convert(_laid_out(read_pickled_modules(path, key)), RULES, template)


def _laid_out(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Kernels that enlarge are turned by 180 degrees, and the constant gets its channels last."""
    found = {}
    for name, x in tensors.items():
        if re.fullmatch(r"synthesis\.b\d+\.conv0\.weight", name) and x.ndim == 4:
            x = x[:, :, ::-1, ::-1]
        elif name == "synthesis.b4.const" and x.ndim == 3:
            x = x.transpose(1, 2, 0)
        found[name] = x
    return found


def _styled(source: str, target: str) -> list[Rule]:
    return [
        Rule(rf"{source}\.weight", rf"{target}/kernel", "conv"),
        Rule(rf"{source}\.affine\.weight", rf"{target}/style/kernel", "linear"),
        Rule(rf"{source}\.affine\.bias", rf"{target}/style/bias"),
    ]


RULES = [
    Rule(r"mapping\.fc(\d+)\.weight", r"params/mapping/dense\1/kernel", "linear"),
    Rule(r"mapping\.fc(\d+)\.bias", r"params/mapping/dense\1/bias"),
    Rule(r"synthesis\.b4\.const", "params/synthesis/const"),
    *(
        rule
        for number, name in ((0, "up"), (1, "conv"))
        for rule in (
            *_styled(rf"synthesis\.b(\d+)\.conv{number}", rf"params/synthesis/{name}\1/conv"),
            Rule(rf"synthesis\.b(\d+)\.conv{number}\.bias", rf"params/synthesis/{name}\1/bias"),
            Rule(rf"synthesis\.b(\d+)\.conv{number}\.noise_strength", rf"params/synthesis/{name}\1/noise"),
        )
    ),
    *_styled(r"synthesis\.b(\d+)\.torgb", r"params/synthesis/to_rgb\1"),
    Rule(r"synthesis\.b(\d+)\.torgb\.bias", r"params/synthesis/to_rgb\1_bias"),
    Rule(r"(?:.*\.)?(?:resample_filter|noise_const|w_avg)", "", dropped="of a part that the template lacks"),
]
"""training/networks.py: the mapping network, and the blocks of the synthesis network by their resolution."""
