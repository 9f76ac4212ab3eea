"""What the clustering experiments share: a threshold chosen on labelled people, and the usual clusterers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from facejax.metrics import clustering
from facejax.ops import knn
from facejax.ops.components import connected_components
from facejax.ops.graph import Graph, split
from facejax.ops.knn import Neighbours
from facejax.train import new_figure, parallel


def spread(graph: Graph) -> Graph:
    """The graph cut over all devices, for `propagate` to run on all of them; as it is where there is one."""
    return parallel.shard(split(graph, jax.device_count())) if jax.device_count() > 1 else graph


def choose(truth: np.ndarray, cluster: Callable[[float], np.ndarray], thresholds: Sequence[float]) -> tuple[float, Any]:
    """The threshold whose clusters have the best pairwise F, and a figure of precision, recall and F over all.

    Args:
      truth: [N] labels.
      cluster: clusters [N] at a threshold; -1 for items that are alone.
      thresholds: to try.

    Raises:
      ValueError: no person has two images, so that no threshold is better than another.
    """
    if len(np.unique(truth)) == len(truth):
        raise ValueError(
            f"threshold: {len(truth)} labelled images, all of different people: expected two of some person"
        )
    scores = [clustering.pairwise(truth, clustering.singletons(cluster(t))) for t in thresholds]
    best = thresholds[int(np.nanargmax([s.f for s in scores]))]
    figure, axis = new_figure(5, 3.2)
    for name in ("precision", "recall", "f"):
        axis.plot(thresholds, [getattr(s, name) for s in scores], label=name)
    axis.axvline(best, color="grey", lw=1, ls="--")
    axis.set(xlabel="threshold", ylabel="pairwise", ylim=(0, 1.01))
    axis.legend(frameon=False)
    return float(best), figure


def neighbour_components(neighbours: Neighbours, threshold: float) -> np.ndarray:
    """Clusters [N]: components of the neighbours whose cosine is above the threshold (DBSCAN with one core point)."""
    count, k = neighbours.ids.shape
    rows, ids = np.repeat(np.arange(count), k), neighbours.ids.ravel()
    kept = neighbours.similarity.ravel() > threshold
    return connected_components(rows[kept], ids[kept], count)


def rank_order(neighbours: Neighbours, threshold: float) -> np.ndarray:
    """Approximate rank-order clustering (Otto, Wang & Jain, arXiv:1604.00989), [N].

    Two neighbours are joined when their lists agree: the absent among the other's first ones, both ways, over the
    smaller rank, is below the threshold.
    """
    ids = neighbours.ids
    count, k = ids.shape
    order = np.argsort(ids, axis=1)
    codes = (np.arange(count)[:, None] * count + np.take_along_axis(ids, order, 1)).ravel()
    ranks = order.ravel()

    def rank(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        code = rows.astype(np.int64) * count + wanted
        place = np.minimum(np.searchsorted(codes, code), len(codes) - 1)
        return np.where(codes[place] == code, ranks[place], k)

    a, b = np.repeat(np.arange(count), k - 1), ids[:, 1:].ravel()
    forward, backward = np.tile(np.arange(1, k), count), rank(b, a)

    def missing(a: np.ndarray, b: np.ndarray, upto: np.ndarray) -> np.ndarray:
        absent = rank(np.repeat(b, k), ids[a].ravel()).reshape(-1, k) >= k
        return np.sum(absent & (np.arange(k) <= upto[:, None]), 1)

    distance = (missing(a, b, forward) + missing(b, a, np.minimum(backward, k - 1))) / np.minimum(forward, backward)
    kept = distance < threshold
    return connected_components(a[kept], b[kept], count)


def baseline(name: str, features: np.ndarray, threshold: float, *, k: int, clusters: int) -> np.ndarray:
    """Clusters [N] by a usual method; scikit-learn's where it has one.

    Args:
      name: "kmeans", "minibatch_kmeans", "dbscan", "hac", "rank_order" or "components".
      features: [N, D] of length 1.
      threshold: a cosine; for rank_order a distance; unused by the k-means.
      k: neighbours of rank_order and components.
      clusters: of the k-means: the true number, which no other method is told.
    """
    from sklearn import cluster  # takes a second to import

    if name in ("kmeans", "minibatch_kmeans"):
        kind = cluster.KMeans if name == "kmeans" else cluster.MiniBatchKMeans
        return kind(clusters, n_init=1, random_state=0).fit_predict(features)
    if name == "dbscan":
        return cluster.DBSCAN(eps=np.sqrt(2 - 2 * threshold), min_samples=3).fit_predict(features)
    if name == "hac":
        tree = cluster.AgglomerativeClustering(
            None, metric="cosine", linkage="average", distance_threshold=1 - threshold
        )
        return tree.fit_predict(features)
    if name not in ("rank_order", "components"):
        raise ValueError(f"baseline is {name!r}: expected one of {', '.join(BASELINES)}")
    near = knn.knn(features, min(k, len(features)))
    return rank_order(near, threshold) if name == "rank_order" else neighbour_components(near, threshold)


BASELINES = {
    "components": np.linspace(0.2, 0.9, 36),
    "dbscan": np.linspace(0.2, 0.9, 36),
    "hac": np.linspace(0.05, 0.6, 23),
    "rank_order": np.linspace(0.05, 3, 36),
    "kmeans": (0.0,),
    "minibatch_kmeans": (0.0,),
}
