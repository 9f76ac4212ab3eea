"""Classification accuracy, per sample and as sums that add up over batches and devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def top_k_correct(logits: jax.Array, labels: jax.Array, k: int = 1) -> jax.Array:
    """Whether the true class is among the k highest scores; a tie counts as an error.

    Args:
      logits: [N, C]; a NaN ranks above the true class.
      labels: [N] integers in 0..C-1; a label out of range counts as an error.
      k: 1..C.

    Returns:
      [N] float32, 1 or 0.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not 1 <= k <= logits.shape[1]:
        raise ValueError(f"logits {logits.shape}, labels {labels.shape}, k {k}; expected [N, C], [N], 1..C")
    classes = jnp.arange(logits.shape[1])
    true = classes == labels[:, None]
    target = jnp.sum(logits, axis=1, where=true, keepdims=True)
    rivals = jnp.sum(~(logits < target) & ~true, axis=1)
    return (jnp.any(true, axis=1) & (rivals < k)).astype(jnp.float32)


def top_k_accuracy(
    logits: jax.Array, labels: jax.Array, k: int = 1, where: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Sum and count of `top_k_correct` over the valid samples. Add both over batches, then divide.

    Args:
      logits: [N, C].
      labels: [N].
      k: 1..C.
      where: [N] bool, valid samples; None counts all.

    Returns:
      (correct [], samples []), float32.
    """
    correct = top_k_correct(logits, labels, k)
    where = jnp.ones(correct.shape, bool) if where is None else where
    return jnp.sum(correct, where=where), jnp.sum(where, dtype=jnp.float32)
