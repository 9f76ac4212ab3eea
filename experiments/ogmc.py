"""OGMC: clusters found online are connected, so that one person may look several ways.

    python -m experiments.ogmc                                             # two modes a person, ten orders, seconds
    python -m experiments.ogmc --config=no_connections                     # the same clusters, each a person
    python -m experiments.ogmc --config=ms1m_part1 --config.data.path=DIR  # learn-to-cluster's files in DIR

The paper's numbers are not known here; thresholds belong to an embedding and are to be tuned for another.
"""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.clustering import ogmc
from facejax.data.readers import learn_to_cluster
from facejax.metrics import clustering
from facejax.ops.vectors import unit_rows
from facejax.train import Experiment, Report, app, new_figure
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        "source": "modes",  # or "files": path/features/NAME.bin and path/labels/NAME.meta
        "path": "",
        "name": "part1_test",
        "width": 64,
        "people": 40,
        "angle": 45.0,  # degrees between the two ways in which a person looks
        "noise": 0.5,
    },
    "rules": {
        "fuse": 0.7,
        "strong": 0.99,
        "weak": 1.12,
        "robust": 5,
        "connections": 5,
        "capacity": 512,
    },
    "eval": {"orders": 10, "moments": 20},  # orders of arrival; moments of the first one that are looked at
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
    """Wires the run: a stream is one jitted scan, nothing is trained, so `evaluate` does the work."""
    settings = config.rules
    rules = ogmc.Rules(settings.fuse, settings.strong, settings.weak, settings.robust)

    def evaluate(_: Any) -> Report:
        features, people = load(config.data, config.seed)
        count = len(people)
        rng = np.random.default_rng(config.seed)
        orders = [rng.permutation(count) for _ in range(config.eval.orders)]
        found = []
        for order in orders:
            state = ogmc.empty(settings.capacity, features.shape[1], count, settings.connections)
            arrived = ogmc.labels(ogmc.observe_all(state, jnp.asarray(features[order]), rules))
            found.append(ogmc.Labels(*(x[np.argsort(order)] for x in arrived)))
        reports = [clustering.report(people, labels.identity) for labels in found]
        pairs = itertools.combinations(found, 2)
        agreement = [clustering.pairwise(a.identity, b.identity).f for a, b in pairs]
        means = {name: float(np.mean([r[name] for r in reports])) for name in reports[0]}
        identities = means.pop("clusters")
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
            figures={"As the samples arrive, first order": history(config, features[orders[0]], people[orders[0]])},
            arrays={"identities": found[0].identity, "people": people},
        )

    return Experiment(evaluate)


def load(data: ConfigDict, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [N, D] of length 1 and their people [N]."""
    if data.source == "modes":
        return modes(data.people, data.angle, data.noise, data.width, seed)
    if data.source != "files":
        raise ValueError(f"data.source is {data.source!r}: expected modes or files")
    folder = pathlib.Path(data.path)
    features = learn_to_cluster.read_features(folder / "features" / f"{data.name}.bin", data.width)
    return unit_rows(features), learn_to_cluster.read_labels(folder / "labels" / f"{data.name}.meta", len(features))


def modes(people: int, angle: float, noise: float, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """People who look two ways: 8 to 20 samples [N, width] around each of two directions, `angle` degrees apart.

    Args:
      people: how many, in directions at random.
      angle: degrees.
      noise: length of a sample's noise beside its unit direction.
      width: D.
      seed: of everything.
    """
    rng = np.random.default_rng(seed)
    first = unit_rows(rng.normal(size=(people, width)), np.float32)
    across = rng.normal(size=(people, width))
    across = unit_rows(across - np.sum(across * first, 1, keepdims=True) * first, np.float32)
    second = np.cos(np.radians(angle)) * first + np.sin(np.radians(angle)) * across
    centres = np.stack([first, second], 1).reshape(-1, width)
    mode = np.repeat(np.arange(2 * people), rng.integers(8, 21, 2 * people))
    features = centres[mode] + noise * rng.normal(size=(len(mode), width)) / np.sqrt(width)
    return unit_rows(features, np.float32), mode // 2


def history(config: ConfigDict, features: np.ndarray, people: np.ndarray) -> Any:
    """Precision, recall and numbers of clusters, people found and true people, after each part of a stream."""
    settings = config.rules
    rules = ogmc.Rules(settings.fuse, settings.strong, settings.weak, settings.robust)
    state = ogmc.empty(settings.capacity, features.shape[1], len(people), settings.connections)
    seen, scores, numbers = np.linspace(0, len(people), config.eval.moments + 1).astype(int)[1:], [], []
    for start, stop in zip([0, *seen[:-1]], seen, strict=True):
        state = ogmc.observe_all(state, jnp.asarray(features[start:stop]), rules)
        labels = ogmc.labels(state)
        score = clustering.pairwise(people[:stop], labels.identity)
        scores.append((score.precision, score.recall))
        numbers.append([len(np.unique(x)) for x in (labels.cluster, labels.identity, people[:stop])])
    figure, (left, right) = new_figure(9, 3.2, 1, 2)
    left.plot(seen, scores, label=("pairwise precision", "pairwise recall"))
    left.set(xlabel="samples", ylim=(0, 1.02))
    right.plot(seen, numbers, label=("clusters", "people found", "people"))
    right.set(xlabel="samples")
    for axis in (left, right):
        axis.legend(frameon=False)
    return figure


if __name__ == "__main__":
    app.main(get_config, build)
