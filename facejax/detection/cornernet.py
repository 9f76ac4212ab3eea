"""CornerNet: objects as pairs of corners, which heat maps locate and a learnt tag groups, without anchors.

Law, Deng. "CornerNet: detecting objects as paired keypoints". ECCV 2018, IJCV 2020. arXiv:1808.01244. Every stack of an
hourglass network predicts, for the top-left and the bottom-right corner, a heat map per class, a tag and an offset.
Corner pooling brings to a corner what lies along the two sides of its box.

Layers, targets, losses and post-processing are those of the authors' code (`princeton-vl/CornerNet`). Differs from it:
images are RGB, not BGR. Corners at the image's last pixel keep their place, which is there cut to the pixel's first
edge. Pixels that are no peak are never a corner, also where a map has fewer peaks than corners are wanted. Divisors
lack their 1e-4, except those of pull and push. Biases start at 0, not at PyTorch's random values.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from facejax.detection.base import Detections, Term, Truth, gathered
from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv
from facejax.nn.init import torch_default
from facejax.ops import boxes as box
from facejax.ops.gaussian_targets import gaussian_radius, splat
from facejax.ops.losses import smooth_l1
from facejax.ops.nms import soft_nms
from facejax.ops.pooling import max_pool

Dtype = Any
Raw = list[dict[str, dict[str, jax.Array]]]
MEAN, DEVIATION = (0.47026115, 0.44719302, 0.40789654), (0.27809835, 0.27408164, 0.28863828)
"""Of COCO's pixels in 0..1, RGB."""
CORNERS = {"top_left": True, "bottom_right": False}
"""Name -> whether corner pooling looks to the right and downwards."""
PRIOR = -2.19
"""Bias of heat maps: a probability of 0.1."""


def corner_pool(rows: jax.Array, columns: jax.Array, *, forward: bool) -> jax.Array:
    """Sum of the highest value at or beyond each pixel: of `rows` along its column, of `columns` along its row.

    Of equal highest values all share the gradient; the authors' goes to the farthest.

    Args:
      rows, columns: [N, H, W, C].
      forward: looks downwards and to the right (top-left corners), else upwards and to the left.
    """
    return lax.cummax(rows, axis=1, reverse=forward) + lax.cummax(columns, axis=2, reverse=forward)


class CornerModule(nn.Module):
    """Residual block whose first 3x3 convolution is replaced by corner pooling of two.

    Attributes:
      forward: see `corner_pool`.
      pooled: channels that are pooled.
      pooling: False only adds the two convolutions, a network of the same size without corner pooling.
      axis_name, dtype: see `Net`.
    """

    forward: bool
    pooled: int = 128
    pooling: bool = True
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, C]."""
        width = x.shape[-1]
        conv = partial(ConvNorm, kernel_init=torch_default, axis_name=self.axis_name, dtype=self.dtype)
        rows = conv(self.pooled, 3, 1, 1, name="rows")(x, train=train)
        columns = conv(self.pooled, 3, 1, 1, name="columns")(x, train=train)
        pooled = corner_pool(rows, columns, forward=self.forward) if self.pooling else rows + columns
        pooled = conv(width, 3, 1, 1, activation=None, name="merge")(pooled, train=train)
        shortcut = conv(width, 1, activation=None, name="shortcut")(x, train=train)
        return conv(width, 3, 1, 1, name="conv")(nn.relu(pooled + shortcut), train=train)


class Head(nn.Module):
    """3x3 convolution, ReLU, 1x1 convolution, both with bias.

    Attributes:
      width: channels between them.
      outputs: channels of the result, which is at least float32.
      bias: initial, of the second.
      dtype: of the first.
    """

    width: int
    outputs: int
    bias: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, outputs]."""
        conv = partial(Conv, use_bias=True, kernel_init=torch_default)
        x = nn.relu(conv(self.width, 3, 1, 1, dtype=self.dtype, name="conv")(x))
        exact = jnp.promote_types(self.dtype, jnp.float32)
        return conv(self.outputs, 1, bias_init=nn.initializers.constant(self.bias), dtype=exact, name="output")(x)


class Net(nn.Module):
    """Trunk, a corner module and three heads for each corner and stack.

    Attributes:
      trunk: images -> a feature map per stack, such as `facejax.backbones.hourglass.hourglass104`.
      classes: C.
      width: channels of the heads' first convolution.
      pooled: channels that are corner-pooled.
      pooling: whether there is corner pooling.
      axis_name: mapped axis over which batch statistics are averaged; the published run averages over none.
      dtype: of the computation.
    """

    trunk: nn.Module
    classes: int = 80
    width: int = 256
    pooled: int = 128
    pooling: bool = True
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Raw:
        """Raw predictions of every stack.

        Args:
          images: [N, H, W, 3], see `CornerNet.preprocess`; 511 x 511 in the paper.
          train: whether batch statistics are used.

        Returns:
          For each stack "top_left" and "bottom_right", each with maps of stride 4: "heat" [N, H', W', C] logits, "tag"
          [N, H', W', 1], "offset" [N, H', W', 2] (x, y) in cells.
        """
        found = []
        for stack, features in enumerate(self.trunk(images, train=train)):
            outputs = {}
            for corner, forward in CORNERS.items():
                module = CornerModule(
                    forward, self.pooled, self.pooling, self.axis_name, self.dtype, name=f"{corner}{stack}"
                )
                x = module(features, train=train)
                head = partial(Head, self.width, dtype=self.dtype)
                outputs[corner] = {
                    "heat": head(self.classes, PRIOR, name=f"{corner}_heat{stack}")(x),
                    "tag": head(1, name=f"{corner}_tag{stack}")(x),
                    "offset": head(2, name=f"{corner}_offset{stack}")(x),
                }
            found.append(outputs)
        return found


def gaussian_focal_loss(logits: jax.Array, target: jax.Array, alpha: float = 2.0, beta: float = 4.0) -> jax.Array:
    """-(1 - p)^alpha log p where the target is 1, else -(1 - y)^beta p^alpha log(1 - p) (CornerNet Eq. 1).

    p is cut to 1e-4..1 - 1e-4, beyond which there is no gradient, as in the authors' code. [...], [...] -> [...].
    """
    p = jnp.clip(jax.nn.sigmoid(logits.astype(jnp.float32)), 1e-4, 1 - 1e-4)
    negative = (1 - target) ** beta * p**alpha * jnp.log1p(-p)
    return -jnp.where(target == 1, (1 - p) ** alpha * jnp.log(p), negative)


def pull_push(first: jax.Array, second: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Grouping of the two corners of each object, and separation of the objects (CornerNet Eqs. 4 and 5).

    As in the authors' code, the sum of push is over all pairs, an object with itself included, less 1 / (N + 1e-4)
    for each: a constant of 1e-4 N / (N + 1e-4) more than the paper's sum, which makes push 0.9999 with a single object.

    Args:
      first, second: [..., G] tags of the corners.
      mask: [..., G] bool, N real objects.

    Returns:
      pull [...], push [...].
    """
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    count, mean = mask.sum(-1).astype(jnp.float32), (first + second) / 2
    apart = jnp.where(mask, (first - mean) ** 2 + (second - mean) ** 2, 0.0)
    distance = jnp.abs(mean[..., :, None] - mean[..., None, :])
    pairs = mask[..., :, None] & mask[..., None, :] & ~jnp.eye(mask.shape[-1], dtype=bool)
    near = jnp.where(pairs, nn.relu(1 - distance), 0.0).sum((-2, -1)) + 1e-4 * count / (count + 1e-4)
    return apart.sum(-1) / (count + 1e-4), near / (count * (count - 1) + 1e-4)


def read_at(maps: jax.Array, places: jax.Array) -> jax.Array:
    """Values [N, G, C] of maps [N, H, W, C] at `places` [N, G, 2] int (column, row)."""
    n, height, width, channels = maps.shape
    rows = places[..., 1] * width + places[..., 0]
    return jnp.take_along_axis(maps.reshape(n, height * width, channels), rows[..., None], 1)


class Peaks(NamedTuple):
    """The K highest local maxima of heat maps.

    Attributes:
      places: [N, K, 2] int32 (column, row).
      scores: [N, K] in 0..1.
      labels: [N, K] int32.
      mask: [N, K] bool, real ones.
    """

    places: jax.Array
    scores: jax.Array
    labels: jax.Array
    mask: jax.Array


def peaks(heat: jax.Array, count: int, *, window: int = 3) -> Peaks:
    """The highest pixels of all classes that no pixel of the window around them exceeds.

    Args:
      heat: [N, H, W, C] in 0..1.
      count: K.
      window: odd side of the window; 1 takes every pixel.
    """
    n, _, width, classes = heat.shape
    reach = window // 2
    top = max_pool(heat, (window, window), (1, 1), ((reach, reach), (reach, reach)))
    flat = jnp.where(top == heat, heat, -1.0).reshape(n, -1)
    scores, rows = lax.top_k(flat, min(count, flat.shape[1]))
    padding = ((0, 0), (0, count - scores.shape[1]))
    scores, rows = jnp.pad(scores, padding, constant_values=-1.0), jnp.pad(rows, padding)
    cell, label = rows // classes, rows % classes
    return Peaks(jnp.stack([cell % width, cell // width], -1), jnp.maximum(scores, 0), label, scores >= 0)


@dataclasses.dataclass(frozen=True)
class CornerNet:
    """The detector around a `Net`.

    Attributes:
      net: the network.
      overlap: IoU from which the radius of the targets follows.
      pull, push: weights of the two losses of tags.
      together: images over which the authors' run sums pull and push, those of one device (49 images on ten); other
        terms are divided by the number of corners or objects. Pull and push here are this many times their mean.
      corners: peaks of each kind that are paired.
      window: side of the window of a peak.
      distance: largest difference of tags in a pair.
      pairs: best pairs that enter suppression.
      sigma: of soft suppression by exp(-IoU^2 / sigma), which is within a class and counts inclusive pixels.
      count: detections per image.
    """

    net: Net
    overlap: float = 0.3
    pull: float = 0.1
    push: float = 0.1
    together: float = 4.9
    corners: int = 100
    window: int = 3
    distance: float = 0.5
    pairs: int = 1000
    sigma: float = 0.5
    count: int = 100
    points: ClassVar[int] = 0
    clips: ClassVar[bool] = True

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.net.classes

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 RGB [N, H, W, 3] -> COCO's mean 0 and deviation 1 per channel."""
        return (images.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(DEVIATION)

    def losses(self, raw: Raw, truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """Focal loss of both heat maps, smooth L1 of the offsets, pull and push of the tags; means over the stacks."""
        shape = raw[0]["top_left"]["heat"].shape[1:3]
        boxes = truth.boxes * _ratio(shape, size)
        height, width = boxes[..., 3] - boxes[..., 1], boxes[..., 2] - boxes[..., 0]
        mask = truth.mask & (height > 0) & (width > 0)
        radii = gaussian_radius(jnp.ceil(height), jnp.ceil(width), self.overlap).astype(jnp.int32)
        draw = jax.vmap(partial(splat, size=shape, classes=self.classes))
        terms, offsets, tags = {}, 0.0, []
        last = jnp.array([shape[1] - 1, shape[0] - 1])
        for corner, place in (("top_left", boxes[..., :2]), ("bottom_right", boxes[..., 2:])):
            cell = jnp.clip(jnp.floor(place), 0, last).astype(jnp.int32)
            target = draw(cell, radii, truth.labels, mask)
            total = sum(gaussian_focal_loss(stack[corner]["heat"], target) for stack in raw) / len(raw)
            terms[corner] = Term(total.sum((1, 2, 3)), (target == 1).sum((1, 2, 3)).astype(jnp.float32))
            for stack in raw:
                error = smooth_l1(read_at(stack[corner]["offset"], cell) - (place - cell))
                offsets += jnp.where(mask[..., None], error, 0.0).sum((1, 2)) / len(raw)
            tags.append([read_at(stack[corner]["tag"], cell)[..., 0] for stack in raw])
        terms["offset"] = Term(offsets, mask.sum(1).astype(jnp.float32))
        found = zip(*(pull_push(*pair, mask) for pair in zip(*tags, strict=True)), strict=True)
        pull, push = (sum(values) / len(raw) for values in found)
        images = jnp.ones(len(mask))
        terms["pull"] = Term(pull, images, self.pull * self.together)
        terms["push"] = Term(push, images, self.push * self.together)
        return terms

    def decode(self, raw: Raw, size: tuple[int, int], mirrored: Raw | None = None) -> Detections:
        """Detections by falling score.

        Args:
          raw: predictions; the last stack's are used.
          size: (height, width) of the images.
          mirrored: predictions of the mirrored images, whose boxes join those of the images (the flip test, which the
            authors always do).
        """
        boxes, scores, labels, mask = self._paired(raw[-1], size)
        if mirrored is not None:
            others, *rest = self._paired(mirrored[-1], size)
            left, top, right, bottom = jnp.moveaxis(others, -1, 0)
            boxes = jnp.concatenate([boxes, jnp.stack([size[1] - right, top, size[1] - left, bottom], -1)], 1)
            scores, labels, mask = (jnp.concatenate(pair, 1) for pair in zip((scores, labels, mask), rest, strict=True))
        return jax.vmap(self._suppressed)(box.clip(boxes, size), scores, labels, mask)

    def _paired(self, raw: dict[str, Any], size: tuple[int, int]) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The best pairs: boxes [N, P, 4] in pixels, scores [N, P], labels [N, P], mask [N, P]."""
        found, places, tags = [], [], []
        for maps in (raw["top_left"], raw["bottom_right"]):
            peak = peaks(jax.nn.sigmoid(maps["heat"].astype(jnp.float32)), self.corners, window=self.window)
            found.append(peak)
            places.append(peak.places + read_at(maps["offset"], peak.places))
            tags.append(read_at(maps["tag"], peak.places)[..., 0])
        (first, second), (start, end) = found, (places[0][:, :, None], places[1][:, None])
        valid = (
            (first.mask[:, :, None] & second.mask[:, None])
            & (first.labels[:, :, None] == second.labels[:, None])
            & (jnp.abs(tags[0][:, :, None] - tags[1][:, None]) <= self.distance)
            & (end >= start).all(-1)
        )
        scores = jnp.where(valid, (first.scores[:, :, None] + second.scores[:, None]) / 2, -1.0)
        scores, rows = lax.top_k(scores.reshape(len(scores), -1), min(self.pairs, self.corners**2))
        row, column = rows // self.corners, rows % self.corners
        ends = [jnp.take_along_axis(p, i[..., None], 1) for p, i in zip(places, (row, column), strict=True)]
        boxes = jnp.concatenate(ends, -1) / _ratio(raw["top_left"]["heat"].shape[1:3], size)
        return boxes, jnp.maximum(scores, 0), jnp.take_along_axis(first.labels, row, 1), scores >= 0

    def _suppressed(self, boxes: jax.Array, scores: jax.Array, labels: jax.Array, mask: jax.Array) -> Detections:
        """Soft suppression within each class, then the best of all classes, of one image."""
        soft = partial(soft_nms, boxes, scores, count=self.count, method="gaussian", sigma=self.sigma, plus_one=True)
        rows, lowered, kept = jax.vmap(lambda c: soft(mask=mask & (labels == c)))(jnp.arange(self.classes))
        best, order = lax.top_k(jnp.where(kept, lowered, -1.0).reshape(-1), self.count)
        rows = rows.reshape(-1)[order]
        found = gathered(rows, best >= 0, boxes, scores, jnp.zeros((len(boxes), 0, 2)), labels)
        return found.replace(scores=jnp.maximum(best, 0))


def _ratio(shape: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """Cells per pixel for the coordinates of boxes."""
    across, down = shape[1] / size[1], shape[0] / size[0]
    return jnp.array([across, down, across, down])
