"""PRNet: a map of the places of a face's points, from which landmarks and mesh are read.

    python -m experiments.prnet                            # rendered faces, two cores
    python -m experiments.prnet --config=uniform           # the same without the weights of landmarks and features
    python -m experiments.prnet --config.eval.path=AFLW2000         # AFLW2000-3D, too
    python -m experiments.prnet --config=full              # the published network and schedule, rendered faces; 1 GPU

The pictures and maps of `full` are enlarged from rendered ones of 64 pixels.
AFLW2000 holds the 2,000 official crops and their labels (`facejax.data.readers.aflw2000_crops`).

Published, NME in % of 68 points on AFLW2000-3D, mean of three bins of yaw: 3.62 (2.75, 3.51, 4.61), trained on 300W-LP
with the Basel face model, which is not a source of this experiment yet.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.data import normalize
from facejax.data.positions import PositionFaces
from facejax.data.readers.aflw2000_crops import Aflw2000Crops
from facejax.evaluate import reconstruction as evaluation
from facejax.metrics import landmarks, reconstruction
from facejax.morphable import pncc, uv
from facejax.morphable.lighting import incidence
from facejax.reconstruction import prnet
from facejax.train import (
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    image_grid,
    map_batches,
    optim,
    supervised_step,
)
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(PositionFaces()),
    "model": {
        "width": 4,  # of the first layer
        "momentum": 0.9,  # of batch norm's running averages
        "dtype": "float32",  # of the computation
    },
    "loss": {"weighted": True},  # False: all texels of the face weigh the same
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 2e-3, "warmup": 20, "boundaries": (), "factor": 0.5},
    },
    "train": asdict(Options(batch_size=16, steps=1000)),
    "eval": {
        "batch_size": 60,  # crops a call
        "path": "",  # folder of the crops of AFLW2000-3D, to evaluate on them too
    },
}
PRESETS = {
    "synthetic": {},
    "uniform": {"loss.weighted": False},
    "full": {
        "data": {"image_size": 256, "workers": 8},
        "model": {"width": 16, "momentum": 0.999},
        "optim.schedule": {
            "kind": "step", "peak": 1e-4, "warmup": 0, "boundaries": tuple(i / 6 for i in range(1, 6)),
        },
        "train": {"batch_size": 16, "steps": 230_000, "devices": 1, "eval_every": 0},
    },
}  # fmt: skip
CLAIM = Claim(
    "prnet.weights",
    "weights of landmarks and features in the loss lower the NME of the landmarks below equal weights",
    metric="nme",
    better="lower",
    method="synthetic",
    baseline=("uniform",),
)
SHOWN = 6


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    data, options = PositionFaces(**config.data), Options(**config.train)
    size, layout = data.image_size, data.layout
    net = prnet.Net(config.model.width, config.model.momentum, jnp.dtype(config.model.dtype))
    tx = optim.from_config(config.optim, options.steps)
    weights = layout.weights if config.loss.weighted else layout.mask * (layout.weights.sum() / layout.mask.sum())

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        return TrainState.create(rng, variables["params"], tx, model_state=variables["batch_stats"])

    def loss_fn(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        del rng
        variables = {"params": params, "batch_stats": batch_stats}
        found, updated = net.apply(variables, normalize.unit(batch["image"]), train=True, mutable=["batch_stats"])
        losses = prnet.position_loss(found, batch["positions"] / (prnet.RANGE * size), jnp.asarray(weights))
        return losses.mean(), (updated["batch_stats"], {"loss": Mean.of(losses)})

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        return prnet.in_pixels(net.apply(variables, normalize.unit(images), train=False), size)

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params, "batch_stats": state.model_state}
        test = data.test()
        evaluation.check_crops(test.images)
        maps = map_batches(predict, variables, test.images, config.eval.batch_size)
        report = faces_report(test, maps, layout)
        if not config.eval.path:
            return report
        benchmark = Aflw2000Crops(config.eval.path)
        found = evaluation.aflw2000_surfaces(
            benchmark, lambda v, x: prnet.landmarks(predict(v, x), layout), variables, size, config.eval.batch_size
        )
        points = evaluation.aflw2000_points(benchmark, found[..., :2], size)
        real = evaluation.aflw2000_report(benchmark, points)
        return report | Report({f"aflw2000_{k}": v for k, v in real.metrics.items()}, real.tables, images=real.images)

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_fn, tx, microbatches=options.microbatches),
        train_data=lambda: data.batches(options.batch_size, config.seed),
        batch=data.shapes(options.batch_size),
    )


def faces_report(test: Any, maps: np.ndarray, layout: uv.UVLayout) -> Report:
    """Errors of landmarks and of all texels by yaw, in % of sqrt(width * height) of the true box; pictures.

    Args:
      test: the held-out `Faces`.
      maps: [N, S, S, 3] predicted positions in pixels.
      layout: of the maps.
    """
    marks = np.asarray(prnet.landmarks(maps, layout))[..., :2]
    sizes = landmarks.face_sizes(test.landmarks68, "box")
    found, true = maps[:, layout.mask], test.positions[:, layout.mask]
    mean = np.broadcast_to(test.positions.mean(0), test.positions.shape)
    rows, metrics = [], {}
    for who, points, surface in (
        ("this system", marks, found),
        ("mean of the test faces", np.asarray(prnet.landmarks(mean, layout))[..., :2], mean[:, layout.mask]),
    ):
        nme = 100 * landmarks.normalized_mean_error(points, test.landmarks68, sizes)
        dense = 100 * landmarks.normalized_mean_error(surface[..., :2], true[..., :2], sizes)
        for name, values in (("nme", nme), ("dense", dense)):
            bins = reconstruction.by_yaw(values, test.yaw)
            rows.append({"result": who, "measure": name, **bins})
            if who == "this system":
                metrics |= {name: bins["mean"], **{f"{name}_{k}": v for k, v in bins.items() if k != "mean"}}
    errors = 100 * landmarks.normalized_mean_error(marks, test.landmarks68, sizes)
    return Report(
        metrics,
        tables={"Errors by yaw, %: mean and std are of the three bins": rows},
        images={"Landmarks (true green, predicted red), mesh, texture": pictures(test, maps, marks, errors, layout)},
        arrays={"landmarks": marks.astype(np.float32)},
        notes={"nme": "mean distance of the landmarks over sqrt(width * height) of their box, mean of the three bins"},
    )


def pictures(test: Any, maps: np.ndarray, marks: np.ndarray, errors: np.ndarray, layout: uv.UVLayout) -> np.ndarray:
    """Rows of faces from the smallest to the largest error: landmarks, shaded mesh, and texture in the UV plane."""
    size, triangles = maps.shape[1], uv.grid_triangles(layout.mask)
    incident = incidence(triangles, size * size)
    lines = [[], [], []]
    for i in evaluation.spread(errors, SHOWN):
        image, vertices = test.images[i], jnp.asarray(maps[i].reshape(-1, 3))
        shaded, fragments = pncc.shaded(vertices, triangles, incident, (size, size), capacity=8 * size * size)
        lines[0].append(evaluation.marked(image, marks[i], test.landmarks68[i]))
        lines[1].append(np.asarray(pncc.blend(image, shaded, fragments.triangle >= 0)))
        texture = uv.texture_of(jnp.asarray(image, jnp.float32), jnp.asarray(maps[i])) * layout.mask[..., None]
        lines[2].append(np.asarray(texture).round().astype(np.uint8))
    return image_grid(np.stack([picture for line in lines for picture in line]), SHOWN)


if __name__ == "__main__":
    app.main(get_config, build)
