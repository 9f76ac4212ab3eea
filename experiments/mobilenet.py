"""MobileNet V1 and V2: accuracy of classifiers against their multiply-adds.

    python -m experiments.mobilenet                                        # rendered faces: who is it? V1 at width 0.5
    python -m experiments.mobilenet --config=v2                            # V2
    python -m experiments.mobilenet --config=imagenet_v1 --config.data.path=DIR   # DIR/train/class/*.jpg, DIR/val/...
    python -m experiments.mobilenet --config=imagenet_v2 --config.data.path=DIR   # 8 GPUs

Published top-1 on ImageNet's validation images: V1 70.6 and V2 72.0 (papers); slim's released weights: V1 at widths 1,
0.75, 0.5, 0.25: 70.9, 68.4, 63.3, 49.8; V2 at 1.4, 1: 75.0, 71.8.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.backbones import mobilenet
from facejax.data import classification, pipeline
from facejax.metrics.classification import top_k_correct
from facejax.train import (
    Experiment,
    Mean,
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
from facejax.train.dry_run import count, flops

BASE = {
    "seed": 0,
    "data": {
        "path": "",  # a folder with train/class/picture.jpg and val/class/picture.jpg; empty is the face world
        "data_dir": "",
        "image_size": 48,
        "classes": 80,
        "crops": False,
        "centre": 1.0,  # part of the picture's shorter side that evaluation looks at
        "threads": 2,
        "workers": 0,
    },
    "model": {
        "name": "v1",  # or "v2"
        "width": 0.5,
        "separable": True,
        "linear": True,
        "dropout": 1e-3,
        "momentum": 0.9,
        "epsilon": 1e-3,
        "dtype": "float32",
    },
    "loss": {"label_smoothing": 0.0},
    "optim": {
        "name": "sgd",
        "momentum": 0.9,
        "eps": 1e-8,
        "b2": 0.999,
        "weight_decay": 4e-5,
        "decay": "kernels",
        "clip": 0.0,
        "ema": 0.0,  # decay of an average of the weights, which is then what is tested; 0 keeps none
        "schedule": {"kind": "cosine", "peak": 0.1, "warmup": 0, "every": 0, "factor": 1.0},
    },
    "train": {
        "batch_size": 64,
        "steps": 300,
        "log_every": 50,
        "eval_every": 0,
        "save_every": 50,
        "save_seconds": 60.0,
        "keep": 2,
        "microbatches": 1,
        "parallel": "shard_map",
        "devices": 0,
    },
    "eval": {"batch_size": 120},
}


def imagenet(name: str, width: float, size: int = 224, **changes: Any) -> dict[str, Any]:
    """What both papers' ImageNet runs share."""
    return {
        "data": {"path": "imagenet", "image_size": size, "classes": 1000, "crops": True, "centre": 0.875},
        "model": {"name": name, "width": width, "momentum": 0.997, "dtype": "bfloat16"},
        **changes,
    }


def slim_v1(width: float, size: int = 224) -> dict[str, Any]:
    """TF-slim's script for V1: plain SGD, 0.94 every 2.5 epochs, batches of 64. Its length, 100 epochs, is ours."""
    return imagenet(
        "v1",
        width,
        size,
        optim={
            "momentum": 0.0,
            "schedule": {"kind": "exponential", "peak": 0.045, "every": 50_045, "factor": 0.94},
        },
        train={"batch_size": 64, "steps": 2_001_800, "devices": 1, "eval_every": 20_018},
    ) | {"model.momentum": 0.9997}


def slim_v2(width: float) -> dict[str, Any]:
    """TF-slim's recipe for V2 (72.0 %): 8 GPUs of 96 images, RMSProp, label smoothing, EMA, 700,000 steps."""
    return imagenet(
        "v2",
        width,
        loss={"label_smoothing": 0.1},
        optim={
            "name": "rmsprop",
            "b2": 0.9,
            "eps": 1.0,
            "ema": 0.9999,
            "schedule": {"kind": "exponential", "peak": 0.36, "every": 521, "factor": 0.98},
        },
        train={"batch_size": 768, "steps": 700_000, "devices": 8, "eval_every": 16_680},
    ) | {"model.dropout": 0.2}


PRESETS = {
    "synthetic": {},
    "full_convolution": {"model.separable": False, "model.width": 0.17},
    "v2": {"model.name": "v2"},
    "v2_relu": {"model.name": "v2", "model.linear": False},
    "imagenet_v1": slim_v1(1.0),
    "imagenet_v1_075": slim_v1(0.75),
    "imagenet_v1_050": slim_v1(0.5),
    "imagenet_v1_025": slim_v1(0.25),
    "imagenet_v1_160": slim_v1(1.0, 160),
    "imagenet_v2": slim_v2(1.0),
    "imagenet_v2_140": slim_v2(1.4),
}

CLAIM = (
    Claim(
        "at equal multiply-adds, depthwise separable convolutions classify better than full ones",
        metric="accuracy",
        better="higher",
        method="synthetic",
        baseline=("full_convolution",),
        system="mobilenet:v1",
    ),
    Claim(
        "linear bottlenecks classify better than bottlenecks with a ReLU6",
        metric="accuracy",
        better="higher",
        method="v2",
        baseline=("v2_relu",),
        system="mobilenet:v2",
    ),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    return classifier(config, make_net(config))


def make_net(config: ConfigDict) -> Any:
    """The network that the configuration names."""
    model = config.model
    if model.name not in ("v1", "v2"):
        raise ValueError(f"model.name is {model.name!r}: expected v1 or v2")
    options = {
        "num_classes": config.data.classes,
        "width": model.width,
        "dropout": model.dropout,
        "momentum": model.momentum,
        "epsilon": model.epsilon,
        "dtype": jnp.dtype(model.dtype),
    }
    if model.name == "v1":
        return mobilenet.MobileNetV1(separable=model.separable, **options)
    return mobilenet.MobileNetV2(linear=model.linear, **options)


def classifier(config: ConfigDict, net: Any, auxiliary: float = 0.0) -> Experiment:
    """A network trained with cross-entropy and tested by top-1 and top-5.

    Args:
      config: with the sections of `BASE`.
      net: (images, train=) -> logits [N, C]; with `auxiliary`, in training, a list of logits whose first is the main.
      auxiliary: weight of the loss of each further output.
    """
    size, classes, batch = config.data.image_size, config.data.classes, config.train.batch_size
    tx = make_optimizer(config.optim, config.train.steps)
    ema = config.optim.ema

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=bool(auxiliary))
        state = {"batch_stats": variables["batch_stats"]} if "batch_stats" in variables else {}
        return TrainState.create(rng, variables["params"], tx, ema=bool(ema), model_state=state)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        outputs, updated = net.apply(
            {"params": params, **model_state},
            preprocess(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], classes), config.loss.label_smoothing)
        main, *others = outputs if auxiliary else [outputs]
        losses = optax.softmax_cross_entropy(main, targets)
        total = losses + auxiliary * sum(optax.softmax_cross_entropy(o, targets) for o in others)
        metrics = {"loss": Mean.of(losses), "accuracy": Mean.of(top_k_correct(main, batch["label"]))}
        return total.mean(), (updated, metrics)

    def train_data() -> Any:
        source, _ = classification.splits(config.data.path, config.data.data_dir or None, classes)
        load = classification.loader(size, classes, config.data.crops)
        return pipeline.train_batches(
            source, load, batch, seed=config.seed, threads=config.data.threads, workers=config.data.workers
        )

    def evaluate(state: TrainState) -> Report:
        _, source = classification.splits(config.data.path, config.data.data_dir or None, classes)
        variables = {"params": state.ema if ema else state.params, **state.model_state}
        return classification_report(config, net, variables, source)

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_fn, tx, microbatches=config.train.microbatches, ema_decay=ema),
        train_data=train_data,
        batch={
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
    )


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, 3] -> -1..1."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def make_optimizer(options: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer of a config section; the schedule may be "exponential": times `factor` every `every` updates."""
    options = options.to_dict()
    del options["ema"]
    plan = options["schedule"]
    every, factor = plan.pop("every"), plan.pop("factor")
    if plan["kind"] != "exponential":
        return optim.from_config(options, steps)
    del options["schedule"]
    rate = optax.exponential_decay(plan["peak"], every, factor, staircase=True)
    return optim.optimizer(options.pop("name"), rate, **options)


def multiply_adds(net: Any, variables: Any, size: int) -> float:
    """Multiply-adds of one image's convolutions and matrix products, in millions."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return flops(jax.make_jaxpr(lambda v, x: net.apply(v, x, train=False))(variables, image).jaxpr) / 2e6


def classification_report(config: ConfigDict, net: Any, variables: Any, source: Any) -> Report:
    """Top-1, top-5, cost, how soon the true class comes, and the most certain mistakes."""
    size = config.data.image_size

    def predict(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits = net.apply(variables, preprocess(batch["image"]), train=False)
        chance = jax.nn.softmax(logits)
        truth = jnp.take_along_axis(chance, batch["label"][:, None], 1)
        return {
            "rank": jnp.sum(chance > truth, 1),
            "guess": chance.argmax(1),
            "chance": chance.max(1),
            "label": batch["label"],
            **{f"top{k}": top_k_correct(logits, batch["label"], k) for k in (1, 5)},
        }

    found = map_batches(
        predict,
        variables,
        range(len(source)),
        config.eval.batch_size,
        lambda indices: classification.centre_batch(pipeline.fetch(source, indices), size, config.data.centre),
    )
    metrics = {
        "accuracy": 100 * float(found["top1"].mean()),
        "top5_accuracy": 100 * float(found["top5"].mean()),
        "million_multiply_adds": multiply_adds(net, variables, size),
        "million_parameters": count(variables["params"]) / 1e6,
    }
    return Report(
        metrics,
        figures={"How soon the true class comes": rank_figure(found["rank"], config.data.classes)},
        images=mistakes(config, source, found),
        arrays={name: found[name] for name in ("guess", "label", "chance")},
    )


def rank_figure(ranks: np.ndarray, classes: int) -> Any:
    """Part of the pictures whose true class is among the first k, over k."""
    figure, axis = new_figure(5, 3.2)
    k = np.arange(1, min(classes, 20) + 1)
    axis.plot(k, [100 * np.mean(ranks < n) for n in k], marker="o", markersize=3)
    axis.set(xlabel="k", ylabel="true class among the first k, %", ylim=(0, 101), xticks=k[::2])
    return figure


def mistakes(config: ConfigDict, source: Any, found: dict[str, np.ndarray], columns: int = 10) -> dict[str, np.ndarray]:
    """The most certain wrong answers above a picture of the class that they name."""
    order = np.argsort(-found["chance"], kind="stable")
    wrong = [i for i in order if found["guess"][i] != found["label"][i] and (found["label"] == found["guess"][i]).any()]
    wrong = wrong[:columns]
    if not wrong:
        return {}
    named = [int(np.flatnonzero(found["label"] == found["guess"][i])[0]) for i in wrong]
    examples = pipeline.fetch(source, [*wrong, *named])
    images = classification.centre_batch(examples, config.data.image_size, config.data.centre)["image"]
    return {"Most certain mistakes, above a picture of whom they were taken for": image_grid(images, len(wrong))}


if __name__ == "__main__":
    app.main(get_config, build)
