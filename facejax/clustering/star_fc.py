"""STAR-FC: a graph network trained on sampled sub-graphs scores the edges of a large one; intimacy prunes what is left.

Shen, Li, Zhu, Huang, Du, Lu & Zhou, Structure-Aware Face Clustering on a Large-Scale Graph with 10^7 Nodes. CVPR 2021.
arXiv:2103.13225. Clusters, not nodes, are sampled, so that a sub-graph keeps the structure of the whole; at inference
one forward pass scores all edges, and an edge survives if its ends share enough of their surviving neighbours.

Differs from the paper: the size of sampled sub-graphs, see docs/systems/clustering/star_fc.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import scipy.sparse
from jax import lax

from facejax.nn.graph import GraphConv
from facejax.nn.norm import PReLU
from facejax.ops import knn, vectors
from facejax.ops.components import connected_components
from facejax.ops.graph import Graph, propagate
from facejax.ops.knn import Neighbours


class EdgeNet(nn.Module):
    """Node features by one graph convolution, and a head on pairs of them: 788,994 parameters on 256-d features.

    Attributes:
      hidden: width of both.
    """

    hidden: int = 512

    def setup(self) -> None:
        half = functools.partial(
            nn.Dense, self.hidden, kernel_init=nn.initializers.variance_scaling(0.5, "fan_in", "truncated_normal")
        )
        self.convolution = GraphConv(self.hidden)
        self.first, self.second = half(), half(use_bias=False)
        self.slope, self.output = PReLU(), nn.Dense(2)

    def ends(self, features: jax.Array, graph: Graph, *, chunk: int = 0) -> tuple[jax.Array, jax.Array]:
        """What nodes [N, D] add to the head's first layer as an edge's first and as its second end, [N, hidden] each.

        A layer on two joined vectors is a sum of two layers, and nodes are fewer than edges.
        """
        hidden = self.convolution(features, propagate(graph, features, chunk=chunk))
        return self.first(hidden), self.second(hidden)

    def pairs(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """Logits [P, 2] (different, same) of two nodes' `ends` [P, hidden] each; the order of the two matters."""
        return self.output(self.slope(first + second))

    def __call__(self, features: jax.Array, graph: Graph, first: jax.Array, second: jax.Array) -> jax.Array:
        """Logits [P, 2] of the pairs of nodes `first` and `second`, [P] each."""
        one, other = self.ends(features, graph)
        return self.pairs(one[first], other[second])


class Edges(NamedTuple):
    """Directed edges: source, destination [E]."""

    source: np.ndarray
    destination: np.ndarray


def directed_edges(neighbours: Neighbours) -> Edges:
    """From every node to each of its neighbours, itself left out: [N (k - 1)]."""
    count, k = neighbours.ids.shape
    rows, ids = np.repeat(np.arange(count), k), neighbours.ids.ravel()
    return Edges(rows[rows != ids], ids[rows != ids])


@functools.partial(jax.jit, static_argnames=("net", "chunk"))
def edge_probabilities(
    net: EdgeNet, variables: dict, ends: tuple[jax.Array, jax.Array], edges: Edges, *, chunk: int
) -> jax.Array:
    """P(same person) [E], `chunk` edges at a time, from `EdgeNet.ends` of all nodes."""

    def one(edge: Edges) -> jax.Array:
        logits = net.apply(variables, ends[0][edge.source], ends[1][edge.destination], method=EdgeNet.pairs)
        return nn.softmax(logits)[1]

    return lax.map(one, edges, batch_size=chunk)


def intimacy(edges: Edges, num_nodes: int) -> np.ndarray:
    """How much the ends of an edge share: max(c / n_i, c / n_j), [E] (Sec. 3.4).

    c is the entry (i, j) of B B, B the directed adjacency, n the out-degrees; an end without edges gives 0.
    """
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(edges.source), np.float32), (edges.source, edges.destination)), (num_nodes, num_nodes)
    )
    degree = np.diff(matrix.indptr)
    ends = np.minimum(degree[edges.source], degree[edges.destination])
    common = np.empty(len(edges.source), np.float32)
    transposed = matrix.T.tocsr()
    for start in range(0, len(common), 2**18):  # rows of B times rows of B^T, without the product's other entries
        part = slice(start, start + 2**18)
        product = matrix[edges.source[part]].multiply(transposed[edges.destination[part]])
        common[part] = np.asarray(product.sum(1)).ravel()
    return np.where(ends > 0, common / np.maximum(ends, 1), 0)


def cluster(edges: Edges, probability: np.ndarray, num_nodes: int, *, score: float, shared: float) -> np.ndarray:
    """Clusters [N]: components of the edges above `score` whose intimacy among them is above `shared`.

    The paper's thresholds are 0.7 and 0.72; a clique of m has intimacy (m - 2) / (m - 1), so 0.72 breaks up those of
    four or fewer.
    """
    kept = Edges(*(x[probability > score] for x in edges))
    if len(kept.source):
        close = intimacy(kept, num_nodes) > shared
        kept = Edges(*(x[close] for x in kept))
    return connected_components(kept.source, kept.destination, num_nodes)


def subgraph_sampler(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    nodes: int,
    edges: int,
    nearest: int,
    people: int,
    k: int,
    method: str = "exact",
) -> Callable[[np.random.Generator], dict[str, np.ndarray]]:
    """Draws training sub-graphs of static size (Sec. 3.2): faces of sampled identities, and edges among them.

    Args:
      features: [N, D] of length 1.
      labels: [N] identities.
      nodes: n, faces of a sub-graph.
      edges: e, edges whose ends are classified.
      nearest, people: as of `sample_people`, which is repeated with more seeds until `nodes` faces are there.
      k, method: of the neighbours among the n faces, see `knn`.

    Returns:
      Function of a generator: "features" [n, D]; the affinity graph as "source", "destination", "weight", each
      [n (2 k - 1)], padded; "first", "second", "same" [e]: ends of edges, and 1 where both show one identity.

    Raises:
      ValueError: fewer than n faces.
    """
    names, labels = np.unique(labels, return_inverse=True)
    centres = vectors.unit_rows(np.stack([features[labels == c].mean(0) for c in range(len(names))]))
    arcs = nodes * (2 * k - 1)
    if len(labels) < nodes:
        raise ValueError(f"nodes is {nodes}: expected at most {len(labels)}, the labelled faces")

    def draw(rng: np.random.Generator) -> dict[str, np.ndarray]:
        faces, seeds = np.zeros(0, int), 1
        while len(faces) < nodes:
            chosen = sample_people(centres, rng, nearest=nearest, chosen=people, seeds=seeds)
            faces, seeds = np.flatnonzero(np.isin(labels, chosen)), seeds + 1
        faces = rng.choice(faces, nodes, replace=False)
        graph = knn.affinity(knn.knn(features[faces], k, method=method))
        source, destination, weight = (np.asarray(x) for x in graph.edges)
        edge = rng.integers(len(source), size=edges)
        first, second = destination[edge], source[edge]
        spare = (0, arcs - len(source))
        return {
            "features": features[faces],
            "source": np.pad(source, spare),
            "destination": np.pad(destination, spare, constant_values=nodes - 1),
            "weight": np.pad(weight, spare),
            "first": first,
            "second": second,
            "same": (labels[faces[first]] == labels[faces[second]]).astype(np.int32),
        }

    return draw


def sample_people(
    centres: np.ndarray, rng: np.random.Generator, *, nearest: int = 1500, chosen: int = 1300, seeds: int = 1
) -> np.ndarray:
    """Structure-preserved sampling (Sec. 3.2): random people, with some of those whose centres are nearest to them.

    Args:
      centres: [C, D] of length 1.
      rng: of the choice.
      nearest: people around a seed, itself included.
      chosen: how many of them stay, at random.
      seeds: how many people to begin with.

    Returns:
      [P] people's numbers, sorted.
    """
    first = rng.choice(len(centres), min(seeds, len(centres)), replace=False)
    nearest = min(nearest, len(centres))
    around = np.argpartition(-(centres[first] @ centres.T), nearest - 1, axis=1)[:, :nearest]
    parts = [rng.choice(row, min(chosen, nearest), replace=False) for row in around]
    return np.unique(np.concatenate(parts))
