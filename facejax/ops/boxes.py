"""Boxes: overlaps, encodings relative to anchors, and grids of anchors.

Boxes are [..., 4] (x1, y1, x2, y2) in pixels, with continuous coordinates: the width is x2 - x1. Some protocols count
inclusive pixels, with a width of x2 - x1 + 1: `plus_one`. Anchors are [..., 4] (centre x, centre y, width, height).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

EPSILON = 1e-7


def to_center(boxes: jax.Array) -> jax.Array:
    """Corners to (centre x, centre y, width, height)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], -1)


def from_center(boxes: jax.Array) -> jax.Array:
    """(centre x, centre y, width, height) to corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def clip(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Boxes cut at the borders of an image of `size` (height, width)."""
    height, width = size
    return jnp.clip(boxes, 0, jnp.array([width, height, width, height], boxes.dtype))


def area(boxes: jax.Array, *, plus_one: bool = False) -> jax.Array:
    """[..., 4] -> [...]; 0 for boxes of negative size."""
    width, height = (jnp.maximum(boxes[..., i + 2] - boxes[..., i] + plus_one, 0) for i in (0, 1))
    return width * height


def intersection(a: jax.Array, b: jax.Array, *, plus_one: bool = False) -> jax.Array:
    """Area that boxes share: [..., 4] and [..., 4], broadcast -> [...]."""
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    return area(jnp.concatenate([low, high], -1), plus_one=plus_one)


def iou(a: jax.Array, b: jax.Array, *, plus_one: bool = False) -> jax.Array:
    """Intersection over union of boxes, [..., 4] and [..., 4], broadcast -> [...]; 0 for two empty boxes.

    For all pairs of [N, 4] and [M, 4]: `iou(a[:, None], b)`.
    """
    shared = intersection(a, b, plus_one=plus_one)
    union = area(a, plus_one=plus_one) + area(b, plus_one=plus_one) - shared
    return shared / jnp.maximum(union, EPSILON)


def coverage(a: jax.Array, b: jax.Array, *, plus_one: bool = False) -> jax.Array:
    """Intersection over the area of `a` (IoF): [..., 4] and [..., 4], broadcast -> [...]."""
    return intersection(a, b, plus_one=plus_one) / jnp.maximum(area(a, plus_one=plus_one), EPSILON)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU less the share of the enclosing box outside the union (Rezatofighi et al., arXiv:1902.09630); in -1..1."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    hull = jnp.prod(_hull(a, b), -1)
    return shared / jnp.maximum(union, EPSILON) - (hull - union) / jnp.maximum(hull, EPSILON)


def diou(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU less the squared distance of the centres over that of the enclosing box's corners (arXiv:1911.08287)."""
    distance = jnp.sum((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) ** 2, -1) / 4
    return iou(a, b) - distance / (jnp.sum(_hull(a, b) ** 2, -1) + EPSILON)


def ciou(a: jax.Array, b: jax.Array) -> jax.Array:
    """DIoU less a penalty of other aspect ratios, whose weight is a constant for the gradient (arXiv:1911.08287)."""

    def angle(boxes: jax.Array) -> jax.Array:
        width, height = (boxes[..., i + 2] - boxes[..., i] for i in (0, 1))
        return jnp.arctan(width / jnp.maximum(height, EPSILON))

    aspect = 4 / jnp.pi**2 * (angle(a) - angle(b)) ** 2
    weight = jax.lax.stop_gradient(aspect / (1 - iou(a, b) + aspect + EPSILON))
    return diou(a, b) - weight * aspect


def _hull(a: jax.Array, b: jax.Array) -> jax.Array:
    """Width and height of the smallest box around both."""
    return jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])


def encode(boxes: jax.Array, anchors: jax.Array, variances: tuple[float, float] = (0.1, 0.2)) -> jax.Array:
    """Offsets of boxes from anchors: ((g - c) / (v0 size), log(size_g / size) / v1).

    Args:
      boxes: [..., 4] corners; sides below 1e-6 count as 1e-6.
      anchors: [..., 4] centre form, broadcast.
      variances: SSD's; (1, 1) gives the encoding of Faster R-CNN.
    """
    target = to_center(boxes)
    centre, size = anchors[..., :2], anchors[..., 2:]
    shift = (target[..., :2] - centre) / (variances[0] * size)
    return jnp.concatenate([shift, jnp.log(jnp.maximum(target[..., 2:], 1e-6) / size) / variances[1]], -1)


def decode(
    offsets: jax.Array,
    anchors: jax.Array,
    variances: tuple[float, float] = (0.1, 0.2),
    *,
    largest_log: float | None = None,
) -> jax.Array:
    """The inverse of `encode`: corners [..., 4]. `largest_log` bounds the logarithm of the change of size."""
    centre = anchors[..., :2] + variances[0] * offsets[..., :2] * anchors[..., 2:]
    growth = variances[1] * offsets[..., 2:]
    if largest_log is not None:
        growth = jnp.minimum(growth, largest_log)
    return from_center(jnp.concatenate([centre, anchors[..., 2:] * jnp.exp(growth)], -1))


def encode_points(points: jax.Array, anchors: jax.Array, variance: float = 0.1) -> jax.Array:
    """Offsets of points [..., P, 2] from anchors [..., 4], in units of `variance` times the anchor's sides."""
    return (points - anchors[..., None, :2]) / (variance * anchors[..., None, 2:])


def decode_points(offsets: jax.Array, anchors: jax.Array, variance: float = 0.1) -> jax.Array:
    """The inverse of `encode_points`."""
    return anchors[..., None, :2] + variance * offsets * anchors[..., None, 2:]


def encode_distances(boxes: jax.Array, centres: jax.Array, stride: jax.Array | float) -> jax.Array:
    """Distances (left, top, right, bottom) from centres [..., 2] to the sides of boxes [..., 4], in strides."""
    return jnp.concatenate([centres - boxes[..., :2], boxes[..., 2:] - centres], -1) / stride


def decode_distances(distances: jax.Array, centres: jax.Array, stride: jax.Array | float) -> jax.Array:
    """The inverse of `encode_distances`: corners [..., 4]."""
    scaled = distances * stride
    return jnp.concatenate([centres - scaled[..., :2], centres + scaled[..., 2:]], -1)


def shapes(sides: Sequence[float], ratios: Sequence[float] = (1.0,)) -> np.ndarray:
    """[len(sides) * len(ratios), 2] (width, height) of anchors of area side^2 and height / width in `ratios`."""
    return np.array([(s / np.sqrt(r), s * np.sqrt(r)) for s in sides for r in ratios])


def grid(size: tuple[int, int], stride: int, *, offset: float = 0.5) -> np.ndarray:
    """Centres [h * w, 2] (x, y) in pixels of the cells of a map, row by row: (cell + offset) * stride.

    Args:
      size: (height, width) of the image; the map has ceil(size / stride) cells.
      stride: pixels a cell.
      offset: of the centre in its cell.
    """
    height, width = (-(-n // stride) for n in size)
    y, x = np.mgrid[:height, :width]
    return (np.stack([x.ravel(), y.ravel()], -1) + offset) * stride


def anchors(
    size: tuple[int, int], strides: Sequence[int], shapes: Sequence[np.ndarray], *, offset: float = 0.5
) -> np.ndarray:
    """Anchors of all levels, [A, 4] float32 in centre form, ordered by level, row, column and shape.

    Args:
      size: (height, width) of the image.
      strides: of the levels.
      shapes: of each level, [n, 2] (width, height) in pixels.
      offset: see `grid`.
    """
    levels = []
    for stride, boxes in zip(strides, shapes, strict=True):
        centres = grid(size, stride, offset=offset)
        whole = np.empty((len(centres), len(boxes), 4), np.float32)
        whole[..., :2], whole[..., 2:] = centres[:, None], boxes
        levels.append(whole.reshape(-1, 4))
    return np.concatenate(levels)
