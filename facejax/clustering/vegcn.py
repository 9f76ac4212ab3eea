"""VE-GCN: a graph network regresses the confidence of every face, another the connections; trees are clusters.

Yang, Chen, Zhan, Zhao, Loy & Lin, Learning to Cluster Faces via Confidence and Connectivity Estimation. CVPR 2020.
arXiv:2004.00445. GCN-V regresses each node's confidence on the nearest-neighbour graph; GCN-E predicts which of a
node's more confident neighbours show the same identity; every node points to one of them, or is a peak.

Differs from the paper: ties between connections go to the nearer neighbour, not to a random one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.nn.graph import GraphConv, PReLUHead
from facejax.ops.components import connected_components
from facejax.ops.graph import Graph, propagate
from facejax.ops.knn import Neighbours


class GCNV(nn.Module):
    """Confidence of every vertex (Sec. 3.2): one graph convolution and a head.

    Attributes:
      hidden: width; 526,337 parameters on 256-d features.
    """

    hidden: int = 512

    def __call__(self, features: jax.Array, graph: Graph, *, chunk: int = 0) -> tuple[jax.Array, jax.Array]:
        """Confidence [N] and hidden features [N, hidden] of unit features [N, D] on the affinity graph."""
        return self.vertices(features, propagate(graph, features, chunk=chunk))

    @nn.compact
    def vertices(self, features: jax.Array, aggregated: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The same for some nodes: `aggregated` [B, D] are their means over neighbours, by `propagate`."""
        hidden = GraphConv(self.hidden)(features, aggregated)
        return PReLUHead(self.hidden, 1)(hidden)[:, 0], hidden


class Subgraphs(NamedTuple):
    """A node's more confident neighbours, B nodes at a time.

    Attributes:
      features: [B, k, D], each neighbour's less the node's own.
      adjacency: [B, k, k], row-stochastic over the candidates.
      mask: [B, k], which neighbours are candidates.
    """

    features: jax.Array
    adjacency: jax.Array
    mask: jax.Array


class GCNE(nn.Module):
    """Logits [B, k, 2] (other, same identity) of a node's candidates (Sec. 3.3): four graph convolutions, a head.

    Attributes:
      widths: of the convolutions; 1,509,890 parameters on 512-d features.
    """

    widths: tuple[int, ...] = (512, 512, 256, 256)

    @nn.compact
    def __call__(self, graphs: Subgraphs) -> jax.Array:
        hidden = graphs.features
        for width in self.widths:
            hidden = GraphConv(width)(hidden, graphs.adjacency @ hidden)
        return PReLUHead(self.widths[-1], 2)(hidden)


def confidence_target(neighbours: Neighbours, labels: np.ndarray) -> np.ndarray:
    """Sum of the cosines with neighbours of the same identity, itself included, less those with others. [N].

    Divided by the largest absolute value, so that it lies in -1..1.
    """
    same = labels[neighbours.ids] == labels[:, None]
    total = np.where(same, neighbours.similarity, -neighbours.similarity).sum(1)
    return (total / np.abs(total).max()).astype(np.float32)


def subgraphs(
    features: jax.Array, ids: jax.Array, similarity: jax.Array, confidence: jax.Array, nodes: jax.Array
) -> Subgraphs:
    """Inputs of GCN-E for some nodes.

    A candidate row's weights are the cosines with the candidates that list it or that it lists, and 1 for itself.

    Args:
      features: [N, D] of length 1.
      ids, similarity: [N, k] of its neighbours.
      confidence: [N].
      nodes: [B].
    """
    near = ids[nodes]
    mask = confidence[near] > confidence[nodes][:, None]
    found = features[near]
    lists = (ids[near][:, :, :, None] == near[:, None, None, :]).any(2)
    linked = lists | lists.swapaxes(1, 2)
    cosine = jnp.maximum(jnp.einsum("bid,bjd->bij", found, found), 0.0)
    weight = jnp.where(jnp.eye(near.shape[1], dtype=bool), 1.0, jnp.where(linked, cosine, 0.0))
    weight = weight * (mask[:, :, None] & mask[:, None, :])
    total = weight.sum(2, keepdims=True)
    shift = (found - features[nodes][:, None]) * mask[:, :, None]
    return Subgraphs(shift, weight / jnp.where(total > 0, total, 1.0), mask)


def contested(ids: jax.Array, confidence: jax.Array, ignored: float) -> jax.Array:
    """Nodes whose connection GCN-E decides, [N] bool.

    They have two candidates or more, and are not among the share `ignored` (0..1) of least confident nodes.

    Args:
      ids: [N, k] of their neighbours.
      confidence: [N].
      ignored: see above.
    """
    several = (confidence[ids] > confidence[:, None]).sum(1) > 1
    return several & (confidence >= jnp.quantile(confidence, ignored))


def connectivity_loss(logits: jax.Array, same: jax.Array, mask: jax.Array) -> jax.Array:
    """Cross-entropy [B], a mean over each node's candidates; 0 for a node without any.

    Args:
      logits: [B, k, 2].
      same: [B, k], whether the candidate shows the node's identity.
      mask: [B, k].
    """
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), same.astype(jnp.int32)[..., None], -1)[..., 0]
    return jnp.sum(losses * mask, 1) / jnp.maximum(mask.sum(1), 1)


def connection_scores(
    net: GCNE,
    variables: Any,
    features: np.ndarray,
    neighbours: Neighbours,
    confidence: np.ndarray,
    nodes: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """GCN-E's log P(same) [B, k] of the neighbours of `nodes` [B], `batch_size` sub-graphs at a time.

    Args:
      net, variables: GCN-E and its variables.
      features: [N, D] of length 1.
      neighbours: of N nodes.
      confidence: [N].
      nodes: see above.
      batch_size: see above.
    """
    scene = tuple(map(jnp.asarray, (features, *neighbours, confidence)))

    def score(node: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(net.apply(variables, subgraphs(*scene, node[None])))[0, :, 1]

    return np.asarray(jax.jit(lambda nodes: jax.lax.map(score, nodes, batch_size=batch_size))(jnp.asarray(nodes)))


class Tree(NamedTuple):
    """Every node's connection: parent [N], itself for a peak, and the distance 1 - cosine to it [N]."""

    parent: np.ndarray
    distance: np.ndarray


def nearest_peaks(neighbours: Neighbours, confidence: np.ndarray) -> Tree:
    """Every node points to its nearest neighbour of strictly greater confidence."""
    higher = confidence[neighbours.ids] > confidence[:, None]
    return _tree(neighbours, higher, -np.broadcast_to(np.arange(higher.shape[1]), higher.shape))


def connected_peaks(neighbours: Neighbours, confidence: np.ndarray, same: np.ndarray, nodes: np.ndarray) -> Tree:
    """The same, but `nodes` [B] point to the candidate with the highest P(same) [B, k] of GCN-E."""
    tree = nearest_peaks(neighbours, confidence)
    part = Neighbours(neighbours.ids[nodes], neighbours.similarity[nodes])
    chosen = _tree(part, confidence[part.ids] > confidence[nodes][:, None], same, nodes)
    tree.parent[nodes], tree.distance[nodes] = chosen
    return tree


def _tree(neighbours: Neighbours, candidates: np.ndarray, score: np.ndarray, nodes: np.ndarray | None = None) -> Tree:
    rows = np.arange(len(candidates))
    place = np.where(candidates, score, -np.inf).argmax(1)
    some = candidates.any(1)
    parent = np.where(some, neighbours.ids[rows, place], rows if nodes is None else nodes)
    return Tree(parent, np.where(some, 1 - neighbours.similarity[rows, place], 0.0))


def trees_to_labels(tree: Tree, tau: float) -> np.ndarray:
    """Clusters [N] after connections at a distance of 1 - tau or more are cut."""
    nodes = np.arange(len(tree.parent))
    kept = (tree.parent != nodes) & (tree.distance < 1 - tau)
    return connected_components(nodes[kept], tree.parent[kept], len(nodes))
