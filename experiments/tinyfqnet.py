"""tinyFQnet: a network of 21 thousand parameters predicts the cosine of a face's embedding to its identity's centre.

python -m experiments.tinyfqnet                                          # rendered faces, two cores
python -m experiments.tinyfqnet --config=perceptual                      # the same network, trained on sharpness
python -m experiments.tinyfqnet --config=ms1mv2 --config.data.path=DIR --config.recogniser.weights=r50.pth
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.data.quality_faces import Faces, QualityFaces
from facejax.data.sources import Rows
from facejax.evaluate.quality import QualityProtocol, measure, min_max
from facejax.quality import factors, tinyfqnet
from facejax.recipes import scorer
from facejax.recipes.recogniser import PUBLISHED, Recogniser
from facejax.train import Experiment, Options, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(QualityFaces()),
    "recogniser": asdict(Recogniser()),
    "label": "centre",  # training target: "centre" (cosine to the identity's centre) or "sharpness"
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 1e-2, "warmup": 0, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=64, steps=600)),
    "eval": asdict(QualityProtocol()),
}
PRESETS = {
    "synthetic": {},
    "perceptual": {"label": "sharpness"},
    "ms1mv2": {
        "data": {"source": "path", "image_size": 112, "people": 80_000, "test_people": 2000},
        "recogniser": PUBLISHED,
        "optim.schedule.peak": 3e-3,
        "train": {"batch_size": 512, "steps": 100_000, "devices": 8},
    },
}
CLAIM = Claim(
    "tinyfqnet.centre_cosine",
    "a tiny network trained on the cosine to the identity's centre ranks face quality better than one trained on "
    "sharpness",
    metric="aoc",
    better="higher",
    method="synthetic",
    baseline=("perceptual",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    if config.label not in ("centre", "sharpness"):
        raise ValueError(f"label is {config.label!r}: expected 'centre' or 'sharpness'")
    data, protocol = QualityFaces(**config.data), QualityProtocol(**config.eval)
    recogniser, net = Recogniser(**config.recogniser), tinyfqnet.TinyFQNet()

    def labels(known: Faces) -> np.ndarray:
        if config.label == "centre":
            features = recogniser.embedder(config.seed, **data.view)(known.images)
            return tinyfqnet.centre_cosine(features, known.people)
        return min_max(np.log(measure(factors.sharpness, known.images) + 1e-6)).astype(np.float32)

    def train_data() -> Iterator[dict[str, np.ndarray]]:
        known = data.load("train")
        targets = labels(known)
        draws = tinyfqnet.balanced_draws(np.random.default_rng(config.seed), targets)
        source = Rows({"image": known.images, "label": targets}, draws)
        return data.batches(source, config.train.batch_size, config.seed)

    return Experiment(
        evaluate=lambda state: scorer.report(net, state, data, protocol, recogniser),
        train_data=train_data,
        **scorer.training(
            net,
            lambda scores, batch: (scores - batch["label"]) ** 2,
            optim.from_config(config.optim, config.train.steps),
            image_size=data.image_size,
            batch_size=config.train.batch_size,
            fields={"label": jax.ShapeDtypeStruct((config.train.batch_size,), jnp.float32)},
            microbatches=config.train.microbatches,
        ),
    )


if __name__ == "__main__":
    app.main(get_config, build)
