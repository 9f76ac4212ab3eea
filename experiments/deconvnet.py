"""Visualizing and understanding CNNs: what activates a feature map, which part of an image a decision depends on.

    python -m experiments.deconvnet                    # glasses on rendered faces, two cores
    python -m experiments.deconvnet --config=vgg       # the same maps of another network
    python -m experiments.deconvnet --config=imagenet --config.data.path=DIR   # ZFNet; paper: 38.4 / 16.5 % error

DIR holds train/CLASS/IMAGE.jpg and val/CLASS/IMAGE.jpg. The paper trained for 12 days on one GTX 580; its top-1
and top-5 errors are of one network on the validation set (Table 2). It lowered the learning rate by hand; the schedule
here is our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from ml_collections import ConfigDict

from facejax.backbones.vgg import VGG
from facejax.backbones.zfnet import ZFNet
from facejax.data import classification, normalize, pipeline, transforms
from facejax.data.synthetic import faces
from facejax.evaluate import attribution
from facejax.foundations import deconvnet
from facejax.metrics.classification import top_k_correct
from facejax.train import Experiment, Mean, Options, Report, TrainState, app, map_batches, optim, supervised_step
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        "path": "",  # folder with train/CLASS/IMAGE and val/CLASS/IMAGE; empty: faces with and without glasses
        "data_dir": "",  # where the prepared face world lies; empty is $FACEJAX_DATA_DIR, else ~/.cache/facejax
        "resized": 96,  # side that the central square is resized to, pixels
        "image_size": 96,  # side of the five crops (corners and centre) that the network takes, pixels
        "classes": 2,  # number of classes
        "cover": 24,  # side of a grey square on half of the training images, pixels; it makes its edges no evidence
        "threads": 2,  # batches loaded at once in this process
        "workers": 0,  # processes that load besides; 0 loads in this one
    },
    "model": {
        "name": "tiny",  # a key of NETS
        "dtype": "float32",  # of the computation
    },
    "evolution": {"snapshots": (0.03, 0.1, 0.3, 1.0)},  # parts of the training after which convolutions are kept
    "optim": {
        "filter_limit": 0.0,  # largest root mean square of a convolution's filter, larger ones are scaled; 0: no limit
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 1e-3, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=64, steps=600, save_every=100)),
    "eval": {
        "batch_size": 128,  # images a call
        "map": "occlusion",  # or "gradient", "deconvnet", "no_switches", "chance": the map that "hits" counts
        "pictures": 96,  # images whose maps are computed
        "square": 24,  # side of the occluding square, pixels
        "stride": 6,  # between two positions of the square, pixels
    },
}
PRESETS = {
    "synthetic": {},
    "deconvnet": {"eval.map": "deconvnet"},
    "no_switches": {"eval.map": "no_switches"},
    "chance": {"eval.map": "chance", "train.steps": 1},  # training does not change it
    "vgg": {"model.name": "tiny_vgg"},
    "imagenet": {
        "data": {"resized": 256, "image_size": 224, "classes": 1000, "cover": 0, "threads": 16, "path": "imagenet"},
        "model": {"name": "zfnet", "dtype": "bfloat16"},
        "optim": {
            "filter_limit": 0.1,
            "name": "sgd",
            "schedule": {"kind": "step", "peak": 1e-2, "boundaries": (0.5, 0.75)},
        },
        "evolution": {"snapshots": tuple(epoch / 70 for epoch in (1, 2, 5, 10, 20, 30, 40, 64))},
        "train": {
            "batch_size": 128,
            "steps": 70 * (1_281_167 // 128),
            "log_every": 100,
            "eval_every": 10_009,
            "save_every": 1000,
        },
        "eval": {"pictures": 256, "square": 50, "stride": 10},
    },
}
NETS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "tiny": (
        lambda **options: ZFNet(
            widths=(16, 32, 48, 48, 32), hidden=128, dropout=0.2, kernel_init=nn.initializers.he_normal(), **options
        ),
        ("conv1", "conv2", "conv3", "conv5"),
    ),
    "tiny_vgg": (
        lambda **o: VGG((1, 1, 1, 1), (16, 32, 48, 48), hidden=64, **o),
        ("conv1_1", "conv2_1", "conv3_1", "conv4_1"),
    ),
    "zfnet": (ZFNet, ("conv1", "conv2", "conv3", "conv4", "conv5")),
}
MAPS = ("occlusion", *attribution.METHODS, "chance")
CLAIM = (
    Claim(
        "deconvnet.occlusion",
        "the peak of the occlusion map hits the decisive part of the face more often than a random square",
        metric="hits",
        better="higher",
        method="synthetic",
        baseline=("chance",),
    ),
    Claim(
        "deconvnet.switches",
        "the score projected back through the pooling switches peaks on the decisive part more often than without "
        "switches",
        metric="hits",
        better="higher",
        method="deconvnet",
        baseline=("no_switches",),
    ),
)
PARTS = {"right eye": range(36, 42), "left eye": range(42, 48), "nose": range(27, 36), "mouth": range(48, 68)}


@struct.dataclass
class State(TrainState):
    """With the convolutions' parameters at the snapshots, [snapshots, ...] each."""

    history: Any = None


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    config = app.with_classes(config, lambda: sources(config.data)[0].num_classes if config.data.path else 2)
    data, size, batch = config.data, config.data.image_size, config.train.batch_size
    if config.model.name not in NETS:
        raise ValueError(f"model.name is {config.model.name!r}: expected one of {', '.join(NETS)}")
    if config.eval.map not in MAPS:
        raise ValueError(f"eval.map is {config.eval.map!r}: expected one of {', '.join(MAPS)}")
    net = NETS[config.model.name][0](num_classes=data.classes, dtype=jnp.dtype(config.model.dtype))
    settings = {k: v for k, v in config.optim.items() if k != "filter_limit"}
    tx = optim.from_config(settings, config.train.steps)
    if config.optim.filter_limit:
        tx = optax.chain(tx, deconvnet.limit_filters(config.optim.filter_limit))
    snapshots = jnp.array([max(1, round(part * config.train.steps)) for part in config.evolution.snapshots])

    def init(rng: jax.Array) -> State:
        params = net.init(rng, jnp.zeros((1, size, size, 3)), train=False)["params"]
        history = jax.tree.map(lambda p: jnp.zeros((len(snapshots), *p.shape)), convolutions(params))
        return State.create(rng, params, tx, history=history)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        logits = net.apply({"params": params}, normalize.centred(batch["image"]), train=True, rngs={"dropout": rng})
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = Mean.of(top_k_correct(logits, batch["label"]))
        return losses.mean(), (model_state, {"loss": Mean.of(losses), "accuracy": right})

    step = supervised_step(loss_fn, tx, microbatches=config.train.microbatches)

    def train_step(state: State, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        state, metrics = step(state, batch, rng)

        def kept(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where((snapshots == state.step).reshape(-1, *[1] * new.ndim), new, old)

        return state.replace(history=jax.tree.map(kept, state.history, convolutions(state.params))), metrics

    def train_data() -> Iterator[dict[str, np.ndarray]]:
        workers = {"threads": data.threads, "workers": data.workers}
        load = loader(data.resized, size, data.cover)
        return pipeline.train_batches(sources(data)[0], load, batch, seed=config.seed, **workers)

    def evaluate(state: State) -> Report:
        _, test = sources(data)
        scores = map_batches(
            lambda params, batch: {"scores": ten_crops(net, params, batch["image"], size), "label": batch["label"]},
            state.params,
            range(len(test)),
            config.eval.batch_size,
            lambda part: classification.centre_batch(pipeline.fetch(test, part), data.resized),
        )
        return report(config, net, state, test, scores["scores"], scores["label"])

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=train_step,
        train_data=train_data,
        batch={
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
    )


def convolutions(params: Any) -> Any:
    """The parameters of the convolutions."""
    return {name: layer for name, layer in params.items() if name.startswith("conv")}


def sources(data: ConfigDict) -> tuple[Any, Any]:
    """Labelled images to train and to test on; of the face world, label 1 is a face with glasses."""
    if data.path:
        return classification.folders(data.path, classes=data.classes)
    splits = (faces.load("attributes", split, data.data_dir or None) for split in ("train", "test"))
    return tuple(classification.Attribute(source, "glasses") for source in splits)


def corners(free: int) -> tuple[tuple[int, int], ...]:
    """First row and column of the crops at the four corners and the centre, `free` pixels smaller than the image."""
    return (0, 0), (0, free), (free, 0), (free, free), (free // 2, free // 2)


def loader(resized: int, size: int, cover: int) -> pipeline.Load:
    """Training batches of `centre_batch`: one of the ten crops of each image, half of them with a grey square."""

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        batch = classification.centre_batch(examples, resized)
        images = []
        for image, rng in zip(batch["image"], rngs, strict=True):
            top, left = corners(resized - size)[rng.integers(5)]
            image = transforms.random_flip(image[top : top + size, left : left + size], rng)
            images.append(cover_by_chance(image, cover, rng))
        return {**batch, "image": np.stack(images)}

    return load


def cover_by_chance(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """With probability one half, the image [H, W, 3] with a square of the mean colour at a random place."""
    if not side or rng.random() < 0.5:
        return image
    top, left = rng.integers(np.subtract(image.shape[:2], side) + 1)
    image = image.copy()
    image[top : top + side, left : left + side] = normalize.IMAGENET_MEAN
    return image


def ten_crops(net: Any, params: Any, images: jax.Array, size: int) -> jax.Array:
    """Class probabilities [N, C], averaged over the ten crops of `size` pixels; of images of that size, of one."""
    free = images.shape[1] - size
    crops = [images[:, top : top + size, left : left + size] for top, left in (corners(free) if free else [(0, 0)])]
    crops += [crop[:, :, ::-1] for crop in crops] if free else []
    scores = (net.apply({"params": params}, normalize.centred(crop), train=False) for crop in crops)
    return sum(map(jax.nn.softmax, scores)) / len(crops)


def report(config: ConfigDict, net: Any, state: State, test: Any, scores: np.ndarray, labels: np.ndarray) -> Report:
    """Errors, and the paper's maps of test images that are classified right: of class 1, in the face world."""
    glasses, layers, data = not config.data.path, NETS[config.model.name][1], config.data
    right = scores.argmax(1) == labels
    pool = np.flatnonzero(right & (labels == 1)) if glasses else np.flatnonzero(right)
    chosen = (pool if len(pool) else np.arange(len(labels)))[: config.eval.pictures]  # all of an untrained network
    examples = pipeline.fetch(test, chosen)
    shift, size = (data.resized - data.image_size) // 2, data.image_size
    images = classification.centre_batch(examples, data.resized)["image"]
    images = images[:, shift : shift + size, shift : shift + size]
    options = {"square": config.eval.square, "stride": config.eval.stride}
    probe = attribution.Probe(net, {"params": state.params}, layers[-1], **options)
    maps = attribution.importance(probe, images, labels[chosen])
    metrics, tables = {}, {}
    if glasses:
        marks = landmarks_in_crop(examples, data.resized, size)
        found = attribution.localisation(maps, attribution.eye_boxes(marks))
        metrics = {"hits": found[f"{config.eval.map}_hits"], **found}
        places = {name: marks[:, list(part), ::-1].mean(1) for name, part in PARTS.items()}
        tables["Correspondence: disagreement of a layer's changes when a part is covered"] = (
            attribution.correspondences(probe, images, places, (layers[-1], "classifier/fc7"))
        )
    metrics["accuracy"] = 100 * float(right.mean())
    metrics["top1_error"] = 100 - metrics["accuracy"]
    top5 = top_k_correct(jnp.asarray(scores), jnp.asarray(labels), min(5, scores.shape[1]))
    metrics["top5_error"] = 100 - 100 * float(np.mean(top5))
    trunk, count = net.clone(num_classes=None), len(config.evolution.snapshots)
    history = [{"params": jax.tree.map(lambda p, i=i: p[i], state.history)} for i in range(count)]
    probes = [attribution.Probe(trunk, variables, layers[-1], **options) for variables in history]
    pictures = {f"Strongest of {name}": attribution.strongest_projections(probe, images, name) for name in layers}
    pictures["Features over training"] = attribution.evolution(probes, images, layers)
    figures = {"Occlusion": attribution.occlusion_figure(images, maps)}
    return Report(metrics, tables=tables, figures=figures, images=pictures, arrays={"occlusion": maps["occlusion"]})


def landmarks_in_crop(examples: Sequence[Any], resized: int, size: int) -> np.ndarray:
    """Landmarks [N, 68, 2] in pixels of the central crop of `size` pixels from images resized to `resized`."""
    side = transforms.decode(examples[0]["image"]).shape[0]
    return np.stack([e["landmarks68"] for e in examples]) * (resized / side) - (resized - size) // 2


if __name__ == "__main__":
    app.main(get_config, build)
