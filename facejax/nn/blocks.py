"""Convolution and batch norm blocks shared by many networks, and blocks that keep little for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.conv import Conv
from facejax.nn.init import kaiming_normal_fan_out
from facejax.nn.norm import BatchNorm

Dtype = Any


def rematerialised(block: nn.Module, remat: bool) -> Callable[..., Any]:
    """The block; with `remat`, the backward pass computes its inner activations anew instead of keeping them.

    Parameters, outputs and gradients stay the same. The block is called as `(*arrays, **options)`, such as
    `(x, train=True)`; only arrays are differentiated.
    """
    if not remat:
        return block

    def called(*arrays: Any, **options: Any) -> Any:
        return nn.remat(lambda module, *inputs: module(*inputs, **options))(block, *arrays)

    return called


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation.

    Attributes:
      features, kernel_size, strides, padding, groups: of the convolution; see `facejax.nn.conv.Conv`.
      activation: applied last; None for a linear output.
      use_bias: whether the convolution has a bias; a few published networks have one before batch norm.
      kernel_init: initialiser of the kernel.
      momentum, epsilon, axis_name: of the batch norm.
      dtype: of the computation.
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: int | str | Sequence[tuple[int, int]] = 0
    groups: int = 1
    activation: Callable[[jax.Array], jax.Array] | None = nn.relu
    use_bias: bool = False
    kernel_init: Any = kaiming_normal_fan_out
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H', W', features]."""
        x = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            self.padding,
            groups=self.groups,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = BatchNorm(self.axis_name, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype, name="bn")(
            x, train=train
        )
        return x if self.activation is None else self.activation(x)
