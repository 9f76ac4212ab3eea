"""GAT: graph attention networks.

Velickovic, Cucurull, Casanova, Romero, Lio, Bengio. ICLR 2018. arXiv:1710.10903.
A node's new features are a weighted mean of its neighbours' projected features. The weights are a softmax of scores
that depend on the features of both ends of an edge. Several attention heads work in parallel.

The module follows the authors' code where it departs from the paper's equations: each half of a score has a bias,
dropout is also applied to the projected features, and the skip connection is a learned linear map with a bias.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.graph.gcn import SparseFeatures
from facejax.ops.graph import Graph, add_self_loops, make_graph, segment_softmax, segment_sum

SLOPE = 0.2


def neighborhood(source: np.ndarray, destination: np.ndarray, num_nodes: int) -> Graph:
    """Edges of the neighbourhoods N_i of Sec. 2.1: the given edges without duplicates, and a self-loop at each node."""
    pairs = np.stack(add_self_loops(source, destination, num_nodes), 1)
    return make_graph(*np.unique(pairs, axis=0).T, num_nodes)


class GATLayer(nn.Module):
    """H heads: alpha_ij = softmax_j(leaky_relu(a1 h_i + b1 + a2 h_j + b2)), h = x W; sum_j alpha_ij h_j + b.

    The attention [E, H] of every edge is sown as "attention" into "intermediates".

    Attributes:
      width: D, of one head.
      heads: H.
      concat: concatenates the heads (Eq. 5); False averages them (Eq. 6).
      dropout: rate on inputs, projected features and attention, drawn independently for each head.
      skip: adds a learned linear map of the inputs.
      constant: equal weights on all neighbours ("Const-GAT" of the paper).
      dtype: of the computation; the softmax is in float32.
    """

    width: int
    heads: int
    concat: bool = True
    dropout: float = 0.0
    skip: bool = False
    constant: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array | SparseFeatures, graph: Graph, *, train: bool) -> jax.Array:
        """[N, F] -> [N, H D], or [N, D] for averaged heads. The output of a node without edges is the bias."""
        glorot, zeros = nn.initializers.glorot_uniform(batch_axis=0), nn.initializers.zeros
        matrix = (self.heads, inputs.shape[1], self.width)

        def drop(values: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not train)(values)

        def own(name: str, init: Any, *shape: int) -> jax.Array:
            return self.param(name, init, shape).astype(self.dtype)

        kernel = own("kernel", glorot, *matrix)
        if isinstance(inputs, SparseFeatures):
            values = drop(jnp.broadcast_to(inputs.values[:, None], (len(inputs.values), self.heads))).astype(self.dtype)
            terms = values[:, :, None] * kernel.swapaxes(0, 1)[inputs.columns]
            mapped = jax.ops.segment_sum(terms, inputs.rows, inputs.shape[0], indices_are_sorted=True)
        else:
            values = drop(jnp.broadcast_to(inputs, (self.heads, *inputs.shape))).astype(self.dtype)
            mapped = jnp.einsum("hnf,hfd->nhd", values, kernel)
        scores = jnp.zeros((len(graph.source), self.heads))
        if not self.constant:
            halves = [
                jnp.einsum("nhd,hd->nh", mapped, own(end, glorot, self.heads, self.width, 1)[..., 0])
                + own(f"{end}_bias", zeros, self.heads)
                for end in ("destination", "source")
            ]
            scores = nn.leaky_relu(halves[0][graph.destination] + halves[1][graph.source], SLOPE)
        attention = segment_softmax(scores.astype(jnp.float32), graph)
        self.sow("intermediates", "attention", attention)
        weights = drop(attention).astype(self.dtype)
        outputs = segment_sum(weights[..., None] * drop(mapped)[graph.source], graph)
        outputs = outputs + own("bias", zeros, self.heads, self.width)
        if self.skip:
            outputs = outputs + jnp.einsum("hnf,hfd->nhd", values, own("skip", glorot, *matrix))
            outputs = outputs + own("skip_bias", zeros, self.heads, self.width)
        return outputs.reshape(len(outputs), -1) if self.concat else outputs.mean(1)


class GAT(nn.Module):
    """Layers of concatenated heads, each followed by ELU, and an output layer of averaged heads.

    Attributes:
      num_classes: C.
      widths: features per head, for each hidden layer.
      heads: number of heads for each layer, the output layer last.
      dropout: rate on inputs, projected features and attention.
      skip: a skip connection at every hidden layer but the first.
      constant: equal attention on all neighbours.
      dtype: of the computation.
    """

    num_classes: int
    widths: tuple[int, ...] = (8,)
    heads: tuple[int, ...] = (8, 1)
    dropout: float = 0.6
    skip: bool = False
    constant: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array | SparseFeatures, graph: Graph, *, train: bool) -> jax.Array:
        """Features [N, F] -> logits [N, C]. Embeddings [N, H D] are sown as "embeddings" into "intermediates"."""
        if len(self.heads) != len(self.widths) + 1:
            raise ValueError(f"heads {self.heads} for widths {self.widths}: expected one more, for the output")
        shared = {"dropout": self.dropout, "constant": self.constant, "dtype": self.dtype}
        rows = features
        for i, (width, heads) in enumerate(zip(self.widths, self.heads[:-1], strict=True)):
            layer = GATLayer(width, heads, skip=self.skip and i > 0, **shared, name=f"layer{i + 1}")
            rows = nn.elu(layer(rows, graph, train=train))
        self.sow("intermediates", "embeddings", rows)
        output = GATLayer(self.num_classes, self.heads[-1], concat=False, **shared, name="output")
        return output(rows, graph, train=train).astype(jnp.float32)


def gat_citations(num_classes: int, output_heads: int = 1) -> GAT:
    """Cora and Citeseer; Pubmed with eight output heads."""
    return GAT(num_classes, heads=(8, output_heads))


def gat_ppi() -> GAT:
    """Protein interactions: 121 labels, of which a node can have several."""
    return GAT(121, (256, 256), (4, 4, 6), dropout=0.0, skip=True)


def l2(params: Any) -> jax.Array:
    """Half the sum of squares of all parameters, biases included."""
    return 0.5 * sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
