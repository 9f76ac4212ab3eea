"""EQFace: a quality head on a recognition network, learnt without quality labels, as the temperature of its softmax.

Liu & Tan. "EQFace: a simple explicit quality network for face recognition". CVPR Workshops 2021. arXiv:2105.00634.
The confidence scales the logits of an image: a flat softmax lowers the loss of an image that is hard to classify, a
sharp one that of an easy image. First the recogniser is trained without confidences, then the head and the class
centres on the frozen trunk, then a new recogniser with the confidences of both.

Differs from the paper's text, as the authors' code does: the confidence is clipped and rescaled (`rescaled`) and the
loss is focal; `gamma` 0 and an identity `transform` give the text's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.norm import BatchNorm
from facejax.recognition import arcface


class QualityHead(nn.Module):
    """Dense, BN, ReLU, dense to two, softmax: [N, F] -> [N] confidence in 0..1. No biases.

    Attributes:
      hidden: width.
    """

    hidden: int = 512

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        xavier = nn.initializers.xavier_uniform()
        x = nn.Dense(self.hidden, use_bias=False, kernel_init=xavier, name="hidden")(features)
        x = nn.relu(BatchNorm(name="bn")(x, train=train))
        return jax.nn.softmax(nn.Dense(2, use_bias=False, kernel_init=xavier, name="out")(x))[:, 0]


def rescaled(confidence: jax.Array) -> jax.Array:
    """1.2 * clip(c - 0.2, 0, 1): below 0.2 an image has no gradient."""
    return 1.2 * jnp.clip(confidence - 0.2, 0.0, 1.0)


def confident_loss(
    cosine: jax.Array,
    labels: jax.Array,
    confidence: jax.Array,
    *,
    scale: float = 64.0,
    angle: float = 0.5,
    gamma: float = 2.0,
    transform: Callable[[jax.Array], jax.Array] = rescaled,
) -> jax.Array:
    """Focal cross-entropy of a margin softmax with an inverse temperature for each image.

    Args:
      cosine: [N, C] to the class centres.
      labels: [N] int.
      confidence: [N] in 0..1.
      scale, angle: s and m of ArcFace; beyond theta + m = pi the target keeps falling (the "guard").
      gamma: of the focal factor (1 - p)^gamma; 0 is plain cross-entropy.
      transform: of the confidence.

    Returns:
      [N] losses.
    """
    temperature, margins = scale * transform(confidence), arcface.Margins(angle=angle)
    logits = arcface.margin_logits(cosine, labels, scale=temperature, margins=margins, easy=True)
    entropy = jax.nn.logsumexp(logits, 1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return (1 - jnp.exp(-entropy)) ** gamma * entropy


class Progress(NamedTuple):
    """A person's pooled feature [..., D] and the sum of the qualities in it [...]."""

    feature: jax.Array
    quality: jax.Array


def progressive_update(progress: Progress, feature: jax.Array, quality: jax.Array) -> Progress:
    """Adds an image: F <- (Q F + q f) / (Q + q), Q <- Q + q. The final result does not depend on the order."""
    total = progress.quality + quality
    moved = progress.quality[..., None] * progress.feature + quality[..., None] * feature
    safe = jnp.where(total > 0, total, 1.0)[..., None]
    return Progress(jnp.where(total[..., None] > 0, moved / safe, progress.feature), total)
