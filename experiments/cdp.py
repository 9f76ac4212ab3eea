"""CDP: nets that agree on pairs, and labels that spread along them, cluster people nobody has labelled.

    python -m experiments.cdp                                   # simulated embeddings of four nets, seconds
    python -m experiments.cdp --config=vote                     # or single, components, mediator
    python -m experiments.cdp --config=emore_u200k --config.data.path=DIR --config.data.test=base,net1,net2,net3,net4

Published (authors' README, emore_u200k, pairwise F): single 89.16, vote of five nets 92.91, mediator 95.79. The
thresholds are those that give the best pairwise F on the labelled people.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from experiments.clustering_common import choose
from facejax.clustering import cdp
from facejax.data.synthetic import embeddings
from facejax.data.synthetic.embeddings import Embeddings
from facejax.metrics import clustering
from facejax.ops import knn
from facejax.train import Experiment, Report, app
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {**embeddings.SETTINGS, "views": 4},
    "graph": {"k": 15, "method": "exact"},
    "pairs": {"kind": "mediator", "accept": 3, "max_size": 40, "step": 0.05},  # kind: mediator or vote
    "mediator": {"learning_rate": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 1024, "steps": 2000},
}
PRESETS = {
    "synthetic": {},
    "vote": {"pairs.kind": "vote"},
    "single": {"pairs.kind": "vote", "pairs.accept": 0},
    "components": {"pairs.kind": "vote", "pairs.accept": 0, "pairs.max_size": 10**9},
    "emore_u200k": {"data.source": "files", "pairs.max_size": 600, "pairs.accept": 4},
}
CLAIM = Claim(
    "cdp.mediator",
    "a mediator over a committee of networks clusters held-out identities better than thresholded neighbours of one "
    "network",
    metric="pairwise_f",
    better="higher",
    method="synthetic",
    baseline=("single", "components"),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: nothing but the small mediator is trained, so `evaluate` does the work."""
    if config.pairs.kind not in ("mediator", "vote"):
        raise ValueError(f"pairs.kind is {config.pairs.kind!r}: expected mediator or vote")

    def evaluate(_: Any) -> Report:
        labelled, people = embeddings.load(config.data, config.seed)
        mediator = None
        if config.pairs.kind == "mediator":
            mediator = train_mediator(config, labelled)
        scored = candidates(config, labelled, mediator)
        thresholds = np.quantile(scored.score, np.linspace(0.02, 0.98, 49))
        best, figure = choose(labelled.labels, lambda t: labels(config, scored, labelled, t), thresholds)
        found = labels(config, candidates(config, people, mediator), people, best)
        return Report(
            {
                **clustering.report(people.labels, found),
                "discarded": float((found < 0).mean()),
                "threshold": best,
                "people": float(people.labels.max() + 1),
            },
            figures={"Threshold, chosen on labelled people": figure},
            arrays={"clusters": found},
        )

    return Experiment(evaluate)


def candidates(config: ConfigDict, people: Embeddings, mediator: Any) -> cdp.Pairs:
    """All pairs that may be kept, scored by the mediator or by the base net's cosine."""
    near = [knn.knn(view, config.graph.k, method=config.graph.method) for view in people.views]
    if mediator is None:
        return cdp.vote(near[0], near[1:], -1.0, config.pairs.accept)
    pairs = cdp.undirected(cdp.candidates(near[0]))
    logits = cdp.Mediator().apply(mediator, cdp.mediator_features(people.views, near, pairs))
    return pairs._replace(score=np.asarray(jax.nn.softmax(logits)[:, 1]))


def labels(config: ConfigDict, pairs: cdp.Pairs, people: Embeddings, threshold: float) -> np.ndarray:
    """Clusters [N] of the pairs that score above the threshold; -1 for items without any."""
    kept = cdp.Pairs(*(x[pairs.score > threshold] for x in pairs))
    return cdp.propagate(kept, len(people.labels), max_size=config.pairs.max_size, step=config.pairs.step)


def train_mediator(config: ConfigDict, people: Embeddings) -> Any:
    """The mediator's parameters after training on the labelled people's pairs: the whole run is one scan."""
    near = [knn.knn(view, config.graph.k, method=config.graph.method) for view in people.views]
    pairs = cdp.undirected(cdp.candidates(near[0]))
    features = jnp.asarray(cdp.mediator_features(people.views, near, pairs))
    same = jnp.asarray(people.labels[pairs.a] == people.labels[pairs.b], jnp.int32)
    net, settings = cdp.Mediator(), config.mediator
    tx = optax.chain(
        optax.add_decayed_weights(settings.weight_decay), optax.sgd(settings.learning_rate, settings.momentum)
    )

    def step(state: Any, rng: jax.Array) -> tuple[Any, jax.Array]:
        variables, opt = state
        index = jax.random.randint(rng, (settings.batch_size,), 0, len(same))

        def objective(variables: Any) -> jax.Array:
            logits = net.apply(variables, features[index])
            return optax.softmax_cross_entropy_with_integer_labels(logits, same[index]).mean()

        loss, gradient = jax.value_and_grad(objective)(variables)
        updates, opt = tx.update(gradient, opt, variables)
        return (optax.apply_updates(variables, updates), opt), loss

    first, second = jax.random.split(jax.random.key(config.seed))
    variables = net.init(first, features[:1])
    keys = jax.random.split(second, settings.steps)
    return jax.jit(lambda state: lax.scan(step, state, keys))((variables, tx.init(variables)))[0][0]


if __name__ == "__main__":
    app.main(get_config, build)
