"""Graphs of static shape: sorted edges, reductions over incoming edges, neighbour sampling, normalisation."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from facejax.ops import sampling


@struct.dataclass
class Graph:
    """Directed, weighted edges of N nodes, sorted by destination; padding edges have weight 0 and end at node N - 1.

    A pytree with the three arrays as leaves; the number of nodes is static.

    Attributes:
      source, destination: [E] int32.
      weight: [E] float32.
      num_nodes: N, a Python int.
    """

    source: jax.Array
    destination: jax.Array
    weight: jax.Array
    num_nodes: int = struct.field(pytree_node=False)

    @property
    def edges(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Sources, destinations and weights."""
        return self.source, self.destination, self.weight


def make_graph(source: np.ndarray, destination: np.ndarray, num_nodes: int, weight: np.ndarray | None = None) -> Graph:
    """Makes a graph from edges in any order.

    Args:
      source, destination: [E] node indices.
      num_nodes: N.
      weight: [E]; ones when None.

    Raises:
      ValueError: the lengths differ, or a node index is outside 0 to N - 1.
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
    """Every edge once in both directions, without self-loops: [E] sources and [E] destinations."""
    pairs = np.stack([np.concatenate([source, destination]), np.concatenate([destination, source])], 1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    return pairs[:, 0], pairs[:, 1]


def add_self_loops(source: np.ndarray, destination: np.ndarray, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """The edges, self-loops among them included, and one self-loop more for each node."""
    loops = np.arange(num_nodes)
    return np.concatenate([source, loops]), np.concatenate([destination, loops])


def segment_sum(values: jax.Array, graph: Graph) -> jax.Array:
    """Unweighted sum over incoming edges: [E, ...] -> [N, ...], floats; added in float32 at least."""
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))  # in bfloat16 256 + 1 is 256
    total = jax.ops.segment_sum(wide, graph.destination, graph.num_nodes, indices_are_sorted=True)
    return total.astype(values.dtype)


def segment_mean(values: jax.Array, graph: Graph) -> jax.Array:
    """Unweighted mean over incoming edges of positive weight; zero without any. [E, ...] -> [N, ...]."""
    live = (graph.weight > 0).astype(values.dtype)
    count = segment_sum(live, graph)
    wide = (-1, *(1,) * (values.ndim - 1))
    return segment_sum(values * live.reshape(wide), graph) / jnp.where(count > 0, count, 1.0).reshape(wide)


def segment_max(values: jax.Array, graph: Graph) -> jax.Array:
    """Maximum over incoming edges of positive weight; zero without any. [E, ...] -> [N, ...]."""
    live = (graph.weight > 0).reshape(-1, *(1,) * (values.ndim - 1))
    largest = jax.ops.segment_max(
        jnp.where(live, values, -jnp.inf), graph.destination, graph.num_nodes, indices_are_sorted=True
    )
    return jnp.where(jnp.isfinite(largest), largest, 0.0)


def segment_softmax(logits: jax.Array, graph: Graph) -> jax.Array:
    """Softmax over the incoming edges of each node: [E, ...] -> [E, ...]; 0 for edges of weight 0."""
    live = (graph.weight > 0).reshape(-1, *(1,) * (logits.ndim - 1))
    logits = jnp.where(live, logits, -jnp.inf)
    largest = jax.ops.segment_max(logits, graph.destination, graph.num_nodes, indices_are_sorted=True)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
    powers = jnp.where(live, jnp.exp(jnp.where(live, logits - largest[graph.destination], 0.0)), 0.0)
    total = segment_sum(powers, graph)[graph.destination]
    return powers / jnp.where(total > 0, total, 1.0)


def propagate(graph: Graph, features: jax.Array, *, chunk: int = 0) -> jax.Array:
    """The product A H: sum of the weighted source features at every destination, [N, F] -> [N, F].

    Args:
      graph: N nodes, E edges; or its parts from `split`, one per device.
      features: [N, F].
      chunk: number of edges per pass, which limits memory to [chunk, F]; 0 for all at once.
    """
    if graph.source.ndim == 2:
        rows = -(-graph.num_nodes // len(graph.source))
        parts = jax.vmap(lambda *edges: propagate(Graph(*edges, rows), features, chunk=chunk))(*graph.edges)
        return parts.reshape(-1, features.shape[1])[: graph.num_nodes]
    if not chunk:
        return segment_sum(features[graph.source] * graph.weight[:, None], graph)
    spare = -len(graph.source) % chunk
    edges = jax.tree.map(
        lambda x, fill: jnp.pad(x, (0, spare), constant_values=fill).reshape(-1, chunk),
        (graph.source, graph.destination, graph.weight),
        (0, graph.num_nodes - 1, 0.0),
    )

    def step(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        source, destination, weight = part
        return total.at[destination].add(features[source] * weight[:, None], indices_are_sorted=True), None

    return jax.lax.scan(step, jnp.zeros((graph.num_nodes, features.shape[1]), features.dtype), edges)[0]


def split(graph: Graph, parts: int) -> Graph:
    """Splits the graph into parts of ceil(N / parts) consecutive nodes: arrays [parts, E'], local destinations."""
    rows = -(-graph.num_nodes // parts)
    source, destination, weight = (np.asarray(x) for x in graph.edges)
    ends = np.searchsorted(destination, rows * np.arange(parts + 1))
    length = np.diff(ends).max()
    cut = [np.zeros((parts, length), x.dtype) for x in (source, destination, weight)]
    cut[1] += rows - 1
    for part, (a, b) in enumerate(itertools.pairwise(ends)):
        for whole, piece in zip(cut, (source[a:b], destination[a:b] - part * rows, weight[a:b]), strict=True):
            whole[part, : b - a] = piece
    return Graph(*cut, graph.num_nodes)


def symmetric_normalization(graph: Graph) -> Graph:
    """Weights w_ij / sqrt(d_i d_j), where d is the sum of the incoming weights of a node; 0 where d is 0."""
    degree = segment_sum(graph.weight, graph)
    inverse = jnp.where(degree > 0, jax.lax.rsqrt(jnp.where(degree > 0, degree, 1.0)), 0.0)
    return graph.replace(weight=inverse[graph.source] * graph.weight * inverse[graph.destination])


def random_walk_normalization(graph: Graph) -> Graph:
    """Weights w_ij / d_i: the incoming weights of a node sum to 1."""
    degree = segment_sum(graph.weight, graph)
    return graph.replace(weight=graph.weight / jnp.where(degree > 0, degree, 1.0)[graph.destination])


def offsets(graph: Graph) -> jax.Array:
    """[N + 1] int32: node i has incoming edges offsets[i] to offsets[i + 1] - 1; padding belongs to node N - 1."""
    return jnp.searchsorted(graph.destination, jnp.arange(graph.num_nodes + 1)).astype(jnp.int32)


def sample_neighbors(
    rng: jax.Array, graph: Graph, starts: jax.Array, nodes: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """Uniform samples without replacement of the sources of incoming edges of given nodes.

    Args:
      rng: key; equal keys give equal samples.
      graph: without padding edges.
      starts: `offsets(graph)`.
      nodes: [B].
      count: number of samples; a node with at most `count` edges returns all of them.

    Returns:
      neighbors: [B, count]; padded with the node itself.
      mask: [B, count], False for padding.
    """
    chosen, mask = sampling.without_replacement(rng, starts[nodes + 1] - starts[nodes], count)
    if not len(graph.source):
        return jnp.broadcast_to(nodes[:, None], mask.shape), mask
    places = jnp.clip(starts[nodes][:, None] + chosen, 0, len(graph.source) - 1)
    return jnp.where(mask, graph.source[places], nodes[:, None]), mask
