"""DA-Net: means over neighbours and density chains refine embeddings, so that a plain clusterer does better.

    python -m experiments.density_aware                       # simulated embeddings; a minute
    python -m experiments.density_aware --config=local        # without chains; components refines nothing
    python -m experiments.density_aware --config=ms1m --config.data.path=DIR     # DIR/features/*.bin, DIR/labels/*.meta
    python -m experiments.density_aware ... --eval_only --config.eval.test=part3_test     # a trained run, others

All presets use the same clusterer: components of neighbours above a cosine. The cosine is a quantile of those with a
neighbour of fixed rank, the one with the best pairwise F on labelled identities kept from training. The paper's
settings and tables are unknown; ms1m has the sizes of the other experiments on these files.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.clustering import density_aware
from facejax.clustering.baselines import neighbour_components
from facejax.data.synthetic import embeddings
from facejax.evaluate.clustering import NeighbourGraph, choose
from facejax.metrics import clustering
from facejax.ops import knn
from facejax.train import Experiment, Mean, Options, Report, TrainState, app, map_batches, share, supervised_step
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(embeddings.Source(labelled=800, width=32, noise=0.7, drift=0.5)),
    "graph": asdict(NeighbourGraph(k=6)),
    "rank": 5,  # the threshold is a quantile of the cosines with neighbours of this rank
    "method": "chains",  # or "local": the graph convolution alone; or "none": the embeddings as they are
    "model": {
        "hidden": 128,  # width of the convolution, and of the LSTM in each direction
        "features": 64,  # of a refined embedding
        "length": 8,  # nodes of a chain, at most
    },
    "optim": {
        "learning_rate": 3e-3,  # AdamW; falls to 0 along a cosine
        "weight_decay": 1e-4,
        "scale": 30.0,  # of the cosines in the loss
    },
    "train": asdict(Options(batch_size=512, steps=300, log_every=20, save_every=100)),  # batch_size: nodes
    "eval": asdict(embeddings.HeldOut(people=200)),
}  # fmt: skip
PRESETS = {
    "synthetic": {},
    "local": {"method": "local"},
    "components": {"method": "none"},
    "ms1m": {
        "data": {"source": "files", "width": 256},
        "graph": {"k": 80, "chunk": 2**20},
        "model": {"hidden": 256, "features": 256},
        "optim": {"learning_rate": 1e-3},
        "train": {"batch_size": 4096, "steps": 20_000, "log_every": 100, "save_every": 1000},
    },
}
CLAIM = (
    Claim(
        "density_aware.refinement",
        "embeddings refined over neighbourhoods and density chains cluster held-out identities better than unrefined "
        "embeddings",
        metric="pairwise_f",
        better="higher",
        method="synthetic",
        baseline=("components",),
    ),
    Claim(
        "density_aware.chains",
        "density chains cluster held-out identities better than the neighbourhood alone",
        metric="pairwise_f",
        better="higher",
        method="synthetic",
        baseline=("local",),
    ),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run. A step trains on nodes of the whole graph, which lies on every device."""
    if config.method not in ("chains", "local", "none"):
        raise ValueError(f"method is {config.method!r}: expected chains, local or none")
    data, model, batch_size = embeddings.Source(**config.data), config.model, config.train.batch_size
    graph = NeighbourGraph(**config.graph)
    net = density_aware.DANet(model.hidden, model.features, config.method == "chains")
    labelled = functools.cache(lambda: embeddings.split(data.known(config.seed), 0.9, config.seed))

    def neighbours(features: np.ndarray) -> knn.Neighbours:
        return dataclasses.replace(graph, k=min(graph.k, len(features))).neighbours(features)

    def inputs(features: np.ndarray) -> dict[str, Any]:
        """Features [N, D], their means over neighbours, and the chains of all nodes."""
        near = neighbours(features)
        nodes, lengths = density_aware.density_chains(near, knn.density(near), model.length)
        return {"features": features, "aggregated": graph.means(near, features), "nodes": nodes, "lengths": lengths}

    def refined(state: TrainState | None, features: np.ndarray) -> np.ndarray:
        """Refined embeddings [N, D']; without a state the given ones."""
        if state is None:
            return features
        given = inputs(features)
        whole = {"params": state.params["net"]}, given["features"], np.asarray(given["aggregated"])
        chains = given["nodes"], given["lengths"]
        size = min(batch_size, len(features))
        return map_batches(lambda whole, chains: net.apply(*whole, *chains), whole, chains, size)

    def evaluate(state: TrainState | None) -> Report:
        tuning, unseen = labelled()[1], data.unseen(config.seed, embeddings.HeldOut(**config.eval))
        tuned, tested = (neighbours(refined(state, people.features)) for people in (tuning, unseen))
        part, figure = choose(tuning.labels, lambda s: cluster(tuned, s, config.rank), np.linspace(0.0, 1.0, 201))
        found = cluster(tested, part, config.rank)
        metrics = clustering.report(unseen.labels, found) | {"share": part, "people": len(np.unique(unseen.labels))}
        figures = {"Share above the threshold, chosen on labelled identities": figure}
        return Report(metrics, figures=figures, arrays={"clusters": found})

    if config.method == "none":
        return Experiment(evaluate)
    schedule = optax.cosine_decay_schedule(config.optim.learning_rate, config.train.steps)
    tx = optax.adamw(schedule, weight_decay=config.optim.weight_decay)

    def init(rng: jax.Array) -> TrainState:
        first, second, _ = jax.random.split(rng, 3)
        learnt = labelled()[0]
        if batch_size > len(learnt.labels):
            raise ValueError(f"train.batch_size is {batch_size}: expected at most the {len(learnt.labels)} nodes")
        one = jnp.zeros((1, learnt.features.shape[1]))
        chain = jnp.zeros((1, model.length), jnp.int32), jnp.ones(1, jnp.int32)
        centres = jax.random.normal(second, (len(np.unique(learnt.labels)), model.features))
        return TrainState.create(rng, {"net": net.init(first, one, one, *chain)["params"], "centres": centres}, tx)

    def resident() -> dict[str, Any]:
        learnt = labelled()[0]
        labels = np.unique(learnt.labels, return_inverse=True)[1]
        return {**inputs(learnt.features), "labels": labels.astype(np.int32)}

    def loss_fn(params: Any, _: Any, batch: dict[str, jax.Array], __: jax.Array) -> Any:
        chosen = batch["chosen"]
        chains = batch["nodes"][chosen], batch["lengths"][chosen]
        found = net.apply({"params": params["net"]}, batch["features"], batch["aggregated"], *chains)
        losses = density_aware.identity_loss(found, params["centres"], batch["labels"][chosen], config.optim.scale)
        return losses.mean(), ({}, {"loss": Mean.of(losses)})

    update = supervised_step(loss_fn, tx)

    def train_step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        shared = jax.random.fold_in(jax.random.split(state.rng, 3)[2], state.step)  # the same draw on all devices
        chosen = jax.random.choice(shared, len(batch["labels"]), (batch_size,), replace=False)
        return update(state, {**batch, "chosen": chosen[share(batch_size)[0]]}, rng)

    return Experiment(evaluate, init, train_step, resident=resident)


def cluster(near: knn.Neighbours, part: float, rank: int) -> np.ndarray:
    """Clusters [N]: components above the cosine that a share `part` of the faces does not reach with neighbour `rank`.

    A cosine transfers poorly between sets of identities: a few wrong edges join large clusters, and their number
    depends on the number of identities. A share transfers better.

    Args:
      near: neighbours of N faces.
      part: 0..1.
      rank: from 1, the nearest; at most the last.
    """
    rank = min(rank, near.ids.shape[1] - 1)
    return neighbour_components(near, float(np.quantile(near.similarity[:, rank], part)))


if __name__ == "__main__":
    app.main(get_config, build)
