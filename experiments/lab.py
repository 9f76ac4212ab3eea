"""LAB: landmarks regressed from the image and from estimated boundary lines, which a discriminator judges.

    python -m experiments.lab                      # rendered faces, two cores
    python -m experiments.lab --config=none        # the same regressor without boundaries
    python -m experiments.lab --config=true        # with the true boundaries, in training and in the test
    python -m experiments.lab --config=alone       # without the discriminator
    python -m experiments.lab --config=messages    # with messages between the boundaries
    python -m experiments.lab --config=wflw --config.data.path=DIR         # one GPU; 300w likewise

Published, inter-ocular NME in %: 300W 3.49 (common 2.98, challenging 5.19), WFLW 5.27 (the pages of wywu/LAB and of
FengZhenhua/Wing-Loss). Their test crops come from the true landmarks, as here.

The report plots the error of the landmarks against the error of the boundaries that the regressor is given: true ones,
blurred and noisy in steps, estimated ones, and none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.alignment import lab
from facejax.data.keypoints import moved
from facejax.data.landmark_images import LandmarkImages
from facejax.evaluate import alignment
from facejax.evaluate.boundaries import maps_figure, quality_figure
from facejax.metrics import landmarks
from facejax.ops import boundaries, heatmaps
from facejax.recipes.aligner import Evaluation
from facejax.train import (
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    map_batches,
    optim,
    supervised_step,
)
from facejax.train.claims import Claim

SOURCES = ("predicted", "true", "none")
BASE = {
    "seed": 0,
    "boundaries": "predicted",  # what the regressor is given; one of SOURCES
    "offsets": 0.1,  # outputs times this are offsets from the mean face; 0: from the middle of the crop, unscaled
    "data": asdict(LandmarkImages(image_size=32)),
    "estimator": {
        "stacks": 1,  # hourglasses
        "width": 32,  # channels of the hourglasses
        "depth": 2,  # their poolings
        "stride": 2,  # of the heatmaps, 4 or 2
        "message_width": 0,  # channels of a boundary where messages pass; 0 passes none
        "message_kernel": 3,  # side of the kernels there
        "dtype": "float32",  # to compute in
    },
    "regressor": {
        "widths": (16, 32, 64),  # channels of the stages
        "blocks": 1,  # residual blocks of a stage
        "hidden": 128,  # width of the dense layer before the last
        "depth": 1,  # poolings of the hourglasses that fuse
        "dtype": "float32",  # to compute in
    },
    "discriminator": {
        "widths": (16, 32),  # channels of its convolutions
        "dtype": "float32",  # to compute in
    },
    "loss": {
        "sigma": 1.0,  # of the boundaries' heatmaps, in their pixels
        "samples": 40,  # points on a boundary
        "rounded": False,  # distances to the pixels that the points fall in (LAB), not to the line
        "landmarks": 100.0,  # weight of the squared error, in units of the crop's side
        "adversarial": 0.01,  # weight of the discriminator's judgement; 0 leaves it out
        "theta": 1.5,  # distance, in pixels of the crop, within which a landmark is right
        "delta": 0.8,  # fraction of a boundary's landmarks that must be right
    },
    "optim": {"name": "adam", "weight_decay": 0.0, "schedule": {"kind": "cosine", "peak": 3e-3, "warmup": 0}},
    "discriminator_optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "constant", "peak": 3e-4, "warmup": 0},
    },
    "train": asdict(Options(batch_size=16, steps=300)),
    "eval": asdict(Evaluation()),
}


def published(kind: str, landmarks: int, images: int) -> dict[str, Any]:
    """The published networks; the paper states no optimizer and no schedule, these are ours."""
    return {
        "data": {"kind": kind, "path": kind, "landmarks": landmarks, "image_size": 256, "workers": 8},
        "offsets": 0.0,
        "estimator": {"stacks": 4, "width": 256, "depth": 4, "stride": 4, "message_width": 16, "message_kernel": 7},
        "regressor": {"widths": (64, 128, 256, 512), "blocks": 2, "hidden": 256, "depth": 2},
        "discriminator": {"widths": (64, 128, 256, 16)},
        "loss.rounded": True,
        "optim.schedule.peak": 3e-4,
        "train": {"batch_size": 16, "steps": 200 * images // 16},
        "eval": {"normalizer": "inter_ocular", "limit": 0.1},
    }


PRESETS = {
    "synthetic": {},
    "none": {"boundaries": "none"},
    "true": {"boundaries": "true"},
    "alone": {"loss.adversarial": 0.0},
    "messages": {"estimator.message_width": 4},
    "300w": published("300w", 68, 3_148),
    "wflw": published("wflw", 98, 7_500),
}
CLAIM = (
    Claim(
        "lab.boundaries", "estimated boundaries lower the landmark error of a regressor",
        metric="nme", better="lower", method="synthetic", baseline=("none",),
    ),
    Claim(
        "lab.true_boundaries", "true boundaries lower it further",
        metric="nme", better="lower", method="true", baseline=("synthetic", "none"),
    ),
)  # fmt: skip
BLURS, NOISES = (1, 2, 4, 8), (0.1, 0.2, 0.4, 0.8)
"""Radii in pixels of the heatmaps, and deviations, of the boundaries whose effect the report plots."""


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: estimator and regressor share an optimizer, the discriminator has its own."""
    if config.boundaries not in SOURCES:
        raise ValueError(f"boundaries is {config.boundaries!r}: expected one of {', '.join(SOURCES)}")
    data, protocol, loss = LandmarkImages(**config.data), Evaluation(**config.eval), config.loss
    size, side, batch = data.image_size, data.image_size // config.estimator.stride, config.train.batch_size
    middle, start = (size - 1) / 2, size * data.mean_shape() - 0.5 if config.offsets else None
    lines = boundaries.LINES[data.landmarks].values()
    members = np.array([[i in line for i in range(data.landmarks)] for line in lines])
    nets = {
        "estimator": lab.BoundaryEstimator(boundaries=len(members), **typed(config.estimator)),
        "regressor": lab.LandmarkRegressor(landmarks=data.landmarks, **typed(config.regressor)),
        "discriminator": lab.Discriminator(**typed(config.discriminator)),
    }
    predicted = config.boundaries == "predicted"
    judged = predicted and loss.adversarial > 0
    parts = ("regressor", *(["estimator"] if predicted else []), *(["discriminator"] if judged else []))
    tx = optax.multi_transform(
        {
            "aligner": optim.from_config(config.optim, config.train.steps),
            "discriminator": optim.from_config(config.discriminator_optim, config.train.steps),
        },
        {name: name if name == "discriminator" else "aligner" for name in parts},
    )

    def placed(found: jax.Array) -> jax.Array:
        """Landmarks of the regressor's outputs."""
        return start + config.offsets * (found - middle) if config.offsets else found

    def drawn(points: jax.Array) -> jax.Array:
        """True heatmaps [n, side, side, B] of landmarks in pixels of the crop."""
        points = (points + 0.5) / config.estimator.stride - 0.5
        options = {"sigma": loss.sigma, "samples": loss.samples, "ends": "natural", "rounded": loss.rounded}
        return boundaries.boundary_maps(points, (side, side), **options)

    def init(rng: jax.Array) -> TrainState:
        images, maps = jnp.zeros((2, size, size, 3)), jnp.zeros((2, side, side, len(members)))
        inputs = {"estimator": (images,), "regressor": (images, maps), "discriminator": (maps,)}
        params, states = {}, {}
        for i, name in enumerate(SEEDED):
            if name in parts:
                variables = dict(nets[name].init(jax.random.fold_in(rng, i), *inputs[name], **mode(name, False)))
                params[name], states[name] = variables.pop("params"), variables
        return TrainState.create(rng, params, tx, model_state=states)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        images, truth, states = lab.standardized(batch["image"]), batch["points"], dict(model_state)

        def run(name: str, *inputs: jax.Array) -> Any:
            variables = {"params": params[name], **model_state[name]}
            found, states[name] = nets[name].apply(variables, *inputs, train=True, mutable=["batch_stats"])
            return found

        def judge(weights: Any, maps: jax.Array) -> jax.Array:
            return nets["discriminator"].apply({"params": weights}, maps)

        true, terms = drawn(truth), {}
        given = true if config.boundaries == "true" else jnp.zeros_like(true)
        if predicted:
            stacks = run("estimator", images)
            given = lax.stop_gradient(stacks[-1])
            terms["boundary_loss"] = lab.boundary_loss(stacks, true)
        points = placed(run("regressor", images, given))
        terms["landmark_loss"] = loss.landmarks * lab.landmark_loss(points, truth, size)
        if judged:
            labels = lab.effective(points, truth, members, theta=loss.theta, delta=loss.delta)
            judgement = judge(lax.stop_gradient(params["discriminator"]), stacks[-1])
            terms["adversarial_loss"] = loss.adversarial * lab.adversarial_loss(judgement)
            real, fake = (judge(params["discriminator"], maps) for maps in (true, given))
            terms["discriminator_loss"] = lab.discriminator_loss(real, fake, labels)
        metrics = {name: Mean.of(term) for name, term in terms.items()}
        if judged:
            metrics["effective"] = Mean.of(labels)
        return sum(term.mean() for term in terms.values()), (states, metrics)

    def predict(variables: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        """Estimated heatmaps, and landmarks by the name of what the regressor is given."""
        images, true = lab.standardized(batch["image"]), drawn(batch["points"])

        def run(name: str, *inputs: jax.Array) -> Any:
            return nets[name].apply(variables[name], *inputs, train=False)

        given = {"true": true, "none": jnp.zeros_like(true)}
        if predicted:
            given["predicted"] = run("estimator", images)[-1]
            noise = jax.random.normal(jax.random.key(0), true.shape)
            given |= {f"blurred {r}": heatmaps.blur(true, r) for r in BLURS}
            given |= {f"noisy {s}": true + s * noise for s in NOISES}
        else:
            given = {config.boundaries: given[config.boundaries]}
        maps = jnp.stack([*given.values()])
        found = run("regressor", jnp.tile(images, (len(given), 1, 1, 1)), maps.reshape(-1, *true.shape[1:]))
        points = placed(found)
        errors = jnp.sqrt(jnp.square(maps - true).sum((2, 3, 4)) / jnp.square(true).sum((1, 2, 3)))
        return {
            "points": dict(zip(given, points.reshape(len(given), *batch["points"].shape), strict=True)),
            "errors": dict(zip(given, errors, strict=True)),
            "maps": given[config.boundaries].max(-1),
            "true": true.max(-1),
        }

    def evaluate(state: TrainState) -> Report:
        faces = data.test()
        variables = {name: {"params": state.params[name], **state.model_state.get(name, {})} for name in parts}

        def load(rows: Sequence[int]) -> dict[str, np.ndarray]:
            points = np.stack([moved(faces.points[i], faces.matrices[i]) for i in rows]).astype(np.float32)
            return {"image": faces.crops(rows), "points": points}

        found = map_batches(predict, variables, range(len(faces)), protocol.batch_size, load)
        points = {name: faces.original(p.astype(np.float64)) for name, p in found["points"].items()}
        result = alignment.report(
            faces, {"points": points[config.boundaries]}, normalizer=protocol.normalizer, limit=protocol.limit
        )
        if predicted:
            sizes = landmarks.face_sizes(faces.points, protocol.normalizer, faces.boxes)
            rows = [
                {
                    "boundaries": name,
                    "their error": float(found["errors"][name].mean()),
                    "NME": 100 * float(landmarks.normalized_mean_error(p, faces.points, sizes).mean()),
                }
                for name, p in points.items()
            ]
            result.metrics["boundary_error"] = float(found["errors"]["predicted"].mean())
            result.metrics |= {f"nme_{r['boundaries']}": r["NME"] for r in rows if r["boundaries"] in ("true", "none")}
            result.notes["boundary_error"] = "distance of the heatmaps to the true ones, relative to the norm of these"
            result.tables["The better the boundary, the better the landmarks"] = rows
            result.figures["The better the boundary, the better the landmarks"] = quality_figure(rows)
        result.figures["Boundaries: given to the regressor above, true below"] = maps_figure(
            faces, found["maps"][:6], found["true"][:6]
        )
        return result

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_fn, tx, microbatches=config.train.microbatches),
        train_data=lambda: data.batches(batch, config.seed),
        batch=data.shapes(batch),
    )


SEEDED = ("estimator", "regressor", "discriminator")
"""Order of the networks' keys."""


def mode(name: str, train: bool) -> dict[str, bool]:
    """Call arguments: the discriminator has no batch norm."""
    return {} if name == "discriminator" else {"train": train}


def typed(section: ConfigDict) -> dict[str, Any]:
    """A section of the configuration as fields of a module."""
    return {**section, "dtype": jnp.dtype(section.dtype)}


if __name__ == "__main__":
    app.main(get_config, build)
