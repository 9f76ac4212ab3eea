"""SSR-Net's published Keras weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from facejax.interop.files import read_keras
from facejax.interop.names import Rule, convert

STATISTICS = {"moving_mean": "mean", "moving_variance": "var"}
SCALES = {"gamma": "scale", "beta": "bias"}


def load(path: str | os.PathLike[str], template: Any) -> Any:
    """Variables of `facejax.attributes.ssrnet.SSRNet` from the authors' HDF5 file of ages or of gender.

    The file's network sees BGR; here the inputs of the first kernels are reversed, so that it sees RGB.

    Args:
      path: the file.
      template: shapes of the model's variables.

    Raises:
      ValueError: no weights file, or weights of another network.
    """
    try:
        return convert(rgb(read_keras(path), ("conv2d_1", "conv2d_5")), rules(), template)
    except ValueError as error:
        raise ValueError(f"{path}: not the weights of this SSR-Net: {error}") from error


def rgb(tensors: Mapping[str, np.ndarray], layers: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The tensors with the input channels of the named layers' kernels [H, W, 3, F] in reverse order."""
    first = tuple(f"{layer}/{part}kernel" for layer in layers for part in ("", "depthwise_", "pointwise_"))
    return {name: x[:, :, ::-1] if name.endswith(first) and x.ndim == 4 else x for name, x in tensors.items()}


def rules() -> list[Rule]:
    """Layers are numbered in the order of the code: the first stream, the second, then stage by stage."""
    found = []
    for number in range(8):
        stream, depth = ("first", "second")[number // 4], number % 4
        conv, norm = f"conv2d_{number + 1}", f"batch_normalization_{number + 1}"
        place = f"trunk/{stream}{depth}"
        found += layer(conv, f"{place}/conv") + batch_norm(norm, f"{place}/bn/norm")
    for stage in range(3):
        place = f"stage{stage + 1}"
        parts = {
            f"conv2d_{9 + 2 * stage}": "second_reduced",
            f"conv2d_{10 + 2 * stage}": "first_reduced",
            f"dense_{1 + 3 * stage}": "second_narrow",
            f"dense_{2 + 3 * stage}": "first_narrow",
            f"dense_{3 + 3 * stage}": "mixed",
            f"pred_(?:age_)?stage{stage + 1}": "scores",
            f"delta_s{stage + 1}": "stretch",
            f"local_delta_stage{stage + 1}": "shifts",
        }
        for theirs, ours in parts.items():
            found += layer(theirs, f"{place}/{ours}")
    return found


def layer(theirs: str, ours: str) -> list[Rule]:
    """Kernel and bias of a layer; `theirs` is an expression that matches its name."""
    return [Rule(rf"(?:.*/)?{theirs}/{part}", f"params/{ours}/{part}") for part in ("kernel", "bias")]


def batch_norm(theirs: str, ours: str) -> list[Rule]:
    """Scale, bias and statistics of a batch norm."""
    places = {k: f"params/{ours}/{v}" for k, v in SCALES.items()}
    places |= {k: f"batch_stats/{ours}/{v}" for k, v in STATISTICS.items()}
    return [Rule(rf"(?:.*/)?{theirs}/{part}", place) for part, place in places.items()]
