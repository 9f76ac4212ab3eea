"""Vectors of length 1: of a network's numbers, and of data on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike, DTypeLike


def unit(x: jax.Array, shortest: float = 1e-12) -> jax.Array:
    """Rows of unit length, at least float32. [..., D] -> [..., D].

    A row shorter than `shortest` is divided by it, so that zeros stay zeros and have a slope of 1 / `shortest`. The
    default is PyTorch's, 1e-6 TensorFlow's.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squared = jnp.sum(x * x, -1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squared, shortest**2))


def unit_rows(features: ArrayLike, dtype: DTypeLike = None) -> np.ndarray:
    """Rows of unit length, checked; a row of zeros stays. [N, D] -> [N, D].

    In NumPy, apart from `unit`: JAX would make float32 of float64 and copy what stays on the host.

    Args:
      features: [N, D], finite.
      dtype: of the result; by default float64 stays and all else becomes float32.

    Raises:
      ValueError: not two-dimensional, or values that are not finite.
    """
    features = np.asarray(features, dtype)
    features = features.astype(np.result_type(features, np.float32), copy=False)
    if features.ndim != 2:
        raise ValueError(f"features are {features.shape}: expected [N, D]")
    length = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(length).all():
        raise ValueError(f"features: row {int(np.argmin(np.isfinite(length)))} is not finite")
    return features / np.where(length > 0, length, 1)
