"""Clustering protocol: the threshold is chosen on labelled identities, then the held-out ones are clustered."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.data.readers.learn_to_cluster import read_neighbours
from facejax.data.synthetic.embeddings import Embeddings
from facejax.metrics import clustering
from facejax.ops import knn
from facejax.ops.graph import Graph, propagate, split
from facejax.ops.knn import Neighbours
from facejax.train import new_figure, parallel

TOLERANCE = 0.02
"""Of the cosines of stored neighbours, whose distances may be rounded."""


@dataclasses.dataclass(frozen=True)
class NeighbourGraph:
    """The `graph` section of a clustering experiment: every face with its nearest ones.

    Attributes:
      k: neighbours of a face, itself included.
      method: "exact", "approximate" (`lax.approx_max_k`), "faiss", or "stored": those of the data's files, of whole
        files only; parts of them, and files without stored neighbours, are searched exactly.
      chunk: edges that a mean over neighbours reads at a time; 0 is all at once.
    """

    k: int = 20
    method: str = "exact"
    chunk: int = 0

    def neighbours(self, features: np.ndarray) -> Neighbours:
        """Neighbours of N faces, from features [N, D]."""
        return knn.knn(features, self.k, method="exact" if self.method == "stored" else self.method)

    def neighbours_of(self, people: Embeddings) -> Neighbours:
        """Neighbours of N faces in the first view.

        Raises:
          ValueError: no stored file has k neighbours of a face, or one does not fit the features.
        """
        if self.method != "stored" or not people.stored:
            return self.neighbours(people.features)
        for file in people.stored:
            found = read_neighbours(file)
            if found.ids.shape[1] >= self.k:
                return _fitting(found, people.features, self.k, file)
        raise ValueError(f"{people.stored[-1].parent}: no file with graph.k {self.k} neighbours of a face")

    def means(self, neighbours: Neighbours, features: np.ndarray) -> jax.Array:
        """Means [N, D] of features over the affinity graph, computed on all devices."""
        return propagate(spread(knn.affinity(neighbours)), jnp.asarray(features), chunk=self.chunk)


def _fitting(found: Neighbours, features: np.ndarray, k: int, file: pathlib.Path) -> Neighbours:
    """The first k of stored neighbours, each face first in its list, if their cosines are those of the features."""
    if len(found.ids) != len(features):
        raise ValueError(f"{file}: neighbours of {len(found.ids)} faces: expected {len(features)} as of the features")
    found = knn.itself_first(found.ids, found.similarity)
    found = Neighbours(found.ids[:, :k], found.similarity[:, :k])
    rows = np.unique(np.linspace(0, len(features) - 1, 1000).astype(int))
    near = np.einsum("nd,nkd->nk", features[rows], features[found.ids[rows]])
    wrong = (np.abs(np.clip(near, 0, 1) - found.similarity[rows]) > TOLERANCE) & (found.similarity[rows] > 0)
    if wrong.any():
        row, place = np.argwhere(wrong)[0]
        raise ValueError(
            f"{file}: face {rows[row]} and its neighbour {found.ids[rows[row], place]} have a cosine of "
            f"{near[row, place]:.3f}, in the file {found.similarity[rows[row], place]:.3f}: expected its own features"
        )
    return found


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
