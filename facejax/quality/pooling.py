"""One embedding for a set of images: the weighted mean over the images in it."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

Weighting = Literal["l1", "minmax"]


def set_pool(
    features: jax.Array, weights: jax.Array, mask: jax.Array | None = None, *, weighting: Weighting = "l1"
) -> jax.Array:
    """The weighted mean of every set's features.

    Args:
      features: [..., T, D].
      weights: [..., T] qualities; for "l1" negative ones count as 0.
      mask: [..., T] bool, which images exist; None is all.
      weighting: "l1" divides by the sum (QAN, and pooling by quality scores). "minmax" first maps the scores of
        a set of three or more to 0..1, so that its worst image has no weight (QAN++); smaller sets are averaged.

    Returns:
      [..., D]; a set whose weights are all zero gets the plain mean, a set without images zero.
    """
    if features.shape[:-1] != weights.shape or (mask is not None and mask.shape != weights.shape):
        shapes = [features.shape, weights.shape, None if mask is None else mask.shape]
        raise ValueError(f"set_pool: features, weights and mask of shapes {shapes}: expected [..., T, D] and [..., T]")
    mask = jnp.ones(weights.shape, bool) if mask is None else mask
    if weighting == "minmax":
        low = jnp.min(weights, -1, keepdims=True, where=mask, initial=jnp.inf)
        span = jnp.max(weights, -1, keepdims=True, where=mask, initial=-jnp.inf) - low
        weights = jnp.where(mask & (span > 0), (weights - low) / jnp.where(span > 0, span, 1.0), 0.0)
        weights = jnp.where(mask.sum(-1, keepdims=True) > 2, weights, 0.0)
    weights = jnp.where(mask, jnp.maximum(weights, 0.0), 0.0)
    total = weights.sum(-1, keepdims=True)
    even = mask / jnp.maximum(mask.sum(-1, keepdims=True), 1)
    share = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), even)
    return jnp.einsum("...t,...td->...d", share, features)
