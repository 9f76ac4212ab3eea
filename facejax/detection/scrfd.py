"""SCRFD: a one-stage face detector whose samples and computation are distributed over its strides for small faces.

Guo, Deng, Lattas, Zafeiriou. "Sample and computation redistribution for efficient face detection". ICLR 2022.
arXiv:2105.04714. A trunk, a path-aggregation neck and a head at strides 8, 16 and 32; anchors are assigned by ATSS, and
the score learns the IoU of its box. Widths and depths come from a search under a budget of multiply-adds.

Layers, assignment and losses are those of the authors' code (`deepinsight/insightface`, `detection/scrfd`). Differs
from it: divisors of the losses are clamped, so that images without faces have a finite loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.detection.base import Detections, Term, Truth, suppressed
from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv
from facejax.nn.norm import GroupNorm
from facejax.ops import boxes as box
from facejax.ops import conv as ops
from facejax.ops.losses import smooth_l1
from facejax.ops.matching import Matches
from facejax.ops.pooling import avg_pool, ceil_padding, max_pool, upsample_nearest

Dtype = Any


class MobileTrunk(nn.Module):
    """MobileNet V1 blocks in four stages.

    Attributes:
      stem: widths of the first convolution and of the first block.
      widths, depths: channels and blocks of stages 2 to 5; the first block of each has stride 2.
      axis_name: mapped axis over which batch statistics are averaged.
      dtype: of the computation.
    """

    stem: tuple[int, int] = (16, 16)
    widths: tuple[int, ...] = (40, 72, 152, 288)
    depths: tuple[int, ...] = (2, 3, 2, 6)
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """[N, H, W, 3] -> features at strides 8, 16, 32."""
        options = {"axis_name": self.axis_name, "dtype": self.dtype}
        x = ConvNorm(self.stem[0], 3, 2, 1, **options, name="stem")(x, train=train)
        x = Separable(self.stem[1], partial(ConvNorm, **options), name="first")(x, train=train)
        found = []
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True), 2):
            for i in range(depth):
                block = Separable(width, partial(ConvNorm, **options), 1 if i else 2, name=f"stage{stage}_{i}")
                x = block(x, train=train)
            found.append(x)
        return found[1:]


class Separable(nn.Module):
    """Depthwise 3x3 and 1x1 convolution, each with norm and ReLU.

    Attributes:
      features: output channels.
      conv: constructor of a convolution with norm and ReLU.
      stride: of the depthwise convolution.
    """

    features: int
    conv: Any
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, features]."""
        channels = x.shape[-1]
        x = self.conv(channels, 3, self.stride, 1, groups=channels, name="depthwise")(x, train=train)
        return self.conv(self.features, 1, name="pointwise")(x, train=train)


class ResidualTrunk(nn.Module):
    """ResNet with a stem of three convolutions, 2x2 pooling, and average pooling in the shortcuts (ResNetV1e).

    Attributes:
      stem: width of the stem's last convolution; the others have half of it.
      widths, depths: inner channels and blocks of stages 2 to 5.
      bottleneck: whether blocks are bottlenecks with four times the width as output.
      pool: whether the stem ends with pooling; without it all strides are half as large, for small images.
      axis_name, dtype: see `MobileTrunk`.
    """

    stem: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    bottleneck: bool = False
    pool: bool = True
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """[N, H, W, 3] -> features at strides 8, 16, 32."""
        conv = partial(ConvNorm, axis_name=self.axis_name, dtype=self.dtype)
        for i, (width, stride) in enumerate(((self.stem // 2, 2), (self.stem // 2, 1), (self.stem, 1)), 1):
            x = conv(width, 3, stride, 1, name=f"stem{i}")(x, train=train)
        x = max_pool(x, (2, 2), (2, 2), ceil_padding(x.shape[1:3], (2, 2), (2, 2))) if self.pool else x
        found = []
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True), 2):
            for i in range(depth):
                stride = 2 if stage > 2 and i == 0 else 1
                x = Residual(width, stride, self.bottleneck, conv, name=f"stage{stage}_{i}")(x, train=train)
            found.append(x)
        return found[1:]


class Residual(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the width; a pooled 1x1 shortcut where shapes change.

    Attributes:
      features: inner channels.
      stride: of the first 3x3 convolution.
      bottleneck: see `ResidualTrunk`.
      conv: constructor of a convolution with norm and activation.
    """

    features: int
    stride: int
    bottleneck: bool
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, features, or 4 features]."""
        shortcut, outputs = x, self.features * (4 if self.bottleneck else 1)
        if self.stride > 1 or x.shape[-1] != outputs:
            window = (self.stride, self.stride)
            padding = ceil_padding(x.shape[1:3], window, window)
            shortcut = avg_pool(x, window, window, padding, count_padding=False)
            shortcut = self.conv(outputs, 1, activation=None, name="shortcut")(shortcut, train=train)
        if self.bottleneck:
            x = self.conv(self.features, 1, name="conv1")(x, train=train)
            x = self.conv(self.features, 3, self.stride, 1, name="conv2")(x, train=train)
            x = self.conv(outputs, 1, activation=None, name="conv3")(x, train=train)
        else:
            x = self.conv(self.features, 3, self.stride, 1, name="conv1")(x, train=train)
            x = self.conv(outputs, 3, 1, 1, activation=None, name="conv2")(x, train=train)
        return nn.relu(x + shortcut)


class Neck(nn.Module):
    """Path-aggregation pyramid of plain convolutions (PAFPN): top-down, then bottom-up.

    Attributes:
      features: channels of all levels.
      dtype: of the computation.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> list[jax.Array]:
        """Features at falling resolution -> as many of `features` channels."""
        conv = partial(
            Conv, self.features, use_bias=True, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype
        )
        levels = [conv(1, name=f"lateral{i}")(x) for i, x in enumerate(levels)]
        for i in range(len(levels) - 1, 0, -1):
            height, width = levels[i - 1].shape[1:3]
            levels[i - 1] += upsample_nearest(levels[i], 2)[:, :height, :width]
        levels = [conv(3, padding=1, name=f"fpn{i}")(x) for i, x in enumerate(levels)]
        for i in range(len(levels) - 1):
            levels[i + 1] += conv(3, 2, 1, name=f"down{i}")(levels[i])
        return [levels[0], *(conv(3, padding=1, name=f"pafpn{i}")(x) for i, x in enumerate(levels[1:]))]


class GroupConv(nn.Module):
    """Convolution without bias, group norm, ReLU; the arguments are those of `ConvNorm`."""

    norm_groups: int
    features: int
    kernel_size: int
    strides: int = 1
    padding: int = 0
    groups: int = 1
    kernel_init: Any = nn.initializers.normal(0.01)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H', W', features]."""
        del train
        sizes = (self.features, self.kernel_size, self.strides, self.padding)
        x = Conv(*sizes, groups=self.groups, kernel_init=self.kernel_init, dtype=self.dtype, name="conv")(x)
        return nn.relu(GroupNorm(self.norm_groups, dtype=self.dtype, name="norm")(x))


class Head(nn.Module):
    """Convolutions that score and boxes share, and one output convolution for each.

    Attributes:
      features, depth: channels and number of the shared convolutions.
      separable: whether they are depthwise separable.
      conv: constructor of a convolution with norm and ReLU.
      points: landmarks per anchor; 0 has no such output.
      anchors: per cell.
      dtype: of the computation; outputs are float32.
    """

    features: int
    depth: int
    separable: bool
    conv: Any
    points: int
    anchors: int = 2
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[N, H, W, C] -> logits [N, A], distances [N, A, 4], points [N, A, P, 2]; rows, columns, anchors in order."""
        for i in range(self.depth):
            if self.separable:
                x = Separable(self.features, self.conv, name=f"tower{i}")(x, train=train)
            else:
                x = self.conv(self.features, 3, 1, 1, name=f"tower{i}")(x, train=train)

        sizes = {"cls": 1, "reg": 4, "kps": 2 * self.points}
        layers = [
            Output(each * self.anchors, -math.log(99) if name == "cls" else 0.0, name=name)(x.shape[-1])
            for name, each in sizes.items()
            if each
        ]
        kernel, bias = (jnp.concatenate(parts, -1).astype(self.dtype) for parts in zip(*layers, strict=True))
        x = ops.conv(x.astype(self.dtype), kernel, padding=((1, 1), (1, 1))) + bias
        x, count = x.astype(jnp.float32), math.prod(x.shape[1:3]) * self.anchors
        parts = jnp.split(x, np.cumsum([each * self.anchors for each in sizes.values()])[:-1], -1)
        shapes = (count,), (count, 4), (count, self.points, 2)
        return tuple(part.reshape(x.shape[0], *shape) for part, shape in zip(parts, shapes, strict=True))


class Output(nn.Module):
    """Kernel and bias of a 3x3 output convolution; `Head` computes all of its outputs in one convolution.

    Attributes:
      features: output channels.
      bias: initial value.
    """

    features: int
    bias: float

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Input channels C -> [3, 3, C, features] and [features]."""
        kernel = self.param("kernel", nn.initializers.normal(0.01), (3, 3, channels, self.features))
        return kernel, self.param("bias", nn.initializers.constant(self.bias), (self.features,))


class Net(nn.Module):
    """Trunk, neck and heads.

    Attributes:
      trunk: constructor of a module, images -> features at strides 8, 16, 32; called with axis_name, dtype and name.
      neck: channels of the neck.
      head: channels of the head's convolutions.
      head_depth: number of them.
      separable: whether they are depthwise separable.
      norm_groups: of the head's group norms; 0: batch norm, as in the models with landmarks.
      shared: one head for all strides, with a learnt factor of the distances per stride; else a head per stride.
      points: landmarks per face, 5 or 0.
      axis_name: mapped axis over which batch statistics are averaged.
      dtype: of the computation.
    """

    trunk: Callable[..., nn.Module]
    neck: int
    head: int
    head_depth: int = 2
    separable: bool = False
    norm_groups: int = 16
    shared: bool = True
    points: int = 0
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Raw predictions.

        Args:
          images: [N, H, W, 3] RGB, (x - 127.5) / 128.
          train: whether batch statistics are used.

        Returns:
          "scores" [N, A] logits, "boxes" [N, A, 4] distances and "points" [N, A, P, 2] offsets, in strides.
        """
        if self.norm_groups:
            conv = partial(GroupConv, self.norm_groups, dtype=self.dtype)
        else:
            init = nn.initializers.normal(0.01)
            conv = partial(ConvNorm, kernel_init=init, axis_name=self.axis_name, dtype=self.dtype)
        trunk = self.trunk(axis_name=self.axis_name, dtype=self.dtype, name="trunk")
        levels = Neck(self.neck, self.dtype, name="pyramid")(trunk(images, train=train))
        make = partial(Head, self.head, self.head_depth, self.separable, conv, self.points, dtype=self.dtype)
        one = make(name="outputs") if self.shared else None
        found = []
        for i, level in enumerate(levels):
            scores, boxes, points = (one or make(name=f"outputs{i}"))(level, train=train)
            if self.shared:
                boxes = boxes * self.param(f"scale{i}", nn.initializers.ones, ())
            found.append((scores, boxes, points))
        return {name: jnp.concatenate(x, 1) for name, x in zip(("scores", "boxes", "points"), zip(*found), strict=True)}


_MOBILE_1G = partial(MobileTrunk, (32, 48), (48, 160, 216, 312), (3, 2, 1, 5))
scrfd_500m = partial(Net, MobileTrunk, 16, 64, separable=True)
scrfd_1g = partial(Net, _MOBILE_1G, 24, 96, separable=True, norm_groups=8)
scrfd_2_5g = partial(Net, partial(ResidualTrunk, 24, (24, 48, 48, 80), (3, 5, 3, 2)), 24, 64)
scrfd_10g = partial(Net, partial(ResidualTrunk, 56, (56, 88, 88, 224), (3, 4, 2, 3)), 56, 80, 3)
scrfd_34g = partial(Net, partial(ResidualTrunk, 56, (56, 56, 144, 184), (17, 16, 2, 8), True), 128, 256, norm_groups=32)

KEYPOINTS = {"norm_groups": 0, "shared": False, "points": 5}
"""Options of the published models with landmarks: batch norm in the heads, one head per stride."""


def quality_focal_loss(logits: jax.Array, quality: jax.Array, beta: float = 2.0) -> jax.Array:
    """|q - sigmoid(x)|^beta times the cross-entropy of x with the soft target q in 0..1. [...] and [...] -> [...]."""
    logits = logits.astype(jnp.float32)
    entropy = jax.nn.softplus(logits) - logits * quality
    return jnp.abs(quality - jax.nn.sigmoid(logits)) ** beta * entropy


def atss(
    boxes: jax.Array, mask: jax.Array, anchors: np.ndarray, levels: Sequence[int], *, top: int = 9, inside: float = 1e-3
) -> Matches:
    """Adaptive training sample selection (Zhang et al., arXiv:1912.02424) for one image.

    The anchors nearest to a box, `top` of each level, are its candidates; those are positive whose IoU is at least the
    mean plus the standard deviation over all candidates, and whose centre lies inside the box.

    Args:
      boxes: [G, 4] corners.
      mask: [G] bool, real boxes.
      anchors: [A, 4] centre form, level by level.
      levels: anchors of each level, A in sum.
      top: candidates of each level.
      inside: smallest distance of the centre from the sides, relative to the root of the box's area.
    """
    overlaps = box.iou(boxes[:, None], box.from_center(anchors))
    centres = jnp.asarray(anchors[:, :2])
    distance = jnp.sum((box.to_center(boxes)[:, None, :2] - centres) ** 2, -1)
    chosen, start = [], 0
    for count in levels:
        nearest = jax.lax.top_k(-distance[:, start : start + count], min(top, count))[1]
        chosen.append(nearest + start)
        start += count
    candidates = jnp.concatenate(chosen, 1)
    found = jnp.take_along_axis(overlaps, candidates, 1)
    enough = found >= (found.mean(1) + found.std(1, ddof=1))[:, None]
    reach = box.encode_distances(boxes[:, None], centres, 1.0).min(-1)
    within = reach > inside * jnp.sqrt(box.area(boxes))[:, None]
    good = enough & jnp.take_along_axis(within, candidates, 1) & mask[:, None]
    value = (
        jnp.full(overlaps.shape, -1.0).at[jnp.arange(len(boxes))[:, None], candidates].set(jnp.where(good, found, -1.0))
    )
    positive = value.max(0) >= 0
    return Matches(value.argmax(0).astype(jnp.int32), positive, ~positive)


@dataclasses.dataclass(frozen=True)
class SCRFD:
    """The detector around a `Net`.

    Attributes:
      net: the network.
      strides: pixels a cell of each level.
      sizes: sides of the anchors of each level, pixels.
      top: candidates per level in `atss`.
      box_weight, point_weight: weights of the losses of boxes and landmarks.
      lowest: scores must be above; 0.02 for evaluation, 0.5 in the authors' demonstration.
      threshold: largest IoU of two detections.
      candidates: boxes of the highest scores that enter suppression.
      count: detections per image.
      plus_one: whether suppression counts sides in inclusive pixels, as the authors' script does.
    """

    net: Net
    strides: tuple[int, ...] = (8, 16, 32)
    sizes: tuple[tuple[float, ...], ...] = ((16, 32), (64, 128), (256, 512))
    top: int = 9
    box_weight: float = 2.0
    point_weight: float = 0.1
    lowest: float = 0.02
    threshold: float = 0.45
    candidates: int = 5000
    count: int = 750
    plus_one: bool = False
    classes: ClassVar[int] = 1

    @property
    def points(self) -> int:
        """Landmarks per face."""
        return self.net.points

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 RGB [N, H, W, 3] -> (x - 127.5) / 128."""
        return (images.astype(jnp.float32) - 127.5) / 128

    def anchors(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Anchors [A, 4] in centre form with centres at the corners of cells, strides [A], and anchors per level."""
        found = box.anchors(size, self.strides, [box.shapes(sides) for sides in self.sizes], offset=0.0)
        levels = [
            math.prod(-(-n // stride) for n in size) * len(sides)
            for stride, sides in zip(self.strides, self.sizes, strict=True)
        ]
        return found, np.repeat(np.float32(self.strides), levels), levels

    def losses(self, raw: dict[str, jax.Array], truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """Quality focal loss of the scores, DIoU of the boxes, smooth L1 of the landmarks."""
        anchors, strides, levels = self.anchors(size)
        return jax.vmap(lambda raw, truth: self._losses(raw, truth, anchors, strides, levels))(raw, truth)

    def _losses(
        self, raw: dict[str, jax.Array], truth: Truth, anchors: np.ndarray, strides: np.ndarray, levels: Sequence[int]
    ) -> dict[str, Term]:
        """The terms of one image."""
        match = atss(truth.boxes, truth.mask, anchors, levels, top=self.top)
        centres, target = anchors[:, :2], truth.boxes[match.box]
        boxes = box.decode_distances(raw["boxes"], centres, strides[:, None])
        quality = jnp.where(match.positive, jax.lax.stop_gradient(box.iou(boxes, target)), 0.0)
        score = jax.lax.stop_gradient(jax.nn.sigmoid(raw["scores"]))
        weight = jnp.where(match.positive, score, 0.0)
        safe = jnp.where(match.positive[:, None], target, box.from_center(anchors))
        distance = 1 - box.diou(boxes / strides[:, None], safe / strides[:, None])
        terms = {
            "score": Term(quality_focal_loss(raw["scores"], quality).sum(), jnp.maximum(match.positive.sum(), 1.0)),
            "box": Term((weight * distance).sum(), weight.sum(), self.box_weight, 1e-6),
        }
        if self.points:
            offsets = (truth.points[match.box] - centres[:, None]) / strides[:, None, None]
            seen = truth.visible[match.box] & match.positive[:, None]
            error = smooth_l1(raw["points"] - jnp.where(seen[..., None], offsets, 0.0), 1 / 9)
            total = jnp.sum(weight[:, None, None] * seen[..., None] * error)
            terms["points"] = Term(total, weight.sum(), self.point_weight, 1e-6)
        return terms

    def decode(self, raw: dict[str, jax.Array], size: tuple[int, int]) -> Detections:
        """Detections by falling score."""
        anchors, strides, _ = self.anchors(size)
        centres = anchors[:, :2]
        boxes = box.decode_distances(raw["boxes"], centres, strides[:, None])
        points = centres[:, None] + raw["points"] * strides[:, None, None]
        return suppressed(
            boxes,
            jax.nn.sigmoid(raw["scores"]),
            points,
            lowest=self.lowest,
            threshold=self.threshold,
            count=self.count,
            candidates=self.candidates,
            plus_one=self.plus_one,
        )
