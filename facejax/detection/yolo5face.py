"""YOLO5Face: the object detector YOLOv5 with five landmarks, a stem block and small pooling kernels, for faces.

Qi, Tan, Yao, Liu. "YOLO5Face: why reinventing a face detector". ECCV 2022 workshops. arXiv:2105.12931. A face is
learnt by all anchors whose sides are within a factor of 4 of its own, in the cell of its centre and the two nearest
neighbours; boxes by CIoU, objectness with the overlap as target, landmarks by the wing loss.

Layers, anchors, assignment and weights are those of the authors' code (`deepcam-cn/yolov5-face`), made anew from their
description. Differs from it: of several faces that give an anchor a target, the one that counts is determined (in the
authors' code, the order of writes on a GPU decides); the class output, which one class never trains, begins constant.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.detection.base import Detections, Term, Truth, suppressed
from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv
from facejax.nn.init import torch_default
from facejax.ops import boxes as box
from facejax.ops.pooling import ceil_padding, max_pool, upsample_nearest

Dtype = Any
POINTS = 5
OUTPUTS = 6 + 2 * POINTS
"""Of each anchor: x, y, width, height, objectness, landmarks, class."""

ANCHORS = (
    ((4, 5), (8, 10), (13, 16)),
    ((23, 29), (43, 55), (73, 105)),
    ((146, 217), (231, 300), (335, 433)),
)
ANCHORS_P6 = (
    ((6, 7), (9, 11), (13, 16)),
    ((18, 23), (26, 33), (37, 47)),
    ((54, 67), (77, 104), (112, 154)),
    ((174, 238), (258, 355), (445, 568)),
)
"""(width, height) in pixels of the anchors of each stride."""


def _conv(axis_name: str | None, dtype: Dtype) -> Any:
    """Constructor of convolution, batch norm and SiLU with YOLOv5's settings."""
    options = {"momentum": 0.97, "epsilon": 1e-3, "activation": nn.silu, "kernel_init": torch_default}
    return partial(ConvNorm, **options, axis_name=axis_name, dtype=dtype)


class StemBlock(nn.Module):
    """A convolution of stride 2, then another beside max pooling, joined by a 1x1 convolution.

    Attributes:
      features: output channels.
      conv: constructor of a convolution with norm and activation.
    """

    features: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] -> [N, H / 4, W / 4, features]."""
        x = self.conv(self.features, 3, 2, 1, name="first")(x, train=train)
        narrow = self.conv(self.features // 2, 1, name="narrow")(x, train=train)
        narrow = self.conv(self.features, 3, 2, 1, name="down")(narrow, train=train)
        pooled = max_pool(x, (2, 2), (2, 2), ceil_padding(x.shape[1:3], (2, 2), (2, 2)))
        return self.conv(self.features, 1, name="join")(jnp.concatenate([narrow, pooled], -1), train=train)


class Focus(nn.Module):
    """YOLOv5's input, which the stem block replaces: 2x2 pixels become channels; convolutions of stride 1 and 2.

    Attributes:
      features: output channels; the first convolution has half of them.
      conv: see `StemBlock`.
    """

    features: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] -> [N, H / 4, W / 4, features]; H and W are even."""
        x = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        x = self.conv(self.features // 2, 3, 1, 1, name="first")(x, train=train)
        return self.conv(self.features, 3, 2, 1, name="down")(x, train=train)


class C3(nn.Module):
    """Two branches of half the channels, one of which has bottlenecks of a 1x1 and a 3x3 convolution.

    Attributes:
      features: output channels.
      depth: number of bottlenecks.
      conv: see `StemBlock`.
      shortcut: whether bottlenecks are added to their input.
    """

    features: int
    depth: int
    conv: Any
    shortcut: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, features]."""
        half = self.features // 2
        deep, plain = (self.conv(half, 1, name=name)(x, train=train) for name in ("deep", "plain"))
        for i in range(self.depth):
            inner = self.conv(half, 1, name=f"reduce{i}")(deep, train=train)
            inner = self.conv(half, 3, 1, 1, name=f"expand{i}")(inner, train=train)
            deep = deep + inner if self.shortcut else inner
        return self.conv(self.features, 1, name="join")(jnp.concatenate([deep, plain], -1), train=train)


class SPP(nn.Module):
    """Max pooling with several windows, side by side.

    Attributes:
      features: output channels.
      windows: sides of the windows.
      conv: see `StemBlock`.
    """

    features: int
    windows: Sequence[int]
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, features]."""
        x = self.conv(x.shape[-1] // 2, 1, name="reduce")(x, train=train)
        pooled = [max_pool(x, (side, side), (1, 1), ((side // 2, side // 2),) * 2) for side in self.windows]
        return self.conv(self.features, 1, name="join")(jnp.concatenate([x, *pooled], -1), train=train)


class ShuffleBlock(nn.Module):
    """ShuffleNet V2's unit with SiLU: half of the channels pass, or at stride 2 both branches see all.

    Attributes:
      features: output channels.
      stride: 1 or 2.
      conv: see `StemBlock`.
    """

    features: int
    stride: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, features]."""
        half = self.features // 2

        def depthwise(x: jax.Array, name: str) -> jax.Array:
            channels = x.shape[-1]
            return self.conv(channels, 3, self.stride, 1, channels, activation=None, name=name)(x, train=train)

        if self.stride == 1:
            first, second = jnp.split(x, 2, -1)
        else:
            first = self.conv(half, 1, name="branch1_conv")(depthwise(x, "branch1_depthwise"), train=train)
            second = x
        second = self.conv(half, 1, name="conv1")(second, train=train)
        second = self.conv(half, 1, name="conv2")(depthwise(second, "depthwise"), train=train)
        return jnp.stack([first, second], -1).reshape(*first.shape[:-1], self.features)


class CSPTrunk(nn.Module):
    """YOLOv5's trunk behind a stem block.

    Attributes:
      width, depth: factors of the channels and of the bottlenecks.
      levels: 3, or 4 with a level of stride 64.
      stem: `StemBlock` or `Focus`.
      windows: of the spatial pyramid pooling.
      axis_name: mapped axis over which batch statistics are averaged.
      dtype: of the computation.
    """

    width: float
    depth: float
    levels: int = 3
    stem: Callable[..., nn.Module] = StemBlock
    windows: Sequence[int] = (3, 5, 7)
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """[N, H, W, 3] -> features at strides 8, 16, 32 (and 64)."""
        conv, found = _conv(self.axis_name, self.dtype), []
        x = self.stem(scaled(64, self.width), conv, name="stem")(x, train=train)
        x = C3(scaled(128, self.width), repeated(3, self.depth), conv, name="stage2")(x, train=train)
        for i, features in enumerate(csp_widths(self.levels)):
            features, depth, last = scaled(features, self.width), 9 if i < 2 else 3, i == self.levels - 1
            x = conv(features, 3, 2, 1, name=f"down{i + 3}")(x, train=train)
            if last:
                x = SPP(features, self.windows, conv, name="spp")(x, train=train)
            x = C3(features, repeated(depth, self.depth), conv, not last, name=f"stage{i + 3}")(x, train=train)
            found.append(x)
        return found


class ShuffleTrunk(nn.Module):
    """ShuffleNet V2 behind a stem block.

    Attributes:
      stem_width: channels of the stem.
      widths, depths: channels and units of the stages at strides 8, 16 and 32.
      stem: `StemBlock` or `Focus`.
      axis_name, dtype: see `CSPTrunk`.
    """

    stem_width: int = 32
    widths: Sequence[int] = (128, 256, 512)
    depths: Sequence[int] = (4, 8, 4)
    stem: Callable[..., nn.Module] = StemBlock
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """[N, H, W, 3] -> features at strides 8, 16, 32."""
        conv, found = _conv(self.axis_name, self.dtype), []
        x = self.stem(self.stem_width, conv, name="stem")(x, train=train)
        for stage, (features, depth) in enumerate(zip(self.widths, self.depths, strict=True), 3):
            for i in range(depth):
                x = ShuffleBlock(features, 1 if i else 2, conv, name=f"stage{stage}_{i}")(x, train=train)
            found.append(x)
        return found


def scaled(features: int, width: float) -> int:
    """Channels times a factor, rounded up to a multiple of 8."""
    return math.ceil(features * width / 8) * 8


def repeated(number: int, depth: float) -> int:
    """Blocks times a factor, at least 1."""
    return max(round(number * depth), 1)


def csp_widths(levels: int) -> tuple[int, ...]:
    """Unscaled channels of YOLOv5's levels."""
    return (256, 512, 1024) if levels == 3 else (256, 512, 768, 1024)


class Net(nn.Module):
    """Trunk, path-aggregation neck, and a 1x1 convolution for each level.

    Attributes:
      trunk: constructor of a module, images -> features at strides 8, 16, ...; called with axis_name, dtype and name.
      neck: channels of each level of the neck.
      depth: bottlenecks of each block of the neck.
      anchors: of each cell.
      axis_name: mapped axis over which batch statistics are averaged.
      dtype: of the computation; outputs are float32.
    """

    trunk: Callable[..., nn.Module]
    neck: Sequence[int]
    depth: int = 1
    anchors: int = 3
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Raw predictions; levels, rows, columns and anchors in order.

        Args:
          images: [N, H, W, 3] RGB in 0..1.
          train: whether batch statistics are used.

        Returns:
          Logits "boxes" [N, A, 4], "scores" [N, A] and "classes" [N, A]; "points" [N, A, 5, 2] in sides of the anchor.
        """
        conv = _conv(self.axis_name, self.dtype)
        levels = self.trunk(axis_name=self.axis_name, dtype=self.dtype, name="trunk")(images, train=train)
        block = partial(C3, depth=self.depth, conv=conv, shortcut=False)
        x, lateral = levels[-1], {}
        for i in reversed(range(len(levels) - 1)):
            x = lateral[i] = conv(self.neck[i], 1, name=f"lateral{i}")(x, train=train)
            height, width = levels[i].shape[1:3]
            x = jnp.concatenate([upsample_nearest(x, 2)[:, :height, :width], levels[i]], -1)
            x = block(self.neck[i], name=f"up{i}")(x, train=train)
        found = [x]
        for i in range(len(levels) - 1):
            x = conv(self.neck[i], 3, 2, 1, name=f"down{i}")(x, train=train)
            x = block(self.neck[i + 1], name=f"out{i + 1}")(jnp.concatenate([x, lateral[i]], -1), train=train)
            found.append(x)
        rows = []
        for i, x in enumerate(found):
            init = partial(_output_bias, stride=8 * 2**i)
            options = {"kernel_init": _output_kernel, "bias_init": init, "dtype": self.dtype, "name": f"detect{i}"}
            x = Conv(self.anchors * OUTPUTS, 1, use_bias=True, **options)(x)
            rows.append(x.astype(jnp.float32).reshape(x.shape[0], -1, OUTPUTS))
        boxes, scores, points, classes = jnp.split(jnp.concatenate(rows, 1), [4, 5, OUTPUTS - 1], -1)
        points = points.reshape(*points.shape[:2], POINTS, 2)
        return {"boxes": boxes, "scores": scores[..., 0], "points": points, "classes": classes[..., 0]}


def _output_kernel(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
    """PyTorch's default, but 0 for the class: nothing trains it, so that it would be noise in the score."""
    return torch_default(key, shape, dtype).at[..., OUTPUTS - 1 :: OUTPUTS].set(0)


def _output_bias(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32, *, stride: int) -> jax.Array:
    """YOLOv5's: 8 objects in an image of 640 pixels; the class has a probability of about 0.98."""
    del key
    bias = jnp.zeros((shape[0] // OUTPUTS, OUTPUTS), dtype)
    return bias.at[:, 4].set(math.log(8 / (640 / stride) ** 2)).at[:, -1].set(math.log(60)).reshape(-1)


def csp(width: float, depth: float, levels: int = 3, **options: Any) -> Net:
    """A network with YOLOv5's trunk; further options are those of `Net`."""
    neck = tuple(scaled(features, width) for features in csp_widths(levels))
    return Net(partial(CSPTrunk, width, depth, levels), neck, repeated(3, depth), **options)


yolo5face_n05 = partial(Net, partial(ShuffleTrunk, 16, (64, 128, 256)), (64, 64, 64))
yolo5face_n = partial(Net, ShuffleTrunk, (128, 128, 128))
yolo5face_s = partial(csp, 0.5, 0.33)
yolo5face_m = partial(csp, 0.75, 0.67)
yolo5face_l = partial(csp, 1.0, 1.0)
yolo5face_s6 = partial(csp, 0.5, 0.33, 4)
yolo5face_m6 = partial(csp, 0.75, 0.67, 4)
yolo5face_l6 = partial(csp, 1.0, 1.0, 4)


def wing(error: jax.Array, width: float = 10.0, curvature: float = 2.0) -> jax.Array:
    """Wing loss (Feng et al., arXiv:1711.06753): w log(1 + |x| / e) below w, |x| - C above, continuous. [...] -> [...].

    Args:
      error: x.
      width: w, where the logarithm ends.
      curvature: e.
    """
    size = jnp.abs(error)
    offset = width - width * math.log1p(width / curvature)
    return jnp.where(size < width, width * jnp.log1p(size / curvature), size - offset)


POINT_LOSSES: dict[str, Callable[[jax.Array], jax.Array]] = {"wing": wing, "l2": jnp.square}


class Samples(NamedTuple):
    """Where the G objects of an image are learnt on one level: five candidate cells for every anchor shape.

    Attributes:
      cell: [5, G, 2] int32 (column, row).
      target: [5, G, 4] boxes in centre form, in cells relative to the cell's corner.
      valid: [5, A, G] bool.
    """

    cell: jax.Array
    target: jax.Array
    valid: jax.Array


def samples(
    boxes: jax.Array, mask: jax.Array, anchors: np.ndarray, grid: tuple[int, int], stride: int, ratio: float = 4.0
) -> Samples:
    """YOLOv5's assignment for one image: the cell of the centre, and its neighbours across the nearest sides.

    An object fits an anchor if neither of its sides differs by a factor of `ratio` or more. A neighbour counts if the
    centre is less than half a cell away from it, and more than a cell from the border of the map.

    Args:
      boxes: [G, 4] corners in pixels.
      mask: [G] bool, real boxes.
      anchors: [A, 2] (width, height) in pixels.
      grid: (rows, columns) of the map.
      stride: pixels a cell.
      ratio: see above.
    """
    boxes = box.to_center(boxes)
    growth = boxes[:, 2:] / anchors[:, None]
    fits = jnp.maximum(growth, 1 / jnp.maximum(growth, box.EPSILON)).max(-1) < ratio
    centre, limit = boxes[:, :2] / stride, jnp.array(grid[::-1])
    before, after = (((x % 1 < 0.5) & (x > 1)).T for x in (centre, limit - centre))
    chosen = jnp.concatenate([jnp.ones((1, len(boxes)), bool), before, after])
    towards = jnp.array([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]])[:, None]
    cell = jnp.clip(jnp.floor(centre + 0.5 * towards).astype(jnp.int32), 0, limit - 1)
    sides = jnp.broadcast_to(boxes[:, 2:] / stride, cell.shape)
    return Samples(cell, jnp.concatenate([centre - cell, sides], -1), chosen[:, None] & fits & mask)


def last_written(values: jax.Array, places: Sequence[jax.Array], valid: jax.Array, shape: Sequence[int]) -> jax.Array:
    """An array of zeros in which the valid values are written one after the other; the last at a place stays.

    Args:
      values: [...].
      places: indices, one array [...] for each axis of the result.
      valid: [...] bool.
      shape: of the result.
    """
    order = jnp.where(valid, jnp.arange(1, values.size + 1).reshape(values.shape), 0)
    last = jnp.zeros(shape, jnp.int32).at[*places].max(order)
    return jnp.where(last > 0, values.reshape(-1)[last - 1], 0)


@dataclasses.dataclass(frozen=True)
class YOLO5Face:
    """The detector around a `Net`.

    Attributes:
      net: the network.
      strides: pixels a cell of each level.
      anchors: (width, height) in pixels of the anchors of each level.
      ratio: see `samples`.
      box_weight, score_weight, point_weight: weights of the losses of boxes, objectness and landmarks.
      balance: weights of the levels in the loss of the objectness.
      images: factor of the whole loss; the authors' code sums the gradients of 64 images.
      point_loss: "wing", or "l2" (squared errors), of landmarks in cells.
      lowest: scores must be above.
      threshold: largest IoU of two detections.
      candidates: boxes of the highest scores that enter suppression.
      count: detections per image.
    """

    net: Net
    strides: tuple[int, ...] = (8, 16, 32)
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ANCHORS
    ratio: float = 4.0
    box_weight: float = 0.05
    score_weight: float = 1.0
    point_weight: float = 0.005
    balance: tuple[float, ...] = (4.0, 1.0, 0.4)
    images: int = 64
    point_loss: str = "wing"
    lowest: float = 0.02
    threshold: float = 0.5
    candidates: int = 5000
    count: int = 750
    classes: ClassVar[int] = 1
    points: ClassVar[int] = POINTS

    def __post_init__(self) -> None:
        if self.point_loss not in POINT_LOSSES:
            raise ValueError(f"point_loss is {self.point_loss!r}: expected one of {', '.join(POINT_LOSSES)}")

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 RGB [N, H, W, 3] -> 0..1."""
        return images.astype(jnp.float32) / 255

    def losses(self, raw: dict[str, jax.Array], truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """Terms "box8", "score8", "points8" of stride 8 and so on: CIoU, cross-entropy, landmarks."""
        return jax.vmap(lambda raw, truth: self._losses(raw, truth, size))(raw, truth)

    def _losses(self, raw: dict[str, jax.Array], truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """The terms of one image."""
        terms, start = {}, 0
        for stride, anchors, balance in zip(self.strides, self.anchors, self.balance, strict=True):
            grid = tuple(-(-n // stride) for n in size)
            shape = (*grid, len(anchors))
            level = {name: x[start : start + math.prod(shape)].reshape(*shape, *x.shape[1:]) for name, x in raw.items()}
            start += math.prod(shape)
            found = self._level(level, truth, np.float32(anchors), grid, stride)
            weights = (self.box_weight, self.score_weight * balance, self.point_weight)
            for name, (total, count), weight in zip(("box", "score", "points"), found, weights, strict=True):
                terms[f"{name}{stride}"] = Term(total, jnp.asarray(count, jnp.float32), self.images * weight)
        return terms

    def _level(
        self, raw: dict[str, jax.Array], truth: Truth, anchors: np.ndarray, grid: tuple[int, int], stride: int
    ) -> list[tuple[jax.Array, jax.Array | int]]:
        """(total, count) of the terms of one image and level; lengths are in cells."""
        found = samples(truth.boxes, truth.mask, anchors, grid, stride, self.ratio)
        valid, target, sides = found.valid, found.target[:, None], anchors[:, None] / stride
        column, row = jnp.moveaxis(found.cell[:, None], -1, 0)
        places = jnp.broadcast_arrays(row, column, jnp.arange(len(anchors))[:, None])
        growth = 2 * jax.nn.sigmoid(raw["boxes"][*places])
        boxes = jnp.concatenate([growth[..., :2] - 0.5, growth[..., 2:] ** 2 * sides], -1)
        safe = jnp.where(valid[..., None], target, jnp.array([0.5, 0.5, 1, 1]))
        overlap = box.ciou(box.from_center(boxes), box.from_center(safe))
        quality = jnp.maximum(jax.lax.stop_gradient(overlap), 0)
        goal = last_written(
            quality, tuple(jnp.broadcast_to(x, valid.shape) for x in places), valid, raw["scores"].shape
        )
        entropy = jax.nn.softplus(raw["scores"]) - raw["scores"] * goal
        wanted = truth.points / stride - found.cell[:, None, :, None]
        seen = (truth.visible & valid[..., None])[..., None]
        error = raw["points"][*places] * sides[..., None, :] - wanted
        points = jnp.where(seen, POINT_LOSSES[self.point_loss](jnp.where(seen, error, 0)), 0)
        return [
            (jnp.sum(jnp.where(valid, 1 - overlap, 0)), valid.sum()),
            (entropy.sum(), goal.size),
            (points.sum(), 2 * seen.sum()),
        ]

    def decode(self, raw: dict[str, jax.Array], size: tuple[int, int]) -> Detections:
        """Detections by falling score."""
        anchors = box.anchors(size, self.strides, [np.float32(sides) for sides in self.anchors])
        cells = [math.prod(-(-n // s) for n in size) * len(a) for s, a in zip(self.strides, self.anchors, strict=True)]
        stride = np.repeat(np.float32(self.strides), cells)[:, None]
        growth, centre, sides = 2 * jax.nn.sigmoid(raw["boxes"]), anchors[:, :2], anchors[:, 2:]
        boxes = jnp.concatenate([centre + (growth[..., :2] - 1) * stride, growth[..., 2:] ** 2 * sides], -1)
        return suppressed(
            box.from_center(boxes),
            jax.nn.sigmoid(raw["scores"]) * jax.nn.sigmoid(raw["classes"]),
            (centre - stride / 2)[:, None] + raw["points"] * sides[:, None],
            lowest=self.lowest,
            threshold=self.threshold,
            count=self.count,
            candidates=self.candidates,
        )


P6 = {
    "strides": (8, 16, 32, 64),
    "anchors": ANCHORS_P6,
    "balance": (4.0, 1.0, 0.4, 0.1),
    "box_weight": 0.05 * 3 / 4,
    "score_weight": 1.4 * 3 / 4,
    "point_weight": 0.005 * 3 / 4,
}
"""Settings of `YOLO5Face` for the networks with a fourth level."""

yolo5face_p6 = partial(YOLO5Face, **P6)
