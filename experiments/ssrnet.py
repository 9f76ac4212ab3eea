r"""SSR-Net: age by a soft regression in three stages.

    python -m experiments.ssrnet                                 # rendered faces, two cores
    python -m experiments.ssrnet --config=classes                # the same streams, expectation over 27 classes
    python -m experiments.ssrnet --config=regression             # the same streams, regression
    python -m experiments.ssrnet --config=imdb --config.data.path=imdb_crop/imdb.mat
    python -m experiments.ssrnet --config=wiki --config.data.path=wiki_crop/wiki.mat \
        --config.model.start=runs/ssrnet/imdb
    python -m experiments.ssrnet --config=morph2 --config.data.path=DIR --config.model.start=runs/ssrnet/wiki
    python -m experiments.ssrnet --config=mega_age --config.data.path=megaage_asian
    python -m experiments.ssrnet --config=morph2 --config.data.path=DIR --workdir= \
        --config.eval.weights=ssrnet_3_3_3_64_1.0_1.0.h5         # the authors' weights

One GPU each. MORPH2's images must be aligned and cut to the face with a margin of 40 %, as those of IMDB-WIKI and
MegaAge are; the authors align them by dlib's landmarks.

Published: MORPH2, mean absolute error on a random fifth of the images 3.16 years, without dynamic range 9.29 (paper);
MegaAge-Asian, 54.9 % of the faces within 3 years, 74.1 % within 5 (authors' page).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from facejax.attributes import ssrnet
from facejax.data.attribute_images import AttributeImages
from facejax.evaluate.attributes import Predict
from facejax.recipes.estimator import Evaluation, estimator, evaluated
from facejax.train import Experiment, Options, Report, app, optim, warm_start
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(AttributeImages(attribute="age", image_size=48, margin=0.4, augment=False)),
    "model": {
        "name": "ssrnet",  # "ssrnet", or a baseline: "classes" (expectation over 27) or "regression"
        "shift_weight": 1.0,  # factor of the classes' movement; 0 for none
        "stretch_weight": 1.0,  # factor of the units' change; 0 for none
        "smallest": 0.0,  # lower bound of a unit's relative divisor; 0 as published
        "momentum": 0.9,  # of the running averages of batch norm
        "start": "",  # workdir of a finished run whose weights training begins with
        "dtype": "float32",  # of the computation
    },
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 5e-3, "warmup": 0, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=32, steps=300)),
    "eval": {
        **asdict(Evaluation()),
        "weights": "",  # the authors' HDF5 file, evaluated instead of the run's own weights
    },
}


def published(kind: str, images: int, batch_size: int) -> dict[str, Any]:
    """90 epochs, at a learning rate divided by 10 after 30 and 60."""
    return {
        "data": {"kind": kind, "path": kind, "image_size": 64, "augment": True},
        "model": {"momentum": 0.99},
        "optim.schedule": {"kind": "step", "peak": 2e-3, "boundaries": (1 / 3, 2 / 3)},
        "train": {"batch_size": batch_size, "steps": 90 * (images // batch_size), "devices": 1},
    }


PRESETS = {
    "synthetic": {},
    "classes": {"model.name": "classes"},
    "regression": {"model.name": "regression"},
    "fixed_range": {"model": {"shift_weight": 0.0, "stretch_weight": 0.0}},
    "imdb": published("imdb_wiki", 137_000, 128),
    "wiki": published("imdb_wiki", 30_000, 50),
    "morph2": published("morph2", 44_000, 50),
    "mega_age": published("mega_age", 40_000, 50),
}
CLAIM = Claim(
    "ssrnet.stages",
    "soft regression in stages estimates age better than an expectation over classes and than plain regression with "
    "networks of equal size",
    metric="mae",
    better="lower",
    method="synthetic",
    baseline=("classes", "regression"),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    net, model, data = make_net(config), config.model, AttributeImages(**config.data)
    single = isinstance(net, ssrnet.SingleStageNet)

    def restored() -> Any:
        state = warm_start.restore(model.start, build, {"model.name": model.name})
        return {"params": state.params, "batch_stats": state.model_state}

    def evaluate(predict: Predict, variables: Any) -> Report:
        if config.eval.weights:
            from facejax.interop import ssrnet as published_weights  # only they need it

            variables = published_weights.load(config.eval.weights, jax.eval_shape(lambda v: v, variables))
        return evaluated(predict, variables, data, app.section(Evaluation, config.eval))

    return estimator(
        net,
        data,
        optim.from_config(config.optim, config.train.steps),
        Options(**config.train),
        loss=net.loss if single else ssrnet.absolute_error,
        decode=(lambda outputs: {"number": net.number(outputs)}) if single else lambda ages: {"number": ages},
        evaluate=evaluate,
        seed=config.seed,
        prepare=restored if model.start else None,
    )


def make_net(config: ConfigDict) -> nn.Module:
    """The network that the configuration names."""
    model = config.model
    common = {"momentum": model.momentum, "dtype": jnp.dtype(model.dtype)}
    ranges = {name: model[name] for name in ("shift_weight", "stretch_weight", "smallest")}
    nets = {
        "ssrnet": lambda: ssrnet.SSRNet(**ranges, **common),
        "classes": lambda: ssrnet.SingleStageNet(27, **common),
        "regression": lambda: ssrnet.SingleStageNet(1, **common),
    }
    if model.name not in nets:
        raise ValueError(f"model.name is {model.name!r}: expected one of {', '.join(nets)}")
    if config.eval.weights and model.name != "ssrnet":
        raise ValueError(f"eval.weights are those of SSR-Net: expected model.name 'ssrnet', not {model.name!r}")
    return nets[model.name]()


if __name__ == "__main__":
    app.main(get_config, build)
