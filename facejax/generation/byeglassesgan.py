"""ByeGlassesGAN: eyeglasses removal that keeps the identity.

Lee, Lai. "ByeGlassesGAN: Identity Preserving Eyeglasses Removal for Face Images". ECCV 2020. arXiv:2008.11042.
An encoder feeds two decoders: one draws the face without glasses, the other segments glasses and face, and hands its
maps to the first. Two discriminators judge the image and the region of the glasses; a recogniser compares identities.

The paper gives block counts, norms, activations and skip connections. Widths, kernels and initialisation are those of
ELEGANT (`Prinsphield/ELEGANT`), which the paper follows; no code of its own was found. Our choices, marked (choice) at
their place: output layers, biases only where no norm follows, what the local loss is divided by, the discriminators'
norm. Our extension: a code of the style as input, with which the same network adds glasses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.conv import Conv, ConvTranspose
from facejax.nn.norm import InstanceNorm
from facejax.ops.adversarial import least_squares_discriminator_loss, least_squares_generator_loss

Dtype = Any
SLOPE = 0.2
NORMAL = nn.initializers.normal(0.02)


class Output(NamedTuple):
    """What the generator makes of images.

    Attributes:
      image: [N, H, W, 3] in -1..1.
      masks: logits [N, H, W, 2] of glasses and of the whole face; [N, H, W, 0] without a segmentation decoder.
    """

    image: jax.Array
    masks: jax.Array


class Encoder(nn.Module):
    """Convolutions of stride 2 with instance norm and leaky ReLU."""

    widths: tuple[int, ...]
    outer_norm: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """[N, H, W, C] -> maps at strides 2, 4, ..."""
        maps = []
        for i, width in enumerate(self.widths):
            norm = bool(i) or self.outer_norm
            options = {"use_bias": not norm, "kernel_init": NORMAL, "dtype": self.dtype, "name": f"conv{i}"}
            x = Conv(width, 3, 2, 1, **options)(x)
            x = InstanceNorm(dtype=self.dtype, name=f"norm{i}")(x) if norm else x
            maps.append(x := nn.leaky_relu(x, SLOPE))
        return maps


class Decoder(nn.Module):
    """Transposed convolutions of stride 2 with instance norm and leaky ReLU, and a 3x3 output of stride 1 (choice)."""

    widths: tuple[int, ...]
    channels: int
    outer_norm: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, maps: list[jax.Array], shared: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        """One output and the maps of all stages, the innermost first.

        Args:
          maps: of the encoder, at strides 2, 4, ...; each but the last is joined at its own resolution.
          shared: maps of the other decoder, joined likewise; empty: none.

        Returns:
          [N, H, W, channels] before the activation, float32; maps at strides 2^(depth - 1), ..., 2, 1.
        """
        x, found = maps[-1], []
        for i, width in enumerate(self.widths):
            if i:
                x = jnp.concatenate([x, maps[-1 - i], *shared[i - 1 : i]], -1)
            norm = i < len(self.widths) - 1 or self.outer_norm
            options = {"use_bias": not norm, "kernel_init": NORMAL, "dtype": self.dtype, "name": f"up{i}"}
            x = ConvTranspose(width, 3, 2, ((1, 0), (1, 0)), **options)(x)
            x = InstanceNorm(dtype=self.dtype, name=f"norm{i}")(x) if norm else x
            found.append(x := nn.leaky_relu(x, SLOPE))
        x = jnp.concatenate([x, *shared[-1:]], -1)
        out = ConvTranspose(self.channels, 3, 1, 1, use_bias=True, kernel_init=NORMAL, dtype=self.dtype, name="out")
        return out(x).astype(jnp.float32), found


class ByeGlasses(nn.Module):
    """The generator.

    Attributes:
      width: channels of the first layer; they double with every layer, up to eight times as many.
      depth: layers of stride 2.
      segments: whether there is a segmentation decoder.
      shares: whether the face decoder sees the segmentation decoder's maps.
      outer_norm: whether the first convolution and the last transposed ones have a norm, as in the paper; these hide
        brightness and colour of an image as a whole.
      dtype: of the computation; outputs are float32.
    """

    width: int = 64
    depth: int = 5
    segments: bool = True
    shares: bool = True
    outer_norm: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, style: jax.Array | None = None) -> Output:
        """Takes glasses off, or with a style puts them on.

        Args:
          images: [N, H, W, 3] in -1..1, of sides that 2^depth divides, 2^(depth + 1) at least.
          style: [N, K] numbers of the glasses to add, joined to every pixel; None: no such input.
        """
        least = 2 << self.depth
        if images.ndim != 4 or images.shape[3] != 3 or any(s % (least // 2) or s < least for s in images.shape[1:3]):
            raise ValueError(
                f"ByeGlasses: images {images.shape}: expected [N, H, W, 3] with sides of {least} pixels or more that "
                f"{least // 2} divides"
            )
        if self.shares and not self.segments:
            raise ValueError(
                "ByeGlasses: shares without segments: expected a segmentation decoder to share the maps of"
            )
        if style is not None and self.outer_norm:
            raise ValueError("ByeGlasses: a style with outer_norm: expected outer_norm False, as the norm removes it")
        x = images
        if style is not None:
            code = jnp.broadcast_to(style[:, None, None], (*images.shape[:3], style.shape[1]))
            x = jnp.concatenate([x, code.astype(x.dtype)], -1)
        widths = tuple(min(self.width << i, 8 * self.width) for i in range(self.depth))
        maps = Encoder(widths, self.outer_norm, self.dtype, name="encoder")(x)
        upward = (*widths[-2::-1], self.width)
        masks, shared = jnp.zeros((*images.shape[:3], 0)), []
        if self.segments:
            masks, shared = Decoder(upward, 2, self.outer_norm, self.dtype, name="segmentation")(maps, [])
        face, _ = Decoder(upward, 3, self.outer_norm, self.dtype, name="face")(maps, shared if self.shares else [])
        return Output(jnp.tanh(face), masks)


class PatchDiscriminator(nn.Module):
    """pix2pix's discriminator of patches, with instance norm without scale and bias (choice).

    Attributes:
      width: channels of the first layer, which double with every layer, up to eight times as many.
      layers: convolutions of stride 2; three see 70 x 70 pixels.
      dtype: of the computation; scores are float32.
    """

    width: int = 64
    layers: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[N, H, W, 3] -> raw scores [N, h, w]."""
        x = images
        for i in range(self.layers + 1):
            stride = 2 if i < self.layers else 1
            x = self._conv(min(self.width << i, 8 * self.width), stride, f"conv{i}")(x)
            x = nn.leaky_relu(InstanceNorm(dtype=self.dtype, name=f"norm{i}")(x) if i else x, SLOPE)
        return self._conv(1, 1, "score")(x)[..., 0].astype(jnp.float32)

    def _conv(self, features: int, stride: int, name: str) -> Conv:
        return Conv(features, 4, stride, 1, use_bias=True, kernel_init=NORMAL, dtype=self.dtype, name=name)


def masked(images: jax.Array, mask: jax.Array) -> jax.Array:
    """Images [N, H, W, C], zero where the mask [N, H, W] is: what the local discriminator sees."""
    return images * mask[..., None]


def present(mask: jax.Array) -> jax.Array:
    """1.0 for every mask [N, H, W] with a pixel, else 0.0 -> [N]."""
    return (mask > 0).any((1, 2)).astype(jnp.float32)


def discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """(D(y) - 1)^2 + D(fake)^2, mean over the patches: scores [N, h, w] -> [N]."""
    return least_squares_discriminator_loss(real, fake).mean((1, 2))


def adversarial_loss(fake: jax.Array) -> jax.Array:
    """(D(fake) - 1)^2, mean over the patches: scores [N, h, w] -> [N]."""
    return least_squares_generator_loss(fake).mean((1, 2))


def absolute_error(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean absolute difference of images [N, H, W, C] -> [N]."""
    return jnp.abs(found - wanted).mean((1, 2, 3))


def local_error(found: jax.Array, wanted: jax.Array, mask: jax.Array, by_area: bool = True) -> jax.Array:
    """Mean absolute difference of images inside a mask.

    Args:
      found, wanted: [N, H, W, C].
      mask: [N, H, W] in 0..1.
      by_area: divides the sum by the mask's pixels (choice), else by the image's, as the plain L1 norm of masked images
        would be, which all but vanishes for thin frames.

    Returns:
      [N], zero where the mask is empty.
    """
    total = (jnp.abs(found - wanted).mean(-1) * mask).sum((1, 2))
    return total / jnp.maximum(mask.sum((1, 2)), 1) if by_area else total / mask[0].size


def segmentation_loss(logits: jax.Array, masks: jax.Array) -> jax.Array:
    """Binary cross-entropy, mean over pixels and masks: logits and masks in 0..1 [N, H, W, 2] -> [N]."""
    return (jax.nn.softplus(logits) - logits * masks).mean((1, 2, 3))


def identity_loss(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean squared difference of a recogniser's features [N, D] -> [N]."""
    return jnp.square(found - wanted).mean(-1)


def pasted(output: Output, images: jax.Array) -> jax.Array:
    """The output where its own mask marks glasses, the input elsewhere (not in the paper) -> [N, H, W, 3]."""
    glasses = jax.nn.sigmoid(output.masks[..., :1])
    return glasses * output.image + (1 - glasses) * images
