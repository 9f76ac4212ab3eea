"""RetinaFace: face detection with five points, and a mesh, as extra supervision.

    python -m experiments.retinaface                            # faces of rendered scenes, two cores
    python -m experiments.retinaface --config=boxes             # without points
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from facejax.data.detection import DetectionImages
from facejax.detection import retinaface
from facejax.recipes.detector import Evaluation, detector
from facejax.train import Experiment, Options, app, optim
from facejax.train.claims import Claim

SMALL = ((16, 1), (24, 2), (48, 2), (64, 2), (96, 2))
"""(channels, stride) of the miniature's trunk."""

BASE = {
    "seed": 0,
    "data": asdict(DetectionImages(augment="face")),
    "model": {
        "name": "tiny",  # a key of NETS
        "levels": (2, 3, 4),
        "sides": ((8, 12), (18, 27), (40, 60)),  # of the anchors, pixels
        "points": 1.0,  # weight of the points' loss
        "dtype": "float32",  # of the computation
    },
    "optim": {
        "name": "sgd",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": {"kind": "cosine", "peak": 0.05, "warmup": 30, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=16, steps=400)),
    "eval": {**asdict(Evaluation()), "weights": ""},
}
PRESETS = {"synthetic": {}, "boxes": {"model.points": 0.0}}
CLAIM = Claim(
    "retinaface.points",
    "the loss of five points raises the AP of boxes",
    metric="ap",
    better="higher",
    method="synthetic",
    baseline=("boxes",),
)


def tiny(**options):
    return retinaface.RetinaFaceNet(retinaface.MobileNetBody(8, SMALL), 32, **options)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    evaluation = dict(config.eval)
    weights = evaluation.pop("weights")
    net = tiny(levels=tuple(config.model.levels))
    model = retinaface.RetinaFace(net, strides=tuple(2**n for n in config.model.levels), sides=config.model.sides, weights=(2.0, 1.0, config.model.points, 0.01))
    return detector(
        model,
        DetectionImages(**config.data),
        optim.from_config(config.optim, config.train.steps),
        Options(**config.train),
        Evaluation(**evaluation),
        seed=config.seed,
    )


if __name__ == "__main__":
    app.main(get_config, build)
