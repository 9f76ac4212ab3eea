"""Bilinear CNNs: products of features, averaged over the image, tell alike classes apart.

    python -m experiments.bilinear_cnn                                   # who is it: 80 rendered people, two cores
    python -m experiments.bilinear_cnn --config=cub_dd --config.data.path=DIR --config.model.weights=vgg16.pth
    python -m experiments.bilinear_cnn --config=cub_dm ... --config.model.other_weights=FILE   # VGG-16 and VGG-M

DIR holds train/CLASS/IMAGE.jpg and test/CLASS/IMAGE.jpg; the weights are torchvision's VGG-16 (a PyTorch state dict).
Eight GPUs. Published accuracies (README of the authors' MATLAB code, fine-tuned, with the SVM of `eval.svm`), CUB /
aircraft / cars: mm 78.1 / 77.9 / 86.5, dm 84.1 / 83.9 / 91.3, dd 84.0 / 84.1 / 90.6.
"""

from __future__ import annotations

import pathlib
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.backbones import vgg
from facejax.data import pipeline, readers, transforms
from facejax.data.synthetic import faces
from facejax.foundations import bilinear_cnn
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
    reduce_gradients,
    value_and_grad,
)
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        "source": "face_world",  # or "path": a folder with train/ and test/, each as facejax.data.readers.read opens it
        "path": "",
        "data_dir": "",
        "image_size": 48,
        "classes": 80,
        "threads": 2,
        "workers": 0,
    },
    "model": {
        "trunk": "tiny",
        "other": "",  # the second stream's trunk; empty lets the first meet itself
        "pooling": "bilinear",  # or "compact", "average"
        "sketch_size": 1024,
        "dtype": "float32",
        "weights": "",
        "other_weights": "",
    },
    "optim": {
        "frozen": 0.3,  # the first step's part of all updates, or their number: only the classifier learns
        "classifier": {
            "name": "adam", "weight_decay": 0.0, "schedule": {"kind": "constant", "peak": 0.3, "boundaries": ()},
        },
        "all": {
            "name": "adam", "weight_decay": 0.0, "clip": 0.0,
            "schedule": {"kind": "cosine", "peak": 2e-3, "boundaries": ()},
        },
    },
    "train": asdict(Options(batch_size=64, steps=500)),
    "eval": {"batch_size": 128, "svm": False},
}  # fmt: skip


def published(trunk: str, other: str, classes: int, images: int, batch: int = 64) -> dict[str, Any]:
    """The authors' run: 100 epochs of the classifier, 1e-2 and then 1e-3; 100 epochs of everything at 1e-3; SVMs."""
    epoch = images // batch
    return {
        "data": {"source": "path", "image_size": 448, "classes": classes, "threads": 16},
        "model": {"trunk": trunk, "other": other, "dtype": "bfloat16"},
        "optim": {
            "frozen": 100 * epoch,
            "classifier": {"name": "sgd", "schedule": {"kind": "step", "peak": 1e-2, "boundaries": (50 * epoch,)}},
            "all": {"name": "sgd", "schedule": {"kind": "constant", "peak": 1e-3}},
        },
        "train": {"batch_size": batch, "steps": 200 * epoch, "devices": 8},
        "eval": {"batch_size": 64, "svm": True},
    }


CUB, AIRCRAFT, CARS = (200, 5994), (100, 6667), (196, 8144)
PRESETS = {
    "synthetic": {},
    "average": {"model.pooling": "average"},
    "compact": {"model.pooling": "compact"},
    "two_streams": {"model.other": "tiny"},
    "cub_dd": published("vgg16", "", *CUB),
    "cub_dm": published("vgg16", "vgg_m", *CUB),
    "cub_mm": published("vgg_m", "", *CUB),
    "aircraft_dd": published("vgg16", "", *AIRCRAFT),
    "aircraft_dm": published("vgg16", "vgg_m", *AIRCRAFT),
    "cars_dd": published("vgg16", "", *CARS),
    "cars_dm": published("vgg16", "vgg_m", *CARS),
}
CLAIM = Claim(
    "bilinear_cnn.pooling",
    "bilinear pooling is more accurate on similar classes than average pooling in the same network",
    metric="accuracy",
    better="higher",
    method="synthetic",
    baseline=("average",),
)
TRUNKS = {
    "tiny": (lambda **options: vgg.VGG((1, 1, 2), (16, 32, 64), **options), "relu3_2"),
    "vgg16": (vgg.vgg16, "relu5_3"),
    "vgg19": (vgg.vgg19, "relu5_4"),
    "vgg_m": (vgg.vgg_m, "relu5"),
}
MEAN, DEVIATION = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: a classifier on a frozen trunk first, then both together."""
    size, batch, steps = config.data.image_size, config.train.batch_size, config.train.steps
    net = make_network(config)
    part = config.optim.frozen
    frozen = round(part * steps) if part < 1 else int(part)
    txs = {
        "classifier": optim.from_config(config.optim.classifier, max(frozen, 1)),
        "all": optim.from_config(config.optim.all, max(steps - frozen, 1)),
    }

    def init(rng: jax.Array) -> TrainState:
        params = net.init(rng, jnp.zeros((1, size, size, 3)), train=False)["params"]
        params = read_weights(config, params)
        state = {"classifier": txs["classifier"].init(params["head"]), "all": txs["all"].init(params)}
        return TrainState(jnp.zeros((), jnp.int32), rng, params, state)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        logits = net.apply({"params": params}, preprocess(batch["image"]), train=True, rngs={"dropout": rng})
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = Mean.of(top_k_correct(logits, batch["label"]))
        return losses.mean(), (model_state, {"loss": Mean.of(losses), "accuracy": right})

    def frozen_loss(params: Any, *rest: Any) -> Any:
        return loss_fn({**lax.stop_gradient(params), "head": params["head"]}, *rest)

    def update_classifier(grads: Any, opt: Any, params: Any) -> Any:
        updates, head = txs["classifier"].update(grads["head"], opt["classifier"], params["head"])
        return {**params, "head": optax.apply_updates(params["head"], updates)}, {**opt, "classifier": head}

    def update_all(grads: Any, opt: Any, params: Any) -> Any:
        updates, whole = txs["all"].update(grads, opt["all"], params)
        return optax.apply_updates(params, updates), {**opt, "all": whole}

    whole, head_only = (value_and_grad(f, config.train.microbatches) for f in (loss_fn, frozen_loss))

    def train_step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        together = state.step >= frozen
        arguments = state.params, state.model_state, batch, rng
        grads, _, metrics = lax.platform_dependent(
            *arguments,
            cpu=whole,  # XLA's convolutions within a branch are 30 times slower there than gradients not needed
            default=lambda *arguments: lax.cond(together, whole, head_only, *arguments),
        )
        grads = reduce_gradients(grads)
        params, opt = lax.cond(together, update_all, update_classifier, grads, state.opt_state, state.params)
        return state.replace(step=state.step + 1, params=params, opt_state=opt), metrics

    def train_data() -> Any:
        source, _ = sources(config)
        return pipeline.train_batches(
            source,
            lambda examples, rngs: load(examples, config.data, rngs),
            batch,
            seed=config.seed,
            threads=config.data.threads,
            workers=config.data.workers,
        )

    def describe(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Descriptors of images and their mirror images, and the classifier's scores."""
        found = {}
        for name, images in (("plain", batch["image"]), ("mirrored", batch["image"][:, :, ::-1])):
            found[name] = net.apply({"params": params}, preprocess(images), train=False, method="describe")
        scores = sum(jax.nn.softmax(x @ params["head"]["kernel"] + params["head"]["bias"]) for x in found.values())
        return {"scores": scores, "label": batch["label"], **(found if config.eval.svm else {})}

    def over(source: Any, state: TrainState) -> dict[str, np.ndarray]:
        return map_batches(
            describe,
            state.params,
            range(len(source)),
            config.eval.batch_size,
            lambda part: load(pipeline.fetch(source, part), config.data),
        )

    def evaluate(state: TrainState) -> Report:
        train, test = sources(config)
        found = over(test, state)
        scores, labels = found["scores"], found["label"]
        metrics = {
            "accuracy": 100 * float(np.mean(top_k_correct(scores, labels))),
            "top5_accuracy": 100 * float(np.mean(top_k_correct(scores, labels, min(5, config.data.classes)))),
        }
        if config.eval.svm:
            metrics["svm_accuracy"] = 100 * float(np.mean(top_k_correct(svm_scores(over(train, state), found), labels)))
        return Report(
            metrics,
            figures={"Mistakes": confusion(scores, labels)},
            images={
                "Most confident mistakes, and the class they were taken for": mistakes(test, config, scores, labels)
            },
        )

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


def make_network(config: ConfigDict) -> bilinear_cnn.BilinearCNN:
    """The network that the configuration names."""
    model = config.model
    for name in filter(None, (model.trunk, model.other)):
        if name not in TRUNKS:
            raise ValueError(f"model.trunk or model.other is {name!r}: expected one of {', '.join(TRUNKS)}")
    (trunk, layer), (other, other_layer) = TRUNKS[model.trunk], TRUNKS[model.other or model.trunk]
    dtype = jnp.dtype(model.dtype)
    return bilinear_cnn.BilinearCNN(
        config.data.classes,
        trunk(dtype=dtype),
        layer,
        other(dtype=dtype) if model.other else None,
        other_layer,
        model.pooling,
        model.sketch_size,
    )


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, 3] -> less ImageNet's mean, divided by its deviation."""
    return (images.astype(jnp.float32) - MEAN) / DEVIATION


def read_weights(config: ConfigDict, params: Any) -> Any:
    """Parameters with the trunks' convolutions from PyTorch state dicts, in torchvision's order of layers."""
    from facejax.interop.names import convert  # only runs from published weights need them
    from facejax.interop.pytorch import read_state_dict
    from facejax.interop.torchvision import vgg_convolution_rules

    for part, path in (("trunk", config.model.weights), ("other", config.model.other_weights)):
        if path:
            tensors = {k: v for k, v in read_state_dict(path).items() if k.startswith("features.")}
            places = sorted({int(name.split(".")[1]) for name in tensors})
            if part not in params:
                raise ValueError(f"model.other_weights is {path!r}, but model.other names no second trunk")
            if len(places) != len(params[part]):
                raise ValueError(
                    f"{path} holds {len(places)} layers under 'features': expected {len(params[part])} convolutions"
                )
            rules = vgg_convolution_rules(dict(zip(places, sorted(params[part]), strict=True)))
            params = {**params, part: convert(tensors, rules, {"params": params[part]})["params"]}
    return params


def sources(config: ConfigDict) -> tuple[Any, Any]:
    """Labelled images to train on and to test on. In the face world: 18 and 6 pictures of the same people."""
    data = config.data
    if data.source == "path":
        return tuple(readers.read(pathlib.Path(data.path) / split) for split in ("train", "test"))
    source = faces.load("recognition", "train", data.data_dir or None)
    train, test, seen = [], [], np.zeros(data.classes, int)
    for example in pipeline.fetch(source, range(len(source))):
        label = int(example["person"])
        if label < data.classes:
            (train if seen[label] < 18 else test).append({"image": example["image"], "label": label})
            seen[label] += 1
    return train, test


def load(examples: Any, data: ConfigDict, rngs: Any = None) -> dict[str, np.ndarray]:
    """A batch: shorter side to the size wanted, a random crop and flip, or without generators the central crop."""
    labels = np.array([e["label"] for e in examples], np.int32)
    if labels.max() >= data.classes:
        raise ValueError(f"a label is {labels.max()}, but data.classes is {data.classes}: expected labels below it")
    images = [
        crop(transforms.decode(e["image"]), data.image_size, r) for e, r in zip(examples, rngs or [None] * len(labels))
    ]
    return {"image": np.stack(images), "label": labels}


def crop(image: np.ndarray, size: int, rng: np.random.Generator | None) -> np.ndarray:
    """[H, W, 3] -> [size, size, 3]."""
    height, width = (round(n * size / min(image.shape[:2])) for n in image.shape[:2])
    image = transforms.resize(image, height, width)
    top, left = ((n - size) // 2 if rng is None else int(rng.integers(n - size + 1)) for n in (height, width))
    image = image[top : top + size, left : left + size]
    return image if rng is None else transforms.random_flip(image, rng)


def svm_scores(train: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> np.ndarray:
    """One-against-all linear SVMs (C = 1) on descriptors of images and mirror images, Sec. 4.

    They are solved in the Gram matrix, for descriptors are longer than data sets are large. Every classifier is shifted
    and scaled so that on its training set the median negative scores 0 and the median positive 1.

    Returns:
      [N, C] scores of the test images, averaged with their mirror images'.
    """
    from sklearn.svm import SVC

    known = np.concatenate([train["plain"], train["mirrored"]])
    labels = np.concatenate([train["label"]] * 2)
    gram, cross = known @ known.T, (test["plain"] + test["mirrored"]) / 2 @ known.T
    scores = []
    for label in range(labels.max() + 1):
        positive = labels == label
        machine = SVC(kernel="precomputed", C=1.0).fit(gram, positive)
        own = machine.decision_function(gram)
        low, high = np.median(own[~positive]), np.median(own[positive])
        scores.append((machine.decision_function(cross) - low) / (high - low))
    return np.stack(scores, 1)


def confusion(scores: np.ndarray, labels: np.ndarray) -> Any:
    """True against predicted classes, and each class's accuracy."""
    classes, predicted = scores.shape[1], scores.argmax(1)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels, predicted), 1)
    figure, (left, right) = new_figure(9, 3.8, 1, 2)
    left.imshow(counts, cmap="magma_r")
    left.set(xlabel="predicted", ylabel="true class")
    left.grid(False)
    right.hist(100 * counts.diagonal() / np.maximum(counts.sum(1), 1), bins=np.linspace(0, 100, 13))
    right.set(xlabel="accuracy of a class, %", ylabel="classes")
    return figure


def mistakes(source: Any, config: ConfigDict, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Twelve wrongly classified images above one image each of the class that was predicted."""
    predicted = scores.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-scores[wrong].max(1))][:12]
    alike = [np.flatnonzero(labels == predicted[i])[:1] for i in wrong]
    shown = np.concatenate([wrong, *alike]).astype(int) if len(wrong) else np.arange(12)
    return image_grid(load(pipeline.fetch(source, shown), config.data)["image"], max(len(wrong), 1))


if __name__ == "__main__":
    app.main(get_config, build)
