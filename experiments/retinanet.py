"""RetinaNet: the focal loss, with which a one-stage detector learns from all its anchors.

    python -m experiments.retinanet                          # faces of rendered scenes, two cores
    python -m experiments.retinanet --config=cross_entropy   # the same without focusing
    python -m experiments.retinanet --config=balanced        # cross-entropy that weighs positives by 0.75
    python -m experiments.retinanet --config=ohem            # cross-entropy of hard examples
    python -m experiments.retinanet --config=coco_r50 --config.data.path=DIR --config.model.weights=resnet50.pth
    python -m experiments.retinanet --config=coco_r101 --config.data.path=DIR --config.model.weights=resnet101.pth

DIR holds COCO: annotations/instances_{train,val}2017.json, images/{train,val}2017. The weights are torchvision's, of
ImageNet. 8 GPUs of two images, as published.

Published COCO AP, in %, on minival after 90,000 steps of 16 images, 800 pixels (Detectron's MODEL_ZOO): ResNet-50 35.7,
ResNet-101 37.7. At 600 pixels on minival (paper, Table 1), ResNet-50: focal loss 34.0, cross-entropy 30.2, with alpha
0.75 31.1; ResNet-101: focal loss 36.0, best OHEM 32.8.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from facejax.backbones.resnet import ResNet
from facejax.data import normalize
from facejax.data.detection import DetectionImages
from facejax.detection import retinanet
from facejax.recipes.detector import Evaluation, detector
from facejax.train import Experiment, Options, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(DetectionImages()),
    "model": {
        "name": "tiny",  # a key of NETS
        "scale": 1.5,  # side of a level's smallest anchor, in cells; 4 in the paper
        "gamma": 2.0,  # of the focal loss; 0 is cross-entropy
        "alpha": 0.25,  # weight of positives; negatives have 1 - alpha
        "hard": 0,  # examples per image of online hard example mining; 0 trains all anchors
        "weights": "",  # torchvision's state dict of the ResNet, to begin from
        "frozen": False,  # keep all batch norms, the stem and stage 2 as they are
        "dtype": "float32",  # of the computation
    },
    "optim": {
        "name": "adamw",
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "decay": "kernels",
        "clip": 10.0,
        "schedule": {"kind": "cosine", "peak": 3e-3, "warmup": 30, "boundaries": ()},
        "bias_rate": 1.0,  # learning rate of biases, in that of kernels
    },
    "train": asdict(Options(batch_size=16, steps=400)),
    "eval": asdict(Evaluation()),
}


def coco(name: str) -> dict[str, Any]:
    """Detectron's schedule "1x": 90,000 steps of 16 images, divided by 10 after 60,000 and 80,000.

    A picture of 4:3 is 1088 x 816 pixels in the square; the authors' have 800 on the short side, at most 1333 on the
    long.
    """
    return {
        "data": {"kind": "coco", "path": "coco", "image_size": 1088, "max_boxes": 64, "augment": "flip", "classes": 80,
                 "workers": 8},
        "model": {"name": name, "scale": 4.0, "frozen": True, "dtype": "bfloat16"},
        "optim": {
            "name": "sgd",
            "clip": 0.0,
            "schedule": {"kind": "step", "peak": 0.01, "warmup": 500, "boundaries": (60 / 90, 80 / 90)},
            "bias_rate": 2.0,
        },
        "train": {"batch_size": 16, "steps": 90_000, "devices": 8, "eval_every": 30_000},
        "eval": {"batch_size": 16, "protocol": "coco"},
    }  # fmt: skip


PRESETS = {
    "synthetic": {},
    "cross_entropy": {"model": {"gamma": 0.0, "alpha": 0.5}},
    "balanced": {"model": {"gamma": 0.0, "alpha": 0.75}},
    "ohem": {"model": {"gamma": 0.0, "alpha": 0.5, "hard": 64}},
    "coco_r50": coco("resnet50"),
    "coco_r101": coco("resnet101"),
}

CLAIM = Claim(
    "retinanet.focal",
    "the focal loss raises the AP of a one-stage detector above cross-entropy, whether plain, balanced or of hard "
    "examples",
    metric="ap",
    better="higher",
    method="synthetic",
    baseline=("cross_entropy", "balanced", "ohem"),
)


def tiny(num_classes: int, frozen_norm: bool, dtype: Any) -> retinanet.Net:
    """A narrow network."""
    trunk = ResNet((1, 1, 1, 1), False, widths=(16, 24, 32, 48), dtype=dtype)
    return retinanet.Net(trunk, num_classes, features=32, depth=1, frozen_norm=frozen_norm, dtype=dtype)


def _published(make: Callable[..., retinanet.Net]) -> Callable[..., retinanet.Net]:
    """With strides where torchvision's weights have them."""
    return lambda **options: make(stride_in_1x1=False, **options)


NETS: dict[str, Callable[..., retinanet.Net]] = {
    "tiny": tiny,
    "resnet50": _published(retinanet.retinanet_resnet50),
    "resnet101": _published(retinanet.retinanet_resnet101),
}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    model = config.model
    if model.name not in NETS:
        raise ValueError(f"model.name is {model.name!r}: expected one of {', '.join(NETS)}")
    net = NETS[model.name](num_classes=config.data.classes, frozen_norm=model.frozen, dtype=jnp.dtype(model.dtype))
    tx = optim.from_config(config.optim, config.train.steps)
    return detector(
        retinanet.RetinaNet(
            net,
            model.scale,
            gamma=model.gamma,
            alpha=model.alpha,
            hard=model.hard,
            mean=tuple(normalize.IMAGENET_MEAN.tolist()),
            deviation=tuple(normalize.IMAGENET_STD.tolist()),
            bgr=False,
        ),
        DetectionImages(**config.data),
        optax.chain(tx, optax.masked(optax.set_to_zero(), frozen)) if model.frozen else tx,
        Options(**config.train),
        Evaluation(**config.eval),
        seed=config.seed,
        start=functools.partial(read_backbone, model.weights) if model.weights or model.frozen else None,
    )


def frozen(params: Any) -> Any:
    """Mask of the backbone's batch norms, its stem and its stage 2 (Detectron's FREEZE_AT 2)."""

    def fixed(path: Any, _: Any) -> bool:
        names = [key.key for key in path]
        return names[0] == "backbone" and ("norm" in names or names[1] == "conv1" or names[1].startswith("layer1_"))

    return jax.tree_util.tree_map_with_path(fixed, params)


def read_backbone(path: str, shapes: Any) -> Any:
    """The backbone's variables from torchvision's state dict; ValueError without a path."""
    if not path:
        raise ValueError("model.weights is empty: model.frozen keeps layers of the ResNet, which would stay at random")
    from facejax.interop import torchvision  # only published weights need it

    found = torchvision.load(path, {kind: tree["backbone"] for kind, tree in shapes.items()})
    return {kind: {"backbone": tree} for kind, tree in found.items()}


if __name__ == "__main__":
    app.main(get_config, build)
