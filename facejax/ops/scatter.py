"""Deterministic scatter of rows into a table."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def last_of_equal(indices: jax.Array, size: int) -> jax.Array:
    """Row indices [N] for a scatter; all but the last of equal indices, and those out of range, become `size`.

    A scatter with mode="drop" ignores `size`. XLA does not define which of several writes to one row remains.
    """
    inside = jnp.where(indices < 0, size, indices)
    order = jnp.arange(len(indices))
    last = jnp.full(size, -1).at[inside].max(order, mode="drop")
    return jnp.where(last.at[inside].get(mode="fill", fill_value=-1) == order, inside, size)
