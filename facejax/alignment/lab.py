"""LAB: landmarks are regressed from the image together with estimated boundary lines of the face.

Wu, Qian, Yang, Wang, Cai, Zhou. "Look at Boundary: A Boundary-Aware Face Alignment Algorithm". CVPR 2018.
arXiv:1805.10483.
A stacked hourglass with messages between boundaries estimates a heatmap of each of 13 boundary lines; a residual
network takes image and heatmaps, fused at its input and at three of its levels; a discriminator judges each heatmap by
whether the landmarks regressed from it are near the true ones.
The authors published a test tool without networks and without training code. Widths and kernels of the messages, their
graph, and theta and delta of the discriminator are those of third-party ports; its layers are our choice.
Differs: labels of the discriminator come from the same step, not the previous one; heatmaps enter it without the image.
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
from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv
from facejax.nn.norm import BatchNorm, PReLU
from facejax.ops.pooling import max_pool, resize_bilinear, upsample_nearest

Dtype = Any

MESSAGES = {
    0: (1, 3, 5, 6, 7, 10), 1: (2, 4), 2: (3,), 3: (4,), 4: (5,), 5: (6,), 6: (7, 8, 9, 10, 11, 12),
    7: (8,), 8: (9,), 10: (11,), 11: (12,),
}  # fmt: skip
"""Sender -> receivers of the first direction; the second one turns every edge. Node 6 is the hub of both sides."""
NODES = 13


class Bottleneck(nn.Module):
    """The hourglass's residual block: norm, ReLU and convolution three times (1x1, 3x3, 1x1), at half the width inside.

    Attributes:
      features: output channels; others than the input's give the shortcut a 1x1 convolution.
      axis_name, dtype: see `BoundaryEstimator`.
    """

    features: int
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, features]."""
        conv = partial(Conv, use_bias=True, dtype=self.dtype)
        shortcut = x if x.shape[-1] == self.features else conv(self.features, 1, name="shortcut")(x)
        inner = self.features // 2
        for i, (width, size) in enumerate(((inner, 1), (inner, 3), (self.features, 1)), 1):
            x = nn.relu(BatchNorm(self.axis_name, dtype=self.dtype, name=f"bn{i}")(x, train=train))
            x = conv(width, size, padding=size // 2, name=f"conv{i}")(x)
        return shortcut + x


class Hourglass(nn.Module):
    """A block at this resolution, plus: max pooling, a smaller hourglass between two blocks, nearest upsampling.

    Attributes:
      depth: number of poolings.
      axis_name, dtype: see `BoundaryEstimator`.
    """

    depth: int
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> the same shape; H and W are multiples of 2^depth."""
        if any(side % 2**self.depth for side in x.shape[1:3]):
            raise ValueError(f"Hourglass: maps {x.shape}, expected [N, H, W, C] with sides {2**self.depth} divides")
        block = partial(Bottleneck, x.shape[-1], self.axis_name, self.dtype)
        low = block(name="down")(max_pool(x, (2, 2), (2, 2)), train=train)
        if self.depth > 1:
            low = Hourglass(self.depth - 1, self.axis_name, self.dtype, name="inner")(low, train=train)
        else:
            low = block(name="middle")(low, train=train)
        low = block(name="up")(low, train=train)
        return block(name="level")(x, train=train) + upsample_nearest(low, 2)


class MessagePassing(nn.Module):
    """Features of the boundaries inform each other along `MESSAGES`, and along the turned edges.

    In each direction a node sums its own features and what it is sent; a message is a convolution to half the width,
    norm, PReLU and a convolution back.

    Attributes:
      width: channels of a node.
      kernel: side of all kernels but the last one's.
      axis_name, dtype: see `BoundaryEstimator`.
    """

    width: int = 16
    kernel: int = 7
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> the same shape."""
        turned = {node: tuple(s for s, to in MESSAGES.items() if node in to) for node in range(NODES)}
        upward = self._direction(x, range(NODES), MESSAGES, "up", train)
        return upward + self._direction(x, range(NODES)[::-1], turned, "down", train)

    def _direction(
        self, x: jax.Array, order: Sequence[int], receivers: dict[int, tuple[int, ...]], name: str, train: bool
    ) -> jax.Array:
        conv = partial(Conv, padding=self.kernel // 2, dtype=self.dtype)
        norm = partial(BatchNorm, self.axis_name, dtype=self.dtype)
        nodes = jnp.split(conv(NODES * self.width, self.kernel, name=f"{name}_own")(x), NODES, -1)
        for node in order:
            place, to = f"{name}_{node}", receivers.get(node, ())
            nodes[node] = norm(name=f"{place}_bn")(nodes[node], train=train)
            nodes[node] = PReLU(name=f"{place}_prelu")(nodes[node])
            if to:
                sent = conv(len(to) * (self.width // 2), self.kernel, name=f"{place}_narrow")(nodes[node])
                sent = PReLU(name=f"{place}_sent_prelu")(norm(name=f"{place}_sent_bn")(sent, train=train))
                sent = conv(len(to) * self.width, self.kernel, groups=len(to), name=f"{place}_widen")(sent)
                for receiver, message in zip(to, jnp.split(sent, len(to), -1), strict=True):
                    nodes[receiver] = nodes[receiver] + message
        return Conv(x.shape[-1], 1, dtype=self.dtype, name=f"{name}_join")(jnp.concatenate(nodes, -1))


class BoundaryEstimator(nn.Module):
    """Images to heatmaps of the boundaries, one set for each stack.

    Attributes:
      stacks: number of hourglasses.
      width: channels of all maps behind the stem.
      boundaries: number of heatmaps.
      depth: poolings of an hourglass.
      stride: of the heatmaps, 4 or 2.
      message_width: channels of a boundary in `MessagePassing`; 0 leaves the messages out.
      message_kernel: side of its kernels.
      axis_name: mapped axis over which batch statistics are averaged; None for statistics of each device.
      dtype: of the computation.
    """

    stacks: int = 4
    width: int = 256
    boundaries: int = 13
    depth: int = 4
    stride: int = 4
    message_width: int = 16
    message_kernel: int = 7
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """The heatmaps of each stack, the last ones the best.

        Args:
          images: [N, H, W, C] of `standardized`; H and W are multiples of stride * 2^depth.
          train: whether batch norm uses the batch's statistics.

        Returns:
          `stacks` maps [N, H / stride, W / stride, boundaries], float32, linear.
        """
        cells = self.stride * 2**self.depth
        if self.stride not in (2, 4):
            raise ValueError(f"BoundaryEstimator.stride is {self.stride}: expected 2 or 4")
        if images.ndim != 4 or any(side == 0 or side % cells for side in images.shape[1:3]):
            raise ValueError(
                f"BoundaryEstimator: images {images.shape}, expected [N, H, W, C] with sides {cells} divides"
            )
        options = {"axis_name": self.axis_name, "dtype": self.dtype}
        x = ConvNorm(self.width // 4, 7, 2, 3, name="stem_conv", **options)(images, train=train)
        x = Bottleneck(self.width // 2, name="stem1", **options)(x, train=train)
        if self.stride == 4:
            x = max_pool(x, (2, 2), (2, 2))
        x = Bottleneck(self.width // 2, name="stem2", **options)(x, train=train)
        x = Bottleneck(self.width, name="stem3", **options)(x, train=train)
        found, last = [], None
        for i in range(self.stacks):
            x = Hourglass(self.depth, name=f"hourglass{i}", **options)(x, train=train)
            x = Bottleneck(self.width, name=f"block{i}", **options)(x, train=train)
            x = ConvNorm(self.width, 1, name=f"features{i}", **options)(x, train=train)
            if self.message_width:
                messages = MessagePassing(self.message_width, self.message_kernel, name=f"messages{i}", **options)
                x = messages(x, train=train)
            head = Conv(self.boundaries, 1, use_bias=True, dtype=self.dtype, name=f"head{i}")
            found.append(head(x).astype(jnp.float32))
            x, last = (x if last is None else x + last), x
        return found


class Fusion(nn.Module):
    """Features with those that the boundaries select: F, and F times a mask from a small hourglass of F and M.

    Attributes:
      depth: poolings of the hourglass.
      axis_name, dtype: see `BoundaryEstimator`.
    """

    depth: int = 2
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, maps: jax.Array, *, train: bool) -> jax.Array:
        """Features [N, H, W, C] and heatmaps [N, H', W', B] -> [N, H, W, 2 C]."""
        maps = resize_bilinear(maps, features.shape[1:3]).astype(features.dtype)
        x = jnp.concatenate([features, maps], -1)
        x = nn.relu(BatchNorm(self.axis_name, dtype=self.dtype, name="bn")(x, train=train))
        x = Conv(features.shape[-1], 1, use_bias=True, dtype=self.dtype, name="conv")(x)
        x = Hourglass(self.depth, self.axis_name, self.dtype, name="hourglass")(x, train=train)
        return jnp.concatenate([features, features * nn.sigmoid(x)], -1)


class LandmarkRegressor(nn.Module):
    """Image and heatmaps to landmarks: a ResNet-18 whose input and first three stages are fused with the boundaries.

    Attributes:
      landmarks: L.
      widths: channels of the four stages.
      blocks: residual blocks of a stage.
      hidden: width of the dense layer before the last.
      depth: poolings of the hourglass in each `Fusion`.
      axis_name, dtype: see `BoundaryEstimator`; the dense layers stay in float32.
    """

    landmarks: int = 98
    widths: tuple[int, ...] = (64, 128, 256, 512)
    blocks: int = 2
    hidden: int = 256
    depth: int = 2
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, maps: jax.Array, *, train: bool) -> jax.Array:
        """Landmarks.

        Args:
          images: [N, H, W, C] of `standardized`.
          maps: [N, H', W', B] heatmaps of the boundaries; zeros for none.
          train: whether batch norm uses the batch's statistics.

        Returns:
          [N, L, 2] in pixels of the image, integers at pixel centres, float32.
        """
        if images.ndim != 4 or maps.ndim != 4 or len(images) != len(maps):
            raise ValueError(
                f"LandmarkRegressor: images {images.shape} and maps {maps.shape}, "
                "expected [N, H, W, C] and [N, H', W', B]"
            )
        options = {"axis_name": self.axis_name, "dtype": self.dtype}
        grey = images.mean(-1, keepdims=True)
        x = jnp.concatenate([images, resize_bilinear(maps, images.shape[1:3]) * grey], -1)
        x = ConvNorm(self.widths[0], 7, 2, 3, name="stem", **options)(x, train=train)
        x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, width in enumerate(self.widths):
            if stage:
                x = Fusion(self.depth, name=f"fusion{stage}", **options)(x, maps, train=train)
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                x = ResidualBlock(width, stride, 1, False, Conv, name=f"stage{stage}_{block}", **options)(
                    x, train=train
                )
        x = nn.Dense(self.hidden, use_bias=False, name="fc1")(x.reshape(x.shape[0], -1).astype(jnp.float32))
        x = nn.relu(BatchNorm(self.axis_name, name="fc1_bn")(x, train=train))
        x = nn.Dense(2 * self.landmarks, name="fc2")(x).reshape(x.shape[0], self.landmarks, 2)
        size = jnp.array(images.shape[2:0:-1], jnp.float32)
        return (size - 1) / 2 + size * x


class Discriminator(nn.Module):
    """Heatmaps to a logit for each boundary: whether landmarks regressed from it are right.

    Attributes:
      widths: channels of the 3x3 convolutions of stride 2.
      dtype: of the convolutions.
    """

    widths: tuple[int, ...] = (64, 128, 256, 16)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: jax.Array) -> jax.Array:
        """[N, H, W, B] -> [N, B], float32."""
        x = maps
        for i, width in enumerate(self.widths, 1):
            x = Conv(width, 3, 2, 1, use_bias=True, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.leaky_relu(x, 0.2)
        return nn.Dense(maps.shape[-1], name="fc")(x.reshape(x.shape[0], -1).astype(jnp.float32))


def standardized(images: jax.Array) -> jax.Array:
    """Each channel of each image [..., H, W, C] with mean 0 and deviation 1; a constant channel gives zeros."""
    images = images.astype(jnp.float32)
    deviation = images.std((-3, -2), keepdims=True)
    return (images - images.mean((-3, -2), keepdims=True)) / jnp.where(deviation < 1e-6, 1.0, deviation)


def boundary_loss(maps: Sequence[jax.Array], targets: jax.Array) -> jax.Array:
    """Squared error of the heatmaps, a mean over pixels, summed over boundaries and stacks.

    Args:
      maps: one [N, H, W, B] for each stack.
      targets: [N, H, W, B].

    Returns:
      [N].
    """
    return sum(jnp.square(found.astype(jnp.float32) - targets).mean((1, 2)).sum(-1) for found in maps)


def landmark_loss(points: jax.Array, truth: jax.Array, size: float) -> jax.Array:
    """Squared distance [N] in units of `size` pixels, a mean over the landmarks [N, L, 2]."""
    return jnp.square((points - truth) / size).sum(-1).mean(-1)


def effective(points: jax.Array, truth: jax.Array, members: np.ndarray, *, theta: float, delta: float) -> jax.Array:
    """The discriminator's labels of estimated heatmaps: 1 where at least `delta` of the landmarks are within `theta`.

    Args:
      points, truth: [N, L, 2], regressed from those heatmaps and true.
      members: [B, L] bool, the landmarks of each boundary.
      theta: distance, in pixels of the points.
      delta: a fraction.

    Returns:
      [N, B], 0 or 1; without gradient.
    """
    members = np.asarray(members, np.float32)
    if members.ndim != 2 or members.shape[1] != points.shape[1] or not members.sum(1).all():
        raise ValueError(
            f"effective: members {members.shape} for landmarks {points.shape}, expected [B, L] with one or more a row"
        )
    near = jnp.square(points - truth).sum(-1) < theta**2
    fraction = near.astype(jnp.float32) @ members.T / members.sum(1)
    return jax.lax.stop_gradient((fraction >= delta - 1e-6).astype(jnp.float32))


def discriminator_loss(real: jax.Array, fake: jax.Array, labels: jax.Array) -> jax.Array:
    """-log D(M) - log(1 - |D(G(I)) - d|), a mean over the boundaries.

    Args:
      real, fake: [N, B] logits of true and of estimated heatmaps.
      labels: [N, B], d of `effective`.

    Returns:
      [N].
    """
    return -(nn.log_sigmoid(real) + nn.log_sigmoid((2 * labels - 1) * fake)).mean(-1)


def adversarial_loss(fake: jax.Array) -> jax.Array:
    """log(1 - D(G(I))) [N], a mean over the boundaries; the estimator minimises it, with logits [N, B]."""
    return nn.log_sigmoid(-fake).mean(-1)
