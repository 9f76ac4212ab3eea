"""GAT: nodes choose which neighbours to listen to.

    python -m experiments.gat                                             # a block model where some nodes mislead
    python -m experiments.gat --config=inductive                          # several graphs, tested on unseen ones
    python -m experiments.gat --config=cora --config.data.path=DIR        # DIR holds ind.cora.*; paper 83.0 %
    python -m experiments.gat --config=citeseer --config.data.path=DIR    # paper 72.5 %
    python -m experiments.gat --config=pubmed --config.data.path=DIR      # paper 79.0 %
    python -m experiments.gat --config=ppi --config.data.path=DIR         # DIR holds train_graph.json, train_feats.npy,
                                                                          # ...; one GPU; paper micro-F1 0.973

Numbers are means over `runs` initialisations. Training ends when neither validation loss nor validation score has
improved for `patience` epochs; the weights tested are the last at which both were at least as good as ever before.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict
from sklearn.manifold import TSNE

from facejax.data.readers.planetoid import Citations
from facejax.data.synthetic import graphs
from facejax.graph import gat, gcn, graphsage
from facejax.ops.graph import Graph
from facejax.train import Experiment, Report, app, new_figure
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        "source": "blocks", "path": "", "nodes": 600, "classes": 4, "degree_in": 6.0, "degree_out": 2.0,
        "misleading": 0.5, "graphs": 1,
    },
    "model": {"widths": (8,), "heads": (8, 1), "dropout": 0.6, "skip": False, "attention": True},
    "optim": {"learning_rate": 0.005, "l2": 5e-4, "batch_size": 1, "epochs": 100_000, "patience": 100},
    "eval": {"runs": 3},
}  # fmt: skip
PPI = {
    "model.widths": (256, 256), "model.heads": (4, 4, 6), "model.dropout": 0.0, "model.skip": True, "optim.l2": 0.0,
    "optim.batch_size": 2,
}  # fmt: skip
SMALL = {"optim.epochs": 400}
SEVERAL = PPI | {
    "data.nodes": 150, "data.graphs": 20, "data.degree_in": 12.0, "data.degree_out": 3.0, "model.widths": (8, 8),
    "optim.learning_rate": 0.01, "optim.epochs": 100, "optim.patience": 20, "eval.runs": 1,
}  # fmt: skip
PRESETS = {
    "synthetic": SMALL,
    "constant": SMALL | {"model.attention": False},
    "inductive": SEVERAL,
    "inductive_constant": SEVERAL | {"model.attention": False},
    "cora": {"data.source": "cora", "eval.runs": 20},
    "cora_constant": {"data.source": "cora", "eval.runs": 20, "model.attention": False},
    "citeseer": {"data.source": "citeseer", "eval.runs": 20},
    "pubmed": {
        "data.source": "pubmed", "model.heads": (8, 8), "optim.learning_rate": 0.01, "optim.l2": 1e-3, "eval.runs": 20,
    },
    "ppi": PPI | {"data.source": "ppi", "eval.runs": 10},
    "ppi_constant": PPI | {"data.source": "ppi", "eval.runs": 10, "model.attention": False},
}  # fmt: skip
CLAIM = Claim(
    "attention labels the nodes of unseen graphs better than equal weights on all neighbours",
    metric="test_micro_f1",
    better="higher",
    method="inductive",
    baseline=("inductive_constant",),
)


class Split(NamedTuple):
    """G graphs of N nodes and E edges, the smaller ones padded.

    Attributes:
      features: [G, N, F]; None where all splits share one graph with sparse features.
      source, destination, weight: [G, E] as in `Graph`, self-loops included; padding ends at node N - 1.
      labels: [G, N] classes or [G, N, C] of 0 and 1.
      mask: [G, N], nodes that count.
    """

    features: Any
    source: jax.Array
    destination: jax.Array
    weight: jax.Array
    labels: jax.Array
    mask: jax.Array

    def graph(self) -> Graph:
        """All graphs side by side as one."""
        count, nodes = self.mask.shape
        first = nodes * jnp.arange(count)[:, None]
        ends = ((end + first).ravel() for end in (self.source, self.destination))
        return Graph(*ends, self.weight.ravel(), count * nodes)


@dataclasses.dataclass(frozen=True)
class Problem:
    """The splits "train", "validation" and "test", and the sparse features of the one graph that they share, if so."""

    splits: dict[str, Split]
    classes: int
    features: gcn.SparseFeatures | None = None

    @property
    def several_labels(self) -> bool:
        """Whether a node can have several labels."""
        return self.splits["train"].labels.ndim == 3


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: all of it is one jitted program, so `evaluate` does the work."""

    def evaluate(_: Any) -> Report:
        problem = load(config.data, config.seed)
        found = jax.tree.map(np.asarray, train(config, problem))
        name, scale = ("micro_f1", 1) if problem.several_labels else ("accuracy", 100)
        return Report(
            {
                f"test_{name}": float(scale * found["test"].mean()),
                f"test_{name}_std": float(scale * found["test"].std()),
                f"validation_{name}": float(scale * found["validation"].mean()),
                "epochs": float(found["epochs"].mean()),
            },
            figures=pictures(problem, found),
            arrays={k: found[k] for k in ("test", "epochs", "logits", "embeddings", "attention")},
        )

    return Experiment(evaluate)


def train(config: ConfigDict, problem: Problem) -> dict[str, jax.Array]:
    """`runs` trainings, one after the other in one compiled program.

    Returns:
      With a leading axis of runs: "test" and "validation" scores, "epochs", "losses" of every epoch (NaN after the
      end) and, on the test split, "logits", "embeddings", "attention" of the output layer.
    """
    model, optim, splits = config.model, config.optim, problem.splits
    net = gat.GAT(
        problem.classes, tuple(model.widths), tuple(model.heads), model.dropout, model.skip, not model.attention
    )
    tx = optax.adam(optim.learning_rate)
    graph_count = len(splits["train"].mask)
    batches = graph_count // optim.batch_size
    if not batches:
        raise ValueError(f"optim.batch_size is {optim.batch_size}: expected at most {graph_count}, the training graphs")

    def inputs(split: Split) -> Any:
        return problem.features or split.features.reshape(-1, split.features.shape[-1])

    def compare(logits: jax.Array, split: Split) -> tuple[jax.Array, jax.Array]:
        mask, labels = split.mask.ravel(), split.labels.reshape(-1, *split.labels.shape[2:])
        losses = graphsage.supervised_loss(logits, labels)
        if problem.several_labels:
            score = graphsage.micro_f1(logits > 0, labels > 0, mask)
        else:
            score = jnp.sum((logits.argmax(1) == labels) & mask) / jnp.sum(mask)
        return jnp.sum(losses * mask) / jnp.sum(mask), score

    def objective(params: Any, split: Split, rng: jax.Array) -> jax.Array:
        logits = net.apply({"params": params}, inputs(split), split.graph(), train=True, rngs={"dropout": rng})
        return compare(logits, split)[0] + optim.l2 * gat.l2(params)

    def measure(params: Any, split: Split) -> tuple[jax.Array, jax.Array]:
        return compare(net.apply({"params": params}, inputs(split), split.graph(), train=False), split)

    def run(rng: jax.Array) -> dict[str, jax.Array]:
        first = jax.tree.map(lambda x: x[: optim.batch_size], splits["train"])
        params = net.init(rng, inputs(first), first.graph(), train=False)["params"]

        def update(state: Any, item: Any) -> tuple[Any, None]:
            (params, opt), (chosen, key) = state, item
            gradient = jax.grad(objective)(params, jax.tree.map(lambda x: x[chosen], splits["train"]), key)
            updates, opt = tx.update(gradient, opt)
            return (optax.apply_updates(params, updates), opt), None

        def epoch(state: Any) -> Any:
            trained, best, (least, most), waited, index, losses = state
            key = jax.random.fold_in(rng, index)
            order = jax.random.permutation(key, graph_count)[: batches * optim.batch_size].reshape(batches, -1)
            trained, _ = lax.scan(update, trained, (order, jax.random.split(key, batches)))
            loss, score = measure(trained[0], splits["validation"])
            both = (loss <= least) & (score >= most)
            best = jax.tree.map(lambda a, b: jnp.where(both, a, b), trained[0], best)
            waited = jnp.where((loss <= least) | (score >= most), 0, waited + 1)
            bounds = jnp.minimum(loss, least), jnp.maximum(score, most)
            return trained, best, bounds, waited, index + 1, losses.at[index].set(loss)

        def unfinished(state: Any) -> jax.Array:
            return (state[3] < optim.patience) & (state[4] < optim.epochs)

        start = (params, tx.init(params)), params, (jnp.inf, 0.0), 0, 0, jnp.full(optim.epochs, jnp.nan)
        _, best, _, _, epochs, losses = lax.while_loop(unfinished, epoch, start)
        test = splits["test"]
        logits, seen = net.apply(
            {"params": best}, inputs(test), test.graph(), train=False, mutable="intermediates"
        )  # fmt: skip
        return {
            "test": compare(logits, test)[1],
            "validation": measure(best, splits["validation"])[1],
            "epochs": epochs,
            "losses": losses,
            "logits": logits,
            "embeddings": seen["intermediates"]["embeddings"][0],
            "attention": seen["intermediates"]["output"]["attention"][0],
        }

    keys = jax.random.split(jax.random.key(config.seed), config.eval.runs)
    return jax.jit(lambda keys: lax.map(run, keys))(keys)


def load(data: Any, seed: int) -> Problem:
    """The problem that `data.source` names.

    Raises:
      ValueError: another source, or files that cannot be read.
    """
    if data.source == "ppi":
        return inductive({split: read_ppi(data.path, split) for split in ("train", "validation", "test")})
    if data.graphs > 1:
        return several_blocks(data, seed)
    citations = graphs.load(data, seed)
    if data.source == "blocks":
        citations = mislead(citations, data.misleading, seed)
    edges = gat.neighborhood(citations.source, citations.destination, len(citations.labels))
    shared = [x[None] for x in (*edges[:3], jnp.asarray(citations.labels))]
    masks = {k: jnp.asarray(getattr(citations, k))[None] for k in ("train", "validation", "test")}
    features = gcn.SparseFeatures(gcn.row_normalized(citations.features))
    return Problem(
        {k: Split(None, *shared, mask) for k, mask in masks.items()}, int(citations.labels.max()) + 1, features
    )


def mislead(citations: Citations, share: float, seed: int) -> Citations:
    """A share of the nodes swap their words among themselves; ten more words are common in them and rare elsewhere."""
    rng = np.random.default_rng([seed, 1])
    wrong = rng.random(len(citations.labels)) < share
    features = citations.features.copy()
    features[wrong] = features[rng.permutation(np.flatnonzero(wrong))]
    marks = rng.random((len(wrong), 10)) < np.where(wrong, 0.4, 0.03)[:, None]
    return dataclasses.replace(citations, features=np.concatenate([features, marks], 1, dtype=np.float32))


class OneGraph(NamedTuple):
    """N nodes: features [N, F], labels [N, C] of 0 and 1, directed edges [E]."""

    features: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    destination: np.ndarray


def several_blocks(data: Any, seed: int) -> Problem:
    """Block models with the same classes: three fifths of the graphs for training, a fifth to choose.

    A node's features are eight numbers around its class's centre, and a mark. The share `data.misleading` of the nodes
    is marked and has, twice as loud, the centre of another one of them instead. A quarter of this all is given, with
    which attention begins at nearly equal weights.
    """
    nodes, count = data.nodes, data.graphs
    whole = graphs.blocks(nodes * count, data.classes, data.degree_in * count, data.degree_out * count, seed)
    rng = np.random.default_rng([seed, 1])
    wrong = rng.random(len(whole.labels)) < data.misleading
    content = rng.normal(size=(data.classes, 8))[whole.labels]
    content[wrong] = 2 * content[rng.permutation(np.flatnonzero(wrong))]
    features = np.c_[content + 2 * rng.normal(size=content.shape), 4 * wrong] / 4
    made = []
    for i in range(count):
        inside = (whole.source // nodes == i) & (whole.destination // nodes == i)
        part = slice(i * nodes, (i + 1) * nodes)
        labels = np.eye(data.classes)[whole.labels[part]]
        edges = (x[inside] - i * nodes for x in (whole.source, whole.destination))
        made.append(OneGraph(features[part], labels, *edges))
    a, b = count * 3 // 5, count * 4 // 5
    return inductive({"train": made[:a], "validation": made[a:b], "test": made[b:]})


def read_ppi(folder: str, split: str) -> list[OneGraph]:
    """The graphs of a split, from SPLIT_graph.json ("links" of "source" and "target"), _feats, _labels, _graph_id.npy.

    Args:
      folder: with the files.
      split: "train", "validation" (files named valid_...) or "test".

    Raises:
      ValueError: a file that is missing, damaged or does not fit the others.
    """
    stem = pathlib.Path(folder) / {"validation": "valid"}.get(split, split)
    try:
        features, labels, owner = (
            np.load(f"{stem}_{part}.npy", allow_pickle=False) for part in ("feats", "labels", "graph_id")
        )
        links = json.loads(pathlib.Path(f"{stem}_graph.json").read_text())["links"]
        edges = np.array([(link["source"], link["target"]) for link in links], np.int64).reshape(-1, 2)
    except Exception as error:  # a damaged file raises anything
        raise ValueError(f"{stem}_*: not the files of PPI: {error}") from error
    if not len(features) == len(labels) == len(owner) or (
        len(edges) and not 0 <= edges.min() <= edges.max() < len(owner)
    ):
        raise ValueError(
            f"{stem}_*: {len(features)} rows of features, {len(labels)} of labels, {len(owner)} graph numbers, "
            f"edges up to node {edges.max(initial=-1)}: expected one count for all"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"{stem}_feats.npy: row {int(np.argmin(np.isfinite(features).all(1)))} is not finite")
    if (owner[edges[:, 0]] != owner[edges[:, 1]]).any():
        raise ValueError(f"{stem}_graph.json: an edge joins two graphs")
    made = []
    for number in np.unique(owner):
        place = np.cumsum(owner == number) - 1
        inside = edges[owner[edges[:, 0]] == number]
        made.append(OneGraph(features[owner == number], labels[owner == number], *place[inside].T))
    return made


def inductive(parts: dict[str, list[OneGraph]]) -> Problem:
    """Splits of whole graphs, all nodes of which count, padded to the largest."""
    nodes = max(len(g.labels) for graphs in parts.values() for g in graphs)
    edges = {k: [gat.neighborhood(g.source, g.destination, nodes) for g in graphs] for k, graphs in parts.items()}
    longest = max(len(e.source) for graphs in edges.values() for e in graphs)

    def rows(array: np.ndarray) -> np.ndarray:
        return np.pad(np.asarray(array, np.float32), ((0, nodes - len(array)), (0, 0)))

    def split(name: str) -> Split:
        spare = [longest - len(e.source) for e in edges[name]]
        columns = [
            [jnp.pad(x, (0, more), constant_values=fill) for x, more in zip(xs, spare, strict=True)]
            for xs, fill in zip(list(zip(*edges[name], strict=True))[:3], (0, nodes - 1, 0.0), strict=True)
        ]
        found = parts[name]
        return Split(
            jnp.stack([rows(g.features) for g in found]), *(jnp.stack(c) for c in columns),
            jnp.stack([rows(g.labels) for g in found]), jnp.stack([np.arange(nodes) < len(g.labels) for g in found]),
        )  # fmt: skip

    return Problem({name: split(name) for name in parts}, parts["train"][0].labels.shape[1])


def pictures(problem: Problem, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Validation losses; for one label a node also the first run's embeddings and whom its attention goes to."""
    training, axis = new_figure(5, 3)
    axis.plot(found["losses"].T[: int(found["epochs"].max())], alpha=0.6)
    axis.set(xlabel="epoch", ylabel="validation loss")
    if problem.several_labels:
        return {"Training": training}
    split, graph = problem.splits["test"], problem.splits["test"].graph()
    labels, shown = np.asarray(split.labels[0]), np.flatnonzero(np.asarray(split.mask[0]))[:1000]
    places = TSNE(init="pca", random_state=0).fit_transform(found["embeddings"][0][shown])
    nodes, axis = new_figure(5, 4)
    axis.scatter(*places.T, s=8, c=labels[shown], cmap="tab10")
    axis.set(xlabel="t-SNE of the hidden layer, colours are classes", xticks=[], yticks=[])
    source, destination = np.asarray(graph.source), np.asarray(graph.destination)
    relative = found["attention"][0].mean(1) * np.bincount(destination, minlength=graph.num_nodes)[destination]
    edges, axis = new_figure(5, 3)
    kinds = {"same class": labels[source] == labels[destination], "other class": labels[source] != labels[destination]}
    bins = np.linspace(0, max(2.0, float(np.quantile(relative, 0.99))), 50)
    for name, kind in kinds.items():
        axis.hist(relative[kind & (source != destination)], bins, alpha=0.6, density=True, label=name)
    axis.axvline(1, color="black", linewidth=1)
    axis.legend()
    axis.set(xlabel="attention on a neighbour, times the number of them (1: equal weights)", ylabel="density")
    return {"Training": training, "Embeddings": nodes, "Attention": edges}


if __name__ == "__main__":
    app.main(get_config, build)
