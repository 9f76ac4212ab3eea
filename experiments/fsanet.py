r"""FSA-Net: head pose by fine-grained structure aggregation.

    python -m experiments.fsanet                                 # rendered faces, two cores
    python -m experiments.fsanet --config=ssrnet                 # SSR-Net for three angles, the same streams
    python -m experiments.fsanet --config=fusion                 # three scorings, and their mean
    python -m experiments.fsanet --config.eval.photographs=DIR   # also tested on photographs, whose yaw is known
    python -m experiments.fsanet --config=300w_lp --config.data.path=300W_LP --config.data.test_path=AFLW2000
    python -m experiments.fsanet --config=aflw2000_published --config.data.test_path=AFLW2000 \
        --config.eval.weights=FSA-Net/pre-trained/300W_LP_models

300W_LP holds AFW, AFW_Flip and so on; AFLW2000 the 2000 images with their .mat files, as published (the set aflw2k3d
of tfds lacks the angles). `eval.photographs` is a folder as `facejax.data.readers.aflw2000_crops` describes. One GPU.

Published, mean absolute errors in degrees on AFLW2000-3D, trained on 300W-LP (paper), yaw / pitch / roll / mean:

    capsule, conv      4.82 / 6.19 / 4.76 / 5.25
    capsule, variance  4.96 / 6.34 / 4.78 / 5.36
    capsule, none      5.27 / 6.71 / 5.28 / 5.75
    their mean         4.50 / 6.08 / 4.64 / 5.07
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from facejax.attributes import fsanet, ssrnet
from facejax.data.attribute_images import AttributeImages
from facejax.evaluate.attributes import Predict
from facejax.recipes.estimator import Evaluation, estimator, evaluated, predictor
from facejax.train import Experiment, Options, Report, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(AttributeImages(attribute="pose", task="landmarks", image_size=32, margin=0.2, augment=False)),
    "model": {
        "name": "fsanet",  # or "ssrnet", SSR-Net for three angles
        "scorings": ("conv",),  # of the networks whose mean is the answer: "conv", "variance", "none"
        "aggregation": "capsule",  # "capsule", "netvlad" or "metric"
        "smallest": 0.0,  # lower bound of a unit's relative divisor; 0 as published
        "momentum": 0.9,  # of the running averages of batch norm
        "dtype": "float32",  # of the trunk's computation
    },
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 5e-3, "warmup": 0, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=32, steps=400)),
    "eval": {
        **asdict(Evaluation()),
        "weights": "",  # folder of the authors' files; nothing is trained then
    },
}
HEADS = {
    "kind": "300w_lp", "path": "300W_LP", "test_path": "AFLW2000", "image_size": 64, "margin": 0.6, "augment": True,
}  # fmt: skip
PRESETS = {
    "synthetic": {},
    "ssrnet": {"model.name": "ssrnet"},
    "no_structure": {"model.scorings": ("none",)},
    "fusion": {"model.scorings": fsanet.SCORINGS},
    "300w_lp": {
        "data": HEADS,
        "model": {"scorings": fsanet.SCORINGS, "momentum": 0.99},
        "optim.schedule": {"kind": "step", "peak": 1e-3, "boundaries": (1 / 3, 2 / 3)},
        "train": {"batch_size": 16, "steps": 90 * (122_450 // 16), "devices": 1},
    },
    "aflw2000_published": {"data": HEADS, "model.scorings": fsanet.SCORINGS, "eval.weights": "300W_LP_models"},
}
CLAIM = Claim(
    "fsanet.structure",
    "features aggregated by a learnt structure estimate head pose better than SSR-Net's maps",
    metric="mae",
    better="lower",
    method="synthetic",
    baseline=("ssrnet",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    net, data, multi = make_net(config), AttributeImages(**config.data), config.model.name == "fsanet"

    def loss(outputs: jax.Array, truth: jax.Array) -> jax.Array:
        if not multi:
            return ssrnet.absolute_error(outputs, truth)
        return sum(ssrnet.absolute_error(outputs[:, k], truth) for k in range(outputs.shape[1]))

    def decode(outputs: jax.Array) -> dict[str, jax.Array]:
        scorings = config.model.scorings if multi and len(config.model.scorings) > 1 else ()
        singles = {name: outputs[:, k] for k, name in enumerate(scorings)}
        return {"number": outputs.mean(1) if multi else outputs, **singles}

    def evaluate(predict: Predict, variables: Any) -> Report:
        return evaluated(predict, variables, data, app.section(Evaluation, config.eval))

    if config.eval.weights:
        return Experiment(evaluate=lambda state: evaluate(predictor(net, decode), published(config, net)))
    return estimator(
        net,
        data,
        optim.from_config(config.optim, config.train.steps),
        Options(**config.train),
        loss=loss,
        decode=decode,
        evaluate=evaluate,
        seed=config.seed,
    )


def make_net(config: ConfigDict) -> nn.Module:
    """The network that the configuration names."""
    model = config.model
    common = {"smallest": model.smallest, "momentum": model.momentum, "dtype": jnp.dtype(model.dtype)}
    if model.name == "ssrnet":
        return ssrnet.MultiSSRNet(**common)
    if model.name != "fsanet":
        raise ValueError(f"model.name is {model.name!r}: expected fsanet or ssrnet")
    if not model.scorings:
        raise ValueError(f"model.scorings is empty: expected one or more of {', '.join(fsanet.SCORINGS)}")
    return fsanet.Fusion(tuple(fsanet.FSANet(scoring, model.aggregation, **common) for scoring in model.scorings))


def published(config: ConfigDict, net: nn.Module) -> Any:
    """The authors' weights as variables of the fusion `net`."""
    from facejax.interop import fsanet as weights  # only they need it

    if not isinstance(net, fsanet.Fusion):
        raise ValueError("eval.weights are those of FSA-Net: expected model.name 'fsanet'")
    size = config.data.image_size
    shapes = jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, size, size, 3)), train=False), jax.random.key(0))
    found = {}
    for k, scoring in enumerate(config.model.scorings):
        part = {kind: tree[f"nets_{k}"] for kind, tree in shapes.items()}
        file = weights.file_of(config.eval.weights, scoring, config.model.aggregation)
        for kind, tree in weights.load(file, part).items():
            found.setdefault(kind, {})[f"nets_{k}"] = tree
    return found


if __name__ == "__main__":
    app.main(get_config, build)
