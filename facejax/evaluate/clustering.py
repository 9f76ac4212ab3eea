"""Clustering protocol: the threshold is chosen on labelled identities, then the held-out ones are clustered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.metrics import clustering
from facejax.ops import knn
from facejax.ops.graph import Graph, propagate, split
from facejax.ops.knn import Neighbours
from facejax.train import new_figure, parallel


@dataclasses.dataclass(frozen=True)
class NeighbourGraph:
    """The `graph` section of a clustering experiment: every face with its nearest ones.

    Attributes:
      k: neighbours of a face, itself included.
      method: "exact", "approximate" (`lax.approx_max_k`) or "faiss".
      chunk: edges that a mean over neighbours reads at a time; 0 is all at once.
    """

    k: int = 20
    method: str = "exact"
    chunk: int = 0

    def neighbours(self, features: np.ndarray) -> Neighbours:
        """Neighbours of N faces, from features [N, D]."""
        return knn.knn(features, self.k, method=self.method)

    def means(self, neighbours: Neighbours, features: np.ndarray) -> jax.Array:
        """Means [N, D] of features over the affinity graph, computed on all devices."""
        return propagate(spread(knn.affinity(neighbours)), jnp.asarray(features), chunk=self.chunk)


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


def confidence_figure(target: np.ndarray, guesses: Mapping[str, np.ndarray]) -> Any:
    """Estimates of the confidence of N faces, by name, over the true confidence [N]."""
    figure, axes = new_figure(7, 3.2, 1, len(guesses))
    for axis, (name, values) in zip(axes, guesses.items(), strict=True):
        axis.scatter(target, values, s=4, alpha=0.4)
        axis.set(xlabel="true confidence", ylabel=name)
    return figure
