"""tinyFQnet: twenty thousand parameters learn how near a face's embedding will lie to its person's centre.

python -m experiments.tinyfqnet                                          # rendered faces, two cores
python -m experiments.tinyfqnet --config=perceptual                      # the same network told sharpness instead
python -m experiments.tinyfqnet --config=ms1mv2 --config.data.path=DIR --config.recogniser.weights=r50.pth
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import quality_common as common
from facejax.quality import factors, tinyfqnet
from facejax.train import Experiment, app
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": common.DATA,
    "recogniser": common.RECOGNISER,
    "label": "centre",  # or "sharpness"
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 1e-2, "warmup": 0, "boundaries": ()},
    },
    "train": {**common.TRAIN, "steps": 600},
    "eval": common.EVAL,
}
PRESETS = {
    "synthetic": {},
    "perceptual": {"label": "sharpness"},
    "ms1mv2": {
        "data": {"source": "path", "image_size": 112, "people": 80_000, "judged": 2000},
        "recogniser": common.PUBLISHED,
        "optim.schedule.peak": 3e-3,
        "train": {"batch_size": 512, "steps": 100_000, "devices": 8},
    },
}
CLAIM = Claim(
    "tinyfqnet.centre_cosine",
    "a tiny network trained on the cosine to the identity's centre ranks face quality better than one trained on "
    "sharpness",
    metric="aoc",
    better="higher",
    method="synthetic",
    baseline=("perceptual",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""

    def source() -> Any:
        known = common.people(config.data, "train")
        labels = label(config, known)
        draws = tinyfqnet.balanced_draws(np.random.default_rng(config.seed), labels)
        return common.Rows({"image": known.images, "label": labels}, draws)

    return common.regression(
        config,
        tinyfqnet.TinyFQNet(),
        lambda scores, batch: (scores - batch["label"]) ** 2,
        source,
        {"label": jax.ShapeDtypeStruct((config.train.batch_size,), jnp.float32)},
    )


def label(config: ConfigDict, known: common.Faces) -> np.ndarray:
    """What the network is told [N]."""
    if config.label == "centre":
        features = common.recogniser(config, config.seed)(known.images)
        return tinyfqnet.centre_cosine(features, known.people)
    if config.label == "sharpness":
        sharp = np.log(common.measured(factors.sharpness, known.images) + 1e-6)
        return common.stretched(sharp).astype(np.float32)
    raise ValueError(f"label is {config.label!r}: expected 'centre' or 'sharpness'")


if __name__ == "__main__":
    app.main(get_config, build)
