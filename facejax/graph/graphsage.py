"""GraphSAGE: inductive representation learning on large graphs.

Hamilton, Ying, Leskovec. NeurIPS 2017. arXiv:1706.02216.
A layer concatenates projections of a node's features and of an aggregate of a few sampled neighbours. The network
learns the aggregators instead of one embedding per node, so it also embeds nodes that were absent during training.

Differs from the paper: embeddings are normalised once, after the last layer, as in the authors' code (Algorithm 1:
after every layer). Neighbours are drawn independently for every node, without replacement, from all of its edges; a
node with fewer returns each once (the authors draw from a table of 128 columns filled with replacement, with one
permutation of the columns per batch). The LSTM's sequence has as many entries as there are neighbours (the authors: as
there are neighbours with non-zero features).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.ops import vectors
from facejax.ops.graph import Graph, sample_neighbors

POOL_HIDDEN, LSTM_HIDDEN = 512, 128


class Block(NamedTuple):
    """Inputs of one layer for M nodes, as row numbers of the previous layer's output or of the features.

    Attributes:
      nodes: [M] the nodes themselves.
      neighbors: [M, S] sampled neighbours.
      mask: [M, S] bool, False where a node has fewer than S neighbours.
    """

    nodes: jax.Array
    neighbors: jax.Array
    mask: jax.Array


def sample_blocks(
    rng: jax.Array,
    graph: Graph,
    starts: jax.Array,
    nodes: jax.Array,
    samples: tuple[int, ...],
    *,
    shuffle: bool = False,
) -> tuple[Block, ...]:
    """Sampled neighbourhoods from which the layers embed a mini-batch: lines 1 to 7 of Algorithm 2.

    Args:
      rng: key; equal keys give equal samples.
      graph: without padding edges.
      starts: `offsets(graph)`.
      nodes: [B] the mini-batch.
      samples: neighbours for layer 1 (the farthest from the mini-batch), 2, ...: (25, 10) in the paper.
      shuffle: puts the neighbours of every node in random order, for the LSTM.

    Returns:
      One block per layer; the first block holds node numbers, `nodes` of the last block is 0..B-1.
    """
    keys = jax.random.split(rng, len(samples))
    blocks = []
    for key, count in zip(keys, reversed(samples), strict=True):
        draw, order = jax.random.split(key)
        neighbors, mask = sample_neighbors(draw, graph, starts, nodes, count)
        if shuffle:
            rank = jnp.argsort(jnp.where(mask, jax.random.uniform(order, mask.shape), 1.0), axis=1)
            neighbors = jnp.take_along_axis(neighbors, rank, 1)
        blocks.append(Block(nodes, neighbors, mask))
        nodes = jnp.concatenate([nodes, neighbors.ravel()])
    first, later = blocks[-1], blocks[-2::-1]
    return first, *(
        Block(
            jnp.arange(len(block.nodes)),
            len(block.nodes) + jnp.arange(block.neighbors.size).reshape(block.neighbors.shape),
            block.mask,
        )
        for block in later
    )


def mapped_rows(function: Any, rows: jax.Array, index: jax.Array) -> jax.Array:
    """function(rows)[index], computed as function(rows[index]) where that is fewer rows."""
    return function(rows)[index] if len(rows) < index.size else function(rows[index])


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the entries where `mask` is True, zeros without any: [M, S, F], [M, S] -> [M, F]."""
    count = jnp.maximum(mask.sum(1, keepdims=True), 1).astype(values.dtype)
    return jnp.sum(jnp.where(mask[..., None], values, 0), 1) / count


def _dense(width: int, dtype: Any, name: str, *, bias: bool = False) -> nn.Dense:
    return nn.Dense(width, use_bias=bias, dtype=dtype, kernel_init=nn.initializers.glorot_uniform(), name=name)


class MeanAggregator(nn.Module):
    """[x W_own, mean(neighbours) W_near]: rows [R, F] -> [M, 2 width]."""

    width: int
    hidden: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, rows: jax.Array, block: Block) -> jax.Array:
        near = _dense(self.width, self.dtype, "near")
        if len(rows) < block.neighbors.size:
            mean = masked_mean(near(rows)[block.neighbors], block.mask)
        else:
            mean = near(masked_mean(rows[block.neighbors], block.mask))
        return jnp.concatenate([_dense(self.width, self.dtype, "own")(rows[block.nodes]), mean], 1)


class GCNAggregator(nn.Module):
    """mean(neighbours and the node itself) W, Eq. 2; W is twice as wide, without a concatenation: -> [M, 2 width]."""

    width: int
    hidden: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, rows: jax.Array, block: Block) -> jax.Array:
        index = jnp.concatenate([block.nodes[:, None], block.neighbors], 1)
        mask = jnp.pad(block.mask, ((0, 0), (1, 0)), constant_values=True)
        both = _dense(2 * self.width, self.dtype, "both")
        return masked_mean(both(rows)[index], mask) if len(rows) < index.size else both(masked_mean(rows[index], mask))


class MaxPoolAggregator(nn.Module):
    """[x W_own, pool(relu(neighbours W_pool + b)) W_near], Eq. 3: -> [M, 2 width].

    Attributes:
      width: features of each half of the output.
      hidden: units of the pooled layer; 0 is 512 (the authors' big model: 1024).
    """

    width: int
    hidden: int = 0
    dtype: Any = jnp.float32

    def pool(self, values: jax.Array, mask: jax.Array) -> jax.Array:
        """Maximum over the neighbours of non-negative values [M, S, hidden] -> [M, hidden]."""
        return jnp.max(jnp.where(mask[..., None], values, 0), 1)

    @nn.compact
    def __call__(self, rows: jax.Array, block: Block) -> jax.Array:
        layer = _dense(self.hidden or POOL_HIDDEN, self.dtype, "pool", bias=True)
        pooled = self.pool(mapped_rows(lambda x: nn.relu(layer(x)), rows, block.neighbors), block.mask)
        own = _dense(self.width, self.dtype, "own")(rows[block.nodes])
        return jnp.concatenate([own, _dense(self.width, self.dtype, "near")(pooled)], 1)


class MeanPoolAggregator(MaxPoolAggregator):
    """MaxPoolAggregator with the mean in place of the maximum."""

    def pool(self, values: jax.Array, mask: jax.Array) -> jax.Array:
        return masked_mean(values, mask)


class LSTMAggregator(nn.Module):
    """[x W_own, LSTM(neighbours in the given order) W_near]: -> [M, 2 width]; the state without neighbours is zero.

    Attributes:
      width: features of each half of the output.
      hidden: units of the LSTM; 0 is 128 (the authors' big model: 256). The gates' order is input, cell, forget,
        output; the forget gate adds 1 to its bias.
    """

    width: int
    hidden: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, rows: jax.Array, block: Block) -> jax.Array:
        hidden = self.hidden or LSTM_HIDDEN
        shape = rows.shape[1] + hidden, 4 * hidden
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[1:]).astype(self.dtype)
        inputs, recurrent = kernel[: rows.shape[1]], kernel[rows.shape[1] :]
        sequence = mapped_rows(lambda x: x.astype(self.dtype) @ inputs + bias, rows, block.neighbors)

        def step(state: tuple[jax.Array, jax.Array], item: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            (cell, output), (values, exists) = state, item
            into, new, keep, out = jnp.split(values + output @ recurrent, 4, 1)
            new_cell = nn.sigmoid(keep + 1) * cell + nn.sigmoid(into) * jnp.tanh(new)
            moved = new_cell, nn.sigmoid(out) * jnp.tanh(new_cell)
            return jax.tree.map(lambda a, b: jnp.where(exists[:, None], a, b), moved, state), None

        zeros = jnp.zeros((len(block.nodes), hidden), self.dtype)
        (_, last), _ = lax.scan(step, (zeros, zeros), (sequence.swapaxes(0, 1), block.mask.T))
        own = _dense(self.width, self.dtype, "own")(rows[block.nodes])
        return jnp.concatenate([own, _dense(self.width, self.dtype, "near")(last)], 1)


AGGREGATORS = {
    "mean": MeanAggregator,
    "gcn": GCNAggregator,
    "meanpool": MeanPoolAggregator,
    "maxpool": MaxPoolAggregator,
    "lstm": LSTMAggregator,
}


class GraphSAGE(nn.Module):
    """Aggregators with ReLU between them, L2-normalised embeddings, and a linear classifier.

    Attributes:
      num_classes: C; None omits the classifier.
      aggregator: a name in `AGGREGATORS`.
      width: half the features of every layer's output.
      hidden: units of pooling layer and LSTM; 0 is their default.
    """

    num_classes: int | None = None
    aggregator: str = "mean"
    width: int = 128
    hidden: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, blocks: tuple[Block, ...]) -> jax.Array:
        """Features of all nodes [N, F] and the blocks of B nodes, one per layer -> logits [B, C] or [B, 2 width]."""
        if self.aggregator not in AGGREGATORS:
            raise ValueError(f"aggregator is {self.aggregator!r}: expected one of {', '.join(AGGREGATORS)}")
        rows = features
        for i, block in enumerate(blocks):
            layer = AGGREGATORS[self.aggregator](self.width, self.hidden, self.dtype, name=f"layer{i + 1}")
            rows = layer(nn.relu(rows) if i else rows, block)
        rows = vectors.unit(rows, 1e-6)
        return rows if self.num_classes is None else _dense(self.num_classes, self.dtype, "classes", bias=True)(rows)


def supervised_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy [N] of logits [N, C]: softmax for labels [N]; mean over sigmoids for labels [N, C] of 0 and 1."""
    logits = logits.astype(jnp.float32)
    if labels.ndim == 1:
        return -jnp.take_along_axis(nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    return -jnp.mean(labels * nn.log_sigmoid(logits) + (1 - labels) * nn.log_sigmoid(-logits), 1)


def unsupervised_loss(anchors: jax.Array, positives: jax.Array, negatives: jax.Array) -> jax.Array:
    """-log s(z_u z_v) - sum_q log s(-z_u z_q), Eq. 1 with the negatives shared: [B, D], [B, D], [Q, D] -> [B]."""
    near = nn.log_sigmoid(jnp.sum(anchors * positives, 1))
    return -near - nn.log_sigmoid(-anchors @ negatives.T).sum(1)


def random_walks(rng: jax.Array, graph: Graph, starts: jax.Array, nodes: jax.Array, steps: int) -> jax.Array:
    """Random walks from `nodes` [B], each step to a uniformly drawn neighbour: visited nodes [B, steps].

    Args:
      rng: key; equal keys give equal walks.
      graph: edges in both directions, without padding.
      starts: `offsets(graph)`.
      nodes: [B]; a walk stays at a node without edges.
      steps: steps of a walk; the result excludes the starting node.
    """

    def step(nodes: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        nodes = sample_neighbors(key, graph, starts, nodes, 1)[0][:, 0]
        return nodes, nodes

    return lax.scan(step, nodes, jax.random.split(rng, steps))[1].T


def negative_distribution(starts: np.ndarray, power: float = 0.75) -> jax.Array:
    """Cumulative probabilities [N] of nodes, proportional to degree ** power; `starts` is `offsets(graph)`."""
    weight = np.diff(np.asarray(starts)).astype(np.float64) ** power
    if weight.sum() == 0:
        raise ValueError("negative samples: the graph has no edges; expected at least one")
    total = np.cumsum(weight)
    return jnp.asarray(total / total[-1], jnp.float32)


def draw_nodes(rng: jax.Array, cumulative: jax.Array, count: int) -> jax.Array:
    """Nodes [count] drawn with replacement from `negative_distribution`."""
    return jnp.searchsorted(cumulative, jax.random.uniform(rng, (count,)), side="right").astype(jnp.int32)


def micro_f1(predicted: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
    """2 TP / (2 TP + FP + FN) over all classes [N, C] bool of the nodes where `where` [N] is True; 0 / 0 is 0."""
    hits = jnp.sum(predicted & labels & where[:, None])
    return 2 * hits / jnp.maximum(jnp.sum((predicted.astype(int) + labels) * where[:, None]), 1)
