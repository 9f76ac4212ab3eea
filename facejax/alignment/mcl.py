"""MCL: a network of multi-center learning, whose last layer is fine-tuned once per group of landmarks.

Shao, Zhu, Tan, Hao, Ma. "Deep multi-center learning for face alignment". Neurocomputing 2019. arXiv:1808.01558; and its
conference version, "Learning a multi-center convolutional network for unconstrained face alignment", ICME 2017.
A basic network is trained on all landmarks, then with larger weights for those with a large error. With its features
frozen, copies of the last layer, the shape prediction layer, are each fine-tuned for one cluster of landmarks. The
columns that each copy has for its own landmarks make one layer, so that the result costs as much as the basic network.

Differs: the widths of the journal's network are not known; they are those of the conference's released layers, with a
last convolution of 512 maps. The clusters and the scale of the outputs are our choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.nn.blocks import ConvNorm
from facejax.ops.pooling import ceil_padding, max_pool

Dtype = Any


def _rows(*ranges: int | tuple[int, int]) -> tuple[int, ...]:
    """Indices from numbers and (first, last) pairs."""
    return tuple(i for r in ranges for i in ([r] if isinstance(r, int) else range(r[0], r[1] + 1)))


CLUSTERS: Mapping[int, Mapping[str, tuple[int, ...]]] = {
    29: {
        "left eye": (0, 2, 4, 5, 8, 10, 12, 13, 16),
        "right eye": (1, 3, 6, 7, 9, 11, 14, 15, 17),
        "nose": _rows((18, 21)),
        "mouth": _rows((22, 27)),
        "chin": (28,),
    },
    68: {
        "left eye": _rows((17, 21), (36, 41)),
        "right eye": _rows((22, 26), (42, 47)),
        "nose": _rows((27, 35)),
        "mouth": _rows((48, 67)),
        "contour": _rows((0, 16)),
    },
    98: {
        "left eye": _rows((33, 41), (60, 67), 96),
        "right eye": _rows((42, 50), (68, 75), 97),
        "nose": _rows((51, 59)),
        "mouth": _rows((76, 95)),
        "contour": _rows((0, 32)),
    },
}
"""Number of landmarks -> the clusters (eyes with their brows), of which every landmark is in one."""


def normalized_error(points: jax.Array, truth: jax.Array, sizes: jax.Array, weights: jax.Array) -> jax.Array:
    """The loss: sum of w_j (dx_j^2 + dy_j^2) over the landmarks, divided by 2 d^2.

    Args:
      points, truth: [..., L, 2] in pixels.
      sizes: [...] d, distance of the eyes' centres; less than a pixel counts as one.
      weights: [..., L] w, which sum to L; the leading axes of all arguments are broadcast.

    Returns:
      [...].
    """
    if points.shape[-2:] != truth.shape[-2:] or weights.shape[-1] != truth.shape[-2]:
        raise ValueError(
            f"normalized_error: points {points.shape}, truth {truth.shape} and weights {weights.shape}, "
            "expected [..., L, 2] twice and [..., L]"
        )
    squares = ((points - truth) ** 2).sum(-1)
    return (weights * squares).sum(-1) / (2 * jnp.maximum(sizes, 1.0) ** 2)


def landmark_weights(errors: jax.Array) -> jax.Array:
    """Weights [L] of the weighting phase, proportional to the mean errors [L] of a validation set; they sum to L."""
    return len(errors) * errors / jnp.maximum(errors.sum(), 1e-12)


def cluster_weights(clusters: Sequence[Sequence[int]], landmarks: int, alpha: float) -> np.ndarray:
    """Weights [K, L] of the multi-center phase: those of a cluster's own landmarks are alpha times the others.

    Args:
      clusters: K groups of landmarks.
      landmarks: L, to which the weights of each cluster sum.
      alpha: 1 gives equal weights.
    """
    if alpha <= 0:
        raise ValueError(f"cluster_weights: alpha is {alpha}, expected above 0")
    own = owners(clusters, landmarks)[None] == np.arange(len(clusters))[:, None]
    raw = np.where(own, alpha, 1.0)
    return (landmarks * raw / raw.sum(1, keepdims=True)).astype(np.float32)


def owners(clusters: Sequence[Sequence[int]], landmarks: int) -> np.ndarray:
    """[L] int, number of the cluster that each landmark is in. ValueError unless every one is in exactly one."""
    if sorted(i for cluster in clusters for i in cluster) != list(range(landmarks)):
        raise ValueError(f"clusters {clusters}: expected each of {landmarks} landmarks in exactly one")
    found = np.zeros(landmarks, int)
    for number, cluster in enumerate(clusters):
        found[list(cluster)] = number
    return found


def assemble(layers: Mapping[str, jax.Array], clusters: Sequence[Sequence[int]]) -> dict[str, jax.Array]:
    """One shape prediction layer, with each landmark's columns from the layer of its cluster.

    Args:
      layers: "kernel" [K, D, 2L] and "bias" [K, 2L], columns x_1, y_1, x_2, y_2, ...
      clusters: K groups of landmarks.

    Returns:
      "kernel" [D, 2L] and "bias" [2L].
    """
    kernel, bias = layers["kernel"], layers["bias"]
    if bias.shape != (len(clusters), kernel.shape[-1]):
        raise ValueError(
            f"assemble: kernel {kernel.shape} and bias {bias.shape} for {len(clusters)} clusters, "
            "expected [K, D, 2L] and [K, 2L]"
        )
    owner = owners(clusters, bias.shape[-1] // 2).repeat(2)
    columns = np.arange(bias.shape[-1])
    return {"kernel": kernel[owner, :, columns].T, "bias": bias[owner, columns]}


class Net(nn.Module):
    """Stacks of two convolutions, each but the last followed by pooling; a feature vector; the shape prediction layer.

    Attributes:
      landmarks: L.
      widths: of the stacks.
      features: D, length of the feature vector.
      pooled: whether it is the mean of a last convolution's D maps, as in the journal; else a fully connected layer
        without activation after one more pooling, as in the conference version.
      axis_name: mapped axis over which batch norms share their statistics.
      dtype: of the computation.
    """

    landmarks: int = 68
    widths: Sequence[int] = (32, 64, 96, 128)
    features: int = 512
    pooled: bool = True
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Finds landmarks.

        Args:
          images: grey values [N, S, S, 1], in -1..1; pooling rounds up, as in Caffe.

        Returns:
          "features" [N, D] and "points" [N, L, 2] in pixels with integers at their centres, in float32.
        """
        size, count = images.shape[1], images.shape[0]
        if images.shape[1:] != (size, size, 1):
            raise ValueError(f"mcl.Net: images {images.shape}, expected [N, S, S, 1]")
        conv = partial(
            ConvNorm,
            kernel_size=3,
            padding=1,
            use_bias=True,
            kernel_init=nn.initializers.glorot_uniform(),
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        x = images.astype(self.dtype)
        for i, width in enumerate(self.widths, 1):
            for j in (1, 2):
                x = conv(width, name=f"conv{i}{j}")(x, train=train)
            if i < len(self.widths) or not self.pooled:
                x = max_pool(x, (2, 2), (2, 2), ceil_padding(x.shape[1:3], (2, 2), (2, 2)))
        if self.pooled:
            x = conv(self.features, name=f"conv{len(self.widths) + 1}1")(x, train=train).mean((1, 2))
        else:
            x = nn.Dense(self.features, dtype=self.dtype, name="fc5")(x.reshape(count, -1))
        x = x.astype(jnp.float32)
        layer = nn.Dense(2 * self.landmarks, kernel_init=nn.initializers.glorot_uniform(), name="shape")
        return {"features": x, "points": in_pixels(layer(x), size)}


def predicted(layers: Mapping[str, jax.Array], features: jax.Array, size: int) -> jax.Array:
    """Landmarks [K, N, L, 2] in pixels by shape prediction layers of "kernel" [K, D, 2L] and "bias" [K, 2L].

    Args:
      layers: see above.
      features: [N, D] of `Net`.
      size: side of the images.
    """
    return in_pixels(jnp.einsum("nd,kdl->knl", features, layers["kernel"]) + layers["bias"][:, None], size)


def in_pixels(outputs: jax.Array, size: int) -> jax.Array:
    """Outputs [..., 2L], in tenths of the image's side from its middle, as points [..., L, 2] in pixels."""
    return size / 10 * outputs.reshape(*outputs.shape[:-1], -1, 2) + (size - 1) / 2


mcnet = partial(Net, features=1024, pooled=False)
"""The network of the conference version."""
