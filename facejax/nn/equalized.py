"""Layers of progressive and style-based GANs: equalized learning rate, pixel norm, minibatch standard deviation.

Karras, Aila, Laine, Lehtinen. "Progressive growing of GANs for improved quality, stability, and variation". ICLR 2018.
arXiv:1710.10196. Layers are not scaled by their initial values but at every use: weights are stored with unit variance
and multiplied by He's constant, so that Adam, whose steps ignore the scale of gradients, moves all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.ops import fir, pooling, scaled_conv

Dtype = Any
GAIN = float(np.sqrt(2))
"""He's gain, of layers with a ReLU behind them."""
CONVOLUTIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "same": scaled_conv.conv,
    "up": scaled_conv.upscale_conv,
    "down": scaled_conv.conv_downscale,
    "smooth_down": fir.conv_downscale,
}


class EqualizedDense(nn.Module):
    """A dense layer with equalized learning rate: x @ (w * multiplier * gain / sqrt(inputs)) + b * multiplier.

    Attributes:
      features: outputs.
      gain: standard deviation of an output for inputs of unit variance, at the beginning.
      multiplier: learning rate relative to that of other layers; stored weights begin with deviation 1 / `multiplier`.
      use_bias: whether to add a bias.
      bias_init: value of the bias at the beginning, as used.
      dtype: of the computation; parameters are float32.
    """

    features: int
    gain: float = GAIN
    multiplier: float = 1.0
    use_bias: bool = True
    bias_init: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., features]."""
        kernel = _kernel(self, (x.shape[-1], self.features))
        return _with_bias(self, x.astype(self.dtype) @ kernel)


class EqualizedConv(nn.Module):
    """A convolution with equalized learning rate.

    Attributes:
      features: output channels.
      kernel_size: side of the kernel, odd; 3 for the scales "up" and "down".
      scale: "same"; "up" (`scaled_conv.upscale_conv`), "down" (`scaled_conv.conv_downscale`) or "smooth_down"
        (`fir.conv_downscale`).
      gain, multiplier, use_bias, dtype: as of `EqualizedDense`.
    """

    features: int
    kernel_size: int = 3
    scale: str = "same"
    gain: float = GAIN
    multiplier: float = 1.0
    use_bias: bool = True
    bias_init: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, features], of twice or half the height and width if the scale changes."""
        kernel = _kernel(self, (self.kernel_size, self.kernel_size, x.shape[-1], self.features))
        x = x.astype(self.dtype)
        if self.kernel_size == 1 and self.scale == "same":
            return _with_bias(self, x @ kernel[0, 0])
        return _with_bias(self, CONVOLUTIONS[self.scale](x, kernel))


def _kernel(layer: EqualizedDense | EqualizedConv, shape: tuple[int, ...]) -> jax.Array:
    stored = layer.param("kernel", nn.initializers.normal(1 / layer.multiplier), shape)
    return (stored * (layer.multiplier * layer.gain / np.sqrt(np.prod(shape[:-1])))).astype(layer.dtype)


def _with_bias(layer: EqualizedDense | EqualizedConv, x: jax.Array) -> jax.Array:
    if not layer.use_bias:
        return x
    begin = nn.initializers.constant(layer.bias_init / layer.multiplier)
    return x + (layer.param("bias", begin, (layer.features,)) * layer.multiplier).astype(layer.dtype)


def leaky_relu(x: jax.Array) -> jax.Array:
    """Slope 1 above zero, 0.2 below."""
    return nn.leaky_relu(x, 0.2)


def pixel_norm(x: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """Scales the channels of every pixel to a mean square of one, computed in float32. [..., C] -> [..., C]."""
    wide = x.astype(jnp.float32)
    return (wide * lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + epsilon)).astype(x.dtype)


def minibatch_stddev(x: jax.Array, group: int = 4, epsilon: float = 1e-8) -> jax.Array:
    """Appends a channel with the standard deviation within groups of images, averaged over channels and pixels.

    Image n is in group n mod (N / group), as in the authors' code; its text has one group of the whole batch.

    Args:
      x: [N, H, W, C], the images of one device.
      group: images of a group; of fewer images all are one group.
      epsilon: added to the variance, which is the biased one.

    Returns:
      [N, H, W, C + 1].
    """
    n, height, width, channels = x.shape
    group = min(group, n)
    if n % group:
        raise ValueError(f"minibatch_stddev: {n} images of a device, expected a multiple of the group of {group}")
    grouped = x.astype(jnp.float32).reshape(group, n // group, height, width, channels)
    deviation = jnp.sqrt(grouped.var(0) + epsilon).mean((1, 2, 3))
    plane = jnp.broadcast_to(jnp.tile(deviation, group)[:, None, None, None], (n, height, width, 1))
    return jnp.concatenate([x, plane.astype(x.dtype)], -1)


def upscale(images: jax.Array) -> jax.Array:
    """Nearest-neighbour enlargement by two. [N, H, W, C] -> [N, 2H, 2W, C]."""
    return pooling.upsample_nearest(images, 2)


def downscale(images: jax.Array) -> jax.Array:
    """Mean over two by two pixels. [N, H, W, C] -> [N, H/2, W/2, C]."""
    return pooling.avg_pool(images, (2, 2), (2, 2))


def fade(old: jax.Array, new: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """The way from `old`, at alpha 0, to `new`, at 1; exact at both ends."""
    return (1 - alpha) * old + alpha * new
