"""StyleGAN: a style-based generator architecture for generative adversarial networks.

Karras, Laine, Aila. CVPR 2019. arXiv:1812.04948.
A mapping network turns latents z into intermediate latents w, which control every layer of the synthesis network by the
scale and shift of its normalised maps; noise adds what is random. The discriminator and the growth are PG-GAN's.

Follows the authors' TensorFlow code. Differs: no labels; fixed noise is drawn from a constant key instead of stored.
`facejax.generation.stylegan2` has the second version.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from facejax.generation import pggan
from facejax.generation.pggan import Alpha, channels
from facejax.nn.equalized import GAIN, EqualizedConv, EqualizedDense, fade, leaky_relu, pixel_norm, upscale
from facejax.ops import adversarial, fir

Dtype = Any
NOISE = "noise"
"""Stream of random keys; a call without it has the same fixed noise every time."""
TRUNCATED_LAYERS = 8
"""Layers, the coarsest, that `truncated` moves in the paper: those up to 32 pixels."""


def layer_count(resolution: int) -> int:
    """L, layers with a style of their own: two at every resolution from 4 pixels on. Raises ValueError for others."""
    if resolution < 4 or resolution & (resolution - 1):
        raise ValueError(f"a StyleGAN of {resolution} pixels: expected a power of two, 4 or more")
    return 2 * (resolution.bit_length() - 2)


class Mapping(nn.Module):
    """The mapping network f: latents z to intermediate latents w.

    Attributes:
      features: W, size of w.
      layers: dense layers; 0: w is z, normalised.
      width: of the hidden layers.
      multiplier: learning rate relative to that of other layers.
      normalize: scale z to a mean square of one.
      gain: of the weights.
      scale: of the activations: StyleGAN2 has the square root of two here instead of in the gain.
      dtype: of the computation.
    """

    features: int = 512
    layers: int = 8
    width: int = 512
    multiplier: float = 0.01
    normalize: bool = True
    gain: float = GAIN
    scale: float = 1.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """[N, Z] -> [N, W] float32."""
        x = latents.astype(jnp.float32)
        if self.normalize:
            x = pixel_norm(x)
        for i in range(self.layers):
            width = self.width if i < self.layers - 1 else self.features
            x = EqualizedDense(width, self.gain, self.multiplier, dtype=self.dtype, name=f"dense{i}")(x)
            x = leaky_relu(x) * self.scale
        if x.shape[-1] != self.features:
            raise ValueError(f"Mapping: no layers turn {x.shape[-1]} latents into {self.features}, expected as many")
        return x.astype(jnp.float32)


class Epilogue(nn.Module):
    """What follows every convolution: noise, bias, activation, instance norm, style."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, style: jax.Array, noise: jax.Array) -> jax.Array:
        """[N, H, W, C], [N, W] and [N or 1, H, W, 1] -> [N, H, W, C]."""
        width = x.shape[-1]
        strength = self.param("noise", nn.initializers.zeros, (width,)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (width,)).astype(self.dtype)
        x = instance_norm(leaky_relu(x + noise.astype(self.dtype) * strength + bias))
        return adaptive(x, EqualizedDense(2 * width, 1.0, dtype=self.dtype, name="style")(style))


class Synthesis(nn.Module):
    """The synthesis network g: styles to images.

    Attributes:
      resolution: R, a power of two. A network contains the parameters of those of lower resolution, by the same names.
      base, largest: feature maps, see `pggan.channels`.
      dtype: of the computation; parameters and images are float32.
    """

    resolution: int = 1024
    base: int = 8192
    largest: int = 512
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, styles: jax.Array, *, alpha: Alpha = None) -> jax.Array:
        """Images of styles.

        Args:
          styles: [N, L, W], w of every layer.
          alpha: weight of the last block, 0..1, beside the enlarged image of the block before; None: 1.

        Returns:
          [N, R, R, 3] in the range of the training images, -1..1, which is not enforced.
        """
        check_styles(styles, self.resolution)
        width = channels(4, self.base, self.largest)
        x = self.param("const", nn.initializers.ones, (4, 4, width)).astype(self.dtype)
        x = jnp.broadcast_to(x, (styles.shape[0], *x.shape))
        x = self._epilogue(x, styles, 0)
        x = self._epilogue(self._conv(x, 4, "conv4"), styles, 1)
        size, layer, old, images = 4, 2, None, self._image(x, 4)
        while size < self.resolution:
            size, old = 2 * size, images
            x = self._epilogue(fir.blur(self._conv(x, size, f"up{size}", "up")), styles, layer)
            x = self._epilogue(self._conv(x, size, f"conv{size}"), styles, layer + 1)
            layer, images = layer + 2, self._image(x, size)
        return images if old is None or alpha is None else fade(upscale(old), images, alpha)

    def _conv(self, x: jax.Array, resolution: int, name: str, scale: str = "same") -> jax.Array:
        width = channels(resolution, self.base, self.largest)
        return EqualizedConv(width, scale=scale, use_bias=False, dtype=self.dtype, name=name)(x)

    def _epilogue(self, x: jax.Array, styles: jax.Array, layer: int) -> jax.Array:
        return Epilogue(self.dtype, name=f"epilogue{layer}")(x, styles[:, layer], noise(self, x, layer))

    def _image(self, x: jax.Array, resolution: int) -> jax.Array:
        image = EqualizedConv(3, 1, gain=1.0, dtype=self.dtype, name=f"to_rgb{resolution}")(x)
        return image.astype(jnp.float32)


class Generator(nn.Module):
    """Latents to images: `Mapping` and `Synthesis`, whose parameters are "mapping" and "synthesis".

    Attributes:
      resolution, base, largest, dtype: as of `Synthesis`.
      latent_size: Z, also the size of w and the width of the mapping network.
      mapping_layers: of the mapping network; 0: w is z, normalised.
      normalize: scale z to a mean square of one.
      style_size: W, where it differs from Z.
      mapping_multiplier: learning rate of the mapping network relative to that of other layers.
    """

    resolution: int = 1024
    latent_size: int = 512
    base: int = 8192
    largest: int = 512
    mapping_layers: int = 8
    normalize: bool = True
    style_size: int | None = None
    mapping_multiplier: float = 0.01
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        size = self.style_size or self.latent_size
        self.mapping = Mapping(
            size, self.mapping_layers, size, self.mapping_multiplier, self.normalize, dtype=self.dtype
        )
        self.synthesis = Synthesis(self.resolution, self.base, self.largest, self.dtype)

    def __call__(self, latents: jax.Array, *, alpha: Alpha = None) -> jax.Array:
        """[N, Z] -> [N, R, R, 3], one w for all layers; see `Synthesis`."""
        return self.synthesize(repeated(self.map(latents), self.layers), alpha=alpha)

    def map(self, latents: jax.Array) -> jax.Array:
        """[N, Z] -> w [N, W]."""
        check_latents(latents, self.latent_size)
        return self.mapping(latents)

    def synthesize(self, styles: jax.Array, *, alpha: Alpha = None) -> jax.Array:
        """[N, L, W] -> [N, R, R, 3]; see `Synthesis`."""
        return self.synthesis(styles, alpha=alpha)

    @property
    def layers(self) -> int:
        """L."""
        return layer_count(self.resolution)


class Discriminator(pggan.Discriminator):
    """PG-GAN's discriminator with a filter before every reduction."""

    def _conv(self, x: jax.Array, width: int, name: str, scale: str = "same") -> jax.Array:
        return super()._conv(fir.blur(x) if scale == "down" else x, width, name, scale)


ffhq_256_generator = partial(Generator, 256)
ffhq_256_discriminator = partial(Discriminator, 256)


def instance_norm(x: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """Every map of every image with mean 0 and variance 1, computed in float32. [N, H, W, C] -> [N, H, W, C].

    A constant map becomes 0.
    """
    wide = x.astype(jnp.float32)
    wide -= jnp.mean(wide, (1, 2), keepdims=True)
    return (wide * lax.rsqrt(jnp.mean(wide**2, (1, 2), keepdims=True) + epsilon)).astype(x.dtype)


def adaptive(x: jax.Array, style: jax.Array) -> jax.Array:
    """X (s + 1) + b: [N, H, W, C] and styles [N, 2C], s first."""
    scale, shift = jnp.split(style[:, None, None], 2, -1)
    return x * (scale + 1) + shift


def noise(module: nn.Module, x: jax.Array, layer: int) -> jax.Array:
    """Normal noise for maps [N, H, W, C]: [N, H, W, 1] of the stream "noise", or without it fixed, [1, H, W, 1]."""
    if module.has_rng(NOISE):
        return jax.random.normal(module.make_rng(NOISE), (*x.shape[:3], 1))
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), layer), (1, *x.shape[1:3], 1))


def repeated(w: jax.Array, layers: int) -> jax.Array:
    """One w for all layers: [N, W] -> [N, L, W]."""
    return jnp.broadcast_to(w[:, None], (w.shape[0], layers, w.shape[-1]))


def mixed(first: jax.Array, second: jax.Array, cutoff: jax.Array | int, layers: int) -> jax.Array:
    """Style mixing: layers before `cutoff` have the w of `first`, the others that of `second`. [N, W] -> [N, L, W]."""
    return jnp.where(jnp.arange(layers)[:, None] < cutoff, first[:, None], second[:, None])


def mixing_cutoff(rng: jax.Array, layers: int, probability: float = 0.9) -> jax.Array:
    """[] the layer where a batch in training changes styles: 1 to L - 1 at random, or L, no change, with the rest."""
    first, second = jax.random.split(rng)
    cutoff = jax.random.randint(first, (), 1, layers)
    return jnp.where(jax.random.uniform(second) < probability, cutoff, layers)


def truncated(
    styles: jax.Array, average: jax.Array, psi: float | jax.Array = 0.7, layers: int | None = TRUNCATED_LAYERS
) -> jax.Array:
    """The truncation trick: average + psi (w - average), of better images and less variety.

    Args:
      styles: [N, L, W].
      average: [W], of w over latents; see `moved`.
      psi: 1: unchanged; 0: the average.
      layers: so many of the first; None: all, as in StyleGAN2.

    Returns:
      [N, L, W].
    """
    near = average + psi * (styles - average)
    if layers is None:
        return near
    return jnp.where(jnp.arange(styles.shape[1])[:, None] < layers, near, styles)


def moved(average: jax.Array, w: jax.Array, decay: float = 0.995) -> jax.Array:
    """The moving average [W] of w after a batch [N, W]; no gradient passes."""
    return lax.stop_gradient(decay * average + (1 - decay) * jnp.mean(w, 0))


def generator_loss(score: adversarial.Score, fake: jax.Array) -> jax.Array:
    """softplus(-D(fake)), [N]; `score`: images -> [N]."""
    return adversarial.logistic_generator_loss(score(fake))


def discriminator_loss(score: adversarial.Score, real: jax.Array, fake: jax.Array) -> jax.Array:
    """softplus(D(fake)) + softplus(-D(real)), [N], without the penalty.

    Args:
      score: images -> scores [N].
      real, fake: [N, R, R, 3].
    """
    of_real, of_fake = jax.vmap(score)(jnp.stack([real, fake]))  # one pass; the deviations of each stay its own
    return adversarial.logistic_discriminator_loss(of_real, of_fake)


def r1_penalty(score: adversarial.Score, real: jax.Array, gamma: float = 10.0) -> jax.Array:
    """Gamma / 2 ||grad D(real)||^2, [N], the sum of squares over all pixels."""
    return gamma / 2 * adversarial.squared_gradient(score, real)


def check_latents(latents: jax.Array, size: int) -> None:
    """Raises ValueError unless latents are [N, size]."""
    if latents.ndim != 2 or latents.shape[-1] != size:
        raise ValueError(f"Generator: latents {latents.shape}, expected [N, {size}]")


def check_styles(styles: jax.Array, resolution: int) -> None:
    """Raises ValueError unless styles are [N, L, W] with the layers of the resolution."""
    layers = layer_count(resolution)
    if styles.ndim != 3 or styles.shape[1] != layers:
        raise ValueError(f"Synthesis: styles {styles.shape}, expected [N, {layers}, W]")
