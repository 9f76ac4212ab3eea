"""GraphSAGE: learned aggregators label nodes that were not there in training.

    python -m experiments.graphsage                                                # a stochastic block model
    python -m experiments.graphsage --config=unsupervised                          # the same by random walks
    python -m experiments.graphsage --config=cora --config.data.path=DIR           # DIR holds ind.cora.*
    python -m experiments.graphsage --config=ppi --config.data.path=DIR/ppi        # DIR/ppi-G.json, ppi-feats.npy, ...

Validation and test nodes are hidden from training with all their edges. Micro-F1 on the test nodes of the paper's full
runs (Table 1, mean aggregator, supervised / unsupervised): ppi 0.598 / 0.486, reddit 0.950 / 0.897, citation
0.820 / 0.778; one GPU each. The paper chose the learning rate on the validation nodes, from 1e-2, 1e-3, 1e-4; its
unsupervised runs take `--config.loss.kind=unsupervised --config.optim.epochs=1 --config.optim.learning_rate=2e-6`
(or 2e-7, 2e-8). Citation's data are not public.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from facejax.data.readers.planetoid import Citations
from facejax.data.synthetic import graphs
from facejax.graph import graphsage
from facejax.ops.graph import make_graph, offsets, undirected
from facejax.train import Experiment, Report, app, new_figure
from facejax.train.claims import Claim
from facejax.train.dry_run import count

BASE = {
    "seed": 0,
    "data": {
        "source": "blocks", "path": "", "labels": "all", "nodes": 1200, "classes": 4, "degree_in": 6.0,
        "degree_out": 3.0, "labelled": 150,
    },
    "model": {"aggregator": "mean", "width": 128, "hidden": 0, "samples": (25, 10)},
    "loss": {"kind": "supervised", "walks": 50, "walk_length": 5, "negatives": 20},
    "optim": {"learning_rate": 0.01, "clip": 5.0, "batch_size": 512, "epochs": 10},
    "eval": {"compare": ()},
}  # fmt: skip
ALL = (*graphsage.AGGREGATORS, "none")
SMALL = {"model.width": 32, "model.hidden": 64, "model.samples": (10, 5), "optim.batch_size": 64, "eval.compare": ALL}
DOCUMENTS = {
    "model.width": 64,
    "model.hidden": 128,
    "model.samples": (10, 5),
    "optim.batch_size": 64,
    "eval.compare": ALL,
}
UNSUPERVISED = {"loss.kind": "unsupervised", "loss.walks": 2, "optim.learning_rate": 1e-3, "optim.epochs": 5}
PRESETS = {
    "synthetic": SMALL,
    "features": {"model.aggregator": "none"},
    "unsupervised": SMALL | UNSUPERVISED,
    "cora": DOCUMENTS | {"data.source": "cora"},
    "citeseer": DOCUMENTS | {"data.source": "citeseer"},
    "cora_unsupervised": DOCUMENTS | UNSUPERVISED | {"data.source": "cora"},
    "citeseer_unsupervised": DOCUMENTS | UNSUPERVISED | {"data.source": "citeseer"},
    "ppi": {"data.source": "files"},
    "reddit": {"data.source": "files"},
    "citation": {"data.source": "files"},
}
CLAIM = Claim(
    "aggregated neighbours label unseen nodes better than logistic regression on their own features",
    metric="test_f1",
    better="higher",
    method="synthetic",
    baseline=("features",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: all of a training is one jitted scan, so `evaluate` does the work."""

    def evaluate(_: Any) -> Report:
        data = load(config.data, config.seed)
        rows, losses, predictions = [], {}, {}
        for name in dict.fromkeys((config.model.aggregator, *config.eval.compare)):
            start, parameters = time.monotonic(), 0
            if name == "none":
                predictions[name] = logistic_regression(standardized(data), data)
            else:
                outputs, losses[name], parameters = train(config, data, name)
                unsupervised = config.loss.kind == "unsupervised"
                predictions[name] = logistic_regression(outputs, data) if unsupervised else decide(outputs, data.labels)
            score = {k: float(graphsage.micro_f1(predictions[name], indicators(data.labels), getattr(data, k)))
                     for k in ("test", "validation", "train")}  # fmt: skip
            rows.append({"aggregator": name, **{f"{k}_f1": round(v, 4) for k, v in score.items()},
                         "parameters": parameters, "seconds": round(time.monotonic() - start, 1)})  # fmt: skip
        own = rows[0]
        return Report(
            {k: own[k] for k in ("test_f1", "validation_f1", "train_f1")},
            tables={"Aggregators (none: logistic regression on features)": rows},
            figures={"Aggregators": figure(rows, losses)},
            arrays={"predictions": predictions[config.model.aggregator]},
        )

    return Experiment(evaluate)


def load(data: ConfigDict, seed: int) -> Citations:
    """The graph; of Planetoid's either the public training labels or all that are neither validation nor test."""
    if data.source == "files":
        return read_files(data.path)
    if data.source == "blocks":
        return graphs.blocks(data.nodes, data.classes, data.degree_in, data.degree_out, seed, labelled=data.labelled)
    found = graphs.load(data, seed)
    if data.labels not in ("all", "public"):
        raise ValueError(f"data.labels is {data.labels!r}: expected all or public")
    if data.labels == "public":
        return found
    known = found.features.any(1)  # Citeseer's gaps have neither features nor labels
    return dataclasses.replace(found, train=known & ~found.validation & ~found.test)


def read_files(prefix: str) -> Citations:
    """The authors' format: PREFIX-G.json (node-link, links by position), -id_map.json, -class_map.json, -feats.npy.

    Raises:
      ValueError: a file that is missing, damaged or does not fit the others.
    """
    try:
        graph, rows, classes = (
            json.loads(pathlib.Path(f"{prefix}-{part}.json").read_text()) for part in ("G", "id_map", "class_map")
        )
        features = np.load(f"{prefix}-feats.npy", allow_pickle=False).astype(np.float32)
        place, masks = np.full(len(graph["nodes"]), -1), np.zeros((3, len(features)), bool)
        labels = [None] * len(features)
        for i, node in enumerate(graph["nodes"]):
            if "val" in node and "test" in node:  # the authors drop others
                place[i] = row = rows[str(node["id"])]
                labels[row] = classes[str(node["id"])]
                masks[2 if node["test"] else 1 if node["val"] else 0, row] = True
        ends = place[np.array([(link["source"], link["target"]) for link in graph["links"]], int).reshape(-1, 2)]
        blank = np.zeros_like(next(iter(classes.values())))
        labels = np.array([blank if label is None else label for label in labels], int)
    except (OSError, KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{prefix}-*: not a graph in GraphSAGE's format: {error!r}") from error
    if not np.isfinite(features).all():
        raise ValueError(f"{prefix}-feats.npy: row {int(np.argmin(np.isfinite(features).all(1)))} is not finite")
    return Citations(features, labels, *undirected(*ends[(ends >= 0).all(1)].T), *masks)


def standardized(data: Citations) -> np.ndarray:
    """Features of mean 0 and variance 1 over the training nodes; a constant one keeps its scale."""
    seen = data.features[data.train]
    deviation = seen.std(0)
    return (data.features - seen.mean(0)) / np.where(deviation > 0, deviation, 1)


def train(config: ConfigDict, data: Citations, aggregator: str) -> tuple[np.ndarray, np.ndarray, int]:
    """One training in one compiled program, and what it says of every node once the whole graph is there.

    Returns:
      Logits [N, C] or, unsupervised, embeddings [N, 2 width]; the losses of all steps; the number of parameters.
    """
    loss, optim, samples = config.loss, config.optim, tuple(config.model.samples)
    if loss.kind not in ("supervised", "unsupervised"):
        raise ValueError(f"loss.kind is {loss.kind!r}: expected supervised or unsupervised")
    seen = ~(data.validation | data.test)
    kept = seen[data.source] & seen[data.destination]
    inductive, whole = (
        make_graph(data.source[edges], data.destination[edges], len(seen)) for edges in (kept, kept | True)
    )
    starts = offsets(inductive)
    if supervised := loss.kind == "supervised":
        rounds, pool, cumulative = optim.epochs, np.flatnonzero(data.train), None
    else:
        rounds, pool = optim.epochs * loss.walks * (loss.walk_length - 1), np.flatnonzero(np.diff(starts))
        cumulative = graphsage.negative_distribution(starts)
    size = min(optim.batch_size, len(pool))
    batches = -(-len(pool) // size)
    classes = data.labels.shape[1] if data.labels.ndim == 2 else int(data.labels.max()) + 1
    net = graphsage.GraphSAGE(classes if supervised else None, aggregator, config.model.width, config.model.hidden)
    tx = optax.chain(optax.clip(optim.clip), optax.adam(optim.learning_rate))

    @jax.jit
    def run(rng: jax.Array, features: jax.Array, labels: jax.Array, inductive: Any, whole: Any) -> tuple[Any, ...]:
        def outputs(params: Any, graph: Any, nodes: jax.Array, rng: jax.Array) -> jax.Array:
            blocks = graphsage.sample_blocks(rng, *graph, nodes, samples, shuffle=aggregator == "lstm")
            return net.apply({"params": params}, features, blocks)

        def objective(params: Any, nodes: jax.Array, where: jax.Array, rng: jax.Array) -> jax.Array:
            if supervised:
                losses = graphsage.supervised_loss(outputs(params, inductive, nodes, rng), labels[nodes])
            else:
                walk, place, negative, rng = jax.random.split(rng, 4)
                visited = graphsage.random_walks(walk, *inductive, nodes, loss.walk_length - 1)
                positives = visited[jnp.arange(size), jax.random.randint(place, (size,), 0, loss.walk_length - 1)]
                where &= positives != nodes
                negatives = graphsage.draw_nodes(negative, cumulative, loss.negatives)
                found = outputs(params, inductive, jnp.concatenate([nodes, positives, negatives]), rng)
                losses = graphsage.unsupervised_loss(*jnp.split(found, (size, 2 * size)))
            return jnp.sum(losses * where) / jnp.maximum(where.sum(), 1)

        def step(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
            params, opt, order = state
            key = jax.random.fold_in(rng, index)
            turn = index % batches
            order = lax.cond(turn == 0, lambda: jax.random.permutation(key, order), lambda: order)
            places = turn * size + jnp.arange(size)
            nodes, where = order[jnp.minimum(places, len(pool) - 1)], places < len(pool)
            value, gradient = jax.value_and_grad(objective)(params, nodes, where, jax.random.fold_in(key, 1))
            updates, opt = tx.update(gradient, opt)
            return (optax.apply_updates(params, updates), opt, order), value

        order = jnp.asarray(pool, jnp.int32)
        params = net.init(rng, features, graphsage.sample_blocks(rng, *inductive, order[:1], samples))["params"]
        (params, _, _), losses = lax.scan(step, (params, tx.init(params), order), jnp.arange(rounds * batches))
        nodes = jnp.pad(jnp.arange(len(features)), (0, -len(features) % size)).reshape(-1, size)
        keys = jax.random.split(jax.random.fold_in(rng, rounds * batches), len(nodes))
        every = lax.map(lambda item: outputs(params, whole, *item), (nodes, keys))
        return every.reshape(-1, every.shape[-1])[: len(features)], losses, params

    graphs_and_starts = ((inductive, starts), (whole, offsets(whole)))
    features = jnp.asarray(standardized(data), jnp.float32)
    found, losses, params = run(jax.random.key(config.seed), features, jnp.asarray(data.labels), *graphs_and_starts)
    return np.asarray(found), np.asarray(losses), count(params)


def indicators(labels: np.ndarray) -> np.ndarray:
    """Labels [N] or [N, C] as [N, C] bool."""
    return labels > 0 if labels.ndim == 2 else np.eye(labels.max() + 1, dtype=bool)[labels]


def decide(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[N, C] bool: the largest logit, or for labels [N, C] every sigmoid above one half."""
    return logits > 0 if labels.ndim == 2 else np.eye(logits.shape[1], dtype=bool)[logits.argmax(1)]


def logistic_regression(features: np.ndarray, data: Citations) -> np.ndarray:
    """Predictions [N, C] bool of the L2-regularised regression that does best on the validation nodes."""
    best, chosen = -1.0, None
    targets = indicators(data.labels)
    for strength in 10.0 ** np.arange(-4, 5, 2):
        model = LogisticRegression(C=strength, max_iter=300)
        model = model if data.labels.ndim == 1 else OneVsRestClassifier(model)
        model.fit(features[data.train], data.labels[data.train])
        found = model.predict(features)
        found = found > 0 if found.ndim == 2 else np.eye(targets.shape[1], dtype=bool)[found]
        score = float(graphsage.micro_f1(found, targets, data.validation))
        if score > best:
            best, chosen = score, found
    return chosen


def figure(rows: list[dict[str, Any]], losses: dict[str, np.ndarray]) -> Any:
    """Left the training losses, right the F1 of unseen and of training nodes."""
    drawing, (left, right) = new_figure(9, 3.2, 1, 2)
    for name, values in losses.items():
        width = max(len(values) // 50, 1)
        means = values[: len(values) // width * width].reshape(-1, width).mean(1)
        left.plot(width * (np.arange(len(means)) + 0.5), means, label=name)
    left.set(xlabel="step", ylabel="training loss")
    if losses:
        left.legend(fontsize=7)
    place = np.arange(len(rows))
    for shift, part in ((-0.2, "train_f1"), (0.2, "test_f1")):
        right.bar(place + shift, [row[part] for row in rows], 0.4, label=part)
    right.set_xticks(place, [row["aggregator"] for row in rows], fontsize=8)
    right.set(ylabel="micro-F1", ylim=(0, 1.18))
    right.legend(fontsize=7, ncols=2, loc="upper center")
    return drawing


if __name__ == "__main__":
    app.main(get_config, build)
