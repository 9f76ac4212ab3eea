"""Elementwise regression losses that several papers share."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def smooth_l1(error: jax.Array, beta: float = 1.0) -> jax.Array:
    """error^2 / (2 beta) below `beta`, |error| - beta / 2 above. MXNet's and Caffe's sigma is beta = 1 / sigma^2."""
    size = jnp.abs(error)
    return jnp.where(size < beta, 0.5 * error**2 / beta, size - 0.5 * beta)
