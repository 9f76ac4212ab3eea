"""Bilinear CNNs: outer products of features, averaged over the image, distinguish similar classes.

    python -m experiments.bilinear_cnn                                   # identities of 80 rendered people, two cores
    python -m experiments.bilinear_cnn --config=cub_dd --config.data.path=DIR --config.model.weights=vgg16.pth
    python -m experiments.bilinear_cnn --config=cub_dm ... --config.model.other_weights=FILE   # VGG-16 and VGG-M

DIR holds train/CLASS/IMAGE.jpg and test/CLASS/IMAGE.jpg; the weights are torchvision's VGG-16 (a PyTorch state dict).
Eight GPUs. Published accuracies (README of the authors' MATLAB code, fine-tuned, with the SVM of `eval.svm`), CUB /
aircraft / cars: mm 78.1 / 77.9 / 86.5, dm 84.1 / 83.9 / 91.3, dd 84.0 / 84.1 / 90.6.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.backbones import vgg
from facejax.data import classification as images
from facejax.data import normalize, pipeline
from facejax.evaluate import classification as evaluation
from facejax.foundations import bilinear_cnn
from facejax.metrics.classification import top_k_correct
from facejax.train import (
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    map_batches,
    optim,
    reduce_gradients,
    value_and_grad,
    warm_start,
)
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        "source": "face_world",  # "face_world" (people), or "path"
        "path": "",  # folder with train/ and test/, each as facejax.data.readers.read opens it
        "data_dir": "",  # where the prepared face world lies; empty is $FACEJAX_DATA_DIR, else ~/.cache/facejax
        "image_size": 48,  # side of the network's input, pixels
        "classes": 80,  # number of classes; of the face world, its first people
        "threads": 2,  # batches loaded at once in this process
        "workers": 0,  # processes that load besides; 0 loads in this one
    },
    "model": {
        "trunk": "tiny",  # a key of TRUNKS
        "other": "",  # the second stream's trunk, a key of TRUNKS; empty pairs the first stream with itself
        "pooling": "bilinear",  # "bilinear", "compact" or "average"
        "sketch_size": 1024,  # numbers of the compact descriptor
        "dtype": "float32",  # of the computation
        "weights": "",  # PyTorch file of a VGG whose convolutions initialise the first trunk
        "other_weights": "",  # likewise, of the second trunk
    },
    "optim": {
        "frozen": 0.3,  # updates of the classifier alone: a part of all updates if below 1, else their number
        "classifier": {
            "name": "adam", "weight_decay": 0.0, "schedule": {"kind": "constant", "peak": 0.3, "boundaries": ()},
        },
        "all": {
            "name": "adam", "weight_decay": 0.0, "clip": 0.0,
            "schedule": {"kind": "cosine", "peak": 2e-3, "boundaries": ()},
        },
    },
    "train": asdict(Options(batch_size=64, steps=500)),
    "eval": {
        "batch_size": 128,  # images a call
        "svm": False,  # whether linear SVMs on the descriptors are trained and tested too
    },
}  # fmt: skip


def published(trunk: str, other: str, classes: int, images: int, batch: int = 64) -> dict[str, Any]:
    """The authors' run: the classifier for 100 epochs at 1e-2, then 1e-3; all for 100 epochs at 1e-3; SVMs."""
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


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: the classifier on a frozen trunk first, then both together."""
    config = app.with_classes(config, lambda: count_classes(config.data))
    size, batch, steps = config.data.image_size, config.train.batch_size, config.train.steps
    net = make_network(config)
    files = {"trunk": config.model.weights, "other": config.model.other_weights}
    part = config.optim.frozen
    frozen = round(part * steps) if part < 1 else int(part)
    txs = {
        "classifier": optim.from_config(config.optim.classifier, max(frozen, 1)),
        "all": optim.from_config(config.optim.all, max(steps - frozen, 1)),
    }

    def fresh(rng: jax.Array) -> Any:
        return net.init(rng, jnp.zeros((1, size, size, 3)), train=False)["params"]

    def prepare() -> dict[str, Any]:
        return read_weights(files, jax.eval_shape(fresh, jax.random.key(0)))

    def init(rng: jax.Array, start: dict[str, Any] | None = None) -> TrainState:
        params = fresh(rng)
        params |= {part: warm_start.taken(trunk, params[part]) for part, trunk in (start or {}).items()}
        state = {"classifier": txs["classifier"].init(params["head"]), "all": txs["all"].init(params)}
        return TrainState(jnp.zeros((), jnp.int32), rng, params, state)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        logits = net.apply({"params": params}, normalize.imagenet(batch["image"]), train=True, rngs={"dropout": rng})
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
            cpu=whole,  # a convolution inside a branch takes XLA 30 times as long there; unused gradients cost less
            default=lambda *arguments: lax.cond(together, whole, head_only, *arguments),
        )
        grads = reduce_gradients(grads)
        params, opt = lax.cond(together, update_all, update_classifier, grads, state.opt_state, state.params)
        return state.replace(step=state.step + 1, params=params, opt_state=opt), metrics

    def train_data() -> Any:
        workers = {name: config.data[name] for name in ("threads", "workers")}
        load = images.short_side_loader(size, config.data.classes)
        return pipeline.train_batches(sources(config.data)[0], load, batch, seed=config.seed, **workers)

    def describe(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Descriptors of images and of their mirror images, and the classifier's scores."""
        found = {}
        for name, crops in (("plain", batch["image"]), ("mirrored", batch["image"][:, :, ::-1])):
            found[name] = net.apply({"params": params}, normalize.imagenet(crops), train=False, method="describe")
        scores = sum(jax.nn.softmax(x @ params["head"]["kernel"] + params["head"]["bias"]) for x in found.values())
        return {"scores": scores, "label": batch["label"], **(found if config.eval.svm else {})}

    def evaluate(state: TrainState) -> Report:
        train, test = sources(config.data)
        test_load = images.short_side_loader(size, config.data.classes)

        def load(source: Any, rows: Any) -> dict[str, np.ndarray]:
            return test_load(pipeline.fetch(source, rows), None)

        def over(source: Any) -> dict[str, np.ndarray]:
            rows = range(len(source))
            return map_batches(describe, state.params, rows, config.eval.batch_size, lambda part: load(source, part))

        found = over(test)
        scores, labels = found["scores"], found["label"]
        metrics = {
            "accuracy": 100 * float(np.mean(top_k_correct(scores, labels))),
            "top5_accuracy": 100 * float(np.mean(top_k_correct(scores, labels, min(5, config.data.classes)))),
        }
        if config.eval.svm:
            known = over(train)
            descriptors = np.concatenate([known["plain"], known["mirrored"]])
            mean = (found["plain"] + found["mirrored"]) / 2
            scored = evaluation.svm_scores(descriptors, np.concatenate([known["label"]] * 2), mean)
            metrics["svm_accuracy"] = 100 * float(np.mean(top_k_correct(scored, labels)))
        return Report(
            metrics,
            figures={"Confusion": evaluation.confusion_figure(scores, labels)},
            images=evaluation.mistakes(
                lambda rows: load(test, rows)["image"], scores.argmax(1), labels, scores.max(1), columns=12
            ),
        )

    return Experiment(
        evaluate=evaluate,
        init=init,
        prepare=prepare if any(files.values()) else None,
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


def read_weights(files: dict[str, str], params: Any) -> dict[str, Any]:
    """Trunks from PyTorch state dicts.

    Args:
      files: "trunk" and "other" -> file; empty names are left out.
      params: of the network, or their shapes.
    """
    from facejax.interop import torchvision  # only published weights need it

    found = {}
    for part, path in files.items():
        if path and part not in params:
            raise ValueError(f"model.other_weights is {path!r}, but model.other names no second trunk")
        if path:
            found[part] = torchvision.load_vgg_convolutions(path, params[part])
    return found


def count_classes(data: ConfigDict) -> int:
    """The number of classes at a path, or of people in the face world."""
    return sources(data)[0].num_classes if data.source == "path" else images.LabelledImages().count()


def sources(data: ConfigDict) -> tuple[Any, Any]:
    """Labelled images to train on and to test on; of the face world 18 and 6 images of each person."""
    if data.source == "path":
        return images.folders(data.path, ("train", "test"), data.classes)
    return images.first_people(data.classes, 18, data.data_dir or None)


if __name__ == "__main__":
    app.main(get_config, build)
