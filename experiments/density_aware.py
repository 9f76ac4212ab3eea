"""DA-Net: neighbours and chains of ever denser faces give embeddings that a plain clusterer does better with.

    python -m experiments.density_aware                       # simulated embeddings; a minute
    python -m experiments.density_aware --config=local        # without chains; components refines nothing
    python -m experiments.density_aware --config=ms1m --config.data.path=DIR     # DIR/features/*.bin, DIR/labels/*.meta

The clusterer is the same with every preset: components of neighbours above a cosine. Which one is said as a quantile,
the one with the best pairwise F on labelled people kept from training. The paper's settings and tables are not known
here; ms1m carries the sizes of the other experiments on these files.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from experiments.clustering_common import choose, neighbour_components, spread
from facejax.clustering import density_aware
from facejax.data.synthetic import embeddings
from facejax.data.synthetic.embeddings import Embeddings
from facejax.metrics import clustering
from facejax.ops import knn
from facejax.ops.graph import propagate
from facejax.train import Experiment, Report, app, new_figure
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {**embeddings.SETTINGS, "labelled": 800, "people": 200, "width": 32, "noise": 0.7, "drift": 0.5},
    "graph": {"k": 6, "method": "exact", "chunk": 0},
    "rank": 5,  # the threshold is a quantile of the cosines with neighbours of this rank
    "method": "chains",  # or "local": the graph convolution alone; or "none": the embeddings as they are
    "model": {"hidden": 128, "features": 64, "length": 8},
    "optim": {"learning_rate": 3e-3, "weight_decay": 1e-4, "scale": 30.0, "batch_size": 512, "steps": 300},
}
PRESETS = {
    "synthetic": {},
    "local": {"method": "local"},
    "components": {"method": "none"},
    "ms1m": {
        "data": {"source": "files", "width": 256},
        "graph": {"k": 80, "chunk": 2**20},
        "model": {"hidden": 256, "features": 256},
        "optim": {"learning_rate": 1e-3, "batch_size": 4096, "steps": 20_000},
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
    """Wires the run: one training in one scan, then clustering; `evaluate` does the work."""
    if config.method not in ("chains", "local", "none"):
        raise ValueError(f"method is {config.method!r}: expected chains, local or none")

    def evaluate(_: Any) -> Report:
        labelled, unseen = embeddings.load(config.data, config.seed)
        learnt, tuning = embeddings.split(labelled, 0.9, config.seed)
        net = density_aware.DANet(config.model.hidden, config.model.features, config.method == "chains")
        figures, variables = {}, None
        if config.method != "none":
            variables, losses = train(config, net, learnt)
            figures["Training"] = loss_figure(losses)
        tuned, tested = (neighbours(config, refined(config, net, variables, people)) for people in (tuning, unseen))
        share, figures["Share above the threshold, chosen on labelled people"] = choose(
            tuning.labels, lambda s: cluster(tuned, s, config.rank), np.linspace(0.0, 1.0, 201)
        )
        found = cluster(tested, share, config.rank)
        metrics = clustering.report(unseen.labels, found) | {"share": share}
        return Report(metrics | {"people": len(np.unique(unseen.labels))}, figures=figures, arrays={"clusters": found})

    return Experiment(evaluate)


def neighbours(config: ConfigDict, features: np.ndarray) -> knn.Neighbours:
    """Neighbours of all faces, [N, D] -> [N, k]; fewer where there are fewer faces."""
    return knn.knn(features, min(config.graph.k, len(features)), method=config.graph.method)


def cluster(near: knn.Neighbours, share: float, rank: int) -> np.ndarray:
    """Clusters [N]: components of neighbours nearer than what leaves a share of the faces less than `rank` of them.

    The cosine itself transfers badly from some people to others: a few wrong edges join large clusters, and how many
    there are depends on how many people there are. How many neighbours a face should have depends on it less.
    """
    rank = min(rank, near.ids.shape[1] - 1)
    return neighbour_components(near, float(np.quantile(near.similarity[:, rank], share)))


def inputs(config: ConfigDict, people: Embeddings) -> tuple[Any, ...]:
    """Features [N, D], their means over neighbours, and the chains of all nodes."""
    near = neighbours(config, people.features)
    chains = density_aware.density_chains(near, knn.density(near), config.model.length)
    features = jnp.asarray(people.features)
    aggregated = propagate(spread(knn.affinity(near)), features, chunk=config.graph.chunk)
    return features, aggregated, *map(jnp.asarray, chains)


def train(config: ConfigDict, net: density_aware.DANet, people: Embeddings) -> tuple[Any, np.ndarray]:
    """Variables of the net, and the losses of all steps: it tells labelled people apart, batches of nodes at a time."""
    optim = config.optim
    features, aggregated, nodes, lengths = inputs(config, people)
    names, labels = np.unique(people.labels, return_inverse=True)
    labels, size = jnp.asarray(labels), min(optim.batch_size, len(labels))
    schedule = optax.cosine_decay_schedule(optim.learning_rate, optim.steps)
    tx = optax.adamw(schedule, weight_decay=optim.weight_decay)
    first, second, third = jax.random.split(jax.random.key(config.seed), 3)
    params = {
        "net": net.init(first, features, aggregated, nodes[:1], lengths[:1])["params"],
        "centres": jax.random.normal(second, (len(names), config.model.features)),
    }

    def objective(params: Any, chosen: jax.Array) -> jax.Array:
        found = net.apply({"params": params["net"]}, features, aggregated, nodes[chosen], lengths[chosen])
        return density_aware.identity_loss(found, params["centres"], labels[chosen], optim.scale).mean()

    def step(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, opt = state
        loss, grads = jax.value_and_grad(objective)(params, jax.random.choice(key, len(labels), (size,), replace=False))
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), loss

    keys = jax.random.split(third, optim.steps)
    (params, _), losses = jax.jit(lambda state: lax.scan(step, state, keys))((params, tx.init(params)))
    return {"params": params["net"]}, np.asarray(losses)


def refined(config: ConfigDict, net: density_aware.DANet, variables: Any, people: Embeddings) -> np.ndarray:
    """Refined embeddings [N, D'] of some people; the given ones where there are no variables."""
    if variables is None:
        return people.features
    features, aggregated, nodes, lengths = inputs(config, people)

    def refine(chain: tuple[jax.Array, jax.Array]) -> jax.Array:
        return net.apply(variables, features, aggregated, *chain)

    size = min(config.optim.batch_size, len(nodes))
    places = np.minimum(np.arange(-(-len(nodes) // size) * size), len(nodes) - 1).reshape(-1, size)
    found = np.asarray(jax.jit(lambda chains: lax.map(refine, chains))((nodes[places], lengths[places])))
    return found.reshape(-1, found.shape[-1])[: len(nodes)]


def loss_figure(losses: np.ndarray) -> Any:
    """Loss over steps."""
    figure, axis = new_figure(5, 3)
    axis.plot(losses)
    axis.set(xlabel="step", ylabel="training loss")
    return figure


if __name__ == "__main__":
    app.main(get_config, build)
