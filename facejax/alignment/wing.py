"""Wing loss: coordinates of landmarks regressed with a loss that also hears small errors.

Feng, Kittler, Awais, Huber, Wu. "Wing Loss for Robust Facial Landmark Localisation with Convolutional Neural Networks".
CVPR 2018. arXiv:1711.06753. The loss is a logarithm near zero, whose gradient grows as the error shrinks, and a line
beyond. Small convolutional networks regress all coordinates from a crop; of two stages the first one only turns and
crops the face for the second. Rare poses are repeated in the training set. Formulas and the balancing are those of the
authors' MATLAB code (FengZhenhua/Wing-Loss: lgLoss.m in its history, pdb.m), which has no training.

Differs: widths of CNN-7 beyond its first layer are not published; the second stage's crop is cut from the first one's,
not from the photograph; empty bins of the balancing are skipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.backbones.resnet import ResNet
from facejax.nn.conv import Conv
from facejax.nn.init import torch_default
from facejax.ops.losses import smooth_l1
from facejax.ops.pooling import max_pool, resize_bilinear
from facejax.ops.sampling import bilinear_sample

Dtype = Any

UPRIGHT = {68: (8, (39, 42)), 98: (16, (64, 68)), 29: (28, (10, 11)), 19: (18, (8, 9))}
"""Number of landmarks (300W, WFLW, COFW, AFLW) -> the chin and the inner corners of the eyes."""


def wing(error: jax.Array, width: float = 10.0, curvature: float = 2.0) -> jax.Array:
    """The logarithm width ln(1 + |error| / curvature) below the width, and |error| - C above, which joins it there.

    Args:
      error: [...] in pixels of the network's input, for which the constants were chosen.
      width: w, where the line begins.
      curvature: epsilon; the gradient at zero is width / curvature.

    Returns:
      [...] float32.
    """
    size = _size(error)
    constant = width - width * np.log1p(width / curvature)
    near = width * jnp.log1p(jnp.minimum(size, width) / curvature)
    return jnp.where(size < width, near, size - constant)


def _size(error: jax.Array) -> jax.Array:
    """The absolute value, whose gradient at zero is 0; that of `jnp.abs` is 1."""
    error = error.astype(jnp.float32)
    return error * jnp.sign(error)


LOSSES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "l2": lambda error: 0.5 * error.astype(jnp.float32) ** 2,
    "l1": lambda error: _size(error),
    "smooth_l1": lambda error: smooth_l1(error.astype(jnp.float32)),
}
"""The losses that the paper compares with: elementwise functions of the error."""


class CNN(nn.Module):
    """Stages of a 3x3 convolution, ReLU and 2x2 max pooling, and two dense layers.

    Attributes:
      landmarks: L.
      widths: channels of each stage.
      dense: width of the first dense layer.
      dtype: of the computation.
    """

    landmarks: int = 68
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    dense: int = 1024
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] RGB in 0..1 -> landmarks [N, L, 2] in pixels of the image; `train` changes nothing.

        Raises:
          ValueError: the sides are no multiples of 2^stages.
        """
        cells = 2 ** len(self.widths)
        if images.ndim != 4 or any(side == 0 or side % cells for side in images.shape[1:3]):
            raise ValueError(f"CNN: images {images.shape}, expected [N, H, W, 3] with sides that {cells} divides")
        x = images.astype(self.dtype)
        for i, width in enumerate(self.widths, 1):
            conv = Conv(width, 3, padding=1, use_bias=True, kernel_init=HE, dtype=self.dtype, name=f"conv{i}")
            x = max_pool(nn.relu(conv(x)), (2, 2), (2, 2))
        x = nn.Dense(self.dense, kernel_init=HE, dtype=self.dtype, name="dense")(x.reshape(x.shape[0], -1))
        x = nn.Dense(2 * self.landmarks, kernel_init=torch_default, name="points")(nn.relu(x).astype(jnp.float32))
        return _all_x_then_all_y(x)


HE = nn.initializers.he_normal()
cnn6 = partial(CNN)
cnn7 = partial(CNN, widths=(64, 64, 128, 256, 512, 512))


class ResNetPoints(nn.Module):
    """A ResNet whose pooled features a dense layer turns into landmarks.

    Attributes:
      trunk: the ResNet.
      landmarks: L.
    """

    trunk: ResNet
    landmarks: int = 68

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] RGB, normalised per channel -> landmarks [N, L, 2] in pixels of the image."""
        pooled = self.trunk(images, train=train, features=True)["c5"].mean((1, 2)).astype(jnp.float32)
        return _all_x_then_all_y(nn.Dense(2 * self.landmarks, kernel_init=torch_default, name="points")(pooled))


def _all_x_then_all_y(x: jax.Array) -> jax.Array:
    """[N, 2L] with all x before all y, as in the authors' networks, to [N, L, 2]."""
    return jnp.moveaxis(x.reshape(x.shape[0], 2, -1), 1, 2)


class TwoStage(nn.Module):
    """Two networks: the second sees the face turned upright and cropped by the landmarks of the first.

    Attributes:
      first, second: networks from an image to landmarks in its pixels.
      small: side of the first one's input; the second's is that of the image.
      enlarge: side of the second crop relative to the square around the landmarks.
    """

    first: nn.Module
    second: nn.Module
    small: int = 64
    enlarge: float = 1.25

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, matrices: jax.Array | None = None) -> dict[str, jax.Array]:
        """Landmarks of both stages; no gradient passes from the second to the first.

        Args:
          images: [N, S, S, 3].
          train: passed on.
          matrices: [N, 2, 3], see `upright`, in place of those from the first stage's landmarks.

        Returns:
          "points" [N, L, 2] and "first" [N, L, 2] in pixels of the image; "small" [N, L, 2] and "upright" [N, L, 2],
          the networks' outputs in pixels of their inputs; and "matrices".
        """
        size = images.shape[1]
        small = self.first(resize_bilinear(images, (self.small, self.small)), train=train)
        first = resized(small, self.small, size)
        if matrices is None:
            matrices = upright(jax.lax.stop_gradient(first), size, self.enlarge)
        turned = self.second(warp(images, matrices), train=train)
        points = restored(turned, matrices)
        return {"points": points, "first": first, "small": small, "upright": turned, "matrices": matrices}


def resized(points: jax.Array, old: int, new: int) -> jax.Array:
    """Points in pixels of an image of side `old`, in pixels of the same image with side `new`."""
    return (points + 0.5) * (new / old) - 0.5


def upright(points: jax.Array, size: int, enlarge: float = 1.25) -> jax.Array:
    """Similarity transforms to crops in which the chin is straight below the middle of the inner eye corners.

    Args:
      points: [N, L, 2] in pixels, L a key of `UPRIGHT`.
      size: side of the crop, pixels; its middle is that of the turned points' box.
      enlarge: side of the cut square relative to the longer side of that box, which counts as 8 pixels at least.

    Returns:
      [N, 2, 3] from pixels of the image to pixels of the crop, both with integers at pixel centres.
    """
    if points.shape[1] not in UPRIGHT:
        raise ValueError(f"upright: {points.shape[1]} landmarks, expected one of {', '.join(map(str, UPRIGHT))}")
    chin, eyes = UPRIGHT[points.shape[1]]
    down = points[:, chin] - points[:, np.array(eyes)].mean(1)
    down = jnp.where((down**2).sum(-1, keepdims=True) > 1e-6, down, jnp.array([0.0, 1.0]))
    x, y = jnp.moveaxis(down / jnp.sqrt((down**2).sum(-1, keepdims=True)), -1, 0)
    turn = jnp.stack([jnp.stack([y, -x], -1), jnp.stack([x, y], -1)], 1)
    turned = jnp.einsum("nij,nlj->nli", turn, points, precision="highest")
    low, high = turned.min(1), turned.max(1)
    scale = size / (enlarge * jnp.maximum((high - low).max(-1), 8.0))
    middle = (size - 1) / 2 - scale[:, None] * (low + high) / 2
    return jnp.concatenate([scale[:, None, None] * turn, middle[..., None]], -1)


def perturbed(
    matrices: jax.Array, rng: jax.Array, size: int, *, rotation: float = 5.0, scale: float = 0.05, shift: float = 0.05
) -> jax.Array:
    """Transforms [N, 2, 3] whose crops are turned, scaled and moved at random, uniformly within bounds.

    Args:
      matrices: [N, 2, 3] to crops.
      rng: key.
      size: side of the crops, pixels.
      rotation: in either direction, degrees.
      scale: change of the size, as a fraction.
      shift: along each axis, as a fraction of the side.
    """
    draw = jax.random.uniform(rng, (4, len(matrices)), minval=-1.0)
    angle, factor = jnp.radians(rotation) * draw[0], 1 + scale * draw[1]
    c, s = factor * jnp.cos(angle), factor * jnp.sin(angle)
    turn = jnp.stack([jnp.stack([c, -s], -1), jnp.stack([s, c], -1)], 1)
    middle = (size - 1) / 2
    moved = jnp.einsum("nij,njk->nik", turn, matrices.at[..., 2].add(-middle), precision="highest")
    return moved.at[..., 2].add(middle + shift * size * draw[2:].T)


def transformed(points: jax.Array, matrices: jax.Array) -> jax.Array:
    """Points [N, L, 2] by transforms [N, 2, 3]."""
    return jnp.einsum("nij,nlj->nli", matrices[..., :2], points, precision="highest") + matrices[:, None, :, 2]


def restored(points: jax.Array, matrices: jax.Array) -> jax.Array:
    """The points [N, L, 2] that similarity transforms [N, 2, 3] take to the given ones."""
    turn = matrices[..., :2]
    squares = (turn[:, :, 0] ** 2).sum(-1)[:, None, None]
    return jnp.einsum("nji,nlj->nli", turn, points - matrices[:, None, :, 2], precision="highest") / squares


def warp(images: jax.Array, matrices: jax.Array) -> jax.Array:
    """Crops of the images' size by similarity transforms [N, 2, 3]: bilinear, with edge padding outside the image.

    Args:
      images: [N, S, S, C].
      matrices: from pixels of the image to pixels of the crop.
    """
    size = images.shape[1]
    row, column = jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")
    grid = jnp.broadcast_to(jnp.stack([column, row], -1).reshape(1, -1, 2), (images.shape[0], size * size, 2))
    places = restored(grid.astype(jnp.float32), matrices) + 0.5
    return jax.vmap(bilinear_sample)(images, places).reshape(images.shape)


def balanced(shapes: np.ndarray, bins: int = 9) -> np.ndarray:
    """Pose-based data balancing: rows of a training set in which rare head poses are repeated.

    All shapes are aligned to their mean once, by scale, rotation or reflection, and translation. A principal component
    tells the yaw: the first, of 19 landmarks the second. Its absolute value is divided into equal bins, and the shapes
    of each bin are repeated to come near the number of the fullest.

    Args:
      shapes: [N, L, 2] landmarks in comparable coordinates, such as those of crops.
      bins: number of bins.

    Returns:
      [M] int, rows of `shapes`, each one at least once; one on the edge of two bins counts in both.
    """
    if shapes.ndim != 3 or shapes.shape[-1] != 2 or len(shapes) < 2 or not np.isfinite(shapes).all():
        raise ValueError(f"balanced: shapes {shapes.shape}, expected [N, L, 2] finite numbers with N of 2 or more")
    mean = shapes.mean(0)
    centre, target = mean.mean(0), mean - mean.mean(0)
    source = shapes - shapes.mean(1, keepdims=True)
    u, values, vt = np.linalg.svd(np.einsum("li,nlj->nij", target, source))
    scale = values.sum(-1) / (source**2).sum((1, 2))
    aligned = scale[:, None, None] * (source @ (np.swapaxes(vt, 1, 2) @ np.swapaxes(u, 1, 2))) + centre
    flat = (aligned - aligned.mean(0)).reshape(len(shapes), -1)
    _, _, components = np.linalg.svd(flat, full_matrices=False)
    pose = np.abs(flat @ components[1 if shapes.shape[1] == 19 else 0])
    fullest = np.histogram(pose, bins)[0].max()
    edges = np.arange(bins + 1) * pose.max() / bins
    edges[-1] = pose.max()
    found = []
    for low, high in itertools.pairwise(edges):
        rows = np.flatnonzero((pose >= low) & (pose <= high))
        if len(rows):
            found.append(np.tile(rows, max(1, int(fullest / len(rows) + 0.5))))
    return np.concatenate(found)
