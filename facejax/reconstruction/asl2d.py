"""2DASL: a 3D face regressed from a crop and its 2D landmarks, trained with photographs that have 2D landmarks alone.

Tu, Zhao, Jiang, Luo, Xie, Zhao, He, Ma, Feng. "Joint 3D Face Reconstruction and Dense Face Alignment from A Single
Image with 2D-Assisted Self-Supervised Learning". 2019. arXiv:1903.09359 (journal: "3D Face Reconstruction from A Single
Image Assisted by 2D Face Images in the Wild", TMM 2020). The network sees the crop and a map with the pixels of 18
detected landmarks. Of faces with known parameters it learns these and their 3D landmarks; of all others it learns that
the projected landmarks are the detected ones (weighted, where visible), that its own landmarks as input give the same
landmarks again (cycle), and to fool a critic of features and parameters, which has seen true pairs (self-critic).

The authors published the network, the map and, in an early commit, a script that trains a variant (XgTu/2DASL).
Differs from it: units and weights of the losses; weights of landmarks, which it squares; the cycle compares both passes
of the network, there the second pass and the detected landmarks; the critic sees features and whitened parameters
without t_z, there expression alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.backbones.resnet import ResidualBlock
from facejax.morphable import crops
from facejax.morphable.crops import FACEJAX, Convention
from facejax.morphable.parameters import DEPTH, LinearFace, Whitening, at_vertices, reconstruct
from facejax.nn.conv import Conv
from facejax.nn.init import kaiming_normal_fan_out, torch_default
from facejax.nn.norm import BatchNorm
from facejax.ops.pooling import max_pool
from facejax.reconstruction import tddfa

Dtype = Any

POINTS_18 = (
    (17, 17), (19, 19), (21, 21), (22, 22), (24, 24), (26, 26), (36, 36), (37, 40), (39, 39), (42, 42), (43, 46),
    (45, 45), (31, 31), (30, 30), (35, 35), (48, 48), (62, 66), (54, 54),
)  # fmt: skip
"""The pairs among 68 landmarks whose middles are the 18 points: brows, eyes with their middles, nose, mouth."""
WEIGHTS = (0.5,) * 7 + (1.0, 0.5, 0.5, 1.0, 0.5, 0.5, 2.0, 0.5, 1.0, 2.0, 1.0)
"""Of the 18 points in the authors' helpers: tip of the nose and middle of the mouth 2, eyes and mouth corners 1."""
POOL = 7


class Net(nn.Module):
    """ResNet-50 of four channels, whose last stage has stride 1.

    The published network pools 7 x 7 of the last map's 8 x 8 places: its last row and column have no influence.

    Attributes:
      outputs: D.
      depths, widths: blocks and inner channels of the four stages.
      dtype: of the trunk.
    """

    outputs: int = 62
    depths: Sequence[int] = (3, 4, 6, 3)
    widths: Sequence[int] = (64, 128, 256, 512)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Parameters and features.

        Args:
          inputs: [N, S, S, 4] of `stacked`, S at most 128; published 120.
          train: whether the batch's statistics are used.

        Returns:
          "parameters" [N, D] whitened, "features" [N, 4 * widths[-1]], both float32.

        Raises:
          ValueError: larger crops.
        """
        x = Conv(self.widths[0], 7, 2, 3, kernel_init=kaiming_normal_fan_out, dtype=self.dtype, name="conv1")(inputs)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="bn1")(x, train=train))
        x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for block in range(depth):
                stride = 2 if stage in (2, 3) and block == 0 else 1
                x = ResidualBlock(width, stride, 1, True, Conv, dtype=self.dtype, name=f"layer{stage}_{block}")(
                    x, train=train
                )
        if max(x.shape[1:3]) > POOL + 1:
            raise ValueError(f"2DASL: crops of {inputs.shape[1]} x {inputs.shape[2]} pixels, expected at most 128")
        features = x[:, :POOL, :POOL].astype(jnp.float32).mean((1, 2))
        return {
            "parameters": nn.Dense(self.outputs, kernel_init=torch_default, name="fc")(features),
            "features": features,
        }


class Critic(nn.Module):
    """Tells true parameters of a picture from predicted ones: the layers of the authors' helpers.

    Attributes:
      widths: of the hidden layers.
      dropout: rate before the activations of all but the first.
    """

    widths: Sequence[int] = (512, 1024, 1024)
    dropout: float = 0.4

    @nn.compact
    def __call__(self, features: jax.Array, parameters: jax.Array, *, train: bool) -> jax.Array:
        """Features [N, F], whitened parameters [N, D] of which t_z is ignored -> logits [N], large for true ones."""
        dense = partial(nn.Dense, kernel_init=torch_default)
        x = jnp.concatenate([features, parameters.at[:, DEPTH].set(0)], -1)
        for i, width in enumerate(self.widths):
            x = dense(width, name=f"hidden{i}")(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x) if i else x
            x = nn.leaky_relu(x, 0.2)
        return dense(1, name="scale")(dense(1, name="score")(x))[:, 0]


def eighteen(points68: Any) -> Any:
    """Landmarks [..., 68, C] -> the 18 points [..., 18, C]; NumPy or JAX."""
    first, last = np.transpose(POINTS_18)
    return (points68[..., first, :] + points68[..., last, :]) / 2


def eighteen_visible(visible68: Any) -> Any:
    """Visibility [..., 68] -> [..., 18]; a middle is visible where both landmarks are."""
    first, last = np.transpose(POINTS_18)
    return visible68[..., first] & visible68[..., last]


def landmark_map(points68: jax.Array, size: int) -> jax.Array:
    """The map of 2D landmarks: 1 at the pixel of each of the 18 points, -1 elsewhere.

    Landmarks beyond the right or lower border move to it. As in the published test code, negative coordinates count
    from the opposite border; beyond that border, where that code fails, a point is left out.

    Args:
      points68: [N, 68, 2] finite, pixels, the first one's centre at 0.5.
      size: S.

    Returns:
      [N, S, S, 1], without gradient.
    """
    x, y = jnp.moveaxis(jnp.floor(eighteen(jnp.minimum(points68, size - 1))).astype(jnp.int32), -1, 0)
    x, y = (jnp.where(place < 0, place + size, place) for place in (x, y))
    x = jnp.where((x < 0) | (y < 0), size, x)
    rows = jnp.arange(len(points68))[:, None]
    return jnp.full((len(points68), size, size, 1), -1.0).at[rows, y, x, 0].set(1.0, mode="drop")


def stacked(images: jax.Array, points68: jax.Array) -> jax.Array:
    """The network's input: crops [N, S, S, 3] BGR, (x - 127.5) / 128, and their landmarks' map -> [N, S, S, 4]."""
    return jnp.concatenate([images, landmark_map(points68, images.shape[1]).astype(images.dtype)], -1)


def landmarks(face: LinearFace) -> LinearFace:
    """The 68 landmarks alone."""
    return at_vertices(face, face.landmarks68)


def projected(
    predicted: jax.Array, marks: LinearFace, whitening: Whitening, size: int, convention: Convention = FACEJAX
) -> jax.Array:
    """Projected landmarks of whitened parameters.

    Args:
      predicted: [N, D].
      marks: of `landmarks`.
      whitening: of the parameters.
      size: of the crops.
      convention: from vertices to pixels.

    Returns:
      [N, 68, 2] pixels.
    """
    return crops.to_image(reconstruct(marks, whitening.restore(predicted)), size, convention)[..., :2]


def landmark_loss(found68: jax.Array, points68: jax.Array, size: int, visible68: jax.Array | None = None) -> jax.Array:
    """Weighted mean of the squared distances of the 18 points, in half sides of the crop.

    Args:
      found68, points68: [N, 68, 2] pixels.
      size: side of the crop.
      visible68: [N, 68] bool, landmarks that count; None: all.

    Returns:
      [N]; 0 for a face without visible points.
    """
    weights = jnp.asarray(WEIGHTS)
    if visible68 is not None:
        weights = weights * eighteen_visible(visible68)
    difference = (eighteen(found68) - eighteen(points68)).astype(jnp.float32) / (size / 2)
    total = jnp.sum(weights * jnp.sum(difference**2, -1), -1)
    return total / jnp.maximum(jnp.sum(weights, -1), min(WEIGHTS))


def landmark_loss_3d(
    predicted: jax.Array, target: jax.Array, marks: LinearFace, whitening: Whitening, size: int
) -> jax.Array:
    """Mean squared difference [N] of the 68 landmarks' 3D coordinates, the true t_z in both, in half sides of the crop.

    Args:
      predicted, target: [N, D] whitened.
      marks: of `landmarks`.
      whitening: of the parameters.
      size: side of the crop.
    """
    return tddfa.vdc(predicted, target, marks, whitening) / (size / 2) ** 2
