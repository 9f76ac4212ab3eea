"""UID-GAN: unsupervised domain-specific deblurring via disentangled representations.

Lu, Chen, Chellappa. CVPR 2019, pp. 10225-10234. arXiv:1903.01594.
Learns from sharp and blurred images of other scenes. Content encoders extract what both share, a blur encoder the blur
of a blurred image as a short code with a normal prior. One generator makes sharp images of a content, the other blurred
ones of a content and a code. Losses: adversarial, cycle, and a perceptual one between blurred and deblurred image.

The layers and losses are those of the authors' code, `ustclby/Unsupervised-Domain-Specific-Deblurring` ("the
reference"), which adds to the paper: self-reconstruction, and a second update with random codes. Differs from the
reference: the divergence is a mean over the images, not their sum; the code of a test image is its mean, not a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from facejax.backbones.vgg import VGG
from facejax.nn.conv import Conv, ConvTranspose
from facejax.nn.norm import GroupNorm, InstanceNorm
from facejax.ops.adversarial import logistic_discriminator_loss, logistic_generator_loss
from facejax.ops.pooling import avg_pool

Dtype = Any
SLOPE, BLUR_SLOPE = 0.01, 0.2
"""Slopes of the leaky ReLUs: of content encoders and discriminators; of the blur encoder."""
NORMAL = nn.initializers.normal(0.02)


class Code(NamedTuple):
    """The normal distribution of blur codes: `mean` and `log_variance`, [N, Z] each."""

    mean: jax.Array
    log_variance: jax.Array


def reflected(x: jax.Array, padding: int) -> jax.Array:
    """[N, H, W, C] with `padding` mirrored pixels on every side, the border itself not repeated."""
    if padding and min(x.shape[1:3]) <= padding:
        raise ValueError(f"a map of {x.shape[1]} x {x.shape[2]}: expected more than {padding} pixels a side to mirror")
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), "reflect")


class ReflectConv(nn.Module):
    """A convolution with bias of a mirrored border."""

    features: int
    kernel_size: int
    strides: int = 1
    padding: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H', W', features]."""
        options = {"use_bias": True, "kernel_init": NORMAL, "dtype": self.dtype, "name": "conv"}
        return Conv(self.features, self.kernel_size, self.strides, **options)(reflected(x, self.padding))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance norm, a ReLU between them, and the input added."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, C]."""
        y = ReflectConv(x.shape[-1], 3, 1, 1, self.dtype, name="conv1")(x)
        y = nn.relu(InstanceNorm(dtype=self.dtype, name="norm1")(y))
        y = ReflectConv(x.shape[-1], 3, 1, 1, self.dtype, name="conv2")(y)
        return x + InstanceNorm(dtype=self.dtype, name="norm2")(y)


class Encoder(nn.Module):
    """The part of a content encoder that one domain has of its own."""

    width: int
    blocks: int
    dtype: Dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[N, H, W, 3] -> [N, H/4, W/4, 4 width]."""
        x = nn.leaky_relu(ReflectConv(self.width, 7, 1, 3, self.dtype, name="conv0")(images), SLOPE)
        for i in (1, 2):
            x = ReflectConv(self.width << i, 3, 2, 1, self.dtype, name=f"conv{i}")(x)
            x = nn.relu(InstanceNorm(dtype=self.dtype, name=f"norm{i}")(x))
        for i in range(self.blocks):
            x = ResidualBlock(self.dtype, name=f"block{i}")(x)
        return x


class Content(nn.Module):
    """The content encoders of both domains, whose last block is shared."""

    width: int
    blocks: int
    noise: float
    dtype: Dtype

    def setup(self) -> None:
        self.sharp, self.blurred = (Encoder(self.width, self.blocks, self.dtype) for _ in range(2))
        self.shared = ResidualBlock(self.dtype)

    def __call__(self, sharp: jax.Array, blurred: jax.Array) -> list[jax.Array]:
        """Images of both domains, equally many -> both contents [N, H/4, W/4, 4 width], with noise."""
        x = self.shared(jnp.concatenate([self.sharp(sharp), self.blurred(blurred)]))
        noise = jax.random.normal(self.make_rng("noise"), x.shape)  # in bfloat16 it never exceeds 2.9
        return jnp.split(x + self.noise * noise.astype(x.dtype), 2)

    def of_sharp(self, sharp: jax.Array) -> jax.Array:
        """The contents of sharp images, without noise."""
        return self.shared(self.sharp(sharp))

    def of_blurred(self, blurred: jax.Array) -> jax.Array:
        """The contents of blurred images, without noise."""
        return self.shared(self.blurred(blurred))


class BlurEncoder(nn.Module):
    """Blurred images -> the distribution of their blur codes."""

    width: int
    size: int
    dtype: Dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> Code:
        """[N, H, W, 3] -> [N, size] twice."""
        x = ReflectConv(self.width, 4, 2, 1, self.dtype, name="conv0")(images)
        for i in range(1, 4):
            x = PoolingBlock(self.width * (i + 1), self.dtype, name=f"block{i}")(x)
        x = nn.leaky_relu(x, BLUR_SLOPE).mean((1, 2)).astype(jnp.float32)
        return Code(*(nn.Dense(self.size, name=name)(x) for name in ("mean", "log_variance")))


class PoolingBlock(nn.Module):
    """Two convolutions, each after a leaky ReLU, and a shortcut; both are averaged over 2x2 pixels."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H/2, W/2, features]."""
        y = ReflectConv(x.shape[-1], 3, 1, 1, self.dtype, name="conv1")(nn.leaky_relu(x, BLUR_SLOPE))
        y = ReflectConv(self.features, 3, 1, 1, self.dtype, name="conv2")(nn.leaky_relu(y, BLUR_SLOPE))
        shortcut = ReflectConv(self.features, 1, 1, 0, self.dtype, name="shortcut")(avg_pool(x, (2, 2), (2, 2)))
        return avg_pool(y, (2, 2), (2, 2)) + shortcut


class Decoder(nn.Module):
    """The part of a generator that one domain has of its own. The code is joined to the map before every layer."""

    blocks: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, code: jax.Array) -> jax.Array:
        """[N, h, w, C] and codes [N, Z] -> images [N, 4 h, 4 w, 3] in -1..1."""

        def joined(x: jax.Array) -> jax.Array:
            everywhere = jnp.broadcast_to(code[:, None, None].astype(x.dtype), (*x.shape[:3], code.shape[1]))
            return jnp.concatenate([x, everywhere], -1)

        x = joined(x)
        for i in range(self.blocks):
            x = ResidualBlock(self.dtype, name=f"block{i}")(x)
        options = {"use_bias": True, "kernel_init": NORMAL, "dtype": self.dtype}
        for i in range(2):
            x = joined(x)
            x = ConvTranspose(x.shape[-1] // 2, 3, 2, ((1, 0), (1, 0)), **options, name=f"up{i}")(x)
            x = nn.relu(GroupNorm(1, dtype=self.dtype, name=f"norm{i}")(x))
        return jnp.tanh(ConvTranspose(3, 1, **options, name="out")(joined(x)).astype(jnp.float32))


class Generator(nn.Module):
    """The generators of both domains, whose first block is shared."""

    blocks: int
    dtype: Dtype

    def setup(self) -> None:
        self.shared = ResidualBlock(self.dtype)
        self.sharp, self.blurred = (Decoder(self.blocks, self.dtype) for _ in range(2))

    def deblur(self, content: jax.Array, code: jax.Array) -> jax.Array:
        """Contents [N, h, w, C] and codes [N, Z] -> sharp images."""
        return self.sharp(self.shared(content), code)

    def blur(self, content: jax.Array, code: jax.Array) -> jax.Array:
        """Contents [N, h, w, C] and codes [N, Z] -> blurred images."""
        return self.blurred(self.shared(content), code)


class Translated(NamedTuple):
    """What the first update makes of sharp and blurred images: [N, H, W, 3] and codes.

    Attributes:
      deblurred, blurred: translations, with codes drawn for the blurred images.
      sharp_again, blurred_again: reconstructions from an image's own content.
      sharp_cycle, blurred_cycle: translations back.
      code: of the blurred images.
    """

    deblurred: jax.Array
    sharp_again: jax.Array
    blurred: jax.Array
    blurred_again: jax.Array
    sharp_cycle: jax.Array
    blurred_cycle: jax.Array
    code: Code


class Random(NamedTuple):
    """What the second update makes of the same images with random codes.

    Attributes:
      deblurred, blurred: translations [N, H, W, 3].
      code: [N, Z].
      found: means [N, Z] of the codes of `blurred`.
    """

    deblurred: jax.Array
    blurred: jax.Array
    code: jax.Array
    found: jax.Array


class UID(nn.Module):
    """Encoders and generators. Sides of images are multiples of 4.

    Attributes:
      width: channels of the first layers; contents have four times as many.
      blocks: residual blocks of every encoder and generator besides the shared ones.
      code_size: Z, numbers of a blur code; 0: content and blur are not disentangled.
      noise: standard deviation of the normal noise that training adds to the contents.
      dtype: of the computation; images and codes are float32.
    """

    width: int = 64
    blocks: int = 3
    code_size: int = 8
    noise: float = 1.0
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.content = Content(self.width, self.blocks, self.noise, self.dtype)
        self.blur_encoder = BlurEncoder(self.width, self.code_size, self.dtype) if self.code_size else None
        self.generator = Generator(self.blocks, self.dtype)

    def __call__(self, blurred: jax.Array) -> jax.Array:
        """Blurred images [N, H, W, 3] in -1..1 -> deblurred ones."""
        if blurred.ndim != 4 or blurred.shape[3] != 3 or blurred.shape[1] % 4 or blurred.shape[2] % 4:
            raise ValueError(f"UID: images {blurred.shape}: expected [N, H, W, 3] with sides that 4 divides")
        content, code = self.content.of_blurred(blurred), self.blur_code(blurred).mean
        if self.is_initializing():
            self.generator.blur(self.content.of_sharp(blurred), code)
        return self.generator.deblur(content, code)

    def blur_code(self, blurred: jax.Array) -> Code:
        """The distribution of the blur codes of blurred images."""
        return self.blur_encoder(blurred) if self.code_size else Code(*jnp.zeros((2, len(blurred), 0)))

    def transferred(self, sharp: jax.Array, blurred: jax.Array) -> jax.Array:
        """The sharp images, blurred as the blurred ones are."""
        return self.generator.blur(self.content.of_sharp(sharp), self.blur_code(blurred).mean)

    def translate(self, sharp: jax.Array, blurred: jax.Array) -> Translated:
        """All that the first update needs; draws from the streams "noise" and "code"."""
        content_sharp, content_blurred = self.content(sharp, blurred)
        code = self.blur_code(blurred)
        twice = jnp.concatenate([self._drawn(code)] * 2)
        deblurred, sharp_again = self._halves(self.generator.deblur, content_blurred, content_sharp, twice)
        made, blurred_again = self._halves(self.generator.blur, content_sharp, content_blurred, twice)
        of_deblurred, of_made = self.content(deblurred, made)
        again = self._drawn(self.blur_code(made))
        cycles = self.generator.deblur(of_made, again), self.generator.blur(of_deblurred, again)
        return Translated(deblurred, sharp_again, made, blurred_again, *cycles, code)

    def translate_random(self, sharp: jax.Array, blurred: jax.Array) -> Random:
        """All that the second update needs; the same keys give the same contents as in `translate`."""
        content_sharp, content_blurred = self.content(sharp, blurred)
        code = jax.random.normal(self.make_rng("random"), (len(sharp), self.code_size))
        made = self.generator.blur(content_sharp, code)
        return Random(self.generator.deblur(content_blurred, code), made, code, self.blur_code(made).mean)

    def _halves(self, generate: Any, first: jax.Array, second: jax.Array, codes: jax.Array) -> list[jax.Array]:
        return jnp.split(generate(jnp.concatenate([first, second]), codes), 2)

    def _drawn(self, code: Code) -> jax.Array:
        noise = jax.random.normal(self.make_rng("code"), code.mean.shape)
        return code.mean + jnp.exp(code.log_variance / 2) * noise


class Discriminator(nn.Module):
    """Scores of patches, by a network of its own at each of several scales.

    Attributes:
      width: channels of the first layer, which double with every layer.
      layers: convolutions of stride 2.
      scales: the image itself, and halved ones.
      dtype: of the computation; scores are float32.
    """

    width: int = 64
    layers: int = 4
    scales: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """[N, H, W, 3] -> scores [N, h, w] at every scale."""
        scores = []
        for scale in range(self.scales):
            x = images
            for layer in range(self.layers):
                conv = ReflectConv(self.width << layer, 4, 2, 1, self.dtype, name=f"scale{scale}_conv{layer}")
                x = nn.leaky_relu(conv(x), SLOPE)
            score = ReflectConv(1, 1, dtype=self.dtype, name=f"scale{scale}_score")(x)
            scores.append(score[..., 0].astype(jnp.float32))
            images = avg_pool(images, (3, 3), (2, 2), ((1, 1), (1, 1)), count_padding=False)
        return scores


def discriminator_loss(real: list[jax.Array], fake: list[jax.Array]) -> jax.Array:
    """Cross-entropies of real and generated patches, each a mean over patches, summed over scales -> [N]."""
    return sum(logistic_discriminator_loss(r, f).mean((1, 2)) for r, f in zip(real, fake, strict=True))


def adversarial_loss(fake: list[jax.Array]) -> jax.Array:
    """The generator's cross-entropy that generated patches are real -> [N]."""
    return sum(logistic_generator_loss(f).mean((1, 2)) for f in fake)


def absolute_error(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean absolute difference of every image or code, [N, ...] -> [N]."""
    return jnp.abs(found - wanted).mean(range(1, found.ndim))


def divergence(code: Code) -> jax.Array:
    """KL divergence of the code's distribution from the standard normal one, summed over the numbers -> [N]."""
    mean, log_variance = code
    return -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance), -1)


Extractor = Callable[[Any, jax.Array], jax.Array]
"""(its parameters, images [N, H, W, 3] in -1..1) -> features [N, h, w, C]."""


def vgg_features(net: VGG, params: Any, images: jax.Array) -> jax.Array:
    """The third map of the third stage before its ReLU. As in the reference, images are not normalised for VGG."""
    kept = {"capture_intermediates": lambda module, _: module.name == "conv3_3", "mutable": ["intermediates"]}
    _, found = net.apply({"params": params}, images, train=False, **kept)
    return found["intermediates"]["conv3_3"]["__call__"][0].astype(jnp.float32)


def coarse_features(params: Any, images: jax.Array) -> jax.Array:
    """Means over 4x4 pixels, which blur hardly changes; without parameters."""
    del params
    return avg_pool(images, (4, 4), (4, 4))


def perceptual_loss(extractor: Extractor, params: Any, images: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean squared difference of features -> [N]; no gradient passes to `wanted`."""
    found, target = extractor(params, images), lax.stop_gradient(extractor(params, wanted))
    return jnp.square(found - target).mean((1, 2, 3))
