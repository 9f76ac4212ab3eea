"""GCN: semi-supervised classification with graph convolutional networks.

Kipf & Welling. ICLR 2017. arXiv:1609.02907.
A layer multiplies the features by the symmetrically normalised adjacency matrix with self-loops and by a weight matrix.
Two layers, trained on a few labelled nodes, classify all others. The module also implements the paper's baseline,
Chebyshev polynomials of the Laplacian (Defferrard, Bresson, Vandergheynst. NeurIPS 2016. arXiv:1606.09375).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from flax import struct

from facejax.ops.graph import Graph, add_self_loops, make_graph, propagate, symmetric_normalization

SMALL = 50
"""Graphs of fewer nodes have their eigenvalues computed densely."""


def renormalized(source: np.ndarray, destination: np.ndarray, num_nodes: int) -> Graph:
    """D~^-1/2 (A + I) D~^-1/2, the renormalisation trick of Sec. 2.2, for undirected edges given in both directions.

    I is added to what is there: a self-loop among the edges counts beside it, so that its node has weight 2 on the
    diagonal, as in the authors' code, and repeated edges add up. `facejax.ops.graph.undirected` removes both.
    """
    return symmetric_normalization(make_graph(*add_self_loops(source, destination, num_nodes), num_nodes))


def scaled_laplacian(source: np.ndarray, destination: np.ndarray, num_nodes: int) -> Graph:
    """2 / lambda_max (I - D^-1/2 A D^-1/2) - I, whose eigenvalues lie in -1..1, for edges given in both directions."""
    normal = symmetric_normalization(make_graph(source, destination, num_nodes))
    weights = (np.asarray(normal.weight), (np.asarray(normal.destination), np.asarray(normal.source)))
    matrix = scipy.sparse.identity(num_nodes) - scipy.sparse.coo_matrix(weights, (num_nodes, num_nodes))
    if num_nodes < SMALL:
        largest = np.linalg.eigvalsh(matrix.toarray())[-1]
    else:  # ones are an eigenvector of a regular graph, of eigenvalue 0
        start = np.random.default_rng(0).uniform(0.5, 1.5, num_nodes)
        largest = scipy.sparse.linalg.eigsh(matrix, 1, which="LM", return_eigenvectors=False, v0=start)[0]
    largest = largest if largest > 1e-6 else 2.0  # no edges but self-loops
    scaled = (2 / largest * matrix - scipy.sparse.identity(num_nodes)).tocoo()
    return make_graph(scaled.col, scaled.row, num_nodes, scaled.data)


def chebyshev(graph: Graph, terms: jax.Array) -> jax.Array:
    """sum_k T_k(L) Y_k by Clenshaw's recurrence: K sparse products with the Laplacian.

    Args:
      graph: `scaled_laplacian`.
      terms: [K + 1, N, F], Y_0 to Y_K.
    """
    later = after = jnp.zeros_like(terms[0])
    for term in terms[:0:-1]:
        later, after = term + 2 * propagate(graph, later) - after, later
    return terms[0] + propagate(graph, later) - after


@struct.dataclass
class SparseFeatures:
    """A matrix [N, F] of mostly zeros: its K non-zero entries, sorted by row. A pytree with a static shape.

    Attributes:
      rows, columns: [K] int32.
      values: [K] float32.
      shape: (N, F).
    """

    rows: jax.Array
    columns: jax.Array
    values: jax.Array
    shape: tuple[int, int] = struct.field(pytree_node=False)

    @classmethod
    def from_dense(cls, matrix: np.ndarray) -> SparseFeatures:
        """The non-zero entries of `matrix` [N, F]."""
        rows, columns = np.nonzero(matrix)
        values = jnp.asarray(matrix[rows, columns], jnp.float32)
        return cls(jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32), values, matrix.shape)


class GCN(nn.Module):
    """Two layers (Eq. 9): S relu(S X W0) W1, dropout before each.

    Attributes:
      num_classes: C.
      hidden: width of the first layer.
      dropout: rate, applied to the non-zero features and to the hidden layer.
      degree: 0 expects the graph S of `renormalized`; above 0, it is the degree K of Chebyshev polynomials of a
        `scaled_laplacian`, with K + 1 matrices per layer (Eq. 5).
    """

    num_classes: int
    hidden: int = 16
    dropout: float = 0.5
    degree: int = 0

    @nn.compact
    def __call__(self, features: SparseFeatures, graph: Graph, *, train: bool, embed: bool = False) -> jax.Array:
        """Logits [N, C] of all nodes; with `embed`, the hidden layer [N, hidden]."""
        first = self._matrices("first", features.shape[1], self.hidden)
        second = self._matrices("second", self.hidden, self.num_classes)
        values = nn.Dropout(self.dropout, deterministic=not train)(features.values)
        mixed = jax.ops.segment_sum(
            values[:, None] * first[features.columns], features.rows, features.shape[0], indices_are_sorted=True
        )
        hidden = nn.relu(self._spread(graph, mixed))
        if embed:
            return hidden
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return self._spread(graph, hidden @ second)

    def _matrices(self, name: str, inputs: int, outputs: int) -> jax.Array:
        """The layer's K + 1 Glorot-uniform matrices, concatenated: [inputs, (K + 1) * outputs]."""
        glorot = nn.initializers.glorot_uniform(in_axis=1, out_axis=2, batch_axis=0)
        weights = self.param(name, glorot, (self.degree + 1, inputs, outputs))
        return jnp.moveaxis(weights, 0, 1).reshape(inputs, -1)

    def _spread(self, graph: Graph, mixed: jax.Array) -> jax.Array:
        terms = jnp.moveaxis(mixed.reshape(len(mixed), self.degree + 1, -1), 1, 0)
        return chebyshev(graph, terms) if self.degree else propagate(graph, terms[0])


def row_normalized(matrix: np.ndarray) -> np.ndarray:
    """Rows that sum to 1; a row of zeros stays zero."""
    total = matrix.sum(1, keepdims=True)
    return matrix / np.where(total == 0, 1, total)


def masked_cross_entropy(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean cross-entropy [] of logits [N, C] over the nodes where `mask` [N] is True."""
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    return jnp.sum(losses * mask) / jnp.sum(mask)
