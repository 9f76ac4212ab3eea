"""Normalisation and activation layers with the defaults of PyTorch, which most of the papers use.

Every layer computes its variance as E[(x - E[x])^2], as PyTorch does. Flax's default, E[x^2] - E[x]^2, loses all digits
of a channel whose mean is far above its deviation: a mean of 127 with a deviation of 0.02 gives a wrong scale.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = Any


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's defaults: update rate 0.1 of the running averages, eps 1e-5.

    The running variance averages the biased batch variance, as in Flax; PyTorch's is larger by n / (n - 1).

    Attributes:
      axis_name: mapped axis over which to share statistics in training; None for statistics per device.
      use_scale, use_bias: whether the layer has a learnt scale and bias.
      momentum: of the running averages.
      epsilon: added to the variance.
      scale_init: initialiser of the scale.
      dtype: of the output; statistics are float32.
    """

    axis_name: str | None = None
    use_scale: bool = True
    use_bias: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises over all axes but the last; in training by batch statistics, which update the running averages.

        With one value per channel (one image of one pixel) the result is the bias; PyTorch raises an error.
        """
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            axis_name=self.axis_name if train and not self.is_initializing() else None,
            use_scale=self.use_scale,
            use_bias=self.use_bias,
            scale_init=self.scale_init,
            dtype=self.dtype,
            use_fast_variance=False,
            name="norm",
        )(x)


LayerNorm = partial(nn.LayerNorm, use_fast_variance=False)
GroupNorm = partial(nn.GroupNorm, epsilon=1e-5, use_fast_variance=False)
InstanceNorm = partial(nn.InstanceNorm, epsilon=1e-5, use_scale=False, use_bias=False, use_fast_variance=False)


class PReLU(nn.Module):
    """max(x, 0) + a min(x, 0) with a slope `a` per channel, initially 0.25 (He et al., arXiv:1502.01852)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., C]."""
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)


@partial(
    jax.jit, static_argnames=("size", "k", "alpha", "beta")
)  # a named call, which visualisation methods can replace
def local_response_norm(
    x: jax.Array, *, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """AlexNet's x / (k + alpha * sum of squares over `size` neighbouring channels)^beta. [..., C] -> [..., C].

    Caffe and PyTorch divide alpha by `size`: their alpha is `size` times the alpha here.
    """
    squares = jnp.square(x.astype(jnp.float32))
    padded = jnp.pad(squares, [(0, 0)] * (x.ndim - 1) + [(size // 2, (size - 1) // 2)])
    total = sum(padded[..., i : i + x.shape[-1]] for i in range(size))
    return (x * (k + alpha * total) ** -beta).astype(x.dtype)
