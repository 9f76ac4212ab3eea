"""MobileNet V1 and V2: accuracy of classifiers against their multiply-adds.

    python -m experiments.mobilenet                                        # identities of rendered faces; V1 at 0.25
    python -m experiments.mobilenet --config=v2                            # V2
    python -m experiments.mobilenet --config=imagenet_v1 --config.data.path=DIR   # DIR/train/class/*.jpg, DIR/val/...
    python -m experiments.mobilenet --config=imagenet_v2 --config.data.path=DIR   # 8 GPUs

Published top-1 on ImageNet's validation images: V1 70.6 and V2 72.0 (papers); slim's released weights: V1 at widths 1,
0.75, 0.5, 0.25: 70.9, 68.4, 63.3, 49.8; V2 at 1.4, 1: 75.0, 71.8.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from facejax.backbones import mobilenet
from facejax.data.classification import IMAGENET, LabelledImages
from facejax.recipes.classifier import Optimizer, classifier
from facejax.train import Experiment, Options, app
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(LabelledImages()),
    "model": {
        "name": "v1",  # "v1" or "v2"
        "width": 0.25,  # multiplies every layer's channels
        "stem_stride": 1,  # of the first convolution, pixels
        "separable": True,  # V1: depthwise separable convolutions; False: full 3x3 convolutions
        "linear": True,  # V2: bottlenecks without an activation; False: with ReLU6
        "dropout": 1e-3,  # rate before the classifier, 0..1
        "momentum": 0.9,  # decay of batch norm's moving averages
        "epsilon": 1e-3,  # added to batch norm's variance
        "dtype": "float32",  # of the computation
    },
    "loss": {"label_smoothing": 0.0},  # part of the target spread over all classes, 0..1
    "optim": asdict(Optimizer()),
    "train": asdict(Options(batch_size=64, steps=300)),
    "eval": {"batch_size": 120},  # images a call
}


def imagenet(name: str, width: float, size: int = 224, **changes: Any) -> dict[str, Any]:
    """Settings that both papers' ImageNet runs share."""
    return {
        "data": {**IMAGENET, "image_size": size},
        "model": {"name": name, "width": width, "stem_stride": 2, "momentum": 0.997, "dtype": "bfloat16"},
        **changes,
    }


def slim_v1(width: float, size: int = 224) -> dict[str, Any]:
    """TF-slim's script for V1: SGD, times 0.94 every 2.5 epochs, batches of 64. The 100 epochs are our choice."""
    return imagenet(
        "v1",
        width,
        size,
        optim={
            "momentum": 0.0,
            "schedule": {"kind": "exponential", "peak": 0.045, "every": 50_045, "factor": 0.94},
        },
        train={"batch_size": 64, "steps": 2_001_800, "devices": 1, "eval_every": 20_018},
    ) | {"model.momentum": 0.9997}


def slim_v2(width: float) -> dict[str, Any]:
    """TF-slim's recipe for V2 (72.0 %): 8 GPUs of 96 images, RMSProp, label smoothing, EMA, 700,000 steps.

    The rate drops every 2.5 epochs that one GPU counts by its own batches of 96, so every 2.5 / 8 epochs of the data.
    """
    return imagenet(
        "v2",
        width,
        loss={"label_smoothing": 0.1},
        optim={
            "name": "rmsprop",
            "b2": 0.9,
            "eps": 1.0,
            "ema": 0.9999,
            "schedule": {"kind": "exponential", "peak": 0.36, "every": 4_170, "factor": 0.98},
        },
        train={"batch_size": 768, "steps": 700_000, "devices": 8, "eval_every": 16_680},
    ) | {"model.dropout": 0.2}


PRESETS = {
    "synthetic": {"model.width": 0.252},  # the multiply-adds of the next preset
    "full_convolution": {"model.separable": False, "model.width": 0.083},
    "v2": {"model.name": "v2"},
    "v2_relu": {"model.name": "v2", "model.linear": False},
    "imagenet_v1": slim_v1(1.0),
    "imagenet_v1_075": slim_v1(0.75),
    "imagenet_v1_050": slim_v1(0.5),
    "imagenet_v1_025": slim_v1(0.25),
    "imagenet_v1_160": slim_v1(1.0, 160),
    "imagenet_v2": slim_v2(1.0),
    "imagenet_v2_140": slim_v2(1.4),
}

CLAIM = (
    Claim(
        "mobilenet.depthwise",
        "at equal multiply-adds, depthwise separable convolutions classify better than full convolutions",
        metric="accuracy",
        better="higher",
        method="synthetic",
        baseline=("full_convolution",),
        system="mobilenet:v1",
    ),
    Claim(
        "mobilenet.linear_bottleneck",
        "linear bottlenecks classify better than bottlenecks with a ReLU6",
        metric="accuracy",
        better="higher",
        method="v2",
        baseline=("v2_relu",),
        system="mobilenet:v2",
    ),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    config = app.with_classes(config, lambda: LabelledImages(**config.data).count())
    return classifier(
        make_net(config),
        LabelledImages(**config.data),
        Optimizer(**config.optim),
        Options(**config.train),
        seed=config.seed,
        eval_batch_size=config.eval.batch_size,
        label_smoothing=config.loss.label_smoothing,
    )


def make_net(config: ConfigDict) -> Any:
    """The network that the configuration names."""
    model = config.model
    if model.name not in ("v1", "v2"):
        raise ValueError(f"model.name is {model.name!r}: expected v1 or v2")
    options = {
        "num_classes": config.data.classes,
        "width": model.width,
        "stem_stride": model.stem_stride,
        "dropout": model.dropout,
        "momentum": model.momentum,
        "epsilon": model.epsilon,
        "dtype": jnp.dtype(model.dtype),
    }
    if model.name == "v1":
        return mobilenet.MobileNetV1(separable=model.separable, **options)
    return mobilenet.MobileNetV2(linear=model.linear, **options)


if __name__ == "__main__":
    app.main(get_config, build)
