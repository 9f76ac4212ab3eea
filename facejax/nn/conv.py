"""Convolution layers with explicit padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.ops import conv as ops

Dtype = Any
Initializer = Any


class Conv(nn.Module):
    """A convolution with explicit padding, in the fastest form for the platform (`facejax.ops.conv`).

    Flax's "SAME" pads (0, 1) at stride 2 where PyTorch's padding=1 pads (1, 1); here a number applies to both sides.

    Attributes:
      features: output channels.
      kernel_size, strides, dilation: (vertical, horizontal), or one number for both.
      padding: pixels on every side, ((top, bottom), (left, right)), or "SAME" as in TensorFlow.
      groups: number of channel groups; the number of input channels gives a depthwise convolution.
      use_bias: whether to add a bias.
      kernel_init, bias_init: initialisers.
      dtype: of the computation; parameters are float32.
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: int | str | Sequence[tuple[int, int]] = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H', W', features]."""
        size, stride, dilation = (pair(v) for v in (self.kernel_size, self.strides, self.dilation))
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1] // self.groups, self.features))
        padding = explicit_padding(self.padding, x.shape[1:3], size, stride, dilation)
        x = ops.conv(x.astype(self.dtype), kernel.astype(self.dtype), stride, padding, dilation, self.groups)
        if self.use_bias:
            x = x + self.param("bias", self.bias_init, (self.features,)).astype(self.dtype)
        return x


class ConvTranspose(nn.Module):
    """PyTorch's ConvTranspose2d: output size (H - 1) * stride + kernel - 2 * padding.

    `padding` is cropped on every side, or ((top, bottom), (left, right)). What PyTorch's output_padding adds is cropped
    less at the bottom and at the right.
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: int | Sequence[tuple[int, int]] = 0
    use_bias: bool = False
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H', W', features]."""
        size, stride = pair(self.kernel_size), pair(self.strides)
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1], self.features))
        cut = ((self.padding, self.padding),) * 2 if isinstance(self.padding, int) else self.padding
        x = ops.conv_transpose(x.astype(self.dtype), kernel.astype(self.dtype), stride, cut)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Expands one number to both axes."""
    return (value, value) if isinstance(value, int) else tuple(value)


def explicit_padding(
    padding: int | str | Sequence[tuple[int, int]],
    shape: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Converts any accepted padding to ((top, bottom), (left, right))."""
    if isinstance(padding, int):
        return ((padding, padding),) * 2
    if padding == "SAME":
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        totals = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(shape, stride, extent, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    if isinstance(padding, str):
        raise ValueError(f"Conv.padding is {padding!r}: expected a number, two pairs or 'SAME'")
    return tuple(tuple(p) for p in padding)
