"""PCNet: the smaller of two confidences is regressed to the similarity of two images of a person.

    python -m experiments.pcnet                                              # rendered faces, two cores
    python -m experiments.pcnet --config=mean                                # sets pooled by the plain mean
    python -m experiments.pcnet --config=both                                # the mean of the confidences instead
    python -m experiments.pcnet --config=free                                # no network: one free confidence an image
    python -m experiments.pcnet --config=vggface2 --config.data.path=DIR --config.recogniser.weights=a.pth,b.pth

The training people are split into two halves. A recogniser is trained on each half and measures similarities of the
other half.
At full size both recognisers are state dicts of arcface_torch. Train them on two folders or packs made from DIR: a.pth
on the first data.people // 2 people, in the order of their labels, b.pth on the rest of the first data.people; the
data.test_people people after them belong in neither. (`experiments.arcface` keeps its weights in another form, which is
not read here.) A recogniser trained on entirely different people may be named twice.

Published (AOC, mean over three FMRs, as the authors of SDD-FIQA ran it): LFW 0.7149, Adience 0.5359, IJB-C 0.7157.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.backbones import resnet
from facejax.data import pipeline, sources
from facejax.data.quality_faces import Faces, QualityFaces
from facejax.data.synthetic import faces
from facejax.evaluate import sets as set_evaluation
from facejax.evaluate.quality import QualityProtocol, score
from facejax.ops import vectors
from facejax.quality import pcnet, tinyfqnet
from facejax.recipes import scorer
from facejax.recipes.recogniser import PUBLISHED, Recogniser
from facejax.recipes.set_pooling import SetOptions
from facejax.train import Experiment, Options, Report, TrainState, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(QualityFaces(people=160)),  # in two halves
    "recogniser": asdict(Recogniser()),
    "sets": asdict(SetOptions()),
    "model": {
        "name": "tiny",  # of `NETS`; "free": confidences fitted to the test images; "mean": equal weights
    },
    "loss": {
        "images": 8,  # of each person in a batch
        "minimum_only": True,  # regresses the smaller confidence of a pair; otherwise the mean of both
    },
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "step", "peak": 1e-2, "warmup": 0, "boundaries": (0.5, 0.75)},
    },
    "train": asdict(Options(batch_size=80, steps=1000, devices=1)),
    "eval": asdict(QualityProtocol()),
}
PRESETS = {
    "synthetic": {},
    "mean": {"model.name": "mean"},
    "both": {"loss.minimum_only": False},
    "free": {"model.name": "free"},
    "free_both": {"model.name": "free", "loss.minimum_only": False},
    "vggface2": {
        "data": {"source": "path", "image_size": 112, "people": 8631, "test_people": 500},
        "recogniser": PUBLISHED,
        "model": {"name": "resnet18"},
        "optim": {"name": "sgd", "weight_decay": 5e-4, "schedule": {"peak": 3e-2}},
        "train": {"batch_size": 320, "steps": 40_000, "devices": 4},
    },
}
CLAIM = (
    Claim(
        "pcnet.pooling",
        "sets pooled by confidence verify held-out identities better than sets pooled by their mean",
        metric="set_tar_at_far_1e-2",
        better="higher",
        method="synthetic",
        baseline=("mean",),
        seeds=6,
    ),
    Claim(
        "pcnet.minimum",
        "a network whose smaller confidence predicts the similarity of two pictures ranks face quality better than one "
        "whose mean confidence does",
        metric="aoc",
        better="higher",
        method="synthetic",
        baseline=("both",),
    ),
    Claim(
        "pcnet.free_minimum",
        "free confidences whose minimum predicts the similarity of two pictures rank face quality better than those "
        "whose mean does",
        metric="aoc",
        better="higher",
        method="free",
        baseline=("free_both",),
    ),
)


class Confidence(nn.Module):
    """A trunk's one output through a sigmoid: [N, H, W, 3] -> [N] in 0..1."""

    trunk: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        return jax.nn.sigmoid(self.trunk(images, train=train).reshape(len(images)))


NETS = {"tiny": tinyfqnet.TinyFQNet, "resnet18": lambda: resnet.resnet18(num_classes=1)}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run; a batch is `batch_size / images` people with `images` images each."""
    data, protocol = QualityFaces(**config.data), QualityProtocol(**config.eval)
    recogniser, sets = Recogniser(**config.recogniser), SetOptions(**config.sets)
    batch, each, options = config.train.batch_size, config.loss.images, {"minimum_only": config.loss.minimum_only}
    if each < 2 or batch % each:
        raise ValueError(f"loss.images is {each}: expected 2 or more, dividing train.batch_size {batch}")

    def pooled(state: TrainState | None) -> Report:
        test = data.sets("test", sets.size)
        embed = recogniser.embedder(config.seed, **data.view)
        features = vectors.unit_rows(embed(test.flat, protocol.batch_size))
        weights = np.ones(len(features))
        if state is not None:
            weights = score(net, scorer.variables(state), test.flat, protocol.batch_size)
        return set_evaluation.assess(features, weights, "l1", test)

    def fitted(_: Any) -> Report:
        test, embed = data.load("test"), recogniser.embedder(config.seed, **data.view)
        features = embed(test.images, protocol.batch_size)
        confidences = pcnet.free_confidences(features, test.people, **options)
        return protocol.assess(confidences, test, recogniser.evaluator(**data.view))

    if config.model.name in ("free", "mean"):
        return Experiment(fitted if config.model.name == "free" else pooled)
    if config.model.name not in NETS:
        raise ValueError(f"model.name is {config.model.name!r}: expected one of {', '.join((*NETS, 'free', 'mean'))}")
    most = 2 * faces.TASKS["quality"].train
    if data.people < 2 or (data.source == "face_world" and data.people > most):
        raise ValueError(
            f"data.people is {data.people}: expected 2 or more, two halves; of the face world at most {most}"
        )
    if recogniser.weights and len(recogniser.weights.split(",")) != 2:
        raise ValueError(
            f"recogniser.weights is {recogniser.weights!r}: expected 2 files with a comma between, of a recogniser "
            "trained on the first half of the people and of one trained on the second"
        )
    net = Confidence(NETS[config.model.name]())

    def train_data() -> Iterator[dict[str, np.ndarray]]:
        groups = []
        for half, (known, features) in enumerate(labelled(data, recogniser, config.seed)):
            people = (2 * known.people + half).astype(np.int32)  # distinct over both halves
            rows = sources.Rows({"image": known.images, "embedding": features, "person": people})
            groups += [(rows, own) for own in (np.flatnonzero(people == person) for person in np.unique(people))]
        groups = [group for group in groups if len(group[1]) >= each]
        if not groups:
            raise ValueError(f"no identity has loss.images {each} images: expected a smaller number")
        return data.batches(groups, batch // each, config.seed, load)

    def load(examples: Any, rngs: Any) -> dict[str, np.ndarray]:
        drawn = [rows[i] for (rows, own), rng in zip(examples, rngs, strict=True) for i in rng.permutation(own)[:each]]
        return pipeline.flipped_batch(drawn, [rng for rng in rngs for _ in range(each)])

    def loss(confidence: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        if len(confidence) % each:
            raise ValueError(f"{len(confidence)} images meet on a device: expected whole people of {each} images")
        return pcnet.pair_confidence_loss(confidence, batch["embedding"], batch["person"], **options)

    def evaluate(state: TrainState) -> Report:
        return scorer.report(net, state, data, protocol, recogniser) | pooled(state)

    return Experiment(
        evaluate=evaluate,
        train_data=train_data,
        **scorer.training(
            net,
            loss,
            optim.from_config(config.optim, config.train.steps),
            image_size=data.image_size,
            batch_size=batch,
            fields={
                "embedding": jax.ShapeDtypeStruct((batch, recogniser.embedding_size), jnp.float32),
                "person": jax.ShapeDtypeStruct((batch,), jnp.int32),
            },
            microbatches=config.train.microbatches,
        ),
    )


def labelled(data: QualityFaces, recogniser: Recogniser, seed: int) -> list[tuple[Faces, np.ndarray]]:
    """Both halves of the training people, with embeddings [N, D] by the recogniser that was trained on the other."""
    if recogniser.weights:
        first, second = (recogniser.embedder(number, **data.view) for number in range(2))
    else:
        first, second = (recogniser.embedder(seed, task=t, **data.view) for t in ("recognition", "quality_clean"))
    return [(known, embed(known.images)) for known, embed in zip(halves(data), (second, first), strict=True)]


def halves(data: QualityFaces) -> list[Faces]:
    """Training people: the first `people // 2`, in the face world those of "recognition", and the rest."""
    count = data.people // 2
    if data.source == "face_world":
        sizes = {"recognition_faulty": count, "quality": data.people - count}
        return [replace(data, people=n).load("train", task) for task, n in sizes.items()]
    known = data.load("train")
    first = known.people < count
    return [Faces(*(sources.take(x, np.flatnonzero(rows)) for x in known)) for rows in (first, ~first)]


if __name__ == "__main__":
    app.main(get_config, build)
