"""Bilinear CNN models for fine-grained visual recognition.

Lin, RoyChowdhury, Maji. ICCV 2015. arXiv:1504.07889.
Two streams of convolutional features meet at every place of the image in an outer product; its sum over the places,
signed square roots and unit length describe the image without order of place. `compact` replaces the C x C products by
a sketch of some thousand numbers with nearly the same inner products (Gao, Beijbom, Zhang, Darrell, CVPR 2016,
arXiv:1511.06062).

Differs from the paper: outer products are averaged over the places and not summed, which the unit length cancels.
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
    """Mean over the places of the outer products of two streams, Eqs. 1 and 2.

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
    """Tensor sketch of `bilinear_pool`: the count sketches' circular convolution, averaged over the places.

    Spectra are multiplied at every place and summed, so that one inverse transform an image is enough. Inner products
    of two images' sketches are those of their bilinear matrices in expectation over the hashes.

    Args:
      a, b: [N, H, W, A] and [N, H, W, B].
      hash_a, hash_b: of A and B channels, drawn apart, of one size D.

    Returns:
      [N, D] float32.
    """
    _check(a, b)
    spectra = [jnp.fft.rfft(count_sketch(x.astype(jnp.float32), h)) for x, h in ((a, hash_a), (b, hash_b))]
    product = jnp.einsum("nhwd,nhwd->nd", *spectra) / (a.shape[1] * a.shape[2])
    return jnp.fft.irfft(product, hash_a.size)


class CountSketch:
    """A random projection of C channels onto D bins: channel c is added to bin `bins[c]` with the sign `signs[c]`."""

    def __init__(self, seed: int, channels: int, size: int):
        rng = np.random.default_rng([seed, channels, size])
        self.bins, self.size = rng.integers(size, size=channels), size
        self.signs = rng.choice(np.float32([-1, 1]), channels)


def count_sketch(x: jax.Array, sketch: CountSketch) -> jax.Array:
    """[..., C] -> [..., D]."""
    return jnp.zeros((*x.shape[:-1], sketch.size), x.dtype).at[..., sketch.bins].add(x * sketch.signs)


@jax.custom_jvp
def signed_sqrt(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """sign(x) sqrt(|x|), exactly; its slope is taken as 0.5 / sqrt(|x| + epsilon), which is finite at zero."""
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
      trunk: a backbone that gives its named intermediates with `features=True`.
      layer: which of them is pooled ("relu5_3" of VGG-16: the last pool is left out).
      other: the second stream's trunk; None lets the first meet itself.
      other_layer: of the second trunk.
      pooling: "bilinear"; "compact", its sketch; "average", the first stream's means, for comparison.
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
