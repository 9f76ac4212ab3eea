"""Inception: parallel filters of several sizes, side classifiers, batch norm; accuracy against multiply-adds.

    python -m experiments.inception                               # identities of rendered faces; GoogLeNet, width 0.25
    python -m experiments.inception --config=no_auxiliary         # without side classifiers
    python -m experiments.inception --config=plain                # 3x3 convolutions, not modules, at equal cost
    python -m experiments.inception --config=bn                   # BN-Inception
    python -m experiments.inception --config=imagenet_v1 --config.data.path=DIR   # DIR/train/class/*.jpg, DIR/val/...
    python -m experiments.inception --config=imagenet_v3 --config.data.path=DIR   # 8 GPUs

Published top-1 / top-5 on ImageNet's validation images, one central crop: GoogLeNet - / 89.93 (paper), 68.7 / 88.9
(Caffe's replica); TF-slim's released weights: V1 69.8 / 89.6, BN-Inception 73.9 / 91.8, V3 78.0 / 93.9.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from facejax.backbones import inception
from facejax.backbones.inception import Plan
from facejax.data import normalize
from facejax.data.classification import IMAGENET, LabelledImages
from facejax.recipes.classifier import Optimizer, Schedule, classifier
from facejax.train import Experiment, Options, app
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(LabelledImages()),
    "model": {
        "name": "v1",  # "v1", "bn" or "v3"
        "width": 0.25,  # multiplies every layer's channels
        "auxiliary": True,  # whether V1 and V3 have side classifiers in training
        "plain": False,  # V1 with one 3x3 convolution of as many channels in place of every module
        "dropout": 0.4,  # rate before the classifier, 0..1
        "auxiliary_dropout": 0.0,  # rate in V1's side classifiers, 0..1; at width 0.25 they are too narrow for dropout
        "momentum": 0.9,  # decay of batch norm's moving averages
        "epsilon": 1e-3,  # added to batch norm's variance
        "dtype": "float32",  # of the computation
    },
    "loss": {
        "label_smoothing": 0.0,  # part of the target spread over all classes, 0..1
        "auxiliary": 0.3,  # weight of each side classifier's loss
    },
    "optim": asdict(Optimizer("adam", schedule=Schedule(peak=1e-3, warmup=20))),
    "train": asdict(Options(batch_size=64, steps=300)),
    "eval": {"batch_size": 120},  # images a call
}

CAFFE = {
    "data": IMAGENET,
    "model": {"width": 1.0, "auxiliary_dropout": 0.7, "dtype": "bfloat16"},
    "optim": {
        "name": "sgd",
        "weight_decay": 2e-4,
        "schedule": {"kind": "polynomial", "peak": 0.01, "warmup": 0, "power": 0.5},
    },
    "train": {"batch_size": 32, "steps": 2_400_000, "devices": 1, "eval_every": 40_000},
}
"""The quick solver of bvlc_googlenet (68.7 % in its readme), which gives biases twice the learning rate."""


def rmsprop(name: str, size: int, **changes: Any) -> dict[str, Any]:
    """V3's settings (Sec. 8): RMSProp, 0.94 every two epochs, gradients clipped at 2, averaged weights, 100 epochs.

    Eight GPUs of 32 images step together in place of the paper's 50 asynchronous replicas of 32.
    """
    return {
        "data": {**IMAGENET, "image_size": size},
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
    "plain": {"model.plain": True, "model.width": 0.151},  # the multiply-adds of "synthetic"
    # Sec. 4.2.1: five times the learning rate and no dropout
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

CENTRED = partial(normalize.centred, mean=normalize.CAFFE_MEAN)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run; V1, whose response normalisation needs that scale, takes 0..255 less the mean, others -1..1."""
    config = app.with_classes(config, lambda: LabelledImages(**config.data).count())
    return classifier(
        make_net(config),
        LabelledImages(**config.data),
        Optimizer(**config.optim),
        Options(**config.train),
        seed=config.seed,
        eval_batch_size=config.eval.batch_size,
        label_smoothing=config.loss.label_smoothing,
        auxiliary=config.loss.auxiliary,
        preprocess=CENTRED if config.model.name == "v1" else normalize.symmetric,
    )


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
    """V1's table with one 3x3 convolution of as many channels in place of every module."""

    def plain(plan: Plan) -> Plan:
        outputs = sum(layers[-1][0] for layers in plan.branches) + plan.pool_channels
        return Plan((((outputs, 3),),), pool="")

    return tuple((name, plain(plan) if plan.branches else plan) for name, plan in inception.v1_modules())


if __name__ == "__main__":
    app.main(get_config, build)
