"""CornerNet: objects as pairs of corners, found without anchors.

    python -m experiments.cornernet                             # faces of rendered scenes, two cores
    python -m experiments.cornernet --config=no_corner_pooling  # the same network without corner pooling
    python -m experiments.cornernet --config=coco --config.data.path=DIR    # ten GPUs of 12 GB

DIR holds COCO's annotations/instances_{train,val}2017.json and images/{train,val}2017.

Published, AP in % on COCO test-dev, one scale with flip test: 40.6 (arXiv v2; IJCV), after 500,000 iterations. On the
validation images after 250,000 iterations, the paper's ablation: 38.4 with and 36.5 without corner pooling (preset
"coco_ablation"). Here images are letterboxed to the training size, where the authors keep the image's size and pad it,
and there is no flip test in this run (`CornerNet.decode` has it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from facejax.backbones.hourglass import Hourglass, hourglass104
from facejax.data.detection import DetectionImages
from facejax.detection import cornernet
from facejax.recipes.detector import Evaluation, detector
from facejax.train import Experiment, Options, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(DetectionImages(augment="corner")),
    "model": {
        "name": "tiny",  # a key of NETS
        "pooling": True,  # corner pooling
        "corners": 40,  # peaks of each kind that are paired
        "pairs": 200,  # best pairs that enter suppression
        "dtype": "float32",  # of the computation
    },
    "optim": {
        "name": "adam",
        "momentum": 0.9,
        "schedule": {"kind": "cosine", "peak": 4e-3, "warmup": 30, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=16, steps=400)),
    "eval": asdict(Evaluation()),
}
COCO = {
    "data": {"kind": "coco", "path": "coco", "image_size": 511, "classes": 80, "max_boxes": 128, "workers": 8},
    "model": {"name": "hourglass104", "corners": 100, "pairs": 1000},
    "optim": {"schedule": {"kind": "step", "peak": 2.5e-4, "warmup": 0, "boundaries": (0.9,)}},
    "train": {"batch_size": 50, "steps": 500_000, "devices": 10, "eval_every": 50_000},  # the authors' batch is 49
    "eval": {"batch_size": 10, "protocol": "coco"},
}
PRESETS = {
    "synthetic": {},
    "no_corner_pooling": {"model.pooling": False},
    "coco": COCO,
    "coco_ablation": {
        **COCO,
        "optim.schedule": {"kind": "constant", "peak": 2.5e-4},
        "train.steps": 250_000,
    },
}
CLAIM = (
    Claim(
        "cornernet.corner_pooling",
        "corner pooling raises AP above the same network without it",
        metric="ap",
        better="higher",
        method="synthetic",
        baseline=("no_corner_pooling",),
    ),
    Claim(
        "cornernet.large",
        "corner pooling raises the AP of large faces, whose sides reach far from the corners",
        metric="ap_large",
        better="higher",
        method="synthetic",
        baseline=("no_corner_pooling",),
    ),
)


def tiny(classes: int, pooling: bool, dtype: Any) -> cornernet.Net:
    """A narrow hourglass of order 2, one stack."""
    trunk = Hourglass(1, (16, 24, 32), (1, 1, 1), stem=16, features=16, dtype=dtype)
    return cornernet.Net(trunk, classes, width=16, pooled=16, pooling=pooling, dtype=dtype)


def full(classes: int, pooling: bool, dtype: Any) -> cornernet.Net:
    """The published network."""
    return cornernet.Net(hourglass104(dtype=dtype), classes, pooling=pooling, dtype=dtype)


NETS: dict[str, Callable[..., cornernet.Net]] = {"tiny": tiny, "hourglass104": full}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    model, data = config.model, DetectionImages(**config.data)
    if model.name not in NETS:
        raise ValueError(f"model.name is {model.name!r}: expected one of {', '.join(NETS)}")
    net = NETS[model.name](data.classes, model.pooling, jnp.dtype(model.dtype))
    return detector(
        cornernet.CornerNet(net, corners=model.corners, pairs=model.pairs),
        data,
        optim.from_config(config.optim, config.train.steps),
        Options(**config.train),
        Evaluation(**config.eval),
        seed=config.seed,
    )


if __name__ == "__main__":
    app.main(get_config, build)
