"""FSRNet: super-resolution of faces with landmarks and parsing maps as priors.

Chen, Tai, Liu, Shen, Yang. "FSRNet: End-to-End Learning Face Super-Resolution with Facial Priors". CVPR 2018.
arXiv:1711.10703. A coarse network sharpens the bicubic enlargement; a network on its result estimates landmark heatmaps
and parsing maps; a decoder makes the final image of these features and of those of an encoder.

Differs: the authors published a test script and weights, but no layers. What the paper leaves open is chosen: zero
padding, linear outputs, heatmaps with a deviation of one pixel at half resolution, both hourglasses supervised.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv, ConvTranspose
from facejax.nn.init import torch_default
from facejax.nn.norm import BatchNorm
from facejax.ops.heatmaps import gaussian_maps
from facejax.ops.pooling import max_pool, upsample_nearest
from facejax.ops.resize import imresize

Dtype = Any


class Restored(NamedTuple):
    """What FSRNet makes of small faces.

    Attributes:
      coarse, fine: [N, H, W, 3] RGB in 0..1, not clipped.
      priors: of each hourglass, landmark heatmaps, then parsing maps [N, H / 2, W / 2, K].
    """

    coarse: jax.Array
    priors: tuple[jax.Array, ...]
    fine: jax.Array


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions with batch norm, ReLU between them."""

    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> the same shape."""
        y = self.conv(x.shape[-1], 3, 1, 1, name="conv1")(x, train=train)
        return x + self.conv(x.shape[-1], 3, 1, 1, activation=None, name="conv2")(y, train=train)


class Bottleneck(nn.Module):
    """The residual block of stacked hourglasses: batch norm and ReLU before 1x1, 3x3 and 1x1 convolutions."""

    features: int
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, features]."""
        conv = partial(Conv, use_bias=True, kernel_init=torch_default, dtype=self.dtype)
        y, half = x, self.features // 2
        for i, (width, size) in enumerate(((half, 1), (half, 3), (self.features, 1)), 1):
            y = nn.relu(BatchNorm(self.axis_name, dtype=self.dtype, name=f"bn{i}")(y, train=train))
            y = conv(width, size, padding=size // 2, name=f"conv{i}")(y)
        return y + (x if x.shape[-1] == self.features else conv(self.features, 1, name="shortcut")(x))


class HourglassModule(nn.Module):
    """A shortcut plus max pooling, a smaller hourglass (one block in the innermost), and nearest upsampling."""

    depth: int
    block: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> the same shape."""
        shortcut = self.block(name="shortcut")(x, train=train)
        x = self.block(name="down")(max_pool(x, (2, 2), (2, 2)), train=train)
        if self.depth > 1:
            x = HourglassModule(self.depth - 1, self.block, name="inner")(x, train=train)
        else:
            x = self.block(name="inner")(x, train=train)
        return shortcut + upsample_nearest(self.block(name="up")(x, train=train), 2)


class FSRNet(nn.Module):
    """Coarse network, encoder and prior network on its result, decoder.

    Attributes:
      scale: of the enlargement.
      landmarks, parsing: numbers of maps; their sum is K.
      features: channels of coarse network, encoder and decoder; the prior network has twice as many.
      blocks: residual blocks of coarse network, encoder, prior network and decoder.
      stacks, depth: of the hourglasses.
      residual: adds the bicubic enlargement to both images (not in the paper).
      axis_name: mapped axis over which to share batch statistics.
      dtype: of the computation.
    """

    scale: int = 8
    landmarks: int = 68
    parsing: int = 11
    features: int = 64
    blocks: tuple[int, int, int, int] = (3, 12, 2, 3)
    stacks: int = 2
    depth: int = 3
    residual: bool = False
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Restored:
        """[N, h, w, 3] RGB in 0..1 -> images [N, scale h, scale w, 3] and priors.

        Raises:
          ValueError: the sides of the result are no multiples of the hourglasses' stride.
        """
        stride = 2 ** (self.depth + 1)
        if any(self.scale * side % stride for side in images.shape[1:3]):
            height, width = images.shape[1:3]
            raise ValueError(
                f"FSRNet: images of {height} x {width} pixels: expected sides that {stride} divides after enlarging "
                f"by {self.scale}"
            )
        make = partial(ConvNorm, kernel_init=torch_default, axis_name=self.axis_name, dtype=self.dtype)
        plain = partial(Conv, kernel_size=3, padding=1, kernel_init=torch_default, dtype=self.dtype)

        def blocks(x: jax.Array, name: str, count: int) -> jax.Array:
            for i in range(count):
                x = ResidualBlock(make, name=f"{name}_block{i}")(x, train=train)
            return x

        up, width = imresize(images, self.scale), self.features
        added = up if self.residual else 0.0
        x = blocks(make(width, 3, 1, 1, name="coarse_first")(up, train=train), "coarse", self.blocks[0])
        coarse = plain(3, name="coarse_last")(x).astype(jnp.float32) + added

        x = make(width, 3, 2, 1, name="encoder_first")(coarse, train=train)
        encoded = plain(width, name="encoder_last")(blocks(x, "encoder", self.blocks[1]))

        block = partial(Bottleneck, 2 * width, self.axis_name, self.dtype)
        x = make(width, 7, 2, 3, name="prior_first")(coarse, train=train)
        x = blocks(block(name="prior_widen")(x, train=train), "prior", self.blocks[2])
        priors = []
        for i in range(self.stacks):
            x = HourglassModule(self.depth, block, name=f"prior_stack{i}")(x, train=train)
            head = Conv(self.landmarks + self.parsing, 1, use_bias=True, kernel_init=torch_default, name=f"maps{i}")
            priors.append(head(x.astype(jnp.float32)))

        x = jnp.concatenate([encoded, x], -1)
        x = make(width, 3, 1, 1, name="decoder_first")(x, train=train)
        x = ConvTranspose(width, 4, 2, 1, kernel_init=torch_default, dtype=self.dtype, name="decoder_up")(x)
        x = nn.relu(BatchNorm(self.axis_name, dtype=self.dtype, name="decoder_up_bn")(x, train=train))
        fine = plain(3, name="decoder_last")(blocks(x, "decoder", self.blocks[3])).astype(jnp.float32) + added
        return Restored(coarse, tuple(priors), fine)


def prior_maps(points: jax.Array, parsing: jax.Array, size: tuple[int, int], sigma: float = 1.0) -> jax.Array:
    """The true priors [N, H / 2, W / 2, K]: a Gaussian around every landmark, then the parsing maps.

    Args:
      points: [N, P, 2] (x, y) in pixels of the large image, with the origin at the corner of the first pixel.
      parsing: [N, H / 2, W / 2, M] in 0..1.
      size: (H, W) of the large image.
      sigma: of the Gaussians, pixels of the maps.
    """
    half = (size[0] // 2, size[1] // 2)
    maps, _ = gaussian_maps(points / 2 - 0.5, half, sigma=sigma, rounded=False)
    return jnp.concatenate([maps, parsing.astype(maps.dtype)], -1)


def loss(
    found: Restored, truth: jax.Array, priors: jax.Array, *, fine_weight: float = 1.0, prior_weight: float = 1.0
) -> dict[str, jax.Array]:
    """Half the sums of squared errors of each image, weighted (Eq. 5); of the priors, the mean over the hourglasses.

    Args:
      found: what the network returned.
      truth: [N, H, W, 3] RGB in 0..1.
      priors: [N, H / 2, W / 2, K].
      fine_weight, prior_weight: alpha and beta.

    Returns:
      {"coarse", "fine", "priors"}: [N] each; the loss is their sum.
    """

    def error(x: jax.Array, target: jax.Array) -> jax.Array:
        return 0.5 * jnp.square(x.astype(jnp.float32) - target).sum((1, 2, 3))

    return {
        "coarse": error(found.coarse, truth),
        "fine": fine_weight * error(found.fine, truth),
        "priors": prior_weight * sum(error(maps, priors) for maps in found.priors) / len(found.priors),
    }
