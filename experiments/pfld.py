"""PFLD: a small network of landmarks, trained with weights of pose and rarity.

    python -m experiments.pfld                                 # 68 landmarks of rendered faces, two cores
    python -m experiments.pfld --config=plain                  # the squared error alone, without the auxiliary branch
    python -m experiments.pfld --config=pose_only              # without rarity; weighed and batch: rarity as weights
    python -m experiments.pfld --config=wflw --config.data.path=DIR                       # one GPU
    python -m experiments.pfld --config=300w --config.data.path=DIR
    python -m experiments.pfld --config=published_68 --eval_only --workdir= --config.eval.weights=pfld.onnx ...
        --config.data.kind=300w --config.data.path=DIR

Published: 300W, inter-pupil NME of the full set 3.95 % at full width and 4.02 % at a quarter (paper, with boxes of a
detector); the crops here are squares of 1.2 times the box of the true landmarks, as in polarisZhao/PFLD-pytorch, whose
authors state no number for the released network that the paper confirms. `published_68` evaluates the network of
cunjian/pytorch_face_landmark, of which no number is published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.alignment import pfld
from facejax.data import normalize, pipeline
from facejax.data.landmark_images import Augmentation, LandmarkImages, Weighed, mean_face
from facejax.data.sources import Part
from facejax.recipes.aligner import Evaluation, aligner, evaluated
from facejax.train import AXIS, Experiment, Options, Report, TrainState, app, optim
from facejax.train.claims import Claim

REPEATS = 10
"""How often a face of mean weight stands in a pass over faces that are drawn."""
RARITIES = ("drawn", "data", "batch", "none")
"""How rare kinds count for more: faces drawn as often as they weigh; weights of the data, of the batch; not at all."""
BASE = {
    "seed": 0,
    "data": asdict(LandmarkImages(image_size=32, enlarge=1.2)),
    "profiles": 0.1,  # largest part of the training faces that are turned by 30 degrees or more; 1 keeps them all
    "model": {
        "width": 0.25,  # of all layers, relative to the published ones
        "second": "full",  # second convolution; or separable
        "expansions": (2, 2, 4, 2),  # of the four groups of bottlenecks
        "dtype": "float32",  # of the computation
    },
    "offsets": 0.1,  # the network's outputs times this are offsets from the mean face; 0: the outputs are landmarks
    "loss": {
        "auxiliary": True,  # False: the squared error of the landmarks alone
        "rarity": "drawn",  # one of RARITIES
        "floor": 1.0,  # least factor of the landmark error; the paper has none
        "angles": 0.1,  # weight of the squared error of the angles; the paper has none
    },
    "optim": {
        "name": "adam",
        "weight_decay": 1e-6,
        "schedule": {"kind": "cosine", "peak": 2e-3, "warmup": 20, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=16, steps=800)),
    "eval": {
        **asdict(Evaluation()),
        "weights": "",  # ONNX file of the published network, to evaluate in place of the trained one
    },
}


def published(kind: str, landmarks: int, images: int, normalizer: str) -> dict[str, Any]:
    """Adam at 1e-4 with batches of 256; 500 epochs of ten crops an image, as in polarisZhao/PFLD-pytorch."""
    return {
        "data": {
            "kind": kind, "path": kind, "landmarks": landmarks, "image_size": 112, "workers": 8,
            "augment": asdict(Augmentation(rotation=30.0, scale=0.12, shift=0.1, colour=0.0)),
        },
        "profiles": 1.0,
        "offsets": 0.0,
        "model.width": 1.0,
        "loss": {"rarity": "batch", "angles": 0.0, "floor": 0.0},
        "optim.schedule": {"kind": "constant", "peak": 1e-4, "warmup": 0},
        "train": {"batch_size": 256, "steps": 500 * 10 * images // 256},
        "eval": {"normalizer": normalizer, "limit": 0.1},
    }  # fmt: skip


PRESETS = {
    "synthetic": {},
    "plain": {"loss.auxiliary": False},
    "pose_only": {"loss.rarity": "none"},
    "weighed": {"loss.rarity": "data"},
    "batch": {"loss.rarity": "batch"},
    "wflw": published("wflw", 98, 7_500, "inter_ocular"),
    "300w": published("300w", 68, 3_148, "inter_pupil"),
    "published_68": {
        "data.image_size": 112,
        "offsets": 0.0,
        "model": {"width": 1.0, "second": "separable", "expansions": (1, 1, 2, 1)},
    },
}
CLAIM = Claim(
    "pfld.auxiliary",
    "weights of pose error and rarity lower the NME of faces turned by more than 40 degrees below the squared error",
    metric="nme_pose",
    better="lower",
    method="synthetic",
    baseline=("plain",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    data, options, evaluation = (
        LandmarkImages(**config.data),
        Options(**config.train),
        app.section(Evaluation, config.eval),
    )
    net = pfld.Net(data.landmarks, **{**config.model, "dtype": jnp.dtype(config.model.dtype)})
    weighed, size, batch_size = config.loss, data.image_size, config.train.batch_size
    if weighed.rarity not in RARITIES:
        raise ValueError(f"loss.rarity is {weighed.rarity!r}: expected one of {', '.join(RARITIES)}")
    face = mean_face(data.landmarks) if weighed.auxiliary or config.profiles < 1 else None
    start, scale = (data.mean_shape(), config.offsets) if config.offsets else (0.0, 1.0)
    of_data = weighed.auxiliary and weighed.rarity == "data"

    def members(angles: jax.Array, attributes: jax.Array) -> jax.Array:
        named = dict(zip(data.attributes, jnp.moveaxis(attributes, -1, 0), strict=True))
        none = jnp.zeros(len(angles), bool)
        return pfld.kinds(angles, named.get("expression", none), named.get("occlusion", none))

    def losses(outputs: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        points, truth = start + scale * outputs["points"], batch["points"] / size
        if not weighed.auxiliary:
            return {"landmarks": jnp.sum((points - truth) ** 2, (1, 2))}
        angles = pfld.pose_of(batch["points"], face)
        weights = batch["weight"] if of_data else jnp.ones(len(truth))
        if weighed.rarity == "batch":
            weights = pfld.rarity(members(angles, batch["attributes"]), AXIS)
        loss = pfld.pfld_loss(points, truth, outputs["angles"], angles, weights, weighed.floor)
        terms = {"landmarks": loss}
        if weighed.angles:
            terms["angles"] = weighed.angles * jnp.sum((outputs["angles"] - angles) ** 2, -1)
        return terms

    def train_data() -> Iterator[dict[str, np.ndarray]]:
        source = data.source("train")
        drawn = weighed.auxiliary and weighed.rarity == "drawn"
        if not (of_data or drawn or config.profiles < 1):
            return data.batches(batch_size, config.seed, source)
        faces = pipeline.fetch(source, range(len(source)))
        points, attributes = (np.stack([found[name] for found in faces]) for name in ("points", "attributes"))
        kinds = np.asarray(members(pfld.pose_of(points.astype(np.float32), face), attributes))
        rows = few(kinds[:, 0] > 0, config.profiles, config.seed)
        weights = np.asarray(pfld.rarity(kinds[rows]))
        if drawn:
            rows = np.repeat(rows, np.maximum(np.rint(REPEATS * weights / weights.mean()).astype(int), 1))
        source = Part(source, rows)
        return data.batches(batch_size, config.seed, Weighed(source, weights) if of_data else source)

    def decode(outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"points": size * (start + scale * outputs["points"])}

    run = aligner(
        net, data, optim.from_config(config.optim, config.train.steps), options, evaluation,
        losses=losses, decode=decode, preprocess=normalize.unit, seed=config.seed,
    )  # fmt: skip
    batch = run.batch | ({"weight": jax.ShapeDtypeStruct((batch_size,), jnp.float32)} if of_data else {})
    run = replace(run, train_data=train_data, batch=batch)
    if not config.eval.weights:
        return run

    def evaluate(state: TrainState) -> Report:
        from facejax.interop import pfld as interop  # only published weights need it

        template = jax.eval_shape(lambda: {"params": state.params, **state.model_state})
        variables = interop.load(config.eval.weights, template)
        predict = lambda v, images: decode(net.apply(v, normalize.unit(images), train=False))  # noqa: E731
        return evaluated(predict, variables, data, evaluation)

    return replace(run, evaluate=evaluate)


def few(rare: np.ndarray, part: float, seed: int) -> np.ndarray:
    """Sorted indices of all faces that are not `rare` [N] and of so many random rare ones that they are a `part`."""
    others, found = np.flatnonzero(~rare), np.flatnonzero(rare)
    if part < 1:
        count = min(round(part / (1 - part) * len(others)), len(found))
        found = np.random.default_rng(seed).permutation(found)[:count]
    return np.sort(np.concatenate([others, found]))


if __name__ == "__main__":
    app.main(get_config, build)
