"""CenterNet: objects as points, the peaks of a heat map of box centres, without suppression of overlapping boxes.

    python -m experiments.centernet                          # faces of rendered scenes with landmarks, two cores
    python -m experiments.centernet --config=all_pixels      # every pixel is a detection, not only peaks
    python -m experiments.centernet --config=exact_radius    # targets of the exact radius
    python -m experiments.centernet --config=coco_dla34 --config.data.path=DIR     # eight GPUs of 12 GB

DIR holds COCO's annotations/instances_{train,val}2017.json and images/{train,val}2017.

Published (authors' MODEL_ZOO), AP in % on COCO's validation images without flip test: Hourglass-104 40.3, DLA-34 36.3
("1x") and 37.4 ("2x"), ResNet-101 34.6, ResNet-18 28.1. The trunks start from ImageNet's weights (Hourglass-104 from
ExtremeNet's), which this run does not load. Here images are letterboxed to the training size, where the authors keep
the image's size and pad it.

The report also has the AP that a suppression at an IoU of `eval.nms` gives the same detections, and what it adds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from facejax.backbones.dla import DLAUp, dla34
from facejax.backbones.hourglass import Hourglass, hourglass104
from facejax.backbones.resnet import ResNet, resnet18, resnet101
from facejax.data.detection import DetectionImages
from facejax.detection import centernet
from facejax.recipes.detector import Evaluation, detector
from facejax.train import Experiment, Options, Report, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": dataclasses.asdict(DetectionImages(augment="affine")),
    "model": {
        "name": "tiny",  # a key of TRUNKS
        "landmarks": True,  # five points per face
        "exact_radius": False,  # the exact radius of the targets, smaller than that of the authors' formula
        "dtype": "float32",  # of the computation
    },
    "optim": {
        "name": "adam",
        "momentum": 0.9,
        "schedule": {"kind": "cosine", "peak": 4e-3, "warmup": 30, "boundaries": ()},
    },
    "train": dataclasses.asdict(Options(batch_size=16, steps=400)),
    "eval": {
        **dataclasses.asdict(Evaluation()),
        "window": 3,  # side of the window of a peak; 1: every pixel is a detection
        "nms": 0.5,  # IoU above which the suppression for comparison drops a box; 0: no comparison
    },
}


def coco(name: str, epochs: int, falls: tuple[int, ...], batch: int, peak: float, devices: int) -> dict[str, Any]:
    """The authors' schedule: 118,287 images, the rate divided by 10 after the epochs `falls`."""
    epoch, boundaries = 118_287 // batch, tuple(n / epochs for n in falls)
    return {
        "data": {"kind": "coco", "path": "coco", "image_size": 512, "classes": 80, "max_boxes": 128, "workers": 8},
        "model": {"name": name, "landmarks": False},
        "optim": {"schedule": {"kind": "step", "peak": peak, "warmup": 0, "boundaries": boundaries}},
        "train": {"batch_size": batch, "steps": epochs * epoch, "devices": devices, "eval_every": 10 * epoch},
        "eval": {"batch_size": 16, "protocol": "coco", "nms": 0.0},
    }


PRESETS = {
    "synthetic": {},
    "all_pixels": {"eval.window": 1},
    "exact_radius": {"model.exact_radius": True},
    "coco_resnet18": coco("resnet18", 140, (90, 120), 112, 5e-4, 4),  # the authors' batch is 114
    "coco_resnet101": coco("resnet101", 140, (90, 120), 96, 3.75e-4, 8),
    "coco_dla34": coco("dla34", 140, (90, 120), 128, 5e-4, 8),
    "coco_dla34_2x": coco("dla34", 230, (180, 210), 128, 5e-4, 8),
    "coco_hourglass104": coco("hourglass104", 50, (40,), 24, 2.5e-4, 4),  # theirs: on five GPUs
}
CLAIM = (
    Claim(
        "centernet.peaks",
        "peaks of the heat map, without suppression of overlapping boxes, have a higher AP than all its pixels",
        metric="ap",
        better="higher",
        method="synthetic",
        baseline=("all_pixels",),
    ),
    Claim(
        "centernet.no_nms",
        "a suppression of overlapping boxes adds less AP to peaks than to all pixels",
        metric="nms_gain",
        better="lower",
        method="synthetic",
        baseline=("all_pixels",),
    ),
)


def tiny(dtype: Any) -> Hourglass:
    """A narrow hourglass of order 2, one stack."""
    return Hourglass(1, (16, 24, 32), (1, 1, 1), stem=16, features=24, dtype=dtype)


def resnet(make: Callable[..., ResNet], dtype: Any) -> centernet.ResNetUp:
    """With the published upsampling path."""
    return centernet.ResNetUp(make(dtype=dtype), dtype=dtype)


TRUNKS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "tiny": (tiny, 24),
    "resnet18": (lambda dtype: resnet(resnet18, dtype), 64),
    "resnet101": (lambda dtype: resnet(resnet101, dtype), 64),
    "dla34": (lambda dtype: DLAUp(dla34(dtype=dtype), centernet.deformable, dtype=dtype), 256),
    "hourglass104": (lambda dtype: hourglass104(dtype=dtype), 256),
}
"""Name -> constructor from a dtype, and width of the heads."""


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    options, data = dict(config.eval), DetectionImages(**config.data)
    window, threshold = options.pop("window"), options.pop("nms")
    if threshold and options["protocol"] not in ("faces", "coco"):
        raise ValueError(f"eval.nms is {threshold}: expected 0, as protocol {options['protocol']} has no ap to compare")
    model = centernet.CenterNet(make_net(config, data.classes), exact_radius=config.model.exact_radius, window=window)

    def run(model: centernet.CenterNet) -> Experiment:
        tx = optim.from_config(config.optim, config.train.steps)
        return detector(model, data, tx, Options(**config.train), Evaluation(**options), seed=config.seed)

    experiment, suppressing = run(model), run(dataclasses.replace(model, threshold=threshold))
    if not threshold:
        return experiment

    def evaluate(state: Any) -> Report:
        report, after = experiment.evaluate(state), suppressing.evaluate(state).metrics
        report.metrics |= {"ap_with_nms": after["ap"], "nms_gain": after["ap"] - report.metrics["ap"]}
        return report

    return dataclasses.replace(experiment, evaluate=evaluate)


def make_net(config: ConfigDict, classes: int) -> centernet.Net:
    """The network that the configuration names."""
    if config.model.name not in TRUNKS:
        raise ValueError(f"model.name is {config.model.name!r}: expected one of {', '.join(TRUNKS)}")
    (make, width), dtype = TRUNKS[config.model.name], jnp.dtype(config.model.dtype)
    return centernet.Net(make(dtype), classes, width, 5 if config.model.landmarks else 0, dtype=dtype)


if __name__ == "__main__":
    app.main(get_config, build)
