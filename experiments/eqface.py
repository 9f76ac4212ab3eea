"""EQFace: a quality head learns, without quality labels, a confidence that scales the logits of each face's softmax.

    python -m experiments.eqface                                             # rendered faces, two cores
    python -m experiments.eqface --config=mean                               # sets pooled by the plain mean
    python -m experiments.eqface --config=recogniser                         # a new recogniser, with the confidences
    python -m experiments.eqface --config=plain                              # the same, every confidence being 1
    python -m experiments.eqface --config=ms1mv2 --config.data.path=DIR --config.recogniser.weights=r100.pth --workdir=A
    python -m experiments.eqface --config=ms1mv2_recogniser --config.data.path=DIR --config.start.workdir=A --workdir=B

The learning rate of the authors' third step is not known; that of their first, 0.05, is used.

Published (IJB-C TAR at FAR 1e-5): ArcFace 92.01, trained with the confidences 93.01, and pooled by them 94.93.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.backbones.iresnet import EmbeddingHead
from facejax.data import normalize
from facejax.data.quality_faces import QualityFaces
from facejax.data.sources import Images, Rows
from facejax.evaluate import sets as set_evaluation
from facejax.evaluate.quality import QualityProtocol
from facejax.evaluate.verification import tar_metrics
from facejax.ops import vectors
from facejax.quality import eqface
from facejax.recipes.recogniser import PUBLISHED, Recogniser
from facejax.recipes.set_pooling import SetOptions
from facejax.train import (
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    map_batches,
    optim,
    supervised_step,
    warm_start,
)
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "stage": "quality",  # the paper's second step; or "recogniser", its third
    "start": {
        "workdir": "",  # finished run of the second step that the third starts from; empty trains it first, in memory
        "steps": 0,  # of that training; 0 takes the default of the second step
        "scale": 8.0,  # of its loss: low, so that most confidences come out high
    },
    "data": asdict(QualityFaces()),
    "task": "quality",  # of the face world, to train on
    "recogniser": asdict(Recogniser()),
    "sets": asdict(SetOptions()),
    "model": {
        "hidden": 64,  # width of the quality head
    },
    "loss": {
        "scale": 16.0,  # s, of the cosines
        "angle": 0.5,  # m, radians
        "gamma": 2.0,  # exponent of the focal factor
    },
    "confidence_warmup": 0.4,  # first share of the steps, in which every confidence counts as 1: else all fall to 0
    "weighted": True,  # False pools test sets by the plain mean
    "optim": {
        "name": "sgd",
        "weight_decay": 5e-4,
        "clip": 0.0,
        "schedule": {"kind": "cosine", "peak": 0.3, "warmup": 0, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=64, steps=400)),
    "eval": {
        **asdict(QualityProtocol()),
        "drop": 0.3,  # confidence below which an image is left out of its set
        "reject": (0.1, 0.2, 0.3),  # confidences below which pairs of an image are rejected, one after the other
    },
}


def published(peak: float, decay: float, **changes: Any) -> dict[str, Any]:
    """A step of the authors' code on MS1MV2 (5,822,653 images): 10 epochs, batches of 5000, the first a warm-up."""
    epoch = -(-5_822_653 // 5000)
    return {
        "data": {"source": "path", "image_size": 112, "people": 80_000, "test_people": 2000},
        "recogniser": {**PUBLISHED, "name": "iresnet100", "dropout": 0.4},
        "model": {"hidden": 512},
        "loss": {"scale": 64.0},
        "optim": {"weight_decay": decay, "schedule": {"kind": "cosine", "peak": peak, "warmup": epoch}},
        "train": {"batch_size": 5000, "steps": 10 * epoch, "devices": 8},
        **changes,
    }


THIRD = {
    "stage": "recogniser",
    "confidence_warmup": 0.0,
    "task": "hopeless",
    "data.people": 200,
    "optim.clip": 5.0,
    "optim.schedule.peak": 0.1,
}
PRESETS = {
    "synthetic": {},
    "mean": {"weighted": False, "train.steps": 1},  # the trained part has no influence
    "recogniser": THIRD,
    "plain": {**THIRD, "confidence_warmup": 1.0},
    "ms1mv2": published(0.01, 0.0),
    "ms1mv2_recogniser": {
        **published(0.05, 5e-4, stage="recogniser", confidence_warmup=0.0),
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

    "quality", the second: head and class centres are trained on a frozen recogniser. "recogniser", the third: a new
    recogniser and its class centres are trained with the confidences of both, which are frozen.
    """
    if config.stage not in ("quality", "recogniser"):
        raise ValueError(f"stage is {config.stage!r}: expected 'quality' or 'recogniser'")
    evaluation = config.eval.to_dict()
    drop, reject = evaluation.pop("drop"), evaluation.pop("reject")
    data, protocol, sets = QualityFaces(**config.data), QualityProtocol(**evaluation), SetOptions(**config.sets)
    recogniser, head = Recogniser(**config.recogniser), eqface.QualityHead(config.model.hidden)
    trunk = recogniser.backbone()
    if not hasattr(trunk, "depths"):
        raise ValueError(f"recogniser.name is {recogniser.name!r}: expected an IResNet, whose last map is read")
    embedding = EmbeddingHead(trunk.embedding_size)
    size, batch, third = data.image_size, config.train.batch_size, config.stage == "recogniser"
    tx = optim.from_config(config.optim, config.train.steps)
    if third:  # the centres neither decay nor are clipped
        plain = optim.from_config({**config.optim, "weight_decay": 0.0, "clip": 0.0}, config.train.steps)
        tx = optax.multi_transform({"backbone": tx, "centres": plain}, {"backbone": "backbone", "centres": "centres"})
    warmup = round(config.confidence_warmup * config.train.steps)

    def prepare() -> Any:
        return second_step(config) if third else recogniser.embedder(config.seed, **data.view).variables

    def init(rng: jax.Array, start: Any) -> TrainState:
        variables = trunk.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        flat, _ = features_of(variables, jnp.zeros((2, size, size, 3), jnp.uint8))
        scorer = head.init(rng, flat, train=False)
        centres = 0.01 * jax.random.normal(jax.random.fold_in(rng, 1), (data.people, trunk.embedding_size))
        if third:
            params = {"backbone": variables["params"], "centres": centres}
            frozen = warm_start.taken(start, {"recogniser": variables, "head": scorer})
            state = {**frozen, "batch_stats": variables["batch_stats"]}
        else:
            params = {"head": scorer["params"], "centres": centres}
            state = {"recogniser": warm_start.taken(start, variables), "batch_stats": scorer["batch_stats"]}
        return TrainState.create(rng, params, tx, model_state=state)

    def features_of(frozen: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Input of the head [N, F] and embeddings [N, D] of the frozen recogniser."""
        maps = trunk.apply(frozen, normalize.symmetric(images), train=False, features=True)
        flat = embedding.apply(frozen, maps[f"stage{len(trunk.depths)}"], train=False, flat=True)
        return lax.stop_gradient(flat.astype(jnp.float32)), lax.stop_gradient(maps["embedding"])

    def apply(params: Any, state: Any, images: jax.Array, train: bool, rng: jax.Array) -> Any:
        """Confidences [N], embeddings [N, D], and the batch statistics of the trained part."""
        flat, features = features_of(state["recogniser"], images)
        variables = {"params": params["backbone" if third else "head"], "batch_stats": state["batch_stats"]}
        options = {"train": train, "mutable": ["batch_stats"]}
        if not third:
            confidence, updated = head.apply(variables, flat, **options)
            return confidence, features, updated
        features, updated = trunk.apply(variables, normalize.symmetric(images), rngs={"dropout": rng}, **options)
        return head.apply(state["head"], flat, train=False), features, updated

    def loss_fn(params: Any, state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        confidence, features, updated = apply(params, state, batch["image"], True, rng)
        cosine = vectors.unit(features) @ vectors.unit(params["centres"]).T
        used = jnp.where(batch["step"] < warmup, 1.0, confidence)
        losses = eqface.confident_loss(cosine, batch["label"], used, **config.loss)
        return losses.mean(), ({**state, **updated}, {"loss": Mean.of(losses), "confidence": Mean.of(confidence)})

    step = supervised_step(loss_fn, tx, microbatches=config.train.microbatches)

    def train_step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        return step(state, {**batch, "step": jnp.full(len(batch["label"]), state.step)}, rng)

    def train_data() -> Iterator[dict[str, np.ndarray]]:
        known = data.load("train", config.task)
        source = Rows({"image": known.images, "label": known.people.astype(np.int32)})
        return data.batches(source, batch, config.seed)

    def evaluate(state: TrainState) -> Report:
        def one(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
            confidence, features, _ = apply(*variables, images, False, jax.random.key(0))
            return {"score": confidence, "features": features}

        def over(images: np.ndarray | Images) -> dict[str, np.ndarray]:
            return map_batches(one, (state.params, state.model_state), images, protocol.batch_size)

        test_sets, test = data.sets("test", sets.size), data.load("test")
        found, single = over(test_sets.flat), over(test.images)
        weights = found["score"] if config.weighted else np.ones_like(found["score"])
        pooled = set_evaluation.assess(found["features"], weights, "l1", test_sets)
        report = pooled | protocol.assess(single["score"], test, recogniser.evaluator(**data.view))
        kept = np.where(weights < drop, 0, weights)
        dropped = set_evaluation.assess(found["features"], kept, "l1", test_sets).metrics
        report.metrics.update({f"kept_{k}": v for k, v in dropped.items() if k.startswith("set_")})
        report.metrics.update(reject_metrics(single["features"], test.people, single["score"], reject))
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
        prepare=prepare,
    )


def second_step(config: ConfigDict) -> dict[str, Any]:
    """Variables of the frozen "recogniser" and "head" after the second step: read from its workdir, or trained."""
    workdir = config.start.workdir
    if not workdir and config.data.source == "path":
        raise ValueError("start.workdir is empty: expected the folder of a finished run of stage 'quality'")
    settings = get_config()
    for part in ("seed", "data", "task", "recogniser", "model"):
        settings[part] = config[part]
    settings.train.steps = config.start.steps or settings.train.steps
    settings.loss.scale = config.start.scale
    same = ("data.image_size", "recogniser.name", "recogniser.embedding_size", "model.hidden")
    state = warm_start.previous_stage(settings, build, workdir, same)
    scorer = {"params": state.params["head"], "batch_stats": state.model_state["batch_stats"]}
    return {"recogniser": state.model_state["recogniser"], "head": scorer}


def reject_metrics(
    features: np.ndarray, people: np.ndarray, confidence: np.ndarray, thresholds: Sequence[float]
) -> dict[str, float]:
    """TAR of all pairs, and of the pairs in which both confidences reach a threshold.

    Args:
      features: [N, D].
      people: [N].
      confidence: [N].
      thresholds: of the confidence.

    Returns:
      "tar_at_far_..." and, of each threshold, "tar_at_far_..._from_..." and "pairs_from_...", the share of pairs that
      remains; the former only where genuine and impostor pairs remain.
    """
    metrics = {}
    for least in (0.0, *thresholds):
        rows, name = confidence >= least, f"_from_{least}" if least else ""
        if name:
            metrics[f"pairs{name}"] = rows.sum() * (rows.sum() - 1) / (len(rows) * (len(rows) - 1))
        if 1 < len(np.unique(people[rows])) < rows.sum():
            metrics |= tar_metrics(features[rows], people[rows], "tar_at_far_{}" + name)
    return metrics


if __name__ == "__main__":
    app.main(get_config, build)
