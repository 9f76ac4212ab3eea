"""Visualizing and understanding CNNs: what activates a feature map, and which part of a picture decides.

    python -m experiments.deconvnet                    # does the face wear glasses? two cores
    python -m experiments.deconvnet --config=vgg       # the same looked for in another network
    python -m experiments.deconvnet --config=imagenet --config.data.path=DIR   # ZFNet; paper: 38.4 / 16.5 % error

DIR holds train/CLASS/IMAGE.jpg and val/CLASS/IMAGE.jpg. The paper trained for 12 days on one GTX 580; top-1 and top-5
error are those of one network on the validation set (Table 2). It lowered the rate by hand; the steps here are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
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
from facejax.data import classification, pipeline, transforms
from facejax.data.synthetic import faces
from facejax.foundations import deconvnet
from facejax.metrics.classification import top_k_correct
from facejax.train import (
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    image_grid,
    map_batches,
    new_figure,
    optim,
    supervised_step,
)
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        "path": "",  # empty: the face world, with and without glasses
        "data_dir": "",
        "resized": 96,  # central square, from which the corners and the centre are cropped
        "image_size": 96,
        "classes": 2,
        "cover": 24,  # side of a grey square laid on every other training picture, so that its edges say nothing
        "threads": 2,
        "workers": 0,
    },
    "model": {"name": "tiny", "dtype": "float32"},
    "evolution": {"snapshots": (0.03, 0.1, 0.3, 1.0)},  # parts of the training after which convolutions are kept
    "optim": {
        "filter_limit": 0.0,  # root mean square beyond which a convolution's filter is scaled down; 0 does not
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 1e-3, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=64, steps=600, save_every=100)),
    "eval": {
        "batch_size": 128,
        "map": "occlusion",  # or "gradient", "deconvnet", "no_switches", "chance": whose peaks the headline counts
        "pictures": 96,
        "square": 24,
        "stride": 6,
    },
}
PRESETS = {
    "synthetic": {},
    "deconvnet": {"eval.map": "deconvnet"},
    "no_switches": {"eval.map": "no_switches"},
    "chance": {"eval.map": "chance", "train.steps": 1},  # which no training changes
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
RULES: dict[str, Mapping[str, deconvnet.Rule]] = {
    "gradient": deconvnet.GRADIENT,
    "deconvnet": deconvnet.DECONVNET,
    "no_switches": deconvnet.NO_SWITCHES,
}
MAPS = ("occlusion", *RULES, "chance")
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
MEAN = np.float32([123.675, 116.28, 103.53])
PARTS = {"right eye": range(36, 42), "left eye": range(42, 48), "nose": range(27, 36), "mouth": range(48, 68)}


@struct.dataclass
class State(TrainState):
    """With the convolutions as they were at the snapshots, [snapshots, ...] each."""

    history: Any = None


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
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
        logits = net.apply({"params": params}, preprocess(batch["image"]), train=True, rngs={"dropout": rng})
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = Mean.of(top_k_correct(logits, batch["label"]))
        return losses.mean(), (model_state, {"loss": Mean.of(losses), "accuracy": right})

    step = supervised_step(loss_fn, tx, microbatches=config.train.microbatches)

    def train_step(state: State, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        state, metrics = step(state, batch, rng)

        def kept(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where((snapshots == state.step).reshape(-1, *[1] * new.ndim), new, old)

        return state.replace(history=jax.tree.map(kept, state.history, convolutions(state.params))), metrics

    def train_data() -> Any:
        return pipeline.train_batches(
            sources(config)[0],
            lambda examples, rngs: load(examples, data, rngs),
            batch,
            seed=config.seed,
            threads=data.threads,
            workers=data.workers,
        )

    def evaluate(state: State) -> Report:
        _, test = sources(config)
        scores = map_batches(
            lambda params, batch: {"scores": ten_crops(net, params, batch["image"], size), "label": batch["label"]},
            state.params,
            range(len(test)),
            config.eval.batch_size,
            lambda part: load(pipeline.fetch(test, part), data),
        )
        return look(config, net, state, test, scores["scores"], scores["label"])

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
    """The parameters of the layers that see images."""
    return {name: layer for name, layer in params.items() if name.startswith("conv")}


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, 3] -> less the mean colour, on the scale of 0..255."""
    return images.astype(jnp.float32) - MEAN


def sources(config: ConfigDict) -> tuple[Any, Any]:
    """Labelled pictures to train and to test on. In the face world the label is whether there are glasses."""
    if config.data.path:
        return classification.splits(config.data.path)
    return tuple(Glasses(faces.load("attributes", split, config.data.data_dir or None)) for split in ("train", "test"))


class Glasses:
    """The face world's attributes with "label" 1 where there are glasses."""

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[int(index)]
        return {**example, "label": int(example["glasses"] > 0)}


def load(examples: Sequence[Any], data: ConfigDict, rngs: Sequence[np.random.Generator] = ()) -> dict[str, np.ndarray]:
    """The central square resized; to train on, one of its ten crops (corners, centre, and their mirror images)."""
    batch = classification.centre_batch(examples, data.resized)
    if not len(rngs):
        return batch
    images, free = [], data.resized - data.image_size
    for image, rng in zip(batch["image"], rngs, strict=True):
        top, left = ((0, 0), (0, free), (free, 0), (free, free), (free // 2, free // 2))[rng.integers(5)]
        image = image[top : top + data.image_size, left : left + data.image_size]
        images.append(cover_by_chance(transforms.random_flip(image, rng), data.cover, rng))
    return {**batch, "image": np.stack(images)}


def cover_by_chance(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Every other picture [H, W, 3] with a square of the mean colour somewhere."""
    if not side or rng.random() < 0.5:
        return image
    top, left = rng.integers(np.subtract(image.shape[:2], side) + 1)
    image = image.copy()
    image[top : top + side, left : left + side] = MEAN
    return image


def ten_crops(net: Any, params: Any, images: jax.Array, size: int) -> jax.Array:
    """Class probabilities [N, C], the mean over the ten crops; one look where there is nothing to crop."""
    free = images.shape[1] - size
    places = ((0, 0), (0, free), (free, 0), (free, free), (free // 2, free // 2)) if free else ((0, 0),)
    crops = [images[:, top : top + size, left : left + size] for top, left in places]
    crops += [crop[:, :, ::-1] for crop in crops] if free else []
    return sum(jax.nn.softmax(net.apply({"params": params}, preprocess(c), train=False)) for c in crops) / len(crops)


def look(config: ConfigDict, net: Any, state: State, test: Any, scores: np.ndarray, labels: np.ndarray) -> Report:
    """Errors, and everything that the paper looks at, on test pictures of the last class that are classified right."""
    faces_known, layers = not config.data.path, NETS[config.model.name][1]
    right = scores.argmax(1) == labels
    pool = np.flatnonzero(right & (labels == 1)) if faces_known else np.flatnonzero(right)
    pool = pool if len(pool) else np.arange(len(labels))  # a network that has learnt nothing
    chosen = pool[: config.eval.pictures]
    examples = pipeline.fetch(test, chosen)
    free = config.data.resized - config.data.image_size
    shift, size = free // 2, config.data.image_size
    images = load(examples, config.data)["image"][:, shift : shift + size, shift : shift + size]
    variables = {"params": state.params}
    maps = importance(config, net, variables, images, labels[chosen])
    metrics, tables = {}, {}
    if faces_known:
        marks = marks_in_view(examples, config.data)
        boxes = eye_boxes(marks)
        hits = {name: hit_rate(maps[name], maps["centres"], boxes) for name in ("occlusion", *RULES)}
        centres = np.stack(np.meshgrid(*maps["centres"], indexing="ij"), -1)
        hits["chance"] = float(inside(centres[None], boxes[:, None, None]).mean())
        metrics["hits"] = hits[config.eval.map]
        metrics |= {f"{name}_hits": value for name, value in hits.items()}
        pixels = np.stack(np.indices((size, size)), -1) + 0.5
        within = inside(pixels[None], boxes[:, None, None])
        for name in RULES:
            energy = maps[f"{name}_pixels"]
            metrics[f"{name}_energy_on_part"] = float((energy * within).sum() / energy.sum())
        metrics["area_of_part"] = float(within.mean())
        tables["Correspondence: how differently a layer changes when a part is covered"] = correspondences(
            config, net, variables, images, marks
        )
    metrics["accuracy"] = 100 * float(right.mean())
    metrics["top1_error"] = 100 - metrics["accuracy"]
    top5 = top_k_correct(jnp.asarray(scores), jnp.asarray(labels), min(5, scores.shape[1]))
    metrics["top5_error"] = 100 - 100 * float(np.mean(top5))
    pictures = {f"Strongest of {name}": strongest_projections(net, variables, images, name) for name in layers}
    return Report(
        metrics,
        tables=tables,
        figures={"Occlusion": occlusion_figure(images, maps)},
        images={**pictures, "Features over training": evolution(net, state.history, images, layers)},
        arrays={"occlusion": maps["occlusion"]},
    )


@partial(jax.jit, static_argnames=("net", "layer"))
def activations(net: Any, variables: Any, x: jax.Array, layer: str) -> jax.Array:
    """What a layer gives; the class scores where its name is empty."""
    return deconvnet.layer_of(net, variables, layer, train=False)(x)


@partial(jax.jit, static_argnames=("net", "layer", "rules"))
def sent_back(
    net: Any, variables: Any, x: jax.Array, units: jax.Array, layer: str, rules: str = "deconvnet"
) -> jax.Array:
    """The pixels' part in one activation of each image."""
    return deconvnet.project(deconvnet.layer_of(net, variables, layer, train=False), x, units, RULES[rules])


def importance(
    config: ConfigDict, net: Any, variables: Any, images: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """What each method says of where the true class's score comes from.

    Returns:
      name -> [N, H', W'], a value for every square: for "occlusion" how far the probability falls, for the others the
      energy in the square of what is sent back to the pixels; "{name}_pixels" [N, H, W], that energy; "activation", the
      sum of the last convolution's strongest map where the square covers; "projection" [N, H, W, 3] of that map's peak;
      "centres", of the squares, rows and columns.
    """
    square, stride, last = config.eval.square, config.eval.stride, NETS[config.model.name][1][-1]
    x, truth, rows = preprocess(jnp.asarray(images)), jnp.asarray(labels)[:, None], jnp.arange(len(images))
    found = activations(net, variables, x, last)
    units = np.stack(np.unravel_index(np.asarray(found).reshape(len(images), -1).argmax(1), found.shape[1:]), -1)

    def watched(x: jax.Array) -> dict[str, jax.Array]:
        probability = jnp.take_along_axis(jax.nn.softmax(activations(net, variables, x, "")), truth, 1)[:, 0]
        strongest = jax.nn.relu(activations(net, variables, x, last))[rows, :, :, units[:, 2]]
        return {"probability": probability, "activation": strongest.sum((1, 2))}

    covered, *centres = deconvnet.occlusion(watched, x, size=square, stride=stride)
    whole = np.asarray(watched(x)["probability"])[:, None, None]
    maps = {
        "occlusion": whole - np.asarray(covered["probability"]),
        "activation": np.asarray(covered["activation"]),
        "projection": np.asarray(sent_back(net, variables, x, units, last)),
        "centres": centres,
    }
    for name in RULES:
        energy = np.asarray(jnp.sum(sent_back(net, variables, x, truth, "", name) ** 2, -1))
        squares = np.lib.stride_tricks.sliding_window_view(energy, (square, square), (1, 2))
        maps |= {f"{name}_pixels": energy, name: squares[:, ::stride, ::stride].mean((3, 4))}
    return maps


def marks_in_view(examples: Sequence[Any], data: ConfigDict) -> np.ndarray:
    """Landmarks [N, 68, 2] in pixels of the central crop that the network sees."""
    side, free = transforms.decode(examples[0]["image"]).shape[0], data.resized - data.image_size
    return np.stack([e["landmarks68"] for e in examples]) * (data.resized / side) - free // 2


def eye_boxes(marks: np.ndarray) -> np.ndarray:
    """Landmarks [N, 68, 2] -> [N, 2, 2], first and last (row, column) of the eyes with a fifth of their span around."""
    eyes = marks[:, 36:48, ::-1]
    low, high = eyes.min(1), eyes.max(1)
    margin = 0.2 * np.abs(high - low).max(1, keepdims=True)
    return np.stack([low - margin, high + margin], 1)


def inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether points [..., 2] lie in boxes [..., 2, 2]. [...]."""
    return ((points >= boxes[..., 0, :]) & (points <= boxes[..., 1, :])).all(-1)


def hit_rate(maps: np.ndarray, centres: Sequence[np.ndarray], boxes: np.ndarray) -> float:
    """Share of maps [N, H', W'] whose highest square has its centre in the box."""
    row, column = np.unravel_index(maps.reshape(len(maps), -1).argmax(1), maps.shape[1:])
    return float(inside(np.stack([centres[0][row], centres[1][column]], -1), boxes).mean())


def correspondences(
    config: ConfigDict, net: Any, variables: Any, images: np.ndarray, marks: np.ndarray
) -> list[dict[str, Any]]:
    """Sec. 4.3 for parts of the face and for places at random, at the last convolution and the last hidden layer."""
    square, x = config.eval.square, preprocess(jnp.asarray(images))
    highest, rng = config.data.image_size - square, np.random.default_rng(0)
    places = {name: marks[:, list(part), ::-1].mean(1) - square / 2 for name, part in PARTS.items()}
    places["random"] = rng.uniform(0, highest, (len(images), 2))
    rows = [{"part": name} for name in places]
    for layer in (NETS[config.model.name][1][-1], "classifier/fc7"):
        whole = jax.nn.relu(activations(net, variables, x, layer))
        for row in rows:
            covered = deconvnet.cover(x, jnp.round(jnp.asarray(places[row["part"]])), square)
            covered = jax.nn.relu(activations(net, variables, covered, layer))
            row[layer] = float(deconvnet.correspondence(whole, covered))
    return rows


def strongest_projections(
    net: Any, variables: Any, images: np.ndarray, layer: str, maps: int = 8, each: int = 4, tile: int = 48
) -> np.ndarray:
    """Rows of feature maps: projections of their strongest activations, then what of the pictures they come from."""
    x = preprocess(jnp.asarray(images))
    found = np.asarray(activations(net, variables, x, layer))
    numbers, units = deconvnet.strongest(found, each)
    order = np.argsort(-found.max(tuple(range(found.ndim - 1))))[:maps]
    numbers, units = numbers[order].reshape(-1), units[order].reshape(len(order) * numbers.shape[1], -1)
    back = np.asarray(sent_back(net, variables, x[numbers], units, layer))
    pairs = [patch(images[n], b, tile) for n, b in zip(numbers, back, strict=True)]
    shown, seen = (np.stack(part).reshape(len(order), -1, tile, tile, 3) for part in zip(*pairs, strict=True))
    return image_grid(np.concatenate([shown, seen], 1).reshape(-1, tile, tile, 3), 2 * shown.shape[1])


def patch(image: np.ndarray, back: np.ndarray, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """The region that a projection reaches, of the projection (grey is zero) and of the picture, both uint8."""
    reached = [np.flatnonzero(np.abs(back).max((axis, 2))) for axis in (1, 0)]
    rows, columns = (slice(r[0], r[-1] + 1) if len(r) else slice(None) for r in reached)
    return tuple(transforms.resize(part[rows, columns], tile, tile) for part in (visible(back), image))


def visible(back: np.ndarray) -> np.ndarray:
    """Signed numbers as uint8, zero grey and the largest at the end of the scale."""
    return np.clip(128 + 127 * back / max(np.abs(back).max(), 1e-12), 0, 255).astype(np.uint8)


def evolution(net: Any, history: Any, images: np.ndarray, layers: Sequence[str], maps: int = 3) -> np.ndarray:
    """A row per feature map, its strongest activation sent back to the pixels at each snapshot.

    The `maps` of each layer are those that are strongest in the end.
    """
    trunk, x, rows = net.clone(num_classes=None), preprocess(jnp.asarray(images)), []
    snapshots = [
        {"params": jax.tree.map(lambda p, i=i: p[i], history)} for i in range(len(jax.tree.leaves(history)[0]))
    ]
    for layer in layers:
        final = np.asarray(activations(trunk, snapshots[-1], x, layer))
        shown, columns = np.argsort(-final.max(tuple(range(final.ndim - 1))))[:maps], []
        for variables in snapshots:
            found = np.asarray(activations(trunk, variables, x, layer))
            numbers, units = (part[shown, 0] for part in deconvnet.strongest(found, 1))
            back = np.asarray(sent_back(trunk, variables, x[numbers], units, layer))
            columns.append([patch(images[n], b, 48)[0] for n, b in zip(numbers, back, strict=True)])
        rows += [column[m] for m in range(len(shown)) for column in columns]
    return image_grid(np.stack(rows), len(snapshots))


def occlusion_figure(images: np.ndarray, maps: dict[str, Any], shown: int = 8) -> Any:
    """Pictures over the fall of the true class's probability, the strongest map's sum, its projection and gradients."""
    shown = min(shown, len(images))
    figure, axes = new_figure(1.5 * shown, 7.2, 5, shown)
    axes = axes.reshape(5, shown)
    (top, bottom), (left, right) = ((c[0], c[-1]) for c in maps["centres"])
    extent = (left - 0.5, right + 0.5, bottom + 0.5, top - 0.5)
    names = ("picture", "fall of probability", "map's sum", "its projection", "gradient")
    for i, column in enumerate(axes.T):
        column[0].imshow(images[i])
        column[1].imshow(maps["occlusion"][i], cmap="magma", extent=extent)
        column[2].imshow(maps["activation"][i], cmap="viridis", extent=extent)
        column[3].imshow(visible(maps["projection"][i]))
        column[4].imshow(np.sqrt(maps["gradient_pixels"][i]), cmap="magma")
        for axis in column:
            axis.set(xticks=[], yticks=[], xlim=(0, images.shape[2]), ylim=(images.shape[1], 0))
            axis.grid(False)
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name, fontsize=8)
    return figure


if __name__ == "__main__":
    app.main(get_config, build)
