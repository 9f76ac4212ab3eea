"""MobileNet V1 and V2: accuracy of classifiers against their multiply-adds.

    python -m experiments.mobilenet                                        # rendered faces: who is it? V1 at width 0.25
    python -m experiments.mobilenet --config=v2                            # V2
    python -m experiments.mobilenet --config=imagenet_v1 --config.data.path=DIR   # DIR/train/class/*.jpg, DIR/val/...
    python -m experiments.mobilenet --config=imagenet_v2 --config.data.path=DIR   # 8 GPUs

Published top-1 on ImageNet's validation images: V1 70.6 and V2 72.0 (papers); slim's released weights: V1 at widths 1,
0.75, 0.5, 0.25: 70.9, 68.4, 63.3, 49.8; V2 at 1.4, 1: 75.0, 71.8.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import classification_common as common
from facejax.backbones import mobilenet
from facejax.train import Experiment, app
from facejax.train.claims import Claim

BASE = {
    **common.BASE,
    "model": {
        "name": "v1",  # or "v2"
        "width": 0.25,
        "stem_stride": 1,
        "separable": True,
        "linear": True,
        "dropout": 1e-3,
        "momentum": 0.9,
        "epsilon": 1e-3,
        "dtype": "float32",
    },
}


def imagenet(name: str, width: float, size: int = 224, **changes: Any) -> dict[str, Any]:
    """What both papers' ImageNet runs share."""
    return {
        "data": {**common.IMAGENET, "image_size": size},
        "model": {"name": name, "width": width, "stem_stride": 2, "momentum": 0.997, "dtype": "bfloat16"},
        **changes,
    }


def slim_v1(width: float, size: int = 224) -> dict[str, Any]:
    """TF-slim's script for V1: plain SGD, 0.94 every 2.5 epochs, batches of 64. Its length, 100 epochs, is ours."""
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

    The rate falls every 2.5 / 8 epochs as one GPU counts them, by its own batches of 96.
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
    "synthetic": {"model.width": 0.252},  # as many multiply-adds as
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
    return common.classifier(config, make_net(config))


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
