"""EQFace: a quality head learns, without quality labels, how sharp a softmax each face deserves.

    python -m experiments.eqface                                             # rendered faces, two cores
    python -m experiments.eqface --config=mean                               # sets pooled evenly instead
    python -m experiments.eqface --config=ms1mv2 --config.data.path=DIR --config.recogniser.weights=r100.pth

Published (IJB-C TAR at FAR 1e-5): ArcFace 92.01, trained with the confidences 93.01, and pooled by them 94.93.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from experiments import arcface, sets_common
from experiments import quality_common as common
from facejax.backbones.iresnet import EmbeddingHead
from facejax.quality import eqface
from facejax.recognition.arcface import normalize
from facejax.train import Experiment, Mean, Report, TrainState, app, map_batches, optim, supervised_step
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": common.DATA,
    "recogniser": common.RECOGNISER,
    "sets": sets_common.SETS,
    "model": {"hidden": 64},
    "loss": {"scale": 16.0, "angle": 0.5, "gamma": 2.0},
    "sure": 0.4,  # first part of the steps, in which every confidence counts as 1: else all would fall to 0
    "weighted": True,
    "optim": {
        "name": "sgd",
        "weight_decay": 5e-4,
        "schedule": {"kind": "cosine", "peak": 0.3, "warmup": 0, "boundaries": ()},
    },
    "train": {**common.TRAIN, "steps": 400},
    "eval": common.EVAL,
}
PRESETS = {
    "synthetic": {},
    "mean": {"weighted": False, "train.steps": 1},  # what learns has no part in it
    "ms1mv2": {
        "data": {"source": "path", "image_size": 112, "people": 80_000, "judged": 2000},
        "recogniser": {**common.PUBLISHED, "name": "iresnet100", "dropout": 0.4},
        "model": {"hidden": 512},
        "loss": {"scale": 64.0},
        "optim": {"weight_decay": 0.0, "schedule": {"kind": "cosine", "peak": 0.01, "warmup": 1165}},
        "train": {"batch_size": 5000, "steps": 11_650, "devices": 8},
    },
}
CLAIM = Claim(
    "sets pooled by the confidence verify unseen people better than their mean",
    metric="set_tar_at_far_1e-2",
    better="higher",
    method="synthetic",
    baseline=("mean",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the second of the paper's steps: head and class centres learn on a frozen recogniser."""
    trunk, head = arcface.make_backbone(config.recogniser), eqface.QualityHead(config.model.hidden)
    if not hasattr(trunk, "depths"):
        raise ValueError(f"recogniser.name is {config.recogniser.name!r}: expected an IResNet, whose last map is read")
    embedding = EmbeddingHead(trunk.embedding_size)
    size, batch, classes = config.data.image_size, config.train.batch_size, config.data.people
    tx = optim.from_config(config.optim, config.train.steps)
    sure = round(config.sure * config.train.steps)

    def init(rng: jax.Array) -> TrainState:
        frozen = trunk.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        frozen = common.starting_weights(config, frozen)
        flat, _ = look(frozen, jnp.zeros((2, size, size, 3), jnp.uint8))
        variables = head.init(rng, flat, train=False)
        centres = 0.01 * jax.random.normal(jax.random.fold_in(rng, 1), (classes, trunk.embedding_size))
        state = {"recogniser": frozen, "batch_stats": variables["batch_stats"]}
        return TrainState.create(rng, {"head": variables["params"], "centres": centres}, tx, model_state=state)

    def look(frozen: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the head takes [N, F], and embeddings [N, D]."""
        maps = trunk.apply(frozen, arcface.preprocess(images), train=False, features=True)
        flat = embedding.apply(frozen, maps[f"stage{len(trunk.depths)}"], train=False, flat=True)
        return lax.stop_gradient(flat.astype(jnp.float32)), lax.stop_gradient(maps["embedding"])

    def loss_fn(params: Any, state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        del rng
        flat, features = look(state["recogniser"], batch["image"])
        variables = {"params": params["head"], "batch_stats": state["batch_stats"]}
        confidence, updated = head.apply(variables, flat, train=True, mutable=["batch_stats"])
        cosine = normalize(features) @ normalize(params["centres"]).T
        used = jnp.where(batch["step"] < sure, 1.0, confidence)
        losses = eqface.confident_loss(cosine, batch["label"], used, **config.loss)
        return losses.mean(), ({**state, **updated}, {"loss": Mean.of(losses), "confidence": Mean.of(confidence)})

    step = supervised_step(loss_fn, tx, microbatches=config.train.microbatches)

    def train_step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        return step(state, {**batch, "step": jnp.full(len(batch["label"]), state.step)}, rng)

    def train_data() -> Any:
        common.recogniser(config, config.seed)
        known = common.people(config.data, "train")
        source = common.Rows({"image": known.images, "label": known.people.astype(np.int32)})
        return common.batches(config, source)

    def evaluate(state: TrainState) -> Report:
        def one(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            params, rest = variables
            flat, features = look(rest["recogniser"], images)
            confidence = head.apply({"params": params["head"], "batch_stats": rest["batch_stats"]}, flat, train=False)
            return {"score": confidence, "features": features}

        def over(images: np.ndarray) -> dict[str, np.ndarray]:
            return map_batches(one, (state.params, state.model_state), images, config.eval.batch_size)

        found = over(sets_common.sets(config, "test").images.reshape(-1, size, size, 3))
        weights = found["score"] if config.weighted else np.ones_like(found["score"])
        pooled = sets_common.assess(config, found["features"], weights, "l1")
        single = common.assess(config, over(common.people(config.data, "test").images)["score"])
        return common.together(pooled, single)

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=train_step,
        train_data=train_data,
        batch={
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
    )


if __name__ == "__main__":
    app.main(get_config, build)
