"""Bilinear CNN models for fine-grained visual recognition.

Lin, RoyChowdhury, Maji. ICCV 2015. arXiv:1504.07889.
The outer product of two streams of convolutional features at every position, summed over the positions, with signed
square roots and unit length, is an orderless descriptor of the image. `compact` replaces its C x C entries by a sketch
of a few thousand numbers whose inner products are nearly the same (Gao, Beijbom, Zhang, Darrell, CVPR 2016,
arXiv:1511.06062).

Differs from the paper: outer products are averaged over the positions, not summed; the unit length cancels the factor.
"""

from __future__ import annotations

from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.ops import vectors
from facejax.ops.pooling import resize_bilinear

Pooling = Literal["bilinear", "compact", "average"]


def bilinear_pool(a: jax.Array, b: jax.Array) -> jax.Array:
    """Outer products of two streams, averaged over the positions, Eqs. 1 and 2.

    Args:
      a: [N, H, W, A].
      b: [N, H, W, B]; `a` itself gives symmetric, positive semi-definite matrices.

    Returns:
      [N, A, B], at least float32.
    """
    _check(a, b)
    kind = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum("nhwa,nhwb->nab", a, b, preferred_element_type=kind) / (a.shape[1] * a.shape[2])


def compact_bilinear_pool(a: jax.Array, b: jax.Array, hash_a: CountSketch, hash_b: CountSketch) -> jax.Array:
    """Tensor sketch of `bilinear_pool`: the count sketches' circular convolution, averaged over the positions.

    Spectra are multiplied at every position and summed, so each image needs one inverse transform. In expectation over
    the hashes, inner products of two images' sketches equal those of their bilinear matrices.

    Args:
      a, b: [N, H, W, A] and [N, H, W, B].
      hash_a, hash_b: independent, of A and B channels, of the same size D.

    Returns:
      [N, D] float32.
    """
    _check(a, b)
    spectra = [jnp.fft.rfft(count_sketch(x.astype(jnp.float32), h)) for x, h in ((a, hash_a), (b, hash_b))]
    product = jnp.einsum("nhwd,nhwd->nd", *spectra) / (a.shape[1] * a.shape[2])
    return jnp.fft.irfft(product, hash_a.size)


class CountSketch:
    """A random projection of C channels onto D bins: channel c times `signs[c]` is added to bin `bins[c]`."""

    def __init__(self, seed: int, channels: int, size: int):
        rng = np.random.default_rng([seed, channels, size])
        self.bins, self.size = rng.integers(size, size=channels), size
        self.signs = rng.choice(np.float32([-1, 1]), channels)


def count_sketch(x: jax.Array, sketch: CountSketch) -> jax.Array:
    """[..., C] -> [..., D]."""
    return jnp.zeros((*x.shape[:-1], sketch.size), x.dtype).at[..., sketch.bins].add(x * sketch.signs)


@jax.custom_jvp
def signed_sqrt(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """sign(x) sqrt(|x|); its derivative is approximated by 0.5 / sqrt(|x| + epsilon), which is finite at zero."""
    del epsilon
    return jnp.sign(x) * jnp.sqrt(jnp.abs(x))


@signed_sqrt.defjvp
def _signed_sqrt_jvp(primals, tangents):
    x, epsilon = primals
    return signed_sqrt(x, epsilon), tangents[0] * 0.5 * jax.lax.rsqrt(jnp.abs(x) + epsilon)


def normalize(x: jax.Array) -> jax.Array:
    """Signed square roots, then unit length: [..., D] -> [..., D]. A row of zeros stays zero."""
    return vectors.unit(signed_sqrt(x), 1e-5)


class BilinearCNN(nn.Module):
    """One or two convolutional trunks, bilinear pooling, normalisation and a linear classifier.

    Attributes:
      num_classes: C.
      trunk: a backbone that returns its named intermediates with `features=True`.
      layer: the intermediate that is pooled ("relu5_3" of VGG-16, before its last pool).
      other: the second stream's trunk; None pairs the first stream with itself.
      other_layer: of the second trunk.
      pooling: "bilinear"; "compact", its sketch; "average", the first stream's mean, a baseline.
      sketch_size: D of "compact".
    """

    num_classes: int
    trunk: nn.Module
    layer: str
    other: nn.Module | None = None
    other_layer: str = ""
    pooling: Pooling = "bilinear"
    sketch_size: int = 8192

    def setup(self) -> None:
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"BilinearCNN: pooling {self.pooling!r}, expected one of {get_args(Pooling)}")
        self.head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Scores [N, C] of images [N, H, W, 3]."""
        return self.head(self.describe(images, train=train))

    def describe(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Normalised descriptors [N, D]; D is A * B, row by row, `sketch_size` or A."""
        a = _named(self.trunk(images, train=train, features=True), self.layer)
        if self.pooling == "average":
            return normalize(jnp.mean(a.astype(jnp.float32), (1, 2)))
        b = a
        if self.other is not None:
            a, b = same_size(a, _named(self.other(images, train=train, features=True), self.other_layer))
        if self.pooling == "bilinear":
            return normalize(bilinear_pool(a, b).reshape(a.shape[0], -1))
        hashes = [CountSketch(seed, x.shape[-1], self.sketch_size) for seed, x in enumerate((a, b))]
        return normalize(compact_bilinear_pool(a, b, *hashes))


def same_size(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two feature maps at the smaller one's resolution (VGG-16 has 28 x 28 where VGG-M has 27 x 27)."""
    size = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
    return tuple(x if x.shape[1:3] == size else resize_bilinear(x, size) for x in (a, b))


def _named(found: dict[str, jax.Array], layer: str) -> jax.Array:
    if layer not in found:
        raise ValueError(f"BilinearCNN: the trunk has no {layer!r}, expected one of {', '.join(found)}")
    return found[layer]


def _check(a: jax.Array, b: jax.Array) -> None:
    if a.ndim != 4 or a.shape[:3] != b.shape[:3]:
        raise ValueError(f"bilinear pooling: streams {a.shape} and {b.shape}, expected [N, H, W, A] and [N, H, W, B]")
