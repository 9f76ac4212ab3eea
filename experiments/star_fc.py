"""STAR-FC: an edge classifier trained on sampled sub-graphs, then the whole graph at once, pruned by intimacy.

    python -m experiments.star_fc                     # simulated embeddings; half a minute
    python -m experiments.star_fc --config=edges      # without intimacy; components learns nothing
    python -m experiments.star_fc --config=ms1m --config.data.path=DIR     # DIR/features/*.bin, DIR/labels/*.meta

Published (authors' README, MS1M part 1): pairwise F 91.97. The threshold of P(same) is the one with the best pairwise F
on labelled people kept from training (0.7 in the paper); the one of intimacy is the configuration's.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments.clustering_common import choose, neighbour_components, spread
from facejax.clustering import star_fc
from facejax.data import pipeline
from facejax.data.synthetic import embeddings
from facejax.data.synthetic.embeddings import Embeddings
from facejax.metrics import clustering
from facejax.ops import knn, vectors
from facejax.ops.graph import Graph
from facejax.train import Experiment, Mean, Report, TrainState, app, optim, parallel, supervised_step
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {**embeddings.SETTINGS, "labelled": 2000, "people": 500, "width": 32, "noise": 0.7, "drift": 1.5},
    "graph": {"k": 20, "method": "exact", "chunk": 0},
    "method": "star_fc",  # or "components" of the neighbours
    "intimacy": 0.72,  # below 0 for edges alone
    "model": {"hidden": 256},
    "sample": {"nodes": 1024, "edges": 4096, "nearest": 120, "people": 100, "threads": 1},
    "optim": {
        "name": "adam", "weight_decay": 1e-5, "clip": 0.0,
        "schedule": {"kind": "step", "peak": 3e-3, "boundaries": (300,)},
    },
    "train": {
        "batch_size": 1, "steps": 400, "log_every": 50, "eval_every": 0, "save_every": 100, "save_seconds": 60.0,
        "keep": 2, "parallel": "shard_map", "devices": 0,
    },
}  # fmt: skip
PRESETS = {
    "synthetic": {},
    "edges": {"intimacy": -1.0},
    "components": {"method": "components", "train.steps": 0},
    "ms1m": {
        "data": {"source": "files", "width": 256},
        "graph": {"k": 80, "chunk": 2**20},
        "model": {"hidden": 512},
        "sample": {"nodes": 65_536, "edges": 262_144, "nearest": 1500, "people": 1300, "threads": 2},
        "optim": {"name": "sgd", "schedule": {"peak": 0.01, "boundaries": (17_146_000, 27_433_600, 30_862_800)}},
        "train": {"steps": 80 * 50 * 8573, "log_every": 100, "save_every": 5000},
    },
}
CLAIM = Claim(
    "star_fc.edges",
    "edges scored by a graph network and pruned by intimacy cluster held-out identities better than thresholded "
    "neighbours, and than unpruned edges",
    metric="pairwise_f",
    better="higher",
    method="synthetic",
    baseline=("components", "edges"),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run. A batch holds one sub-graph for every device, built on the host while the device works."""
    if config.method not in ("star_fc", "components"):
        raise ValueError(f"method is {config.method!r}: expected star_fc or components")
    net = star_fc.EdgeNet(config.model.hidden)
    sizes, width, k = config.sample, config.data.width, config.graph.k
    arcs = sizes.nodes * (2 * k - 1)

    def evaluate(state: TrainState) -> Report:
        _, tuning, unseen = people(config)
        tuned, tested = (clusterer(config, net, state, part) for part in (tuning, unseen))
        score, figure = choose(tuning.labels, tuned, np.linspace(0.02, 0.98, 49))
        found = tested(score)
        metrics = clustering.report(unseen.labels, found) | {"score": score, "people": len(np.unique(unseen.labels))}
        return Report(metrics, figures={"Threshold, chosen on labelled people": figure}, arrays={"clusters": found})

    if config.method == "components":
        return Experiment(evaluate)
    tx = optim.from_config(config.optim, config.train.steps)

    def init(rng: jax.Array) -> TrainState:
        one, none = jnp.zeros(1, jnp.int32), jnp.zeros((1, width))
        params = net.init(rng, none, Graph(one, one, jnp.ones(1), 1), one, one)["params"]
        return TrainState.create(rng, params, tx)

    def loss_fn(params: Any, _: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        def one(part: dict[str, jax.Array]) -> jax.Array:
            graph = Graph(part["source"], part["destination"], part["weight"], sizes.nodes)
            logits = net.apply({"params": params}, part["features"], graph, part["first"], part["second"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, part["same"]).mean()

        losses = jax.vmap(one)(batch)
        return losses.mean(), ({}, {"loss": Mean.of(losses)})

    def train_data() -> Any:
        learnt = people(config)[0]
        return pipeline.train_batches(
            range(len(np.unique(learnt.labels))),
            sampler(config, learnt, arcs),
            config.train.batch_size,
            seed=config.seed,
            threads=sizes.threads,
        )

    shapes = {"features": (sizes.nodes, width), "source": (arcs,), "destination": (arcs,), "weight": (arcs,)}
    shapes |= dict.fromkeys(("first", "second", "same"), (sizes.edges,))
    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_fn, tx),
        train_data=train_data,
        batch={
            name: jax.ShapeDtypeStruct(
                (config.train.batch_size, *shape), jnp.float32 if name in ("features", "weight") else jnp.int32
            )
            for name, shape in shapes.items()
        },
    )


def people(config: ConfigDict) -> tuple[Embeddings, Embeddings, Embeddings]:
    """People to learn from, labelled people for the threshold, and people to cluster."""
    labelled, unseen = embeddings.load(config.data, config.seed)
    return *embeddings.split(labelled, 0.8, config.seed), unseen


def sampler(config: ConfigDict, learnt: Embeddings, arcs: int) -> pipeline.Load:
    """Makes a sub-graph of static size: sampled people, some of their faces, neighbours among these, some edges."""
    names, labels = np.unique(learnt.labels, return_inverse=True)
    centres = vectors.unit_rows(np.stack([learnt.features[labels == c].mean(0) for c in range(len(names))]))
    sizes = config.sample
    if len(labels) < sizes.nodes:
        raise ValueError(f"sample.nodes is {sizes.nodes}: expected at most {len(labels)}, the labelled faces")

    def one(rng: np.random.Generator) -> dict[str, np.ndarray]:
        faces, seeds = np.zeros(0, int), 1
        while len(faces) < sizes.nodes:
            chosen = star_fc.sample_people(centres, rng, nearest=sizes.nearest, chosen=sizes.people, seeds=seeds)
            faces, seeds = np.flatnonzero(np.isin(labels, chosen)), seeds + 1
        faces = rng.choice(faces, sizes.nodes, replace=False)
        features = learnt.features[faces]
        graph = knn.affinity(knn.knn(features, config.graph.k, method=config.graph.method))
        source, destination, weight = (np.asarray(x) for x in graph.edges)
        edge = rng.integers(len(source), size=sizes.edges)
        first, second = destination[edge], source[edge]
        spare = (0, arcs - len(source))
        return {
            "features": features,
            "source": np.pad(source, spare),
            "destination": np.pad(destination, spare, constant_values=sizes.nodes - 1),
            "weight": np.pad(weight, spare),
            "first": first,
            "second": second,
            "same": (labels[faces[first]] == labels[faces[second]]).astype(np.int32),
        }

    def load(_: Any, rngs: Any) -> dict[str, np.ndarray]:
        made = [one(rng) for rng in rngs]
        return {name: np.stack([part[name] for part in made]) for name in made[0]}

    return load


def clusterer(config: ConfigDict, net: star_fc.EdgeNet, state: TrainState, here: Embeddings) -> Any:
    """Clusters [N] of some people at a threshold; all that does not depend on it is done already."""
    near = knn.knn(here.features, config.graph.k, method=config.graph.method)
    if config.method == "components":
        return lambda threshold: neighbour_components(near, threshold)
    variables = parallel.replicate({"params": state.params})
    graph = spread(knn.affinity(near))
    ends = net.apply(variables, jnp.asarray(here.features), graph, chunk=config.graph.chunk, method=net.ends)
    edges = star_fc.directed_edges(near)
    probability = np.asarray(star_fc.edge_probabilities(net, variables, ends, edges, chunk=2**14))
    shared = config.intimacy
    return lambda score: star_fc.cluster(edges, probability, len(here.labels), score=score, shared=shared)


if __name__ == "__main__":
    app.main(get_config, build)
