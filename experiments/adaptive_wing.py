"""Adaptive Wing: heatmaps of landmarks and boundary lines, trained with a loss that follows the target.

python -m experiments.adaptive_wing                             # rendered faces, 68 landmarks, two cores
python -m experiments.adaptive_wing --config=unweighted         # without the weight map
python -m experiments.adaptive_wing --config=squared_error      # the usual loss of heatmaps
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.alignment import adaptive_wing
from facejax.data import normalize
from facejax.data.keypoints import moved
from facejax.data.landmark_images import Augmentation, LandmarkImages
from facejax.recipes.aligner import Evaluation, aligner
from facejax.train import Experiment, Options, Report, TrainState, app, new_figure, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(LandmarkImages(augment=Augmentation(rotation=10.0, scale=0.1, shift=0.03))),
    "model": {
        "stacks": 2,  # hourglasses
        "depth": 2,  # halvings in each
        "features": 24,  # their width
        "dtype": "float32",  # of the computation
    },
    "loss": {
        "name": "adaptive_wing",  # or squared_error
        "stress": 10.0,  # additional weight of pixels on and next to peaks and lines
    },
    "target": {
        "sigma": 0.75,  # of the landmarks' Gaussians, pixels of the map, which has a quarter of the image's side
        "radius": 3,  # half side of their window
        "boundary_sigma": 0.5,  # across the boundary lines
        "samples": 30,  # of each line
    },
    "optim": {
        "name": "rmsprop", "momentum": 0.0, "b2": 0.99, "weight_decay": 0.0,
        "eps": 1e-16,  # added to the mean square; PyTorch adds 1e-8 to its root
        "schedule": {"kind": "cosine", "peak": 2e-3, "warmup": 20, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=16, steps=400)),
    "eval": asdict(Evaluation()),
}  # fmt: skip


def published(kind: str, landmarks: int, images: int, normalizer: str) -> dict[str, Any]:
    """The paper's settings for a data set of so many training images: 240 epochs of batches of 8."""
    augment = {
        "rotation": 50.0, "scale": 0.15, "shift": 25 / 256, "blur": 0.3, "noise": 0.3, "occlusion": 0.3, "colour": 0.0,
    }  # fmt: skip
    return {
        "data": {
            "kind": kind, "path": kind, "landmarks": landmarks, "image_size": 256, "enlarge": 1.344, "workers": 8,
            "augment": augment, "crop": "box" if kind == "wflw" else "points",
        },
        "model": {"stacks": 4, "depth": 4, "features": 256},
        "target": {"sigma": 1.75, "boundary_sigma": 1.0, "samples": 100},
        "optim": {
            "weight_decay": 1e-5,
            "schedule": {"kind": "step", "peak": 1e-4, "warmup": 0, "boundaries": (1 / 3, 2 / 3)},
        },
        "train": {"batch_size": 8, "steps": 240 * images // 8},
        "eval": {"normalizer": normalizer, "limit": 0.1},
    }  # fmt: skip


PRESETS = {
    "synthetic": {},
    "unweighted": {"loss.stress": 0.0},
    "squared_error": {"loss": {"name": "squared_error", "stress": 0.0}},
    "300w": published("300w", 68, 3_148, "inter_ocular"),
    "wflw": published("wflw", 98, 7_500, "inter_ocular"),
    "cofw": published("cofw", 29, 1_345, "inter_pupil"),
    "aflw": published("aflw", 19, 20_000, "box"),
}
CLAIM = Claim(
    "adaptive_wing.loss",
    "the adaptive wing loss with its weight map lowers the NME of heatmaps below the squared error",
    metric="nme",
    better="lower",
    method="synthetic",
    baseline=("squared_error",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    data, options, evaluation = LandmarkImages(**config.data), Options(**config.train), Evaluation(**config.eval)
    net = adaptive_wing.Net(data.landmarks, **{**config.model, "dtype": jnp.dtype(config.model.dtype)})
    model = adaptive_wing.AdaptiveWing(net, config.loss.name, config.loss.stress, **config.target)
    tx = optim.from_config(config.optim, config.train.steps)
    run = aligner(
        net, data, tx, options, evaluation,
        losses=model.losses, decode=model.decode, preprocess=normalize.unit, seed=config.seed,
    )  # fmt: skip

    def evaluate(state: TrainState) -> Report:
        report = run.evaluate(state)
        report.figures["Boundary lines: faces, predicted, true"] = boundary_figure(model, state, data)
        return report

    return dataclasses.replace(run, evaluate=evaluate)


def boundary_figure(model: adaptive_wing.AdaptiveWing, state: TrainState, data: LandmarkImages, count: int = 6) -> Any:
    """Test faces, the boundary map of the last stack, and the true one."""
    faces = data.test()
    rows = np.arange(min(count, len(faces)))
    images = faces.crops(rows)
    variables = {"params": state.params, **state.model_state}
    predicted = jax.jit(lambda x: model.net.apply(variables, normalize.unit(x), train=False)[-1])(images)
    points = np.stack([moved(faces.points[i], faces.matrices[i]) for i in rows])
    true = model.targets(jnp.asarray(points, jnp.float32), predicted.shape[1:3])
    figure, axes = new_figure(1.5 * len(rows), 4.5, 3, len(rows))
    for shown, line in zip((images, predicted[..., -1].clip(0, 1), true[..., -1]), axes, strict=True):
        for image, axis in zip(shown, line, strict=True):
            axis.imshow(image, cmap="gray")
            axis.set_axis_off()
    return figure


if __name__ == "__main__":
    app.main(get_config, build)
