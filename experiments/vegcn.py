"""VE-GCN: graph networks learn on labelled people how central a face is and to whom it connects, and cluster others.

    python -m experiments.vegcn                       # simulated embeddings; a minute
    python -m experiments.vegcn --config=gcn_v        # without GCN-E; density and components learn nothing
    python -m experiments.vegcn --config=ms1m --config.data.path=DIR     # DIR/features/*.bin, DIR/labels/*.meta

Published (authors' README, MS1M part 1, pairwise F, BCubed F, NMI): GCN-V 87.14, 85.81, 96.37; GCN-V + GCN-E 87.93,
86.09, 96.41. Cuts are those that give the best pairwise F on labelled people kept from training (tau 0.8 in the paper).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from experiments.clustering_common import choose, neighbour_components, spread
from facejax.clustering import vegcn
from facejax.data.synthetic import embeddings
from facejax.data.synthetic.embeddings import Embeddings
from facejax.metrics import clustering
from facejax.ops import knn, vectors
from facejax.train import Experiment, Report, app, new_figure
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {**embeddings.SETTINGS, "labelled": 700, "width": 32, "noise": 0.7, "drift": 1.5},
    "graph": {"k": 20, "method": "exact", "chunk": 0},
    "confidence": "gcn_v",  # or "density", or "none": components of the neighbours instead of trees
    "connectivity": "gcn_e",  # or "nearest"
    "space": "hidden",  # neighbours of the trees among GCN-V's hidden features, or among the "input"
    "gcn_v": {"hidden": 256, "learning_rate": 0.1, "weight_decay": 1e-5, "steps": 150},
    "gcn_e": {
        "k": 20, "widths": (128, 128, 64, 64), "learning_rate": 0.05, "weight_decay": 1e-5, "steps": 300,
        "batch_size": 64, "ignore_train": 0.0, "ignore_test": 0.0,
    },
}  # fmt: skip
PRESETS = {
    "synthetic": {},
    "gcn_v": {"connectivity": "nearest"},
    "density": {"confidence": "density", "connectivity": "nearest"},
    "components": {"confidence": "none"},
    "ms1m": {
        "data": {"source": "files", "width": 256},
        "graph": {"k": 80, "chunk": 2**20},
        "gcn_v": {"hidden": 512, "steps": 80_000},
        "gcn_e": {
            "k": 160, "widths": (512, 512, 256, 256), "learning_rate": 0.1, "steps": 40 * 5000, "batch_size": 32,
            "ignore_train": 0.7, "ignore_test": 0.8,
        },
    },
}  # fmt: skip
CLAIM = Claim(
    "vegcn.learned_graph",
    "learned confidence and connectivity cluster held-out identities better than thresholded neighbours or plain "
    "density",
    metric="pairwise_f",
    better="higher",
    method="synthetic",
    baseline=("components", "density"),
)


class Scene(NamedTuple):
    """People with their neighbours and the graph of them."""

    people: Embeddings
    near: knn.Neighbours
    graph: Any


class Nets(NamedTuple):
    """Trained variables; None for what the configuration does not learn."""

    vertex: Any
    edge: Any


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: two small trainings, each one scan, then clustering; `evaluate` does the work."""
    if config.confidence not in ("gcn_v", "density", "none") or config.connectivity not in ("gcn_e", "nearest"):
        raise ValueError(
            f"confidence is {config.confidence!r}, connectivity {config.connectivity!r}: expected gcn_v, density or "
            "none, and gcn_e or nearest"
        )

    def evaluate(_: Any) -> Report:
        labelled, unseen = embeddings.load(config.data, config.seed)
        learnt, tuning = embeddings.split(labelled, 0.9, config.seed)
        nets = train(config, scene(config, learnt)) if config.confidence == "gcn_v" else Nets(None, None)
        tuned, tested = (clusterer(config, nets, scene(config, people)) for people in (tuning, unseen))
        tau, figure = choose(tuning.labels, tuned, np.linspace(0.0, 0.98, 50))
        found = tested(tau)
        metrics = clustering.report(unseen.labels, found) | {"tau": tau, "people": len(np.unique(unseen.labels))}
        figures = {"Cut, chosen on labelled people": figure}
        if nets.vertex is not None:
            here = scene(config, unseen)
            target = vegcn.confidence_target(here.near, unseen.labels)
            guess = np.asarray(vertices(config, nets, here)[0])
            metrics["confidence_correlation"] = float(np.corrcoef(target, guess)[0, 1])
            metrics["density_correlation"] = float(np.corrcoef(target, knn.density(here.near))[0, 1])
            figures["Confidence of unseen faces"] = confidence_figure(target, guess, knn.density(here.near))
        return Report(metrics, figures=figures, arrays={"clusters": found})

    return Experiment(evaluate)


def scene(config: ConfigDict, people: Embeddings) -> Scene:
    """Neighbours and graph of some people."""
    near = knn.knn(people.features, config.graph.k, method=config.graph.method)
    return Scene(people, near, spread(knn.affinity(near)))


def vertices(config: ConfigDict, nets: Nets, here: Scene) -> tuple[jax.Array, jax.Array]:
    """GCN-V's confidence [N] and the unit features [N, D] in which trees grow."""
    net = vegcn.GCNV(config.gcn_v.hidden)
    features = jnp.asarray(here.people.features)
    confidence, hidden = net.apply(nets.vertex, features, here.graph, chunk=config.graph.chunk)
    return confidence, jnp.asarray(vectors.unit_rows(np.asarray(hidden))) if config.space == "hidden" else features


def clusterer(config: ConfigDict, nets: Nets, here: Scene) -> Any:
    """Clusters [N] of some people at a cut, all that does not depend on the cut done already."""
    if config.confidence == "none":
        return lambda tau: neighbour_components(here.near, tau)
    if config.confidence == "density":
        tree = vegcn.nearest_peaks(here.near, knn.density(here.near))
        return lambda tau: vegcn.trees_to_labels(tree, tau)
    confidence, hidden = vertices(config, nets, here)
    near = knn.knn(np.asarray(hidden), config.gcn_e.k, method=config.graph.method)
    tree = vegcn.nearest_peaks(near, np.asarray(confidence))
    if config.connectivity == "gcn_e":
        nodes = contested(near, np.asarray(confidence), config.gcn_e.ignore_test)
        ids, similarity, net = jnp.asarray(near.ids), jnp.asarray(near.similarity), vegcn.GCNE(config.gcn_e.widths)

        def same(node: jax.Array) -> jax.Array:
            graphs = vegcn.subgraphs(hidden, ids, similarity, confidence, node[None])
            return jax.nn.log_softmax(net.apply(nets.edge, graphs))[0, :, 1]

        score = jax.jit(lambda nodes: lax.map(same, nodes, batch_size=config.gcn_e.batch_size))(jnp.asarray(nodes))
        tree = vegcn.connected_peaks(near, np.asarray(confidence), np.asarray(score), nodes)
    return lambda tau: vegcn.trees_to_labels(tree, tau)


def contested(near: knn.Neighbours, confidence: np.ndarray, ignored: float) -> np.ndarray:
    """Nodes for GCN-E: two candidates or more, and not among the share of the least confident."""
    several = (confidence[near.ids] > confidence[:, None]).sum(1) > 1
    return np.flatnonzero(several & (confidence >= np.quantile(confidence, ignored)))


def train(config: ConfigDict, here: Scene) -> Nets:
    """Both nets on labelled people."""
    first, second, third = jax.random.split(jax.random.key(config.seed), 3)
    features, target = jnp.asarray(here.people.features), vegcn.confidence_target(here.near, here.people.labels)
    net = vegcn.GCNV(config.gcn_v.hidden)

    def regression(variables: Any, _: jax.Array) -> jax.Array:
        return jnp.mean((net.apply(variables, features, here.graph, chunk=config.graph.chunk)[0] - target) ** 2)

    vertex = descend(config.gcn_v, regression, net.init(first, features, here.graph), second)
    if config.connectivity != "gcn_e":
        return Nets(vertex, None)
    confidence, hidden = vertices(config, Nets(vertex, None), here)
    near = knn.knn(np.asarray(hidden), config.gcn_e.k, method=config.graph.method)
    nodes = jnp.asarray(contested(near, np.asarray(confidence), config.gcn_e.ignore_train))
    ids, similarity, labels = jnp.asarray(near.ids), jnp.asarray(near.similarity), jnp.asarray(here.people.labels)
    edge = vegcn.GCNE(config.gcn_e.widths)

    def graphs(chosen: jax.Array) -> vegcn.Subgraphs:
        return vegcn.subgraphs(hidden, ids, similarity, confidence, chosen)

    def connection(variables: Any, rng: jax.Array) -> jax.Array:
        chosen = jax.random.choice(rng, nodes, (config.gcn_e.batch_size,))
        found, same = graphs(chosen), labels[ids[chosen]] == labels[chosen][:, None]
        return vegcn.connectivity_loss(edge.apply(variables, found), same, found.mask).mean()

    return Nets(vertex, descend(config.gcn_e, connection, edge.init(first, graphs(nodes[:2])), third))


def descend(settings: ConfigDict, objective: Any, variables: Any, rng: jax.Array) -> Any:
    """SGD with momentum; the rate falls tenfold at 50, 80 and 90 % of the steps. One scan."""
    falls = {round(share * settings.steps): 0.1 for share in (0.5, 0.8, 0.9)}
    tx = optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(optax.piecewise_constant_schedule(settings.learning_rate, falls), 0.9),
    )

    def step(state: Any, key: jax.Array) -> tuple[Any, None]:
        variables, opt = state
        updates, opt = tx.update(jax.grad(objective)(variables, key), opt, variables)
        return (optax.apply_updates(variables, updates), opt), None

    keys = jax.random.split(rng, settings.steps)
    return jax.jit(lambda state: lax.scan(step, state, keys))((variables, tx.init(variables)))[0][0]


def confidence_figure(target: np.ndarray, guess: np.ndarray, density: np.ndarray) -> Any:
    """What GCN-V says, and plain density, over the true confidence."""
    figure, axes = new_figure(7, 3.2, 1, 2)
    for axis, values, name in zip(axes, (guess, density), ("GCN-V", "density"), strict=True):
        axis.scatter(target, values, s=4, alpha=0.4)
        axis.set(xlabel="true confidence", ylabel=name)
    return figure


if __name__ == "__main__":
    app.main(get_config, build)
