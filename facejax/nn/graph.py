"""Graph convolution and head of the clustering papers (learn-to-cluster)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.norm import PReLU


class GraphConv(nn.Module):
    """relu([X, A X] W + b), A the row-stochastic mean aggregator: [..., N, F] -> [..., N, features]."""

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array, aggregated: jax.Array) -> jax.Array:
        """`aggregated` is A X, for any storage of A."""
        joined = jnp.concatenate([inputs, aggregated], -1)
        return nn.relu(nn.Dense(self.features, kernel_init=nn.initializers.glorot_uniform())(joined))


class PReLUHead(nn.Module):
    """Dense, PReLU with one slope per channel, dense: [..., F] -> [..., outputs]."""

    hidden: int
    outputs: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return nn.Dense(self.outputs)(PReLU()(nn.Dense(self.hidden)(inputs)))
