"""Features learned without labels: linear probes, and clusters of the training images against their true classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from facejax.data import classification, pipeline
from facejax.data.pipeline import Source
from facejax.metrics import clustering, verification
from facejax.ops import vectors
from facejax.train import image_grid, new_figure


def probes(train: dict[str, np.ndarray], test: dict[str, np.ndarray], shots: Sequence[int]) -> dict[str, float]:
    """Metrics "probe_accuracy" on all labelled images, and "probe_accuracy_S" on S images per class; %.

    Args:
      train, test: "features" [N, D] and "label" [N].
      shots: the S.
    """
    few = {f"probe_accuracy_{count}": probe(train, test, count) for count in shots}
    return {"probe_accuracy": probe(train, test, len(train["label"])), **few}


def probe(train: dict[str, np.ndarray], test: dict[str, np.ndarray], shots: int) -> float:
    """Accuracy, %, of a logistic regression on frozen features, fitted to the first `shots` images of each class."""
    from sklearn.linear_model import LogisticRegression  # takes a second to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    order = np.argsort(train["label"], kind="stable")
    sorted_labels = train["label"][order]
    place = np.arange(len(order)) - np.searchsorted(sorted_labels, sorted_labels)
    chosen = order[place < shots]
    model = make_pipeline(StandardScaler().fit(train["features"]), LogisticRegression(max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # early stops, and classes with one image
        model.fit(train["features"][chosen], train["label"][chosen])
    return 100 * float(model.score(test["features"], test["label"]))


def identification(features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics "rank1" (leave-one-out) and "tar_at_far_1e-1" (all pairs) of features [N, D] with identities [N]."""
    features = vectors.unit_rows(features)
    return {
        "rank1": float(verification.leave_one_out_rank1(features, labels)),
        "tar_at_far_1e-1": float(verification.all_pairs_tar(features, labels, (1e-1,))[0]),
    }


def assess_clusters(labels: np.ndarray, truth: np.ndarray, clusters: int) -> tuple[dict[str, float], Any]:
    """Metrics of pseudo-labels, and a figure of the clusters' sizes and purity.

    Args:
      labels: [n] clusters, -1 for none.
      truth: [n] true classes.
      clusters: K.

    Returns:
      "memory_" and the names of `clustering.report`, "smallest_cluster", "largest_cluster"; the figure.
    """
    truth, labels = truth[labels >= 0], labels[labels >= 0]
    sizes = np.bincount(labels, minlength=clusters)
    metrics = {f"memory_{name}": value for name, value in clustering.report(truth, labels).items()}
    metrics |= {"smallest_cluster": float(sizes.min()), "largest_cluster": float(sizes.max())}
    figure, (left, right) = new_figure(9, 3.2, 1, 2)
    left.bar(np.arange(clusters), np.sort(sizes)[::-1], width=1.0)
    left.set(xlabel="cluster, by size", ylabel="members")
    purity = [np.bincount(truth[labels == c]).max() / sizes[c] for c in np.flatnonzero(sizes)]
    right.hist(purity, bins=20, range=(0, 1))
    right.set(xlabel="share of the most frequent class", ylabel="clusters")
    return metrics, figure


def members(
    source: Source,
    labels: np.ndarray,
    features: np.ndarray,
    centroids: np.ndarray,
    size: int,
    rows: int = 8,
    columns: int = 10,
) -> np.ndarray:
    """Grid of images: a row for each of some clusters, evenly spaced by size, the members nearest to the centroid.

    Args:
      source: of n images with "image" and "label".
      labels: [n] clusters, -1 for none.
      features: [n, D].
      centroids: [K, D].
      size: pixels of an image.
      rows, columns: of the grid.
    """
    sizes = np.bincount(labels[labels >= 0], minlength=len(centroids))
    chosen = np.argsort(-sizes, kind="stable")[np.linspace(0, np.sum(sizes > 0) - 1, rows).astype(int)]
    grid = np.full((rows, columns, size, size, 3), 255, np.uint8)
    for row, cluster in enumerate(chosen):
        inside = np.flatnonzero(labels == cluster)
        best = inside[np.argsort(-features[inside] @ centroids[cluster])][:columns]
        grid[row, : len(best)] = classification.centre_batch(pipeline.fetch(source, best), size)["image"]
    return image_grid(grid.reshape(-1, size, size, 3), columns)
