"""GAT: graph attention networks for node classification.

    python -m experiments.gat                                             # a block model where some nodes mislead
    python -m experiments.gat --config=inductive                          # several graphs, tested on held-out ones
    python -m experiments.gat --config=files --config.data.path=DIR --save_arrays=OUT   # your graph, see gcn
    python -m experiments.gat --config=cora --config.data.path=DIR        # DIR holds ind.cora.*; paper 83.0 %
    python -m experiments.gat --config=citeseer --config.data.path=DIR    # paper 72.5 %
    python -m experiments.gat --config=pubmed --config.data.path=DIR      # paper 79.0 %
    python -m experiments.gat --config=ppi --config.data.path=DIR         # DIR holds train_graph.json, train_feats.npy,
                                                                          # ...; one GPU; paper micro-F1 0.973

Metrics are means over `optim.runs` initialisations. Training stops when neither validation loss nor validation score
has improved for `optim.patience` epochs; the tested weights are the last at which both were at least as good as before.
`--eval_only --config.eval.path=DIR` tests a trained network on another folder of the same format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.data.graphs import NodeSource
from facejax.data.readers.node_graphs import read_ppi
from facejax.data.synthetic.graphs import mislead, several_blocks
from facejax.evaluate import graphs
from facejax.evaluate.node_splits import Split, one_graph, several_graphs
from facejax.graph import gat
from facejax.train import Experiment, Mean, Options, Report, TrainState, app
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        **dataclasses.asdict(NodeSource(degree_out=2.0)),
        "misleading": 0.5,  # share of nodes with features of another class
        "graphs": 1,  # graphs of the block model; with several, whole graphs are held out
    },
    "model": {
        "widths": (8,),  # of a head, for every hidden layer
        "heads": (8, 1),  # for every layer, the output last
        "dropout": 0.6,
        "skip": False,  # skip connections
        "attention": True,  # False weighs all neighbours equally
    },
    "optim": {
        "learning_rate": 0.005,
        "l2": 5e-4,  # regulariser weight of all parameters
        "batch_size": 1,  # graphs per update
        "patience": 100,  # epochs without a lower validation loss or a better validation score
        "epochs_per_step": 200,  # epochs that one training step runs; train.steps times this is the most
        "runs": 3,  # independent trainings from different initial weights
    },
    "train": dataclasses.asdict(Options(batch_size=1, steps=500, log_every=1, save_every=1, devices=1)),
    "eval": {"path": ""},  # folder of another data set to test on; empty is data.path
}
PPI = {
    "model.widths": (256, 256), "model.heads": (4, 4, 6), "model.dropout": 0.0, "model.skip": True, "optim.l2": 0.0,
    "optim.batch_size": 2, "optim.epochs_per_step": 20,
}  # fmt: skip
SMALL = {"train.steps": 2}
SEVERAL = PPI | {
    "data.nodes": 150, "data.graphs": 20, "data.degree_in": 12.0, "data.degree_out": 3.0, "model.widths": (8, 8),
    "optim.learning_rate": 0.01, "optim.patience": 20, "optim.runs": 1, "train.steps": 5,
}  # fmt: skip
PRESETS = {
    "synthetic": SMALL,
    "constant": SMALL | {"model.attention": False},
    "inductive": SEVERAL,
    "inductive_constant": SEVERAL | {"model.attention": False},
    "files": {"data": {"source": "files", "labelled": 20}},
    "cora": {"data.source": "cora", "optim.runs": 20},
    "cora_constant": {"data.source": "cora", "optim.runs": 20, "model.attention": False},
    "citeseer": {"data.source": "citeseer", "optim.runs": 20},
    "pubmed": {
        "data.source": "pubmed", "model.heads": (8, 8), "optim.learning_rate": 0.01, "optim.l2": 1e-3, "optim.runs": 20,
    },
    "ppi": PPI | {"data.source": "ppi", "optim.runs": 10, "train.steps": 5000},
    "ppi_constant": PPI | {"data.source": "ppi", "optim.runs": 10, "train.steps": 5000, "model.attention": False},
}  # fmt: skip
CLAIM = Claim(
    "gat.attention",
    "attention labels the nodes of held-out graphs better than equal weights on all neighbours",
    metric="test_micro_f1",
    better="higher",
    method="inductive",
    baseline=("inductive_constant",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: one step is at most `optim.epochs_per_step` epochs of every one of `optim.runs` trainings."""
    model, optim = config.model, config.optim
    splits, names = load(config.data, config.seed)
    labels, graph_count = splits["train"].labels, len(splits["train"].mask)
    classes = labels.shape[2] if labels.ndim == 3 else int(labels.max()) + 1
    net = gat.GAT(classes, tuple(model.widths), tuple(model.heads), model.dropout, model.skip, not model.attention)
    tx = optax.adam(optim.learning_rate)
    batches = graph_count // optim.batch_size
    if not batches:
        raise ValueError(f"optim.batch_size is {optim.batch_size}: expected at most {graph_count}, the training graphs")

    def init(rng: jax.Array) -> TrainState:
        none, features = np.zeros(0, int), jnp.zeros((1, splits["train"].features.shape[-1]))
        graph = gat.neighborhood(none, none, 1)
        keys = jax.random.split(rng, optim.runs)
        params = lax.map(lambda key: net.init(key, features, graph, train=False)["params"], keys)
        memory = {
            "best": jax.tree.map(jnp.copy, params),
            "loss": jnp.full(optim.runs, jnp.finfo(jnp.float32).max),
            "score": jnp.zeros(optim.runs),
            "waited": jnp.zeros(optim.runs, jnp.int32),
            "epochs": jnp.zeros(optim.runs, jnp.int32),
        }
        return TrainState(jnp.int32(0), rng, params, jax.vmap(tx.init)(params), memory)

    def step(state: TrainState, batch: Any, _: jax.Array) -> tuple[TrainState, dict[str, Mean]]:
        def objective(params: Any, split: Split, rng: jax.Array) -> jax.Array:
            logits = net.apply({"params": params}, split.inputs, split.graph, train=True, rngs={"dropout": rng})
            return split.compare(logits)[0] + optim.l2 * gat.l2(params)

        def update(carry: Any, item: Any) -> tuple[Any, None]:
            (params, opt), (chosen, key) = carry, item
            gradient = jax.grad(objective)(params, batch["train"].take(chosen), key)
            updates, opt = tx.update(gradient, opt)
            return (optax.apply_updates(params, updates), opt), None

        def epoch(rng: jax.Array, carry: Any) -> Any:
            trained, memory, total = carry
            key = jax.random.fold_in(rng, memory["epochs"])
            order = jax.random.permutation(key, graph_count)[: batches * optim.batch_size].reshape(batches, -1)
            trained, _ = lax.scan(update, trained, (order, jax.random.split(key, batches)))
            split = batch["validation"]
            loss, score = split.compare(net.apply({"params": trained[0]}, split.inputs, split.graph, train=False))
            lower, higher = loss <= memory["loss"], score >= memory["score"]
            memory = {
                "best": jax.tree.map(lambda a, b: jnp.where(lower & higher, a, b), trained[0], memory["best"]),
                "loss": jnp.minimum(loss, memory["loss"]),
                "score": jnp.maximum(score, memory["score"]),
                "waited": jnp.where(lower | higher, 0, memory["waited"] + 1),
                "epochs": memory["epochs"] + 1,
            }
            return trained, memory, Mean(total.total + loss, total.count + 1)

        def train(item: Any) -> Any:
            rng, trained, memory = item
            limit = (state.step + 1) * optim.epochs_per_step

            def unfinished(carry: Any) -> jax.Array:
                return (carry[1]["waited"] < optim.patience) & (carry[1]["epochs"] < limit)

            start = trained, memory, Mean(jnp.float32(0), jnp.float32(0))
            return lax.while_loop(unfinished, lambda carry: epoch(rng, carry), start)

        def unchanged(items: Any) -> Any:
            return *items[1:], Mean(jnp.zeros(optim.runs), jnp.zeros(optim.runs))

        items = jax.random.split(state.rng, optim.runs), (state.params, state.opt_state), state.model_state
        active = jnp.any(state.model_state["waited"] < optim.patience)
        trained, memory, total = lax.cond(active, lambda items: lax.map(train, items), unchanged, items)
        state = state.replace(step=state.step + 1, params=trained[0], opt_state=trained[1], model_state=memory)
        return state, {"validation_loss": jax.tree.map(jnp.sum, total)}

    def evaluate(state: TrainState) -> Report:
        tested = load(config.data, config.seed, config.eval.path, names)[0] if config.eval.path else splits

        def test(batch: Mapping[str, Split], params: Any) -> dict[str, jax.Array]:
            outputs = {
                name: net.apply({"params": params}, x.inputs, x.graph, train=False, mutable="intermediates")
                for name, x in batch.items()
            }
            logits, inner = outputs["test"]
            return {
                **{name: batch[name].compare(found[0])[1] for name, found in outputs.items()},
                "logits": logits,
                "embeddings": inner["intermediates"]["embeddings"][0],
                "attention": inner["intermediates"]["output"]["attention"][0],
            }

        every = jax.jit(lambda batch, params: lax.map(lambda p: test(batch, p), params))
        parts = {name: tested[name] for name in ("validation", "test")}
        found = jax.tree.map(np.asarray, every(parts, state.model_state["best"]))
        found["epochs"] = np.asarray(state.model_state["epochs"])
        name, scale = ("micro_f1", 1) if labels.ndim == 3 else ("accuracy", 100)
        return Report(
            graphs.spread(name, scale * found["test"], scale * found["validation"], found["epochs"]),
            figures={} if labels.ndim == 3 else figures(tested["test"], found["embeddings"][0], found["attention"][0]),
            arrays={
                **({} if labels.ndim == 3 else {"classes": graphs.named(found["logits"][0].argmax(1), names)}),
                **{k: found[k] for k in ("test", "epochs", "logits", "embeddings", "attention")},
            },
        )

    return Experiment(evaluate, init, step, resident=lambda: {k: splits[k] for k in ("train", "validation")})


def load(
    data: Mapping[str, Any], seed: int, path: str = "", names: Sequence[str] = ()
) -> tuple[dict[str, Split], Sequence[str]]:
    """The splits "train", "validation" and "test" of the `data` section, and the classes' names, if they have any.

    Args:
      data: the section.
      seed: see `NodeSource.load`.
      path: another folder.
      names: of the classes of files.

    Raises:
      ValueError: an unknown source, or files that cannot be read.
    """
    fields = dict(data)
    misleading, count = fields.pop("misleading"), fields.pop("graphs")
    source = NodeSource(**fields)
    if source.source == "ppi":
        return several_graphs({k: read_ppi(path or source.path, k) for k in ("train", "validation", "test")}), ()
    if count > 1:
        sizes = (source.nodes, source.classes, source.degree_in, source.degree_out)
        return several_graphs(several_blocks(count, *sizes, misleading, seed)), ()
    citations = source.load(seed, path, names)
    if source.source == "blocks":
        citations = mislead(citations, misleading, seed)
    return one_graph(citations), citations.names


def figures(split: Split, embeddings: np.ndarray, attention: np.ndarray) -> dict[str, Any]:
    """Embeddings [N, D] of at most 1000 test nodes, and the attention [E, H] of the output layer, of one training."""
    labels, shown = np.asarray(split.labels[0]), np.flatnonzero(np.asarray(split.mask[0]))[:1000]
    return {
        "Embeddings": graphs.tsne(embeddings[shown], labels[shown]),
        "Attention": graphs.attention_histogram(attention.mean(1), split.graph, labels),
    }


if __name__ == "__main__":
    app.main(get_config, build)
