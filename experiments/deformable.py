"""Deformable ConvNets: filters that move their taps follow faces of any size, turn and place.

    python -m experiments.deformable                     # rendered faces, turned and scaled, two cores
    python -m experiments.deformable --config=plain      # the same network with ordinary convolutions
    python -m experiments.deformable --config=r101_dcn   # ResNet-101, last stage deformable, 8 devices

The papers' tables are of detection and segmentation on VOC, COCO and Cityscapes; what is here is their backbone (the
three 3x3 convolutions of ResNet-101's last stage at stride 16, dilation 2, four offset groups: 331,848 more parameters
a layer; v2: all those of the last three stages of ResNet-50, modulated, offsets at a tenth of the rate) with a head
that finds landmarks. Steps, batch and rates of the full-size presets are v1's for VOC; no published number is theirs.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.backbones import resnet
from facejax.data import pipeline, transforms
from facejax.data.synthetic import faces
from facejax.foundations.deformable import DeformableConv, scale_offset_updates
from facejax.nn.conv import Conv
from facejax.train import (
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    map_batches,
    new_figure,
    optim,
    supervised_step,
)
from facejax.train.claims import Claim

POINTS = 68
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, by channel

BASE = {
    "seed": 0,
    "data": {
        "data_dir": "",
        "rendered": 64,  # pixels of the face world's pictures
        "image_size": 96,  # of the network's input
        "face": (0.25, 0.7),  # smallest and largest face, sqrt(width * height) of the landmarks, in parts of the input
        "turn": 60.0,  # largest rotation in the plane, degrees either way
        "shift": 0.12,  # largest shift off the middle, in parts of the input
        "threads": 2,
        "workers": 0,
    },
    "model": {
        "name": "tiny",
        "kind": "v1",  # "plain", "v1" or "v2" (modulated)
        "stages": (4, 5),  # whose 3x3 convolutions are of that kind
        "output_stride": 16,
        "stride_in_1x1": False,  # the bottlenecks' stride: in the first 1x1 (v1) or in the 3x3 (v1.5)
        "offset_groups": 1,
        "dtype": "float32",
    },
    "optim": {
        "name": "adam",
        "offset_rate": 0.1,  # of the offset layers, times the learning rate
        "schedule": {"kind": "cosine", "peak": 0.003, "warmup": 20, "boundaries": (), "power": 1.0},
    },
    "train": dataclasses.asdict(Options(batch_size=32, steps=400)),
    "eval": {"batch_size": 100},
}


def full_size(name: str, kind: str, stages: tuple[int, ...], offset_rate: float) -> dict[str, Any]:
    """v1's VOC schedule: 30,000 steps on 8 devices with one image each, rate 1e-3 for two thirds, then 1e-4."""
    schedule = {"kind": "step", "peak": 1e-3, "warmup": 0, "boundaries": (20_000,)}
    return {
        "data": {"rendered": 224, "image_size": 224},
        "model": {
            "name": name,
            "kind": kind,
            "stages": stages,
            "offset_groups": 4 if kind == "v1" else 1,
            "stride_in_1x1": kind != "v2",
        },
        "optim": {"name": "sgd", "offset_rate": offset_rate, "schedule": schedule},
        "train": {"batch_size": 8, "steps": 30_000, "devices": 8, "eval_every": 5000},
    }


PRESETS = {
    "synthetic": {},
    "plain": {"model.kind": "plain"},
    "modulated": {"model.kind": "v2"},
    "r101_dcn": full_size("resnet101", "v1", (5,), 1.0),
    "r101": full_size("resnet101", "plain", (5,), 1.0),
    "r50_dcnv2": full_size("resnet50", "v2", (3, 4, 5), 0.1),
}

CLAIM = Claim(
    "deformable.landmarks",
    "deformable convolution locates landmarks of rotated and scaled faces better than plain convolution of equal depth "
    "and width",
    metric="nme",
    better="lower",
    method="synthetic",
    baseline=("plain",),
    seeds=6,
)

BACKBONES = {
    "tiny": partial(resnet.ResNet, (1, 1, 1, 1), False, widths=(16, 32, 48, 64)),
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
}
KINDS = ("plain", "v1", "v2")


class LandmarkNet(nn.Module):
    """A map for each point from the last stage; the point is the map's centre of mass after a softmax."""

    backbone: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] -> [N, 68, 2], (x, y) in parts of the input's width and height."""
        found = self.backbone(images, train=train, features=True)["c5"].astype(jnp.float32)
        maps = Conv(POINTS, 1, use_bias=True, name="maps")(found)
        n, height, width, points = maps.shape
        mass = nn.softmax(maps.reshape(n, height * width, points), 1).reshape(maps.shape)
        columns, rows = ((jnp.arange(size) + 0.5) / size for size in (width, height))
        return jnp.stack([jnp.einsum("nhwp,w->np", mass, columns), jnp.einsum("nhwp,h->np", mass, rows)], -1)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    size, batch = config.data.image_size, config.train.batch_size
    net = LandmarkNet(make_backbone(config.model))
    settings = {k: v for k, v in config.optim.items() if k != "offset_rate"}
    tx = optax.chain(optim.from_config(settings, config.train.steps), scale_offset_updates(config.optim.offset_rate))

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        return TrainState.create(rng, variables["params"], tx, model_state=variables["batch_stats"])

    def loss_fn(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        del rng
        variables = {"params": params, "batch_stats": batch_stats}
        points, updated = net.apply(variables, preprocess(batch["image"]), train=True, mutable=["batch_stats"])
        losses = jnp.abs(points - batch["points"]).mean((1, 2))
        metrics = {"loss": Mean.of(losses), "nme": Mean.of(normalized_error(points, batch["points"]))}
        return losses.mean(), (updated["batch_stats"], metrics)

    def train_data() -> Any:
        return pipeline.train_batches(
            source(config.data, "train"),
            loader(config.data),
            batch,
            seed=config.seed,
            threads=config.data.threads,
            workers=config.data.workers,
        )

    def predict(variables: Any, images: jax.Array) -> dict[str, Any]:
        points, found = net.apply(variables, preprocess(images), train=False, mutable=["intermediates"])
        return {"points": points, "offsets": jax.tree.leaves(found)[-1:]}  # of the last layer; none where plain

    def evaluate(state: TrainState) -> Report:
        data = source(config.data, "test")
        rngs = [np.random.default_rng([7, i]) for i in range(len(data))]
        test = loader(config.data)(pipeline.fetch(data, range(len(data))), rngs)
        variables = {"params": state.params, "batch_stats": state.model_state}
        found = map_batches(predict, variables, test["image"], config.eval.batch_size)
        return report(config, test, found)

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_fn, tx, microbatches=config.train.microbatches),
        train_data=train_data,
        batch={
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "points": jax.ShapeDtypeStruct((batch, POINTS, 2), jnp.float32),
        },
    )


def make_backbone(model: ConfigDict) -> resnet.ResNet:
    """The backbone that the configuration names."""
    if model.name not in BACKBONES:
        raise ValueError(f"model.name is {model.name!r}: expected one of {', '.join(BACKBONES)}")
    if model.kind not in KINDS:
        raise ValueError(f"model.kind is {model.kind!r}: expected one of {', '.join(KINDS)}")
    deformable = partial(DeformableConv, offset_groups=model.offset_groups, modulated=model.kind == "v2")
    return BACKBONES[model.name](
        output_stride=model.output_stride,
        stride_in_1x1=model.stride_in_1x1,
        conv=Conv if model.kind == "plain" else deformable,
        conv_stages=tuple(model.stages),
        dtype=jnp.dtype(model.dtype),
    )


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, 3] -> mean 0 and deviation 1 of ImageNet's channels."""
    return (images.astype(jnp.float32) - jnp.array(MEAN)) / jnp.array(DEVIATION)


def source(data: ConfigDict, split: str) -> Any:
    """The face world's landmark task at the size wanted."""
    task = dataclasses.replace(faces.TASKS["landmarks"], image_size=data.rendered)
    return faces.load(task, split, data.data_dir or None)


def loader(data: ConfigDict) -> pipeline.Load:
    """Decodes, and places every face at a size, turn and place of its own."""
    size = data.image_size

    def place(example: dict[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        points = example["landmarks68"]
        low, high = points.min(0), points.max(0)
        face = np.exp(rng.uniform(*np.log(data.face))) * size
        angle = np.radians(rng.uniform(-data.turn, data.turn))
        middle = size * (0.5 + rng.uniform(-data.shift, data.shift, 2))
        scale = face / np.sqrt(np.prod(high - low))
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = middle - turn @ ((low + high) / 2)
        matrix = np.concatenate([turn, (shift + turn @ [0.5, 0.5] - 0.5)[:, None]], 1)  # OpenCV: centres are whole
        image = cv2.warpAffine(
            transforms.decode(example["image"]), matrix, (size, size), borderMode=cv2.BORDER_REPLICATE
        )
        return image, (points @ turn.T + shift) / size

    def load(examples: Any, rngs: Any) -> dict[str, np.ndarray]:
        images, points = zip(*(place(e, rng) for e, rng in zip(examples, rngs, strict=True)), strict=True)
        return {"image": np.stack(images), "points": np.stack(points).astype(np.float32)}

    return load


def face_size(points: Any) -> Any:
    """sqrt(width * height) of the box around points [N, L, 2]. [N]."""
    return ((points.max(1) - points.min(1)).prod(-1)) ** 0.5


def normalized_error(points: Any, truth: Any) -> Any:
    """Mean distance of the points [N, L, 2] in percent of `face_size`. [N]."""
    return 100 * (((points - truth) ** 2).sum(-1) ** 0.5).mean(1) / face_size(truth)


def report(config: ConfigDict, test: dict[str, np.ndarray], found: dict[str, Any]) -> Report:
    """Errors over all faces, over the smallest and largest thirds, and how offsets grow with the face."""
    points, truth, size = found["points"], test["points"], face_size(test["points"])
    errors, order = normalized_error(points, truth), np.argsort(size)
    third = len(order) // 3
    metrics = {
        "nme": float(errors.mean()),
        "nme_small_faces": float(errors[order[:third]].mean()),
        "nme_large_faces": float(errors[order[-third:]].mean()),
    }
    offsets = found["offsets"][0] if found["offsets"] else None
    if offsets is not None:
        lengths = np.linalg.norm(offsets.reshape(len(offsets), -1, 2), axis=-1).mean(1)
        metrics["offset_length"] = float(lengths.mean())
        metrics["offset_and_face_size_correlation"] = float(np.corrcoef(lengths, size)[0, 1])
    rows = np.linspace(0, len(order) - 1, 8).astype(int)  # from the smallest face to the largest
    return Report(
        metrics,
        figures={"Landmarks, and where the last filter looks from the nose": overlay(config, test, found, order[rows])},
        arrays={"landmarks": points, "errors": errors},
    )


def overlay(config: ConfigDict, test: dict[str, np.ndarray], found: dict[str, Any], chosen: np.ndarray) -> Any:
    """Faces with their true and found points; crosses are the places that the taps of the last filter read."""
    size = config.data.image_size
    figure, axes = new_figure(2.2 * len(chosen) / 2, 4.6, 2, len(chosen) // 2)
    for axis, i in zip(axes.ravel(), chosen, strict=True):
        axis.imshow(test["image"][i], extent=(0, size, size, 0))
        axis.plot(*test["points"][i].T * size, ".", color="lime", markersize=2)
        axis.plot(*found["points"][i].T * size, ".", color="red", markersize=2)
        if found["offsets"]:
            cells = found["offsets"][0].shape[1]
            column, row = (test["points"][i, 30] * cells).astype(int).clip(0, cells - 1)
            shift = found["offsets"][0][i, row, column].reshape(-1, 9, 2)[0]
            reach = 32 // config.model.output_stride
            grid = reach * (np.indices((3, 3)).reshape(2, 9).T - 1)
            y, x = ((grid + shift + [row, column] + 0.5) * size / cells).T
            axis.plot(x, y, "x", color="cyan", markersize=4)
        axis.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[])
        axis.grid(False)
    return figure


if __name__ == "__main__":
    app.main(get_config, build)
