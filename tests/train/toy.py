"""A small experiment with batch norm, dropout, a class-sharded head and random data.

Some tests run it as a program and kill it; others import it.
"""

import dataclasses
import os
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.data import pipeline
from facejax.train import AXIS, Experiment, Mean, Options, Report, TrainState, app, optim, supervised_step

CLASSES, SIZE = 16, 8

BASE = {
    "seed": 0,
    "data": {"examples": 256, "threads": 2, "workers": 0},
    "model": {"dropout": 0.0, "sharded": False, "classes": CLASSES},
    "optim": {"name": "sgd", "weight_decay": 1e-4, "schedule": {"kind": "cosine", "peak": 0.05}},
    "train": dataclasses.asdict(
        Options(batch_size=32, steps=20, log_every=7, eval_every=10, save_every=3, save_seconds=0.0)
    ),
    "test": {"nan_at": -1, "step_seconds": 0.0},
}
PRESETS = {"synthetic": {}, "dropout": {"model.dropout": 0.3}, "sharded": {"model.sharded": True}}


def get_config(preset="synthetic"):
    return app.preset(BASE, PRESETS, preset)


class Net(nn.Module):
    dropout: float

    @nn.compact
    def __call__(self, x, *, train):
        axis = AXIS if train and not self.is_initializing() else None
        x = nn.Conv(8, (3, 3), (2, 2))(x)
        x = nn.BatchNorm(use_running_average=not train, axis_name=axis, momentum=0.9)(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return nn.Dense(12)(x.reshape(x.shape[0], -1))


class Source:
    """Samples computed from their index."""

    def __init__(self, count, seed, classes=CLASSES):
        self._count, self._seed, self._classes = count, seed, classes

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        rng = np.random.default_rng([self._seed, index])
        label = int(rng.integers(self._classes))
        return {"image": rng.normal(size=(SIZE, SIZE, 3)) + label / 8, "label": label}


def load(examples, rngs):
    images = [e["image"] + 0.1 * rng.normal(size=e["image"].shape) for e, rng in zip(examples, rngs, strict=True)]
    return {"image": np.float32(images), "label": np.int32([e["label"] for e in examples])}


def sharded_cross_entropy(features, local_weights, labels, num_classes):
    features, labels = lax.all_gather(features, AXIS, tiled=True), lax.all_gather(labels, AXIS, tiled=True)
    classes = local_weights.shape[0]
    logits = features @ local_weights.T
    places = lax.axis_index(AXIS) * classes + jnp.arange(classes)
    hit = labels[:, None] == places
    logits = jnp.where(places < num_classes, logits, -1e9)
    largest = lax.pmax(lax.stop_gradient(logits.max(1)), AXIS)
    total = lax.psum(jnp.exp(logits - largest[:, None]).sum(1), AXIS)
    return jnp.log(total) + largest - lax.psum((logits * hit).sum(1), AXIS)


def build(config):
    net = Net(config.model.dropout)
    tx = optim.from_config(config.optim, config.train.steps)
    image = jax.ShapeDtypeStruct((config.train.batch_size, SIZE, SIZE, 3), jnp.float32)
    sharded, classes = ("head",) if config.model.sharded else (), config.model.classes
    devices = config.train.devices or jax.device_count()
    rows = -(-classes // devices) * devices if sharded else classes

    def init(rng):
        variables = net.init(rng, jnp.zeros((2, SIZE, SIZE, 3)), train=False)
        head = 0.1 * jax.random.normal(jax.random.fold_in(rng, 1), (rows, 12))
        params = {"net": variables["params"], "head": head}
        return TrainState.create(rng, params, tx, model_state=variables["batch_stats"], ema=True)

    def loss_fn(params, batch_stats, batch, rng):
        variables = {"params": params["net"], "batch_stats": batch_stats}
        features, updated = net.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"], rngs={"dropout": rng}
        )
        if sharded:
            loss = sharded_cross_entropy(features, params["head"], batch["label"], classes)
        else:
            logits = features @ params["head"].T
            loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], 1)
        return loss.mean(), (updated["batch_stats"], {"loss": Mean.of(loss)})

    step = supervised_step(loss_fn, tx, sharded=sharded, ema_decay=0.9, microbatches=config.train.microbatches)

    def train_step(state, batch, rng):
        bad = state.step + 1 == config.test.nan_at
        state, metrics = step(state, batch, rng)
        return state, jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), metrics)

    def train_data():
        source = Source(config.data.examples, config.seed, classes)
        batches = pipeline.train_batches(
            source, load, config.train.batch_size, seed=config.seed, workers=config.data.workers
        )
        return Slowly(batches, config.test.step_seconds) if config.test.step_seconds else batches

    @jax.jit
    def classified(variables, head, image):
        return (net.apply(variables, image, train=False) @ head[:classes].T).argmax(1)

    def evaluate(state):
        data = load([Source(64, 1, classes)[i] for i in range(64)], [np.random.default_rng(i) for i in range(64)])
        variables = {"params": state.params["net"], "batch_stats": state.model_state}
        answers = classified(variables, np.asarray(state.params["head"]), data["image"])  # the head may be sharded
        return Report({"accuracy": float((answers == data["label"]).mean())})

    batch = {"image": image, "label": jax.ShapeDtypeStruct((config.train.batch_size,), jnp.int32)}
    return Experiment(evaluate, init, train_step, train_data, batch, sharded)


class Slowly:
    """A slow iterator, so that a test can kill the run between steps."""

    def __init__(self, batches, seconds):
        self._batches, self._seconds = batches, seconds
        self.get_state, self.set_state, self.close = batches.get_state, batches.set_state, batches.close

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(self._seconds)
        return next(self._batches)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.modules["torch"] = None  # TensorBoard's writer imports it where it can, which takes a third of a short run
    sys.modules["__main__"].__spec__ = None
    app.main(get_config, build)
