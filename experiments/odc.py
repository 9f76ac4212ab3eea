"""ODC: cluster labels that move a little at every step teach a network without any label.

    python -m experiments.odc                                    # rendered faces; unseen people by a linear probe
    python -m experiments.odc --config=deep_clustering           # a k-means before every second epoch instead
    python -m experiments.odc --config=imagenet_r50 --config.data.path=DIR   # DIR/train, DIR/val; the paper's, 8 GPUs

Published numbers (authors' code) of imagenet_r50: ImageNet linear classification on the last stage 57.70 % (last layer
protocol 53.42 %), VOC07 SVM 78.42 mAP.

The first epoch changes no weight: it fills the samples memory with the first network's features, and a k-means over
them gives the first labels. The pictures' true classes are used by `evaluate` only: for the clusters' purity, and by
probes, logistic regressions on frozen features that see few or many labelled pictures of each class.
"""

from __future__ import annotations

import warnings
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.backbones import resnet
from facejax.clustering import odc
from facejax.data import classification, pipeline, sources, transforms
from facejax.data.synthetic import faces
from facejax.metrics import clustering, verification
from facejax.ops import vectors
from facejax.train import (
    AXIS,
    Experiment,
    Mean,
    Report,
    TrainState,
    app,
    image_grid,
    map_batches,
    new_figure,
    optim,
    reduce_gradients,
)
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        "source": "face_world",  # or "path": a folder with train/class/picture.jpg and val
        "path": "",
        "data_dir": "",
        "images": 960,  # training pictures; of the face world the first ones, 24 of each person
        "image_size": 32,
        "area": (0.3, 1.0),  # of a training crop, as part of the picture
        "rotation": 2.0,  # degrees, at most, either way
        "jitter": (0.2, 0.2, 0.0, 0.0),  # brightness, contrast, saturation, hue, at most, either way
        "gray": 0.0,  # chance
        "threads": 2,
        "workers": 0,
    },
    "model": {"name": "tiny", "hidden": 128, "width": 64, "dropout": 0.1, "dtype": "float32"},
    "memory": {
        "clusters": 30,
        "momentum": 0.5,
        "min_cluster": 10,
        "centroids_every": 10,  # steps
        "reweight_power": 0.5,
        "recluster_epochs": 0,  # above 0: Deep Clustering, a k-means after every so many epochs and no change between
        "iterations": 20,  # of k-means
    },
    "optim": {
        "name": "sgd",
        "momentum": 0.9,  # the head has none
        "weight_decay": 1e-5,
        "schedule": {"kind": "step", "peak": 0.3, "boundaries": (400 / 440,), "factor": 0.4},
    },
    "train": {
        "batch_size": 64,
        "steps": 240,
        "log_every": 15,
        "eval_every": 0,
        "save_every": 100,
        "save_seconds": 60.0,
        "keep": 2,
        "parallel": "shard_map",
        "devices": 0,
    },
    "eval": {"batch_size": 256, "probe_images": 50_000, "shots": (1, 4)},
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
            "batch_size": 512,
            "steps": 2502 * 441,
            "devices": 8,
            "eval_every": 2502 * 20,
            "save_every": 1000,
        },
    },
}

CLAIM = Claim(
    "odc.online_labels",
    "labels updated at every step give features that classify held-out identities better than a k-means every epoch "
    "after equally many passes over the pictures, and than no training",
    metric="probe_accuracy",
    better="higher",
    method="synthetic",
    baseline=("deep_clustering", "untrained"),
    seeds=6,
)

BACKBONES = {
    "tiny": lambda **options: resnet.ResNet((1, 1, 1, 1), False, widths=(16, 32, 64, 128), **options),
    "resnet50": resnet.resnet50,
}
ALL = 2**31  # folded into the key of draws that are the same on all devices
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: epochs that fill the memory, and epochs that learn from its labels."""
    size, pictures, batch = config.data.image_size, config.data.images, config.train.batch_size
    settings, epoch = config.memory, config.data.images // config.train.batch_size
    online = settings.recluster_epochs == 0
    cycle = config.train.steps + 1 if online else epoch * (1 + settings.recluster_epochs)
    if config.train.steps <= epoch:
        raise ValueError(f"train.steps is {config.train.steps}: expected more than the {epoch} that fill the memory")
    odc.Memory.empty(epoch * batch, settings.clusters, 1, settings.min_cluster)  # what an epoch does not see is dropped
    net = make_net(config.model, AXIS)
    quiet = make_net(ConfigDict({**config.model, "dropout": 0.0}), AXIS)
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
            preprocess(images),
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
            return odc.cluster_all(memory, shared, **options), odc.head_init(
                shared, config.model.width, settings.clusters
            )

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
            memory, changed = odc.update_samples(memory, indices, features, settings.momentum)
            due = (phase - epoch + 1) % settings.centroids_every == 0
            memory = lax.cond(due, odc.update_centroids, lambda same: same, memory)
            return odc.handle_small_clusters(memory, settings.min_cluster, shared), changed

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
        source = train_pictures(config)
        if len(source) != pictures:
            raise ValueError(
                f"data.images is {pictures}, but there are {len(source)} training pictures: set it to that"
            )
        return pipeline.train_batches(
            Numbered(source),
            loader(config.data),
            batch,
            seed=config.seed,
            threads=config.data.threads,
            workers=config.data.workers,
        )

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params["trunk"], "batch_stats": state.model_state["batch_stats"]}

        def pooled(source: Any) -> dict[str, np.ndarray]:
            return map_batches(
                lambda variables, batch: {
                    "features": net.apply(variables, preprocess(batch["image"]), train=False)[0],
                    "label": batch["label"],
                },
                variables,
                range(len(source)),
                config.eval.batch_size,
                lambda indices: classification.centre_batch(pipeline.fetch(source, indices), size),
            )

        return report(config, jax.tree.map(np.asarray, state.model_state["memory"]), pooled)

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


def make_net(model: ConfigDict, axis_name: str) -> odc.ODC:
    """Backbone and neck, with batch statistics shared over `axis_name`."""
    if model.name not in BACKBONES:
        raise ValueError(f"model.name is {model.name!r}: expected one of {', '.join(BACKBONES)}")
    options = {"axis_name": axis_name, "dtype": jnp.dtype(model.dtype)}
    neck = odc.Neck(model.hidden, model.width, model.dropout, **options)
    return odc.ODC(BACKBONES[model.name](**options), neck)


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, 3] -> mean 0 and deviation 1 by channel, those of ImageNet."""
    return (images.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)


class Numbered:
    """The pictures of a source with their place in it, which the memory knows them by."""

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._source[index]["image"], "index": index}


def train_pictures(config: ConfigDict) -> Any:
    """The pictures to learn from; `evaluate` alone looks at their labels."""
    if config.data.source == "path":
        return classification.splits(config.data.path)[0]
    if config.data.source != "face_world":
        raise ValueError(f"data.source is {config.data.source!r}: expected face_world or path")
    source = faces.load("recognition", "train", config.data.data_dir or None)
    return sources.Subset(source, range(min(config.data.images, len(source))))


def probe_pictures(config: ConfigDict) -> tuple[Any, Any]:
    """Labelled pictures for the probe to learn from and to be tested on; of the face world, of people never seen."""
    if config.data.source == "path":
        train, test = classification.splits(config.data.path)
        chosen = np.linspace(0, len(train) - 1, min(config.eval.probe_images, len(train))).astype(int)
        return sources.Subset(train, chosen), test
    source = faces.load("recognition", "test", config.data.data_dir or None)
    numbers = np.arange(len(source))
    return tuple(sources.Subset(source, numbers[numbers % 2 == part]) for part in (0, 1))


def loader(data: ConfigDict) -> pipeline.Load:
    """Crops, mirrors, turns and recolours."""
    size = data.image_size

    def load(examples: Any, rngs: Any) -> dict[str, np.ndarray]:
        images = []
        for example, rng in zip(examples, rngs, strict=True):
            image = classification.random_crop(transforms.decode(example["image"]), rng, tuple(data.area))
            image = transforms.random_flip(transforms.resize(image, size, size), rng)
            turn = cv2.getRotationMatrix2D((size / 2 - 0.5,) * 2, rng.uniform(-1, 1) * data.rotation, 1.0)
            image = cv2.warpAffine(np.ascontiguousarray(image), turn, (size, size), flags=cv2.INTER_LINEAR)
            images.append(recolour(image, tuple(data.jitter), data.gray, rng))
        return {"image": np.stack(images), "index": np.array([e["index"] for e in examples], np.int32)}

    return load


def recolour(image: np.ndarray, jitter: tuple[float, ...], gray: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue moved in random order, and by a chance all colour taken.

    Args:
      image: [H, W, 3] uint8.
      jitter: of the four; factors are drawn from 1 - j to 1 + j, at least 0; the hue's shift from -j to j of a turn.
      gray: chance of a gray picture.
    """

    def luma(x: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)

    for kind in rng.permutation(np.flatnonzero(jitter)):
        most = jitter[kind]
        if kind == 3:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
            hsv[..., 0] += np.uint8(round(256 * rng.uniform(-most, most)) % 256)
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
            continue
        factor = rng.uniform(max(0, 1 - most), 1 + most)
        towards = (0.0, luma(image).mean(), luma(image)[..., None])[kind]
        image = np.clip(factor * image + (1 - factor) * towards, 0, 255).astype(np.uint8)
    return np.repeat(luma(image)[..., None], 3, -1) if rng.random() < gray else image


def report(config: ConfigDict, memory: odc.Memory, pooled: Any) -> Report:
    """Probes of the frozen features, and the memory's clusters against the true classes."""
    pictures = train_pictures(config)
    truth = np.array([e["label"] for e in pipeline.fetch(pictures, range(len(pictures)))])
    seen = memory.labels >= 0
    train, test = (pooled(source) for source in probe_pictures(config))
    metrics = {"probe_accuracy": probe(train, test, len(train["label"]))}
    metrics |= {f"probe_accuracy_{shots}": probe(train, test, shots) for shots in config.eval.shots}
    if config.data.source == "face_world":
        both = {k: np.concatenate([train[k], test[k]]) for k in train}
        features = vectors.unit_rows(both["features"])
        metrics["rank1"] = float(verification.leave_one_out_rank1(features, both["label"]))
        metrics["tar_at_far_1e-1"] = float(verification.all_pairs_tar(features, both["label"], (1e-1,))[0])
    found = clustering.report(truth[seen], memory.labels[seen])
    sizes = np.bincount(memory.labels[seen], minlength=len(memory.centroids))
    metrics |= {f"memory_{name}": value for name, value in found.items()}
    metrics |= {"smallest_cluster": float(sizes.min()), "largest_cluster": float(sizes.max())}
    return Report(
        metrics,
        figures={"Clusters": cluster_figure(sizes, truth[seen], memory.labels[seen])},
        images={
            "Clusters, the members nearest to the centroid": members(pictures, memory, sizes, config.data.image_size)
        },
        arrays={"labels": memory.labels, "truth": truth, "features": memory.features},
    )


def probe(train: dict[str, np.ndarray], test: dict[str, np.ndarray], shots: int) -> float:
    """Accuracy, %, of a logistic regression on frozen features, learnt from `shots` pictures of each class."""
    from sklearn.linear_model import LogisticRegression  # takes a second to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    order = np.argsort(train["label"], kind="stable")
    sorted_labels = train["label"][order]
    place = np.arange(len(order)) - np.searchsorted(sorted_labels, sorted_labels)
    chosen = order[place < shots]
    model = make_pipeline(StandardScaler().fit(train["features"]), LogisticRegression(max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of stopping early, and of classes with one picture
        model.fit(train["features"][chosen], train["label"][chosen])
    return 100 * float(model.score(test["features"], test["label"]))


def cluster_figure(sizes: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> Any:
    """Sizes of the clusters, and how much of each belongs to one class."""
    figure, (left, right) = new_figure(9, 3.2, 1, 2)
    left.bar(np.arange(len(sizes)), np.sort(sizes)[::-1], width=1.0)
    left.set(xlabel="cluster, by size", ylabel="members")
    purity = [np.bincount(truth[labels == c]).max() / sizes[c] for c in np.flatnonzero(sizes)]
    right.hist(purity, bins=20, range=(0, 1))
    right.set(xlabel="share of the most frequent class", ylabel="clusters")
    return figure


def members(pictures: Any, memory: odc.Memory, sizes: np.ndarray, size: int, rows: int = 8, columns: int = 10) -> Any:
    """A row for each of some clusters, evenly chosen by size: the pictures with the greatest inner product."""
    chosen = np.argsort(-sizes, kind="stable")[np.linspace(0, np.sum(sizes > 0) - 1, rows).astype(int)]
    grid = np.full((rows, columns, size, size, 3), 255, np.uint8)
    for row, cluster in enumerate(chosen):
        inside = np.flatnonzero(memory.labels == cluster)
        best = inside[np.argsort(-memory.features[inside] @ memory.centroids[cluster])][:columns]
        grid[row, : len(best)] = classification.centre_batch(pipeline.fetch(pictures, best), size)["image"]
    return image_grid(grid.reshape(-1, size, size, 3), columns)


if __name__ == "__main__":
    app.main(get_config, build)
