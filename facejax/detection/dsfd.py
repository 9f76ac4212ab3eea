"""DSFD: a face detector whose enhanced feature maps take a second shot at every face.

Li, Wang, Wang, Tai, Qian, Yang, Wang, Li, Huang. "DSFD: Dual Shot Face Detector". CVPR 2019. arXiv:1810.10220.
A feature enhance module (FEM) multiplies every map with the upsampled one above and widens its field of view with
dilated convolutions. In training, a first shot on the original maps learns anchors of half the size (progressive anchor
loss); detections come from the second shot alone.

The paper leaves parts of its network open, and the authors' released network (`Tencent/FaceDetection-DSFD`) is another
one: no first shot, but slots for heads and bodies, deep heads and max-in-out scores. Both are here.
`dsfd_resnet152` and `dsfd_vgg16` are the release. `dsfd_dual_vgg16` and `dsfd_dual_resnet152` follow the paper, with
3x3 heads; ours are the dilation of 3 and the order product, L2 norm, dilated convolutions.

Differs: the released matching fails for an image without faces, which counts here as background; the release trains the
head and body slots on faces and so does this file, with weights of 1 (it names none).
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

from facejax.backbones.resnet import ResNet
from facejax.backbones.vgg import VGG
from facejax.detection.base import Detections, Term, Truth, suppressed
from facejax.detection.scales import mirrored, padded, resized
from facejax.detection.ssd import L2Norm, multibox_losses
from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv
from facejax.ops import boxes as box
from facejax.ops.matching import match_by_overlap
from facejax.ops.nms import vote
from facejax.ops.pooling import resize_bilinear

Dtype = Any
Shot = tuple[jax.Array, jax.Array]
"""Logits [N, A, 2] of background and face, and offsets [N, A, 4]."""

MEAN_RGB = (123.0, 117.0, 104.0)
LARGEST_LOG = math.log(1000 / 16)  # of a detection's side over its anchor's, as in Detectron; the release has no limit

_conv = partial(Conv, use_bias=True, kernel_init=nn.initializers.xavier_uniform())


class VGGMaps(nn.Module):
    """VGG's last maps before each pool from stage 3 on, fc7 as convolutions, and extra layers, as in S3FD.

    Attributes:
      depths, widths: of VGG's stages.
      fc: channels of fc6 and fc7; 0: neither of them, nor a pool before.
      extras: (inner, outer) channels of the extra layers, each of which halves the resolution.
      dtype: of the computation.
    """

    depths: Sequence[int] = (2, 2, 3, 3, 3)
    widths: Sequence[int] = (64, 128, 256, 512, 512)
    fc: int = 1024
    extras: Sequence[tuple[int, int]] = ((256, 512), (128, 256))
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """[N, H, W, 3] -> maps of strides 4, 8, 16, ...

        Raises:
          ValueError: a side of the images is no multiple of the stride of VGG's last map that is used.
        """
        stages = len(self.depths)
        stride = 2 ** (stages if self.fc else stages - 1)
        if any(side % stride for side in x.shape[1:3]):
            height, width = x.shape[1:3]
            raise ValueError(f"VGGMaps: images of {height} x {width} pixels: expected sides that {stride} divides")
        found = VGG(self.depths, self.widths, dtype=self.dtype, name="vgg")(x, train=train, features=True)
        maps = [found[f"relu{stage}_{self.depths[stage - 1]}"] for stage in range(3, stages + 1)]
        if self.fc:
            x = nn.relu(_conv(self.fc, 3, padding=1, dtype=self.dtype, name="fc6")(found[f"pool{stages}"]))
            maps.append(nn.relu(_conv(self.fc, 1, dtype=self.dtype, name="fc7")(x)))
        for i, (inner, outer) in enumerate(self.extras, 1):
            x = nn.relu(_conv(inner, 1, dtype=self.dtype, name=f"extra{i}_1")(maps[-1]))
            maps.append(nn.relu(_conv(outer, 3, 2, 1, dtype=self.dtype, name=f"extra{i}_2")(x)))
        return maps


class ResNetMaps(nn.Module):
    """ResNet's stages 2 to 5 and extra layers with batch norm.

    Attributes:
      depths, bottleneck, widths: of the ResNet; the published are those of ResNet-152.
      extras: see `VGGMaps`.
      axis_name: mapped axis over which batch statistics are averaged.
      dtype: of the computation.
    """

    depths: tuple[int, ...] = (3, 8, 36, 3)
    bottleneck: bool = True
    widths: tuple[int, ...] = (64, 128, 256, 512)
    extras: Sequence[tuple[int, int]] = ((512, 512), (128, 256))
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """[N, H, W, 3] -> maps of strides 4, 8, 16, 32, 64, ...; sides are rounded up."""
        options = {"axis_name": self.axis_name, "dtype": self.dtype}
        trunk = ResNet(self.depths, self.bottleneck, widths=self.widths, **options, name="resnet")
        maps = list(trunk(x, train=train, features=True).values())
        conv = partial(ConvNorm, use_bias=True, kernel_init=nn.initializers.xavier_uniform(), **options)
        for i, (inner, outer) in enumerate(self.extras, 1):
            x = conv(inner, 1, name=f"extra{i}_1")(maps[-1], train=train)
            maps.append(conv(outer, 3, 2, 1, name=f"extra{i}_2")(x, train=train))
        return maps


class Products(nn.Module):
    """From top to bottom, each map times the upsampled map above, both after 1x1 convolutions.

    Attributes:
      count: maps that are multiplied, from the lowest on; those above stay as they are.
      dtype: of the computation.
    """

    count: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        """Maps at falling resolution -> as many of the same shapes."""
        maps = list(maps)
        for i in reversed(range(self.count)):
            features = maps[i].shape[-1]
            above = _conv(features, 1, dtype=self.dtype, name=f"above{i + 1}")(maps[i + 1])
            lateral = _conv(features, 1, dtype=self.dtype, name=f"lateral{i + 1}")(maps[i])
            maps[i] = resize_bilinear(above, lateral.shape[1:3]) * lateral
        return maps


class DilatedBlock(nn.Module):
    """The release's context block: five 3x3 convolutions with dilations 1 and 2, three of whose outputs are joined.

    Attributes:
      features: channels of the output, a multiple of 4.
      dtype: of the computation.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, features]."""

        def conv(name: str, part: int, dilation: int, x: jax.Array) -> jax.Array:
            layer = _conv(self.features // part, 3, padding=dilation, dilation=dilation, dtype=self.dtype, name=name)
            return nn.relu(layer(x))

        wide = conv("conv2", 2, 2, x)
        deep = conv("conv5", 4, 1, conv("conv4", 4, 2, wide))
        return jnp.concatenate([conv("conv1", 2, 1, x), conv("conv3", 4, 1, wide), deep], -1)


class SplitBlock(nn.Module):
    """The paper's context block: a third of the channels each passes through 1, 2 and 3 dilated 3x3 convolutions.

    Attributes:
      dilation: of the convolutions.
      dtype: of the computation.
    """

    dilation: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, C]."""
        third = x.shape[-1] // 3
        parts = []
        for branch, part in enumerate(jnp.split(x, (third, 2 * third), -1), 1):
            for layer in range(1, branch + 1):
                conv = _conv(
                    part.shape[-1], 3, padding=self.dilation, dilation=self.dilation, dtype=self.dtype,
                    name=f"conv{branch}_{layer}",
                )  # fmt: skip
                part = nn.relu(conv(part))
            parts.append(part)
        return jnp.concatenate(parts, -1)


class Head(nn.Module):
    """3x3 convolutions with ReLU, and an output convolution: 1x1 after a deep head, else 3x3.

    Attributes:
      outputs: channels.
      features, depth: of the convolutions before; depth 0 has none.
      dtype: of the computation; outputs are float32.
    """

    outputs: int
    features: int = 256
    depth: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, outputs]."""
        for i in range(1, self.depth + 1):
            width = min(self.features, x.shape[-1])
            x = nn.relu(_conv(width, 3, padding=1, dtype=self.dtype, name=f"conv{i}")(x))
        size, padding = (1, 0) if self.depth else (3, 1)
        return _conv(self.outputs, size, padding=padding, dtype=self.dtype, name="out")(x).astype(jnp.float32)


class Net(nn.Module):
    """Maps, enhancement, and heads on every level.

    Attributes:
      maps: images -> maps of falling resolution.
      products: maps of the FEM with a product, see `Products`; 0: no FEM, the heads see the maps themselves.
      block: constructor of the FEM's block of every level.
      norms: initial scales of the L2 norms of the lowest maps.
      slots: of the anchors: 1, faces; 3, from the second level on also heads, from the third on also bodies.
      max_in_out: three scores of the background (at the first level) or of the face (at the others) for every one of
        the opposite, whose maximum counts.
      head, head_depth: channels and number of the convolutions of a head, see `Head`.
      first_shot: whether there are heads on the original maps.
      dtype: of the computation.
    """

    maps: nn.Module
    products: int = 3
    block: Callable[..., nn.Module] = partial(DilatedBlock, 512)
    norms: Sequence[float] = ()
    slots: int = 3
    max_in_out: bool = True
    head: int = 256
    head_depth: int = 3
    first_shot: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, Shot]:
        """[N, H, W, 3] BGR less the mean -> the shots "face", "head" and "body" (or fewer), and "first"."""
        original = self.maps(images, train=train)
        found = {}
        if self.first_shot:
            found["first"] = _joined([level[0] for level in self._heads(self._normed(original, "first"), 1, "first")])
        levels = original
        if self.products:
            levels = Products(self.products, self.dtype, name="products")(levels)
        levels = self._normed(levels, "")
        if self.products:
            levels = [self.block(dtype=self.dtype, name=f"enhance{i}")(x) for i, x in enumerate(levels, 1)]
        second = self._heads(levels, self.slots, "")
        for slot, name in enumerate(("face", "head", "body")[: self.slots]):
            found[name] = _joined([level[slot] for level in second if len(level) > slot])
        return found

    def _normed(self, maps: Sequence[jax.Array], prefix: str) -> list[jax.Array]:
        norms = [L2Norm(scale, self.dtype, name=f"{prefix}norm{i}") for i, scale in enumerate(self.norms, 1)]
        return [norm(x) for norm, x in zip(norms, maps, strict=False)] + list(maps[len(norms) :])

    def _heads(self, maps: Sequence[jax.Array], slots: int, prefix: str) -> list[list[Shot]]:
        """Of every level and slot, the logits [N, h, w, 2] and the offsets [N, h, w, 4]."""
        found = []
        for i, x in enumerate(maps, 1):
            count = min(slots, i)
            make = partial(Head, features=self.head, depth=self.head_depth, dtype=self.dtype)
            offsets = make(4 * count, name=f"{prefix}boxes{i}")(x)
            scores = make(2 * count + 2 * self.max_in_out, name=f"{prefix}scores{i}")(x)
            if self.max_in_out:
                scores = jnp.concatenate([max_in_out(scores[..., :4], first=i == 1), scores[..., 4:]], -1)
            found.append(list(zip(jnp.split(scores, count, -1), jnp.split(offsets, count, -1), strict=True)))
        return found


def _joined(levels: Sequence[Shot]) -> Shot:
    """Levels [N, h, w, c] -> [N, A, c], by level, row and column."""
    return tuple(
        jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in parts], 1)
        for parts in zip(*levels, strict=True)
    )


def max_in_out(scores: jax.Array, *, first: bool) -> jax.Array:
    """Logits of background and face [..., 2] from four [..., 4].

    Args:
      scores: three of the one and one of the other.
      first: level one: the three are background, whose largest counts; else they are face.
    """
    most, single = scores[..., :3].max(-1), scores[..., 3]
    return jnp.stack([most, single] if first else [single, most], -1)


VGG_NORMS = (10.0, 8.0, 5.0)


def dsfd_resnet152(dtype: Dtype = jnp.float32, axis_name: str | None = None) -> Net:
    """The released network."""
    return Net(ResNetMaps(axis_name=axis_name, dtype=dtype), dtype=dtype)


def dsfd_vgg16(dtype: Dtype = jnp.float32) -> Net:
    """The released code's network with VGG-16, of which no weights were released."""
    return Net(VGGMaps(dtype=dtype), norms=VGG_NORMS, dtype=dtype)


def dual(maps: nn.Module, **options: Any) -> Net:
    """The paper's two shots on any maps; `options` are fields of `Net`."""
    plain = {"products": 5, "block": SplitBlock, "slots": 1, "max_in_out": False, "head_depth": 0, "first_shot": True}
    return Net(maps, **{**plain, **options})


def dsfd_dual_vgg16(dtype: Dtype = jnp.float32) -> Net:
    """The paper's two shots on VGG-16."""
    return dual(VGGMaps(dtype=dtype), norms=VGG_NORMS, dtype=dtype)


def dsfd_dual_resnet152(dtype: Dtype = jnp.float32, axis_name: str | None = None) -> Net:
    """The paper's two shots on ResNet-152."""
    return dual(ResNetMaps(axis_name=axis_name, dtype=dtype), dtype=dtype)


@dataclasses.dataclass(frozen=True)
class DSFD:
    """The detector around a `Net`; L = L_first(half anchors) + lambda L_second(anchors).

    Attributes:
      net: the network.
      strides: of the levels.
      sizes: of the anchors of the second shot's faces; those of the first are half as large.
      ratio: height over width of the anchors, whose area is size^2.
      variances: of the encoding of boxes.
      positive: smallest IoU of a positive anchor; the best anchor of every face is positive, too.
      negatives: hard negatives per positive.
      second_weight: lambda.
      box_weight: beta, of the boxes of both shots.
      by_sampled: divide the cross-entropy by the number of all anchors that are trained on (CVPR text), not by that
        of the positives (arXiv v1, release).
      lowest, threshold, candidates, count: scores must be above, largest IoU, boxes that enter suppression, and number
        of the detections.
    """

    net: Net
    strides: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    sizes: tuple[float, ...] = (16, 32, 64, 128, 256, 512)
    ratio: float = 1.5
    variances: tuple[float, float] = (0.1, 0.2)
    positive: float = 0.4
    negatives: float = 3.0
    second_weight: float = 1.0
    box_weight: float = 1.0
    by_sampled: bool = True
    lowest: float = 0.01
    threshold: float = 0.3
    candidates: int = 5000
    count: int = 750
    classes: ClassVar[int] = 1
    points: ClassVar[int] = 0

    def preprocess(self, images: jax.Array) -> jax.Array:
        """RGB 0..255 [N, H, W, 3] -> BGR less the mean."""
        return (jnp.asarray(images, jnp.float32) - jnp.array(MEAN_RGB))[..., ::-1]

    def anchors(self, shot: str, size: tuple[int, int]) -> np.ndarray:
        """Anchors of a shot of `Net`, [A, 4] in centre form, with sides up to the image's.

        A head has the size of a face a level below, a body that of a face two levels below.
        """
        above = {"first": 0, "face": 0, "head": 1, "body": 2}[shot]
        sizes = np.array(self.sizes[: len(self.sizes) - above]) * (0.5 if shot == "first" else 1)
        shapes = [box.shapes([side], [self.ratio]) for side in sizes]
        return np.minimum(box.anchors(size, self.strides[above:], shapes), np.float32([*size[::-1]] * 2))

    def losses(self, raw: dict[str, Shot], truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """Of every shot, "scores_NAME": cross-entropy with hard negatives; "boxes_NAME": smooth L1."""
        terms = {}
        for shot, (logits, offsets) in raw.items():
            weight = 1.0 if shot == "first" else self.second_weight
            scores, boxes, trained, positives = jax.vmap(partial(self._losses, self.anchors(shot, size)))(
                logits, offsets, truth
            )
            terms[f"scores_{shot}"] = Term(scores, trained if self.by_sampled else positives, weight)
            terms[f"boxes_{shot}"] = Term(boxes, positives, weight * self.box_weight)
        return terms

    def _losses(
        self, anchors: np.ndarray, logits: jax.Array, offsets: jax.Array, truth: Truth
    ) -> tuple[jax.Array, ...]:
        """Of one image: sums of the two losses, numbers of the anchors trained on and of the positives."""
        overlaps = box.iou(truth.boxes[:, None], box.from_center(anchors))
        match = match_by_overlap(overlaps, truth.mask, positive=self.positive, forced=0.0)
        targets = box.encode(truth.boxes[match.box], anchors, self.variances)
        labels, positive, negative = jnp.zeros_like(match.box), match.positive, match.negative
        scores, boxes = multibox_losses(logits, offsets, labels, targets, positive, negative, ratio=self.negatives)
        positives = positive.sum().astype(jnp.float32)
        hard = jnp.minimum(jnp.floor(self.negatives * positives), negative.sum())
        return scores.sum(), boxes.sum(), positives + hard, positives

    def decode(self, raw: dict[str, Shot], size: tuple[int, int]) -> Detections:
        """Detections of the second shot's faces."""
        logits, offsets = raw["face"]
        anchors = jnp.asarray(self.anchors("face", size))
        boxes = box.decode(offsets, anchors, self.variances, largest_log=LARGEST_LOG)
        return suppressed(
            boxes,
            jax.nn.softmax(logits)[..., 1],
            lowest=self.lowest,
            threshold=self.threshold,
            candidates=self.candidates,
            count=self.count,
        )

    def multi_scale(
        self, apply: Callable[[jax.Array], dict[str, Shot]], image: np.ndarray, *, multiple: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Detections of the release's test script for WIDER FACE: many scales and a mirrored image, joined by voting.

        `count` limits the result; every pass keeps all of its `candidates` that suppression leaves.

        Args:
          apply: preprocessed images -> raw predictions; compiled once for every scale.
          image: [H, W, 3] RGB 0..255.
          multiple: of the sides that `apply` takes.

        Returns:
          boxes [K, 4] in pixels of the image, and scores [K]; a box that no other one confirms is dropped.
        """
        boxes, scores, every = [], [], dataclasses.replace(self, count=self.candidates)
        for scale, mirror, low, high in scale_plan(image.shape[:2]):
            shown = image[:, ::-1] if mirror else image
            inputs = padded(self.preprocess(resized(shown[None], scale)), multiple)
            found = every.decode(apply(inputs), inputs.shape[1:3])
            kept = np.asarray(found.mask[0])
            corners = np.asarray(found.boxes[0])[kept] / scale
            corners = np.asarray(mirrored(corners, image.shape[1])) if mirror else corners
            sides = corners[:, 2:] - corners[:, :2] + 1
            kept_sides = (sides.max(1) > low) & (sides.min(1) < high)
            boxes.append(corners[kept_sides])
            scores.append(np.asarray(found.scores[0])[kept][kept_sides])
        return merged(np.concatenate(boxes), np.concatenate(scores), self.count)


def scale_plan(size: tuple[int, int], largest: float | None = None) -> list[tuple[float, bool, float, float]]:
    """The passes of the release's test script.

    Args:
      size: (height, width) of the image.
      largest: largest factor; None: the script's, at most 3 and sqrt(2^31 / 200 pixels).

    Returns:
      of every pass (factor, whether the image is mirrored, the longer side of a detection must be above, the shorter
      side must be below), both sides in inclusive pixels of the image.
    """
    if largest is None:
        largest = min(3.0, math.sqrt(0x7FFFFFFF / 200 / (size[0] * size[1])))
    every, big, small = (0.0, math.inf), (30.0, math.inf), (0.0, 100.0)
    plan = [(min(1.0, largest), mirror, *every) for mirror in (False, True)]
    half = 0.5 if largest >= 0.75 else 0.5 * largest
    plan += [(scale, False, *big) for scale in (half, *([0.75] if largest > 0.75 else []))]
    enlarged = [min(2.0, largest) if largest > 1 else (half + largest) / 2]
    kept = small if largest > 1 else big
    if largest > 1.5:
        enlarged.append(1.5)
    if largest > 2:
        enlarged += [2.0**i for i in range(2, 32) if 2.0**i < largest] + [largest]
    plan += [(scale, False, *kept) for scale in enlarged]
    plan.append((0.25, False, *big))
    return plan + [(scale, False, *small) for scale in (1.25, 1.75, 2.25) if scale <= largest]


def merged(boxes: np.ndarray, scores: np.ndarray, count: int = 750) -> tuple[np.ndarray, np.ndarray]:
    """Box voting of the release's script: groups of IoU 0.3 in inclusive pixels; a group of one box is dropped.

    Args:
      boxes: [A, 4], and scores [A].
      count: largest number of results.
    """
    if not len(boxes):
        return boxes, scores
    size = 1 << (len(boxes) - 1).bit_length()  # few compiled sizes
    fill = size - len(boxes)
    found, best, kept = _vote(np.pad(boxes, ((0, fill), (0, 0))), np.pad(scores, (0, fill)), len(boxes), count)
    return np.asarray(found)[np.asarray(kept)], np.asarray(best)[np.asarray(kept)]


@partial(jax.jit, static_argnames="count")
def _vote(boxes: jax.Array, scores: jax.Array, real: int, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    return vote(boxes, scores, count=count, threshold=0.3, singles=False, mask=jnp.arange(len(scores)) < real)


def wider_rows(boxes: np.ndarray) -> np.ndarray:
    """Rows (x, y, width, height) of a WIDER FACE result file, rounded outwards as in the release: [K, 4] -> [K, 4]."""
    low, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1
    return np.concatenate([np.floor(low), np.ceil(sides)], -1)
