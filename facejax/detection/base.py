"""The shape that all detectors have: network -> raw predictions -> losses, or detections of fixed size.

A paper's file defines a Linen network and a frozen dataclass with the methods of `Detector`. Ground truth and
detections are padded arrays with a mask, so that training and post-processing are batched and jitted.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from facejax.ops.nms import nms


@struct.dataclass
class Truth:
    """Annotations of N images, padded to G boxes.

    Attributes:
      boxes: [N, G, 4] corners in pixels of the network's input.
      labels: [N, G] int32, classes from 0.
      points: [N, G, P, 2] in pixels; P is 5 for faces, 0 for general objects.
      visible: [N, G, P] bool, annotated points.
      mask: [N, G] bool, real boxes.
    """

    boxes: jax.Array
    labels: jax.Array
    points: jax.Array
    visible: jax.Array
    mask: jax.Array

    @classmethod
    def of(cls, batch: dict[str, jax.Array]) -> Truth:
        """From the arrays of a batch with these names."""
        return cls(*(batch[name] for name in ("boxes", "labels", "points", "visible", "mask")))


@struct.dataclass
class Detections:
    """Detections in N images, by falling score, padded to K.

    Attributes:
      boxes: [N, K, 4] corners in pixels of the network's input.
      scores: [N, K].
      labels: [N, K] int32, classes from 0.
      points: [N, K, P, 2] in pixels.
      mask: [N, K] bool, real detections.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    points: jax.Array
    mask: jax.Array


@struct.dataclass
class Term:
    """One term of a loss: weight * sum(total) / max(sum(count), smallest), sums over the images of all devices.

    With a count of 1 per image the term is a mean over images. With gradient accumulation (train.microbatches) both
    sums are over the images of one slice, and the loss is the mean over the slices.

    Attributes:
      total: [N] sum over the anchors of each image.
      count: [N] what divides the sum, such as the number of positive anchors.
      weight: factor of the term.
      smallest: lower bound of the divisor.
    """

    total: jax.Array
    count: jax.Array
    weight: float = struct.field(pytree_node=False, default=1.0)
    smallest: float = struct.field(pytree_node=False, default=1.0)

    def value(self, axis_name: str | None = None) -> jax.Array:
        """[] this device's part, whose mean over the devices of `axis_name` is the term."""
        devices = 1 if axis_name is None else lax.axis_size(axis_name)
        count = self.count.sum() if axis_name is None else lax.psum(self.count.sum(), axis_name)
        return self.weight * devices * self.total.sum() / jnp.maximum(count, self.smallest)


class Detector(Protocol):
    """A detector: a frozen dataclass whose fields are the paper's settings.

    Attributes:
      net: images -> raw predictions, a pytree; called as net.apply(variables, images, train=...).
      classes: number of classes C.
      points: P, number of points per detection; 0 for none.
      clips: whether boxes end at the image's border; a detector without the attribute does not cut them.
    """

    net: nn.Module
    classes: int
    points: int

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 RGB [N, H, W, 3] -> the network's input."""
        ...

    def losses(self, raw: Any, truth: Truth, size: tuple[int, int]) -> dict[str, Term]:
        """The terms of the loss by name, of raw predictions for images of `size` (height, width)."""
        ...

    def decode(self, raw: Any, size: tuple[int, int]) -> Detections:
        """Detections with the paper's post-processing."""
        ...


def suppressed(
    boxes: jax.Array,
    scores: jax.Array,
    points: jax.Array | None = None,
    labels: jax.Array | None = None,
    *,
    lowest: float,
    threshold: float,
    count: int,
    candidates: int | None = None,
    plus_one: bool = False,
) -> Detections:
    """The usual post-processing of N images: a score threshold, the best candidates, greedy NMS, the best K.

    Args:
      boxes: [N, A, 4].
      scores: [N, A].
      points: [N, A, P, 2]; None: P is 0.
      labels: [N, A] int; suppression is within a class. None: one class.
      lowest: scores must be above.
      threshold: largest IoU of two kept boxes.
      count: K.
      candidates: boxes of the highest scores that enter NMS; all when None.
      plus_one: whether NMS counts sides in inclusive pixels.
    """
    if points is None:
        points = jnp.zeros((*scores.shape, 0, 2), boxes.dtype)
    if labels is None:
        labels = jnp.zeros(scores.shape, jnp.int32)

    def one(boxes: jax.Array, scores: jax.Array, points: jax.Array, labels: jax.Array) -> Detections:
        options = {"candidates": candidates, "plus_one": plus_one, "threshold": threshold, "count": count}
        rows, kept = nms(boxes, scores, mask=scores > lowest, labels=labels, **options)
        return gathered(rows, kept, boxes, scores, points, labels)

    return jax.vmap(one)(boxes, scores, points, labels)


def gathered(
    rows: jax.Array, kept: jax.Array, boxes: jax.Array, scores: jax.Array, points: jax.Array, labels: jax.Array
) -> Detections:
    """Detections of one image at `rows` [K]; all values are 0 where `kept` [K] is false."""
    found = Detections(boxes[rows], scores[rows], labels[rows], points[rows], kept)
    return jax.tree.map(lambda x: jnp.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)), found)
