"""Graphs of static shape: edges sorted by where they end, sums and softmax over the edges of a node, normalisation."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Graph(NamedTuple):
    """Directed, weighted edges of N nodes, sorted by destination; padding edges have weight 0 and end at node N - 1.

    Attributes:
      source, destination: [E] int32.
      weight: [E] float32.
      num_nodes: N, a Python number.
    """

    source: jax.Array
    destination: jax.Array
    weight: jax.Array
    num_nodes: int


def make_graph(source: np.ndarray, destination: np.ndarray, num_nodes: int, weight: np.ndarray | None = None) -> Graph:
    """A graph from edges in any order.

    Args:
      source, destination: [E] node numbers.
      num_nodes: N.
      weight: [E], ones when None.

    Raises:
      ValueError: lengths differ, or an edge names a node that is not there.
    """
    source, destination = np.asarray(source, np.int64), np.asarray(destination, np.int64)
    weight = np.ones(len(source)) if weight is None else np.asarray(weight)
    if not source.shape == destination.shape == weight.shape or source.ndim != 1:
        raise ValueError(f"graph: {source.shape} sources, {destination.shape} destinations, {weight.shape} weights")
    if num_nodes < 1 or (
        len(source)
        and not 0 <= min(source.min(), destination.min()) <= max(source.max(), destination.max()) < num_nodes
    ):
        raise ValueError(f"graph: edges name nodes outside 0 to {num_nodes - 1}")
    order = np.lexsort((source, destination))
    return Graph(
        jnp.asarray(source[order], jnp.int32), jnp.asarray(destination[order], jnp.int32),
        jnp.asarray(weight[order], jnp.float32), num_nodes,
    )  # fmt: skip


def undirected(source: np.ndarray, destination: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both directions of every edge, once; self-loops are left out. [E] each."""
    pairs = np.stack([np.concatenate([source, destination]), np.concatenate([destination, source])], 1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    return pairs[:, 0], pairs[:, 1]


def add_self_loops(source: np.ndarray, destination: np.ndarray, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """The edges and one from every node to itself."""
    loops = np.arange(num_nodes)
    return np.concatenate([source, loops]), np.concatenate([destination, loops])


def segment_sum(values: jax.Array, graph: Graph) -> jax.Array:
    """Sum over the edges that end at a node, without their weights: [E, ...] -> [N, ...]."""
    return jax.ops.segment_sum(values, graph.destination, graph.num_nodes, indices_are_sorted=True)


def segment_softmax(logits: jax.Array, graph: Graph) -> jax.Array:
    """Softmax over the edges that end at the same node, [E, ...]; edges of weight 0 get 0."""
    live = (graph.weight > 0).reshape(-1, *(1,) * (logits.ndim - 1))
    logits = jnp.where(live, logits, -jnp.inf)
    largest = jax.ops.segment_max(logits, graph.destination, graph.num_nodes, indices_are_sorted=True)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
    powers = jnp.where(live, jnp.exp(jnp.where(live, logits - largest[graph.destination], 0.0)), 0.0)
    total = segment_sum(powers, graph)[graph.destination]
    return powers / jnp.where(total > 0, total, 1.0)


def propagate(graph: Graph, features: jax.Array) -> jax.Array:
    """A H: the weighted sum of the sources' features, [N, F] -> [N, F]."""
    return segment_sum(features[graph.source] * graph.weight[:, None], graph)


def symmetric_normalization(graph: Graph) -> Graph:
    """Weights w_ij / sqrt(d_i d_j), d the sum of weights that end at a node; a node without any keeps zeros."""
    degree = segment_sum(graph.weight, graph)
    inverse = jnp.where(degree > 0, jax.lax.rsqrt(jnp.where(degree > 0, degree, 1.0)), 0.0)
    return graph._replace(weight=inverse[graph.source] * graph.weight * inverse[graph.destination])


def random_walk_normalization(graph: Graph) -> Graph:
    """Weights w_ij / d_i: every node takes the mean over its edges."""
    degree = segment_sum(graph.weight, graph)
    return graph._replace(weight=graph.weight / jnp.where(degree > 0, degree, 1.0)[graph.destination])
