"""SDD-FIQA: labels from the distance of genuine and impostor similarities of a face, and a network that learns them.

    python -m experiments.sdd_fiqa                                           # rendered faces, two cores
    python -m experiments.sdd_fiqa --config=mated                            # genuine similarities only
    python -m experiments.sdd_fiqa --config=ms1m --config.data.path=DIR --config.recogniser.weights=r50.pth \
        --config.model.weights=068.ckpt                                      # starts from a MobileFaceNet
    python -m experiments.sdd_fiqa --config=ms1m_r50 --config.data.path=DIR --config.recogniser.weights=r50.pth

Published (AOC, mean over three FMRs; matcher ResNet-50): LFW 0.8149, Adience 0.5996, IJB-C 0.7329.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.data.quality_faces import QualityFaces
from facejax.data.sources import Rows
from facejax.evaluate.quality import QualityProtocol
from facejax.metrics import quality
from facejax.quality import sdd_fiqa, tinyfqnet
from facejax.recipes import scorer
from facejax.recipes.recogniser import PUBLISHED, Recogniser
from facejax.train import Experiment, Options, Report, TrainState, app, optim, warm_start
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(QualityFaces()),
    "recogniser": asdict(Recogniser()),
    "labels": {
        "samples": 24,  # genuine and as many impostor similarities of an image in a round
        "rounds": 12,  # that a label is the mean of
        "mated_only": False,  # mean genuine similarity in place of the distance
    },
    "model": {
        "name": "tiny",  # of `NETS`
        "weights": "",  # a PyTorch recogniser, whose trunk "mobilefacenet" starts from
    },
    "optim": {
        "name": "adam",
        "b2": 0.99,
        "eps": 1e-6,
        "weight_decay": 5e-4,
        "schedule": {"kind": "step", "peak": 1e-2, "boundaries": (0.5, 0.8)},
    },
    "train": asdict(Options(batch_size=64, steps=600)),  # a third of the steps raises the mean score to that of labels
    "eval": asdict(QualityProtocol()),
}
FMRS = (1e-2, 1e-3, 1e-4)
"""Of the paper's AOC, a mean over three."""
IMAGES = 3_800_000
"""Of MS1M as the authors cleaned it (batches of 5000, 20 epochs)."""
TRAINING = {
    "data": {"source": "path", "image_size": 112, "people": 80_000, "test_people": 2000},
    "recogniser": PUBLISHED,
    "optim": {"schedule": {"kind": "step", "peak": 1e-4, "boundaries": (0.25, 0.5)}},
    "train": {"batch_size": 5000, "steps": 20 * IMAGES // 5000, "devices": 8},
}
PRESETS = {
    "synthetic": {},
    "mated": {"labels.mated_only": True},
    "ms1m": {"model": {"name": "mobilefacenet"}, **TRAINING},
    "ms1m_r50": {"model": {"name": "resnet50"}, **TRAINING},
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
    data, protocol = QualityFaces(**config.data), QualityProtocol(**config.eval)
    recogniser, net, size = Recogniser(**config.recogniser), NETS[config.model.name](), data.image_size

    def train_data() -> Iterator[dict[str, np.ndarray]]:
        known = data.load("train")
        features = recogniser.embedder(config.seed, **data.view)(known.images)
        labels = sdd_fiqa.pseudo_labels(jax.random.key(config.seed), features, known.people, **config.labels)
        source = Rows({"image": known.images, "label": labels})
        return data.batches(source, config.train.batch_size, config.seed)

    def prepare() -> Any:
        trunk = {part: tree["trunk"] for part, tree in scorer.shapes(net, size).items()}
        return read_trunk(config.model.weights, trunk)

    def begin(variables: Any, start: Any) -> Any:
        trunk = warm_start.taken(start, {part: tree["trunk"] for part, tree in variables.items()})
        return {part: {**tree, "trunk": trunk[part]} for part, tree in variables.items()}

    def evaluate(state: TrainState) -> Report:
        report = scorer.report(net, state, data, protocol, recogniser)
        if "aoc" in report.metrics:  # undefined where no genuine pair is rejected to begin with
            test = data.load("test")
            pairs = protocol.compare(recogniser.evaluator(**data.view)(test.images, protocol.batch_size), test.people)
            scores = report.arrays["scores"]
            low = quality.pair_quality(scores[pairs.first], scores[pairs.second])
            curves = (quality.fnmr_discard_curve(pairs.distance, pairs.same, low, fmr) for fmr in FMRS)
            report.metrics["aoc_mean"] = float(np.mean([quality.area_over_curve(curve) for curve in curves]))
        return report

    return Experiment(
        evaluate=evaluate,
        train_data=train_data,
        **scorer.training(
            net,
            lambda scores, batch: optax.huber_loss(scores, batch["label"]),
            optim.from_config(config.optim, config.train.steps),
            image_size=size,
            batch_size=config.train.batch_size,
            fields={"label": jax.ShapeDtypeStruct((config.train.batch_size,), jnp.float32)},
            microbatches=config.train.microbatches,
            **({"prepare": prepare, "begin": begin} if config.model.weights else {}),
        ),
    )


def read_trunk(path: str, trunk: Any) -> Any:
    """A published MobileFaceNet's variables up to its last map, of the shapes of `trunk`."""
    from facejax.interop import arcface_torch, names, pytorch  # only published weights need it

    tensors = {name: x for name, x in pytorch.read_weights(path).items() if not name.startswith("linear")}
    return names.convert(tensors, arcface_torch.mobilefacenet_1x_rules(), trunk)


if __name__ == "__main__":
    app.main(get_config, build)
