"""Normalised faces from identity features: a frontal, neutral, evenly lit face of the person in a photograph.

Cole, Belanger, Krishnan, Sarna, Mosseri, Freeman. "Synthesizing normalized faces from facial identity features". CVPR
2017. arXiv:1701.04851.
A frozen face recogniser makes the features; a decoder makes of them landmarks, and a texture in the frame of the mean
landmarks, which a differentiable spline warp brings to those of the person. Since the features hardly depend on pose,
light and expression, the decoder learns from normalised faces alone. Morphs of similar faces make more of them.

There is no official code. Choices that the paper leaves open: width of the shared layer, two hidden layers of 800 for
the landmarks, He's normal initialisation, weights of the losses. Also a choice: both branches give differences from the
mean face, landmarks in units of their deviation, and the last layers begin near 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.nn.conv import Conv, ConvTranspose
from facejax.ops import spline
from facejax.ops.vectors import unit

Dtype = Any
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
he_transposed = nn.initializers.variance_scaling(8.0, "fan_in", "truncated_normal")
"""He's of a stride of 2, which leaves a quarter of the kernel to each pixel."""

small = nn.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")

DOUBLINGS = 4


class LandmarkNet(nn.Module):
    """Features to landmarks: dense layers with ReLU.

    Attributes:
      landmarks: n.
      hidden: widths of the layers before the last.
      dtype: of the computation.
    """

    landmarks: int = 65
    hidden: tuple[int, ...] = (800, 800)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[N, D] -> [N, n, 2] float32 offsets from the mean landmarks, in units of `deviation`."""
        x = features.astype(self.dtype)
        for i, width in enumerate(self.hidden):
            x = nn.relu(nn.Dense(width, kernel_init=he_normal, dtype=self.dtype, name=f"hidden{i}")(x))
        x = nn.Dense(2 * self.landmarks, kernel_init=small, dtype=self.dtype, name="out")(x)
        return x.reshape(-1, self.landmarks, 2).astype(jnp.float32)


class TextureNet(nn.Module):
    """Features to a texture: a dense layer, four transposed 5x5 convolutions of stride 2, a 1x1 convolution.

    Attributes:
      image_size: S, a multiple of 16.
      channels: of the dense layer's map, S / 16 pixels wide, and of the transposed convolutions.
      dtype: of the computation.
    """

    image_size: int = 224
    channels: tuple[int, ...] = (256, 128, 64, 32, 32)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[N, D] -> [N, S, S, 3] float32 differences from the mean texture."""
        side = self.image_size // 2**DOUBLINGS
        if self.image_size % 2**DOUBLINGS or not side or len(self.channels) != DOUBLINGS + 1:
            raise ValueError(
                f"TextureNet: {self.image_size} pixels and {len(self.channels)} widths: expected a multiple of "
                f"{2**DOUBLINGS} and {DOUBLINGS + 1}"
            )
        first, *others = self.channels
        x = nn.Dense(side * side * first, kernel_init=he_normal, dtype=self.dtype, name="dense")(features)
        x = nn.relu(x).reshape(-1, side, side, first)
        for i, width in enumerate(others):  # cropped as TensorFlow's "SAME"
            up = ConvTranspose(width, 5, 2, ((1, 2), (1, 2)), True, he_transposed, self.dtype, name=f"up{i}")
            x = nn.relu(up(x))
        return Conv(3, 1, use_bias=True, kernel_init=small, dtype=self.dtype, name="out")(x).astype(jnp.float32)


class Decoded(NamedTuple):
    """What the decoder makes of features.

    Attributes:
      offsets: [N, n, 2] of the landmarks from their mean, in units of `deviation`.
      texture: [N, S, S, 3] difference from the mean texture, in the frame of the mean landmarks.
    """

    offsets: jax.Array
    texture: jax.Array


class Decoder(nn.Module):
    """Identity features to landmarks and texture.

    Attributes:
      landmarks, hidden: see `LandmarkNet`.
      image_size, channels: see `TextureNet`.
      shared: width of a dense layer with ReLU before both branches; 0: none.
      dtype: of the computation.
    """

    landmarks: int = 65
    image_size: int = 224
    shared: int = 1024
    hidden: tuple[int, ...] = (800, 800)
    channels: tuple[int, ...] = (256, 128, 64, 32, 32)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> Decoded:
        """Landmarks and textures of features [N, D]."""
        x = features.astype(self.dtype)
        if self.shared:
            x = nn.relu(nn.Dense(self.shared, kernel_init=he_normal, dtype=self.dtype, name="shared")(x))
        offsets = LandmarkNet(self.landmarks, self.hidden, self.dtype, name="landmark_net")(x)
        return Decoded(offsets, TextureNet(self.image_size, self.channels, self.dtype, name="texture_net")(x))


def warped(images: jax.Array, source: jax.Array, target: jax.Array, **options: Any) -> jax.Array:
    """Images [N, S, S, 3] with what they show at `source` moved to `target`, landmarks [N or 1, n, 2] in pixels.

    `options` are those of `facejax.ops.spline.warp`.
    """
    move = jax.vmap(partial(spline.warp, **options))
    source, target = (jnp.broadcast_to(x, (len(images), *x.shape[1:])) for x in (source, target))
    return move(images, source, target)


def deviation(landmarks: np.ndarray) -> np.float32:
    """Root mean square of all coordinates of landmarks [P, n, 2] about their means, which scales the decoder's."""
    return np.float32(np.sqrt(np.mean((landmarks - landmarks.mean(0)) ** 2)))


def landmark_loss(found: jax.Array, truth: jax.Array) -> jax.Array:
    """Mean squared error of landmarks [N, n, 2], here in units of `deviation`: [N]."""
    return jnp.mean((found - truth) ** 2, (1, 2))


def texture_loss(found: jax.Array, truth: jax.Array) -> jax.Array:
    """Mean absolute error of textures [N, S, S, 3]: [N]."""
    return jnp.mean(jnp.abs(found - truth), (1, 2, 3))


def identity_loss(found: jax.Array, truth: jax.Array) -> jax.Array:
    """1 - cosine of the recogniser's embeddings [N, D] of the output and of the input, 0..2: [N]."""
    return 1 - jnp.sum(unit(found) * unit(truth), -1)


class Normalized(NamedTuple):
    """Normalised training faces, in sides of the image and in the range of the network.

    Attributes:
      landmarks: [P, n, 2].
      textures: [P, S, S, 3] in the frame of the mean landmarks.
    """

    landmarks: jax.Array
    textures: jax.Array


def neighbours(faces: Normalized, k: int, weight: float = 10.0) -> np.ndarray:
    """The k faces most similar to each, nearest first, itself left out: [P, k] int32; fewer if there are fewer.

    The distance is weight * ||L_A - L_B|| + ||T_A - T_B||, of all numbers of landmarks and textures.
    """
    landmarks, textures = (np.asarray(x, np.float32).reshape(len(x), -1) for x in faces)
    distance = weight * _distances(landmarks) + _distances(textures)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, 1, kind="stable")[:, : min(k, len(landmarks) - 1)].astype(np.int32)


def _distances(rows: np.ndarray) -> np.ndarray:
    """Euclidean distances [P, P] of rows [P, D]."""
    centred = rows - rows.mean(0)
    lengths = (centred**2).sum(1)
    return np.sqrt(np.maximum(lengths[:, None] + lengths - 2 * centred @ centred.T, 0))


def morph(rng: jax.Array, first: Normalized, second: Normalized) -> Normalized:
    """Faces between pairs: landmarks and textures with independent weights, each uniform in 0..1.

    Args:
      rng: of the weights.
      first, second: N faces each.
    """
    alphas = jax.random.uniform(rng, (2, len(first.landmarks)))
    return Normalized(
        *(
            a + alpha.reshape(-1, *(1,) * (a.ndim - 1)) * (b - a)
            for alpha, a, b in zip(alphas, first, second, strict=True)
        )
    )


def hull(points: jax.Array, side: int, directions: int = 64) -> jax.Array:
    """[side, side] bool: pixels whose centre lies in the convex hull of points [n, 2], seen from so many directions."""
    angles = 2 * jnp.pi * jnp.arange(directions) / directions
    ways = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    x, y = jnp.meshgrid(jnp.arange(side) + 0.5, jnp.arange(side) + 0.5)
    return jnp.all(jnp.stack([x, y], -1) @ ways <= jnp.max(points @ ways, 0), -1)


def poisson_blend(source: jax.Array, target: jax.Array, mask: jax.Array, *, steps: int = 200) -> jax.Array:
    """The target, with the gradients of the source where the mask is set (Perez et al., SIGGRAPH 2003).

    The unknown pixels are found by conjugate gradients; as many steps as the mask is wide give a close solution.

    Args:
      source, target: [H, W, C].
      mask: [H, W] bool; unset somewhere.
      steps: of the solver.
    """
    inside = mask[..., None].astype(target.dtype)
    known = target * (1 - inside)

    def laplacian(x: jax.Array) -> jax.Array:
        total = jnp.zeros_like(x)
        for axis in (0, 1):
            slope, none = jnp.diff(x, axis=axis), [(0, 0)] * 3
            before, after = ((*none[:axis], ends, *none[axis + 1 :]) for ends in ((1, 0), (0, 1)))
            total += jnp.pad(slope, before) - jnp.pad(slope, after)
        return total

    wanted = inside * (laplacian(source) - laplacian(known))
    found, _ = jax.scipy.sparse.linalg.cg(
        lambda x: inside * laplacian(inside * x), wanted, x0=inside * source, tol=0.0, maxiter=steps
    )
    return known + inside * found
