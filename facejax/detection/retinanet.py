"""RetinaNet: a one-stage detector trained on all anchors, with a loss that easy ones hardly enter.

Lin, Goyal, Girshick, He, Dollár. "Focal loss for dense object detection". ICCV 2017. arXiv:1708.02002.
A ResNet with a feature pyramid (P3 to P7) and two small heads that all levels share. The focal loss
-alpha_t (1 - p_t)^gamma log(p_t) keeps the many background anchors from outweighing the few positive ones.

Layers, assignment and post-processing are those of the authors' code (`facebookresearch/Detectron`), with its
assignment's two oddities: a box's best anchor is positive only from an IoU of 0.4 on, and the divisor of the losses
counts those lost again and one more per image. Differs from it: anchors have exact sides (there, rounded at the scale
of a cell, with inclusive pixels); the divisor is of the whole batch (there, of each GPU's part); images without boxes
are allowed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.backbones.resnet import resnet50, resnet101
from facejax.detection.base import Detections, Term, Truth, suppressed
from facejax.nn.conv import Conv
from facejax.ops import boxes as box
from facejax.ops.losses import smooth_l1
from facejax.ops.matching import Matches, match_by_overlap
from facejax.ops.nms import nms
from facejax.ops.pooling import upsample_nearest

Dtype = Any
Coarse = Literal["c5", "p5"]
LEVELS = (3, 4, 5, 6, 7)
LARGEST_LOG = math.log(1000 / 16)


class FPN(nn.Module):
    """Feature pyramid of levels 3 to 7.

    Attributes:
      features: channels of every level.
      coarse: map that P6 is made from: "c5" in the paper, "p5" in torchvision's first version.
      dtype: of the computation.
    """

    features: int = 256
    coarse: Coarse = "c5"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Mapping[str, jax.Array]) -> list[jax.Array]:
        """{"c3", "c4", "c5"} [N, h, w, C] of strides 8, 16, 32 -> [P3, ..., P7], [N, h, w, features] each."""
        if self.coarse not in ("c5", "p5"):
            raise ValueError(f"FPN.coarse is {self.coarse!r}: expected 'c5' or 'p5'")

        def conv(x: jax.Array, name: str, size: int, stride: int = 1) -> jax.Array:
            init = nn.initializers.lecun_uniform()  # Caffe's "xavier"
            sizes = (self.features, size, stride, size // 2)
            return Conv(*sizes, use_bias=True, kernel_init=init, dtype=self.dtype, name=name)(x)

        inner, found = None, []
        for level in (5, 4, 3):
            x = conv(maps[f"c{level}"], f"lateral{level}", 1)
            if inner is not None:
                x = x + upsample_nearest(inner, 2)[:, : x.shape[1], : x.shape[2]]
            inner = x
            found.insert(0, conv(x, f"output{level}", 3))
        found.append(conv(maps["c5"] if self.coarse == "c5" else found[-1], "p6", 3, 2))
        return [*found, conv(nn.relu(found[-1]), "p7", 3, 2)]


class Head(nn.Module):
    """3x3 convolutions with ReLU and one without.

    Attributes:
      outputs: of each anchor.
      anchors: per cell.
      features, depth: channels and number of the hidden convolutions.
      bias: initial bias of the last convolution.
      dtype: of the computation; outputs are at least float32.
    """

    outputs: int
    anchors: int = 9
    features: int = 256
    depth: int = 4
    bias: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, C] -> [N, h * w * anchors, outputs], by row, column, anchor."""
        options = {"use_bias": True, "kernel_init": nn.initializers.normal(0.01), "dtype": self.dtype}
        for i in range(self.depth):
            x = nn.relu(Conv(self.features, 3, 1, 1, **options, name=f"conv{i}")(x))
        bias = nn.initializers.constant(self.bias)
        x = Conv(self.anchors * self.outputs, 3, 1, 1, **options, bias_init=bias, name="output")(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32)).reshape(x.shape[0], -1, self.outputs)


class Net(nn.Module):
    """Backbone, pyramid and the two heads.

    Attributes:
      backbone: called as `backbone(images, train=..., features=True)` -> {"c3", "c4", "c5"}.
      num_classes: C.
      anchors: per cell.
      features: channels of the pyramid and the heads.
      depth: hidden convolutions of each head.
      prior: score of every class at every anchor at first.
      coarse: see `FPN`.
      frozen_norm: whether batch norm uses its running averages in training too, as in the paper's runs from weights of
        ImageNet.
      dtype: of pyramid and heads.
    """

    backbone: nn.Module
    num_classes: int = 80
    anchors: int = 9
    features: int = 256
    depth: int = 4
    prior: float = 0.01
    coarse: Coarse = "c5"
    frozen_norm: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Raw predictions.

        Args:
          images: [N, H, W, 3] as the backbone expects them.
          train: whether batch statistics are used.

        Returns:
          "scores" [N, A, C] logits and "boxes" [N, A, 4], by level, row, column, anchor.
        """
        maps = self.backbone(images, train=train and not self.frozen_norm, features=True)
        levels = FPN(self.features, self.coarse, self.dtype, name="pyramid")(maps)
        shape, bias = (self.anchors, self.features, self.depth), -math.log((1 - self.prior) / self.prior)
        heads = {
            "scores": Head(self.num_classes, *shape, bias, dtype=self.dtype, name="cls"),
            "boxes": Head(4, *shape, dtype=self.dtype, name="box"),
        }
        return {name: jnp.concatenate([head(x) for x in levels], 1) for name, head in heads.items()}


def _on_resnet(
    resnet: Callable[..., nn.Module],
    num_classes: int = 80,
    coarse: Coarse = "c5",
    stride_in_1x1: bool = True,
    frozen_norm: bool = True,
    dtype: Dtype = jnp.float32,
) -> Net:
    """RetinaNet on a ResNet. torchvision's has `coarse="p5"` and `stride_in_1x1=False`."""
    trunk = resnet(stride_in_1x1=stride_in_1x1, dtype=dtype)
    return Net(trunk, num_classes, coarse=coarse, frozen_norm=frozen_norm, dtype=dtype)


retinanet_resnet50 = partial(_on_resnet, resnet50)
retinanet_resnet101 = partial(_on_resnet, resnet101)


def sigmoid_focal_loss(
    logits: jax.Array, targets: jax.Array, *, gamma: float = 2.0, alpha: float | None = 0.25
) -> jax.Array:
    """-alpha_t (1 - p_t)^gamma log(p_t) of independent classes (Eq. 5).

    Args:
      logits: [...].
      targets: [...] bool.
      gamma: 0 gives the balanced cross-entropy.
      alpha: weight of positives; negatives have 1 - alpha. None: all have 1.

    Returns:
      [...] in float32 or wider.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    wrong = jnp.where(targets, -logits, logits)  # logit of 1 - p_t
    loss = jnp.exp(-gamma * jax.nn.softplus(-wrong)) * jax.nn.softplus(wrong)
    return loss if alpha is None else jnp.where(targets, alpha, 1 - alpha) * loss


def match(
    overlaps: jax.Array, mask: jax.Array, *, positive: float = 0.5, negative: float = 0.4
) -> tuple[Matches, jax.Array]:
    """Detectron's assignment for one image: by overlap; the best anchors of a box, but only from `negative` on.

    Args:
      overlaps: [G, A] IoU of boxes and anchors.
      mask: [G] bool, real boxes.
      positive: smallest IoU of a positive anchor.
      negative: anchors below are negative, even a box's best; those between are ignored.

    Returns:
      The matches, and [] the number of anchors that were positive before the step to negatives.
    """
    found = match_by_overlap(overlaps, mask, positive=positive, negative=negative)
    best = overlaps.max(1, keepdims=True)
    first = found.positive | jnp.any((overlaps == best) & (best > 0) & mask[:, None], 0)
    return found._replace(positive=first & ~found.negative), first.sum()


@dataclasses.dataclass(frozen=True)
class RetinaNet:
    """The detector around a `Net`.

    Attributes:
      net: the network.
      scale: side of the smallest anchor of a level, in cells.
      octaves: anchors' sides per cell, scale * 2^(i / octaves).
      ratios: height / width of the anchors.
      gamma, alpha: of the focal loss; gamma 0 is the paper's baseline, cross-entropy.
      hard: examples per image of online hard example mining (OHEM), the paper's other baseline: the anchors of the
        highest loss that do not overlap. 0 trains all.
      hard_threshold: largest IoU of two of them.
      beta: of the smooth L1 of boxes.
      box_weight: weight of that loss.
      lowest: scores must be above, but at the coarsest level above 0.
      candidates: best pairs of anchor and class of each level.
      threshold: largest IoU of two detections of a class.
      count: detections per image.
      mean, deviation: of R, G and B.
      bgr: whether the network takes blue first, as the authors' does.
    """

    net: Net
    scale: float = 4.0
    octaves: int = 3
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    gamma: float = 2.0
    alpha: float | None = 0.25
    hard: int = 0
    hard_threshold: float = 0.5
    beta: float = 0.11
    box_weight: float = 1.0
    lowest: float = 0.05
    candidates: int = 1000
    threshold: float = 0.5
    count: int = 100
    mean: tuple[float, float, float] = (122.7717, 115.9465, 102.9801)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = True
    points: ClassVar[int] = 0
    clips: ClassVar[bool] = True

    @property
    def classes(self) -> int:
        """C."""
        return self.net.num_classes

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 RGB [N, H, W, 3] -> the network's input."""
        x = (images.astype(jnp.float32) - jnp.array(self.mean)) / jnp.array(self.deviation)
        return x[..., ::-1] if self.bgr else x

    def anchors(self, size: tuple[int, int]) -> list[np.ndarray]:
        """Of each level, [A, 4] in centre form: by row, column, side and ratio."""
        found = []
        for stride in (2**level for level in LEVELS):
            sides = [self.scale * stride * 2 ** (i / self.octaves) for i in range(self.octaves)]
            found.append(box.anchors(size, [stride], [box.shapes(sides, self.ratios)]))
        return found

    def losses(self, raw: dict[str, jax.Array], truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """Focal loss of all anchors that are not ignored, and smooth L1 of the boxes, over the number of positives."""
        anchors = np.concatenate(self.anchors(size))
        return jax.vmap(lambda raw, truth: self._losses(raw, truth, anchors))(raw, truth)

    def _losses(self, raw: dict[str, jax.Array], truth: Truth, anchors: np.ndarray) -> dict[str, Term]:
        """The terms of one image."""
        found, count = match(box.iou(truth.boxes[:, None], box.from_center(anchors)), truth.mask)
        targets = found.positive[:, None] & (truth.labels[found.box][:, None] == jnp.arange(self.classes))
        scores = sigmoid_focal_loss(raw["scores"], targets, gamma=self.gamma, alpha=self.alpha).sum(-1)
        trained, count = found.positive | found.negative, count + 1.0
        if self.hard:
            trained = self._hardest(scores, box.decode(raw["boxes"], anchors, (1, 1), largest_log=LARGEST_LOG), trained)
        error = raw["boxes"] - box.encode(truth.boxes[found.box], anchors, (1, 1))
        boxes = jnp.where(found.positive, smooth_l1(error, self.beta).sum(-1), 0.0).sum()
        return {
            "class": Term(jnp.where(trained, scores, 0.0).sum(), trained.sum() if self.hard else count),
            "box": Term(boxes, count, self.box_weight),
        }

    def _hardest(self, losses: jax.Array, boxes: jax.Array, where: jax.Array) -> jax.Array:
        """Mask [A] of the `hard` anchors of the highest loss whose boxes do not overlap."""
        losses, boxes = lax.stop_gradient((losses, boxes))
        options = {"threshold": self.hard_threshold, "candidates": 16 * self.hard}
        rows, kept = nms(boxes, losses, count=self.hard, mask=where, **options)
        return jnp.zeros_like(where).at[rows].max(kept)

    def decode(self, raw: dict[str, jax.Array], size: tuple[int, int]) -> Detections:
        """Detections by falling score, clipped to the image and suppressed within each class."""
        found, start = [], 0
        for level, anchors in zip(LEVELS, self.anchors(size), strict=True):
            part = slice(start, start + len(anchors))
            lowest = 0.0 if level == LEVELS[-1] else self.lowest
            found.append(self._best(raw["scores"][:, part], raw["boxes"][:, part], anchors, lowest))
            start = part.stop
        boxes, scores, labels = (jnp.concatenate(x, 1) for x in zip(*found, strict=True))
        options = {"lowest": 0.0, "threshold": self.threshold, "count": self.count}
        return suppressed(box.clip(boxes, size), scores, labels=labels, **options)

    def _best(
        self, logits: jax.Array, offsets: jax.Array, anchors: np.ndarray, lowest: float
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Boxes, scores and labels of the best pairs of anchor and class of a level; scores up to `lowest` become 0."""
        scores = jax.nn.sigmoid(logits).reshape(len(logits), -1)
        best, pairs = lax.top_k(scores, min(self.candidates, scores.shape[1]))
        rows, labels = pairs // self.classes, (pairs % self.classes).astype(jnp.int32)
        offsets = jnp.take_along_axis(offsets, rows[..., None], 1)
        boxes = box.decode(offsets, jnp.asarray(anchors)[rows], (1, 1), largest_log=LARGEST_LOG)
        return boxes, jnp.where(best > lowest, best, 0.0), labels
