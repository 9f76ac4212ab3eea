"""QAN++: a tiny quality network weighs a video's frames, its scores stretched to 0..1 within the video.

    python -m experiments.qan_pp                                             # rendered faces, two cores
    python -m experiments.qan_pp --config=mean                               # every frame weighs one
    python -m experiments.qan_pp --config=l1                                 # scores through a sigmoid, not stretched
    python -m experiments.qan_pp --config=arcnegface                         # a recogniser trained with ArcNegFace
    python -m experiments.qan_pp --config=video --config.data.path=DIR --config.recogniser.weights=r100.pth

Published with a recogniser of 24 GFLOPs: iQIYI video, TPR 72.98 % at FPR 1e-4.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from experiments import arcface, sets_common
from experiments import quality_common as common
from facejax.quality import qan_pp
from facejax.train import Experiment, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": common.DATA,
    "recogniser": common.RECOGNISER,
    "sets": sets_common.SETS,
    "weighting": "minmax",  # or "l1", of the scores through a sigmoid; or "mean"
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
    "mean": {"weighting": "mean", "train.steps": 1},  # nothing learns
    "l1": {"weighting": "l1"},
    "arcnegface": {"recogniser.loss": "arcnegface"},
    "video": {
        "data": {"source": "path", "image_size": 112, "people": 8000, "judged": 2000},
        "recogniser": {**common.PUBLISHED, "name": "iresnet100"},
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
    """Wires the run: the recogniser stays as it is."""
    if config.weighting not in ("minmax", "l1", "mean"):
        raise ValueError(f"weighting is {config.weighting!r}: expected 'minmax', 'l1' or 'mean'")
    net, recogniser = qan_pp.QualityNet(), arcface.make_backbone(config.recogniser)

    def init(rng: jax.Array) -> tuple[Any, Any]:
        size = config.data.image_size
        picture = jnp.zeros((2, size, size, 3))
        variables = net.init(rng, picture, train=False)
        frozen = common.starting_weights(config, recogniser.init(rng, picture, train=False))
        return variables["params"], {"batch_stats": variables["batch_stats"], "recogniser": frozen}

    def look(params: Any, state: Any, images: jax.Array, train: bool, rng: Any) -> tuple[sets_common.Seen, Any]:
        del rng
        pictures = arcface.preprocess(images)
        features = lax.stop_gradient(recogniser.apply(state["recogniser"], pictures, train=False))
        scores, updated = net.apply(
            {"params": params, "batch_stats": state["batch_stats"]}, pictures, train=train, mutable=["batch_stats"]
        )
        weights = {"minmax": scores, "l1": jax.nn.sigmoid(scores), "mean": jnp.ones_like(scores)}[config.weighting]
        return sets_common.Seen(features, weights, None), {**state, **updated}

    return sets_common.training(
        config,
        init,
        look,
        optim.from_config(config.optim, config.train.steps),
        "minmax" if config.weighting == "minmax" else "l1",
        before=lambda: common.recogniser(config, config.seed),
    )


if __name__ == "__main__":
    app.main(get_config, build)
