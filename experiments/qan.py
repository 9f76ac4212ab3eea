"""QAN: sets of pictures are averaged with weights that a branch of the network learns from the sets alone.

    python -m experiments.qan                                                # rendered faces, two cores
    python -m experiments.qan --config=mean                                  # the same, every picture weighing one
    python -m experiments.qan --config=faces --config.data.path=DIR --config.recogniser.weights=r50.pth # as published

Published: YouTube Faces 96.17 %; IJB-A TAR at FAR 1e-3 / 1e-2 / 1e-1: 89.31 / 94.20 / 98.02.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments import arcface, sets_common
from experiments import quality_common as common
from facejax.quality import qan
from facejax.train import Experiment, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": common.DATA,
    "recogniser": common.RECOGNISER,  # its trunk, and where it starts from
    "sets": sets_common.SETS,
    "weighted": True,
    "branch": "stage2",  # map of the trunk that the qualities are told from, or "picture"
    "trunk_rate": 0.03,  # the trunk's part of the learning rate: it comes trained
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 3e-3, "warmup": 0, "boundaries": ()},
    },
    "train": {**common.TRAIN, "batch_size": 8, "steps": 200, "devices": 1},
    "eval": common.EVAL,
}
PRESETS = {
    "synthetic": {},
    "mean": {"weighted": False},
    "from_pictures": {"branch": "picture"},
    "faces": {
        "data": {"source": "path", "image_size": 112, "people": 2000, "judged": 500},
        "recogniser": common.PUBLISHED,
        "trunk_rate": 1.0,
        "optim": {
            "name": "sgd",
            "weight_decay": 2e-4,
            "schedule": {"kind": "step", "peak": 1e-3, "boundaries": (0.7,)},
        },
        "train": {"batch_size": 24, "steps": 15_000, "devices": 4},
    },
}
CLAIM = Claim(
    "qan.pooling",
    "sets pooled by learned qualities verify held-out identities better than sets pooled by their mean, trained alike",
    metric="set_tar_at_far_1e-2",
    better="higher",
    method="synthetic",
    baseline=("mean",),
)


class SetNetwork(nn.Module):
    """Trunk, quality branch and classifier of single pictures: [N, H, W, 3] -> `Seen`.

    Attributes:
      trunk: embeds pictures.
      num_classes: people.
      branch: name of the trunk's map that the qualities are told from, or "picture".
    """

    trunk: nn.Module
    num_classes: int
    branch: str

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> sets_common.Seen:
        found = {**self.trunk(images, train=train, features=True), "picture": images}
        if self.branch not in found:
            raise ValueError(f"branch is {self.branch!r}: expected one of {', '.join(found)}")
        quality = qan.QualityBranch(stem=self.branch == "picture", name="quality")(found[self.branch])
        scores = nn.Dense(self.num_classes, name="people")(found["embedding"])
        return sets_common.Seen(found["embedding"], quality, scores)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    net = SetNetwork(arcface.make_backbone(config.recogniser), config.data.people, config.branch)

    def init(rng: jax.Array) -> tuple[Any, Any]:
        size = config.data.image_size
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        trunk = common.starting_weights(config, {part: tree["trunk"] for part, tree in variables.items()})
        variables = {part: {**tree, "trunk": trunk[part]} for part, tree in variables.items()}
        return variables.pop("params"), variables

    def look(params: Any, state: Any, images: jax.Array, train: bool, rng: Any) -> tuple[sets_common.Seen, Any]:
        seen, state = net.apply(
            {"params": params, **state},
            arcface.preprocess(images),
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": rng} if train else None,
        )
        weights = seen.weights if config.weighted else jnp.ones_like(seen.weights)
        return seen._replace(weights=weights), state

    slower = optax.masked(optax.scale(config.trunk_rate), lambda params: {name: name == "trunk" for name in params})
    tx = optax.chain(optim.from_config(config.optim, config.train.steps), slower)
    return sets_common.training(config, init, look, tx, "l1", before=lambda: common.recogniser(config, config.seed))


if __name__ == "__main__":
    app.main(get_config, build)
