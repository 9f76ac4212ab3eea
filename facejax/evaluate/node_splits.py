"""Node classification on one graph or on several: padded arrays of a split, with their loss and score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from facejax.data.readers.node_graphs import LabelledGraph
from facejax.data.readers.planetoid import Citations
from facejax.graph import gat, gcn, graphsage
from facejax.ops.graph import Graph


class Split(NamedTuple):
    """G graphs of N nodes and E edges, the smaller ones padded.

    Attributes:
      features: [G, N, F]; or the sparse features of the only graph.
      source, destination, weight: [G, E] as in `Graph`, self-loops included; padding ends at node N - 1.
      labels: [G, N] classes or [G, N, C] of 0 and 1.
      mask: [G, N], nodes of the split.
    """

    features: jax.Array | gcn.SparseFeatures
    source: jax.Array
    destination: jax.Array
    weight: jax.Array
    labels: jax.Array
    mask: jax.Array

    @property
    def graph(self) -> Graph:
        """All graphs as one, without edges between them."""
        count, nodes = self.mask.shape
        first = nodes * jnp.arange(count)[:, None]
        ends = ((end + first).ravel() for end in (self.source, self.destination))
        return Graph(*ends, self.weight.ravel(), count * nodes)

    @property
    def inputs(self) -> jax.Array | gcn.SparseFeatures:
        """Features [G N, F] of that graph."""
        if isinstance(self.features, gcn.SparseFeatures):
            return self.features
        return self.features.reshape(-1, self.features.shape[-1])

    def take(self, chosen: jax.Array) -> Split:
        """The chosen graphs [B]; the only graph of sparse features is always taken whole."""
        sparse = isinstance(self.features, gcn.SparseFeatures)
        rows = jax.tree.map(lambda x: x[chosen], self._replace(features=None) if sparse else self)
        return rows._replace(features=self.features) if sparse else rows

    def compare(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean loss and score of logits [G N, C]: micro-F1 where a node has several labels, else accuracy in 0..1."""
        mask, labels = self.mask.ravel(), self.labels.reshape(-1, *self.labels.shape[2:])
        losses = graphsage.supervised_loss(logits, labels)
        if labels.ndim == 2:
            score = graphsage.micro_f1(logits > 0, labels > 0, mask)
        else:
            score = jnp.sum((logits.argmax(1) == labels) & mask) / jnp.sum(mask)
        return jnp.sum(losses * mask) / jnp.sum(mask), score


def one_graph(data: Citations) -> dict[str, Split]:
    """The splits "train", "validation" and "test" of one graph: all nodes and edges, a mask each."""
    edges = gat.neighborhood(data.source, data.destination, len(data.labels)).edges
    shared = [x[None] for x in (*edges, jnp.asarray(data.labels))]
    features = gcn.SparseFeatures.from_dense(gcn.row_normalized(data.features))
    masks = {name: jnp.asarray(getattr(data, name))[None] for name in ("train", "validation", "test")}
    return {name: Split(features, *shared, mask) for name, mask in masks.items()}


def several_graphs(parts: Mapping[str, Sequence[LabelledGraph]]) -> dict[str, Split]:
    """Splits of whole graphs, all of whose nodes count, padded to the largest graph of all splits."""
    nodes = max(len(g.labels) for part in parts.values() for g in part)
    edges = {k: [gat.neighborhood(g.source, g.destination, nodes).edges for g in part] for k, part in parts.items()}
    longest = max(len(source) for part in edges.values() for source, _, _ in part)

    def rows(array: np.ndarray) -> np.ndarray:
        return np.pad(np.asarray(array, np.float32), ((0, nodes - len(array)), (0, 0)))

    def split(name: str) -> Split:
        columns = [
            jnp.stack([jnp.pad(x, (0, longest - len(x)), constant_values=fill) for x in column])
            for column, fill in zip(zip(*edges[name], strict=True), (0, nodes - 1, 0.0), strict=True)
        ]
        return Split(
            jnp.stack([rows(g.features) for g in parts[name]]), *columns,
            jnp.stack([rows(g.labels) for g in parts[name]]),
            jnp.stack([np.arange(nodes) < len(g.labels) for g in parts[name]]),
        )  # fmt: skip

    return {name: split(name) for name in parts}
