"""SDD-FIQA: quality as the distance between the distributions of genuine and impostor similarities.

Ou, Chen, Zhang, Huang, Li, Li, Li, Cao, Wang. "SDD-FIQA: unsupervised face image quality assessment with similarity
distribution distance". CVPR 2021. arXiv:2103.05977. An image with high genuine and low impostor similarities has a
large Wasserstein distance between the two sets. The distance is the label, a network learns it.

Differs from the authors' code: a person's images are sampled on the device, in blocks, without a list of all of them.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.backbones.mobilefacenet import MobileFaceNet
from facejax.nn.conv import Conv
from facejax.nn.norm import BatchNorm, PReLU
from facejax.ops import vectors
from facejax.ops.sampling import without_replacement


def wasserstein(
    first: jax.Array, second: jax.Array, first_mask: jax.Array | None = None, second_mask: jax.Array | None = None
) -> jax.Array:
    """Wasserstein-1 distance of two samples of one dimension: the area between their distribution functions.

    Args:
      first, second: [..., A] and [..., B] values.
      first_mask, second_mask: bool, which values exist; None is all.

    Returns:
      [...]; NaN where a sample is empty.
    """
    masks = [
        jnp.ones(x.shape, bool) if mask is None else mask for x, mask in ((first, first_mask), (second, second_mask))
    ]
    weights = [sign * m / m.sum(-1, keepdims=True) for sign, m in zip((1.0, -1.0), masks, strict=True)]
    values, weight, there = (jnp.concatenate(x, -1) for x in ((first, second), weights, masks))
    values = jnp.where(there, values, jnp.max(values, -1, keepdims=True, where=there, initial=-jnp.inf))
    order = jnp.argsort(values, -1)
    values, weight = (jnp.take_along_axis(x, order, -1) for x in (values, weight))
    return jnp.sum(jnp.abs(jnp.cumsum(weight, -1))[..., :-1] * jnp.diff(values, axis=-1), -1)


def pseudo_labels(
    rng: jax.Array,
    features: np.ndarray,
    people: np.ndarray,
    *,
    samples: int = 24,
    rounds: int = 12,
    block: int = 2048,
    mated_only: bool = False,
) -> np.ndarray:
    """Quality labels 0..100 of images, by the similarities of their embeddings (Eq. 7 to 9).

    In each round every image is compared with `samples` others of its person (or all, where they are fewer) and as many
    of other people, without replacement; the distances are scaled to 0..100 over all images and averaged over rounds.

    Args:
      rng: of the draws.
      features: [N, D], of any length.
      people: [N] int.
      samples: m.
      rounds: K.
      block: images at a time; eight of them gather samples * D numbers each.
      mated_only: the mean genuine similarity in place of the distance.

    Returns:
      [N] float32.

    Raises:
      ValueError: a person with one image, fewer than two people, or distances that are all equal.
    """
    features, people = np.asarray(features, np.float32), np.asarray(people)
    order = np.argsort(people, kind="stable")
    _, starts, counts = np.unique(people[order], return_index=True, return_counts=True)
    if counts.min() < 2 or len(counts) < 2:
        raise ValueError(
            f"pseudo_labels: {len(counts)} people, {np.sum(counts < 2)} of them with one image: expected two people "
            "or more, with two images or more each"
        )
    group = np.repeat(np.arange(len(counts)), counts)
    start, size = (jnp.asarray(x[group], jnp.int32) for x in (starts, counts))
    unit = jnp.asarray(vectors.unit_rows(features)[order])
    block, total = min(block, len(unit)), np.zeros(len(features))
    for key in jax.random.split(rng, rounds):
        parts = {}  # all are dispatched before the first is read, so that blocks run concurrently
        for first in range(0, len(unit), block):
            first = min(first, len(unit) - block)  # the last block overlaps the one before
            draw = jax.random.fold_in(key, first)
            parts[first] = _distances(draw, unit, start, size, first, samples, block, mated_only)
        found = np.zeros(len(features))
        for first, part in parts.items():
            found[first : first + block] = part
        if np.ptp(found) == 0:
            raise ValueError(f"pseudo_labels: all {len(found)} images have the same distance: expected different ones")
        total += 100 * (found - found.min()) / np.ptp(found)
    labels = np.empty(len(features), np.float32)
    labels[order] = total / rounds
    return labels


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _distances(
    rng: jax.Array,
    unit: jax.Array,
    start: jax.Array,
    size: jax.Array,
    first: Any,
    samples: int,
    block: int,
    mated: bool,
) -> jax.Array:
    """Distances [block] of the rows from `first` on; `unit` is sorted by person."""
    rows = first + jnp.arange(block)
    start, size, mine = start[rows], size[rows], unit[rows]
    near, far = jax.random.split(rng)
    place, mask = without_replacement(near, size - 1, samples)
    place = start[:, None] + jnp.where(mask, place, 0)
    place = place + (place >= rows[:, None])  # not the image itself
    positive = _cosines(unit, mine, jnp.minimum(place, len(unit) - 1))
    if mated:
        return jnp.mean(positive, 1, where=mask)
    place, other = without_replacement(far, len(unit) - size, samples)
    place = place + jnp.where(place >= start[:, None], size[:, None], 0)
    negative = _cosines(unit, mine, jnp.minimum(place, len(unit) - 1))
    return wasserstein(positive, negative, mask, other)


def _cosines(unit: jax.Array, mine: jax.Array, places: jax.Array) -> jax.Array:
    """Of rows [B, D] with those of `unit` at `places` [B, K]; few rows at a time, which fit the cache."""

    def one(pair: Any) -> jax.Array:
        return unit.at[pair[1]].get(mode="promise_in_bounds") @ pair[0]

    return lax.map(one, (mine, places), batch_size=8)


def quality_head(maps: jax.Array, dropout: float, *, train: bool) -> jax.Array:
    """The last map [N, H, W, C], flattened, PReLU with a slope for each number, dropout, dense: -> [N]."""
    x = PReLU(name="prelu")(maps.reshape(maps.shape[0], -1).astype(jnp.float32))
    x = nn.Dropout(dropout, deterministic=not train)(x)
    return nn.Dense(1, name="score")(x)[:, 0]


class QualityMobileFaceNet(nn.Module):
    """The authors' "MFN": MobileFaceNet up to its last map, and the head. 961,409 parameters.

    Attributes:
      scale: of the trunk's widths.
      dropout: before the last layer.
      axis_name, dtype: of the trunk.
    """

    scale: int = 1
    dropout: float = 0.5
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] in -1..1 -> [N], about 0..100."""
        options = {"axis_name": self.axis_name, "dtype": self.dtype}
        trunk = MobileFaceNet(scale=self.scale, embedding_size=0, **options, name="trunk")
        return quality_head(trunk(images, train=train, features=True)["separate"], self.dropout, train=train)


class QualityResNet(nn.Module):
    """The authors' "R50": blocks of BN, 3x3, PReLU, 3x3 with the stride, BN, and the head. 30,777,537 parameters.

    A block's shortcut subsamples pixels; where the width changes it is a 1x1 convolution with a BN.

    Attributes:
      depths: blocks in each stage; the first block of every stage halves the resolution.
      widths: channels of each stage; the stem has the first's.
      dropout, axis_name, dtype: as in QualityMobileFaceNet.
    """

    depths: tuple[int, ...] = (3, 4, 14, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    dropout: float = 0.5
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] in -1..1 -> [N], about 0..100."""

        def conv(width: int, size: int, stride: int, name: str, x: jax.Array) -> jax.Array:
            return Conv(width, size, stride, size // 2, dtype=self.dtype, name=name)(x)

        def norm(name: str, x: jax.Array) -> jax.Array:
            return BatchNorm(self.axis_name, dtype=self.dtype, name=name)(x, train=train)

        x = PReLU(name="stem_prelu")(norm("stem_bn", conv(self.widths[0], 3, 1, "stem", images)))
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for block in range(depth):
                name, stride = f"stage{stage}_{block}", 1 if block else 2
                shortcut = x[:, ::stride, ::stride]
                if x.shape[-1] != width:
                    shortcut = norm(f"{name}_shortcut_bn", conv(width, 1, stride, f"{name}_shortcut", x))
                x = conv(width, 3, 1, f"{name}_conv1", norm(f"{name}_bn1", x))
                x = conv(width, 3, stride, f"{name}_conv2", PReLU(name=f"{name}_prelu")(x))
                x = norm(f"{name}_bn2", x) + shortcut
        return quality_head(x, self.dropout, train=train)
