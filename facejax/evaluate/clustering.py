"""Clustering protocol: the threshold is chosen on labelled identities, then the held-out ones are clustered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from facejax.metrics import clustering
from facejax.ops.graph import Graph, split
from facejax.train import new_figure, parallel


def spread(graph: Graph) -> Graph:
    """The graph split over all devices, so that `propagate` runs on all of them; unchanged on one device."""
    return parallel.shard(split(graph, jax.device_count())) if jax.device_count() > 1 else graph


def choose(truth: np.ndarray, cluster: Callable[[float], np.ndarray], thresholds: Sequence[float]) -> tuple[float, Any]:
    """The threshold whose clusters have the best pairwise F, and a figure of precision, recall and F over all.

    Args:
      truth: [N] labels.
      cluster: threshold -> clusters [N]; -1 for a sample in no cluster.
      thresholds: the candidates.

    Raises:
      ValueError: no identity has two images, so that every threshold scores the same.
    """
    if len(np.unique(truth)) == len(truth):
        raise ValueError(f"threshold: {len(truth)} labelled images, all of different identities: expected two of one")
    scores = [clustering.pairwise(truth, clustering.singletons(cluster(t))) for t in thresholds]
    best = thresholds[int(np.nanargmax([s.f for s in scores]))]
    figure, axis = new_figure(5, 3.2)
    for name in ("precision", "recall", "f"):
        axis.plot(thresholds, [getattr(s, name) for s in scores], label=name)
    axis.axvline(best, color="grey", lw=1, ls="--")
    axis.set(xlabel="threshold", ylabel="pairwise", ylim=(0, 1.01))
    axis.legend(frameon=False)
    return float(best), figure
