"""Super-resolution of single images: SRCNN, EDSR, SRResNet and RRDBNet.

Dong, Loy, He, Tang. "Image Super-Resolution Using Deep Convolutional Networks". TPAMI 2016. arXiv:1501.00092 (SRCNN).
Lim, Son, Kim, Nah, Lee. "Enhanced Deep Residual Networks for Single Image Super-Resolution". CVPRW 2017.
arXiv:1707.02921 (EDSR). Ledig et al. "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial
Network". CVPR 2017. arXiv:1609.04802 (SRResNet). Wang et al. "ESRGAN: Enhanced Super-Resolution Generative Adversarial
Networks". ECCVW 2018. arXiv:1809.00219 (RRDBNet).
A network turns a small RGB image into one `scale` times as large. SRCNN refines the luminance of a bicubic enlargement;
the others compute at the small size and enlarge at the end.

Differs: all networks take and return RGB in 0..1. EDSR multiplies by its published range of 255 itself; the outputs of
SRResNet's authors are in -1..1. RRDBNet exists for other powers of two than 4, with a convolution for each doubling.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.nn.conv import Conv
from facejax.nn.init import torch_default
from facejax.nn.norm import BatchNorm
from facejax.ops.pooling import upsample_nearest
from facejax.ops.resize import imresize

Dtype = Any

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean RGB of DIV2K's training images, 0..1."""

YCBCR = np.array([[65.481, -37.797, 112.0], [128.553, -74.203, -93.786], [24.966, 112.0, -18.214]]) / 255
SHIFT = np.array([16.0, 128.0, 128.0]) / 255


def to_ycbcr(images: jax.Array) -> jax.Array:
    """RGB [..., 3] in 0..1 -> YCbCr of ITU-R BT.601, studio range, divided by 255 (MATLAB's rgb2ycbcr)."""
    return _converted(images, YCBCR) + jnp.asarray(SHIFT, images.dtype)


def to_rgb(images: jax.Array) -> jax.Array:
    """The inverse of `to_ycbcr`."""
    return _converted(images - jnp.asarray(SHIFT, images.dtype), np.linalg.inv(YCBCR))


def _converted(colours: jax.Array, matrix: np.ndarray) -> jax.Array:
    """Colours [..., 3] times a matrix, in full precision on accelerators, too."""
    return jnp.matmul(colours, jnp.asarray(matrix, colours.dtype), precision=lax.Precision.HIGHEST)


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    """[N, H, W, C r^2] -> [N, H r, W r, C]; offset (i, j) of channel c comes from channel c r^2 + i r + j (PyTorch)."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, c // factor**2, factor, factor)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(n, h * factor, w * factor, -1)


class SRCNN(nn.Module):
    """Three convolutions on the luminance of the bicubic enlargement; the other channels stay bicubic.

    Attributes:
      scale: of the enlargement.
      kernels: sizes of the convolutions, odd.
      widths: channels of the first two.
      dtype: of the computation.
    """

    scale: int = 3
    kernels: tuple[int, int, int] = (9, 1, 5)
    widths: tuple[int, int] = (64, 32)
    dtype: Dtype = jnp.float32

    @property
    def radius(self) -> int:
        """Pixels of the input beyond which nothing has an influence on an output."""
        return 2 + -(-sum(k // 2 for k in self.kernels) // self.scale)

    def setup(self) -> None:
        make = partial(Conv, use_bias=True, kernel_init=nn.initializers.normal(1e-3), dtype=self.dtype)
        self.convs = [make(w, k, name=f"conv{i}") for i, (w, k) in enumerate(zip((*self.widths, 1), self.kernels), 1)]

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """[N, h, w, 3] RGB in 0..1 -> [N, scale h, scale w, 3], not clipped."""
        del train
        up = to_ycbcr(imresize(images, self.scale))
        return to_rgb(jnp.concatenate([self.luminance(up[..., :1]), up[..., 1:]], -1))

    def luminance(self, y: jax.Array) -> jax.Array:
        """Refines Y [N, H, W, 1] of an enlarged image, as in `to_ycbcr`; every layer repeats its border."""
        for i, (layer, k) in enumerate(zip(self.convs, self.kernels, strict=True)):
            y = layer(jnp.pad(y, ((0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)), mode="edge"))
            y = nn.relu(y) if i < 2 else y
        return y.astype(jnp.float32)


class EDSR(nn.Module):
    """Residual blocks without batch norm, a long skip, and an upsampler of convolutions and pixel shuffles.

    Attributes:
      scale: 3 or a power of two.
      features: channels F.
      blocks: residual blocks B.
      residual_scale: factor of every block's branch.
      mean: RGB subtracted from the input and added to the output.
      image_range: factor of the input, by which the output is divided.
      dtype: of the computation.
    """

    scale: int = 2
    features: int = 256
    blocks: int = 32
    residual_scale: float = 0.1
    mean: tuple[float, float, float] = DIV2K_MEAN
    image_range: float = 255.0
    dtype: Dtype = jnp.float32

    @property
    def radius(self) -> int:
        """Pixels of the input beyond which nothing has an influence on an output."""
        return 2 * self.blocks + 4

    def setup(self) -> None:
        make = partial(conv3, inputs=self.features, dtype=self.dtype)
        self.first = make(self.features, inputs=3, name="first")
        self.body = [
            (make(self.features, name=f"block{i}_conv1"), make(self.features, name=f"block{i}_conv2"))
            for i in range(self.blocks)
        ]
        self.after_body = make(self.features, name="after_body")
        self.up = [make(f * f * self.features, name=f"up{i}") for i, f in enumerate(factors(self.scale, "EDSR"), 1)]
        self.last = make(3, name="last")

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """[N, h, w, 3] RGB in 0..1 -> [N, scale h, scale w, 3], not clipped."""
        del train
        return self.rebuilt(self.extracted(images))

    def extracted(self, images: jax.Array) -> jax.Array:
        """[N, h, w, 3] -> features [N, h, w, F] before the upsampler."""
        x = self.first((images - jnp.asarray(self.mean, images.dtype)) * self.image_range)
        skip = x
        for conv1, conv2 in self.body:
            x += self.residual_scale * conv2(nn.relu(conv1(x)))
        return skip + self.after_body(x)

    def rebuilt(self, x: jax.Array) -> jax.Array:
        """Features [N, h, w, F] -> [N, scale h, scale w, 3]: the upsampler, which is linear."""
        for layer, factor in zip(self.up, factors(self.scale, "EDSR"), strict=True):
            x = pixel_shuffle(layer(x), factor)
        return self.last(x).astype(jnp.float32) / self.image_range + jnp.asarray(self.mean)


edsr_baseline = partial(EDSR, features=64, blocks=16, residual_scale=1.0)


class SRResNet(nn.Module):
    """Residual blocks with batch norm and PReLU; the generator of SRGAN.

    Attributes:
      scale: 3 or a power of two.
      features: channels.
      blocks: residual blocks.
      axis_name: mapped axis over which to share batch statistics.
      dtype: of the computation.
    """

    scale: int = 4
    features: int = 64
    blocks: int = 16
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @property
    def radius(self) -> int:
        """Pixels of the input beyond which nothing has an influence on an output."""
        return 2 * self.blocks + 9

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """[N, h, w, 3] RGB in 0..1 -> [N, scale h, scale w, 3], not clipped."""
        conv = partial(conv3, inputs=self.features, dtype=self.dtype)

        def norm(x: jax.Array, name: str) -> jax.Array:
            return BatchNorm(self.axis_name, dtype=self.dtype, name=name)(x, train=train)

        def prelu(x: jax.Array, name: str) -> jax.Array:
            return nn.PReLU(negative_slope_init=0.25, name=name)(x)

        large = partial(conv, kernel_size=9, padding=4)
        skip = x = prelu(large(self.features, inputs=3, name="first")(images), "first_prelu")
        for i in range(self.blocks):
            y = prelu(norm(conv(self.features, name=f"block{i}_conv1")(x), f"block{i}_bn1"), f"block{i}_prelu")
            x += norm(conv(self.features, name=f"block{i}_conv2")(y), f"block{i}_bn2")
        x = skip + norm(conv(self.features, name="after_body")(x), "after_bn")
        for i, factor in enumerate(factors(self.scale, "SRResNet"), 1):
            x = pixel_shuffle(conv(factor**2 * self.features, name=f"up{i}")(x), factor)
            x = prelu(x, f"up{i}_prelu")
        return large(3, name="last")(x).astype(jnp.float32)


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each on all maps before it; their last output times `residual_scale` is added to the input."""

    features: int
    growth: int
    residual_scale: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, features] -> the same shape."""
        conv = partial(Conv, kernel_size=3, padding=1, use_bias=True, kernel_init=small_kaiming, dtype=self.dtype)
        maps = [x]
        for i in range(1, 5):
            maps.append(leaky(conv(self.growth, name=f"conv{i}")(jnp.concatenate(maps, -1))))
        return x + self.residual_scale * conv(self.features, name="conv5")(jnp.concatenate(maps, -1))


class RRDBNet(nn.Module):
    """Residual-in-residual dense blocks, and nearest upsampling with convolutions; the generator of ESRGAN.

    Attributes:
      scale: a power of two.
      features: channels.
      blocks: RRDBs, each of three dense blocks.
      growth: channels of each of a dense block's first four convolutions.
      residual_scale: factor of the branch of every dense block and of every RRDB.
      dtype: of the computation.
    """

    scale: int = 4
    features: int = 64
    blocks: int = 23
    growth: int = 32
    residual_scale: float = 0.2
    dtype: Dtype = jnp.float32

    @property
    def radius(self) -> int:
        """Pixels of the input beyond which nothing has an influence on an output."""
        return 15 * self.blocks + 5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """[N, h, w, 3] RGB in 0..1 -> [N, scale h, scale w, 3], not clipped."""
        del train
        steps = factors(self.scale, "RRDBNet")
        if 3 in steps:
            raise ValueError(f"RRDBNet: scale {self.scale}: expected a power of two")
        conv = partial(conv3, inputs=self.features, dtype=self.dtype)
        skip = x = conv(self.features, inputs=3, name="first")(images)
        for i in range(self.blocks):
            y = x
            for j in range(1, 4):
                name = f"block{i}_dense{j}"
                y = ResidualDenseBlock(self.features, self.growth, self.residual_scale, self.dtype, name=name)(y)
            x += self.residual_scale * y
        x = skip + conv(self.features, name="after_body")(x)
        for i, factor in enumerate(steps, 1):
            x = leaky(conv(self.features, name=f"up{i}")(upsample_nearest(x, factor)))
        x = leaky(conv(self.features, name="full")(x))
        return conv(3, name="last")(x).astype(jnp.float32)


small_kaiming = nn.initializers.variance_scaling(2.0 * 0.1**2, "fan_in", "normal")
leaky = partial(nn.leaky_relu, negative_slope=0.2)


def conv3(features: int, inputs: int, kernel_size: int = 3, padding: int = 1, **options: Any) -> Conv:
    """A convolution of `inputs` channels, initialised as PyTorch does: weight and bias within +-1 / sqrt(fan_in)."""
    reach = 1 / math.sqrt(inputs * kernel_size**2)

    def bias(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -reach, reach)

    init = {"kernel_init": torch_default, "bias_init": bias}
    return Conv(features, kernel_size, padding=padding, use_bias=True, **init, **options)


def factors(scale: int, name: str) -> tuple[int, ...]:
    """Steps of an upsampler: 3 at once, powers of two by twos."""
    if scale == 3:
        return (3,)
    steps = scale.bit_length() - 1
    if scale != 2**steps or steps < 1:
        raise ValueError(f"{name}: scale {scale}: expected 3 or a power of two from 2")
    return (2,) * steps


LOSSES = ("l1", "l2", "luminance")


def pixel_loss(images: jax.Array, truth: jax.Array, kind: str = "l1", border: int = 0) -> jax.Array:
    """Mean distance of pixels.

    Args:
      images, truth: RGB [N, H, W, 3] in 0..1.
      kind: "l1" (EDSR, RRDBNet), "l2" (SRResNet), or "luminance", l2 of Y (SRCNN).
      border: pixels at each border that do not count: 6 where SRCNN's convolutions see beyond the image.

    Returns:
      [N].
    """
    if kind not in LOSSES:
        raise ValueError(f"loss.kind is {kind!r}: expected one of {', '.join(LOSSES)}")
    if border < 0 or 2 * border >= min(truth.shape[1:3]):
        raise ValueError(f"loss.border is {border}: expected 0 or more, and less than half of {truth.shape[1:3]}")
    images, truth = (
        x[:, border : x.shape[1] - border, border : x.shape[2] - border].astype(jnp.float32) for x in (images, truth)
    )
    if kind == "luminance":
        images, truth = (to_ycbcr(x)[..., :1] for x in (images, truth))
    difference = images - truth
    return (jnp.abs(difference) if kind == "l1" else jnp.square(difference)).mean((1, 2, 3))
