"""YOLO5Face: YOLOv5 with five landmarks, a stem block and small pooling windows, for faces.

    python -m experiments.yolo5face                          # faces of rendered scenes, two cores
    python -m experiments.yolo5face --config=focus           # YOLOv5's input in place of the stem block
    python -m experiments.yolo5face --config=l2              # squared errors of landmarks in place of the wing loss
    python -m experiments.yolo5face --config=wider_s --config.data.path=DIR      # 4 GPUs

DIR holds RetinaFace's annotations of WIDER FACE: train/label.txt, train/images, val/label.txt, val/images.
`eval.truth` is the folder of the four .mat files of the official evaluation tools; `--config.eval.protocol=faces`
evaluates without them, by face height.

Published (authors' README), AP in % on WIDER FACE's validation images that fit 640 pixels, easy / medium / hard: n-0.5
90.76 / 88.12 / 73.82; n 93.74 / 91.54 / 80.32; s 94.67 / 92.75 / 83.03; m 95.30 / 93.76 / 85.28; l 95.78 / 94.30 /
86.13.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from facejax.data.detection import DetectionImages
from facejax.detection import yolo5face
from facejax.recipes.detector import Evaluation, detector
from facejax.train import Experiment, Options, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(DetectionImages(augment="mosaic", max_boxes=32)),
    "model": {
        "name": "tiny",  # a key of NETS
        "point_loss": "wing",  # or "l2"
        "point_weight": 0.01,  # weight of the landmarks' loss
        "dtype": "float32",  # of the computation
    },
    "optim": {
        "name": "sgd",
        "momentum": 0.937,
        "nesterov": True,
        "weight_decay": 5e-4,
        "decay": "kernels",
        "schedule": {"kind": "cosine", "peak": 0.02, "end": 0.0, "warmup": 50, "boundaries": ()},
        "ema": 0.0,  # decay of the moving average of the parameters, which is then evaluated
    },
    "train": asdict(Options(batch_size=16, steps=700)),
    "eval": asdict(Evaluation()),
}


def options(name: str) -> dict[str, Any]:
    """The detector's settings for a network; rendered scenes of 128 pixels have anchors of half the size."""
    if name.startswith("tiny"):
        return {"anchors": tuple(tuple((w / 2, h / 2) for w, h in level) for level in yolo5face.ANCHORS)}
    return yolo5face.P6 if name.endswith("6") else {}


def wider(name: str) -> dict[str, Any]:
    """The authors' schedule: 250 epochs of 12,880 images at 64 images a step, three of them warm-up."""
    epoch = 12_880 // 64
    return {
        "data": {"kind": "retinaface", "path": "wider", "image_size": 800, "max_boxes": 256, "workers": 8},
        "model": {"name": name, "point_weight": options(name).get("point_weight", 0.005), "dtype": "bfloat16"},
        "optim": {"schedule": {"peak": 0.01, "end": 0.002, "warmup": 1000}, "ema": 0.9998},
        "train": {"batch_size": 64, "steps": 250 * epoch, "devices": 4, "eval_every": 25 * epoch},
        "eval": {"batch_size": 16, "image_size": 640, "protocol": "wider", "truth": "ground_truth"},
    }


PRESETS = {
    "synthetic": {},
    "focus": {"model.name": "tiny_focus"},
    "l2": {"model": {"point_loss": "l2", "point_weight": 0.005}},
    "wider_n05": wider("n05"),
    "wider_n": wider("n"),
    "wider_s": wider("s"),
    "wider_m": wider("m"),
    "wider_l": wider("l"),
    "wider_s6": wider("s6"),
    "wider_m6": wider("m6"),
    "wider_l6": wider("l6"),
}

CLAIM = (
    Claim(
        "yolo5face.stem",
        "a stem block raises AP above YOLOv5's focus layer of as many multiply-adds",
        metric="ap",
        better="higher",
        method="synthetic",
        baseline=("focus",),
    ),
    Claim(
        "yolo5face.wing",
        "the wing loss gives a lower landmark error than squared errors",
        metric="nme",
        better="lower",
        method="synthetic",
        baseline=("l2",),
    ),
)

TRUNK = functools.partial(yolo5face.ShuffleTrunk, 24, (48, 96, 128), (3, 4, 2))
NETS: dict[str, Callable[..., yolo5face.Net]] = {
    "tiny": functools.partial(yolo5face.Net, TRUNK, (48, 48, 48)),
    "tiny_focus": functools.partial(yolo5face.Net, functools.partial(TRUNK, stem=yolo5face.Focus), (48, 48, 48)),
    "n05": yolo5face.yolo5face_n05,
    "n": yolo5face.yolo5face_n,
    "s": yolo5face.yolo5face_s,
    "m": yolo5face.yolo5face_m,
    "l": yolo5face.yolo5face_l,
    "s6": yolo5face.yolo5face_s6,
    "m6": yolo5face.yolo5face_m6,
    "l6": yolo5face.yolo5face_l6,
}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    name, optimizer = config.model.name, dict(config.optim)
    if name not in NETS:
        raise ValueError(f"model.name is {name!r}: expected one of {', '.join(NETS)}")
    landmarks = {"point_loss": config.model.point_loss, "point_weight": config.model.point_weight}
    ema = optimizer.pop("ema")
    return detector(
        yolo5face.YOLO5Face(NETS[name](dtype=jnp.dtype(config.model.dtype)), **{**options(name), **landmarks}),
        DetectionImages(**config.data),
        optim.from_config(optimizer, config.train.steps),
        Options(**config.train),
        Evaluation(**config.eval),
        seed=config.seed,
        ema=ema,
    )


if __name__ == "__main__":
    app.main(get_config, build)
