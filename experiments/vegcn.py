"""VE-GCN: graph networks learn confidence and connectivity on labelled identities and cluster held-out ones.

    python -m experiments.vegcn                       # simulated embeddings; a minute
    python -m experiments.vegcn --config=gcn_v        # without GCN-E; density and components train nothing
    python -m experiments.vegcn --config=ms1m --config.data.path=DIR     # DIR/features/*.bin, DIR/labels/*.meta
    python -m experiments.vegcn ... --eval_only --config.eval.test=part3_test     # a trained run, other identities

One run has three kinds of steps: the first `gcn_v.steps` train GCN-V on the whole graph, the next one finds neighbours
and confidences with it, and all others train GCN-E on batches of sub-graphs.

Published (authors' README, MS1M part 1, pairwise F, BCubed F, NMI): GCN-V 87.14, 85.81, 96.37; GCN-V + GCN-E 87.93,
86.09, 96.41. The cut tau has the best pairwise F on labelled identities kept from training (0.8 in the paper).
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.clustering import vegcn
from facejax.clustering.baselines import neighbour_components
from facejax.data.synthetic import embeddings
from facejax.data.synthetic.embeddings import Embeddings
from facejax.evaluate.clustering import NeighbourGraph, choose, confidence_figure, spread
from facejax.metrics import clustering
from facejax.ops import knn, vectors
from facejax.ops.graph import Graph
from facejax.train import (
    AXIS,
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    optim,
    parallel,
    reduce_gradients,
    share,
)
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(embeddings.Source(labelled=700, width=32, noise=0.7, drift=1.5)),
    "graph": asdict(NeighbourGraph()),
    "confidence": "gcn_v",  # or "density", or "none": components of the neighbours instead of trees
    "connectivity": "gcn_e",  # or "nearest"
    "space": "hidden",  # neighbours of the trees among GCN-V's hidden features, or among the "input"
    "gcn_v": {
        "hidden": 256,  # width of the convolution
        "learning_rate": 0.1,
        "weight_decay": 1e-5,
        "steps": 150,  # updates, each on the whole graph
    },
    "gcn_e": {
        "k": 20,  # neighbours among the features of `space`
        "widths": (128, 128, 64, 64),  # of the convolutions
        "learning_rate": 0.05,
        "weight_decay": 1e-5,
        "ignore_train": 0.0,  # share of the least confident nodes, 0..1, that GCN-E does not train on
        "ignore_test": 0.0,  # the same share when it connects held-out faces
    },
    "train": asdict(Options(batch_size=64, steps=150 + 1 + 300, save_every=100)),  # batch_size: sub-graphs of GCN-E
    "eval": asdict(embeddings.HeldOut()),
}  # fmt: skip
PRESETS = {
    "synthetic": {},
    "gcn_v": {"connectivity": "nearest", "train.steps": 150},
    "density": {"confidence": "density", "connectivity": "nearest"},
    "components": {"confidence": "none"},
    "ms1m": {
        "data": {"source": "files", "width": 256},
        "graph": {"k": 80, "chunk": 2**20},
        "gcn_v": {"hidden": 512, "steps": 80_000},
        "gcn_e": {
            "k": 160, "widths": (512, 512, 256, 256), "learning_rate": 0.1, "ignore_train": 0.7, "ignore_test": 0.8,
        },
        "train": {"batch_size": 32, "steps": 80_000 + 1 + 40 * 5000, "log_every": 100, "save_every": 5000},
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
    """Identities with their neighbours and the graph of them."""

    people: Embeddings
    near: knn.Neighbours
    graph: Graph


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: steps "vertex" train GCN-V, "link" uses it, "edge" train GCN-E."""
    if config.confidence not in ("gcn_v", "density", "none") or config.connectivity not in ("gcn_e", "nearest"):
        raise ValueError(
            f"confidence is {config.confidence!r}, connectivity {config.connectivity!r}: expected gcn_v, density or "
            "none, and gcn_e or nearest"
        )
    data, linked, batch_size = embeddings.Source(**config.data), config.connectivity == "gcn_e", config.train.batch_size
    first_edge, settings, graph = config.gcn_v.steps + 1, config.gcn_e, NeighbourGraph(**config.graph)
    nets = {"vertex": vegcn.GCNV(config.gcn_v.hidden), "edge": vegcn.GCNE(tuple(settings.widths))}
    labelled = functools.cache(lambda: embeddings.split(data.known(config.seed), 0.9, config.seed))

    def scene(people: Embeddings) -> Scene:
        near = graph.neighbours_of(people)
        return Scene(people, near, spread(knn.affinity(near)))

    def evaluate(state: TrainState | None) -> Report:
        unseen = data.unseen(config.seed, embeddings.HeldOut(**config.eval))
        tuning, tested = scene(labelled()[1]), scene(unseen)
        params = None if state is None else parallel.replicate(state.params)
        tau, figure = choose(tuning.people.labels, clusterer(tuning, params), np.linspace(0.0, 0.98, 50))
        found = clusterer(tested, params)(tau)
        metrics = clustering.report(unseen.labels, found) | {"tau": tau, "people": len(np.unique(unseen.labels))}
        figures = {"Cut, chosen on labelled identities": figure}
        if params is not None:
            target, density = vegcn.confidence_target(tested.near, unseen.labels), knn.density(tested.near)
            guess = np.asarray(vertices(tested, params)[0])
            metrics["confidence_correlation"] = float(np.corrcoef(target, guess)[0, 1])
            metrics["density_correlation"] = float(np.corrcoef(target, density)[0, 1])
            figures["Confidence of held-out faces"] = confidence_figure(target, {"GCN-V": guess, "density": density})
        return Report(metrics, figures=figures, arrays={"clusters": found})

    def vertices(here: Scene, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """GCN-V's confidence [N] and the features [N, D] of length 1 in which trees grow."""
        features, variables = jnp.asarray(here.people.features), {"params": params["vertex"]}
        confidence, hidden = nets["vertex"].apply(variables, features, here.graph, chunk=graph.chunk)
        hidden = vectors.unit_rows(np.asarray(hidden)) if config.space == "hidden" else here.people.features
        return np.asarray(confidence), hidden

    def clusterer(here: Scene, params: Any) -> Any:
        """Function tau -> clusters [N]; all that does not depend on tau is computed here."""
        if config.confidence == "none":
            return lambda tau: neighbour_components(here.near, tau)
        if config.confidence == "density":
            tree = vegcn.nearest_peaks(here.near, knn.density(here.near))
            return lambda tau: vegcn.trees_to_labels(tree, tau)
        confidence, hidden = vertices(here, params)
        near = knn.knn(hidden, settings.k, method=graph.method)
        tree = vegcn.nearest_peaks(near, confidence)
        if linked:
            nodes = np.flatnonzero(vegcn.contested(near.ids, confidence, settings.ignore_test))
            variables = {"params": params["edge"]}
            score = vegcn.connection_scores(nets["edge"], variables, hidden, near, confidence, nodes, batch_size)
            tree = vegcn.connected_peaks(near, confidence, score, nodes)
        return lambda tau: vegcn.trees_to_labels(tree, tau)

    if config.confidence != "gcn_v":
        return Experiment(evaluate)
    edge_steps = config.train.steps - first_edge
    if edge_steps < 1 if linked else config.train.steps != config.gcn_v.steps:
        raise ValueError(
            f"train.steps is {config.train.steps}: expected gcn_v.steps, {config.gcn_v.steps}"
            + (", and at least 2 for GCN-E" if linked else "")
        )
    txs = {"vertex": optimizer(config.gcn_v, config.gcn_v.steps)}
    txs |= {"edge": optimizer(settings, edge_steps)} if linked else {}

    def init(rng: jax.Array) -> TrainState:
        first = jax.random.split(rng, 3)[0]
        count, width = labelled()[0].features.shape
        one = jnp.zeros((1, width))
        params = {"vertex": nets["vertex"].init(first, one, one, method="vertices")["params"]}
        links = {}
        if linked:
            width = config.gcn_v.hidden if config.space == "hidden" else width
            k = settings.k
            pair = vegcn.Subgraphs(jnp.zeros((2, k, width)), jnp.zeros((2, k, k)), jnp.ones((2, k), bool))
            params["edge"] = nets["edge"].init(first, pair)["params"]
            links = {
                "features": jnp.zeros((count, width)),
                "ids": jnp.zeros((count, k), jnp.int32),
                "similarity": jnp.zeros((count, k)),
                "confidence": jnp.zeros(count),
                "nodes": jnp.zeros(count, jnp.int32),  # those that GCN-E trains on, `used` of them
                "used": jnp.zeros((), jnp.int32),
            }
        optimizers = {name: tx.init(params[name]) for name, tx in txs.items()}
        return TrainState(jnp.zeros((), jnp.int32), rng, params, optimizers, model_state=links)

    def resident() -> dict[str, Any]:
        learnt = labelled()[0]
        near = graph.neighbours(learnt.features)
        return {
            "features": learnt.features,
            "aggregated": graph.means(near, learnt.features),
            "target": vegcn.confidence_target(near, learnt.labels),
            "labels": learnt.labels.astype(np.int32),
        }

    def update(state: TrainState, name: str, grads: Any) -> TrainState:
        moves, optimizer = txs[name].update(reduce_gradients(grads), state.opt_state[name], state.params[name])
        params = {**state.params, name: optax.apply_updates(state.params[name], moves)}
        return state.replace(step=state.step + 1, params=params, opt_state={**state.opt_state, name: optimizer})

    def vertex(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        count = len(batch["target"])
        own, real = share(count)

        def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
            inputs = batch["features"][own], batch["aggregated"][own]
            confidence, _ = nets["vertex"].apply({"params": params}, *inputs, method="vertices")
            errors = (confidence - batch["target"][own]) ** 2
            return jnp.sum(errors, where=real) * lax.axis_size(AXIS) / count, errors

        grads, errors = jax.grad(loss_fn, has_aux=True)(state.params["vertex"])
        return update(state, "vertex", grads), {"confidence_loss": Mean.of(errors, real)}

    def link(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        inputs = batch["features"], batch["aggregated"]
        confidence, hidden = nets["vertex"].apply({"params": state.params["vertex"]}, *inputs, method="vertices")
        features = vectors.unit(hidden) if config.space == "hidden" else batch["features"]
        ids, similarity = knn.nearest(features, settings.k, exact=graph.method != "approximate")
        contested = vegcn.contested(ids, confidence, settings.ignore_train)
        links = {
            "features": features,
            "ids": ids,
            "similarity": similarity,
            "confidence": confidence,
            "nodes": jnp.flatnonzero(contested, size=len(confidence), fill_value=0).astype(jnp.int32),
            "used": contested.sum(dtype=jnp.int32),
        }
        return state.replace(step=state.step + 1, model_state=links), {}

    def edge(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        links, labels = state.model_state, batch["labels"]
        shared = jax.random.fold_in(jax.random.split(state.rng, 3)[2], state.step - first_edge)  # on all devices
        nodes = links["nodes"][jax.random.randint(shared, (batch_size,), 0, links["used"])][share(batch_size)[0]]
        scene = (links[name] for name in ("features", "ids", "similarity", "confidence"))
        found, same = vegcn.subgraphs(*scene, nodes), labels[links["ids"][nodes]] == labels[nodes][:, None]

        def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
            losses = vegcn.connectivity_loss(nets["edge"].apply({"params": params}, found), same, found.mask)
            return losses.mean(), losses

        grads, losses = jax.grad(loss_fn, has_aux=True)(state.params["edge"])
        return update(state, "edge", grads), {"connectivity_loss": Mean.of(losses)}

    def choose_step(number: int) -> str:
        return "vertex" if number < first_edge else "link" if number == first_edge else "edge"

    steps = {"vertex": vertex, "link": link, "edge": edge} if linked else {"vertex": vertex}
    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=steps,
        batch={name: {} for name in steps},
        choose=choose_step,
        resident=resident,
    )


def optimizer(settings: ConfigDict, steps: int) -> optax.GradientTransformation:
    """SGD with momentum; the rate falls tenfold at 50, 80 and 90 % of the steps."""
    rate = optim.falling(settings.learning_rate, [round(part * steps) for part in (0.5, 0.8, 0.9)], 0.1)
    return optax.chain(optax.add_decayed_weights(settings.weight_decay), optax.sgd(rate, 0.9))


if __name__ == "__main__":
    app.main(get_config, build)
