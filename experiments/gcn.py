"""GCN: semi-supervised node classification from a few labelled nodes and the graph.

    python -m experiments.gcn                                            # a stochastic block model, seconds
    python -m experiments.gcn --config=karate                            # 34 people, one labelled of each community
    python -m experiments.gcn --config=files --config.data.path=DIR --save_arrays=OUT   # your graph: DIR/labels.txt,
                                             # edges.txt, features.npy, split.txt; every node's class in OUT/classes.txt
    python -m experiments.gcn --config=cora --config.data.path=DIR       # DIR holds ind.cora.*; paper 81.5 %
    python -m experiments.gcn --config=cora_chebyshev --config.data.path=DIR   # polynomials of degree 3; paper 79.5 %
    python -m experiments.gcn --config=citeseer --config.data.path=DIR   # paper 70.3 %

Metrics are means over `optim.runs` initialisations; as in the paper, the weights of the last epoch are tested.
`--eval_only --config.eval.path=DIR` tests a trained network on another folder of the same format.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.data.graphs import NodeSource
from facejax.data.readers.planetoid import Citations
from facejax.evaluate import graphs
from facejax.graph import gcn
from facejax.train import Experiment, Mean, Options, Report, TrainState, app
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": dataclasses.asdict(NodeSource()),
    "model": {
        "hidden": 16,  # width of the first layer
        "dropout": 0.5,
        "graph": True,  # False removes all edges
        "degree": 0,  # of the Chebyshev polynomials; 0 is the renormalised adjacency
    },
    "optim": {
        "learning_rate": 0.01,
        "l2": 5e-4,  # regulariser weight of the first layer
        "patience": 10,  # epochs; training stops when the validation loss exceeds its mean over so many
        "epochs_per_step": 20,  # epochs that one training step runs
        "runs": 5,  # independent trainings from different initial weights
    },
    "train": dataclasses.asdict(Options(batch_size=1, steps=10, log_every=1, save_every=1, devices=1)),
    "eval": {"path": ""},  # folder of another graph to test on; empty is data.path
}
PRESETS = {
    "synthetic": {},
    "no_graph": {"model.graph": False},
    "karate": {
        "data.source": "karate",
        "model.dropout": 0.0,
        "optim.l2": 0.0,
        "optim.patience": 300,
        "train.steps": 15,
    },
    "files": {"data": {"source": "files", "labelled": 20}},
    "cora": {"data.source": "cora", "optim.runs": 20},
    "cora_no_graph": {"data.source": "cora", "model.graph": False, "optim.runs": 20},
    "cora_chebyshev": {"data.source": "cora", "model.degree": 3, "optim.runs": 20},
    "citeseer": {"data.source": "citeseer", "optim.runs": 20},
    "pubmed": {"data.source": "pubmed", "optim.runs": 20},
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
    """Wires the run: one step is `optim.epochs_per_step` epochs of every one of `optim.runs` trainings."""
    source, model, optim = NodeSource(**config.data), config.model, config.optim
    data = source.load(config.seed)
    problem = arrays(data, edges=model.graph, degree=model.degree)
    net = gcn.GCN(int(data.labels.max()) + 1, model.hidden, model.dropout, model.degree)
    tx = optax.adam(optim.learning_rate)

    def init(rng: jax.Array) -> TrainState:
        none, features = np.zeros(0, int), gcn.SparseFeatures.from_dense(np.zeros((1, data.features.shape[1])))
        graph = gcn.renormalized(none, none, 1)
        keys = jax.random.split(rng, optim.runs)
        params = lax.map(lambda key: net.init(key, features, graph, train=False)["params"], keys)
        memory = {"recent": jnp.zeros((optim.runs, optim.patience)), "stopped": jnp.zeros(optim.runs, jnp.int32)}
        return TrainState(jnp.int32(0), rng, params, jax.vmap(tx.init)(params), memory)

    def step(state: TrainState, batch: Any, _: jax.Array) -> tuple[TrainState, dict[str, Mean]]:
        def objective(params: Any, mask: jax.Array, rng: jax.Array | None) -> jax.Array:
            rngs = None if rng is None else {"dropout": rng}
            logits = net.apply({"params": params}, batch["features"], batch["graph"], train=rng is not None, rngs=rngs)
            decay = 0.5 * optim.l2 * jnp.sum(params["first"] ** 2)
            return gcn.masked_cross_entropy(logits, batch["labels"], mask) + decay

        def epoch(carry: Any, index: jax.Array) -> tuple[Any, Any]:
            rng, params, opt, memory = carry
            loss, gradient = jax.value_and_grad(objective)(params, batch["train"], jax.random.fold_in(rng, index))
            updates, new_opt = tx.update(gradient, opt)
            moved = optax.apply_updates(params, updates)
            recent, stopped = memory["recent"], memory["stopped"]
            params, opt = jax.tree.map(lambda a, b: jnp.where(stopped > 0, a, b), (params, opt), (moved, new_opt))
            validation = objective(params, batch["validation"], None)
            over = (index > optim.patience) & (validation > recent.mean())
            after = jnp.where((stopped == 0) & over, index + 1, stopped)
            memory = {"recent": jnp.append(recent[1:], validation), "stopped": after}
            return (rng, params, opt, memory), (loss, validation, stopped == 0)

        numbers = state.step * optim.epochs_per_step + jnp.arange(optim.epochs_per_step)
        carries = (jax.random.split(state.rng, optim.runs), state.params, state.opt_state, state.model_state)
        (_, params, opt, memory), (loss, validation, active) = lax.map(lambda c: lax.scan(epoch, c, numbers), carries)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt, model_state=memory)
        return state, {"loss": Mean.of(loss, active), "validation_loss": Mean.of(validation, active)}

    def evaluate(state: TrainState) -> Report:
        other = source.load(config.seed, config.eval.path, data.names) if config.eval.path else data
        tested = arrays(other, edges=model.graph, degree=model.degree) if config.eval.path else problem

        def test(batch: Any, params: Any) -> dict[str, jax.Array]:
            inputs = {"params": params}, batch["features"], batch["graph"]
            predictions = net.apply(*inputs, train=False).argmax(1)
            right = predictions == batch["labels"]
            found = {k: 100 * jnp.sum(right * batch[k]) / jnp.sum(batch[k]) for k in ("validation", "test")}
            return {**found, "predictions": predictions, "hidden": net.apply(*inputs, train=False, embed=True)}

        every = jax.jit(lambda batch, params: lax.map(lambda p: test(batch, p), params))
        found = jax.tree.map(np.asarray, every(tested, state.params))
        stopped = np.asarray(state.model_state["stopped"])
        epochs = np.where(stopped > 0, stopped, int(state.step) * optim.epochs_per_step)
        return Report(
            graphs.spread("accuracy", found["test"], found["validation"], epochs),
            figures={"Embedding of the first run": graphs.principal_plane(found["hidden"][0], other)},
            arrays={
                "classes": graphs.named(found["predictions"][0], data.names),
                "predictions": found["predictions"],
                "hidden": found["hidden"],
            },
        )

    return Experiment(evaluate, init, step, resident=lambda: problem)


def arrays(data: Citations, *, edges: bool, degree: int) -> dict[str, Any]:
    """What the steps read: sparse "features", normalised "graph", "labels" and the masks of the split.

    Args:
      data: the graph.
      edges: False leaves all edges out.
      degree: above 0, the graph is the scaled Laplacian of Chebyshev polynomials.
    """
    ends = (data.source, data.destination) if edges else (np.zeros(0, int), np.zeros(0, int))
    return {
        "features": gcn.SparseFeatures.from_dense(gcn.row_normalized(data.features)),
        "graph": (gcn.scaled_laplacian if degree else gcn.renormalized)(*ends, len(data.labels)),
        "labels": jnp.asarray(data.labels),
        **{name: jnp.asarray(getattr(data, name)) for name in ("train", "validation", "test")},
    }


if __name__ == "__main__":
    app.main(get_config, build)
