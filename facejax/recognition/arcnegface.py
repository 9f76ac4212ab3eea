"""ArcNegFace: a margin softmax that weights negatives by their similarity to the target.

Liu, Song, Zhang, Liu, Zhou, Yan. "Towards flops-constrained face recognition". ICCV Workshops 2019. arXiv:1909.00632.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from facejax.ops import vectors
from facejax.recognition import arcface


def arcnegface_logits(
    cosine: jax.Array,
    labels: jax.Array,
    *,
    scale: float = 64.0,
    angle: float = 0.5,
    alpha: float = 1.2,
    sigma: float = 2.0,
) -> jax.Array:
    """ArcFace's target a = cos(theta + m), and negatives t cos + t - 1 with t = alpha exp(-(cos - a)^2 / sigma).

    Args:
      cosine: [N, C].
      labels: [N] int.
      scale, angle: s and m; beyond theta + m = pi the target keeps decreasing.
      alpha, sigma: height and width of the weight of negatives (a constant for the gradient).

    Returns:
      [N, C] logits; those of ArcFace for alpha 1 and sigma to infinity.
    """
    true = jnp.take_along_axis(cosine, labels[:, None], 1)[:, 0]
    target = arcface.target_cosine(true, arcface.Margins(angle=angle), easy=True)
    weight = jax.lax.stop_gradient(alpha * jnp.exp(-((cosine - target[:, None]) ** 2) / sigma))
    hit = labels[:, None] == jnp.arange(cosine.shape[1])
    return scale * jnp.where(hit, target[:, None], weight * cosine + weight - 1)


def arcnegface_loss(features: jax.Array, centres: jax.Array, labels: jax.Array, **options: float) -> jax.Array:
    """Cross-entropy of `arcnegface_logits`.

    Args:
      features: [N, D], of any norm.
      centres: [C, D] class centres, of any norm.
      labels: [N] int, 0..C-1.
      **options: scale, angle, alpha, sigma.

    Returns:
      [N] losses.
    """
    cosine = vectors.unit(features) @ vectors.unit(centres).T
    return optax.softmax_cross_entropy_with_integer_labels(arcnegface_logits(cosine, labels, **options), labels)
