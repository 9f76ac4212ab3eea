"""FAB: landmarks in motion-blurred videos, with boundaries predicted from earlier frames.

    python -m experiments.fab                   # rendered heads that move, two cores
    python -m experiments.fab --config=frame    # the same landmark network on every frame by itself
    python -m experiments.fab --config=300vw --config.data.path=DIR

DIR holds train/VIDEO/frames/NUMBER.jpg and train/VIDEO/annot/NUMBER.pts of 300VW, and the same under test. The settings
of 300vw are those of the authors' code (Adam 3e-5, one video at a time, 256 pixels, 2 million frames), without its
separate training of the three parts. It publishes neither weights nor numbers; no hardware is given.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.alignment import fab
from facejax.data.landmark_images import mean_shape
from facejax.data.landmark_videos import Clip, LandmarkVideos
from facejax.metrics import image, landmarks
from facejax.recipes.aligner import Evaluation
from facejax.train import Experiment, Mean, Options, Report, TrainState, app, new_figure, optim, supervised_step
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(LandmarkVideos(image_size=48)),
    "model": {
        "temporal": True,  # False: the landmark network on every frame by itself
        "predictor": (8, 16, 16, 16, 8, 8),  # channels of the structure predictor
        "width": 12,  # channels of the deblurring network
        "blocks": 2,  # its residual blocks
        "stem": 16,  # channels of the landmark network's first convolution
        "widths": (16, 32, 64),  # inner channels of its stages
        "hidden": 128,  # width of its dense layers
        "spread": 0.2,  # standard deviation of their first weights
        "mean_face": True,  # whether outputs of 0 are the mean face, not the frame's middle
        "sigma": 1.0,  # of the boundaries, pixels
        "samples": 40,  # points on each of them
        "residual": True,  # whether the blurred frame is added to the deblurred one; not in the paper
        "momentum": 0.9,  # of the predictor's running averages
        "dtype": "float32",  # to compute in
    },
    "loss": {  # weights of half the sums of squares, landmarks in units of the frame's side
        "landmarks": 100.0,
        "boundary": 0.1,
        "image": 1.0,
    },
    "pretraining": 3000,  # first steps, of the landmark network alone
    "optim": {
        "name": "adam",
        "b2": 0.99,  # with 0.999 the parts that pre-training leaves alone begin with steps six times too large
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 2e-3, "warmup": 20, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=8, steps=4500)),
    "eval": asdict(Evaluation(batch_size=12)),
}
PRESETS = {
    "synthetic": {},
    "frame": {"model.temporal": False},
    "300vw": {
        "data": {"kind": "300vw", "image_size": 256, "windows": (1, 7, 13), "period": 1, "workers": 4},
        "model": {
            "predictor": (64, 128, 256, 256, 128, 64),
            "width": 64,
            "blocks": 8,
            "widths": (8, 16, 32, 64),
            "hidden": 256,
            "spread": 0.01,
            "mean_face": False,
            "samples": 170,
            "residual": False,
            "momentum": 0.9997,
        },
        "loss": {"landmarks": 1.0, "boundary": 3.0},  # the authors' predicted boundary has three equal channels
        "pretraining": 0,
        "optim": {"b2": 0.999, "weight_decay": 1e-4, "schedule": {"kind": "constant", "peak": 3e-5, "warmup": 0}},
        "train": {"batch_size": 1, "steps": 660_000, "devices": 1},
        "eval": {"normalizer": "inter_ocular"},
    },
}
CLAIM = (
    Claim(
        "fab.strong_blur",
        "boundaries and features of earlier frames lower the landmark error in strongly blurred frames",
        metric="nme_blur_13",
        better="lower",
        method="synthetic",
        baseline=("frame",),
    ),
)


STEPS = ("landmarks", "whole")
"""Kinds of steps: the landmark network on every frame by itself, and everything."""


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run; without `model.temporal` only the landmark network has parameters."""
    data, protocol = LandmarkVideos(**config.data), Evaluation(**config.eval)
    model, batch, size = dict(config.model), config.train.batch_size, config.data.image_size
    temporal, model["dtype"] = model.pop("temporal"), jnp.dtype(model["dtype"])
    start = None
    if model.pop("mean_face"):
        start = tuple(map(tuple, mean_shape(data.landmarks, data.enlarge).tolist()))
    net = fab.FAB(landmarks=data.landmarks, start=start, **model)
    steps = STEPS if temporal else STEPS[:1]
    tx = optim.from_config(config.optim, config.train.steps)

    def init(rng: jax.Array) -> TrainState:
        if temporal:
            variables = dict(net.init(rng, jnp.zeros((1, 3, size, size, 3)), train=False))
        else:
            variables = dict(net.init(rng, jnp.zeros((1, 1, size, size, 3)), method="alone"))
        return TrainState.create(rng, variables.pop("params"), tx, model_state=variables)

    def loss_fn(whole: bool, params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        del rng
        video, truth, variables = batch["blurred"] / 255.0, batch["points"], {"params": params, **model_state}
        terms, updated = {}, {}
        if whole:
            found, updated = net.apply(variables, video, train=True, mutable=["batch_stats"])
            points, later = found.points, slice(2, None)  # the first two frames have neither boundary nor image
            drawn = jax.vmap(lambda p: net.apply(variables, p, video.shape[2:4], method="draw"), 1, 1)(truth)
            terms["boundary_loss"] = config.loss.boundary * fab.half_squares(found.boundary, drawn)[:, later]
            terms["image_loss"] = config.loss.image * fab.half_squares(found.image, batch["sharp"] / 255.0)[:, later]
        else:
            points = net.apply(variables, video, method="alone")
        terms["landmark_loss"] = config.loss.landmarks * fab.half_squares(points / size, truth / size)
        total = sum(term.mean() for term in terms.values())
        return total, ({**model_state, **updated}, {name: Mean.of(term) for name, term in terms.items()})

    def evaluate(state: TrainState) -> Report:
        variables, rows, metrics = {"params": state.params, **state.model_state}, [], {}
        single = jax.jit(lambda variables, video: net.apply(variables, video, method="alone"))
        for window in data.windows:
            clips = data.test(window)
            found = []
            for start in range(0, len(clips), protocol.batch_size):
                part = clips[start : start + protocol.batch_size]
                video = jnp.stack([clip.blurred for clip in part]) / 255.0
                row = {"alone": single(variables, video)}
                if temporal:
                    row |= fab.track(net, variables, video)._asdict()
                found.append(jax.tree.map(np.asarray, row))
            estimates = {name: np.concatenate([row[name] for row in found]) for name in found[0]}
            truth = np.stack([clip.points for clip in clips])
            errors = {n: error(estimates[n], truth, protocol.normalizer) for n in ("points", "alone") if n in estimates}
            row = {"sharp frames averaged": window, "NME of frames alone": 100 * errors["alone"]}
            metrics[f"nme_blur_{window}"] = 100 * errors["points" if temporal else "alone"]
            if temporal:
                sharp = np.stack([clip.sharp for clip in clips]) / 255.0
                row["NME"] = metrics[f"nme_blur_{window}"]
                row["PSNR of the blurred frames"] = quality(np.stack([clip.blurred for clip in clips]) / 255.0, sharp)
                row["PSNR"] = quality(estimates["image"], sharp)
            rows.append(row)
        nme = float(np.mean([*metrics.values()]))
        result = Report(
            {"nme": nme, **metrics}, tables={f"Errors in % of the face's size ({protocol.normalizer})": rows}
        )
        result.notes["nme_blur_W"] = "mean distance of the landmarks in % of the face's size, of W averaged frames"
        result.figures["The stronger the blur, the larger the error"] = blur_figure(rows)
        result.images[f"A test video: blurred by {window} frames (with landmarks), deblurred, boundary, sharp"] = (
            animation(clips[0], {name: value[0] for name, value in estimates.items()})
        )
        return result

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step={
            name: supervised_step(partial(loss_fn, name == "whole"), tx, microbatches=config.train.microbatches)
            for name in steps
        },
        choose=lambda number: steps[-1] if number > config.pretraining else steps[0],
        train_data=lambda: data.batches(batch, config.seed),
        batch=dict.fromkeys(steps, data.shapes(batch)),
    )


def error(points: np.ndarray, truth: np.ndarray, normalizer: str) -> float:
    """Mean normalised error of [V, T, L, 2] from the third frame on, where FAB begins."""
    points, truth = (x[:, 2:].reshape(-1, *x.shape[2:]).astype(np.float64) for x in (points, truth))
    sizes = landmarks.face_sizes(truth, normalizer)
    return float(landmarks.normalized_mean_error(points, truth, sizes).mean())


def quality(images: np.ndarray, sharp: np.ndarray) -> float:
    """Mean PSNR of [V, T, H, W, 3] from the third frame on."""
    return float(image.psnr(np.clip(images[:, 2:], 0, 1), sharp[:, 2:], peak=1.0).mean())


def blur_figure(rows: list[dict[str, float]]) -> Any:
    """NME against the number of averaged frames."""
    figure, axis = new_figure(5, 3.2)
    for name in ("NME", "NME of frames alone"):
        if name in rows[0]:
            axis.plot([r["sharp frames averaged"] for r in rows], [r[name] for r in rows], "o-", label=name)
    axis.set(xlabel="sharp frames averaged", ylabel="NME, %")
    axis.legend(fontsize=7)
    return figure


def animation(clip: Clip, estimate: dict[str, np.ndarray], scale: int = 5) -> np.ndarray:
    """Panels [T, scale S, n scale S, 3] uint8, landmarks in red, true ones in green."""
    points = estimate.get("points", estimate["alone"])
    panels = [clip.blurred / 255.0, clip.sharp / 255.0]
    if "image" in estimate:
        panels[1:1] = [estimate["image"], np.repeat(estimate["boundary"], 3, -1)]
    frames = []
    for t in range(len(clip.points)):
        large = [np.repeat(np.repeat(np.clip(panel[t], 0, 1), scale, 0), scale, 1) for panel in panels]
        frame = np.rint(255 * np.concatenate(large, 1)).astype(np.uint8)
        for marks, colour in ((clip.points[t], (0, 255, 0)), (points[t], (255, 0, 0))):
            for x, y in np.rint(scale * (marks + 0.5)).astype(int):
                cv2.circle(frame, (int(x), int(y)), 1, colour, -1)
        frames.append(frame)
    return np.stack(frames)


if __name__ == "__main__":
    app.main(get_config, build)
