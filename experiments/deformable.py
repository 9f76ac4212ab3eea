"""Deformable ConvNets: filters with learned offsets, on faces of any size, rotation and position.

    python -m experiments.deformable                     # rendered faces, rotated and scaled, two cores
    python -m experiments.deformable --config=plain      # the same network with ordinary convolutions
    python -m experiments.deformable --config=r101_dcn   # ResNet-101, last stage deformable, 8 devices

The papers' tables are of detection and segmentation on VOC, COCO and Cityscapes. Here their backbones have a head for
landmarks. v1 makes the three 3x3 convolutions of ResNet-101's last stage deformable (stride 16, dilation 2, four offset
groups, 331,848 more parameters per layer); v2 all 3x3 convolutions of ResNet-50's last three stages, modulated, with
offsets at a tenth of the learning rate. The full-size presets have v1's schedule for VOC; nobody published their
result.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.backbones import resnet
from facejax.data import normalize, pipeline
from facejax.data.keypoints import Placement, placed_loader
from facejax.data.synthetic import faces
from facejax.evaluate.keypoints import taps_figure
from facejax.foundations.deformable import DeformableConv, scale_offset_updates
from facejax.metrics.landmarks import face_sizes, normalized_mean_error
from facejax.nn.conv import Conv
from facejax.train import Experiment, Mean, Options, Report, TrainState, app, map_batches, optim, supervised_step
from facejax.train.claims import Claim

POINTS = 68

BASE = {
    "seed": 0,
    "data": {
        "data_dir": "",  # where the prepared face world lies; empty is $FACEJAX_DATA_DIR, else ~/.cache/facejax
        "rendered": 64,  # side of the face world's images, pixels
        "image_size": 96,  # side of the network's input, pixels
        **dataclasses.asdict(Placement()),
        "threads": 2,  # batches loaded at once in this process
        "workers": 0,  # processes that load besides; 0 loads in this one
    },
    "model": {
        "name": "tiny",  # a key of BACKBONES
        "kind": "v1",  # "plain", "v1" or "v2" (modulated)
        "stages": (4, 5),  # stages whose 3x3 convolutions are of that kind
        "output_stride": 16,  # pixels of the input per pixel of the last stage
        "stride_in_1x1": False,  # whether the bottlenecks' first 1x1 has the stride (v1) or the 3x3 (v1.5)
        "offset_groups": 1,  # groups of channels with offsets of their own
        "dtype": "float32",  # of the computation
    },
    "optim": {
        "name": "adam",
        "offset_rate": 0.1,  # learning rate of the offset layers over that of the others
        "schedule": {"kind": "cosine", "peak": 0.003, "warmup": 20, "boundaries": (), "power": 1.0},
    },
    "train": dataclasses.asdict(Options(batch_size=32, steps=400)),
    "eval": {"batch_size": 100},  # images a call
}


def full_size(name: str, kind: str, stages: tuple[int, ...], offset_rate: float) -> dict[str, Any]:
    """v1's VOC schedule: 30,000 updates on 8 devices with one image each, rate 1e-3 for 20,000, then 1e-4."""
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
    """One map per point from the last stage; a softmax makes it a distribution whose mean is the point."""

    backbone: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] -> [N, 68, 2], (x, y) in parts of the input's width and height, 0..1."""
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
    load = placed_loader(size, Placement(**{f.name: config.data[f.name] for f in dataclasses.fields(Placement)}))
    settings = {k: v for k, v in config.optim.items() if k != "offset_rate"}
    tx = optax.chain(optim.from_config(settings, config.train.steps), scale_offset_updates(config.optim.offset_rate))

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        return TrainState.create(rng, variables["params"], tx, model_state=variables["batch_stats"])

    def loss_fn(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        del rng
        variables = {"params": params, "batch_stats": batch_stats}
        points, updated = net.apply(variables, normalize.imagenet(batch["image"]), train=True, mutable=["batch_stats"])
        losses = jnp.abs(points - batch["points"]).mean((1, 2))
        metrics = {"loss": Mean.of(losses), "nme": Mean.of(percent_errors(points, batch["points"]))}
        return losses.mean(), (updated["batch_stats"], metrics)

    def train_data() -> Any:
        workers = {name: config.data[name] for name in ("threads", "workers")}
        return pipeline.train_batches(source(config.data, "train"), load, batch, seed=config.seed, **workers)

    def predict(variables: Any, images: jax.Array) -> dict[str, Any]:
        points, found = net.apply(variables, normalize.imagenet(images), train=False, mutable=["intermediates"])
        return {"points": points, "offsets": jax.tree.leaves(found)[-1:]}  # of the last layer; [] if plain

    def evaluate(state: TrainState) -> Report:
        data = source(config.data, "test")
        rngs = [np.random.default_rng([7, i]) for i in range(len(data))]
        test = load(pipeline.fetch(data, range(len(data))), rngs)
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


def source(data: ConfigDict, split: str) -> Any:
    """The face world's landmark task with images of `rendered` pixels."""
    task = dataclasses.replace(faces.TASKS["landmarks"], image_size=data.rendered)
    return faces.load(task, split, data.data_dir or None)


def percent_errors(points: Any, truth: Any) -> Any:
    """Mean distance of points [N, L, 2] in percent of sqrt(width * height) of the true points' box. [N]."""
    return 100 * normalized_mean_error(points, truth, face_sizes(truth, "box"))


def report(config: ConfigDict, test: dict[str, np.ndarray], found: dict[str, Any]) -> Report:
    """Errors of all faces and of the smallest and largest thirds, and the correlation of offsets with face sizes."""
    points, truth, size = found["points"], test["points"], face_sizes(test["points"], "box")
    errors, order = percent_errors(points, truth), np.argsort(size)
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
    figure = taps_figure(test["image"], truth, points, offsets, order[rows], reach=32 // config.model.output_stride)
    return Report(
        metrics,
        figures={"Landmarks, and the pixels that the last filter reads for the nose tip": figure},
        arrays={"landmarks": points, "errors": errors},
    )


if __name__ == "__main__":
    app.main(get_config, build)
