"""Normalisation to unit length, for network outputs and for data on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike, DTypeLike


def unit(x: jax.Array, shortest: float = 1e-12) -> jax.Array:
    """Normalises rows to unit length, in at least float32. [..., D] -> [..., D].

    Rows shorter than `shortest` are divided by `shortest`, so zero rows stay zero with a finite gradient. The default
    is that of PyTorch; TensorFlow's is 1e-6.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squared = jnp.sum(x * x, -1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squared, shortest**2))


def unit_rows(features: ArrayLike, dtype: DTypeLike = None) -> np.ndarray:
    """Validates rows and normalises them to unit length; zero rows stay zero. [N, D] -> [N, D].

    Uses NumPy, unlike `unit`, to keep float64 and to avoid copies to a device.

    Args:
      features: [N, D], finite.
      dtype: of the result; by default float64 for float64 and float32 for all other types.

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


def check_finite(features: ArrayLike) -> None:
    """ValueError that names the first row of features [N, D] that is not finite. Values under `jit` are not checked."""
    if not isinstance(features, jax.core.Tracer):
        finite = np.isfinite(np.asarray(features)).all(-1)
        if not finite.all():
            raise ValueError(f"features: row {int(np.argmin(finite))} is not finite")
