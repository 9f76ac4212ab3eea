"""QAN++: a tiny quality network weights a video's frames; its scores are scaled to 0..1 within the video.

    python -m experiments.qan_pp                                             # rendered faces, two cores
    python -m experiments.qan_pp --config=mean                               # equal weights
    python -m experiments.qan_pp --config=l1                                 # scores through a sigmoid, not scaled
    python -m experiments.qan_pp --config=arcnegface                         # a recogniser trained with ArcNegFace
    python -m experiments.qan_pp --config=video --config.data.path=DIR --config.recogniser.weights=r100.pth

Published with a recogniser of 24 GFLOPs: iQIYI video, TPR 72.98 % at FPR 1e-4.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from facejax.data import normalize
from facejax.data.quality_faces import QualityFaces
from facejax.evaluate.quality import QualityProtocol
from facejax.quality import qan_pp
from facejax.recipes import set_pooling
from facejax.recipes.recogniser import PUBLISHED, Recogniser
from facejax.recipes.set_pooling import SetOptions, Weighed
from facejax.train import Experiment, Options, app, optim, warm_start
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(QualityFaces()),
    "recogniser": asdict(Recogniser()),
    "sets": asdict(SetOptions()),
    "weighting": "minmax",  # scores scaled within the set ("minmax"), through a sigmoid ("l1"), or unused ("mean")
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
    "mean": {"weighting": "mean", "train.steps": 1},  # nothing is trained
    "l1": {"weighting": "l1"},
    "arcnegface": {"recogniser.loss": "arcnegface"},
    "video": {
        "data": {"source": "path", "image_size": 112, "people": 8000, "test_people": 2000},
        "recogniser": {**PUBLISHED, "name": "iresnet100"},
        "sets": {"size": 16},
        "train": {"batch_size": 64, "steps": 20_000, "devices": 8},
    },
}
CLAIM = Claim(
    "qan_pp.pooling",
    "frames weighted by a quality network, rescaled within each video, verify held-out identities better than their "
    "mean",
    metric="set_tar_at_far_1e-2",
    better="higher",
    method="synthetic",
    baseline=("mean",),
    seeds=6,
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: the recogniser is frozen."""
    if config.weighting not in ("minmax", "l1", "mean"):
        raise ValueError(f"weighting is {config.weighting!r}: expected 'minmax', 'l1' or 'mean'")
    data, protocol = QualityFaces(**config.data), QualityProtocol(**config.eval)
    recogniser, sets = Recogniser(**config.recogniser), SetOptions(**config.sets)
    net, backbone, size = qan_pp.QualityNet(), recogniser.backbone(), data.image_size
    weighting = "minmax" if config.weighting == "minmax" else "l1"

    def init(rng: jax.Array, start: Any) -> tuple[Any, Any]:
        image = jnp.zeros((2, size, size, 3))
        variables = net.init(rng, image, train=False)
        frozen = warm_start.taken(start, backbone.init(rng, image, train=False))
        return variables["params"], {"batch_stats": variables["batch_stats"], "recogniser": frozen}

    def apply(params: Any, state: Any, images: jax.Array, train: bool, rng: Any) -> tuple[Weighed, Any]:
        del rng
        images = normalize.symmetric(images)
        features = lax.stop_gradient(backbone.apply(state["recogniser"], images, train=False))
        scores, updated = net.apply(
            {"params": params, "batch_stats": state["batch_stats"]}, images, train=train, mutable=["batch_stats"]
        )
        weights = {"minmax": scores, "l1": jax.nn.sigmoid(scores), "mean": jnp.ones_like(scores)}[config.weighting]
        return Weighed(features, weights, None), {**state, **updated}

    return Experiment(
        evaluate=lambda state: set_pooling.report(apply, state, weighting, data, sets, protocol, recogniser),
        **set_pooling.training(
            data,
            sets,
            init,
            apply,
            optim.from_config(config.optim, config.train.steps),
            weighting,
            batch_size=config.train.batch_size,
            seed=config.seed,
            microbatches=config.train.microbatches,
            prepare=lambda: recogniser.embedder(config.seed, **data.view).variables,
        ),
    )


if __name__ == "__main__":
    app.main(get_config, build)
