"""SDD-FIQA: labels from how far a face's similarities to its person lie from those to strangers, and a net that learns.

    python -m experiments.sdd_fiqa                                           # rendered faces, two cores
    python -m experiments.sdd_fiqa --config=mated                            # similarities to the own person only
    python -m experiments.sdd_fiqa --config=ms1m --config.data.path=DIR --config.recogniser.weights=r50.pth \
        --config.model.weights=068.ckpt                                      # a MobileFaceNet to begin with
    python -m experiments.sdd_fiqa --config=ms1m_r50 --config.data.path=DIR --config.recogniser.weights=r50.pth

Published (AOC, mean over three FMRs; matcher ResNet-50): LFW 0.8149, Adience 0.5996, IJB-C 0.7329.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import quality_common as common
from facejax.metrics import quality
from facejax.quality import sdd_fiqa, tinyfqnet
from facejax.train import Experiment, Report, TrainState, app
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": common.DATA,
    "recogniser": common.RECOGNISER,
    "labels": {"samples": 24, "rounds": 12, "mated_only": False},
    "model": {"name": "tiny", "weights": ""},  # weights: a recogniser whose trunk "mobilefacenet" begins with
    "optim": {
        "name": "adam",
        "b2": 0.99,
        "eps": 1e-6,
        "weight_decay": 5e-4,
        "schedule": {"kind": "step", "peak": 1e-2, "boundaries": (0.5, 0.8)},
    },
    "train": {**common.TRAIN, "steps": 600},  # a third of them to reach the labels' mean, 60 of 100
    "eval": common.EVAL,
}
FMRS = (1e-2, 1e-3, 1e-4)
"""Of the paper's AOC, a mean over three."""
IMAGES = 3_800_000
"""Of MS1M as the authors refined it (5000 in a batch, 20 epochs)."""
TRAINING = {
    "optim": {"schedule": {"kind": "step", "peak": 1e-4, "boundaries": (0.25, 0.5)}},
    "train": {"batch_size": 5000, "steps": 20 * IMAGES // 5000, "devices": 8},
}
PRESETS = {
    "synthetic": {},
    "mated": {"labels.mated_only": True},
    "ms1m": {
        "data": {"source": "path", "image_size": 112, "people": 80_000, "judged": 2000},
        "recogniser": common.PUBLISHED,
        "model": {"name": "mobilefacenet"},
        **TRAINING,
    },
    "ms1m_r50": {
        "data": {"source": "path", "image_size": 112, "people": 80_000, "judged": 2000},
        "recogniser": common.PUBLISHED,
        "model": {"name": "resnet50"},
        **TRAINING,
    },
}
CLAIM = Claim(
    "sdd_fiqa.impostors",
    "labels from genuine and impostor similarities rank face quality better than labels from genuine similarities "
    "alone",
    metric="aoc_mean",
    better="higher",
    method="synthetic",
    baseline=("mated",),
    seeds=8,
)
NETS = {
    "tiny": tinyfqnet.TinyFQNet,
    "mobilefacenet": sdd_fiqa.QualityMobileFaceNet,
    "resnet50": sdd_fiqa.QualityResNet,
}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    if config.model.name not in NETS:
        raise ValueError(f"model.name is {config.model.name!r}: expected one of {', '.join(NETS)}")
    if config.model.weights and config.model.name != "mobilefacenet":
        raise ValueError(f"model.weights for {config.model.name!r}: expected model.name 'mobilefacenet'")

    def source() -> Any:
        known = common.people(config.data, "train")
        features = common.recogniser(config, config.seed)(known.images)
        labels = sdd_fiqa.pseudo_labels(jax.random.key(config.seed), features, known.people, **config.labels)
        return common.Rows({"image": known.images, "label": labels})

    def start(variables: Any) -> Any:
        trunk = {part: tree["trunk"] for part, tree in variables.items()}
        trunk = common.read_later(lambda: read_trunk(config.model.weights, trunk), trunk)
        return {part: {**tree, "trunk": trunk[part]} for part, tree in variables.items()}

    trained = common.regression(
        config,
        NETS[config.model.name](),
        lambda scores, batch: optax.huber_loss(scores, batch["label"]),
        source,
        {"label": jax.ShapeDtypeStruct((config.train.batch_size,), jnp.float32)},
        start=start if config.model.weights else None,
    )

    def evaluate(state: TrainState) -> Report:
        report = trained.evaluate(state)
        if "aoc" in report.metrics:  # else nothing is wrong to begin with
            report.metrics["aoc_mean"] = mean_area(config, report.arrays["scores"])
        return report

    return dataclasses.replace(trained, evaluate=evaluate)


def mean_area(config: ConfigDict, scores: np.ndarray) -> float:
    """AOC of a score [N] of the pictures to be judged, the mean over `FMRS`."""
    compared = common.pairs(config, common.people(config.data, "test"))
    low = quality.pair_quality(scores[compared.first], scores[compared.second])
    curves = [quality.fnmr_discard_curve(compared.distance, compared.same, low, fmr) for fmr in FMRS]
    return float(np.mean([quality.area_over_curve(curve) for curve in curves]))


def read_trunk(path: str, trunk: Any) -> Any:
    """A published MobileFaceNet's variables up to its last map, of the shapes of `trunk`."""
    from facejax.interop import arcface_torch, names, pytorch  # only published weights need it

    tensors = {name: x for name, x in pytorch.read_state_dict(path).items() if not name.startswith("linear")}
    return names.convert(tensors, arcface_torch.mobilefacenet_1x_rules(), trunk)


if __name__ == "__main__":
    app.main(get_config, build)
