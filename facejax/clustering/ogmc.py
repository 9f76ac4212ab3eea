"""OGMC: online face clustering in which an identity may be several connected clusters.

Montero, Aginako, Sierra & Nieto, Efficient Large-Scale Face Clustering Using an Online Mixture of Gaussians. 2021.
arXiv:2103.17272. One pass over a stream of embeddings: each joins the nearest cluster or starts one; clusters of one
mode are fused, and close, robust ones (many samples) are connected. An identity is a connected component.

From the paper's abstract: several clusters per identity, connections by proximity and robustness, connections updated
with every update of a cluster. There is no official code: the rules and constants are those of a third party's
re-implementation (gerald-ftk/dfclust), in which a "Gaussian" is a mean and a count, without a variance. Differs from
that: all connections of an updated cluster are evaluated again, so they can end; a cluster lists its nearest
connections, not its farthest.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from facejax.ops import vectors
from facejax.ops.components import connected_components


class Rules(NamedTuple):
    """Euclidean distances between means, up to which clusters are fused or connected.

    Attributes:
      fuse: a sample joins a cluster, and clusters that are not both robust are fused.
      strong: two robust clusters are connected.
      weak: a robust cluster and another are connected; two that are not robust never are.
      robust: members that make a cluster robust.
    """

    fuse: float = 0.7
    strong: float = 0.99
    weak: float = 1.12
    robust: int = 5


RULES = Rules()


@struct.dataclass
class State:
    """Clusters in C slots and, 4 bytes each, where T samples went. A slot with count 0 is free and may be used again.

    Attributes:
      mean: [C, D] means of the members, of length up to 1: never normalised again.
      count: [C] int32 members.
      founder: [C] int32, the number in the stream of the sample that began the cluster.
      links: [C, K] int32, slots of the nearest connected clusters; -1 for none. A connection counts in both directions.
      parent: [T] int32: a sample's is the founder of the cluster it joined; a founder's is itself or, once its cluster
        is fused, the founder of the one it went into; -1 for samples to come.
      seen: [] int32 samples so far.
      overflow: [] int32, the first sample that found no free slot; -1 for none.
    """

    mean: jax.Array
    count: jax.Array
    founder: jax.Array
    links: jax.Array
    parent: jax.Array
    seen: jax.Array
    overflow: jax.Array


class Labels(NamedTuple):
    """Of the samples seen: cluster [N], its founder's number; identity [N], numbered from 0."""

    cluster: np.ndarray
    identity: np.ndarray


def empty(capacity: int, width: int, samples: int, connections: int = 5) -> State:
    """The state before the first sample.

    Args:
      capacity: C, most clusters at once.
      width: D.
      samples: T, length of the longest stream.
      connections: K, most connections that a cluster lists; 0 makes every cluster an identity.
    """
    if capacity < 1 or width < 1 or samples < 1 or not 0 <= connections <= capacity:
        raise ValueError(
            f"ogmc: capacity {capacity}, width {width}, samples {samples}, connections {connections}: expected "
            "numbers from 1, and no more connections than capacity"
        )
    return State(
        mean=jnp.zeros((capacity, width)),
        count=jnp.zeros(capacity, jnp.int32),
        founder=jnp.full(capacity, -1, jnp.int32),
        links=jnp.full((capacity, connections), -1, jnp.int32),
        parent=jnp.full(samples, -1, jnp.int32),
        seen=jnp.int32(0),
        overflow=jnp.int32(-1),
    )


def observe(state: State, sample: jax.Array, rules: Rules = RULES) -> State:
    """Takes one sample in: joins it to the nearest cluster within `fuse`, or starts a cluster with it.

    A cluster that is joined is fused with its neighbours, and its connections are evaluated again. A new cluster is
    connected to the nearest one, if that is robust and within `weak`. Equal distances go to the lower slot.

    Args:
      state: before.
      sample: [D] of length 1, finite.
      rules: numbers or arrays [].

    Returns:
      The state after. Where no slot is free the sample is dropped and `overflow` holds its number.
    """
    alive = state.count > 0
    distance = jnp.where(alive, jnp.linalg.norm(state.mean - sample, axis=1), jnp.inf)
    near = jnp.argmin(distance)
    joins = distance[near] <= rules.fuse
    full = ~joins & alive.all()
    slot = jnp.where(joins, near, jnp.where(full, len(alive), jnp.argmin(alive)))  # beyond the last is nowhere
    size = jnp.where(joins, state.count[near], 0)
    founder = jnp.where(joins, state.founder[near], state.seen)
    moved = jnp.where(joins, state.mean[near] + (sample - state.mean[near]) / (size + 1), sample)
    robust_near = (state.count[near] >= rules.robust) & (distance[near] <= rules.weak)
    first = jnp.where(jnp.arange(state.links.shape[1]) == 0, jnp.where(robust_near, near, -1), -1)
    state = state.replace(
        mean=state.mean.at[slot].set(moved, mode="drop"),
        count=state.count.at[slot].set(size + 1, mode="drop"),
        founder=state.founder.at[slot].set(founder, mode="drop"),
        links=jnp.where(joins, state.links, state.links.at[slot].set(first.astype(jnp.int32), mode="drop")),
        parent=state.parent.at[state.seen].set(jnp.where(full, -1, founder), mode="drop"),
        seen=state.seen + 1,
        overflow=jnp.where((state.overflow < 0) & full, state.seen, state.overflow),
    )
    return _recluster(state, near, joins, rules)


def _recluster(state: State, u: jax.Array, wanted: jax.Array, rules: Rules) -> State:
    """Fuses clusters into slot `u`, nearest first, until none may be, and connects it anew; nothing unless `wanted`."""
    slots = jnp.arange(len(state.count))

    def others(state: State) -> tuple[jax.Array, jax.Array]:
        """Distances to the other clusters, inf elsewhere, and the next to fuse or -1."""
        present = (state.count > 0) & (slots != u) & wanted
        distance = jnp.where(present, jnp.linalg.norm(state.mean - state.mean[u], axis=1), jnp.inf)
        robust = state.count >= rules.robust
        fusable = (distance <= rules.fuse) & ~(robust & robust[u])
        nearest = jnp.argmin(jnp.where(fusable, distance, jnp.inf))
        return distance, jnp.where(fusable[nearest], nearest, -1)

    def fuse(carry: tuple[State, jax.Array, jax.Array]) -> tuple[State, jax.Array, jax.Array]:
        state, _, m = carry
        a, b = state.count[u], state.count[m]
        state = state.replace(
            mean=state.mean.at[u].set((a * state.mean[u] + b * state.mean[m]) / (a + b)),
            count=state.count.at[u].set(a + b).at[m].set(0),
            links=jnp.where(state.links == m, u, state.links).at[m].set(-1),
            parent=state.parent.at[state.founder[m]].set(state.founder[u]),
        )
        return state, *others(state)

    state, distance, _ = lax.while_loop(lambda carry: carry[2] >= 0, fuse, (state, *others(state)))
    robust = state.count >= rules.robust
    both, one = robust & robust[u], robust ^ robust[u]
    admitted = (both & (distance <= rules.strong)) | (one & (distance <= rules.weak))
    gap, nearest = lax.top_k(jnp.where(admitted, -distance, -jnp.inf), state.links.shape[1])
    kept = jnp.where((state.links == u) & ~admitted[:, None], -1, state.links)
    kept = kept.at[u].set(jnp.where(jnp.isfinite(gap), nearest, -1))
    return state.replace(links=jnp.where(wanted, kept, state.links))


def observe_all(state: State, samples: jax.Array, rules: Rules = RULES) -> State:
    """`observe` for samples [N, D] in their order; the old state is used up.

    Raises:
      ValueError: a sample is not finite. One alone would draw its neighbours into a cluster without a mean.
    """
    vectors.check_finite(samples)
    return _observe_all(state, samples, rules)


@functools.partial(jax.jit, donate_argnums=0)
def _observe_all(state: State, samples: jax.Array, rules: Rules) -> State:
    return lax.scan(lambda s, x: (observe(s, x, rules), None), state, samples)[0]


def labels(state: State) -> Labels:
    """Clusters and identities of all samples seen, on the host.

    Raises:
      ValueError: a sample found no free slot, or the stream was longer than `samples`.
    """
    state = jax.tree.map(np.asarray, state)
    if state.overflow >= 0:
        raise ValueError(
            f"ogmc: sample {state.overflow} would begin a cluster, but all {len(state.count)} slots are in use: "
            "expected a larger capacity"
        )
    if state.seen > len(state.parent):
        raise ValueError(f"ogmc: {state.seen} samples, but the state keeps track of {len(state.parent)}")
    cluster = state.parent[: state.seen]
    while not np.array_equal(cluster, cluster[cluster]):
        cluster = cluster[cluster]
    used = np.flatnonzero(state.count)
    slot = np.zeros(max(len(cluster), 1), np.int64)
    slot[state.founder[used]] = used
    source, place = np.nonzero(state.links >= 0)
    component = connected_components(source, state.links[source, place], len(state.count))
    identity = component[slot[cluster]]
    return Labels(cluster, np.unique(identity, return_inverse=True)[1])
