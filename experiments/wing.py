"""Wing loss: landmarks regressed from a crop, with a loss that also hears small errors.

    python -m experiments.wing                                     # rendered faces, 68 landmarks, two cores
    python -m experiments.wing --config=l2                         # also l1, smooth_l1
    python -m experiments.wing --config=balanced                   # rare poses repeated
    python -m experiments.wing --config=two_stage                  # a second network sees upright crops
    python -m experiments.wing --config=aflw --config.data.path=DIR            # one GPU; CNN-6
    python -m experiments.wing --config=300w --config.data.path=DIR            # CNN-6 and CNN-7 as two stages
    python -m experiments.wing --config=wflw --config.data.path=DIR --config.model.trunk=resnet50.pth    # also cofw

Published, all with balancing, NME in %: AFLW of the box's side CNN-6 1.83, CNN-6/7 1.65, ResNet-50 1.47; 300W common /
challenging / full, inter-pupil, CNN-6/7 3.27 / 7.18 / 4.04, ResNet-50 3.01 / 6.01 / 3.60; COFW (failures above 10 %)
CNN-6 5.44 (3.75), ResNet-50 5.07 (3.16); WFLW, inter-ocular, ResNet-50 4.99 (5.64) in the authors' repository.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.alignment import wing
from facejax.backbones.resnet import resnet50
from facejax.data import normalize
from facejax.data.landmark_images import Augmentation, LandmarkImages
from facejax.data.sources import Part
from facejax.recipes.aligner import Evaluation, aligner
from facejax.train import Experiment, Mean, Options, TrainState, app, optim, supervised_step, warm_start
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(LandmarkImages(augment=Augmentation(rotation=10.0, scale=0.1, shift=0.03))),
    "model": {
        "name": "cnn6",  # a key of NETS
        "width": 0.25,  # of all layers, relative to the published network; of cnn6, cnn7 and two_stage
        "dtype": "float32",  # of the computation
        "trunk": "",  # torchvision's weights of ResNet-50 to begin with; "" begins at random
    },
    "loss": {
        "name": "wing",  # or l2, l1, smooth_l1
        "width": 10.0,  # pixels of error where the wing's line begins
        "curvature": 2.0,  # of its logarithm
    },
    "offsets": 3.0,  # outputs times this are offsets in pixels from the mean face; 0: the outputs are landmarks
    "bins": 0,  # of the pose-based data balancing; 0 for none, the paper's is 9
    "optim": {
        "name": "adam", "momentum": 0.9, "weight_decay": 0.0,
        "schedule": {
            "kind": "cosine", "peak": 2e-3, "warmup": 20, "boundaries": (),
            "end": 0.0,  # least learning rate
        },
    },
    "train": asdict(Options(batch_size=16, steps=1600)),
    "eval": asdict(Evaluation()),
}  # fmt: skip


CROPS = {
    "300w": {"crop": "points", "enlarge": 1.25},
    "aflw": {"crop": "box", "enlarge": 1.0},
    "cofw": {"crop": "box", "enlarge": 1.0},
    "wflw": {"crop": "box", "enlarge": 1.25},
}
"""Kind of data -> its crops: the boxes that it gives, as they are; WFLW's enlarged by a quarter; 300W gives none."""


def published(kind: str, landmarks: int, steps: int, rates: tuple[float, float], **changes: Any) -> dict[str, Any]:
    """Batches of 8, SGD with a rate that falls exponentially, losses summed over the coordinates, nine bins."""
    augment = {"rotation": 30.0, "scale": 0.05, "shift": 0.05, "blur": 0.5, "colour": 0.0}
    return {
        "data": {
            "kind": kind, "path": kind, "landmarks": landmarks, "image_size": 64, "augment": augment, "workers": 8,
            **CROPS[kind],
        },
        "model.width": 1.0,
        "offsets": 0.0,
        "bins": 9,
        "optim": {
            "name": "sgd", "weight_decay": 5e-4,
            "schedule": {"kind": "exponential", "peak": rates[0], "end": rates[1], "warmup": 0},
        },
        "train": {"batch_size": 8, "steps": steps},
        "eval.limit": 0.1,
        **changes,
    }  # fmt: skip


def resnet(kind: str, landmarks: int, images: int, normalizer: str) -> dict[str, Any]:
    """ResNet-50 from ImageNet's weights, 200 epochs; the authors' rates and decay are for the mean over coordinates."""
    rates, outputs = (1e-3, 1e-6), 2 * landmarks
    changes = {
        "data.image_size": 224, "model.name": "resnet50", "optim.weight_decay": 5e-4 * outputs,
        "eval.normalizer": normalizer,
    }  # fmt: skip
    return published(kind, landmarks, 200 * images // 8, (rates[0] / outputs, rates[1] / outputs), **changes)


PRESETS = {
    "synthetic": {},
    "l2": {"loss.name": "l2"},
    "l1": {"loss.name": "l1"},
    "smooth_l1": {"loss.name": "smooth_l1"},
    "balanced": {"bins": 9},
    "two_stage": {"model.name": "two_stage", "data.image_size": 128, "offsets": 0.0},
    "aflw": published("aflw", 19, 120_000, (3e-5, 3e-7)),
    "300w": published(
        "300w", 68, 120_000, (3e-5, 3e-7),
        **{"data.image_size": 128, "model.name": "two_stage", "eval.normalizer": "inter_pupil"},
    ),
    "wflw": resnet("wflw", 98, 7_500, "inter_ocular"),
    "cofw": resnet("cofw", 29, 1_345, "inter_pupil"),
}  # fmt: skip
CLAIM = Claim(
    "wing.loss",
    "the wing loss lowers the NME below the L2, L1 and smooth L1 losses",
    metric="nme",
    better="lower",
    method="synthetic",
    baseline=("l2", "l1", "smooth_l1"),
)


def scaled(make: Callable[..., wing.CNN], landmarks: int, model: ConfigDict) -> wing.CNN:
    """A network with all layers narrowed."""
    net = make(landmarks, dtype=jnp.dtype(model.dtype))
    widths = tuple(round(model.width * width) for width in net.widths)
    return dataclasses.replace(net, widths=widths, dense=round(model.width * net.dense))


NETS = {
    "cnn6": lambda landmarks, model: scaled(wing.cnn6, landmarks, model),
    "cnn7": lambda landmarks, model: scaled(wing.cnn7, landmarks, model),
    "two_stage": lambda landmarks, model: wing.TwoStage(
        scaled(wing.cnn6, landmarks, model), scaled(wing.cnn7, landmarks, model)
    ),
    "resnet50": lambda landmarks, model: wing.ResNetPoints(resnet50(dtype=jnp.dtype(model.dtype)), landmarks),
}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    data, options, evaluation = LandmarkImages(**config.data), Options(**config.train), Evaluation(**config.eval)
    if config.model.name not in NETS:
        raise ValueError(f"model.name is {config.model.name!r}: expected one of {', '.join(NETS)}")
    net, loss = NETS[config.model.name](data.landmarks, config.model), make_loss(config.loss)
    tx = optim.from_config(config.optim, config.train.steps)
    two_stage = config.model.name == "two_stage"
    if two_stage and config.offsets:
        raise ValueError(f"offsets is {config.offsets} with two_stage: expected 0, its stages exchange landmarks")
    start = data.image_size * data.mean_shape() - 0.5 if config.offsets else 0.0

    def placed(found: jax.Array) -> jax.Array:
        """Landmarks of a network's outputs."""
        return start + config.offsets * found if config.offsets else found

    run = aligner(
        net, data, tx, options, evaluation,
        losses=lambda found, batch: {config.loss.name: loss(placed(found) - batch["points"])},
        decode=lambda found: {n: found[n] for n in ("points", "first")} if two_stage else {"points": placed(found)},
        preprocess=normalize.imagenet if config.model.name == "resnet50" else normalize.unit, seed=config.seed,
    )  # fmt: skip
    if two_stage:
        run = dataclasses.replace(run, train_step=supervised_step(two_stage_loss(net, loss, data.image_size), tx))
    if config.model.trunk:
        run = started(run, config)
    if config.bins:
        run = dataclasses.replace(
            run, train_data=lambda: balanced_batches(data, config.bins, options.batch_size, config.seed)
        )
    return run


def make_loss(settings: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """Errors [N, L, 2] in pixels -> [N], summed over the coordinates."""
    losses = {**wing.LOSSES, "wing": functools.partial(wing.wing, width=settings.width, curvature=settings.curvature)}
    if settings.name not in losses:
        raise ValueError(f"loss.name is {settings.name!r}: expected one of {', '.join(losses)}")
    return lambda error: losses[settings.name](error).sum((1, 2))


def two_stage_loss(net: wing.TwoStage, loss: Callable[[jax.Array], jax.Array], size: int) -> Any:
    """Both stages on the same images; the second one's crops are upright by the true landmarks, with a weak jitter."""

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        true = batch["points"]
        matrices = wing.perturbed(wing.upright(true, size, net.enlarge), rng, size)
        images = normalize.unit(batch["image"])
        found = net.apply({"params": params}, images, train=True, matrices=matrices)
        terms = {
            "first": loss(found["small"] - wing.resized(true, size, net.small)),
            "second": loss(found["upright"] - wing.transformed(true, matrices)),
        }
        total = sum(term.mean() for term in terms.values())
        return total, (model_state, {name: Mean.of(term) for name, term in terms.items()})

    return loss_fn


def started(run: Experiment, config: ConfigDict) -> Experiment:
    """The run with a trunk that begins from ImageNet's weights."""
    if config.model.name != "resnet50":
        raise ValueError(f"model.trunk is set and model.name is {config.model.name!r}: expected resnet50")

    def prepare() -> Any:
        from facejax.interop import torchvision  # only published weights need it

        shapes = jax.eval_shape(run.init, jax.random.key(0))
        parts = {"params": shapes.params, "batch_stats": shapes.model_state["batch_stats"]}
        return torchvision.load(config.model.trunk, {name: part["trunk"] for name, part in parts.items()})

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        state, given = run.init(rng), start or {}
        params, stats = state.params, state.model_state["batch_stats"]
        return state.replace(
            params={**params, "trunk": warm_start.taken(given.get("params"), params["trunk"])},
            model_state={"batch_stats": {"trunk": warm_start.taken(given.get("batch_stats"), stats["trunk"])}},
        )

    return dataclasses.replace(run, init=init, prepare=prepare)


def balanced_batches(data: LandmarkImages, bins: int, batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Training batches with repeated poses, each repetition with an augmentation of its own."""
    source, shapes = data.source("train"), []
    for i in range(len(source)):
        example = source[i]
        x, y, side = example["region"]
        shapes.append((example["points"] - [x, y]) / side)
    return data.batches(batch_size, seed, Part(source, wing.balanced(np.stack(shapes), bins)))


if __name__ == "__main__":
    app.main(get_config, build)
