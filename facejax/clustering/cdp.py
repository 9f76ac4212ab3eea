"""CDP: pairs on which a committee of recognition networks agrees, and labels that spread along them.

Zhan, Liu, Yan, Lin & Loy, Consensus-Driven Propagation in Massive Unlabeled Data for Face Recognition. ECCV 2018.
arXiv:1809.01407. The base network's nearest neighbours are candidates; a vote, or a mediator with inputs of all
networks, keeps some; connected components that grow too large are split at rising thresholds.

Differs from the paper: the mediator's structure input is that of the authors' code (size of the common neighbourhood),
not means and variances of similarities. Training a recognition network on the pseudo-labels is left to ArcFace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.ops import vectors
from facejax.ops.components import connected_components
from facejax.ops.knn import Neighbours


class Pairs(NamedTuple):
    """P undirected pairs: a, b [P] node numbers (a < b), score [P] in 0..1."""

    a: np.ndarray
    b: np.ndarray
    score: np.ndarray


def candidates(base: Neighbours) -> Pairs:
    """Every row with each of its neighbours but itself; both directions where both lists hold the pair. [N (k - 1)]."""
    count, k = base.ids.shape
    rows, ids = np.repeat(np.arange(count), k), base.ids.ravel()
    keep = rows != ids
    return Pairs(rows[keep], ids[keep], base.similarity.ravel()[keep])


def undirected(pairs: Pairs) -> Pairs:
    """Each pair once, with its greatest score."""
    low, high = np.minimum(pairs.a, pairs.b), np.maximum(pairs.a, pairs.b)
    order = np.lexsort((-pairs.score, high, low))
    low, high, score = low[order], high[order], pairs.score[order]
    first = np.ones(len(low), bool)
    first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return Pairs(low[first], high[first], score[first])


def listed(neighbours: Neighbours, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether b is among a's neighbours, [P]."""
    count = len(neighbours.ids)
    codes = np.sort((np.arange(count)[:, None] * count + neighbours.ids).ravel())
    wanted = a.astype(np.int64) * count + b
    return codes[np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)] == wanted


def vote(base: Neighbours, committee: Sequence[Neighbours], threshold: float, accept: int) -> Pairs:
    """Pairs that enough networks list (Sec. 3.2, voting).

    Args:
      base: neighbours by the base network.
      committee: by the others; only the lists of a candidate's first row are read, as in the authors' code.
      threshold: lower bound, exclusive, of the base network's cosine.
      accept: how many of the committee must list the pair; 0 for the single-model form.

    Raises:
      ValueError: `accept` beyond the committee.
    """
    if not 0 <= accept <= len(committee):
        raise ValueError(f"accept is {accept}: expected 0 to {len(committee)}, the size of the committee")
    found = candidates(base)
    votes = sum((listed(other, found.a, found.b).astype(int) for other in committee), np.zeros(len(found.a), int))
    keep = (found.score > threshold) & (votes >= accept)
    return undirected(Pairs(*(x[keep] for x in found)))


def mediator_features(views: np.ndarray, neighbours: Sequence[Neighbours], pairs: Pairs) -> jax.Array:
    """Inputs of the mediator from M + 1 networks, the base first: [P, 3M + 2] (Sec. 3.2, mediator).

    M relationships (is either in the other's list?), M + 1 cosines, M + 1 numbers of common neighbours, 0 to k.

    Args:
      views: [M + 1, N, D] of length 1.
      neighbours: M + 1 of them, k each.
      pairs: P of them.

    Raises:
      ValueError: a feature is not finite.
    """
    for view in views:
        vectors.check_finite(view)
    linked = [listed(other, pairs.a, pairs.b) | listed(other, pairs.b, pairs.a) for other in neighbours[1:]]
    cosines = [np.einsum("pd,pd->p", view[pairs.a], view[pairs.b]) for view in views]
    common = [_common(other.ids, pairs) for other in neighbours]
    return jnp.stack([*linked, *cosines, *common], 1).astype(jnp.float32)


def _common(ids: np.ndarray, pairs: Pairs) -> jax.Array:
    """Size of the intersection of two rows' lists, [P]."""
    ids = jnp.asarray(ids)

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.sum(ids[pair[0]][:, None] == ids[pair[1]])

    return jax.jit(lambda a, b: lax.map(one, (a, b), batch_size=4096))(pairs.a, pairs.b)


class Mediator(nn.Module):
    """Logits [P, 2] (different, same) of pair features [P, d]: two hidden layers of 3 d, as in the code."""

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        width = 3 * features.shape[-1]
        hidden = nn.relu(nn.Dense(width)(features))
        return nn.Dense(2)(nn.relu(nn.Dense(width)(hidden)))


def propagate(
    pairs: Pairs, num_nodes: int, *, max_size: int = 600, step: float = 0.05, iterations: int = 100
) -> np.ndarray:
    """Labels from pairs (Sec. 3.3): components; those above `max_size` again, over a rising threshold.

    Args:
      pairs: kept ones.
      num_nodes: N.
      max_size: most nodes of a component that is not split.
      step: the threshold t moves to t + (1 - t) step.
      iterations: at most; all nodes that remain then are one cluster.

    Returns:
      [N] labels from 0; -1 for nodes without any pair.
    """
    labels = np.full(num_nodes, -1)
    remain = np.zeros(num_nodes, bool)
    remain[pairs.a] = remain[pairs.b] = True
    threshold, used = (float(pairs.score.min()) if len(pairs.score) else 0.0), 0
    for _ in range(iterations):
        nodes = np.flatnonzero(remain)
        if not len(nodes):
            return labels
        live = remain[pairs.a] & remain[pairs.b] & (pairs.score >= threshold)
        place = np.searchsorted(nodes, np.stack([pairs.a[live], pairs.b[live]]))
        component = connected_components(*place, len(nodes))
        small = np.bincount(component)[component] <= max_size
        fresh, number = np.unique(component[small], return_inverse=True)
        labels[nodes[small]] = used + number
        used += len(fresh)
        remain[nodes[small]] = False
        threshold += (1 - threshold) * step
    labels[remain] = used
    return labels
