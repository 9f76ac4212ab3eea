"""PG-GAN: progressive growing of GANs for improved quality, stability, and variation.

Karras, Aila, Laine, Lehtinen. ICLR 2018. arXiv:1710.10196.
Generator and discriminator begin at 4x4 pixels. Layers for twice the resolution are faded in, again and again, while
both go on training. Equalized learning rates, pixel norm and the deviation of a minibatch keep the game stable.

Follows the authors' TensorFlow code where the paper differs: groups of four in the minibatch's deviation, pooling
before bias and activation. Differs from both: no labels (AC-GAN); the gradient penalty is finite where a gradient is 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.equalized import (
    GAIN,
    EqualizedConv,
    EqualizedDense,
    downscale,
    fade,
    leaky_relu,
    minibatch_stddev,
    pixel_norm,
    upscale,
)
from facejax.ops import adversarial

Dtype = Any
Alpha = jax.Array | float | None


def channels(resolution: int, base: int, largest: int) -> int:
    """Feature maps at a resolution: `base` at 2 pixels, half as many at each double, at most `largest`."""
    return min(2 * base // resolution, largest)


class Generator(nn.Module):
    """Latent vectors to images.

    Attributes:
      resolution: R, a power of two. A network contains the parameters of those of lower resolution, by the same names.
      latent_size: Z.
      base, largest: see `channels`.
      dtype: of the computation; parameters and images are float32.
    """

    resolution: int = 1024
    latent_size: int = 512
    base: int = 8192
    largest: int = 512
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array, *, alpha: Alpha = None) -> jax.Array:
        """Images of latents.

        Args:
          latents: [N, Z], normal.
          alpha: weight of the last block, 0..1, beside the enlarged image of the block before; None: 1.

        Returns:
          [N, R, R, 3] in the range of the training images, -1..1, which is not enforced.
        """
        _check(self.resolution)
        if latents.shape[-1] != self.latent_size:
            raise ValueError(f"Generator: latents {latents.shape}, expected [N, {self.latent_size}]")
        width = channels(4, self.base, self.largest)
        x = pixel_norm(latents.astype(self.dtype))
        x = EqualizedDense(16 * width, GAIN / 4, use_bias=False, dtype=self.dtype, name="dense")(x)
        x = x.reshape(-1, 4, 4, width) + self.param("bias", nn.initializers.zeros, (width,)).astype(self.dtype)
        x = self._conv(pixel_norm(leaky_relu(x)), 4, "conv4")
        size, old, images = 4, None, self._image(x, 4)
        while size < self.resolution:
            size, old = 2 * size, images
            x = self._conv(x, size, f"up{size}", "up")
            x = self._conv(x, size, f"conv{size}")
            images = self._image(x, size)
        return images if old is None or alpha is None else fade(upscale(old), images, alpha)

    def _conv(self, x: jax.Array, resolution: int, name: str, scale: str = "same") -> jax.Array:
        width = channels(resolution, self.base, self.largest)
        return pixel_norm(leaky_relu(EqualizedConv(width, scale=scale, dtype=self.dtype, name=name)(x)))

    def _image(self, x: jax.Array, resolution: int) -> jax.Array:
        image = EqualizedConv(3, 1, gain=1.0, dtype=self.dtype, name=f"to_rgb{resolution}")(x)
        return image.astype(jnp.float32)


class Discriminator(nn.Module):
    """Images to scores, higher for real ones.

    Attributes:
      resolution, base, largest, dtype: as of `Generator`.
      group: images whose deviation the last block sees; of fewer all.
    """

    resolution: int = 1024
    base: int = 8192
    largest: int = 512
    group: int = 4
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, alpha: Alpha = None) -> jax.Array:
        """Scores of images.

        Args:
          images: [N, R, R, 3] in -1..1.
          alpha: weight of the first block, 0..1, beside the halved images; None: 1.

        Returns:
          [N] float32.
        """
        _check(self.resolution)
        if images.shape[1:] != (self.resolution, self.resolution, 3):
            raise ValueError(
                f"Discriminator: images {images.shape}, expected [N, {self.resolution}, {self.resolution}, 3]"
            )
        x, size = self._features(images), self.resolution
        while size > 4:
            x = self._conv(x, channels(size, self.base, self.largest), f"conv{size}")
            x = self._conv(x, channels(size // 2, self.base, self.largest), f"down{size}", "down")
            fading, size = size == self.resolution and alpha is not None, size // 2
            if fading or self.is_initializing():
                images = downscale(images)
                x = fade(self._features(images), x, 1 if alpha is None else alpha)
        x = self._conv(minibatch_stddev(x, self.group), channels(4, self.base, self.largest), "conv4")
        x = x.reshape(x.shape[0], -1)
        x = leaky_relu(EqualizedDense(channels(2, self.base, self.largest), dtype=self.dtype, name="dense")(x))
        return EqualizedDense(1, 1.0, dtype=self.dtype, name="score")(x)[:, 0].astype(jnp.float32)

    def _conv(self, x: jax.Array, width: int, name: str, scale: str = "same") -> jax.Array:
        return leaky_relu(EqualizedConv(width, scale=scale, dtype=self.dtype, name=name)(x))

    def _features(self, images: jax.Array) -> jax.Array:
        size = images.shape[1]
        width = channels(size, self.base, self.largest)
        return leaky_relu(EqualizedConv(width, 1, dtype=self.dtype, name=f"from_rgb{size}")(images))


def _check(resolution: int) -> None:
    if resolution < 4 or resolution & (resolution - 1):
        raise ValueError(f"a PG-GAN of {resolution} pixels: expected a power of two, 4 or more")


celeba_128_generator = partial(Generator, 128, base=2048)
"""Of the paper's ablation on CelebA and LSUN at 128 pixels (Table 1)."""
celeba_128_discriminator = partial(Discriminator, 128, base=2048)


def faded(images: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """Real images during a transition: at alpha 0 without the details that the coarser resolution lacks."""
    return fade(upscale(downscale(images)), images, alpha)


def generator_loss(score: adversarial.Score, fake: jax.Array) -> jax.Array:
    """-D(fake), [N].

    Args:
      score: images -> scores [N].
      fake: [N, R, R, 3] generated images.
    """
    return adversarial.wasserstein_generator_loss(score(fake))


def discriminator_loss(
    score: adversarial.Score,
    real: jax.Array,
    fake: jax.Array,
    rng: jax.Array,
    *,
    weight: float = 10.0,
    target: float = 1.0,
    drift: float = 1e-3,
) -> jax.Array:
    """WGAN-GP with drift: D(fake) - D(real) + weight / target^2 (||grad D|| - target)^2 + drift D(real)^2, [N].

    Args:
      score: images -> scores [N].
      real, fake: [N, R, R, 3].
      rng: of the points between them where the gradient is taken.
      weight, target, drift: lambda, gamma and epsilon_drift; gamma is 750 for CIFAR-10.
    """
    of_real, of_fake = jax.vmap(score)(jnp.stack([real, fake]))  # one pass; the deviations of each stay its own
    penalty = adversarial.gradient_penalty(score, adversarial.mixed_images(rng, real, fake), target)
    loss = adversarial.wasserstein_discriminator_loss(of_real, of_fake)
    return loss + weight / target**2 * penalty + drift * adversarial.drift_penalty(of_real)
