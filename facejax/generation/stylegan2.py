"""StyleGAN2: analyzing and improving the image quality of StyleGAN.

Karras, Laine, Aittala, Hellsten, Lehtinen, Aila. CVPR 2020. arXiv:1912.04958.
Styles scale the weights of convolutions, and expected deviations are divided out (demodulation), instead of normalised
maps, which had left droplets in the images. The networks do not grow: the generator sums images of all resolutions, the
discriminator is residual. A penalty keeps the lengths of paths through the images near their average.

Follows the authors' TensorFlow code, configuration F. Differs: no labels; styles scale the maps before and after one
convolution for all images, which equals a convolution with weights of each image and is cheaper; fixed noise is drawn
from a constant key instead of stored. Mapping, style mixing, truncation and the losses are those of
`facejax.generation.stylegan`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.generation.pggan import channels
from facejax.generation.stylegan import Mapping, check_latents, check_styles, layer_count, noise, repeated
from facejax.nn.equalized import GAIN, EqualizedConv, EqualizedDense, leaky_relu, minibatch_stddev
from facejax.ops import adversarial, fir, scaled_conv

Dtype = Any


def modulated_conv(
    x: jax.Array, kernel: jax.Array, style: jax.Array, *, up: bool = False, demodulate: bool = True
) -> jax.Array:
    """A convolution whose weights are scaled by a style, and then to unit norm, for each image (Eq. 1 and 3).

    Args:
      x: [N, H, W, C].
      kernel: [k, k, C, features].
      style: [N, C], factors of the input channels.
      up: enlarge by two as well, with StyleGAN2's filter; k is 3.
      demodulate: divide each feature by the norm of its scaled weights, computed in float32.

    Returns:
      [N, H', W', features].
    """
    style = style.astype(jnp.float32)
    x = (fir.upscale_conv if up else scaled_conv.conv)(x * style[:, None, None].astype(x.dtype), kernel)
    if not demodulate:
        return x
    energy = jnp.sum(kernel.astype(jnp.float32) ** 2, (0, 1))
    return x * lax.rsqrt(style**2 @ energy + 1e-8)[:, None, None].astype(x.dtype)


class ModulatedConv(nn.Module):
    """`modulated_conv` with its weights and the dense layer of its style.

    Attributes:
      features, kernel_size: of the kernel.
      up, demodulate: see `modulated_conv`.
      dtype: of the computation.
    """

    features: int
    kernel_size: int = 3
    up: bool = False
    demodulate: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """[N, H, W, C] and [N, W] -> [N, H', W', features]."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape) / np.sqrt(np.prod(shape[:-1]))
        style = EqualizedDense(x.shape[-1], 1.0, bias_init=1.0, name="style")(w)
        kernel = kernel.astype(self.dtype)
        return modulated_conv(x.astype(self.dtype), kernel, style, up=self.up, demodulate=self.demodulate)


class StyledConv(nn.Module):
    """A modulated convolution with noise, bias and activation.

    Attributes:
      features, up, dtype: as of `ModulatedConv`.
      layer: number of the layer.
    """

    features: int
    layer: int
    up: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, styles: jax.Array) -> jax.Array:
        """[N, H, W, C] and [N, L, W] -> [N, H', W', features]."""
        x = ModulatedConv(self.features, up=self.up, dtype=self.dtype, name="conv")(x, styles[:, self.layer])
        strength = self.param("noise", nn.initializers.zeros, ())
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return activated(x + (noise(self, x, self.layer) * strength + bias).astype(self.dtype))


class Synthesis(nn.Module):
    """The synthesis network: styles to images.

    Attributes:
      resolution: R, a power of two.
      base, largest: feature maps, see `pggan.channels`; a base of 8192 is that of configurations A to E.
      dtype: of the computation; parameters and images are float32.
    """

    resolution: int = 1024
    base: int = 16_384
    largest: int = 512
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, styles: jax.Array) -> jax.Array:
        """Images of styles.

        Args:
          styles: [N, L, W], w of every layer; the last is of the largest image layer alone.

        Returns:
          [N, R, R, 3] in the range of the training images, -1..1, which is not enforced.
        """
        check_styles(styles, self.resolution)
        width = channels(4, self.base, self.largest)
        x = self.param("const", nn.initializers.normal(1.0), (4, 4, width)).astype(self.dtype)
        x = jnp.broadcast_to(x, (len(styles), *x.shape))
        x = StyledConv(width, 0, dtype=self.dtype, name="conv4")(x, styles)
        size, layer, images = 4, 1, self._image(x, styles, 4, 1)
        while size < self.resolution:
            size *= 2
            width = channels(size, self.base, self.largest)
            x = StyledConv(width, layer, up=True, dtype=self.dtype, name=f"up{size}")(x, styles)
            x = StyledConv(width, layer + 1, dtype=self.dtype, name=f"conv{size}")(x, styles)
            layer += 2
            images = fir.upscale(images) + self._image(x, styles, size, layer)
        return images

    def _image(self, x: jax.Array, styles: jax.Array, resolution: int, layer: int) -> jax.Array:
        name = f"to_rgb{resolution}"
        x = ModulatedConv(3, 1, demodulate=False, dtype=self.dtype, name=name)(x, styles[:, layer])
        return x.astype(jnp.float32) + self.param(f"{name}_bias", nn.initializers.zeros, (3,))


class Generator(nn.Module):
    """Latents to images: `Mapping` and `Synthesis`, whose parameters are "mapping" and "synthesis".

    Attributes:
      resolution, base, largest, dtype: as of `Synthesis`.
      latent_size: Z, also the size of w and the width of the mapping network.
      mapping_layers: of the mapping network; 0: w is z, normalised.
    """

    resolution: int = 1024
    latent_size: int = 512
    base: int = 16_384
    largest: int = 512
    mapping_layers: int = 8
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        size, depth = self.latent_size, self.mapping_layers
        self.mapping = Mapping(size, depth, size, gain=1.0, scale=GAIN, dtype=self.dtype)
        self.synthesis = Synthesis(self.resolution, self.base, self.largest, self.dtype)

    def __call__(self, latents: jax.Array) -> jax.Array:
        """[N, Z] -> [N, R, R, 3], one w for all layers; see `Synthesis`."""
        return self.synthesize(repeated(self.map(latents), self.layers))

    def map(self, latents: jax.Array) -> jax.Array:
        """[N, Z] -> w [N, W]."""
        check_latents(latents, self.latent_size)
        return self.mapping(latents)

    def synthesize(self, styles: jax.Array) -> jax.Array:
        """[N, L, W] -> [N, R, R, 3]; see `Synthesis`."""
        return self.synthesis(styles)

    @property
    def layers(self) -> int:
        """L."""
        return layer_count(self.resolution)


class Discriminator(nn.Module):
    """Images to scores, higher for real ones; residual.

    Attributes:
      resolution, base, largest, dtype: as of `Synthesis`.
      group: images whose deviation the last block sees; of fewer all.
    """

    resolution: int = 1024
    base: int = 16_384
    largest: int = 512
    group: int = 4
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[N, R, R, 3] in -1..1 -> [N] float32."""
        size = self.resolution
        layer_count(size)
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"Discriminator: images {images.shape}, expected [N, {size}, {size}, 3]")
        x = self._conv(images, size, f"from_rgb{size}", 1)
        while size > 4:
            smaller = size // 2
            width = channels(smaller, self.base, self.largest)
            skip = {"scale": "smooth_down", "gain": 1.0, "use_bias": False, "dtype": self.dtype}
            past = EqualizedConv(width, 1, **skip, name=f"skip{size}")(x)
            x = self._conv(x, size, f"conv{size}")
            x = (self._conv(x, smaller, f"down{size}", scale="smooth_down") + past) / np.float32(np.sqrt(2))
            size = smaller
        x = self._conv(minibatch_stddev(x, self.group), 4, "conv4").reshape(x.shape[0], -1)
        width = channels(2, self.base, self.largest)
        x = activated(EqualizedDense(width, 1.0, dtype=self.dtype, name="dense")(x))
        return EqualizedDense(1, 1.0, dtype=self.dtype, name="score")(x)[:, 0].astype(jnp.float32)

    def _conv(self, x: jax.Array, resolution: int, name: str, kernel: int = 3, scale: str = "same") -> jax.Array:
        width = channels(resolution, self.base, self.largest)
        return activated(EqualizedConv(width, kernel, scale, 1.0, dtype=self.dtype, name=name)(x))


ffhq_256_generator = partial(Generator, 256)
ffhq_256_discriminator = partial(Discriminator, 256)


def activated(x: jax.Array) -> jax.Array:
    """Leaky ReLU of slope 0.2, times the square root of two."""
    return leaky_relu(x) * np.asarray(GAIN, x.dtype)


class PathLength(NamedTuple):
    """The penalty of a batch and what it is made of.

    Attributes:
      penalty: [N], unweighted.
      lengths: [N].
      average: [] the moving average after the batch, for the next; no gradient passes through it.
    """

    penalty: jax.Array
    lengths: jax.Array
    average: jax.Array


def path_length(
    synthesize: Any, styles: jax.Array, average: jax.Array, rng: jax.Array, decay: float = 0.01
) -> PathLength:
    """(length - average)^2 (Eq. 4): a step in w should change an image by a constant, whatever w and its direction.

    The length of an image is the norm of J^T y, its square averaged over layers, for a random image y of unit expected
    norm per channel. The average inside the penalty is that after the batch and has a gradient, as in their code.

    Args:
      synthesize: styles [N, L, W] -> images [N, R, R, 3]; its noise is that of one call.
      styles: [N, L, W].
      average: [] of lengths so far, 0 at the beginning.
      rng: of y.
      decay: how fast the average follows.
    """

    def projected(styles: jax.Array) -> jax.Array:
        images = synthesize(styles)
        direction = jax.random.normal(rng, images.shape) / np.sqrt(np.prod(images.shape[1:3]))
        return jnp.sum(images * direction, (1, 2, 3))

    slopes = adversarial.input_gradient(projected, styles)
    lengths = jnp.sqrt(jnp.mean(jnp.sum(slopes**2, 2), 1))
    new = average + decay * (jnp.mean(lengths) - average)
    return PathLength((lengths - new) ** 2, lengths, lax.stop_gradient(new))
