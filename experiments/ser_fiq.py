"""SER-FIQ: quality is the stability of a face's embedding under dropout in the recogniser, which needs no training.

    python -m experiments.ser_fiq                                            # rendered faces, two cores
    python -m experiments.ser_fiq --config=norm                              # the length of the embedding instead
    python -m experiments.ser_fiq --config=on_top                            # for a recogniser without dropout
    python -m experiments.ser_fiq --config=arcface_r100 --config.data.path=DIR --config.recogniser.weights=r100.pth

Published AOC (as the authors of SDD-FIQA ran it): LFW 0.6604, Adience 0.4977, IJB-C 0.6075.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from facejax.backbones.iresnet import EmbeddingHead
from facejax.data import normalize, pipeline
from facejax.data.quality_faces import QualityFaces
from facejax.data.sources import Images
from facejax.evaluate.embedder import Embedder
from facejax.evaluate.quality import QualityProtocol, baseline_scores
from facejax.quality import ser_fiq
from facejax.recipes import on_top
from facejax.recipes.recogniser import PUBLISHED, Recogniser
from facejax.train import Experiment, Options, Report, TrainState, app, map_batches, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(QualityFaces()),
    "recogniser": asdict(Recogniser()),
    "method": "same_model",  # "same_model", "on_top" (a network trained on embeddings), "norm", "sharpness", "random"
    "masks": 100,  # dropout masks of an image
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "constant", "peak": 1e-3, "warmup": 0, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=256, steps=2000)),
    "eval": asdict(QualityProtocol()),
}
PRESETS = {
    "synthetic": {},
    "on_top": {"method": "on_top", "recogniser.dropout": 0.0},
    "norm": {"method": "norm"},
    "sharpness": {"method": "sharpness"},
    "arcface_r100": {
        "data": {"source": "path", "image_size": 112, "people": 1, "test_people": 2000},
        "recogniser": {**PUBLISHED, "name": "iresnet100", "dropout": 0.4},
    },
}
CLAIM = Claim(
    "ser_fiq.robustness",
    "the embedding's robustness under dropout ranks face quality better than the embedding's norm or sharpness",
    metric="aoc",
    better="higher",
    method="synthetic",
    baseline=("norm", "sharpness"),
)
METHODS = ("same_model", "on_top", "norm", "sharpness", "random")


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run; only the network of the method "on_top" is trained."""
    if config.method not in METHODS:
        raise ValueError(f"method is {config.method!r}: expected one of {', '.join(map(repr, METHODS))}")
    data, protocol = QualityFaces(**config.data), QualityProtocol(**config.eval)
    recogniser, seed, size = Recogniser(**config.recogniser), config.seed, config.train.batch_size
    net = ser_fiq.OnTop(data.people)

    def embedder() -> Embedder:
        return recogniser.embedder(seed, **data.view)

    def scores(state: TrainState | None, images: np.ndarray | Images) -> np.ndarray:
        if config.method == "same_model":
            return same_model(embedder(), images, masks=config.masks, seed=seed, batch_size=protocol.batch_size)
        features = embedder()(images, protocol.batch_size)
        if config.method == "norm":
            return np.linalg.norm(features, axis=1)
        return on_top.scores(net, state.params, features, masks=config.masks, seed=seed, batch_size=protocol.batch_size)

    def evaluate(state: TrainState | None) -> Report:
        test = data.load("test")
        plain = config.method in ("random", "sharpness")
        found = baseline_scores(test, seed)[config.method] if plain else scores(state, test.images)
        return protocol.assess(found, test, recogniser.evaluator(**data.view))

    def train_data() -> Iterator[dict[str, np.ndarray]]:
        known = data.load("train")
        features = embedder()(known.images, protocol.batch_size)
        source = on_top.examples(features, known.people, size)
        return data.batches(source, size, seed, pipeline.stacked_batch)

    if config.method != "on_top":
        return Experiment(evaluate)
    tx = optim.from_config(config.optim, config.train.steps)
    options = {"batch_size": size, "microbatches": config.train.microbatches}
    parts = on_top.training(net, tx, embedding_size=recogniser.embedding_size, **options)
    return Experiment(evaluate=evaluate, train_data=train_data, **parts)


def same_model(
    recogniser: Embedder, images: np.ndarray | Images, *, masks: int, seed: int, batch_size: int
) -> np.ndarray:
    """Scores [N] from the recogniser's own dropout; its trunk is computed once for all masks."""
    net = recogniser.net
    if not getattr(net, "dropout", 0.0):
        raise ValueError("recogniser.dropout is 0 or not of this network: expected above 0, or method 'on_top'")
    head = EmbeddingHead(net.embedding_size, net.dropout)

    def one(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
        maps = net.apply(variables, normalize.symmetric(batch), train=False, features=True)
        last = maps[f"stage{len(net.depths)}"]

        def embed(key: jax.Array) -> jax.Array:
            return head.apply(variables, last, train=False, drop=True, rngs={"dropout": key})

        return {"score": ser_fiq.robustness(ser_fiq.stochastic_embeddings(embed, jax.random.key(seed), masks))}

    return map_batches(one, recogniser.variables, images, batch_size)["score"]


if __name__ == "__main__":
    app.main(get_config, build)
