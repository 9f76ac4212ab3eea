"""YOLO v1: one network predicts the boxes and classes of an image on a coarse grid, as a regression.

Redmon, Divvala, Girshick, Farhadi. "You only look once: unified, real-time object detection". CVPR 2016.
arXiv:1506.02640. The cell that contains an object's centre predicts it: B boxes with confidences and one distribution
over the classes; dense layers see the whole image, so that the input's size is fixed.

As in the authors' code (`pjreddie/darknet`), the network predicts the square roots of the sides, boxes without overlap
are chosen by their root mean square error, and the first object of a cell is its target. Differs from the paper: scores
are never below 0 (a negative confidence times a negative class probability would be positive). `fast` has the layers
of the authors' `yolo-tiny.cfg`; the paper says only that it has nine convolutions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.detection.base import Detections, Term, Truth, suppressed
from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv
from facejax.ops import boxes as box
from facejax.ops.pooling import max_pool

Dtype = Any
POOL = (0, 2, 2)
"""A row of `Net.layers` for 2x2 pooling."""

PRETRAINED = (
    *((64, 7, 2), POOL, (192, 3, 1), POOL),
    *((128, 1, 1), (256, 3, 1), (256, 1, 1), (512, 3, 1), POOL),
    *(((256, 1, 1), (512, 3, 1)) * 4),
    *((512, 1, 1), (1024, 3, 1), POOL),
    *(((512, 1, 1), (1024, 3, 1)) * 2),
)
"""The first 20 convolutions, which the paper trains on ImageNet before."""
LAYERS = (*PRETRAINED, (1024, 3, 1), (1024, 3, 2), (1024, 3, 1), (1024, 3, 1))
FAST = (
    *((16, 3, 1), POOL, (32, 3, 1), POOL, (64, 3, 1), POOL, (128, 3, 1), POOL, (256, 3, 1), POOL, (512, 3, 1), POOL),
    *((1024, 3, 1), (1024, 3, 1), (1024, 3, 1)),
)


def leaky(x: jax.Array) -> jax.Array:
    """max(x, 0.1 x)."""
    return nn.leaky_relu(x, 0.1)


class Net(nn.Module):
    """Convolutions and dense layers.

    Attributes:
      layers: (features, kernel, stride) of each convolution; features 0: max pooling.
      hidden: width of the dense layer with leaky ReLU and dropout.
      bottleneck: width of a linear dense layer before it; 0 has none.
      grid: S, cells along each axis.
      boxes: B of each cell.
      num_classes: C.
      dropout: rate after the hidden layer.
      norm: batch norm in place of the convolutions' biases, as in the authors' later configurations.
      axis_name: mapped axis over which batch statistics are averaged.
      dtype: of the computation; outputs are float32.
    """

    layers: Sequence[tuple[int, int, int]] = LAYERS
    hidden: int = 4096
    bottleneck: int = 0
    grid: int = 7
    boxes: int = 2
    num_classes: int = 20
    dropout: float = 0.5
    norm: bool = False
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Raw predictions.

        Args:
          images: [N, H, W, 3] RGB in 0..1; H and W fix the size of the first dense layer (448 in the paper).
          train: whether dropout (rng "dropout") and batch statistics are used.

        Returns:
          "classes" [N, S, S, C]; "confidence" [N, S, S, B]; "boxes" [N, S, S, B, 4]: x and y in 0..1 of the cell, and
          square roots of the width and the height in 0..1 of the image. Nothing bounds them.
        """
        x, number = images.astype(self.dtype), 0
        for features, kernel, stride in self.layers:
            if not features:
                x = max_pool(x, (kernel, kernel), (stride, stride))
                continue
            number += 1
            sizes, name = (features, kernel, stride, kernel // 2), f"conv{number}"
            options = {"kernel_init": nn.initializers.he_normal(), "dtype": self.dtype, "name": name}
            if self.norm:
                x = ConvNorm(*sizes, activation=leaky, axis_name=self.axis_name, **options)(x, train=train)
            else:
                x = leaky(Conv(*sizes, use_bias=True, **options)(x))
        dense = partial(nn.Dense, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
        x = x.reshape(x.shape[0], -1)
        if self.bottleneck:
            x = dense(self.bottleneck, name="bottleneck")(x)
        x = leaky(dense(self.hidden, name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        cells, b = self.grid**2, self.boxes
        x = nn.Dense(cells * (self.num_classes + 5 * b), dtype=self.dtype, name="output")(x).astype(jnp.float32)
        parts = jnp.split(x, np.cumsum([cells * self.num_classes, cells * b]), 1)
        ends = {"classes": (self.num_classes,), "confidence": (b,), "boxes": (b, 4)}
        return {
            name: part.reshape(x.shape[0], self.grid, self.grid, *end)
            for part, (name, end) in zip(parts, ends.items(), strict=True)
        }


yolov1 = Net
fast_yolov1 = partial(Net, FAST, bottleneck=256)


def cells(boxes: jax.Array, mask: jax.Array, grid: int, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """The object of each cell: the first whose centre lies in it.

    Args:
      boxes: [G, 4] corners in pixels.
      mask: [G] bool, real boxes.
      grid: S.
      size: (height, width) of the image.

    Returns:
      row [S, S] int32 into `boxes`; [S, S] bool, cells with an object.
    """
    place = (box.to_center(boxes)[:, :2] * grid / jnp.array(size[::-1])).astype(jnp.int32)
    column, line = jnp.clip(place, 0, grid - 1).T
    index = jnp.arange(grid)
    hit = mask[:, None, None] & (line[:, None] == index)[:, :, None] & (column[:, None] == index)[:, None]
    return hit.argmax(0).astype(jnp.int32), hit.any(0)


def responsible(boxes: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The predictor that learns an object: of the highest IoU; if none overlaps it, of the lowest RMSE.

    Args:
      boxes: [..., B, 4] predictions in centre form, relative to the image.
      target: [..., 4] objects, likewise.

    Returns:
      [..., B] bool, exactly one of which is true; [..., B] IoU.
    """
    target = target[..., None, :]
    overlap = box.iou(box.from_center(boxes) * 1e3, box.from_center(target) * 1e3)  # IoU has an absolute epsilon
    error = jnp.sum((boxes - target) ** 2, -1)
    best = jnp.where(overlap.max(-1) > 0, overlap.argmax(-1), error.argmin(-1))
    return best[..., None] == jnp.arange(boxes.shape[-2]), overlap


@dataclasses.dataclass(frozen=True)
class YOLOv1:
    """The detector around a `Net`.

    Attributes:
      net: the network.
      coord_weight: lambda_coord, weight of the squared errors of boxes.
      background_weight: lambda_noobj, weight of the confidences of boxes that are not responsible for an object.
      square_root: whether sides are predicted and compared as square roots; false: as they are.
      lowest: scores must be above; 0.001 for evaluation, 0.2 in the authors' demonstration.
      threshold: largest IoU of two detections of a class.
      count: detections per image.
    """

    net: Net
    coord_weight: float = 5.0
    background_weight: float = 0.5
    square_root: bool = True
    lowest: float = 0.001
    threshold: float = 0.5
    count: int = 400
    points: ClassVar[int] = 0

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.net.num_classes

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 RGB [N, H, W, 3] -> 0..1."""
        return images.astype(jnp.float32) / 255

    def boxes(self, raw: jax.Array) -> jax.Array:
        """Raw boxes [..., S, S, B, 4] -> centre form, relative to the image."""
        sides = raw[..., 2:] ** 2 if self.square_root else jnp.maximum(raw[..., 2:], 0)
        return jnp.concatenate([(raw[..., :2] + self._corners[:, :, None]) / self.net.grid, sides], -1)

    @property
    def _corners(self) -> np.ndarray:
        """[S, S, 2] (column, line) of each cell."""
        return np.mgrid[: self.net.grid, : self.net.grid][::-1].transpose(1, 2, 0).astype(np.float32)

    def losses(self, raw: dict[str, jax.Array], truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """Squared errors, summed over the cells and averaged over the images."""
        return jax.vmap(lambda raw, truth: self._losses(raw, truth, size))(raw, truth)

    def _losses(self, raw: dict[str, jax.Array], truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """The terms of one image."""
        grid = self.net.grid
        row, present = cells(truth.boxes, truth.mask, grid, size)
        target = box.to_center(truth.boxes / jnp.array([*size[::-1]] * 2))[row]
        chosen, overlap = jax.tree.map(jax.lax.stop_gradient, responsible(self.boxes(raw["boxes"]), target))
        chosen &= present[..., None]
        sides = jnp.sqrt(target[..., 2:]) if self.square_root else target[..., 2:]
        wanted = jnp.concatenate([target[..., :2] * grid - self._corners, sides], -1)[:, :, None]
        label = jax.nn.one_hot(truth.labels[row], self.net.num_classes)

        def total(error: jax.Array, where: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(where, error, 0.0) ** 2)

        terms = {
            "box": (total(raw["boxes"] - wanted, chosen[..., None]), self.coord_weight),
            "object": (total(raw["confidence"] - overlap, chosen), 1.0),
            "background": (total(raw["confidence"], ~chosen), self.background_weight),
            "class": (total(raw["classes"] - label, present[..., None]), 1.0),
        }
        return {name: Term(value, jnp.ones(()), weight) for name, (value, weight) in terms.items()}

    def decode(self, raw: dict[str, jax.Array], size: tuple[int, int]) -> Detections:
        """Detections by falling score, the confidence times the probability of the class; boxes are clipped at last."""
        confidence, classes = (jnp.maximum(raw[name], 0) for name in ("confidence", "classes"))
        scores = confidence[..., None] * classes[..., None, :]
        boxes = box.from_center(self.boxes(raw["boxes"])) * jnp.array([*size[::-1]] * 2, jnp.float32)
        shape, images = scores.shape, len(scores)
        found = suppressed(
            jnp.broadcast_to(boxes[..., None, :], (*shape, 4)).reshape(images, -1, 4),
            scores.reshape(images, -1),
            labels=jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape).reshape(images, -1),
            lowest=self.lowest,
            threshold=self.threshold,
            count=self.count,
        )
        return found.replace(boxes=box.clip(found.boxes, size))
