"""SSD: default boxes on feature maps of several scales, classified and regressed in one pass.

Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg. "SSD: single shot multibox detector". ECCV 2016. arXiv:1512.02325.
A VGG-16 with atrous fc6, extra layers of falling resolution, and a 3x3 convolution per source map that predicts classes
and offsets of its default boxes (priors). Priors are matched to boxes one by one (bipartite), then by overlap; three
times as many negatives as positives are trained, those of the highest loss.

Layers, priors, matching, loss and post-processing are those of the authors' Caffe code (`weiliu89/caffe`, branch ssd),
which cuts the priors' sides to whole pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from facejax.detection.base import Detections, Term, Truth, gathered
from facejax.nn.conv import Conv
from facejax.nn.init import kaiming_normal_fan_out
from facejax.nn.norm import BatchNorm
from facejax.ops import boxes as box
from facejax.ops.losses import smooth_l1
from facejax.ops.matching import Matches, hardest, match_by_overlap
from facejax.ops.nms import nms
from facejax.ops.pooling import ceil_padding, max_pool

Dtype = Any
LEAST = 1e-6  # overlaps up to this do not count in bipartite matching


class L2Norm(nn.Module):
    """Features of length 1 over the channels, times a learnt scale per channel (ParseNet, arXiv:1506.04579).

    Attributes:
      scale: initial scale.
      dtype: of the output; the norm is at least float32.
    """

    scale: float = 20.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> the same shape."""
        scale = self.param("scale", nn.initializers.constant(self.scale), (x.shape[-1],))
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        return (x * lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-10) * scale).astype(self.dtype)


def _layer(x: jax.Array, name: str, *sizes: int, norm: bool, train: bool, **options: Any) -> jax.Array:
    """Convolution, batch norm if `norm`, ReLU; in the module that calls it."""
    x = Conv(*sizes, use_bias=not norm, **options, name=name)(x)
    if norm:
        x = BatchNorm(dtype=options["dtype"], name=f"{name}_bn")(x, train=train)
    return nn.relu(x)


class ReducedVGG(nn.Module):
    """VGG-16 with convolutions for fc6 and fc7, subsampled to 1024 channels (DeepLab, arXiv:1412.7062).

    pool3 counts the pixels at the far edge (ceil mode), pool5 is 3x3 with stride 1, fc6 has dilation 6.

    Attributes:
      depths, widths: convolutions and channels of the five stages.
      hidden: channels of fc6 and fc7.
      norm: whether batch norm follows every convolution, for training without weights of ImageNet.
      dtype: of the computation.
    """

    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: int = 1024
    norm: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """[N, H, W, 3] -> {"relu1_1", ..., "pool5", "relu6", "relu7"}; relu7 has stride 16."""
        found = {}

        def layer(x: jax.Array, name: str, *sizes: int, dilation: int = 1) -> jax.Array:
            options = {"dilation": dilation, "kernel_init": kaiming_normal_fan_out, "dtype": self.dtype}
            return _layer(x, name, *sizes, norm=self.norm, train=train, **options)

        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for i in range(1, depth + 1):
                x = found[f"relu{stage}_{i}"] = layer(x, f"conv{stage}_{i}", width, 3, 1, 1)
            if stage == 5:
                x = max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)))
            elif stage == 3:
                x = max_pool(x, (2, 2), (2, 2), ceil_padding(x.shape[1:3], (2, 2), (2, 2)))
            else:
                x = max_pool(x, (2, 2), (2, 2))
            found[f"pool{stage}"] = x
        x = found["relu6"] = layer(x, "fc6", self.hidden, 3, 1, 6, dilation=6)
        found["relu7"] = layer(x, "fc7", self.hidden, 1)
        return found


class Net(nn.Module):
    """Trunk, extra layers and a head per source map.

    Attributes:
      num_classes: C, without the background.
      trunk: a `ReducedVGG`.
      extras: (channels of the 1x1, channels, kernel, stride, padding of the second convolution) of conv6, conv7, ...
      sources: names of the maps with a head: of the trunk, or "conv6_2", "conv7_2", ...
      normalised: sources that pass through `L2Norm`; the trunk goes on without.
      priors: per cell of each source.
      norm: whether batch norm follows every extra convolution.
      dtype: of the computation; outputs are at least float32.
    """

    num_classes: int
    trunk: nn.Module
    extras: tuple[tuple[int, int, int, int, int], ...]
    sources: tuple[str, ...]
    priors: tuple[int, ...]
    normalised: tuple[str, ...] = ("relu4_3",)
    norm: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, list[jax.Array]]:
        """Raw predictions of each source.

        Args:
          images: [N, H, W, 3] BGR less its mean.
          train: whether batch statistics are used; without effect in the published networks.

        Returns:
          "scores": of each source [N, h, w, priors, 1 + C] logits, the background first; "boxes": [N, h, w, priors, 4].
        """
        options = {"kernel_init": nn.initializers.lecun_uniform(), "dtype": self.dtype}  # Caffe's "xavier"
        found = dict(self.trunk(images, train=train))
        x = found["relu7"]
        for i, (inner, *sizes) in enumerate(self.extras, 6):
            x = _layer(x, f"conv{i}_1", inner, 1, norm=self.norm, train=train, **options)
            x = found[f"conv{i}_2"] = _layer(x, f"conv{i}_2", *sizes, norm=self.norm, train=train, **options)
        scores, boxes, exact = [], [], jnp.promote_types(self.dtype, jnp.float32)
        for name, priors in zip(self.sources, self.priors, strict=True):
            x = found[name]
            if name in self.normalised:
                x = L2Norm(dtype=self.dtype, name=f"{name}_norm")(x)
            for outputs, each, kind in ((scores, 1 + self.num_classes, "conf"), (boxes, 4, "loc")):
                y = Conv(priors * each, 3, 1, 1, use_bias=True, **options, name=f"{name}_{kind}")(x)
                outputs.append(y.astype(exact).reshape(*y.shape[:3], priors, each))
        return {"scores": scores, "boxes": boxes}


EXTRAS300 = ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 1, 0), (128, 256, 3, 1, 0))
EXTRAS512 = ((256, 512, 3, 2, 1), *((128, 256, 3, 2, 1),) * 3, (128, 256, 4, 1, 1))
SOURCES = ("relu4_3", "relu7", "conv6_2", "conv7_2", "conv8_2", "conv9_2", "conv10_2")


def ssd300(num_classes: int = 20, dtype: Dtype = jnp.float32) -> Net:
    """For 300 x 300 pixels: 8,732 priors."""
    return Net(num_classes, ReducedVGG(dtype=dtype), EXTRAS300, SOURCES[:6], (4, 6, 6, 6, 4, 4), dtype=dtype)


def ssd512(num_classes: int = 20, dtype: Dtype = jnp.float32) -> Net:
    """For 512 x 512 pixels: 24,564 priors."""
    return Net(num_classes, ReducedVGG(dtype=dtype), EXTRAS512, SOURCES, (4, 6, 6, 6, 6, 4, 4), dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Source:
    """Priors of one source map.

    Attributes:
      step: pixels a cell.
      sizes: (min, max) in pixels; each gives squares of side min and sqrt(min * max).
      ratios: width / height of further boxes of area min^2, each with its inverse.
    """

    step: int
    sizes: tuple[tuple[float, float], ...]
    ratios: tuple[float, ...] = (2.0,)

    def shapes(self) -> np.ndarray:
        """[len(sizes) * (2 + 2 * len(ratios)), 2] (width, height)."""
        found = []
        for low, high in self.sizes:
            found += [(low, low), (np.sqrt(low * high),) * 2]
            for ratio in self.ratios:
                wide = np.array([low * np.sqrt(ratio), low / np.sqrt(ratio)])
                found += [wide, wide[::-1]]
        return np.array(found)

    def priors(self, shape: tuple[int, int]) -> np.ndarray:
        """Centre form [h * w * n, 4] for a map of `shape` (h, w)."""
        return box.anchors(tuple(n * self.step for n in shape), [self.step], [self.shapes()])


def _sources(steps: Sequence[int], sides: Sequence[int]) -> tuple[Source, ...]:
    """Each map's max is the next one's min; the first map and the last two have no boxes of ratio 3."""
    plain = (0, len(steps) - 2, len(steps) - 1)
    pairs = zip(steps, sides[:-1], sides[1:], strict=True)
    return tuple(
        Source(step, ((low, high),), (2.0,) if i in plain else (2.0, 3.0)) for i, (step, low, high) in enumerate(pairs)
    )


STEPS300, STEPS512 = (8, 16, 32, 64, 100, 300), (8, 16, 32, 64, 128, 256, 512)
VOC300 = _sources(STEPS300, (30, 60, 111, 162, 213, 264, 315))
COCO300 = _sources(STEPS300, (21, 45, 99, 153, 207, 261, 315))
VOC512 = _sources(STEPS512, (35, 76, 153, 230, 307, 384, 460, 537))
COCO512 = _sources(STEPS512, (20, 51, 133, 215, 296, 378, 460, 542))


def match_bipartite(overlaps: jax.Array, mask: jax.Array, *, positive: float = 0.5) -> Matches:
    """SSD's matching: the pair of highest overlap again and again, one prior per box; then all priors by overlap.

    Of equal overlaps the lower prior is first, then the lower box. A box that overlaps no prior has none.

    Args:
      overlaps: [G, A] IoU of boxes and priors.
      mask: [G] bool, real boxes.
      positive: smallest IoU of the second step; all other priors are negative.
    """
    count, priors = overlaps.shape
    usual = match_by_overlap(overlaps, mask, positive=positive)
    best, near = lax.top_k(jnp.where(mask[:, None], overlaps, 0.0), min(count, priors))  # others can take count - 1

    def body(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, chosen = state
        most = left.max()
        prior = jnp.min(near, where=left == most, initial=priors)
        row = jnp.argmax(jnp.any((left == most) & (near == prior), 1))
        chosen = chosen.at[row].set(jnp.where(most > LEAST, prior, chosen[row]))
        return jnp.where((near == prior) | (jnp.arange(count)[:, None] == row), 0.0, left), chosen

    _, chosen = lax.fori_loop(0, count, body, (best, jnp.full(count, priors, near.dtype)))
    taken = jnp.zeros(priors, bool).at[chosen].set(True, mode="drop")
    rows = usual.box.at[chosen].set(jnp.arange(count, dtype=jnp.int32), mode="drop")
    return Matches(rows, usual.positive | taken, usual.negative & ~taken)


def hard_negatives(losses: jax.Array, negative: jax.Array, positives: jax.Array, *, ratio: float = 3.0) -> jax.Array:
    """Mask [A] of the negatives of the highest loss, `ratio` times as many as positives; none without positives.

    Args:
      losses: [A], cross-entropy as background.
      negative: [A] bool, the candidates.
      positives: [] number of positives.
      ratio: negatives per positive.
    """
    return hardest(lax.stop_gradient(losses), negative, jnp.floor(ratio * positives).astype(jnp.int32))


def multibox_losses(
    logits: jax.Array,
    offsets: jax.Array,
    labels: jax.Array,
    targets: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    *,
    ratio: float = 3.0,
    beta: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Losses of the anchors of one image; their sums are divided by the number of positives.

    Args:
      logits: [A, 1 + C], the background first.
      offsets: [A, 4] encoded predictions.
      labels: [A] int, classes from 0; meaningful where `positive`.
      targets: [A, 4] encoded boxes, finite; meaningful where `positive`.
      positive: [A] bool.
      negative: [A] bool, candidates of hard negatives.
      ratio: negatives per positive.
      beta: of the smooth L1.

    Returns:
      [A] cross-entropy of positives and hard negatives, and [A] smooth L1 of positives; 0 elsewhere.
    """
    wanted = jnp.where(positive, labels + 1, 0)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), wanted)
    trained = positive | hard_negatives(entropy, negative & ~positive, positive.sum(), ratio=ratio)
    error = jnp.where(positive[:, None], offsets.astype(jnp.float32) - targets, 0.0)
    return jnp.where(trained, entropy, 0.0), smooth_l1(error, beta).sum(-1)


@dataclasses.dataclass(frozen=True)
class SSD:
    """The detector around a `Net`.

    Attributes:
      net: the network.
      sources: priors of each source of `net`.
      variances: of the encoding of boxes.
      bipartite: whether every box first takes a prior of its own; else its best prior, which a later box can take over.
      positive: smallest IoU of a positive prior.
      ratio: hard negatives per positive.
      box_weight: weight of the loss of boxes.
      lowest: scores must be above.
      threshold: largest IoU of two detections of a class.
      candidates: boxes of each class that enter suppression.
      count: detections per image, of all classes.
      mean: of R, G and B.
      deviation: of the pixels; 1 for weights from Caffe.
    """

    net: Net
    sources: tuple[Source, ...] = VOC300
    variances: tuple[float, float] = (0.1, 0.2)
    bipartite: bool = True
    positive: float = 0.5
    ratio: float = 3.0
    box_weight: float = 1.0
    lowest: float = 0.01
    threshold: float = 0.45
    candidates: int = 400
    count: int = 200
    mean: tuple[float, float, float] = (123.0, 117.0, 104.0)
    deviation: float = 1.0
    points: ClassVar[int] = 0

    @property
    def classes(self) -> int:
        """C, without the background."""
        return self.net.num_classes

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 RGB [N, H, W, 3] -> BGR less the mean, over the deviation."""
        return (images.astype(jnp.float32) - jnp.array(self.mean))[..., ::-1] / self.deviation

    def priors(self, raw: dict[str, list[jax.Array]]) -> np.ndarray:
        """[A, 4] in centre form for the maps of raw predictions."""
        maps = zip(self.sources, raw["boxes"], strict=True)
        return np.concatenate([source.priors(x.shape[1:3]) for source, x in maps])

    def losses(self, raw: dict[str, list[jax.Array]], truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """Softmax cross-entropy with hard negatives, and smooth L1 of the boxes, over the number of positives."""
        del size
        priors = self.priors(raw)
        return jax.vmap(lambda *one: self._losses(*one, priors))(*_flat(raw), truth)

    def _losses(self, logits: jax.Array, offsets: jax.Array, truth: Truth, priors: np.ndarray) -> dict[str, Term]:
        """The terms of one image."""
        overlaps = box.iou(truth.boxes[:, None], box.from_center(priors))
        if self.bipartite:
            match = match_bipartite(overlaps, truth.mask, positive=self.positive)
        else:
            match = match_by_overlap(overlaps, truth.mask, positive=self.positive, forced=0.0)
        targets = box.encode(truth.boxes[match.box], priors, self.variances)
        labels, positive = truth.labels[match.box], match.positive
        scores, boxes = multibox_losses(logits, offsets, labels, targets, positive, match.negative, ratio=self.ratio)
        count = positive.sum().astype(jnp.float32)
        return {"class": Term(scores.sum(), count), "box": Term(boxes.sum(), count, self.box_weight)}

    def decode(self, raw: dict[str, list[jax.Array]], size: tuple[int, int]) -> Detections:
        """Detections by falling score, suppressed within each class."""
        del size
        logits, offsets = _flat(raw)
        boxes = box.decode(offsets, self.priors(raw), self.variances)
        return jax.vmap(self._decode)(boxes, jax.nn.softmax(logits)[..., 1:])

    def _decode(self, boxes: jax.Array, scores: jax.Array) -> Detections:
        """Of one image: boxes [A, 4] and scores [A, C]."""

        def one(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
            options = {"candidates": self.candidates, "threshold": self.threshold, "count": self.count}
            rows, kept = nms(boxes, scores, mask=scores > self.lowest, **options)
            return rows, jnp.where(kept, scores[rows], -1.0)

        rows, found = jax.vmap(one, 1)(scores)
        best, place = lax.top_k(found.ravel(), self.count)
        points = jnp.zeros((self.count, 0, 2), boxes.dtype)
        labels = (place // self.count).astype(jnp.int32)
        return gathered(jnp.arange(self.count), best > 0, boxes[rows.ravel()[place]], best, points, labels)


def _flat(raw: dict[str, list[jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """Logits [N, A, 1 + C] and offsets [N, A, 4] of all sources."""
    logits, offsets = (
        jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in raw[name]], 1) for name in ("scores", "boxes")
    )
    return logits, offsets
