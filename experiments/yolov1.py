"""YOLO v1: boxes and classes of an image as one regression on a coarse grid.

    python -m experiments.yolov1                             # faces of rendered scenes, two cores
    python -m experiments.yolov1 --config=equal_weights      # lambda_coord = lambda_noobj = 1
    python -m experiments.yolov1 --config=plain_sides        # sides in place of their square roots
    python -m experiments.yolov1 --config=voc --config.data.path=DIR         # one GPU
    python -m experiments.yolov1 --config=voc_fast --config.data.path=DIR

DIR holds VOC2007 and VOC2012; trained on the trainval images of both, tested on VOC 2007's test images.

Published (paper, Sec. 4), mAP in % on VOC 2007: YOLO 63.4, Fast YOLO 52.7, after the first 20 convolutions were trained
on ImageNet; the presets here begin from random kernels and are not expected to reach them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from facejax.data.detection import DetectionImages
from facejax.detection import yolov1
from facejax.recipes.detector import Evaluation, detector
from facejax.train import Experiment, Options, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(DetectionImages(augment="yolo")),
    "model": {
        "name": "tiny",  # a key of NETS
        "coord_weight": 5.0,  # lambda_coord
        "background_weight": 0.5,  # lambda_noobj
        "square_root": True,  # predict and compare the square roots of sides
        "dropout": 0.1,  # after the hidden layer
        "dtype": "float32",  # of the computation
    },
    "optim": {
        "name": "adam",
        "momentum": 0.9,
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 0.002, "warmup": 50, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=32, steps=1500)),
    "eval": asdict(Evaluation(stretch=True)),
}


def voc(name: str) -> dict[str, Any]:
    """The paper's 135 epochs of VOC 2007 and 2012: 75 at the highest rate, 30 at a tenth, 30 at a hundredth.

    The authors' code follows half the gradient of the loss, so that its rate of 1e-2 is 5e-3 here, and its decay twice
    as large.
    """
    epoch = 16_551 // 64
    schedule = {"kind": "step", "peak": 5e-3, "warmup": 3 * epoch, "boundaries": (75 / 135, 105 / 135)}
    return {
        "data": {"kind": "voc", "path": "voc", "image_size": 448, "max_boxes": 64, "classes": 20, "workers": 8},
        "model": {"name": name, "dropout": 0.5, "dtype": "bfloat16"},
        "optim": {"name": "sgd", "weight_decay": 1e-3, "schedule": schedule},
        "train": {"batch_size": 64, "steps": 135 * epoch, "eval_every": 15 * epoch},
        "eval": {"batch_size": 32, "protocol": "voc2007"},
    }


PRESETS = {
    "synthetic": {},
    "equal_weights": {"model": {"coord_weight": 1.0, "background_weight": 1.0}},
    "plain_sides": {"model.square_root": False},
    "voc": voc("yolo"),
    "voc_fast": voc("fast"),
}

CLAIM = (
    Claim(
        "yolov1.weights",
        "errors of boxes weighted by 5 and confidences of the background by 0.5 raise AP above equal weights",
        metric="ap",
        better="higher",
        method="synthetic",
        baseline=("equal_weights",),
    ),
    Claim(
        "yolov1.square_root",
        "squared errors of the sides' square roots raise AP above squared errors of the sides",
        metric="ap",
        better="higher",
        method="synthetic",
        baseline=("plain_sides",),
    ),
)

TINY = (
    *((16, 3, 2), yolov1.POOL, (32, 3, 1), yolov1.POOL, (64, 3, 1), (32, 1, 1), (64, 3, 1), yolov1.POOL),
    *((96, 3, 1), yolov1.POOL, (128, 3, 1), (64, 1, 1)),
)
"""Convolutions to a 4 x 4 map of 128 pixels."""

NETS: dict[str, Callable[..., yolov1.Net]] = {
    "tiny": functools.partial(yolov1.Net, TINY, 1024, grid=4, norm=True),
    "yolo": yolov1.yolov1,
    "fast": yolov1.fast_yolov1,
}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    settings = dict(config.model)
    name, dropout, dtype = settings.pop("name"), settings.pop("dropout"), jnp.dtype(settings.pop("dtype"))
    if name not in NETS:
        raise ValueError(f"model.name is {name!r}: expected one of {', '.join(NETS)}")
    return detector(
        yolov1.YOLOv1(NETS[name](num_classes=config.data.classes, dropout=dropout, dtype=dtype), **settings),
        DetectionImages(**config.data),
        optim.from_config(config.optim, config.train.steps),
        Options(**config.train),
        Evaluation(**config.eval),
        seed=config.seed,
    )


if __name__ == "__main__":
    app.main(get_config, build)
