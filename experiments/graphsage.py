"""GraphSAGE: learned aggregators classify nodes that were absent during training.

    python -m experiments.graphsage                                                # a stochastic block model
    python -m experiments.graphsage --config=unsupervised                          # the same by random walks
    python -m experiments.graphsage --config=cora --config.data.path=DIR           # DIR holds ind.cora.*
    python -m experiments.graphsage --config=ppi --config.data.path=DIR/ppi        # DIR/ppi-G.json, ppi-feats.npy, ...

Validation and test nodes are hidden from training with all their edges. Micro-F1 on the test nodes of the paper's full
runs (Table 1, mean aggregator, supervised / unsupervised): ppi 0.598 / 0.486, reddit 0.950 / 0.897, citation
0.820 / 0.778; one GPU each. The paper selected the learning rate on the validation nodes, from 1e-2, 1e-3, 1e-4. Its
unsupervised runs, one epoch of the pairs from 50 walks of length 5, take `--config.loss.kind=unsupervised
--config.train.steps=200 --config.optim.learning_rate=2e-6` (or 2e-7, 2e-8). Citation's data are not public.
`--eval_only --config.eval.path=...` tests trained networks on another graph of the same format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.data.graphs import NodeSource
from facejax.data.readers.node_graphs import read_graphsage
from facejax.data.readers.planetoid import Citations
from facejax.evaluate import graphs
from facejax.graph import graphsage
from facejax.ops.graph import make_graph, offsets
from facejax.train import Experiment, Mean, Options, Report, TrainState, app
from facejax.train.claims import Claim
from facejax.train.dry_run import count

BASE = {
    "seed": 0,
    "data": {
        **dataclasses.asdict(NodeSource(nodes=1200, labelled=150)),
        "labels": "all",  # training labels of Planetoid: "public", or "all" but those of validation and test nodes
    },
    "model": {
        "aggregators": ("mean",),  # networks to train side by side; the metrics are the first one's
        "width": 128,  # half of a layer's output
        "hidden": 0,  # units of pooling layer and LSTM; 0 is 512 and 128
        "samples": (25, 10),  # neighbours per node, the layer farthest from the output first
    },
    "loss": {
        "kind": "supervised",  # or "unsupervised"
        "walk_length": 5,  # nodes of a random walk, the first included; a later one is the positive example
        "negatives": 20,  # nodes per update
    },
    "optim": {
        "learning_rate": 0.01,
        "clip": 5.0,  # largest absolute value of a gradient's entry
        "batch_size": 512,  # nodes per update; one training step is a pass over all training nodes
    },
    "train": dataclasses.asdict(Options(batch_size=1, steps=10, log_every=1, save_every=1, devices=1)),
    "eval": {
        "features": False,  # also logistic regression on the nodes' own features
        "path": "",  # of another graph to test on; empty is data.path
    },
}
ALL = {"model.aggregators": tuple(graphsage.AGGREGATORS), "eval.features": True}
SMALL = ALL | {"model.width": 32, "model.hidden": 64, "model.samples": (10, 5), "optim.batch_size": 64}
DOCUMENTS = SMALL | {"model.width": 64, "model.hidden": 128}
UNSUPERVISED = {"loss.kind": "unsupervised", "optim.learning_rate": 1e-3, "train.steps": 40}
PRESETS = {
    "synthetic": SMALL,
    "features": {"model.aggregators": (), "eval.features": True},
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
    "graphsage.neighbours",
    "aggregated neighbours label held-out nodes better than logistic regression on the nodes' own features",
    metric="test_f1",
    better="higher",
    method="synthetic",
    baseline=("features",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: one step is a pass over the training nodes for every aggregator, with the same batches."""
    loss, optim, samples = config.loss, config.optim, tuple(config.model.samples)
    if loss.kind not in ("supervised", "unsupervised"):
        raise ValueError(f"loss.kind is {loss.kind!r}: expected supervised or unsupervised")
    supervised = loss.kind == "supervised"
    data = load(config.data, config.seed)
    visible = arrays(data, data, ~(data.validation | data.test))
    pool = np.flatnonzero(data.train if supervised else np.diff(visible["starts"]))
    cumulative = None if supervised else graphsage.negative_distribution(visible["starts"])
    size = min(optim.batch_size, len(pool))
    batches = -(-len(pool) // size)
    classes = graphs.indicators(data.labels).shape[1] if supervised else None
    nets = {
        name: graphsage.GraphSAGE(classes, name, config.model.width, config.model.hidden)
        for name in config.model.aggregators
    }
    tx = optax.chain(optax.clip(optim.clip), optax.adam(optim.learning_rate))

    def outputs(name: str, params: Any, batch: Mapping[str, Any], nodes: jax.Array, rng: jax.Array) -> jax.Array:
        shuffle = name == "lstm"
        blocks = graphsage.sample_blocks(rng, batch["graph"], batch["starts"], nodes, samples, shuffle=shuffle)
        return nets[name].apply({"params": params}, batch["features"], blocks)

    def init(rng: jax.Array) -> TrainState:
        features, graph = jnp.zeros((1, data.features.shape[1])), make_graph(np.zeros(0), np.zeros(0), 1)
        blocks = graphsage.sample_blocks(rng, graph, offsets(graph), jnp.zeros(1, jnp.int32), samples)
        params = {name: net.init(rng, features, blocks)["params"] for name, net in nets.items()}
        opt = {name: tx.init(params[name]) for name in nets}
        return TrainState(jnp.int32(0), rng, params, opt, {"order": jnp.asarray(pool, jnp.int32)})

    def step(state: TrainState, batch: Mapping[str, Any], _: jax.Array) -> tuple[TrainState, dict[str, Mean]]:
        first = state.step * batches
        order = jax.random.permutation(jax.random.fold_in(state.rng, first), state.model_state["order"])

        def objective(params: Any, name: str, nodes: jax.Array, where: jax.Array, rng: jax.Array) -> jax.Array:
            if supervised:
                losses = graphsage.supervised_loss(outputs(name, params, batch, nodes, rng), batch["labels"][nodes])
            else:
                walk, place, negative, rng = jax.random.split(rng, 4)
                visited = graphsage.random_walks(walk, batch["graph"], batch["starts"], nodes, loss.walk_length - 1)
                positives = visited[jnp.arange(size), jax.random.randint(place, (size,), 0, loss.walk_length - 1)]
                where &= positives != nodes
                negatives = graphsage.draw_nodes(negative, batch["cumulative"], loss.negatives)
                found = outputs(name, params, batch, jnp.concatenate([nodes, positives, negatives]), rng)
                losses = graphsage.unsupervised_loss(*jnp.split(found, (size, 2 * size)))
            return jnp.sum(losses * where) / jnp.maximum(where.sum(), 1)

        def updated(name: str) -> tuple[Any, jax.Array]:
            def update(carry: Any, turn: jax.Array) -> tuple[Any, jax.Array]:
                params, opt = carry
                places = turn * size + jnp.arange(size)
                nodes, where = order[jnp.minimum(places, len(pool) - 1)], places < len(pool)
                key = jax.random.fold_in(jax.random.fold_in(state.rng, first + turn), 1)
                value, gradient = jax.value_and_grad(objective)(params, name, nodes, where, key)
                updates, opt = tx.update(gradient, opt)
                return (optax.apply_updates(params, updates), opt), value

            return lax.scan(update, (state.params[name], state.opt_state[name]), jnp.arange(batches))

        done = {name: updated(name) for name in nets}
        return state.replace(
            step=state.step + 1,
            params={name: carry[0] for name, (carry, _) in done.items()},
            opt_state={name: carry[1] for name, (carry, _) in done.items()},
            model_state={"order": order},
        ), {f"{name}_loss": Mean.of(losses) for name, (_, losses) in done.items()}

    @jax.jit
    def embed(state: TrainState, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        number = len(batch["features"])
        nodes = jnp.pad(jnp.arange(number), (0, -number % size)).reshape(-1, size)
        keys = jax.random.split(jax.random.fold_in(state.rng, state.step * batches), len(nodes))
        every = {
            name: lax.map(lambda item, name=name: outputs(name, state.params[name], batch, *item), (nodes, keys))
            for name in nets
        }
        return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1])[:number], every)

    def inputs(state: TrainState | None, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        embedded = embed(state, batch) if nets else {}  # jit sorts the names
        every = {name: np.asarray(embedded[name]) for name in nets}
        return every | ({"none": np.asarray(batch["features"])} if config.eval.features else {})

    def evaluate(state: TrainState | None) -> Report:
        other, whole = data, arrays(data, data)
        found = known = inputs(state, whole)
        if config.eval.path:
            other = load(config.data, config.seed, config.eval.path)
            found = inputs(state, arrays(data, other))
        rows, predictions = [], {}
        for name in found:
            if supervised and name in nets:
                predictions[name] = graphs.decide(found[name], data.labels)
            else:
                predictions[name] = graphs.linear_probe(known[name], data)(found[name])
        for name, predicted in predictions.items():
            scores = {k: round(v, 4) for k, v in graphs.f1_of_splits(predicted, other).items()}
            rows.append({"aggregator": name, **scores, "parameters": count(state.params[name]) if name in nets else 0})
        return Report(
            {k: rows[0][k] for k in ("test_f1", "validation_f1", "train_f1")},
            tables={"Aggregators (none: logistic regression on features)": rows},
            figures={"Aggregators": graphs.f1_bars(rows)},
            arrays={"predictions": next(iter(predictions.values())), "outputs": next(iter(found.values()))},
        )

    if not nets:
        return Experiment(evaluate)
    resident = visible if supervised else {**visible, "cumulative": cumulative}
    return Experiment(evaluate, init, step, resident=lambda: resident)


def load(data: Mapping[str, Any], seed: int, path: str = "") -> Citations:
    """The graph of the `data` section, or another one of its kind at `path`.

    Raises:
      ValueError: an unknown source or choice of labels, or files that cannot be read.
    """
    fields = dict(data)
    labels = fields.pop("labels")
    source = NodeSource(**fields)
    if source.source == "files":
        return read_graphsage(path or source.path)
    found = source.load(seed, path)
    if labels not in ("all", "public"):
        raise ValueError(f"data.labels is {labels!r}: expected all or public")
    if source.source == "blocks" or labels == "public":
        return found
    known = found.features.any(1)  # Citeseer's gaps have neither features nor labels
    return dataclasses.replace(found, train=known & ~found.validation & ~found.test)


def arrays(data: Citations, tested: Citations, visible: np.ndarray | None = None) -> dict[str, Any]:
    """Arrays of a graph: "graph" and its "starts", "features" and "labels".

    Args:
      data: whose training nodes give mean and variance of the features; a constant feature keeps its scale.
      tested: the graph.
      visible: [N] nodes whose mutual edges are kept; all when None.
    """
    known = data.features[data.train]
    deviation = known.std(0)
    features = (tested.features - known.mean(0)) / np.where(deviation > 0, deviation, 1)
    kept = slice(None) if visible is None else visible[tested.source] & visible[tested.destination]
    graph = make_graph(tested.source[kept], tested.destination[kept], len(features))
    return {
        "graph": graph,
        "starts": offsets(graph),
        "features": jnp.asarray(features, jnp.float32),
        "labels": jnp.asarray(tested.labels),
    }


if __name__ == "__main__":
    app.main(get_config, build)
