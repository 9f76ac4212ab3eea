"""Adversarial training of super-resolution: discriminators and losses of SRGAN and ESRGAN.

Ledig et al. "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network". CVPR 2017.
arXiv:1609.04802. Wang et al. "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks". ECCVW 2018.
arXiv:1809.00219. A generator trained for PSNR is trained on with the distance of VGG-19's features in place of that of
pixels, and against a discriminator. In ESRGAN the discriminator predicts which of two images is real.

Differs from ESRGAN's code: that takes the mean of the other side's scores over one device, `axis_name` takes it over
all; and in the discriminator's step that sends no gradient through these means, which the paper's formula has.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from facejax.backbones.vgg import VGG
from facejax.nn.conv import Conv
from facejax.nn.init import torch_default
from facejax.nn.norm import BatchNorm
from facejax.restoration.super_resolution import conv3, leaky

Dtype = Any

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Discriminator(nn.Module):
    """Pairs of convolutions, the second of each with stride 2, and two dense layers.

    Attributes:
      widths: channels of each pair.
      kernel: size of the strided convolutions.
      hidden: width of the first dense layer.
      norm_bias: whether convolutions before batch norm have a bias.
      axis_name: mapped axis over which to share batch statistics.
      dtype: of the computation.
    """

    widths: Sequence[int] = (64, 128, 256, 512)
    kernel: int = 3
    hidden: int = 1024
    norm_bias: bool = True
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] RGB in 0..1 -> logits [N] of being real; the sides fix the size of the first dense layer."""
        stride = 2 ** len(self.widths)
        if any(side % stride for side in images.shape[1:3]):
            raise ValueError(f"Discriminator: images {images.shape}: expected sides that {stride} divides")
        x = leaky(conv3(self.widths[0], inputs=3, dtype=self.dtype, name="conv0_0")(images))
        for i, width in enumerate(self.widths):
            for j in (0, 1)[not i :]:  # the very first has no norm
                size, padding = ((3, 1), (self.kernel, 1))[j]
                options = {"strides": j + 1, "use_bias": self.norm_bias, "kernel_init": torch_default}
                x = Conv(width, size, padding=padding, dtype=self.dtype, name=f"conv{i}_{j}", **options)(x)
                x = leaky(BatchNorm(self.axis_name, dtype=self.dtype, name=f"bn{i}_{j}")(x, train=train))
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        x = leaky(nn.Dense(self.hidden, kernel_init=torch_default, name="hidden")(x))
        return nn.Dense(1, kernel_init=torch_default, name="score")(x)[:, 0]


srgan_discriminator = Discriminator
esrgan_discriminator = partial(Discriminator, (64, 128, 256, 512, 512), kernel=4, hidden=100, norm_bias=False)


def discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """SRGAN's -log D(real) - log(1 - D(fake)), of logits [N] each -> [N]."""
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def generator_loss(fake: jax.Array) -> jax.Array:
    """SRGAN's -log D(fake), of logits [N] -> [N]."""
    return jax.nn.softplus(-fake)


def relativistic_loss(higher: jax.Array, lower: jax.Array, axis_name: str | None = None) -> jax.Array:
    """ESRGAN's relativistic average loss that scores of `higher` exceed the mean of `lower`, and the reverse.

    With (real, fake) it is the discriminator's, with (fake, real) the generator's.

    Args:
      higher, lower: logits [N].
      axis_name: mapped axis over which the means are taken, too.

    Returns:
      [N], half the sum of both cross-entropies.
    """
    means = [scores.mean() for scores in (higher, lower)]
    if axis_name:
        means = [lax.pmean(mean, axis_name) for mean in means]
    return 0.5 * (jax.nn.softplus(-(higher - means[1])) + jax.nn.softplus(lower - means[0]))


def vgg_features(net: VGG, params: Any, images: jax.Array, layer: str, before_relu: bool) -> jax.Array:
    """VGG's map [N, h, w, C] of a layer, "5_4", of RGB images [N, H, W, 3] in 0..1."""
    images = (images - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)
    if not before_relu:
        return net.apply({"params": params}, images, train=False, features=True)[f"relu{layer}"].astype(jnp.float32)
    name = f"conv{layer}"
    kept = {"capture_intermediates": lambda module, _: module.name == name, "mutable": ["intermediates"]}
    _, found = net.apply({"params": params}, images, train=False, **kept)
    return found["intermediates"][name]["__call__"][0].astype(jnp.float32)


def perceptual_loss(features: jax.Array, truth: jax.Array, kind: str) -> jax.Array:
    """Mean distance of two maps [N, h, w, C]: "l1" (ESRGAN), or "l2" of maps divided by 12.75 (SRGAN) -> [N]."""
    if kind not in ("l1", "l2"):
        raise ValueError(f"perceptual_loss: kind {kind!r}: expected 'l1' or 'l2'")
    truth = lax.stop_gradient(truth)
    distance = jnp.abs(features - truth) if kind == "l1" else optax.squared_error(features / 12.75, truth / 12.75)
    return distance.mean((1, 2, 3))
