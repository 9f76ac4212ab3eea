"""GCN: semi-supervised classification with graph convolutional networks.

Kipf & Welling. ICLR 2017. arXiv:1609.02907.
A layer mixes every node's features with its neighbours' by the symmetrically normalised adjacency with self-loops, and
multiplies by a matrix; two of them, trained on a few labelled nodes, label all others.

Differs from the paper: nothing known. The Chebyshev variant is not here.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.ops import segment
from facejax.ops.segment import Graph


def renormalized(source: np.ndarray, destination: np.ndarray, num_nodes: int) -> Graph:
    """D~^-1/2 (A + I) D~^-1/2, the renormalisation trick of Sec. 2.2, for undirected edges given in both directions."""
    return segment.symmetric_normalization(
        segment.make_graph(*segment.add_self_loops(source, destination, num_nodes), num_nodes)
    )


class SparseFeatures:
    """Rows of mostly zeros: [N, F] by the places and values of the others, sorted by row."""

    def __init__(self, matrix: np.ndarray):
        rows, columns = np.nonzero(matrix)
        self.rows, self.columns = jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32)
        self.values, self.shape = jnp.asarray(matrix[rows, columns], jnp.float32), matrix.shape


class GCN(nn.Module):
    """Two layers (Eq. 9): S relu(S X W0) W1, dropout before each.

    Attributes:
      num_classes: C.
      hidden: width of the first layer.
      dropout: rate; on sparse features it falls on the values that are not zero.
    """

    num_classes: int
    hidden: int = 16
    dropout: float = 0.5

    @nn.compact
    def __call__(self, features: SparseFeatures, graph: Graph, *, train: bool) -> jax.Array:
        """Logits [N, C] of all nodes."""
        glorot = nn.initializers.glorot_uniform()
        first = self.param("first", glorot, (features.shape[1], self.hidden))
        second = self.param("second", glorot, (self.hidden, self.num_classes))
        values = nn.Dropout(self.dropout, deterministic=not train)(features.values)
        mixed = jax.ops.segment_sum(
            values[:, None] * first[features.columns], features.rows, features.shape[0], indices_are_sorted=True
        )
        hidden = nn.relu(segment.propagate(graph, mixed))
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return segment.propagate(graph, hidden @ second)


def row_normalized(matrix: np.ndarray) -> np.ndarray:
    """Rows that sum to 1; a row of zeros stays zero."""
    total = matrix.sum(1, keepdims=True)
    return matrix / np.where(total == 0, 1, total)


def masked_cross_entropy(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean cross-entropy [] over the nodes [N] that `mask` marks."""
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    return jnp.sum(losses * mask) / jnp.sum(mask)
