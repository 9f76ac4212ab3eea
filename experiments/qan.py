"""QAN: sets of images are averaged with weights that a branch of the network learns from a loss on sets alone.

    python -m experiments.qan                                                # rendered faces, two cores
    python -m experiments.qan --config=mean                                  # the same with equal weights
    python -m experiments.qan --config=faces --config.data.path=DIR --config.recogniser.weights=r50.pth # as published

Published: YouTube Faces 96.17 %; IJB-A TAR at FAR 1e-3 / 1e-2 / 1e-1: 89.31 / 94.20 / 98.02.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from facejax.data import normalize
from facejax.data.quality_faces import QualityFaces
from facejax.evaluate.quality import QualityProtocol
from facejax.quality import qan
from facejax.recipes import set_pooling
from facejax.recipes.recogniser import PUBLISHED, Recogniser
from facejax.recipes.set_pooling import SetOptions, Weighed
from facejax.train import Experiment, Options, app, optim, warm_start
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(QualityFaces()),
    "recogniser": asdict(Recogniser()),  # the trunk and its initial weights
    "sets": asdict(SetOptions()),
    "weighted": True,  # False: equal weights, trained alike
    "branch": "stage2",  # input of the quality branch: a map of the trunk by name, or "image"
    "trunk_rate": 0.03,  # factor of the trunk's learning rate, because the trunk is trained already
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 3e-3, "warmup": 0, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=8, steps=200, devices=1)),
    "eval": asdict(QualityProtocol()),
}
PRESETS = {
    "synthetic": {},
    "mean": {"weighted": False},
    "from_pictures": {"branch": "image"},
    "faces": {
        "data": {"source": "path", "image_size": 112, "people": 2000, "test_people": 500},
        "recogniser": PUBLISHED,
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
    """Trunk, quality branch and classifier of single images: [N, H, W, 3] -> `Weighed`.

    Attributes:
      trunk: embeds images.
      num_classes: people.
      branch: name of the trunk's map that the quality branch takes, or "image".
    """

    trunk: nn.Module
    num_classes: int
    branch: str

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Weighed:
        found = {**self.trunk(images, train=train, features=True), "image": images}
        if self.branch not in found:
            raise ValueError(f"branch is {self.branch!r}: expected one of {', '.join(found)}")
        quality = qan.QualityBranch(stem=self.branch == "image", name="quality")(found[self.branch])
        logits = nn.Dense(self.num_classes, name="people")(found["embedding"])
        return Weighed(found["embedding"], quality, logits)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    data, protocol = QualityFaces(**config.data), QualityProtocol(**config.eval)
    recogniser, sets = Recogniser(**config.recogniser), SetOptions(**config.sets)
    net, size = SetNetwork(recogniser.backbone(), data.people, config.branch), data.image_size

    def init(rng: jax.Array, start: Any) -> tuple[Any, Any]:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        trunk = warm_start.taken(start, {part: tree["trunk"] for part, tree in variables.items()})
        variables = {part: {**tree, "trunk": trunk[part]} for part, tree in variables.items()}
        return variables.pop("params"), variables

    def apply(params: Any, state: Any, images: jax.Array, train: bool, rng: Any) -> tuple[Weighed, Any]:
        found, state = net.apply(
            {"params": params, **state},
            normalize.symmetric(images),
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": rng} if train else None,
        )
        return found if config.weighted else found._replace(weights=jnp.ones_like(found.weights)), state

    slower = optax.masked(optax.scale(config.trunk_rate), lambda params: {name: name == "trunk" for name in params})
    return Experiment(
        evaluate=lambda state: set_pooling.report(apply, state, "l1", data, sets, protocol, recogniser),
        **set_pooling.training(
            data,
            sets,
            init,
            apply,
            optax.chain(optim.from_config(config.optim, config.train.steps), slower),
            "l1",
            batch_size=config.train.batch_size,
            seed=config.seed,
            microbatches=config.train.microbatches,
            prepare=lambda: recogniser.embedder(config.seed, **data.view).variables,
        ),
    )


if __name__ == "__main__":
    app.main(get_config, build)
