"""OGMC: clusters of a stream are connected, so that an identity may have several appearances.

    python -m experiments.ogmc                                             # two modes an identity, ten orders, seconds
    python -m experiments.ogmc --config=no_connections                     # the same clusters, each an identity
    python -m experiments.ogmc --config=ms1m_part1 --config.data.path=DIR  # learn-to-cluster's files in DIR

The paper's numbers are unknown here; the thresholds must be tuned for another embedding.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.clustering import ogmc
from facejax.data.synthetic import embeddings
from facejax.metrics import clustering
from facejax.train import Experiment, Report, app, new_figure
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        "source": "modes",  # or "files": path/features/NAME.bin and path/labels/NAME.meta
        "path": "",  # folder of the files
        "name": "part1_test",  # NAME of the files
        "width": 64,  # features per embedding
        "people": 40,  # identities of the modes
        "angle": 45.0,  # degrees between the two appearances of an identity
        "noise": 0.5,  # length of a sample's noise; the modes have length 1
    },
    "rules": {
        "fuse": 0.7,  # distance up to which a sample joins a cluster and clusters are fused
        "strong": 0.99,  # distance up to which two robust clusters are connected
        "weak": 1.12,  # distance up to which a robust cluster and another are connected
        "robust": 5,  # members that make a cluster robust
        "connections": 5,  # that a cluster lists
        "capacity": 512,  # clusters at once
    },
    "eval": {
        "orders": 10,  # of arrival
        "moments": 20,  # points of the figure, of the first order
    },
}
PRESETS = {
    "synthetic": {},
    "no_connections": {"rules.connections": 0},
    "ms1m_part1": {
        "data": {"source": "files", "width": 256},
        "rules.capacity": 65_536,
        "eval": {"orders": 1, "moments": 5},
    },
}
CLAIM = (
    Claim(
        "ogmc.connections",
        "connections between online clusters raise the pairwise F of the identities found",
        metric="pairwise_f",
        better="higher",
        method="synthetic",
        baseline=("no_connections",),
    ),
    Claim(
        "ogmc.order",
        "connections make online clustering depend less on the order of arrival",
        metric="order_agreement",
        better="higher",
        method="synthetic",
        baseline=("no_connections",),
    ),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: a stream is one jitted scan and nothing is trained, so `evaluate` does the work."""
    rules = ogmc.Rules(*(config.rules[name] for name in ogmc.Rules._fields))

    def load() -> tuple[np.ndarray, np.ndarray]:
        """Embeddings [N, D] of length 1 and their identities [N]."""
        data = config.data
        if data.source == "modes":
            return embeddings.modes(data.people, data.angle, data.noise, data.width, config.seed)
        if data.source != "files":
            raise ValueError(f"data.source is {data.source!r}: expected modes or files")
        people = embeddings.read(data.path, data.name, data.width)
        return people.features, people.labels

    def evaluate(_: Any) -> Report:
        features, people = load()
        count, width = features.shape
        sizes = config.rules.capacity, width, count, config.rules.connections
        rng = np.random.default_rng(config.seed)
        orders = [rng.permutation(count) for _ in range(config.eval.orders)]
        found = []
        for order in orders:
            arrived = ogmc.labels(ogmc.observe_all(ogmc.empty(*sizes), jnp.asarray(features[order]), rules))
            found.append(ogmc.Labels(*(x[np.argsort(order)] for x in arrived)))
        reports = [clustering.report(people, labels.identity) for labels in found]
        pairs = itertools.combinations(found, 2)
        agreement = [clustering.pairwise(a.identity, b.identity).f for a, b in pairs]
        means = {name: float(np.mean([r[name] for r in reports])) for name in reports[0]}
        identities = means.pop("clusters")
        figure = history(ogmc.empty(*sizes), rules, features[orders[0]], people[orders[0]], config.eval.moments)
        return Report(
            {
                "pairwise_f": means.pop("pairwise_f"),
                **means,
                "pairwise_f_std_over_orders": float(np.std([r["pairwise_f"] for r in reports])),
                "order_agreement": float(np.mean(agreement)) if agreement else float("nan"),
                "clusters": float(np.mean([len(np.unique(labels.cluster)) for labels in found])),
                "identities": identities,
                "people": float(len(np.unique(people))),
                "samples": float(count),
            },
            figures={"As the samples arrive, first order": figure},
            arrays={"identities": found[0].identity, "people": people},
        )

    return Experiment(evaluate)


def history(state: ogmc.State, rules: ogmc.Rules, features: np.ndarray, people: np.ndarray, moments: int) -> Any:
    """Precision, recall and numbers of clusters and identities after each of `moments` parts of a stream.

    Args:
      state: empty.
      rules: of the clusters.
      features: [N, D] of length 1, in the order of the stream.
      people: [N] identities.
      moments: number of parts.
    """
    seen, scores, numbers = np.linspace(0, len(people), moments + 1).astype(int)[1:], [], []
    for start, stop in zip([0, *seen[:-1]], seen, strict=True):
        state = ogmc.observe_all(state, jnp.asarray(features[start:stop]), rules)
        labels = ogmc.labels(state)
        score = clustering.pairwise(people[:stop], labels.identity)
        scores.append((score.precision, score.recall))
        numbers.append([len(np.unique(x)) for x in (labels.cluster, labels.identity, people[:stop])])
    figure, (left, right) = new_figure(9, 3.2, 1, 2)
    left.plot(seen, scores, label=("pairwise precision", "pairwise recall"))
    left.set(xlabel="samples", ylim=(0, 1.02))
    right.plot(seen, numbers, label=("clusters", "identities found", "identities"))
    right.set(xlabel="samples")
    for axis in (left, right):
        axis.legend(frameon=False)
    return figure


if __name__ == "__main__":
    app.main(get_config, build)
