"""Multi-head attention."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = Any


class MultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(d_k)) V per head (Vaswani et al. 2017, Sec. 3.2).

    If the collection "attention" is mutable, the layer stores the weights [N, H, Q, K] there, for visualisation.

    Attributes:
      features: width D of inputs and output.
      heads: H; must divide `features`.
      bias: whether the four projections have a bias (in PyTorch yes, in the authors' code no).
      dtype: of the computation.
    """

    features: int
    heads: int
    bias: bool = False
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.features % self.heads:
            raise ValueError(f"attention: {self.heads} heads do not divide a width of {self.features}")
        options = {"use_bias": self.bias, "dtype": self.dtype, "kernel_init": nn.initializers.xavier_uniform()}
        self.query, self.key, self.value, self.out = (nn.Dense(self.features, **options) for _ in range(4))

    def project(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values, [N, K, H, D / H] each, of the memory [N, K, D]."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def attend(self, x: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
        """Output [N, Q, D] of queries x [N, Q, D]; `mask` (bool, broadcasts to [N, H, Q, K]) is True where allowed."""
        queries = self._split(self.query(x))
        if self.is_mutable_collection("attention"):
            scores = jnp.einsum("nqhd,nkhd->nhqk", queries, keys) / jnp.sqrt(queries.shape[-1])
            self.sow("attention", "weights", nn.softmax(jnp.where(mask, scores.astype(jnp.float32), -1e30)))
        mixed = jax.nn.dot_product_attention(queries, keys, values, mask=mask)
        return self.out(mixed.reshape(*x.shape[:-1], self.features))

    def __call__(self, x: jax.Array, memory: jax.Array, mask: jax.Array) -> jax.Array:
        """Attention from x [N, Q, D] to memory [N, K, D]; see `attend`."""
        return self.attend(x, *self.project(memory), mask)

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, self.features // self.heads)
