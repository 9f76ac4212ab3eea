"""DAN: landmarks refined in stages, each of which sees the whole face in a canonical pose.

Kowalski, Naruniec, Trzcinski. "Deep Alignment Network: a convolutional neural network for robust face alignment".
CVPR workshops 2017. arXiv:1706.01789.
Connection layers give a stage the image, warped so that the last stage's landmarks fit the mean shape, a heatmap of
these landmarks, and an image made of the last stage's features; the stage's correction is then warped back. Where
paper and authors' code (MarekKowalski/DeepAlignmentNetwork) differ, the settings are the code's.

Differs: the warp can read the last row and column of the image, which the code's clipping excludes, and a pixel of the
training images that hardly varies is not divided by less than one grey level.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.blocks import ConvNorm
from facejax.nn.norm import BatchNorm
from facejax.ops.pooling import max_pool, upsample_nearest
from facejax.ops.sampling import bilinear_sample

Dtype = Any

EPSILON = 1e-4  # Lasagne's, of batch norm
TINY = 1e-4  # squared scale or size (pixels) below which a similarity transform is not inverted
STATISTICS = "statistics"
"""Collection of the training data's `mean_shape` [L, 2], `mean_image` and `deviation_image` [S, S]."""

glorot_relu = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")


class Similarity(NamedTuple):
    """Transforms p -> p A + t of row vectors: matrix A [..., 2, 2] = [[a, b], [-b, a]], shift t [..., 2]."""

    matrix: jax.Array
    shift: jax.Array

    def __call__(self, points: jax.Array) -> jax.Array:
        """Transforms points [..., L, 2]."""
        return jnp.matmul(points, self.matrix, precision="highest") + self.shift[..., None, :]

    @property
    def inverse(self) -> Similarity:
        """The inverse transforms."""
        a, b = self.matrix[..., :1, :1], self.matrix[..., :1, 1:]
        matrix = jnp.swapaxes(self.matrix, -1, -2) / jnp.maximum(a**2 + b**2, TINY)
        return Similarity(matrix, -jnp.einsum("...i,...ij->...j", self.shift, matrix, precision="highest"))


def fit_similarity(source: jax.Array, target: jax.Array) -> Similarity:
    """The least-squares similarity transforms without reflection from source to target points, both [..., L, 2].

    Source points that coincide are scaled by 0; their gradient stays finite.
    """
    source_mean, target_mean = source.mean(-2), target.mean(-2)
    s, d = source - source_mean[..., None, :], target - target_mean[..., None, :]
    size = jnp.maximum((s**2).sum((-2, -1)), TINY)
    a = (s * d).sum((-2, -1)) / size
    b = (s[..., 0] * d[..., 1] - s[..., 1] * d[..., 0]).sum(-1) / size
    matrix = jnp.stack([jnp.stack([a, b], -1), jnp.stack([-b, a], -1)], -2)
    return Similarity(matrix, target_mean - jnp.einsum("...i,...ij->...j", source_mean, matrix, precision="highest"))


def warp(images: jax.Array, transform: Similarity) -> jax.Array:
    """Images [N, H, W, C] moved by transforms, which refer to pixels with integers at their centres; edges repeat."""
    height, width = images.shape[1:3]
    rows, columns = jnp.indices((height, width))
    grid = jnp.stack([columns, rows], -1).reshape(-1, 2).astype(jnp.float32)
    found = jax.vmap(bilinear_sample)(images, transform.inverse(grid) + 0.5)
    return found.reshape(images.shape)


def landmark_image(points: jax.Array, size: int, reach: int = 8) -> jax.Array:
    """Images [N, S, S, 1] of 1 / (1 + distance to the nearest landmark), 0 where none is near.

    Args:
      points: [N, L, 2] (x, y) in pixels; those outside are moved to `reach` pixels from the edge.
      size: S.
      reach: half side of the square around the pixel of each landmark, its coordinates cut to integers, in which it
        counts.
    """
    if size <= 2 * reach:
        raise ValueError(f"landmark_image: a reach of {reach} in {size} pixels, expected less than half of them")
    points = jnp.clip(points, reach, size - 1 - reach)
    offsets = jnp.arange(size)[:, None, None] - jnp.moveaxis(points, -1, 0)[:, None]  # [2, S, N, L]
    inside = jnp.abs(jnp.arange(size)[:, None, None] - jnp.floor(jnp.moveaxis(points, -1, 0))[:, None]) <= reach
    far = 4.0 * size**2
    x, y = jnp.where(inside, offsets**2, far)
    nearest = (y[:, None] + x[None]).min(-1)  # [S, S, N]
    nearest = jnp.moveaxis(nearest, -1, 0)[..., None]
    return jnp.where(nearest < far, 1 / (1 + jnp.sqrt(nearest + 1e-6)), 0.0)


def landmark_error(points: jax.Array, truth: jax.Array, sizes: jax.Array) -> jax.Array:
    """The loss [N]: mean distance of the landmarks, divided by the size of the face.

    Args:
      points, truth: [N, L, 2] in pixels.
      sizes: [N], in the paper the true distance between the centres of the eyes; less than a pixel counts as one.
    """
    if points.shape != truth.shape or sizes.shape != truth.shape[:1]:
        raise ValueError(
            f"landmark_error: points {points.shape}, truth {truth.shape} and sizes {sizes.shape}, "
            "expected [N, L, 2] twice and [N]"
        )
    distance = jnp.sqrt(((points - truth) ** 2).sum(-1) + 1e-12)  # a finite gradient at 0
    return distance.mean(-1) / jnp.maximum(sizes, 1.0)


def mean_shape(shapes: jax.Array, size: int, share: float) -> jax.Array:
    """The mean [L, 2] of shapes [N, L, 2] aligned by similarity transforms, in the middle of an image.

    Args:
      shapes: of training faces, in any frame in which they stand upright on average.
      size: side of the image, pixels.
      share: part of it that the larger side of the mean's box covers.
    """
    if shapes.ndim != 3 or not jnp.isfinite(shapes).all():
        raise ValueError(f"mean_shape: shapes {shapes.shape}, expected [N, L, 2] finite numbers")
    first = mean = shapes.mean(0)
    for _ in range(5):
        mean = fit_similarity(shapes, mean)(shapes).mean(0)
        mean = fit_similarity(mean, first)(mean)  # keeps its size and its angle
    low, high = mean.min(0), mean.max(0)
    return (mean - (low + high) / 2) * (share * size / (high - low).max()) + (size - 1) / 2


class StageNet(nn.Module):
    """The network of a stage: pairs of convolutions, each followed by pooling, and two fully connected layers.

    Attributes:
      landmarks: L.
      widths: of the pairs of convolutions.
      features: F, width of the first fully connected layer.
      dropout: rate before it.
      axis_name: mapped axis over which batch norms share their statistics.
      dtype: of the computation.
    """

    landmarks: int = 68
    widths: Sequence[int] = (64, 128, 256, 512)
    features: int = 256
    dropout: float = 0.5
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """[N, H, W, C] -> corrections [N, L, 2] in pixels, float32; and features [N, F]."""
        norm = {"epsilon": EPSILON, "axis_name": self.axis_name, "dtype": self.dtype}
        for i, width in enumerate(self.widths, 1):
            for j in (1, 2):
                conv = ConvNorm(width, 3, padding=1, kernel_init=glorot_relu, name=f"conv{i}_{j}", **norm)
                x = conv(x, train=train)
            x = max_pool(x, (2, 2), (2, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        x = nn.Dense(self.features, use_bias=False, kernel_init=glorot_relu, dtype=self.dtype, name="fc1")(x)
        x = nn.relu(BatchNorm(**norm, name="bn1")(x, train=train))
        out = nn.Dense(
            2 * self.landmarks, kernel_init=nn.initializers.glorot_uniform(), dtype=self.dtype, name="output"
        )(x)
        return out.astype(jnp.float32).reshape(x.shape[0], self.landmarks, 2), x


class LaterStage(nn.Module):
    """The connection layers after a stage, and the network of the next.

    Attributes:
      net: constructor of a `StageNet`.
      reach: of the heatmap, see `landmark_image`.
    """

    net: Any
    reach: int = 8

    @nn.compact
    def __call__(
        self, image: jax.Array, points: jax.Array, features: jax.Array, mean: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The next landmarks.

        Args:
          image: [N, S, S, 1].
          points: [N, L, 2] of the last stage.
          features: [N, F] of the last stage.
          mean: mean shape [L, 2].

        Returns:
          points [N, L, 2], features [N, F], and the inputs [N, S, S, 3]: image, heatmap, image of the features.
        """
        net, size = self.net(name="net"), image.shape[1]
        transform = fit_similarity(points, jnp.broadcast_to(mean, points.shape))
        moved = transform(points)
        pixels = nn.Dense((size // 2) ** 2, kernel_init=glorot_relu, dtype=net.dtype, name="feature_image")(features)
        feature_image = upsample_nearest(nn.relu(pixels).reshape(-1, size // 2, size // 2, 1), 2)
        inputs = (warp(image, transform), landmark_image(moved, size, self.reach), feature_image)
        inputs = jnp.concatenate([x.astype(net.dtype) for x in inputs], -1)
        x = BatchNorm(net.axis_name, epsilon=EPSILON, dtype=net.dtype, name="bn")(inputs, train=train)
        correction, features = net(x, train=train)
        return transform.inverse(moved + correction), features, inputs


class DAN(nn.Module):
    """The network.

    Attributes:
      stages: T.
      size: S, side of the input, pixels; an even number.
      reach: of the heatmaps at this size, see `landmark_image`.
      landmarks, widths, features, dropout, axis_name, dtype: see `StageNet`.
    """

    stages: int = 2
    size: int = 112
    reach: int = 8
    landmarks: int = 68
    widths: Sequence[int] = (64, 128, 256, 512)
    features: int = 256
    dropout: float = 0.5
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, last: int | None = None) -> dict[str, list[jax.Array]]:
        """Finds landmarks.

        Args:
          images: grey values [N, S, S, 1] in 0..255.
          train: whether dropout is active and batch norms use batch statistics, in all stages as in the authors' code.
          last: number of the stage after which to stop, from 1; None: all stages.

        Returns:
          "points": the mean shape and the landmarks of every stage, [N, L, 2] in pixels with integers at their centres;
          "inputs": of every stage, [N, S, S, 1 or 3].
        """
        size, last = self.size, last or self.stages
        if images.shape[1:] != (size, size, 1) or size % 2:
            raise ValueError(f"DAN: images {images.shape} for size {size}, expected [N, S, S, 1] with S = size, even")
        if not 1 <= last <= self.stages:
            raise ValueError(f"DAN: last stage {last}, expected 1 to {self.stages}")
        constant = partial(self.variable, STATISTICS)
        mean = constant("mean_shape", jnp.zeros, (self.landmarks, 2)).value
        middle = constant("mean_image", jnp.zeros, (size, size)).value
        deviation = constant("deviation_image", jnp.ones, (size, size)).value
        image = (images - middle[..., None]) / jnp.maximum(deviation, 1.0)[..., None]
        net = partial(StageNet, self.landmarks, self.widths, self.features, self.dropout, self.axis_name, self.dtype)
        correction, features = net(name="stage1")(image.astype(self.dtype), train=train)
        points, inputs = [jnp.broadcast_to(mean, correction.shape)], [image]
        points.append(points[0] + correction)
        for stage in range(2, last + 1):
            module = LaterStage(net, self.reach, name=f"stage{stage}")
            found, features, seen = module(image, points[-1], features, mean, train=train)
            points.append(found)
            inputs.append(seen)
        return {"points": points, "inputs": inputs}
