"""Clustering baselines that need no training: thresholded neighbours, rank order, and scikit-learn's methods."""

from __future__ import annotations

import numpy as np

from facejax.ops import knn
from facejax.ops.components import connected_components
from facejax.ops.knn import Neighbours

BASELINES = {
    "components": np.linspace(0.2, 0.9, 36),
    "dbscan": np.linspace(0.2, 0.9, 36),
    "hac": np.linspace(0.05, 0.6, 23),
    "rank_order": np.linspace(0.05, 3, 36),
    "kmeans": (0.0,),
    "minibatch_kmeans": (0.0,),
}
"""The methods of `baseline`, and the thresholds among which one is chosen; the k-means have none."""


def neighbour_components(neighbours: Neighbours, threshold: float) -> np.ndarray:
    """Clusters [N]: connected components of neighbours whose cosine exceeds the threshold."""
    count, k = neighbours.ids.shape
    rows, ids = np.repeat(np.arange(count), k), neighbours.ids.ravel()
    kept = neighbours.similarity.ravel() > threshold
    return connected_components(rows[kept], ids[kept], count)


def rank_order(neighbours: Neighbours, threshold: float) -> np.ndarray:
    """Approximate rank-order clustering (Otto, Wang & Jain, arXiv:1604.00989), [N].

    The distance of two neighbours counts the entries of each list, up to the other node, that the other list lacks,
    and divides the sum by the smaller of the two ranks. Pairs below the threshold are joined.
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
    """Clusters [N] by a baseline; -1 for DBSCAN's noise.

    Args:
      name: one of BASELINES.
      features: [N, D] of length 1.
      threshold: a cosine; for "rank_order" a distance; unused by the k-means.
      k: neighbours of "rank_order" and "components".
      clusters: number of clusters, used by the k-means only.

    Raises:
      ValueError: an unknown name.
    """
    from sklearn import cluster as methods  # takes a second to import

    if name in ("kmeans", "minibatch_kmeans"):
        kind = methods.KMeans if name == "kmeans" else methods.MiniBatchKMeans
        return kind(clusters, n_init=1, random_state=0).fit_predict(features)
    if name == "dbscan":
        return methods.DBSCAN(eps=np.sqrt(2 - 2 * threshold), min_samples=3).fit_predict(features)
    if name == "hac":
        tree = methods.AgglomerativeClustering(
            None, metric="cosine", linkage="average", distance_threshold=1 - threshold
        )
        return tree.fit_predict(features)
    if name not in ("rank_order", "components"):
        raise ValueError(f"baseline is {name!r}: expected one of {', '.join(BASELINES)}")
    near = knn.knn(features, min(k, len(features)))
    return rank_order(near, threshold) if name == "rank_order" else neighbour_components(near, threshold)
