"""Conversion of YOLO5Face from the checkpoints of deepcam-cn/yolov5-face, which hold whole pickled modules."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from facejax.interop.names import Rule, batch_norm, convert
from facejax.interop.pytorch import read_weights

ANCHORS = {
    3: ((4, 5, 8, 10, 13, 16), (23, 29, 43, 55, 73, 105), (146, 217, 231, 300, 335, 433)),
    4: ((6, 7, 9, 11, 13, 16), (18, 23, 26, 33, 37, 47), (54, 67, 77, 104, 112, 154), (174, 238, 258, 355, 445, 568)),
}
"""Number of levels -> (width, height) in pixels of each level's anchors, as the detector has them."""


def load(path: str | os.PathLike[str], template: Any, key: str | None = None) -> Any:
    """Variables of a network of `facejax.detection.yolo5face` from a file such as yolov5s-face.pt.

    No code of the file runs: of the pickled modules only the tensors are read, those of 16 bits as 32.

    Args:
      path: a checkpoint of the authors' code, or a state dict.
      template: shapes of the network's variables.
      key: of the module in the checkpoint, such as "ema"; None: "model".

    Raises:
      ValueError: the weights do not match the template, or the anchors are not the detector's.
    """
    tensors = read_weights(path, key)
    tensors = {re.sub(r"^(?:model\.)+", "", name): x for name, x in tensors.items()}
    params = template["params"]
    _check_anchors(path, tensors, sum(name.startswith("detect") for name in params))
    return convert(tensors, rules(params), template)


def _check_anchors(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], levels: int) -> None:
    found = next((x for name, x in tensors.items() if name.endswith(".anchors")), None)
    wanted = np.array([np.reshape(a, (3, 2)) / 8 / 2**i for i, a in enumerate(ANCHORS[levels])])
    if found is not None and (found.shape != wanted.shape or np.abs(found - wanted).max() > 0.02 * wanted.max()):
        told, known = (np.array2string(np.float32(x).ravel(), 1000, precision=1) for x in (found, wanted))
        raise ValueError(f"{os.fspath(path)}: its anchors, in cells, are {told}; expected {known}")


def rules(params: Mapping[str, Any]) -> list[Rule]:
    """The modules of models/yolov5*.yaml by their number, for a network with these parameters."""
    levels = sum(name.startswith("detect") for name in params)
    trunk = params["trunk"]
    if "stage2" in trunk:
        found, place = [*_stem(0, trunk), *_c3(1, "trunk/stage2")], 2
        for i in range(levels):
            found += _conv(rf"{place}", f"trunk/down{i + 3}")
            place += 1
            if i == levels - 1:
                found += [*_conv(rf"{place}\.cv1", "trunk/spp/reduce"), *_conv(rf"{place}\.cv2", "trunk/spp/join")]
                place += 1
            found += _c3(place, f"trunk/stage{i + 3}")
            place += 1
    else:
        found, place = _stem(0, trunk), 1
        for stage in range(3, 3 + levels):
            blocks = sum(name.startswith(f"stage{stage}_") for name in trunk)
            found += _shuffle(rf"{place}\.", f"trunk/stage{stage}_0")
            for i in range(1, blocks):
                inner = "" if blocks == 2 else rf"{i - 1}\."
                found += _shuffle(rf"{place + 1}\.{inner}", f"trunk/stage{stage}_{i}")
            place += 2
    for i in reversed(range(levels - 1)):
        found += [*_conv(rf"{place}", f"lateral{i}"), *_c3(place + 3, f"up{i}")]
        place += 4
    for i in range(levels - 1):
        found += [*_conv(rf"{place}", f"down{i}"), *_c3(place + 2, f"out{i + 1}")]
        place += 3
    return [
        *found,
        Rule(rf"{place}\.m\.(\d)\.weight", r"params/detect\1/kernel", "conv"),
        Rule(rf"{place}\.m\.(\d)\.bias", r"params/detect\1/bias"),
        Rule(rf"{place}\.anchor(?:s|_grid)", "", dropped="of a part that the template lacks"),
    ]


def _conv(source: str, target: str, conv: str = "conv", norm: str = "bn") -> list[Rule]:
    return [
        Rule(rf"{source}\.{conv}\.weight", f"params/{target}/conv/kernel", "conv"),
        *batch_norm(rf"{source}\.{norm}", f"{target}/bn"),
    ]


def _stem(place: int, trunk: Mapping[str, Any]) -> list[Rule]:
    if "join" not in trunk["stem"]:
        raise ValueError("YOLO5Face with YOLOv5's Focus layer has no published weights: expected a stem block")
    names: Sequence[tuple[str, str]] = (("1", "first"), ("2a", "narrow"), ("2b", "down"), ("3", "join"))
    return [rule for theirs, ours in names for rule in _conv(rf"{place}\.stem_{theirs}", f"trunk/stem/{ours}")]


def _c3(place: int, target: str) -> list[Rule]:
    found = [
        rule
        for theirs, ours in (("1", "deep"), ("2", "plain"), ("3", "join"))
        for rule in _conv(rf"{place}\.cv{theirs}", f"{target}/{ours}")
    ]
    for theirs, ours in (("1", "reduce"), ("2", "expand")):
        found += _conv(rf"{place}\.m\.(\d+)\.cv{theirs}", rf"{target}/{ours}\1")
    return found


def _shuffle(source: str, target: str) -> list[Rule]:
    found = []
    for branch, conv, ours in (
        (1, 0, "branch1_depthwise"), (1, 2, "branch1_conv"), (2, 0, "conv1"), (2, 3, "depthwise"), (2, 5, "conv2"),
    ):  # fmt: skip
        found += _conv(rf"{source}branch{branch}", f"{target}/{ours}", str(conv), str(conv + 1))
    return found
