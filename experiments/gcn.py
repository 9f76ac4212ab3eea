"""GCN: a few labelled nodes and the graph label all the others.

    python -m experiments.gcn                                            # a stochastic block model, seconds
    python -m experiments.gcn --config=karate                            # 34 people, one labelled of each community
    python -m experiments.gcn --config=cora --config.data.path=DIR       # DIR holds ind.cora.*; paper 81.5 %
    python -m experiments.gcn --config=cora_chebyshev --config.data.path=DIR   # polynomials of degree 3; paper 79.5 %
    python -m experiments.gcn --config=citeseer --config.data.path=DIR   # paper 70.3 %

Numbers are means over `runs` initialisations of the weights that the last epoch left, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.data.readers.planetoid import Citations
from facejax.data.synthetic import graphs
from facejax.graph import gcn
from facejax.train import Experiment, Report, app, new_figure
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {"source": "blocks", "path": "", "nodes": 600, "classes": 4, "degree_in": 6.0, "degree_out": 3.0},
    "model": {"hidden": 16, "dropout": 0.5, "graph": True, "degree": 0},
    "optim": {"learning_rate": 0.01, "l2": 5e-4, "epochs": 200, "patience": 10},
    "eval": {"runs": 5},
}
PRESETS = {
    "synthetic": {},
    "no_graph": {"model.graph": False},
    "karate": {
        "data.source": "karate",
        "model.dropout": 0.0,
        "optim.l2": 0.0,
        "optim.epochs": 300,
        "optim.patience": 300,
    },
    "cora": {"data.source": "cora", "eval.runs": 20},
    "cora_no_graph": {"data.source": "cora", "model.graph": False, "eval.runs": 20},
    "cora_chebyshev": {"data.source": "cora", "model.degree": 3, "eval.runs": 20},
    "citeseer": {"data.source": "citeseer", "eval.runs": 20},
    "pubmed": {"data.source": "pubmed", "eval.runs": 20},
}
CLAIM = Claim(
    "gcn.graph",
    "graph convolution labels nodes better than the same network without the graph",
    metric="test_accuracy",
    better="higher",
    method="synthetic",
    baseline=("no_graph",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: all of it is one jitted scan, so `evaluate` does the work."""

    def evaluate(_: Any) -> Report:
        data = graphs.load(config.data, config.seed)
        found = jax.tree.map(np.asarray, train(config, data))
        accuracy = 100 * found["test"]
        return Report(
            {
                "test_accuracy": float(accuracy.mean()),
                "test_accuracy_std": float(accuracy.std()),
                "validation_accuracy": float(100 * found["validation"].mean()),
                "epochs": float(found["stopped"].mean()),
            },
            figures={
                "Embedding of the first run": embedding_figure(found["hidden"][0], data),
                "Training": curves(found),
            },
            arrays={"predictions": found["predictions"], "hidden": found["hidden"]},
        )

    return Experiment(evaluate)


def train(config: ConfigDict, data: Citations) -> dict[str, jax.Array]:
    """`runs` trainings, one after the other in one compiled program: the arrays have a leading axis of runs."""
    run = training(config, data)
    keys = jax.random.split(jax.random.key(config.seed), config.eval.runs)
    return jax.jit(lambda keys: lax.map(run, keys))(keys)


def training(config: ConfigDict, data: Citations) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """One training as a function of a key: all epochs are one scan, with the validation loss after each."""
    count, classes = len(data.labels), int(data.labels.max()) + 1
    edges = (data.source, data.destination) if config.model.graph else (np.zeros(0, int), np.zeros(0, int))
    graph = (gcn.scaled_laplacian if config.model.degree else gcn.renormalized)(*edges, count)
    features = gcn.SparseFeatures(gcn.row_normalized(data.features))
    net = gcn.GCN(classes, config.model.hidden, config.model.dropout, config.model.degree)
    labels, masks = (
        jnp.asarray(data.labels),
        {k: jnp.asarray(getattr(data, k)) for k in ("train", "validation", "test")},
    )
    tx, optim = optax.adam(config.optim.learning_rate), config.optim

    def objective(params: Any, mask: jax.Array, rng: jax.Array | None) -> jax.Array:
        rngs = None if rng is None else {"dropout": rng}
        logits = net.apply({"params": params}, features, graph, train=rng is not None, rngs=rngs)
        decay = 0.5 * optim.l2 * jnp.sum(params["first"] ** 2)  # the first layer only
        return gcn.masked_cross_entropy(logits, labels, mask) + decay

    def run(rng: jax.Array) -> dict[str, jax.Array]:
        params = net.init(rng, features, graph, train=False)["params"]

        def epoch(state: Any, index: jax.Array) -> tuple[Any, Any]:
            params, opt, recent, stopped = state
            gradient = jax.grad(objective)(params, masks["train"], jax.random.fold_in(rng, index))
            updates, new_opt = tx.update(gradient, opt)
            moved = optax.apply_updates(params, updates)
            params, opt = jax.tree.map(lambda a, b: jnp.where(stopped > 0, a, b), (params, opt), (moved, new_opt))
            loss = objective(params, masks["validation"], None)
            worse = (index > optim.patience) & (loss > recent.mean())
            stopped = jnp.where((stopped == 0) & worse, index + 1, stopped)
            return (params, opt, jnp.append(recent[1:], loss), stopped), loss

        start = params, tx.init(params), jnp.full(optim.patience, jnp.inf), jnp.int32(0)
        (params, _, _, stopped), losses = lax.scan(epoch, start, jnp.arange(optim.epochs))
        predictions = net.apply({"params": params}, features, graph, train=False).argmax(1)
        right = predictions == labels
        found = {k: jnp.sum(right * masks[k]) / jnp.sum(masks[k]) for k in ("validation", "test")}
        return {
            **found,
            "stopped": jnp.where(stopped > 0, stopped, optim.epochs),
            "losses": losses,
            "predictions": predictions,
            "hidden": net.apply({"params": params}, features, graph, train=False, embed=True),
        }

    return run


def embedding_figure(hidden: np.ndarray, data: Citations) -> Any:
    """The hidden layer's two main directions, coloured by true class; labelled nodes are ringed, edges are grey."""
    centred = hidden - hidden.mean(0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    figure, axis = new_figure(5.5, 4.5)
    ends = np.stack([plane[data.source], plane[data.destination], np.full((len(data.source), 2), np.nan)], 1)
    axis.plot(*ends.reshape(-1, 2).T, color="lightgrey", lw=0.3 if len(hidden) > 100 else 1, zorder=0)
    axis.scatter(*plane.T, c=data.labels, cmap="tab10", vmax=9, s=6 if len(hidden) > 100 else 60)
    axis.scatter(*plane[data.train].T, s=40 if len(hidden) > 100 else 160, facecolors="none", edgecolors="black", lw=1)
    axis.set(xticks=[], yticks=[])
    return figure


def curves(found: dict[str, np.ndarray]) -> Any:
    """Validation loss of every run."""
    figure, axis = new_figure(5, 3)
    axis.plot(found["losses"].T, alpha=0.6)
    axis.set(xlabel="epoch", ylabel="validation loss")
    return figure


if __name__ == "__main__":
    app.main(get_config, build)
