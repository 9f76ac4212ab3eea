"""Inception: filters of several sizes side by side, side classifiers, batch norm; accuracy against multiply-adds.

    python -m experiments.inception                               # rendered faces: who is it? GoogLeNet at width 0.25
    python -m experiments.inception --config=no_auxiliary         # without side classifiers
    python -m experiments.inception --config=plain                # 3x3 convolutions in place of modules, at equal cost
    python -m experiments.inception --config=bn                   # BN-Inception
    python -m experiments.inception --config=imagenet_v1 --config.data.path=DIR   # DIR/train/class/*.jpg, DIR/val/...
    python -m experiments.inception --config=imagenet_v3 --config.data.path=DIR   # 8 GPUs

Published top-1 / top-5 on ImageNet's validation images, one central crop: GoogLeNet - / 89.93 (paper), 68.7 / 88.9
(Caffe's replica); TF-slim's released weights: V1 69.8 / 89.6, BN-Inception 73.9 / 91.8, V3 78.0 / 93.9.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import classification_common as common
from facejax.backbones import inception
from facejax.backbones.inception import Plan
from facejax.train import Experiment, app
from facejax.train.claims import Claim

BASE = {
    **common.BASE,
    "model": {
        "name": "v1",  # or "bn", "v3"
        "width": 0.25,
        "auxiliary": True,
        "plain": False,  # V1 with a 3x3 convolution of as many outputs in place of every module
        "dropout": 0.4,
        "auxiliary_dropout": 0.0,  # of V1's side classifiers, which narrow as they are here have no units to spare
        "momentum": 0.9,
        "epsilon": 1e-3,
        "dtype": "float32",
    },
    "loss": {"label_smoothing": 0.0, "auxiliary": 0.3},
    "optim": {
        **common.BASE["optim"],
        "name": "adam",
        "schedule": {"kind": "cosine", "peak": 1e-3, "warmup": 20, "power": 1.0, "every": 0, "factor": 1.0},
    },
}

CAFFE = {
    "data": common.IMAGENET,
    "model": {"width": 1.0, "auxiliary_dropout": 0.7, "dtype": "bfloat16"},
    "optim": {
        "name": "sgd",
        "weight_decay": 2e-4,
        "schedule": {"kind": "polynomial", "peak": 0.01, "warmup": 0, "power": 0.5},
    },
    "train": {"batch_size": 32, "steps": 2_400_000, "devices": 1, "eval_every": 40_000},
}
"""bvlc_googlenet's quick solver: 68.7 % (its readme). There biases move at twice the rate."""


def rmsprop(name: str, size: int, **changes: Any) -> dict[str, Any]:
    """V3's settings (Sec. 8): RMSProp, 0.94 every two epochs, gradients clipped at 2, averaged weights, 100 epochs.

    Eight GPUs of 32 images step together in place of the paper's 50 asynchronous replicas of 32.
    """
    return {
        "data": {**common.IMAGENET, "image_size": size},
        "model": {"name": name, "width": 1.0, "dropout": 0.2, "momentum": 0.9997, "dtype": "bfloat16"},
        "optim": {
            "name": "rmsprop",
            "b2": 0.9,
            "eps": 1.0,
            "clip": 2.0,
            "ema": 0.9999,
            "schedule": {"kind": "exponential", "peak": 0.045, "every": 10_009, "factor": 0.94},
        },
        "train": {"batch_size": 256, "steps": 500_456, "devices": 8, "eval_every": 25_000},
        **changes,
    }


PRESETS = {
    "synthetic": {},
    "no_auxiliary": {"model.auxiliary": False},
    "plain": {"model.plain": True, "model.width": 0.144},  # as many multiply-adds
    # what batch norm allows (Sec. 4.2.1): five times the rate, no dropout
    "bn": {"model": {"name": "bn", "dropout": 0.0}, "optim.schedule.peak": 5e-3},
    "fast": {"model.dropout": 0.0, "optim.schedule.peak": 5e-3},  # the same without batch norm
    "imagenet_v1": CAFFE,
    "imagenet_bn": rmsprop("bn", 224),
    "imagenet_v3": rmsprop("v3", 299, loss={"label_smoothing": 0.1, "auxiliary": 0.4}),
}

CLAIM = (
    Claim(
        "inception.branches",
        "parallel filters of several sizes classify better than filters of one size at equal multiply-adds",
        metric="accuracy",
        better="higher",
        method="synthetic",
        baseline=("plain",),
    ),
    Claim(
        "inception.batch_norm",
        "batch norm classifies better than no batch norm after equally many steps",
        metric="accuracy",
        better="higher",
        method="bn",
        baseline=("synthetic", "fast"),
    ),
    Claim(
        "inception.side_classifiers",
        "side classifiers raise the accuracy of a deep network",
        metric="accuracy",
        better="higher",
        method="synthetic",
        baseline=("no_auxiliary",),
    ),
)

MEAN = (123.0, 117.0, 104.0)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run; V1 sees 0..255 less the mean, which its response normalisation is made for, the others -1..1."""
    preprocess = less_mean if config.model.name == "v1" else common.preprocess
    return common.classifier(config, make_net(config), auxiliary=config.loss.auxiliary, preprocess=preprocess)


def less_mean(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, 3] RGB, less ImageNet's mean."""
    return images.astype(jnp.float32) - jnp.array(MEAN)


def make_net(config: ConfigDict) -> Any:
    """The network that the configuration names."""
    model = config.model
    options = {
        "num_classes": config.data.classes,
        "width": model.width,
        "dropout": model.dropout,
        "momentum": model.momentum,
        "epsilon": model.epsilon,
        "dtype": jnp.dtype(model.dtype),
    }
    if model.name == "v1":
        modules = plain_modules() if model.plain else inception.v1_modules()
        side = {"auxiliary": model.auxiliary, "auxiliary_dropout": model.auxiliary_dropout}
        return inception.GoogLeNet(modules=modules, **side, **options)
    if model.name == "bn":
        return inception.BNInception(**options)
    if model.name == "v3":
        return inception.InceptionV3(auxiliary=model.auxiliary, **options)
    raise ValueError(f"model.name is {model.name!r}: expected v1, bn or v3")


def plain_modules() -> inception.Modules:
    """V1's table with one 3x3 convolution of as many outputs in place of every module."""

    def plain(plan: Plan) -> Plan:
        outputs = sum(layers[-1][0] for layers in plan.branches) + plan.pool_channels
        return Plan((((outputs, 3),),), pool="")

    return tuple((name, plain(plan) if plan.branches else plan) for name, plan in inception.v1_modules())


if __name__ == "__main__":
    app.main(get_config, build)
