"""PFLD: landmarks from a small network whose loss looks at the pose and at how rare a kind of face is.

Guo, Li, Yu, Zhang, Ma, Ma, Liu, Ling. "PFLD: a practical facial landmark detector". 2019. arXiv:1902.10859.
Inverted residuals as in MobileNet V2 predict landmarks from maps of three scales. In training, an auxiliary branch on
the first maps predicts the head's angles; their error and the rarity of the face's kind multiply the landmark error.

There is no code of the authors. Layers that the paper leaves open follow polarisZhao/PFLD-pytorch: the maps are
averaged before the last layer, the second convolution is full, and every bottleneck begins with a 1x1 convolution.
Differs from it: angles are radians, from a projection of a mean face by least squares, and its unused batch norm is
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.morphable.parameters import nearest_rotation
from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv
from facejax.nn.init import torch_default
from facejax.ops import rotation

Dtype = Any
KINDS = ("profile", "frontal", "head up", "head down", "expression", "occlusion")
"""Kinds of faces whose rarity weighs them."""
TURNED, TILTED = np.radians(30.0), np.radians(15.0)
"""Least yaw of a profile and least pitch of a head up or down, radians; the paper gives none."""


def pose_of(points: jax.Array, mean_face: jax.Array) -> jax.Array:
    """Angles of the rotation that brings a mean face to landmarks, under a scaled parallel projection.

    The affine projection that fits best is linear in the landmarks; its rows become those of the nearest rotation.

    Args:
      points: [..., L, 2] in pixels, y down.
      mean_face: [L, 3], x to the right, y up, z to the viewer.

    Returns:
      [..., 3] pitch, yaw, roll in radians, as `facejax.ops.rotation.from_euler`.
    """
    solve = jnp.linalg.pinv(mean_face - mean_face.mean(0))
    upright = (points - points.mean(-2, keepdims=True)) * jnp.array([1.0, -1.0])
    rows = jnp.einsum("kl,...lc->...ck", solve, upright, precision=lax.Precision.HIGHEST)
    rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=(-2, -1), keepdims=True), 1e-12)
    third = jnp.cross(rows[..., 0, :], rows[..., 1, :])
    return rotation.to_euler(nearest_rotation(jnp.concatenate([rows, third[..., None, :]], -2)))


def kinds(angles: jax.Array, expression: jax.Array, occlusion: jax.Array) -> jax.Array:
    """[N, 6] float32: membership of faces in `KINDS`.

    Args:
      angles: [N, 3] true pitch, yaw, roll in radians; positive pitch looks down.
      expression, occlusion: [N] bool.
    """
    pitch, profile = angles[:, 0], jnp.abs(angles[:, 1]) >= TURNED
    columns = (profile, ~profile, pitch <= -TILTED, pitch >= TILTED, expression, occlusion)
    return jnp.stack(columns, -1).astype(jnp.float32)


def rarity(member: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Weight [N] of each face: the sum over its kinds of 1 / (part of the faces that are of that kind).

    Args:
      member: [N, C] in 0..1, of all faces, or of a batch as in polarisZhao/PFLD-pytorch.
      axis_name: the batch is split over this mapped axis.
    """
    part = member.mean(0)
    part = lax.pmean(part, axis_name) if axis_name else part
    return jnp.sum(member / jnp.maximum(part, 1e-6), -1)


def pfld_loss(
    points: jax.Array,
    truth: jax.Array,
    angles: jax.Array,
    true_angles: jax.Array,
    weights: jax.Array,
    floor: float = 0.0,
) -> jax.Array:
    """The loss: weights * (floor + sum_k (1 - cos(theta_k))) * sum_n |d_n|^2, with theta the error of the angles.

    The published loss has no floor: a face whose angles are right does not train the landmarks.

    Args:
      points, truth: [N, L, 2], relative to the crop's side.
      angles, true_angles: [N, 3] radians.
      weights: [N], of `rarity`; ones without.
      floor: least factor of the landmark error.

    Returns:
      [N] float32.
    """
    squares = jnp.sum((points.astype(jnp.float32) - truth) ** 2, (-2, -1))
    turn = jnp.sum(1 - jnp.cos(angles.astype(jnp.float32) - true_angles), -1)
    return weights * (floor + turn) * squares


class Bottleneck(nn.Module):
    """1x1 to `expansion` times the input's channels, depthwise 3x3, linear 1x1; batch norm after each.

    Attributes:
      features: output channels.
      expansion: t.
      stride: of the depthwise convolution.
      shortcut: whether the input is added.
      block: constructor of a convolution with batch norm.
    """

    features: int
    expansion: int
    stride: int
    shortcut: bool
    block: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, features]."""
        wide = x.shape[-1] * self.expansion
        y = self.block(wide, 1, name="expand")(x, train=train)
        y = self.block(wide, 3, self.stride, 1, groups=wide, name="depthwise")(y, train=train)
        y = self.block(self.features, 1, activation=None, name="project")(y, train=train)
        return x + y if self.shortcut else y


class Auxiliary(nn.Module):
    """The branch of training: maps of stride 4 to three angles.

    Attributes:
      block: constructor of a convolution with batch norm.
      width: of the convolutions, over the published 128.
    """

    block: Any
    width: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, 3] radians, float32."""
        wide, narrow = round(128 * self.width), round(32 * self.width)
        x = self.block(wide, 3, 2, 1, name="conv1")(x, train=train)
        x = self.block(wide, 3, 1, 1, name="conv2")(x, train=train)
        x = self.block(narrow, 3, 2, 1, name="conv3")(x, train=train)
        x = self.block(wide, x.shape[1:3], 1, 1, name="conv4")(x, train=train).max((1, 2)).astype(jnp.float32)
        dense = partial(nn.Dense, kernel_init=torch_default)
        return dense(3, name="angles")(dense(narrow, name="hidden")(x))


class Net(nn.Module):
    """Images to landmarks, and in training to angles.

    Attributes:
      landmarks: L.
      width: multiplies all channels (0.25 in the paper's small network).
      second: the second convolution, "full" or "separable" (as in cunjian/pytorch_face_landmark).
      expansions: of the four groups of bottlenecks.
      axis_name: mapped axis over which batch statistics are shared.
      dtype: of the computation.
    """

    landmarks: int = 98
    width: float = 1.0
    second: str = "full"
    expansions: Sequence[int] = (2, 2, 4, 2)
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Landmarks and angles.

        Args:
          images: [N, S, S, 3] RGB in 0..1, S a multiple of 16; published for 112 pixels.
          train: whether the batch's statistics are used and the auxiliary branch runs.

        Returns:
          "points" [N, L, 2], (x, y) relative to the side, float32; in training "angles" [N, 3], radians.
        """
        if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[1] % 16 or not images.shape[1]:
            raise ValueError(f"PFLD: images {images.shape}, expected [N, S, S, 3] with S a multiple of 16")
        if self.second not in ("full", "separable"):
            raise ValueError(f"PFLD: second is {self.second!r}, expected full or separable")
        block = partial(ConvNorm, kernel_init=torch_default, axis_name=self.axis_name, dtype=self.dtype)
        conv = partial(Conv, kernel_init=torch_default, dtype=self.dtype)

        def wide(channels: int) -> int:
            return max(4, round(channels * self.width))

        x = block(wide(64), 3, 2, 1, name="conv1")(images, train=train)
        if self.second == "full":
            x = block(wide(64), 3, 1, 1, name="conv2")(x, train=train)
        else:
            x = block(wide(64), 3, 1, 1, groups=x.shape[-1], activation=None, name="conv2")(x, train=train)
            x = nn.relu(conv(wide(64), 1, name="conv2_pointwise")(x))
        groups = ((64, 5, 2), (128, 1, 2), (128, 6, 1), (16, 1, 1))
        maps = []
        for number, ((channels, blocks, stride), expansion) in enumerate(zip(groups, self.expansions, strict=True), 3):
            for i in range(blocks):
                step = stride if i == 0 else 1
                name = f"group{number}_{i + 1}"
                x = Bottleneck(wide(channels), expansion, step, i > 0, block, name=name)(x, train=train)
            maps.append(x)
        second = block(wide(32), 3, 2, 1, name="conv7")(x, train=train)
        third = conv(wide(128), second.shape[1:3], use_bias=True, name="conv8")(second)
        features = [x.mean((1, 2)), second.mean((1, 2)), nn.relu(third)[:, 0, 0]]
        features = jnp.concatenate(features, -1).astype(jnp.float32)
        found = nn.Dense(2 * self.landmarks, kernel_init=torch_default, name="fc")(features)
        out = {"points": found.reshape(-1, self.landmarks, 2)}
        if train or self.is_initializing():
            out["angles"] = Auxiliary(block, self.width, name="auxiliary")(maps[0], train=train)
        return out


pfld_68_compressed = partial(Net, 68, second="separable", expansions=(1, 1, 2, 1))
"""The variant of 68 points that cunjian/pytorch_face_landmark publishes, without its auxiliary branch."""
