"""DAN: stages of alignment, each on the face as the last one found it.

    python -m experiments.dan                            # turned rendered faces, two cores
    python -m experiments.dan --config=first_stage       # the same network, landmarks of its first stage
    python -m experiments.dan --config=one_stage         # one stage, trained for as many steps
    python -m experiments.dan --config=300w --config.data.path=DIR      # one GPU

DIR holds 300W's afw, helen, lfpw and ibug with their .pts files.

Published (paper), 300W, mean error in % of the distance of the outer eye corners, full / common / challenging:
3.59 / 3.19 / 5.24. The authors train stages until the validation error stops falling quickly and do not record their
length; 30 epochs of each are our choice. They start from the boxes of a detector, this run from those of the landmarks.

The first stage is trained first; each later stage is trained from its part of the steps on, with the earlier stages'
parameters frozen.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.alignment import dan
from facejax.data import pipeline
from facejax.data.landmark_images import Augmentation, LandmarkImages, loader
from facejax.metrics.landmarks import face_sizes
from facejax.recipes.aligner import Evaluation, evaluated
from facejax.train import (
    AXIS,
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    new_figure,
    optim,
    reduce_gradients,
    value_and_grad,
    warm_start,
)
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(
        LandmarkImages(
            image_size=48,
            enlarge=1.6,
            hard_test=True,
            augment=Augmentation(rotation=40.0, scale=0.2, shift=0.1, colour=0.2),
        )
    ),
    "model": {
        "starts": (0.5,),  # parts of the training after which the second and each later stage is trained
        "reach": 4,  # half side of the squares drawn into the heatmaps, pixels
        "widths": (8, 16, 32, 64),  # of the pairs of convolutions
        "features": 64,  # width of the fully connected layer
        "dropout": 0.1,
        "crops": 2400,  # training crops from which mean shape, mean image and deviation are computed
        "dtype": "float32",  # of the computation
    },
    "loss": {"normalizer": "inter_pupil"},  # face size that divides the distances
    "optim": {
        "name": "adam",
        "schedule": {"kind": "cosine", "peak": 4e-3, "warmup": 0},  # of each stage
    },
    "train": asdict(Options(batch_size=32, steps=500)),
    "eval": {
        **asdict(Evaluation()),
        "stage": 0,  # whose landmarks are evaluated; 0: the last
    },
}
PRESETS = {
    "synthetic": {},
    "first_stage": {"eval.stage": 1},
    "one_stage": {"model.starts": ()},
    "300w": {
        "data": {
            "kind": "300w", "path": "300w", "image_size": 112, "enlarge": 2.0, "hard_test": False, "workers": 8,
            "augment": {"rotation": 20.0, "scale": 0.25, "shift": 0.1, "normal": True, "colour": 0.0},
        },
        "model": {"reach": 8, "widths": (64, 128, 256, 512), "features": 256, "dropout": 0.5, "crops": 3136},
        "optim.schedule": {"kind": "constant", "peak": 1e-3},
        "train": {"batch_size": 64, "steps": 57_120, "devices": 1},
        "eval.normalizer": "inter_ocular",
    },
}  # fmt: skip
CLAIM = (
    Claim(
        "dan.stages",
        "the second stage lowers the first one's error on turned and shifted faces",
        metric="nme",
        better="lower",
        method="synthetic",
        baseline=("first_stage",),
    ),
    Claim(
        "dan.large_pose",
        "the second stage lowers the first one's error on faces seen from the side",
        metric="nme_pose",
        better="lower",
        method="synthetic",
        baseline=("first_stage",),
    ),
    Claim(
        "dan.one_stage",
        "two stages have a lower error than one that is trained for as many steps",
        metric="nme",
        better="lower",
        method="synthetic",
        baseline=("one_stage",),
    ),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    data, options = LandmarkImages(**config.data), Options(**config.train)
    evaluation, steps = app.section(Evaluation, config.eval), config.train.steps
    starts = [0, *(round(part * steps) for part in config.model.starts)]
    lengths = np.diff([*starts, steps])
    if (lengths < 1).any():
        raise ValueError(
            f"model.starts is {config.model.starts} of {steps} steps: expected rising parts between 0 and 1"
        )
    stages = len(starts)
    if not 0 <= config.eval.stage <= stages:
        raise ValueError(f"eval.stage is {config.eval.stage}: expected 0 to {stages}, the number of stages")
    net = dan.DAN(
        stages,
        data.image_size,
        config.model.reach,
        data.landmarks,
        tuple(config.model.widths),
        config.model.features,
        config.model.dropout,
        dtype=jnp.dtype(config.model.dtype),
    )
    txs = {f"stage{i}": optim.from_config(config.optim, int(n)) for i, n in enumerate(lengths, 1)}

    def prepare() -> dict[str, np.ndarray]:
        return statistics(data, config.model.crops, options.batch_size, config.seed)

    def init(rng: jax.Array, start: dict[str, np.ndarray] | None) -> TrainState:
        variables = dict(net.init(rng, jnp.zeros((2, data.image_size, data.image_size, 1)), train=False))
        params = variables.pop("params")
        variables[dan.STATISTICS] = warm_start.taken(start, variables[dan.STATISTICS])
        optimizers = {name: tx.init(params[name]) for name, tx in txs.items()}
        return TrainState(jnp.zeros((), jnp.int32), rng, params, optimizers, model_state=variables)

    def training(stage: int) -> Any:
        name = f"stage{stage}"

        def step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
            def loss_fn(own: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
                variables = {**state.model_state, "params": {**state.params, name: own}, "batch_stats": batch_stats}
                out, updated = net.apply(
                    variables, grey(batch["image"]), train=True, last=stage, mutable=["batch_stats"],
                    rngs={"dropout": rng},
                )  # fmt: skip
                sizes = face_sizes(batch["points"], config.loss.normalizer)
                losses = dan.landmark_error(out["points"][-1], batch["points"], sizes)
                return losses.mean(), (updated["batch_stats"], {f"{name}_error": Mean.of(losses)})

            gradients = value_and_grad(loss_fn, options.microbatches)
            grads, batch_stats, metrics = gradients(state.params[name], state.model_state["batch_stats"], batch, rng)
            moves, optimizer = txs[name].update(reduce_gradients(grads), state.opt_state[name], state.params[name])
            state = state.replace(
                step=state.step + 1,
                params={**state.params, name: optax.apply_updates(state.params[name], moves)},
                opt_state={**state.opt_state, name: optimizer},
                model_state={**state.model_state, "batch_stats": lax.pmean(batch_stats, AXIS)},
            )
            return state, metrics

        return step

    def predict(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        points = net.apply(variables, grey(images), train=False, last=config.eval.stage or None)["points"]
        names = ["mean_shape", *(f"stage{i}" for i in range(1, len(points) - 1)), "points"]
        return dict(zip(names, points, strict=True))

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params, **state.model_state}
        report = evaluated(predict, variables, data, evaluation)
        return report | Report({}, figures={"Stages and what they see": stage_figure(net, variables, data)})

    return Experiment(
        evaluate=evaluate,
        init=init,
        prepare=prepare,
        train_step={f"stage{i}": training(i) for i in range(1, stages + 1)},
        choose=lambda number: f"stage{int(np.searchsorted(starts, number))}",
        train_data=lambda: data.batches(options.batch_size, config.seed),
        batch={f"stage{i}": data.shapes(options.batch_size) for i in range(1, stages + 1)},
    )


def grey(images: jax.Array) -> jax.Array:
    """uint8 RGB [N, S, S, 3] -> the mean of the channels, float32 [N, S, S, 1]."""
    return images.astype(jnp.float32).mean(-1, keepdims=True)


def statistics(data: LandmarkImages, crops: int, batch_size: int, seed: int) -> dict[str, np.ndarray]:
    """The mean shape, and per pixel the mean and the deviation of the grey values, of augmented training crops."""
    load = loader(data.image_size, data.partners, data.augment)
    batches = pipeline.train_batches(
        data.source("train"), load, batch_size, seed=seed, threads=data.threads, process=(0, 1)
    )
    shapes, total, squares, count = [], 0.0, 0.0, -(-crops // batch_size)
    for _ in range(count):
        batch = next(batches)
        images = batch["image"].mean(-1)
        total, squares = total + images.sum(0), squares + (images**2).sum(0)
        shapes.append(batch["points"])
    batches.close()
    mean, square = total / (count * batch_size), squares / (count * batch_size)
    return {
        "mean_shape": dan.mean_shape(jnp.concatenate(shapes), data.image_size, 1 / data.enlarge),
        "mean_image": mean,
        "deviation_image": np.sqrt(np.maximum(square - mean**2, 0)),
    }


def stage_figure(net: dan.DAN, variables: Any, data: LandmarkImages, number: int = 6) -> Any:
    """Per test face a row: the landmarks from the mean shape to the last stage, then every later stage's inputs."""
    images = data.test().crops(range(number))
    out = jax.jit(lambda v, x: net.apply(v, grey(x), train=False))(variables, images)
    titles = ["mean shape", *(f"stage {i}" for i in range(1, net.stages + 1))]
    seen = [(i, name) for i in range(2, net.stages + 1) for name in ("image", "heatmap", "features")]
    columns = len(titles) + len(seen)
    figure, axes = new_figure(1.6 * columns, 1.6 * number, number, columns)
    for axis in axes.ravel():
        axis.set_axis_off()
    for row, image in enumerate(images):
        for axis, title, points in zip(axes[row], titles, out["points"], strict=False):
            axis.imshow(image)
            axis.plot(*points[row].T, ".", color="red", markersize=2)
            axis.set(xlim=(-0.5, data.image_size - 0.5), ylim=(data.image_size - 0.5, -0.5))
            axis.set_title(title, fontsize=8)
        for axis, (stage, name), channel in zip(axes[row, len(titles) :], seen, (0, 1, 2) * net.stages, strict=False):
            axis.imshow(np.asarray(out["inputs"][stage - 1][row, ..., channel], np.float32), cmap="gray")
            axis.set_title(f"stage {stage}: {name}", fontsize=8)
    return figure


if __name__ == "__main__":
    app.main(get_config, build)
