"""STAR-FC: an edge classifier trained on sampled sub-graphs scores the whole graph at once; intimacy prunes it.

    python -m experiments.star_fc                     # simulated embeddings; half a minute
    python -m experiments.star_fc --config=edges      # without intimacy; components trains nothing
    python -m experiments.star_fc --config=ms1m --config.data.path=DIR     # DIR/features/*.bin, DIR/labels/*.meta
    python -m experiments.star_fc ... --eval_only --config.eval.test=part3_test     # a trained run, other identities
    python -m experiments.star_fc --config=files --config.data.path=DIR --config.data.train=A --config.eval.test=B \
        --save_arrays=OUT       # your features; without DIR/labels/B.meta no scores, the clusters in OUT/clusters.txt

Published (authors' README, MS1M part 1): pairwise F 91.97. The threshold of P(same) has the best pairwise F on labelled
identities kept from training (0.7 in the paper); that of the intimacy is a setting.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.clustering import star_fc
from facejax.clustering.baselines import neighbour_components
from facejax.data import pipeline
from facejax.data.synthetic import embeddings
from facejax.data.synthetic.embeddings import Embeddings
from facejax.evaluate.clustering import NeighbourGraph, choose, spread
from facejax.evaluate.verification import census
from facejax.metrics import clustering
from facejax.ops import knn
from facejax.ops.graph import Graph
from facejax.train import Experiment, Mean, Options, Report, TrainState, app, optim, parallel, supervised_step
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(embeddings.Source(labelled=2000, width=32, noise=0.7, drift=1.5)),
    "graph": asdict(NeighbourGraph()),
    "method": "star_fc",  # or "components" of the neighbours
    "intimacy": 0.72,  # below 0 for edges alone
    "model": {"hidden": 256},  # width of the convolution and of the head
    "sample": {
        "nodes": 1024,  # faces of a sub-graph
        "edges": 4096,  # of a sub-graph, that are classified
        "nearest": 120,  # identities around a random one
        "people": 100,  # of these, that are sampled
        "threads": 1,  # sub-graphs built at once
    },
    "optim": {
        "name": "adam", "weight_decay": 1e-5, "clip": 0.0,
        "schedule": {"kind": "step", "peak": 3e-3, "boundaries": (300,)},
    },
    "train": asdict(Options(batch_size=1, steps=400, save_every=100)),  # batch_size: sub-graphs
    "eval": asdict(embeddings.HeldOut(people=500)),
}  # fmt: skip
PRESETS = {
    "synthetic": {},
    "edges": {"intimacy": -1.0},
    "components": {"method": "components", "train.steps": 0},
    "files": {"data": {"source": "files", "width": 512}},  # DIR/features/NAME.bin, DIR/labels/NAME.meta
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
    data, graph, sizes = embeddings.Source(**config.data), NeighbourGraph(**config.graph), config.sample
    net, arcs = star_fc.EdgeNet(config.model.hidden), sizes.nodes * (2 * graph.k - 1)
    labelled = functools.cache(lambda: embeddings.split(data.known(config.seed), 0.8, config.seed))

    def clusterer(here: Embeddings, state: TrainState | None) -> Any:
        """Function threshold -> clusters [N]; all that does not depend on the threshold is computed here."""
        near = graph.neighbours_of(here)
        if state is None:
            return lambda threshold: neighbour_components(near, threshold)
        variables, whole = parallel.replicate({"params": state.params}), spread(knn.affinity(near))
        ends = net.apply(variables, jnp.asarray(here.features), whole, chunk=graph.chunk, method=net.ends)
        edges = star_fc.directed_edges(near)
        probability = np.asarray(star_fc.edge_probabilities(net, variables, ends, edges, chunk=2**14))
        count, shared = len(here.features), config.intimacy
        return lambda score: star_fc.cluster(edges, probability, count, score=score, shared=shared)

    def evaluate(state: TrainState | None) -> Report:
        tuning = labelled()[1]
        unseen = data.unseen(config.seed, embeddings.HeldOut(**config.eval), unlabelled=True)
        score, figure = choose(tuning.labels, clusterer(tuning, state), np.linspace(0.02, 0.98, 49))
        found = clusterer(unseen, state)(score)
        figures, arrays = {"Threshold, chosen on labelled identities": figure}, {"clusters": np.asarray(found)}
        if unseen.labels is None:
            counts = {"clusters": len(np.unique(found)), "images": len(found), "score": score}
            return Report(counts, figures=figures, arrays=arrays)
        metrics = clustering.report(unseen.labels, found) | {"score": score, "people": len(np.unique(unseen.labels))}
        return Report(metrics, {"Held-out images": [census(unseen.labels)]}, figures, arrays=arrays)

    if config.method == "components":
        return Experiment(evaluate)
    tx, width = optim.from_config(config.optim, config.train.steps), data.columns()

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
        learnt = labelled()[0]
        draw = star_fc.subgraph_sampler(
            learnt.features, learnt.labels, nodes=sizes.nodes, edges=sizes.edges, nearest=sizes.nearest,
            people=sizes.people, k=graph.k, method=graph.method,
        )  # fmt: skip

        def load(_: Any, rngs: Any) -> dict[str, np.ndarray]:
            drawn = [draw(rng) for rng in rngs]
            return {name: np.stack([part[name] for part in drawn]) for name in drawn[0]}

        identities = range(len(np.unique(learnt.labels)))
        batch, threads = config.train.batch_size, sizes.threads
        return pipeline.train_batches(identities, load, batch, seed=config.seed, threads=threads)

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


if __name__ == "__main__":
    app.main(get_config, build)
