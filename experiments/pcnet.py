"""PCNet: the smaller of two confidences is regressed to how alike two pictures of a person are found.

    python -m experiments.pcnet                                              # rendered faces, two cores
    python -m experiments.pcnet --config=mean                                # sets fused evenly
    python -m experiments.pcnet --config=both                                # the mean of the confidences instead
    python -m experiments.pcnet --config=free                                # no network: each picture's own confidence
    python -m experiments.pcnet --config=vggface2 --config.data.path=DIR --config.recogniser.weights=a.pth,b.pth

The people to learn from are two halves; a recogniser is trained on each and tells how alike pictures of the other are.
At full size both are state dicts of arcface_torch. Train it on two folders or packs made from DIR: a.pth with the first
data.people // 2 people, in the order of their labels, b.pth with the rest of the first data.people; the data.judged
people after them belong in neither. (`experiments.arcface` keeps its weights in another form, which is not read here.)
A recogniser of wholly other people may be named twice.

Published (AOC, mean over three FMRs, as the authors of SDD-FIQA ran it): LFW 0.7149, Adience 0.5359, IJB-C 0.7157.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import quality_common as common
from experiments import sets_common
from facejax.backbones import resnet
from facejax.data.synthetic import faces
from facejax.quality import pcnet, tinyfqnet
from facejax.train import Experiment, Report, TrainState, app
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {**common.DATA, "people": 160},  # in two halves
    "recogniser": common.RECOGNISER,
    "sets": sets_common.SETS,
    "model": {"name": "tiny"},  # "free": what a network is to learn, of the people to be judged; "mean": no confidence
    "loss": {"pictures": 8, "worse_only": True},
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "step", "peak": 1e-2, "warmup": 0, "boundaries": (0.5, 0.75)},
    },
    "train": {**common.TRAIN, "batch_size": 80, "steps": 1000, "devices": 1},
    "eval": common.EVAL,
}
PRESETS = {
    "synthetic": {},
    "mean": {"model.name": "mean"},
    "both": {"loss.worse_only": False},
    "free": {"model.name": "free"},
    "free_both": {"model.name": "free", "loss.worse_only": False},
    "vggface2": {
        "data": {"source": "path", "image_size": 112, "people": 8631, "judged": 500},
        "recogniser": common.PUBLISHED,
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
    """Wires the run; a batch is `batch_size / pictures` people with as many pictures each."""
    batch, each, size = config.train.batch_size, config.loss.pictures, config.recogniser.embedding_size
    if each < 2 or batch % each:
        raise ValueError(f"loss.pictures is {each}: expected 2 or more, dividing train.batch_size {batch}")
    if config.model.name == "free":
        return Experiment(lambda _: common.assess(config, free(config)))
    if config.model.name == "mean":
        return Experiment(lambda _: sets_common.fused(config, lambda images: np.ones(len(images))))
    if config.model.name not in NETS:
        raise ValueError(f"model.name is {config.model.name!r}: expected one of {', '.join((*NETS, 'free', 'mean'))}")
    count, most = config.data.people, 2 * faces.TASKS["quality"].train
    if count < 2 or (config.data.source == "face_world" and count > most):
        raise ValueError(f"data.people is {count}: expected 2 or more, two halves; of the face world at most {most}")
    weights = config.recogniser.weights
    if weights and len(weights.split(",")) != 2:
        raise ValueError(
            f"recogniser.weights is {weights!r}: expected 2 files with a comma between, of a recogniser trained on the "
            "first half of the people and of one trained on the second"
        )
    net = Confidence(NETS[config.model.name]())

    def source() -> Any:
        groups = []
        for half, (known, features) in enumerate(labelled(config)):
            people = (2 * known.people + half).astype(np.int32)  # a number is of one half only
            whole = common.Rows({"image": known.images, "embedding": features, "person": people})
            groups += [[whole, np.flatnonzero(people == person)] for person in np.unique(people)]
        groups = [group for group in groups if len(group[1]) >= each]
        if not groups:
            raise ValueError(f"nobody has loss.pictures {each} pictures: expected a smaller number")
        return groups

    def load(examples: Any, rngs: Any) -> dict[str, np.ndarray]:
        drawn = [
            whole[i] for (whole, rows), rng in zip(examples, rngs, strict=True) for i in rng.permutation(rows)[:each]
        ]
        return common.flipped_batch(drawn, [rng for rng in rngs for _ in range(each)])

    def loss(confidence: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        if len(confidence) % each:
            raise ValueError(f"{len(confidence)} pictures meet on a device: expected whole people of {each} pictures")
        return pcnet.pair_confidence_loss(
            confidence, batch["embedding"], batch["person"], worse_only=config.loss.worse_only
        )

    trained = common.regression(
        config,
        net,
        loss,
        source,
        {
            "embedding": jax.ShapeDtypeStruct((batch, size), jnp.float32),
            "person": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
        load=load,
        batch_size=batch // each,
    )

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params, **state.model_state}
        pooled = sets_common.fused(config, lambda images: common.score(config, net, variables, images))
        return common.together(trained.evaluate(state), pooled)

    return dataclasses.replace(trained, evaluate=evaluate)


def labelled(config: ConfigDict) -> list[tuple[common.Faces, np.ndarray]]:
    """Both halves of the people to learn from, with embeddings [N, D] by the recogniser that has not seen them."""
    if config.recogniser.weights:
        first, second = (common.recogniser(config, number) for number in range(2))
    else:
        first, second = (common.recogniser(config, config.seed, task) for task in ("recognition", "quality_clean"))
    strangers = (second, first)
    return [(known, stranger(known.images)) for known, stranger in zip(halves(config.data), strangers, strict=True)]


def halves(data: ConfigDict) -> list[common.Faces]:
    """People to learn from: the first `people // 2`, in the face world those of "recognition", and the rest."""
    count = data.people // 2
    if data.source == "face_world":
        sizes = {"recognition_faulty": count, "quality": data.people - count}
        return [common.people(ConfigDict({**data, "people": n}), "train", task) for task, n in sizes.items()]
    known = common.people(data, "train")
    first = known.people < count
    return [common.Faces(*(common.take(x, np.flatnonzero(rows)) for x in known)) for rows in (first, ~first)]


def free(config: ConfigDict) -> np.ndarray:
    """Confidences [N] of the pictures to be judged, from the recogniser's similarities and who is on them."""
    test = common.people(config.data, "test")
    features = common.recogniser(config, config.seed)(test.images, config.eval.batch_size)
    return pcnet.free_confidences(features, test.people, worse_only=config.loss.worse_only)


if __name__ == "__main__":
    app.main(get_config, build)
