"""ODC: online deep clustering, a network trained on cluster labels that change at every step.

Zhan, Xie, Liu, Ong, Loy. CVPR 2020. arXiv:2006.10645.
The samples memory holds a feature and a pseudo-label of every training picture, the centroids memory the clusters'
means. Each step trains a classifier of the clusters, moves the batch's features in the memory, assigns them the label
of the best centroid and dissolves clusters that became too small, so that no separate clustering pass is needed.

Differs from the authors' code: the same picture twice in a batch writes its last feature (theirs leaves the order
open); the 2-means that splits a cluster starts once from two members drawn at random (theirs: the best of several
k-means++ starts); the weighted loss is normalised over all devices' pictures instead of each device's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from facejax.backbones import resnet
from facejax.nn.norm import BatchNorm
from facejax.ops import vectors
from facejax.ops.scatter import last_of_equal

Dtype = Any


@struct.dataclass
class Memory:
    """Samples memory and centroids memory.

    Attributes:
      features: [n, D] float32 of length 1; zeros for a picture without a feature yet.
      labels: [n] int32 clusters, 0..K-1; -1 for a picture without a feature yet.
      centroids: [K, D] means of the clusters' features, not normalised.
    """

    features: jax.Array
    labels: jax.Array
    centroids: jax.Array

    @classmethod
    def empty(cls, pictures: int, clusters: int, width: int, min_cluster: int = 1) -> Memory:
        """Before the first step. Raises ValueError if `clusters` of `min_cluster` members could not all be filled."""
        if clusters < 2 or min_cluster < 1 or pictures < clusters * min_cluster:
            raise ValueError(
                f"a memory of {pictures} pictures for {clusters} clusters of at least {min_cluster}: expected two "
                "clusters or more, one member or more, and a picture for every one of their members"
            )
        return cls(jnp.zeros((pictures, width)), jnp.full(pictures, -1, jnp.int32), jnp.zeros((clusters, width)))


def cluster_sizes(memory: Memory) -> jax.Array:
    """Members [K] int32; pictures without a label are left out."""
    clusters = memory.centroids.shape[0]
    place = jnp.where(memory.labels < 0, clusters, memory.labels)
    return jnp.zeros(clusters, jnp.int32).at[place].add(1, mode="drop")


def remember(memory: Memory, indices: jax.Array, features: jax.Array, momentum: float = 1.0) -> Memory:
    """Moves rows of the samples memory (Eq. 1): f = (1 - m) f + m x / |x|, made length 1 again; labels stay.

    Args:
      memory: of n pictures.
      indices: [N] int, 0..n-1; of equal ones the last counts.
      features: [N, D], of any length; rows that are not finite are ignored.
      momentum: m; a picture without a feature takes the whole new one whatever m is.
    """
    _check(memory, indices, features)
    rows = vectors.unit((1 - momentum) * memory.features[indices] + momentum * vectors.unit(features))
    place = last_of_equal(jnp.where(_finite(features), indices, -1), len(memory.labels))
    return memory.replace(features=memory.features.at[place].set(rows, mode="drop"))


def update_samples(
    memory: Memory, indices: jax.Array, features: jax.Array, momentum: float
) -> tuple[Memory, jax.Array]:
    """`remember`, and the label of the centroid with the greatest inner product (Eq. 2).

    A picture whose rows are all ignored keeps its label.

    Returns:
      The memory, and [N] bool: whose label has changed.
    """
    memory = remember(memory, indices, features, momentum)
    best = jnp.argmax(memory.features[indices] @ memory.centroids.T, 1).astype(jnp.int32)
    moved = jnp.zeros(len(memory.labels), bool).at[indices].max(_finite(features))[indices]
    labels = jnp.where(moved, best, memory.labels[indices])
    changed = labels != memory.labels[indices]
    return memory.replace(labels=memory.labels.at[indices].set(labels)), changed


def update_centroids(memory: Memory) -> Memory:
    """Every centroid becomes the mean of its members; an empty cluster's stays."""
    clusters = memory.centroids.shape[0]
    place = jnp.where(memory.labels < 0, clusters, memory.labels)
    sums = jnp.zeros_like(memory.centroids).at[place].add(memory.features, mode="drop")
    return memory.replace(centroids=_means(sums, cluster_sizes(memory), memory.centroids))


def class_weights(memory: Memory, power: float = 0.5) -> jax.Array:
    """Weights of the clusters in the loss, [K] with sum 1: proportional to (count + 1e-5)^-power."""
    weights = (cluster_sizes(memory) + 1e-5) ** -power
    return weights / weights.sum()


def handle_small_clusters(memory: Memory, min_cluster: int, rng: jax.Array, *, iterations: int = 20) -> Memory:
    """Dissolves clusters of fewer than `min_cluster` members and refills them from the largest ones.

    The members join the best of the clusters that were not small. Then each emptied cluster receives one part of the
    currently largest cluster, split by 2-means; both centroids become the means of their members. A part may itself be
    small: the next call dissolves it. No cluster is empty afterwards.

    Args:
      memory: of at least K * min_cluster labelled pictures.
      min_cluster: members that a cluster needs.
      rng: for the splits; the same on all devices.
      iterations: of 2-means.
    """
    sizes = cluster_sizes(memory)
    small = sizes < min_cluster
    order, count = jnp.argsort(~small, stable=True), small.sum()

    def dissolve(i: jax.Array, labels: jax.Array) -> jax.Array:
        members = jnp.nonzero(labels == order[i], size=max(min_cluster - 1, 1), fill_value=len(labels))[0]
        rows = memory.features.at[members].get(mode="fill", fill_value=0)
        scores = jnp.where(small, -jnp.inf, rows @ memory.centroids.T)
        return labels.at[members].set(jnp.argmax(scores, 1).astype(jnp.int32), mode="drop")

    def refill(i: jax.Array, memory: Memory) -> Memory:
        emptied, largest = order[i], jnp.argmax(cluster_sizes(memory))
        member = memory.labels == largest
        taken = split(memory.features, member, jax.random.fold_in(rng, i), iterations=iterations)
        centroids = memory.centroids
        for cluster, part in ((largest, member & ~taken), (emptied, taken)):
            centroids = centroids.at[cluster].set(part @ memory.features / part.sum())
        return memory.replace(labels=jnp.where(taken, emptied, memory.labels).astype(jnp.int32), centroids=centroids)

    memory = memory.replace(labels=lax.fori_loop(0, count, dissolve, memory.labels))
    return lax.fori_loop(0, count, refill, memory)


def follow(
    memory: Memory,
    indices: jax.Array,
    features: jax.Array,
    rng: jax.Array,
    *,
    momentum: float,
    min_cluster: int,
    centroids_due: jax.Array,
) -> tuple[Memory, jax.Array]:
    """What a training step does to the memories: samples, centroids where they are due, small clusters.

    Args:
      memory: of n pictures.
      indices, features: [N] and [N, D] of the batch, see `remember`.
      rng: of `handle_small_clusters`; the same on all devices.
      momentum: of the samples memory.
      min_cluster: members that a cluster needs.
      centroids_due: [] bool.

    Returns:
      The memory, and [N] bool: whose label has changed.
    """
    memory, changed = update_samples(memory, indices, features, momentum)
    memory = lax.cond(centroids_due, update_centroids, lambda same: same, memory)
    return handle_small_clusters(memory, min_cluster, rng), changed


def split(features: jax.Array, member: jax.Array, rng: jax.Array, *, iterations: int = 20) -> jax.Array:
    """One part of a cluster split in two: by 2-means, or where that fails a random half.

    Args:
      features: [n, D] of all pictures.
      member: [n] bool, two or more.
      rng: for the start and for a random half.
      iterations: of 2-means.

    Returns:
      [n] bool: members that go; neither they nor those that stay are none.
    """
    start, half = jax.random.split(rng)
    _, labels = kmeans(features, 2, start, iterations=iterations, where=member)
    second, count = labels == 1, member.sum()
    drawn = jnp.where(member, jax.random.uniform(half, member.shape), jnp.inf)
    random_half = jnp.zeros_like(member).at[jnp.argsort(drawn)].set(jnp.arange(len(member)) < count // 2)
    failed = (second.sum() == 0) | (second.sum() == count)
    return jnp.where(failed, random_half, second)


def kmeans(
    features: jax.Array,
    clusters: int,
    rng: jax.Array,
    *,
    iterations: int = 20,
    where: jax.Array | None = None,
    chunk: int = 16_384,
) -> tuple[jax.Array, jax.Array]:
    """Lloyd's k-means from rows drawn at random; a cluster that loses all its members keeps its centroid.

    Args:
      features: [n, D].
      clusters: K, at most n.
      rng: draws the rows to start from.
      iterations: of assignment and mean.
      where: [n] bool, rows that are clustered; None takes all. With fewer than K of them the last centroids are drawn
        from the other rows.
      chunk: rows whose distances are in memory at once.

    Returns:
      Centroids [K, D], and labels [n] int32, -1 for rows that are not clustered.
    """
    if clusters > features.shape[0]:
        raise ValueError(f"kmeans: {clusters} clusters of {features.shape[0]} rows, expected no more than rows")
    where = jnp.ones(features.shape[0], bool) if where is None else where
    first = lax.top_k(jnp.where(where, jax.random.uniform(rng, where.shape), -1.0), clusters)[1]

    def assign(centroids: jax.Array) -> jax.Array:
        half = 0.5 * jnp.sum(centroids**2, 1)
        nearest = lax.map(lambda row: jnp.argmax(centroids @ row - half), features, batch_size=chunk)
        return jnp.where(where, nearest, -1).astype(jnp.int32)

    def iterate(_: int, centroids: jax.Array) -> jax.Array:
        return update_centroids(Memory(features, assign(centroids), centroids)).centroids

    centroids = lax.fori_loop(0, iterations, iterate, features[first])
    return centroids, assign(centroids)


def cluster_all(
    memory: Memory, rng: jax.Array, *, min_cluster: int = 1, iterations: int = 20, chunk: int = 16_384
) -> Memory:
    """Labels and centroids by k-means over all pictures with a feature; small clusters are dissolved once."""
    seen = jnp.any(memory.features != 0, 1)
    start, parts = jax.random.split(rng)
    clusters = memory.centroids.shape[0]
    centroids, labels = kmeans(memory.features, clusters, start, iterations=iterations, where=seen, chunk=chunk)
    memory = update_centroids(Memory(memory.features, labels, centroids))
    return handle_small_clusters(memory, min_cluster, parts)


class Neck(nn.Module):
    """Dense, batch norm without scale and bias, ReLU, dropout, dense, ReLU: the features that are clustered.

    Attributes:
      hidden, width: of the two layers.
      dropout: rate.
      momentum: of the running averages (0.999 here is 0.001 in PyTorch).
      axis_name: shares batch statistics over this mapped axis.
      dtype: of the computation.
    """

    hidden: int = 512
    width: int = 256
    dropout: float = 0.5
    momentum: float = 0.999
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, C] pooled features -> [N, width], none negative."""
        kaiming = nn.initializers.he_normal()
        x = nn.Dense(self.hidden, kernel_init=kaiming, dtype=self.dtype, name="fc0")(x)
        x = BatchNorm(
            self.axis_name, use_scale=False, use_bias=False, momentum=self.momentum, dtype=self.dtype, name="bn0"
        )(x, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return nn.relu(nn.Dense(self.width, kernel_init=kaiming, dtype=self.dtype, name="fc1")(x))


class ODC(nn.Module):
    """Backbone, global average pool and neck; the classifier of the clusters is `head_init`'s.

    Attributes:
      backbone: called as (images, train=..., features=True), gives {"c5": [N, H, W, C]}.
      neck: on the pooled features.
    """

    backbone: nn.Module
    neck: nn.Module

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """[N, H, W, 3] -> pooled features [N, C], what is evaluated, and the neck's [N, D], what is clustered."""
        pooled = self.backbone(images, train=train, features=True)["c5"].astype(jnp.float32).mean((1, 2))
        return pooled, self.neck(pooled, train=train).astype(jnp.float32)


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "tiny": lambda **options: resnet.ResNet((1, 1, 1, 1), False, widths=(16, 32, 64, 128), **options),
    "resnet50": resnet.resnet50,
}


def network(name: str, hidden: int, width: int, dropout: float, dtype: str, axis_name: str | None = None) -> ODC:
    """Backbone and neck by name.

    Args:
      name: of `BACKBONES`.
      hidden, width, dropout: of `Neck`.
      dtype: of the computation.
      axis_name: shares batch statistics over this mapped axis.

    Raises:
      ValueError: an unknown name.
    """
    if name not in BACKBONES:
        raise ValueError(f"model.name is {name!r}: expected one of {', '.join(BACKBONES)}")
    options = {"axis_name": axis_name, "dtype": jnp.dtype(dtype)}
    return ODC(BACKBONES[name](**options), Neck(hidden, width, dropout, **options))


def head_init(rng: jax.Array, width: int, clusters: int) -> dict[str, jax.Array]:
    """A linear classifier of the clusters: kernel [D, K] drawn from N(0, 0.01), bias [K] of zeros."""
    return {"kernel": 0.01 * jax.random.normal(rng, (width, clusters)), "bias": jnp.zeros(clusters)}


def _means(sums: jax.Array, counts: jax.Array, otherwise: jax.Array) -> jax.Array:
    return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], otherwise)


def _finite(features: jax.Array) -> jax.Array:
    """Whether each row of [N, D] is finite, [N]."""
    return jnp.isfinite(features).all(1)


def _check(memory: Memory, indices: jax.Array, features: jax.Array) -> None:
    width = memory.features.shape[1]
    if indices.ndim != 1 or features.shape != (indices.shape[0], width):
        raise ValueError(f"indices {indices.shape} and features {features.shape}: expected [N] and [N, {width}]")
