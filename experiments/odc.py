"""ODC: a network trained without labels, on cluster labels that are updated at every step.

    python -m experiments.odc                                    # rendered faces; held-out identities, linear probe
    python -m experiments.odc --config=deep_clustering           # k-means before every second epoch instead
    python -m experiments.odc --config=imagenet_r50 --config.data.path=DIR   # DIR/train, DIR/val; the paper's, 8 GPUs

Published numbers (authors' code) of imagenet_r50: ImageNet linear classification on the last stage 57.70 % (last layer
protocol 53.42 %), VOC07 SVM 78.42 mAP.

The first epoch changes no weight: it fills the samples memory with features of the initial network, and k-means over
them gives the first labels. Only `evaluate` uses the images' true classes: for the clusters' purity, and for probes,
logistic regressions on frozen features that are fitted to few or many labelled images of each class.
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

from facejax.clustering import odc
from facejax.data import classification, normalize, pipeline, sources, views
from facejax.evaluate import unsupervised
from facejax.evaluate.verification import CONVENTION
from facejax.train import (
    AXIS,
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    map_batches,
    optim,
    reduce_gradients,
)  # fmt: skip
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        "source": "face_world",  # or "path": a folder with train/class/picture.jpg and val
        "path": "",  # with source "path": a folder with train/CLASS/IMAGE and val/CLASS/IMAGE
        "data_dir": "",
        "images": 960,  # training images; of the face world the first ones, 24 of each identity
        "image_size": 32,
        "area": (0.3, 1.0),  # of a training crop, as a share of the image
        "rotation": 2.0,  # degrees, at most, in either direction
        "jitter": (0.2, 0.2, 0.0, 0.0),  # of brightness, contrast, saturation and hue, see views.recolour
        "gray": 0.0,  # probability
        "threads": 2,
        "workers": 0,
    },
    "model": {
        "name": "tiny",  # of odc.BACKBONES
        "hidden": 128,  # width of the neck
        "width": 64,  # features that are clustered
        "dropout": 0.1,
        "dtype": "float32",  # of the computation
    },
    "memory": {
        "clusters": 30,  # of the memory
        "momentum": 0.5,  # share of the new feature in the memory
        "min_cluster": 10,  # members below which a cluster is replaced
        "centroids_every": 10,  # steps
        "reweight_power": 0.5,  # of the inverse cluster size, which weighs the loss
        "recluster_epochs": 0,  # above 0: Deep Clustering, k-means every so many epochs and none between
        "iterations": 20,  # of k-means
    },
    "optim": {
        "name": "sgd",
        "momentum": 0.9,  # the head has none
        "weight_decay": 1e-5,
        "schedule": {"kind": "step", "peak": 0.3, "boundaries": (400 / 440,), "factor": 0.4},
    },
    "train": asdict(Options(batch_size=64, steps=240, log_every=15, save_every=100)),
    "eval": {
        "batch_size": 256,
        "probe_images": 50_000,  # of a folder, at most, that the probe is fitted to
        "shots": (1, 4),  # labelled images per class of the other probes
    },
}
PRESETS = {
    "synthetic": {},
    "deep_clustering": {"memory.recluster_epochs": 1, "memory.reweight_power": 1.0},
    "untrained": {"optim.schedule.peak": 0.0, "train.steps": 60},
    "imagenet_r50": {
        "data": {
            "source": "path",
            "images": 1_281_167,
            "image_size": 224,
            "area": (0.08, 1.0),
            "jitter": (0.4, 0.4, 1.0, 0.5),
            "gray": 0.2,
            "workers": 8,
        },
        "model": {"name": "resnet50", "hidden": 512, "width": 256, "dropout": 0.5, "dtype": "bfloat16"},
        "memory": {"clusters": 10_000, "min_cluster": 20},
        "optim.schedule.peak": 0.06,
        "train": {
            "batch_size": 512, "steps": 2502 * 441, "devices": 8, "eval_every": 2502 * 20, "save_every": 1000,
        },
    },
}  # fmt: skip

CLAIM = Claim(
    "odc.online_labels",
    "labels updated at every step give features that classify held-out identities better than a k-means before every "
    "second pass after equally many passes over the pictures, and than no training",
    metric="probe_accuracy",
    better="higher",
    method="synthetic",
    baseline=("deep_clustering", "untrained"),
    seeds=6,
)

ALL = 2**31  # folded into the key of draws that are the same on all devices


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: epochs that fill the memory, and epochs that learn from its labels."""
    size, pictures, batch = config.data.image_size, config.data.images, config.train.batch_size
    settings, epoch = config.memory, config.data.images // config.train.batch_size
    data, path = config.data, config.data.path if config.data.source == "path" else ""
    if data.source not in ("face_world", "path"):
        raise ValueError(f"data.source is {data.source!r}: expected face_world or path")
    online = settings.recluster_epochs == 0
    cycle = config.train.steps + 1 if online else epoch * (1 + settings.recluster_epochs)
    if config.train.steps <= epoch:
        raise ValueError(f"train.steps is {config.train.steps}: expected more than the {epoch} that fill the memory")
    odc.Memory.empty(epoch * batch, settings.clusters, 1, settings.min_cluster)  # an epoch drops the last part batch
    net, quiet = (
        odc.network(**{**config.model, "dropout": dropout}, axis_name=AXIS) for dropout in (config.model.dropout, 0.0)
    )
    updates = sum(step % cycle >= epoch for step in range(config.train.steps))
    tx = optax.multi_transform(
        {
            "trunk": optim.from_config(config.optim, updates),
            "head": optim.from_config({**config.optim, "momentum": 0.0}, updates),
        },
        {"trunk": "trunk", "head": "head"},
    )

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        head = odc.head_init(jax.random.fold_in(rng, 1), config.model.width, settings.clusters)
        memory = odc.Memory.empty(pictures, settings.clusters, config.model.width, settings.min_cluster)
        held = {"batch_stats": variables["batch_stats"], "memory": memory}
        return TrainState.create(rng, {"trunk": variables["params"], "head": head}, tx, model_state=held)

    def features_of(model: odc.ODC, params: Any, batch_stats: Any, images: jax.Array, rng: jax.Array) -> Any:
        (_, features), updated = model.apply(
            {"params": params["trunk"], "batch_stats": batch_stats},
            normalize.imagenet(images),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        return features, updated["batch_stats"]

    def train_step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        phase = state.step % cycle
        learning, clustering_now = phase >= epoch, phase == epoch
        shared = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), ALL)
        memory, batch_stats = state.model_state["memory"], state.model_state["batch_stats"]

        def start(memory: odc.Memory, head: Any) -> tuple[odc.Memory, Any]:
            options = {"min_cluster": settings.min_cluster if online else 1, "iterations": settings.iterations}
            head = odc.head_init(shared, config.model.width, settings.clusters)
            return odc.cluster_all(memory, shared, **options), head

        memory, head = lax.cond(clustering_now, start, lambda *same: same, memory, state.params["head"])
        state = state.replace(params={**state.params, "head": head})
        labels = memory.labels[batch["index"]]
        weights = jnp.where(labels < 0, 0.0, odc.class_weights(memory, settings.reweight_power)[labels])
        mean_weight = lax.pmean(weights.mean(), AXIS)

        def loss_fn(params: Any) -> Any:
            features, stats = features_of(net, params, batch_stats, batch["image"], rng)
            logits = features @ params["head"]["kernel"] + params["head"]["bias"]
            losses = weights * optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
            return losses.mean() / mean_weight, (losses, features, stats)

        # Outside any cond: in one, XLA's gradients of convolutions are several times slower on a CPU.
        grads, (losses, features, stats) = jax.grad(loss_fn, has_aux=True)(state.params)
        moves, opt_state = tx.update(reduce_gradients(grads), state.opt_state, state.params)
        moved = optax.apply_updates(state.params, moves), opt_state, lax.pmean(stats, AXIS)
        stayed = state.params, state.opt_state, batch_stats
        params, opt_state, new_stats = jax.tree.map(lambda a, b: jnp.where(learning, a, b), moved, stayed)
        features = lax.cond(
            learning,
            lambda: features,
            lambda: features_of(quiet, state.params, batch_stats, batch["image"], rng)[0],
        )
        indices, features = (lax.all_gather(x, AXIS, tiled=True) for x in (batch["index"], lax.stop_gradient(features)))

        def follow(memory: odc.Memory) -> tuple[odc.Memory, jax.Array]:
            if not online:
                return memory, jnp.zeros(len(indices), bool)
            due = (phase - epoch + 1) % settings.centroids_every == 0
            sizes = {"momentum": settings.momentum, "min_cluster": settings.min_cluster}
            return odc.follow(memory, indices, features, shared, centroids_due=due, **sizes)

        def record(memory: odc.Memory) -> tuple[odc.Memory, jax.Array]:
            return odc.remember(memory, indices, features), jnp.zeros(len(indices), bool)

        memory, changed = lax.cond(learning, follow, record, memory)
        sizes = odc.cluster_sizes(memory)
        metrics = {
            "loss": Mean(jnp.where(learning, losses.sum(), 0.0), jnp.where(learning, weights.sum(), 0.0)),
            "changed_labels": Mean.of(changed, learning),
            "smallest_cluster": Mean.of(sizes.min(), learning),
            "largest_cluster": Mean.of(sizes.max(), learning),
        }
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            model_state={"batch_stats": new_stats, "memory": memory},
        )
        return state, metrics

    def train_data() -> Any:
        source = views.train_images(path, data.data_dir, pictures)
        if len(source) != pictures:
            raise ValueError(f"data.images is {pictures}, but there are {len(source)} training images: set it to that")
        load = views.loader(
            size, area=tuple(data.area), rotation=data.rotation, jitter=tuple(data.jitter), gray=data.gray
        )
        indexed, workers = sources.Indexed(source), {"threads": data.threads, "workers": data.workers}
        return pipeline.train_batches(indexed, load, batch, seed=config.seed, **workers)

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params["trunk"], "batch_stats": state.model_state["batch_stats"]}
        memory = jax.tree.map(np.asarray, state.model_state["memory"])

        def pooled(source: Any) -> dict[str, np.ndarray]:
            return map_batches(
                lambda variables, batch: {
                    "features": net.apply(variables, normalize.imagenet(batch["image"]), train=False)[0],
                    "label": batch["label"],
                },
                variables,
                range(len(source)),
                config.eval.batch_size,
                lambda indices: classification.centre_batch(pipeline.fetch(source, indices), size),
            )

        train, test = map(pooled, views.probe_images(path, data.data_dir, config.eval.probe_images))
        metrics = unsupervised.probes(train, test, config.eval.shots)
        if not path:
            both = (np.concatenate([train[name], test[name]]) for name in ("features", "label"))
            metrics |= unsupervised.identification(*both)
        source = views.train_images(path, data.data_dir, pictures)
        truth = sources.labels(source)
        found, figure = unsupervised.assess_clusters(memory.labels, truth, settings.clusters)
        grid = unsupervised.members(source, memory.labels, memory.features, memory.centroids, size)
        return Report(
            metrics | found,
            figures={"Clusters": figure},
            images={"Clusters, the members nearest to the centroid": grid},
            arrays={"labels": memory.labels, "truth": truth, "features": memory.features},
            notes={} if path else CONVENTION,
        )

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=train_step,
        train_data=train_data,
        batch={
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "index": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
    )


if __name__ == "__main__":
    app.main(get_config, build)
