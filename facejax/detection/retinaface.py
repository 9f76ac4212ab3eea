"""RetinaFace: a single-stage face detector with five points, and a mesh, as extra supervision for its boxes.

Deng, Guo, Zhou, Yu, Kotsia, Zafeiriou. "RetinaFace: single-stage dense face localisation in the wild". 2019.
arXiv:1905.00641; and, with another dense branch, "RetinaFace: single-shot multi-level face localisation in the wild",
CVPR 2020. The dense branches are in `facejax.detection.retinaface_mesh`.
The defaults are those of the public PyTorch code, biubug6/Pytorch_Retinaface, whose weights are in common use: levels
of strides 8 to 32, heads per level, two anchors a cell, SSD's encoding and loss. `retinaface_resnet152` and `paper` are
the paper's form: strides 4 to 64, one head, three anchors a cell, deformable convolutions.
Differs from the papers: there is no cascade regression; the MXNet code's sampling of 256 anchors an image is not here;
head biases start at zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from facejax.backbones.mobilenet import V1_LAYERS
from facejax.backbones.resnet import resnet50, resnet152
from facejax.detection.base import Detections, Term, Truth, suppressed
from facejax.detection.retinaface_mesh import PixelBranch, VertexBranch
from facejax.foundations.deformable import DeformableConv
from facejax.nn.conv import Conv
from facejax.nn.init import torch_default
from facejax.nn.norm import BatchNorm
from facejax.ops import boxes as box
from facejax.ops.losses import smooth_l1
from facejax.ops.matching import Matches, hardest

Dtype = Any
ConvFactory = Callable[..., nn.Module]
MEAN = np.float32([104, 117, 123])
"""Mean colour (BGR) that is subtracted from images."""


class _Layer(nn.Module):
    """Convolution, batch norm and leaky ReLU with negative slope `slope`; None: a linear output."""

    features: int
    kernel_size: int
    strides: int = 1
    groups: int = 1
    slope: float | None = 0.0
    conv: ConvFactory = Conv
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        padding = self.kernel_size // 2
        options = {"groups": self.groups, "kernel_init": torch_default, "dtype": self.dtype, "name": "conv"}
        x = self.conv(self.features, self.kernel_size, strides=self.strides, padding=padding, **options)(x)
        x = BatchNorm(self.axis_name, dtype=self.dtype, name="bn")(x, train=train)
        return x if self.slope is None else nn.leaky_relu(x, self.slope)


class MobileNetBody(nn.Module):
    """MobileNet V1 with a quarter of the channels, symmetric padding and leaky ReLU.

    Attributes:
      stem: channels of the first convolution.
      layers: (channels, stride) of the pairs of depthwise and 1x1 convolutions.
      slope: negative slope of the activations; 0 is a ReLU.
      num_classes: of the classifier for pre-training.
      axis_name: mapped axis over which batch statistics are averaged.
      dtype: of the trunk; the classifier stays in float32.
    """

    stem: int = 8
    layers: tuple[tuple[int, int], ...] = tuple((channels // 4, stride) for channels, stride in V1_LAYERS)
    slope: float = 0.1
    num_classes: int = 1000
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False) -> jax.Array | dict[str, jax.Array]:
        """[N, H, W, 3] -> [N, num_classes]; or, with `features`, {"c1", ..., "c5"}, of strides 2 to 32."""
        layer = partial(_Layer, slope=self.slope, axis_name=self.axis_name, dtype=self.dtype)
        x = layer(self.stem, 3, 2, name="stem")(images, train=train)
        stage, found = 1, {"c1": x}
        for i, (channels, stride) in enumerate(self.layers, 1):
            x = layer(x.shape[-1], 3, stride, groups=x.shape[-1], name=f"depthwise{i}")(x, train=train)
            x = layer(channels, 1, name=f"pointwise{i}")(x, train=train)
            stage += stride - 1
            found[f"c{stage}"] = x
        if features:
            return found
        pooled = x.mean((1, 2)).astype(jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=torch_default, name="fc")(pooled)


class ContextModule(nn.Module):
    """SSH's context module with batch norms: one, two and three 3x3 convolutions, joined, and a ReLU.

    Attributes:
      features: output channels, a multiple of 4; a half from one convolution, a quarter from two and from three.
      layer: constructor of a convolution with batch norm and activation.
    """

    features: int
    layer: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, features]."""
        quarter = self.features // 4
        one = self.layer(self.features // 2, 3, slope=None, name="conv3x3")(x, train=train)
        shared = self.layer(quarter, 3, name="conv5x5_1")(x, train=train)
        two = self.layer(quarter, 3, slope=None, name="conv5x5_2")(shared, train=train)
        three = self.layer(quarter, 3, name="conv7x7_2")(shared, train=train)
        three = self.layer(quarter, 3, slope=None, name="conv7x7_3")(three, train=train)
        return nn.relu(jnp.concatenate([one, two, three], -1))


class RetinaFaceNet(nn.Module):
    """Images to predictions at every anchor.

    Attributes:
      body: trunk; `body(images, train=..., features=True)` returns {"c2", ..., "c5"} of strides 4 to 32.
      features: channels of the pyramid and of the context modules.
      slope: negative slope of their activations; 0 is a ReLU.
      levels: of the pyramid, consecutive; level n has stride 2^n. Level 6 is a 3x3 convolution of stride 2 on "c5".
      cell_anchors: anchors a cell.
      shared_head: one head for all levels; if not, one each.
      conv: constructor of the 3x3 convolutions in the pyramid's lateral part and in the context modules.
      dense: predictions per anchor for the dense branch; 0 is without. The raw predictions then also have "dense", and
        "images", the network's input, which the pixel loss compares with.
      axis_name: mapped axis over which batch statistics are averaged.
      dtype: of the network; the predictions are float32.
    """

    body: nn.Module
    features: int = 64
    slope: float = 0.1
    levels: tuple[int, ...] = (3, 4, 5)
    cell_anchors: int = 2
    shared_head: bool = False
    conv: ConvFactory = Conv
    dense: int = 0
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Raw predictions.

        Args:
          images: [N, H, W, 3], from `RetinaFace.preprocess`.
          train: whether batch norms use the batch's statistics.

        Returns:
          {"logits": [N, A, 2] of background and face, "boxes": [N, A, 4] and "points": [N, A, 5, 2], encoded relative
          to the anchors, whose order is by level, row, column and size}.
        """
        plain = partial(_Layer, slope=self.slope, axis_name=self.axis_name, dtype=self.dtype)
        special = partial(plain, conv=self.conv)
        stages = self.body(images, train=train, features=True)
        trunk = [n for n in self.levels if n < 6]
        maps = {n: plain(self.features, 1, name=f"lateral{n}")(stages[f"c{n}"], train=train) for n in trunk}
        if 6 in self.levels:
            maps[6] = plain(self.features, 3, 2, name="lateral6")(stages["c5"], train=train)
        for n in trunk[-2::-1]:
            whole = maps[n] + nearest(maps[n + 1], maps[n].shape[1:3])
            maps[n] = special(self.features, 3, name=f"merge{n}")(whole, train=train)
        outputs = {"logits": 2, "boxes": 4, "points": 10} | ({"dense": self.dense} if self.dense else {})

        def head(name: str) -> dict[str, nn.Module]:
            make = partial(Conv, kernel_size=1, use_bias=True, kernel_init=torch_default, dtype=self.dtype)
            return {k: make(self.cell_anchors * size, name=f"{k}{name}") for k, size in outputs.items()}

        heads = dict.fromkeys(self.levels, head("")) if self.shared_head else {n: head(str(n)) for n in self.levels}
        found: dict[str, list[jax.Array]] = {k: [] for k in outputs}
        for n in self.levels:
            x = ContextModule(self.features, special, name=f"context{n}")(maps[n], train=train)
            for k, size in outputs.items():
                found[k].append(heads[n][k](x).reshape(x.shape[0], -1, size))
        raw = {k: jnp.concatenate(parts, 1).astype(jnp.float32) for k, parts in found.items()}
        raw["points"] = raw["points"].reshape(*raw["points"].shape[:2], 5, 2)
        return raw | ({"images": images} if self.dense else {})


def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[N, h, w, C] -> [N, *size, C]: output row i is row floor(i * h / H), as PyTorch's "nearest"."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, x.shape[1:3], strict=True))
    return x[:, rows][:, :, columns]


def retinaface_mobilenet025(
    slope: float = 0.1, axis_name: str | None = None, dtype: Dtype = jnp.float32, **options: Any
) -> RetinaFaceNet:
    """biubug6's smaller network. Its copies by others, such as Face-Detector-1MB-with-landmark, have slope 0."""
    body = MobileNetBody(slope=slope, axis_name=axis_name, dtype=dtype)
    return RetinaFaceNet(body, slope=slope, axis_name=axis_name, dtype=dtype, **options)


def retinaface_resnet50(axis_name: str | None = None, dtype: Dtype = jnp.float32, **options: Any) -> RetinaFaceNet:
    """biubug6's larger network."""
    body = resnet50(axis_name=axis_name, dtype=dtype)
    return RetinaFaceNet(body, 256, 0.0, axis_name=axis_name, dtype=dtype, **options)


def retinaface_resnet152(axis_name: str | None = None, dtype: Dtype = jnp.float32, **options: Any) -> RetinaFaceNet:
    """The paper's network: five levels, one head, three anchors a cell, deformable convolutions."""
    body = resnet152(axis_name=axis_name, dtype=dtype)
    form = {"levels": (2, 3, 4, 5, 6), "cell_anchors": 3, "shared_head": True, "conv": DeformableConv} | options
    return RetinaFaceNet(body, 256, 0.0, axis_name=axis_name, dtype=dtype, **form)


def match(
    overlaps: jax.Array, mask: jax.Array, *, positive: float, negative: float | None = None, forced: float | None = None
) -> Matches:
    """biubug6's assignment; without `forced`, that of `facejax.ops.matching.match_by_overlap`.

    With `forced`, a face whose best IoU is at least this makes its best anchor positive. Every face, also one below, is
    what its best anchor is trained on, if that anchor is positive. Of several faces with the same best anchor the
    last has it. An image without a face of at least `forced` has no positive anchors.

    Args:
      overlaps: [G, A] IoU of faces and anchors.
      mask: [G] bool, real faces.
      positive: smallest IoU of a positive anchor.
      negative: anchors below are negative, those between are ignored; None: `positive`.
      forced: see above; None: no anchor is forced.
    """
    overlaps = jnp.where(mask[:, None], overlaps, -1.0)
    best, face = overlaps.max(0), overlaps.argmax(0).astype(jnp.int32)
    positives, negatives = best >= positive, best < (positive if negative is None else negative)
    if forced is not None:
        valid = mask & (overlaps.max(1) >= forced)
        chosen = mask[:, None] & (jnp.arange(overlaps.shape[1]) == overlaps.argmax(1)[:, None])
        last = len(mask) - 1 - jnp.argmax(chosen[::-1], 0)
        face = jnp.where(chosen.any(0), last, face).astype(jnp.int32)
        positives = (positives | (chosen & valid[:, None]).any(0)) & valid.any()
        negatives = (negatives | ~valid.any()) & ~positives
    return Matches(face, positives, negatives)


@dataclasses.dataclass(frozen=True)
class RetinaFace:
    """The detector; the defaults are biubug6's settings.

    Attributes:
      net: a `RetinaFaceNet`.
      strides: of the levels.
      sides: of the anchors of each level, in pixels.
      variances: of the encoding of boxes; the first also of points.
      positive, negative, forced: see `match`.
      negatives: hard negatives per positive in each image.
      weights: of the terms of boxes, logits and points, and of the dense branch.
      beta: of the smooth L1 losses.
      dense: a branch of `retinaface_mesh`, whose `outputs` is the net's `dense`; None: without.
      lowest, candidates, threshold, count: of the post-processing; see `facejax.detection.base.suppressed`.
    """

    net: nn.Module
    strides: tuple[int, ...] = (8, 16, 32)
    sides: tuple[tuple[float, ...], ...] = ((16, 32), (64, 128), (256, 512))
    variances: tuple[float, float] = (0.1, 0.2)
    positive: float = 0.35
    negative: float | None = None
    forced: float | None = 0.2
    negatives: int = 7
    weights: tuple[float, float, float, float] = (2.0, 1.0, 1.0, 0.01)
    beta: float = 1.0
    dense: PixelBranch | VertexBranch | None = None
    lowest: float = 0.02
    candidates: int = 5000
    threshold: float = 0.4
    count: int = 750
    classes: int = 1
    points: int = 5

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 RGB [N, H, W, 3] -> BGR less `MEAN`."""
        return images[..., ::-1].astype(jnp.float32) - MEAN

    def anchors(self, size: tuple[int, int]) -> np.ndarray:
        """[A, 4] in centre form, for an input of `size` (height, width)."""
        return box.anchors(size, self.strides, [box.shapes(sides) for sides in self.sides])

    def matches(self, truth: Truth, size: tuple[int, int]) -> Matches:
        """[N, A] each. Faces with a side of 0 have none."""
        corners = box.from_center(jnp.asarray(self.anchors(size)))
        options = {"positive": self.positive, "negative": self.negative, "forced": self.forced}

        def one(boxes: jax.Array, mask: jax.Array) -> Matches:
            real = mask & (boxes[:, 2:] > boxes[:, :2]).all(-1)
            return match(box.iou(boxes[:, None], corners), real, **options)

        return jax.vmap(one)(truth.boxes, truth.mask)

    def losses(self, raw: dict[str, jax.Array], truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """Smooth L1 of boxes and of annotated points at positive anchors, cross-entropy there and at hard negatives."""
        anchors, matches = jnp.asarray(self.anchors(size)), self.matches(truth, size)
        positive, found = matches.positive, matches.box
        entropy = optax.softmax_cross_entropy_with_integer_labels(raw["logits"], positive.astype(jnp.int32))
        quota = self.negatives * positive.sum(1)
        used = positive | jax.vmap(hardest)(jax.lax.stop_gradient(entropy), matches.negative, quota)
        rows = jnp.arange(len(found))[:, None]
        targets = box.encode(truth.boxes[rows, found], anchors, self.variances)
        boxes = smooth_l1(raw["boxes"] - targets, self.beta).sum(-1)
        annotated = truth.visible[rows, found, :5] & positive[..., None]
        goals = box.encode_points(truth.points[rows, found, :5], anchors, self.variances[0])
        points = smooth_l1(raw["points"] - goals, self.beta).sum(-1)
        faces = positive.sum(1)
        box_weight, class_weight, point_weight, dense_weight = self.weights
        terms = {
            "boxes": Term(jnp.sum(boxes, 1, where=positive), faces, box_weight),
            "logits": Term(jnp.sum(entropy, 1, where=used), faces, class_weight),
            "points": Term(jnp.sum(points, (1, 2), where=annotated), annotated.any(-1).sum(1), point_weight),
        }
        if self.dense is not None:
            images = (raw["images"] + MEAN)[..., ::-1] / 255
            terms |= self.dense.terms(raw, images, truth, self.anchors(size), matches, dense_weight)
        return terms

    def predictions(self, raw: dict[str, jax.Array], size: tuple[int, int]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Boxes [N, A, 4] and points [N, A, 5, 2] in pixels, and scores [N, A], before suppression."""
        anchors = jnp.asarray(self.anchors(size))
        boxes = box.decode(raw["boxes"], anchors, self.variances)
        points = box.decode_points(raw["points"], anchors, self.variances[0])
        return boxes, jax.nn.softmax(raw["logits"])[..., 1], points

    def decode(self, raw: dict[str, jax.Array], size: tuple[int, int]) -> Detections:
        """The best `candidates` above `lowest`, greedy NMS with inclusive pixels, the best `count`."""
        options = {"lowest": self.lowest, "threshold": self.threshold, "count": self.count}
        return suppressed(*self.predictions(raw, size), candidates=self.candidates, plus_one=True, **options)


paper = partial(
    RetinaFace,
    strides=(4, 8, 16, 32, 64),
    sides=tuple(tuple(2 ** (4 + (3 * level + k) / 3) for k in range(3)) for level in range(5)),
    variances=(1.0, 1.0),
    positive=0.5,
    negative=0.3,
    forced=None,
    negatives=3,
    weights=(0.25, 1.0, 0.1, 0.01),
)
"""The detector with the paper's anchors, matching and loss, for the levels of `retinaface_resnet152`."""
