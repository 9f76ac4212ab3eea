"""SCRFD: face detection whose samples and computation are distributed over strides for small faces.

    python -m experiments.scrfd                              # faces of rendered scenes, two cores
    python -m experiments.scrfd --config=plain_crops         # training crops without padding, as before SCRFD
    python -m experiments.scrfd --config=deep                # a trunk that computes mostly at its last stages
    python -m experiments.scrfd --config=wider_500m_kps --config.data.path=DIR    # 8 GPUs
    python -m experiments.scrfd --config=wider_500m_kps --config.data.path=DIR --eval_only --workdir= ...
        --config.eval.weights=scrfd_500m_kps.onnx

DIR holds RetinaFace's annotations of WIDER FACE: train/label.txt, train/images, val/label.txt, val/images.
`eval.truth` is the folder of the four .mat files of the official evaluation tools; `--config.eval.protocol=faces`
evaluates without them, by face height.

Published (authors' README), AP in % on WIDER FACE's validation images that fit 640 pixels, easy / medium / hard:
0.5GF 90.57 / 88.12 / 68.51; 1GF 92.38 / 90.57 / 74.80; 2.5GF 93.78 / 92.16 / 77.87; 10GF 95.16 / 93.87 / 83.05; 34GF
96.06 / 94.92 / 85.29; with landmarks 0.5GF 90.97 / 88.44 / 69.49; 2.5GF 93.80 / 92.02 / 77.13; 10GF 95.40 / 94.01 /
82.80.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from facejax.data.detection import DetectionImages
from facejax.detection import scrfd
from facejax.recipes.detector import Evaluation, detector
from facejax.train import Experiment, Options, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(DetectionImages(augment="scrfd")),
    "model": {
        "name": "tiny",  # a key of NETS
        "landmarks": True,  # five points per face
        "dtype": "float32",  # of the computation
    },
    "optim": {
        "name": "adamw",
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": {"kind": "cosine", "peak": 0.004, "warmup": 30, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=16, steps=400)),
    "eval": {
        **asdict(Evaluation()),
        "weights": "",  # ONNX file of a published model with landmarks to evaluate
    },
}


def wider(name: str, peak: float = 0.01, landmarks: bool = False) -> dict[str, Any]:
    """The authors' schedule: 640 epochs of 12,880 images, divided by 10 after 440 and 544; 8 GPUs of 8 images."""
    epoch = 12_880 // 64
    return {
        "data": {"kind": "retinaface", "path": "wider", "image_size": 640, "max_boxes": 128, "workers": 8},
        "model": {"name": name, "landmarks": landmarks, "dtype": "bfloat16"},
        "optim": {
            "name": "sgd",
            "weight_decay": 5e-4,
            "schedule": {"kind": "step", "peak": peak, "warmup": 1500, "boundaries": (440 / 640, 544 / 640)},
        },
        "train": {"batch_size": 64, "steps": 640 * epoch, "devices": 8, "eval_every": 80 * epoch},
        "eval": {"batch_size": 16, "protocol": "wider", "truth": "ground_truth"},
    }


PRESETS = {
    "synthetic": {},
    "plain_crops": {"data.augment": "face"},
    "deep": {"model.name": "tiny_deep"},
    "wider_500m": wider("500m"),
    "wider_1g": wider("1g"),
    "wider_2_5g": wider("2_5g"),
    "wider_10g": wider("10g"),
    "wider_34g": wider("34g", 0.02),
    "wider_500m_kps": wider("500m", landmarks=True),
    "wider_2_5g_kps": wider("2_5g", landmarks=True),
    "wider_10g_kps": wider("10g", landmarks=True),
}

CLAIM = (
    Claim(
        "scrfd.samples",
        "training crops up to twice the image raise the AP of small faces above crops inside it",
        metric="ap_small",
        better="higher",
        method="synthetic",
        baseline=("plain_crops",),
    ),
    Claim(
        "scrfd.computation",
        "a trunk that computes mostly at its first stages raises AP above one of equal multiply-adds that computes "
        "mostly at its last",
        metric="ap",
        better="higher",
        method="synthetic",
        baseline=("deep",),
    ),
)


def tiny(widths: tuple[int, ...], depths: tuple[int, ...], **options: Any) -> scrfd.Net:
    """A narrow network of half the strides, with the heads of the published ones."""
    trunk = functools.partial(scrfd.ResidualTrunk, 8, widths, depths, pool=False)
    return scrfd.Net(trunk, 16, 24, 1, **{"norm_groups": 8, **options})


NETS: dict[str, Callable[..., scrfd.Net]] = {
    "tiny": functools.partial(tiny, (12, 24, 24, 32), (2, 2, 1, 1)),
    "tiny_deep": functools.partial(tiny, (8, 16, 50, 84), (1, 1, 2, 2)),
    "500m": scrfd.scrfd_500m,
    "1g": scrfd.scrfd_1g,
    "2_5g": scrfd.scrfd_2_5g,
    "10g": scrfd.scrfd_10g,
    "34g": scrfd.scrfd_34g,
}
HALVED = {"strides": (4, 8, 16), "sizes": ((8, 16), (32, 64), (128, 256))}
"""Anchors of the networks of half the strides."""


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    evaluation = dict(config.eval)
    weights = evaluation.pop("weights")
    return detector(
        scrfd.SCRFD(make_net(config), **(HALVED if config.model.name.startswith("tiny") else {})),
        DetectionImages(**config.data),
        optim.from_config(config.optim, config.train.steps),
        Options(**config.train),
        Evaluation(**evaluation),
        seed=config.seed,
        load=functools.partial(read, weights) if weights else None,
    )


def make_net(config: ConfigDict) -> scrfd.Net:
    """The network that the configuration names."""
    if config.model.name not in NETS:
        raise ValueError(f"model.name is {config.model.name!r}: expected one of {', '.join(NETS)}")
    options = scrfd.KEYPOINTS if config.model.landmarks else {}
    return NETS[config.model.name](**options, dtype=jnp.dtype(config.model.dtype))


def read(path: str, template: Any) -> Any:
    """Published variables."""
    from facejax.interop import scrfd as weights  # only published weights need it

    return weights.load(path, template)


if __name__ == "__main__":
    app.main(get_config, build)
