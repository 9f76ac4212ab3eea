"""SER-FIQ: quality is how little a face's embedding moves as parts of the recogniser are dropped. Nothing is trained.

    python -m experiments.ser_fiq                                            # rendered faces, two cores
    python -m experiments.ser_fiq --config=norm                              # the length of the embedding instead
    python -m experiments.ser_fiq --config=on_top                            # for a recogniser without dropout
    python -m experiments.ser_fiq --config=arcface_r100 --config.data.path=DIR --config.recogniser.weights=r100.pth

Published AOC (as the authors of SDD-FIQA ran it): LFW 0.6604, Adience 0.4977, IJB-C 0.6075.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from experiments import arcface
from experiments import quality_common as common
from facejax.backbones.iresnet import EmbeddingHead
from facejax.quality import ser_fiq
from facejax.train import Experiment, Report, app, map_batches
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": common.DATA,
    "recogniser": common.RECOGNISER,
    "method": "same_model",  # "on_top": a small network on the embeddings; or a baseline: "norm", "sharpness", "random"
    "masks": 100,
    "on_top": {"steps": 2000, "learning_rate": 1e-3, "batch_size": 256},
    "train": common.TRAIN,
    "eval": common.EVAL,
}
PRESETS = {
    "synthetic": {},
    "on_top": {"method": "on_top", "recogniser.dropout": 0.0},
    "norm": {"method": "norm"},
    "sharpness": {"method": "sharpness"},
    "arcface_r100": {
        "data": {"source": "path", "image_size": 112, "people": 1, "judged": 2000},
        "recogniser": {**common.PUBLISHED, "name": "iresnet100", "dropout": 0.4},
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


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""

    def evaluate(_: Any) -> Report:
        test = common.people(config.data, "test")
        if config.method in ("random", "sharpness"):
            return common.assess(config, common.floors(test, config.seed)[config.method])
        recogniser = common.recogniser(config, config.seed)
        if config.method == "norm":
            scores = np.linalg.norm(recogniser(test.images, config.eval.batch_size), axis=1)
        elif config.method == "same_model":
            scores = same_model(config, recogniser, test.images)
        elif config.method == "on_top":
            known = common.people(config.data, "train")
            found = [recogniser(images, config.eval.batch_size) for images in (known.images, test.images)]
            scores = on_top(config, found[0], known.people, found[1])
        else:
            raise ValueError(
                f"method is {config.method!r}: expected 'same_model', 'on_top', 'norm', 'sharpness' or 'random'"
            )
        return common.assess(config, scores)

    return Experiment(evaluate)


def same_model(config: ConfigDict, recogniser: common.Recogniser, images: np.ndarray) -> np.ndarray:
    """Scores [N] from the recogniser's own dropout; its trunk is computed once for all masks."""
    net = recogniser.net
    if not getattr(net, "dropout", 0.0):
        raise ValueError(f"recogniser.dropout of {config.recogniser.name} is 0: expected above 0, or method 'on_top'")
    head = EmbeddingHead(net.embedding_size, net.dropout)

    def one(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
        maps = net.apply(variables, arcface.preprocess(batch), train=False, features=True)
        last = maps[f"stage{len(net.depths)}"]

        def embed(key: jax.Array) -> jax.Array:
            return head.apply(variables, last, train=False, drop=True, rngs={"dropout": key})

        rng = jax.random.key(config.seed)
        return {"score": ser_fiq.robustness(ser_fiq.stochastic_embeddings(embed, rng, config.masks))}

    return map_batches(one, recogniser.variables, images, config.eval.batch_size)["score"]


def on_top(config: ConfigDict, features: np.ndarray, people: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Scores [M] of embeddings [M, D] from the dropout of a small network, trained on others [N, D] of `people` [N]."""
    features, labels = jnp.asarray(features), jnp.asarray(people)
    net, settings = ser_fiq.OnTop(int(people.max()) + 1), config.on_top
    tx = optax.adam(settings.learning_rate)

    def loss(params: Any, rows: jax.Array, rng: jax.Array) -> jax.Array:
        scores = net.apply({"params": params}, features[rows], drop=True, classify=True, rngs={"dropout": rng})
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels[rows]).mean()

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, opt = carry
        draw, drop = jax.random.split(key)
        grads = jax.grad(loss)(params, jax.random.randint(draw, (settings.batch_size,), 0, len(labels)), drop)
        updates, opt = tx.update(grads, opt)
        return (optax.apply_updates(params, updates), opt), None

    def fit(rng: jax.Array) -> Any:
        params = net.init(rng, features[:1], drop=False, classify=True)["params"]
        return lax.scan(step, (params, tx.init(params)), jax.random.split(rng, settings.steps))[0][0]

    rng = jax.random.key(config.seed)
    params = jax.jit(fit)(rng)

    def one(params: Any, batch: jax.Array) -> dict[str, jax.Array]:
        def embed(key: jax.Array) -> jax.Array:
            return net.apply({"params": params}, batch, drop=True, rngs={"dropout": key})

        return {"score": ser_fiq.robustness(ser_fiq.stochastic_embeddings(embed, rng, config.masks))}

    return map_batches(one, params, unseen, config.eval.batch_size)["score"]


if __name__ == "__main__":
    app.main(get_config, build)
