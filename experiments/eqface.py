"""EQFace: a quality head learns, without quality labels, how sharp a softmax each face deserves.

    python -m experiments.eqface                                             # rendered faces, two cores
    python -m experiments.eqface --config=mean                               # sets pooled evenly instead
    python -m experiments.eqface --config=recogniser                         # a new recogniser, with the confidences
    python -m experiments.eqface --config=plain                              # the same, every confidence being 1
    python -m experiments.eqface --config=ms1mv2 --config.data.path=DIR --config.recogniser.weights=r100.pth --workdir=A
    python -m experiments.eqface --config=ms1mv2_recogniser --config.data.path=DIR --config.start.workdir=A --workdir=B

The rate of the authors' third step is not told; that of their first, 0.05, is taken.

Published (IJB-C TAR at FAR 1e-5): ArcFace 92.01, trained with the confidences 93.01, and pooled by them 94.93.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from experiments import arcface, sets_common
from experiments import quality_common as common
from facejax.backbones.iresnet import EmbeddingHead
from facejax.metrics import verification
from facejax.ops import vectors
from facejax.quality import eqface
from facejax.train import Experiment, Mean, Report, TrainState, app, map_batches, optim, supervised_step
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "stage": "quality",  # the paper's second step; or "recogniser", its third
    "start": {
        "workdir": "",  # of a run of the second, which the third begins from; empty trains it first, in memory
        "steps": 0,  # of that; 0 is as its preset has it
        "scale": 8.0,  # of its loss: so low that most confidences come out high
    },
    "data": {**common.DATA, "task": "quality"},  # of the face world, to learn from
    "recogniser": common.RECOGNISER,
    "sets": sets_common.SETS,
    "model": {"hidden": 64},
    "loss": {"scale": 16.0, "angle": 0.5, "gamma": 2.0},
    "sure": 0.4,  # first part of the steps, in which every confidence counts as 1: else all would fall to 0
    "weighted": True,
    "optim": {
        "name": "sgd",
        "weight_decay": 5e-4,
        "clip": 0.0,
        "schedule": {"kind": "cosine", "peak": 0.3, "warmup": 0, "boundaries": ()},
    },
    "train": {**common.TRAIN, "steps": 400},
    "eval": {**common.EVAL, "drop": 0.3, "reject": (0.1, 0.2, 0.3)},  # confidences below which pictures, pairs leave
}


def published(peak: float, decay: float, **changes: Any) -> dict[str, Any]:
    """A step of the authors' code on MS1MV2 (5,822,653 pictures): 10 epochs of 5000, the first a warm-up; 8 GPUs."""
    epoch = -(-5_822_653 // 5000)
    return {
        "data": {"source": "path", "image_size": 112, "people": 80_000, "judged": 2000},
        "recogniser": {**common.PUBLISHED, "name": "iresnet100", "dropout": 0.4},
        "model": {"hidden": 512},
        "loss": {"scale": 64.0},
        "optim": {"weight_decay": decay, "schedule": {"kind": "cosine", "peak": peak, "warmup": epoch}},
        "train": {"batch_size": 5000, "steps": 10 * epoch, "devices": 8},
        **changes,
    }


AGAIN = {
    "stage": "recogniser",
    "sure": 0.0,
    "data.task": "hopeless",
    "data.people": 200,
    "optim.clip": 5.0,
    "optim.schedule.peak": 0.1,
}
PRESETS = {
    "synthetic": {},
    "mean": {"weighted": False, "train.steps": 1},  # what learns has no part in it
    "recogniser": AGAIN,
    "plain": {**AGAIN, "sure": 1.0},
    "ms1mv2": published(0.01, 0.0),
    "ms1mv2_recogniser": {
        **published(0.05, 5e-4, stage="recogniser", sure=0.0),
        "recogniser.dtype": "bfloat16",
        "train.microbatches": 5,
    },
}
CLAIM = (
    Claim(
        "eqface.pooling",
        "sets pooled by confidence verify held-out identities better than sets pooled by their mean",
        metric="set_tar_at_far_1e-2",
        better="higher",
        method="synthetic",
        baseline=("mean",),
    ),
    Claim(
        "eqface.recogniser",
        "a recogniser trained with the confidences verifies held-out identities better than one trained without",
        metric="tar_at_far_1e-2",
        better="higher",
        method="recogniser",
        baseline=("plain",),
    ),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires one of the paper's steps.

    "quality", the second: head and class centres learn on a frozen recogniser. "recogniser", the third: a new
    recogniser and its class centres learn with the confidences of both, which are frozen by then.
    """
    if config.stage not in ("quality", "recogniser"):
        raise ValueError(f"stage is {config.stage!r}: expected 'quality' or 'recogniser'")
    trunk, head = arcface.make_backbone(config.recogniser), eqface.QualityHead(config.model.hidden)
    if not hasattr(trunk, "depths"):
        raise ValueError(f"recogniser.name is {config.recogniser.name!r}: expected an IResNet, whose last map is read")
    embedding = EmbeddingHead(trunk.embedding_size)
    size, batch, classes = config.data.image_size, config.train.batch_size, config.data.people
    third = config.stage == "recogniser"
    tx = optim.from_config(config.optim, config.train.steps)
    if third:  # the centres neither decay nor are clipped
        plain = optim.from_config({**config.optim, "weight_decay": 0.0, "clip": 0.0}, config.train.steps)
        tx = optax.multi_transform({"backbone": tx, "centres": plain}, {"backbone": "backbone", "centres": "centres"})
    sure = round(config.sure * config.train.steps)

    def init(rng: jax.Array) -> TrainState:
        variables = trunk.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        frozen = variables if third else common.starting_weights(config, variables)
        flat, _ = look(frozen, jnp.zeros((2, size, size, 3), jnp.uint8))
        scorer = head.init(rng, flat, train=False)
        centres = 0.01 * jax.random.normal(jax.random.fold_in(rng, 1), (classes, trunk.embedding_size))
        if third:
            params = {"backbone": variables["params"], "centres": centres}
            frozen = common.read_later(lambda: beginning(config), {"recogniser": variables, "head": scorer})
            state = {**frozen, "batch_stats": variables["batch_stats"]}
        else:
            params = {"head": scorer["params"], "centres": centres}
            state = {"recogniser": frozen, "batch_stats": scorer["batch_stats"]}
        return TrainState.create(rng, params, tx, model_state=state)

    def look(frozen: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the head takes [N, F], and embeddings [N, D]."""
        maps = trunk.apply(frozen, arcface.preprocess(images), train=False, features=True)
        flat = embedding.apply(frozen, maps[f"stage{len(trunk.depths)}"], train=False, flat=True)
        return lax.stop_gradient(flat.astype(jnp.float32)), lax.stop_gradient(maps["embedding"])

    def seen(params: Any, state: Any, images: jax.Array, train: bool, rng: jax.Array) -> Any:
        """Confidences [N] and embeddings [N, D], and the batch statistics of what learns."""
        flat, features = look(state["recogniser"], images)
        variables = {"params": params["backbone" if third else "head"], "batch_stats": state["batch_stats"]}
        options = {"train": train, "mutable": ["batch_stats"]}
        if not third:
            confidence, updated = head.apply(variables, flat, **options)
            return confidence, features, updated
        features, updated = trunk.apply(variables, arcface.preprocess(images), rngs={"dropout": rng}, **options)
        return head.apply(state["head"], flat, train=False), features, updated

    def loss_fn(params: Any, state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        confidence, features, updated = seen(params, state, batch["image"], True, rng)
        cosine = vectors.unit(features) @ vectors.unit(params["centres"]).T
        used = jnp.where(batch["step"] < sure, 1.0, confidence)
        losses = eqface.confident_loss(cosine, batch["label"], used, **config.loss)
        return losses.mean(), ({**state, **updated}, {"loss": Mean.of(losses), "confidence": Mean.of(confidence)})

    step = supervised_step(loss_fn, tx, microbatches=config.train.microbatches)

    def train_step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        return step(state, {**batch, "step": jnp.full(len(batch["label"]), state.step)}, rng)

    def train_data() -> Any:
        if third:
            beginning(config)
        else:
            common.recogniser(config, config.seed)
        known = common.people(config.data, "train", config.data.task)
        source = common.Rows({"image": known.images, "label": known.people.astype(np.int32)})
        return common.batches(config, source)

    def evaluate(state: TrainState) -> Report:
        def one(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            confidence, features, _ = seen(*variables, images, False, jax.random.key(0))
            return {"score": confidence, "features": features}

        def over(images: np.ndarray) -> dict[str, np.ndarray]:
            return map_batches(one, (state.params, state.model_state), images, config.eval.batch_size)

        found = over(sets_common.sets(config, "test").images.reshape(-1, size, size, 3))
        single = over(common.people(config.data, "test").images)
        weights = found["score"] if config.weighted else np.ones_like(found["score"])
        report = common.together(
            sets_common.assess(config, found["features"], weights, "l1"), common.assess(config, single["score"])
        )
        kept = np.where(weights < config.eval.drop, 0, weights)
        dropped = sets_common.assess(config, found["features"], kept, "l1").metrics
        report.metrics.update({f"kept_{k}": v for k, v in dropped.items() if k.startswith("set_")})
        report.metrics.update(verified(config, single["features"], single["score"]))
        return report

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


def beginning(config: ConfigDict) -> dict[str, Any]:
    """Variables of the frozen "recogniser" and "head" that the second step left: read from its workdir, or trained."""
    settings = get_config()
    for part in ("seed", "data", "recogniser", "model"):
        settings[part] = config[part]
    settings.train.steps = config.start.steps or settings.train.steps
    settings.loss.scale = config.start.scale
    same = ("data.image_size", "recogniser.name", "recogniser.embedding_size", "model.hidden")
    params, state = common.stage_before(config, settings, build, same)
    scorer = {"params": params["head"], "batch_stats": state["batch_stats"]}
    return {"recogniser": state["recogniser"], "head": scorer}


def verified(config: ConfigDict, features: np.ndarray, confidence: np.ndarray) -> dict[str, float]:
    """TAR of all pairs of the people to be judged, and of those of which neither confidence is below a threshold.

    Args:
      config: of the experiment.
      features: [N, D] of `people(config.data, "test")`.
      confidence: [N].

    Returns:
      "tar_at_far_..." and, of each of eval.reject, "tar_at_far_..._from_..." and "pairs_from_...", the share of pairs
      that is left; the former only where both kinds are.
    """
    people, fars, metrics = common.people(config.data, "test").people, (1e-1, 1e-2, 1e-3), {}
    for least in (0.0, *config.eval.reject):
        rows, name = confidence >= least, f"_from_{least}" if least else ""
        if name:
            metrics[f"pairs{name}"] = rows.sum() * (rows.sum() - 1) / (len(rows) * (len(rows) - 1))
        if 1 < len(np.unique(people[rows])) < rows.sum():
            rates = verification.all_pairs_tar(features[rows], people[rows], fars)
            for far, rate in zip(fars, rates, strict=True):
                metrics[f"tar_at_far_{far:.0e}{name}".replace("e-0", "e-")] = float(rate)
    return metrics


if __name__ == "__main__":
    app.main(get_config, build)
