"""What experiments with image classifiers share: the configuration, the wiring and the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.data import classification, pipeline
from facejax.metrics.classification import top_k_correct
from facejax.train import (
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    image_grid,
    map_batches,
    new_figure,
    optim,
    supervised_step,
)
from facejax.train.dry_run import count, flops

BASE: dict[str, Any] = {
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
    "loss": {"label_smoothing": 0.0},
    "optim": {
        "name": "sgd",
        "momentum": 0.9,
        "eps": 1e-8,
        "b2": 0.999,
        "weight_decay": 4e-5,  # of `decayed`
        "clip": 0.0,
        "ema": 0.0,  # decay of an average of the weights, which is then what is tested; 0 keeps none
        "schedule": {"kind": "cosine", "peak": 0.1, "warmup": 0, "every": 0, "factor": 1.0},
    },
    "train": asdict(Options(batch_size=64, steps=300)),
    "eval": {"batch_size": 120},
}
IMAGENET = {"path": "imagenet", "image_size": 224, "classes": 1000, "crops": True, "centre": 0.875}
"""The data section of a run on ImageNet; `path` is to be given."""


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, 3] -> -1..1."""
    return images.astype(jnp.float32) / 127.5 - 1.0


Preprocess = Callable[[jax.Array], jax.Array]


def classifier(
    config: ConfigDict, net: Any, *, auxiliary: float = 0.0, preprocess: Preprocess = preprocess
) -> Experiment:
    """A network trained with cross-entropy and tested by top-1 and top-5.

    Args:
      config: with the sections of `BASE`.
      net: (images, train=) -> logits [N, C]; in training possibly a list of logits whose first is the main.
      auxiliary: weight of the loss of each further output.
      preprocess: uint8 [N, H, W, 3] -> what the network takes.
    """
    size, classes, batch = config.data.image_size, config.data.classes, config.train.batch_size
    tx = make_optimizer(config.optim, config.train.steps)
    ema = config.optim.ema

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
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
        main, *others = outputs if isinstance(outputs, list) else [outputs]
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
        return classification_report(config, net, variables, source, preprocess)

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


def make_optimizer(options: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer of a config section; the schedule may be "exponential": times `factor` every `every` updates.

    The decay joins the gradient before anything is clipped, as a penalty in the loss does, and is of `decayed` only.
    """
    options = options.to_dict()
    del options["ema"]
    decay = optax.add_decayed_weights(options.pop("weight_decay"), decayed)
    plan = options["schedule"]
    every, factor = plan.pop("every"), plan.pop("factor")
    if plan["kind"] != "exponential":
        return optax.chain(decay, optim.from_config(options, steps))
    del options["schedule"]
    rate = optax.exponential_decay(plan["peak"], every, factor, staircase=True)
    return optax.chain(decay, optim.optimizer(options.pop("name"), rate, **options))


def decayed(params: Any) -> Any:
    """Mask of the kernels without the depthwise ones, [kh, kw, 1, C], whose few numbers do not overfit."""
    return jax.tree.map(lambda p: p.ndim > 1 and not (p.ndim == 4 and p.shape[2] == 1), params)


def multiply_adds(net: Any, variables: Any, size: int) -> float:
    """Multiply-adds of one image's convolutions and matrix products, in millions."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return flops(jax.make_jaxpr(lambda v, x: net.apply(v, x, train=False))(variables, image).jaxpr) / 2e6


def classification_report(
    config: ConfigDict, net: Any, variables: Any, source: Any, preprocess: Preprocess = preprocess
) -> Report:
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
            "top1": top_k_correct(logits, batch["label"]),
            "top5": top_k_correct(logits, batch["label"], min(5, config.data.classes)),
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
