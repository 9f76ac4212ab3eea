"""MCL: a last layer of alignment assembled from copies that were fine-tuned for one cluster of landmarks each.

    python -m experiments.mcl                            # rendered faces, two cores
    python -m experiments.mcl --config=basic             # the basic network, trained for as many steps
    python -m experiments.mcl --config=equal             # copies of the last layer fine-tuned without emphasis
    python -m experiments.mcl --config=300w --config.data.path=DIR      # one GPU
    python -m experiments.mcl --config=cofw --config.data.path=DIR      # one GPU

DIR holds 300W's afw, helen, lfpw and ibug with their .pts files, or COFW_{train,test}_color.mat.

The phases follow each other in one run: the basic network; all of it with larger weights for landmarks with a large
error on held-out training faces; copies of the last layer on frozen features. The published rates are not known; those
of the presets are of the authors' earlier code with the same loss (ZhiwenShao/CFT): 0.02, multiplied by 0.3 every
30,000 of 160,000 steps, and 0.001 for 30,000 steps of fine-tuning; biases learn twice as fast, only kernels decay.

Published (recalled, not checked), mean error in % of the distance of the eyes' centres: 8.51 on 300W's challenging
faces, 6.00 on COFW.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.alignment import mcl
from facejax.data import normalize, pipeline, sources
from facejax.data.landmark_images import Augmentation, LandmarkImages, loader
from facejax.data.pipeline import Source
from facejax.evaluate import alignment
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
    optim,
    reduce_gradients,
    value_and_grad,
    warm_start,
)
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(LandmarkImages(image_size=50)),
    "model": {
        "pooled": True,  # False: the network of the conference version, see `facejax.alignment.mcl.Net`
        "widths": (16, 24, 32, 48),  # of the stacks of convolutions
        "features": 128,  # length of the feature vector
        "dtype": "float32",  # of the computation
    },
    "phases": {
        "weighting": 0.6,  # part of the training after which landmarks with a large error weigh more
        "centers": 0.8,  # part after which the copies of the last layer are trained
        "alpha": 125.0,  # weight of a copy's own landmarks, relative to the others
        "held_out": 200,  # training faces on which the landmarks' errors are measured
        "rate": 0.05,  # learning rate of both phases of fine-tuning, relative to the first
    },
    "loss": {"normalizer": "inter_pupil"},  # face size that divides the distances
    "optim": {
        "name": "sgd", "momentum": 0.9, "weight_decay": 5e-4,
        "decay": "all",  # parameters with weight decay: "all" or "kernels"
        "bias_rate": 1.0,  # learning rate of biases outside norms, relative to that of all others
        "schedule": {"kind": "step", "peak": 0.01, "warmup": 20, "boundaries": (0.5, 0.8), "factor": 0.3},  # of a phase
    },
    "train": asdict(Options(batch_size=32, steps=1200)),
    "eval": asdict(Evaluation()),
}  # fmt: skip
AUGMENT = {"rotation": 30.0, "scale": 0.15, "shift": 0.05, "colour": 0.0}
PUBLISHED = {
    "model": {"widths": (32, 64, 96, 128), "features": 512},
    "phases": {"weighting": 160 / 220, "centers": 190 / 220, "held_out": 300},
    "optim": {
        "decay": "kernels", "bias_rate": 2.0,
        "schedule": {"peak": 0.02, "warmup": 0, "boundaries": (30_000, 60_000, 90_000, 120_000, 150_000)},
    },
    "train": {"batch_size": 64, "steps": 220_000, "devices": 1},
    "eval": {"normalizer": "inter_pupil", "limit": 0.1},
}  # fmt: skip
PRESETS = {
    "synthetic": {},
    "basic": {"phases.weighting": 1.0, "phases.centers": 1.0},
    "equal": {"phases.alpha": 1.0},
    "300w": {**PUBLISHED, "data": {"kind": "300w", "path": "300w", "augment": AUGMENT, "workers": 8}},
    "cofw": {
        **PUBLISHED,
        "data": {"kind": "cofw", "path": "cofw", "landmarks": 29, "crop": "box", "augment": AUGMENT, "workers": 8},
    },
}
CLAIM = (
    Claim(
        "mcl.phases",
        "weighting and multi-center fine-tuning lower the error below that of the basic network, trained as long",
        metric="nme",
        better="lower",
        method="synthetic",
        baseline=("basic",),
    ),
    Claim(
        "mcl.centers",
        "copies of the last layer that emphasise one cluster each have a lower error than copies without emphasis",
        metric="nme",
        better="lower",
        method="synthetic",
        baseline=("equal",),
    ),
)
HELD = ("image", "points")


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    data, options = LandmarkImages(**config.data), Options(**config.train)
    evaluation, phases, size = Evaluation(**config.eval), config.phases, data.image_size
    if data.landmarks not in mcl.CLUSTERS:
        known = ", ".join(map(str, mcl.CLUSTERS))
        raise ValueError(f"data.landmarks is {data.landmarks}: clusters are known of {known}")
    starts = [0, *(round(phases[name] * options.steps) for name in ("weighting", "centers")), options.steps]
    if starts[1] < 1 or sorted(starts) != starts:
        found = f"phases.weighting is {phases.weighting} and phases.centers {phases.centers}"
        raise ValueError(f"{found}: expected rising parts of 1")
    clusters, settings = mcl.CLUSTERS[data.landmarks], config.model
    groups = tuple(clusters.values())
    emphasis = mcl.cluster_weights(groups, data.landmarks, phases.alpha)
    net = mcl.Net(
        data.landmarks, tuple(settings.widths), settings.features, settings.pooled, dtype=jnp.dtype(settings.dtype)
    )
    lengths = zip(("basic", "weighting", "centers"), np.diff(starts).tolist(), strict=True)
    txs = {phase: make_optimizer(config, phase, length) for phase, length in lengths}
    trained = dict(zip(txs, ("net", "net", "centers"), strict=True))

    def part(rows: slice) -> Source:
        """Some training faces, in a fixed random order; the first are held out."""
        source = data.source("train")
        if not 0 < phases.held_out < len(source):
            raise ValueError(f"phases.held_out is {phases.held_out} of {len(source)} faces: expected some, not all")
        return sources.Part(source, np.random.default_rng(config.seed).permutation(len(source))[rows])

    def prepare() -> dict[str, np.ndarray]:
        faces = part(slice(phases.held_out))
        still = loader(size, data.partners, Augmentation(rotation=0, scale=0, shift=0, flip=0, colour=0))
        batch = still(pipeline.fetch(faces, range(len(faces))), [np.random.default_rng(0)] * len(faces))
        return {name: batch[name] for name in HELD}

    def train_data() -> Iterator[dict[str, np.ndarray]]:
        load = loader(size, data.partners, data.augment)
        workers = {"threads": data.threads, "workers": data.workers}
        faces = part(slice(phases.held_out, None))
        return pipeline.train_batches(faces, load, options.batch_size, seed=config.seed, **workers)

    def init(rng: jax.Array, start: dict[str, np.ndarray] | None) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 1)), train=False)
        empty = {n: jnp.zeros(x.shape, x.dtype) for n, x in data.shapes(phases.held_out).items() if n in HELD}
        state = {
            "batch_stats": variables["batch_stats"],
            "basic": jax.tree.map(jnp.copy, variables),  # as it was when the first phase ended
            "held_out": warm_start.taken(start, empty),
            "weights": jnp.ones(data.landmarks),
        }
        params = {"net": variables["params"], "centers": copies(variables["params"]["shape"], len(groups))}
        optimizers = {phase: tx.init(params[trained[phase]]) for phase, tx in txs.items()}
        return TrainState(jnp.zeros((), jnp.int32), rng, params, optimizers, model_state=state)

    def errors(points: jax.Array, batch: dict[str, jax.Array], weights: jax.Array) -> jax.Array:
        sizes = face_sizes(batch["points"], config.loss.normalizer)
        return mcl.normalized_error(points, batch["points"], sizes, weights)

    def current(state: TrainState) -> dict[str, Any]:
        return {"params": state.params["net"], "batch_stats": state.model_state["batch_stats"]}

    def training(phase: str) -> Any:
        def step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
            def loss_fn(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
                if phase == "centers":
                    features = net.apply(current(state), grey(batch["image"]), train=False)["features"]
                    losses = errors(mcl.predicted(params, features, size), batch, emphasis[:, None]).sum(0)
                else:
                    variables = {"params": params, "batch_stats": batch_stats}
                    out, moved = net.apply(variables, grey(batch["image"]), train=True, mutable=["batch_stats"])
                    losses, batch_stats = (
                        errors(out["points"], batch, state.model_state["weights"]),
                        moved["batch_stats"],
                    )
                return losses.mean(), (batch_stats, {f"{phase}_loss": Mean.of(losses)})

            name, gradients = trained[phase], value_and_grad(loss_fn, options.microbatches)
            params, optimizer = state.params[name], state.opt_state[phase]
            grads, batch_stats, metrics = gradients(params, state.model_state["batch_stats"], batch, rng)
            moves, optimizer = txs[phase].update(reduce_gradients(grads), optimizer, params)
            batch_stats = batch_stats if phase == "centers" else lax.pmean(batch_stats, AXIS)
            return state.replace(
                step=state.step + 1,
                params={**state.params, name: optax.apply_updates(params, moves)},
                opt_state={**state.opt_state, phase: optimizer},
                model_state={**state.model_state, "batch_stats": batch_stats},
            ), metrics

        return step

    def measure(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        """Sets the weights of the landmarks, and keeps the basic network."""
        held = state.model_state["held_out"]
        points = net.apply(current(state), grey(held["image"]), train=False)["points"]
        distances = jnp.sqrt(((points - held["points"]) ** 2).sum(-1))
        sizes = jnp.maximum(face_sizes(held["points"], config.loss.normalizer), 1.0)
        weights = mcl.landmark_weights((distances / sizes[:, None]).mean(0))
        new = {**state.model_state, "weights": weights, "basic": current(state)}
        return state.replace(step=state.step + 1, model_state=new), {}

    def copy(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        """Copies the shape prediction layer for each cluster."""
        layers = copies(state.params["net"]["shape"], len(groups))
        return state.replace(step=state.step + 1, params={**state.params, "centers": layers}), {}

    def choose(number: int) -> str:
        if number <= starts[1]:
            return "basic"
        if number <= starts[2]:
            return "measure" if number == starts[1] + 1 else "weighting"
        return "copy" if number == starts[2] + 1 else "centers"

    def predict(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {"points": net.apply(variables, grey(images), train=False)["points"]}

    def evaluate(state: TrainState) -> Report:
        earlier, last = {}, current(state)
        if starts[1] < min(starts[2], state.step):
            earlier["basic"] = state.model_state["basic"]
        if starts[2] < state.step:
            earlier["weighted"] = last
            last = {**last, "params": {**last["params"], "shape": mcl.assemble(state.params["centers"], groups)}}
        report, faces = evaluated(predict, last, data, evaluation), data.test()
        find = functools.partial(alignment.find, predict, faces=faces, batch_size=evaluation.batch_size)
        found = {name: find(variables=x)["points"] for name, x in earlier.items()}
        found["assembled"] = report.arrays["landmarks"]
        rows = alignment.cluster_errors(found, faces.points, clusters, evaluation.normalizer)
        metrics = {f"nme_{name}": rows[0][name] for name in earlier}
        return report | Report(metrics, tables={"Errors of the clusters, %": rows})

    steps = {phase: training(phase) for phase in txs} | {"measure": measure, "copy": copy}
    used = {choose(number) for number in range(1, options.steps + 1)}
    return Experiment(
        evaluate=evaluate,
        init=init,
        prepare=prepare,
        train_step={name: steps[name] for name in used},
        choose=choose,
        train_data=train_data,
        batch={name: data.shapes(options.batch_size) for name in used},
    )


def copies(layer: Any, count: int) -> Any:
    """The layer `count` times along a new first axis."""
    return jax.tree.map(lambda x: jnp.repeat(x[None], count, 0), layer)


def make_optimizer(config: ConfigDict, phase: str, steps: int) -> optax.GradientTransformation:
    """The optimizer of a phase; the last one's takes copies of a layer along a first axis, each by itself."""
    settings = config.optim.to_dict()
    if phase != "basic":
        settings["schedule"]["peak"] *= config.phases.rate
    tx = optim.from_config(settings, steps)
    return optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update)) if phase == "centers" else tx


def grey(images: jax.Array) -> jax.Array:
    """uint8 RGB [N, S, S, 3] -> the mean of the channels in -1..1, [N, S, S, 1]."""
    return normalize.symmetric(images).mean(-1, keepdims=True)


if __name__ == "__main__":
    app.main(get_config, build)
