"""Conversion of published weights of EDSR and RRDBNet, with the tensor names of their authors' code and of BasicSR."""

from __future__ import annotations

import os
from typing import Any

from facejax.interop.names import Rule, convert
from facejax.interop.pytorch import read_weights


def load(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables from a PyTorch file; the tensor names determine whose code wrote it.

    Args:
      path: a state dict, or a checkpoint that contains one; see `read_weights`.
      template: shapes of the variables of `EDSR` or `RRDBNet`.
      key: of the state dict in the checkpoint, if it contains several ("params_ema" of BasicSR).

    Raises:
      ValueError: the weights do not match the template.
    """
    return convert(read_weights(path, key), rules("block0_dense1" in template["params"]), template)


def rules(dense: bool) -> list[Rule]:
    """Of RRDBNet (`dense`): BasicSR's names and those of ESRGAN's first code; of EDSR: BasicSR's and the authors'."""
    if dense:
        return [
            *_layer(r"(?:body|RRDB_trunk)\.(\d+)\.(?:rdb|RDB)(\d)\.(conv\d)", r"block\1_dense\2/\3"),
            *_layer("conv_first", "first"),
            *_layer("conv_body|trunk_conv", "after_body"),
            *_layer(r"(?:conv_up|upconv)(\d)", r"up\1"),
            *_layer("conv_hr|HRconv", "full"),
            *_layer("conv_last", "last"),
        ]
    ups = [rule for i in (0, 1) for rule in _layer(rf"(?:upsample|tail\.0)\.{2 * i}", f"up{i + 1}")]
    return [
        *_layer(r"body\.(\d+)\.conv(\d)", r"block\1_conv\2"),
        *_layer(r"body\.(\d+)\.body\.0", r"block\1_conv1"),
        *_layer(r"body\.(\d+)\.body\.2", r"block\1_conv2"),
        *_layer(r"conv_first|head\.0", "first"),
        *_layer(r"conv_after_body|body\.\d+", "after_body"),
        *_layer(r"conv_last|tail\.1", "last"),
        *ups,
        Rule(r"(?:sub|add)_mean\.(?:weight|bias)", "", dropped="of a part that the template lacks"),
    ]


def _layer(source: str, target: str) -> list[Rule]:
    return [
        Rule(rf"(?:{source})\.weight", f"params/{target}/kernel", "conv"),
        Rule(rf"(?:{source})\.bias", f"params/{target}/bias"),
    ]
