"""FSA-Net: head pose from features that are grouped by a learnt fine-grained structure.

Yang, Chen, Lin, Chuang. "FSA-Net: learning fine-grained structure aggregation for head pose estimation from a single
image". CVPR 2019. Each pixel of three feature maps gets a score of its importance; from the scores follow weights with
which the pixels are averaged to a few representative vectors. A capsule layer (or NetVLAD) aggregates these to one
vector per stage of a soft stagewise regression (`facejax.attributes.ssrnet`) of yaw, pitch and roll.

`FSANet` follows the authors' code where it and the paper differ: maps of both streams are reduced to 64 channels before
they are multiplied, and a stage has one shift per angle. Not as there: images are RGB (`facejax.interop.fsanet` turns
the published weights, which expect BGR), and `smallest` can bound the divisor of a stage.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.attributes.ssrnet import GLOROT, SeparableStreams, Stages, check_size, soft_stagewise
from facejax.ops.vectors import unit

Dtype = Any

SCORINGS = ("conv", "variance", "none")
"""Scores of pixels: a 1x1 convolution, the variance over channels, or no structure at all (all pixels, no mapping)."""
AGGREGATIONS = ("capsule", "netvlad", "metric")


def squash(vectors: jax.Array, epsilon: float = 1e-7) -> jax.Array:
    """Vectors [..., D] of length r -> the same direction, length r^2 / (1 + r^2)."""
    square = jnp.sum(vectors**2, -1, keepdims=True)
    return vectors * square / (1 + square) / jnp.sqrt(square + epsilon)


def route(votes: jax.Array, iterations: int) -> jax.Array:
    """Dynamic routing: capsules agree on the votes that they take.

    Args:
      votes: [N, C, M, D], vote of each of M vectors for each of C capsules.
      iterations: 1 averages the votes with weights 1 / C.

    Returns:
      [N, C, D].
    """
    logits = jnp.zeros(votes.shape[:3], votes.dtype)
    for i in range(iterations):
        capsules = squash(jnp.einsum("ncm,ncmd->ncd", jax.nn.softmax(logits, 1), votes))
        if i + 1 < iterations:
            logits = logits + jnp.einsum("ncd,ncmd->ncm", capsules, votes)
    return capsules


class CapsuleLayer(nn.Module):
    """Capsules of M vectors, by dynamic routing (Sabour et al., arXiv:1710.09829).

    Attributes:
      capsules: C.
      size: D, length of a capsule.
      iterations: of the routing.
    """

    capsules: int = 3
    size: int = 16
    iterations: int = 2

    @nn.compact
    def __call__(self, vectors: jax.Array) -> jax.Array:
        """[N, M, E] -> [N, C, D]."""
        shape = (self.capsules, vectors.shape[1], self.size, vectors.shape[2])
        weights = self.param("weights", GLOROT, shape)
        return route(jnp.einsum("nme,cmde->ncmd", vectors, weights), self.iterations)


class NetVLAD(nn.Module):
    """Vectors summed by soft assignment to clusters, less the clusters' centres (Arandjelovic et al., 1511.07247).

    Attributes:
      clusters: K.
      size: D, length of a vector of the result.
    """

    clusters: int = 3
    size: int = 16

    @nn.compact
    def __call__(self, vectors: jax.Array) -> jax.Array:
        """[N, M, E] -> [N, K, D]."""
        width, k = vectors.shape[-1], self.clusters
        normal = nn.initializers.normal(width**-0.5)
        weights, biases = self.param("weights", normal, (width, k)), self.param("biases", normal, (k,))
        centres = self.param("centres", normal, (width, k))
        assignment = jax.nn.softmax(vectors @ weights + biases)
        residual = jnp.einsum("nmk,nme->nke", assignment, vectors) - assignment.sum(1)[..., None] * centres.T
        joined = unit(unit(residual, 1e-6).swapaxes(1, 2).reshape(vectors.shape[0], -1), 1e-6)
        hidden = self.param("hidden", nn.initializers.normal(k**-0.5), (width * k, k * self.size))
        return (joined @ hidden).reshape(vectors.shape[0], k, self.size)


class MetricLayer(nn.Module):
    """Two linear maps without bias: of the vectors' entries, and of the vectors.

    Attributes:
      vectors: K, vectors of the result.
      size: D, their length.
    """

    vectors: int = 3
    size: int = 16

    @nn.compact
    def __call__(self, vectors: jax.Array) -> jax.Array:
        """[N, M, E] -> [N, K, D]."""
        entries = self.param("entries", GLOROT, (vectors.shape[2], self.size))
        mixture = self.param("mixture", GLOROT, (vectors.shape[1], self.vectors))
        return jnp.einsum("nme,ed,mk->nkd", vectors, entries, mixture)


class StructureMapping(nn.Module):
    """Fine-grained structure mapping: pixels of three maps to representative vectors (Sec. 3.4).

    Attributes:
      scoring: "conv" or "variance"; see `SCORINGS`.
      vectors: n', representative vectors of each map.
      rank: m, inner size of the product of matrices that gives the weights of all pixels.
    """

    scoring: str = "conv"
    vectors: int = 7
    rank: int = 5

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Pixels of three maps [N, 3, P, C] -> vectors [N, 3 n', C], each a mean over the pixels of all maps."""
        dense, size = partial(nn.Dense, kernel_init=GLOROT), pixels.shape[0]
        scores, whole = self.scores(pixels), pixels.reshape(size, -1, pixels.shape[-1])
        right = nn.sigmoid(dense(self.rank * whole.shape[1], name="pixels")(scores))
        left = nn.sigmoid(dense(self.vectors * self.rank, name="vectors")(scores.reshape(size, -1)))
        left, right = left.reshape(size, self.vectors, self.rank), right.reshape(size, 3, self.rank, -1)
        weights = jnp.einsum("nvr,nkrp->nkvp", left, right).reshape(size, 3 * self.vectors, -1)
        return weights @ whole / weights.sum(-1, keepdims=True)

    def scores(self, pixels: jax.Array) -> jax.Array:
        """Pixels [N, 3, P, C] -> [N, 3, P]."""
        if self.scoring == "variance":
            return pixels.var(-1)
        return nn.sigmoid(nn.Dense(1, kernel_init=GLOROT, name="score")(pixels))[..., 0]


class FSANet(nn.Module):
    """FSA-Net: yaw, pitch and roll in degrees, in the convention "labels" of `facejax.metrics.pose`.

    Attributes:
      scoring: a value of `SCORINGS`.
      aggregation: a value of `AGGREGATIONS`.
      size: length of a stage's vector: 4 entries each for stretches and shifts, the rest for class scores.
      vectors, rank: of the mapping; see `StructureMapping`.
      iterations: of the capsules' routing.
      outputs: D, angles per image.
      classes: s, classes of each stage; odd, the middle one is zero.
      span: V, width of the range, degrees.
      stretch_weight: lambda_d.
      smallest: lower bound of 1 + Delta; see `soft_stagewise`.
      widths, reduced, momentum, axis_name: of the trunk; see `SeparableStreams`.
      dtype: of the trunk's computation; what follows is float32.
    """

    scoring: str = "conv"
    aggregation: str = "capsule"
    size: int = 16
    vectors: int = 7
    rank: int = 5
    iterations: int = 2
    outputs: int = 3
    classes: tuple[int, int, int] = (3, 3, 3)
    span: float = 99.0
    stretch_weight: float = 1.0
    smallest: float = 0.0
    widths: tuple[int, int, int, int] = (16, 32, 64, 128)
    reduced: int = 64
    momentum: float = 0.99
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        if self.scoring not in SCORINGS:
            raise ValueError(f"FSANet.scoring is {self.scoring!r}: expected one of {', '.join(SCORINGS)}")
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(f"FSANet.aggregation is {self.aggregation!r}: expected one of {', '.join(AGGREGATIONS)}")
        super().__post_init__()

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """RGB [N, H, W, 3] in 0..255, published for 64 x 64 -> [N, D]."""
        stages = self.stages(self.maps(images, train=train))
        options = {"stretch_weight": self.stretch_weight, "smallest": self.smallest}
        return soft_stagewise(stages, self.span, centred=True, **options)

    def setup(self) -> None:
        """Names of the parts."""
        self.trunk = SeparableStreams(self.widths, self.reduced, self.momentum, self.axis_name, self.dtype)
        if self.scoring != "none":
            self.mapping = StructureMapping(self.scoring, self.vectors, self.rank)
        self.aggregate = {
            "capsule": lambda: CapsuleLayer(len(self.classes), self.size, self.iterations),
            "netvlad": lambda: NetVLAD(len(self.classes), self.size),
            "metric": lambda: MetricLayer(len(self.classes), self.size),
        }[self.aggregation]()
        dense = partial(nn.Dense, kernel_init=GLOROT)
        self.stretch = [dense(self.outputs) for _ in self.classes]
        self.shift = [dense(self.outputs) for _ in self.classes]
        self.scores = [dense(self.outputs * count) for count in self.classes]

    def maps(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """[N, H, W, 3] -> three maps [N, H / 8, W / 8, C], the streams' products, deepest first."""
        check_size(images, 16)
        maps = [(first * second).astype(jnp.float32) for first, second in self.trunk(images, train=train)]
        return [*maps[:2], nn.avg_pool(maps[2], (2, 2), (2, 2))]

    def stages(self, maps: list[jax.Array]) -> Stages:
        """Three maps -> the parts of the regression, of arrays [N, D, s], [N, D, 1] and [N, D]."""
        pixels = jnp.stack([x.reshape(x.shape[0], -1, x.shape[-1]) for x in maps], 1)
        vectors = (
            self.mapping(pixels) if self.scoring != "none" else pixels.reshape(pixels.shape[0], -1, pixels.shape[-1])
        )
        parts = []
        for k, row in enumerate(jnp.moveaxis(self.aggregate(vectors), 1, 0)):
            scores = nn.relu(self.scores[k](row[:, 8:])).reshape(row.shape[0], self.outputs, -1)
            shift, stretch = nn.tanh(self.shift[k](row[:, 4:8])), nn.tanh(self.stretch[k](row[:, :4]))
            parts.append((scores, shift[..., None], stretch))
        return Stages(*zip(*parts, strict=True))


class Fusion(nn.Module):
    """Networks side by side. The published fusion is the mean of the capsule networks of all three scorings.

    Attributes:
      nets: K networks of D outputs each.
    """

    nets: tuple[FSANet, ...]

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """RGB [N, H, W, 3] in 0..255 -> [N, K, D]."""
        return jnp.stack([net(images, train=train) for net in self.nets], 1)
