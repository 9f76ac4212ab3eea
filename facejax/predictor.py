"""A detector as a function of photographs of any size: `predictor(image)` -> detections in pixels of the photograph."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from facejax import programs
from facejax.data import transforms
from facejax.data.decoding import ImageFile
from facejax.detection.base import Detections, Detector, gathered

Picture = Any
"""A path, the bytes of an image file, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8 or uint16."""

SMALLEST = 32
"""Smallest side of the network's input, pixels."""
LEVEL, WHOLE = 4, 8
"""Ratio of the scales at which `Predictor.tiled` looks; up to `WHOLE`, the next scale is that of the whole image."""
MARGIN = 0.1
"""A box so near to an inner border of its tile, relative to its longer side, may be part of a face."""
COVERED = 0.8
"""A box with this share of its area within a better one of another tile is part of the same face."""


def opened(picture: Picture) -> np.ndarray:
    """An image as uint8 RGB [H, W, 3].

    Args:
      picture: a path or the bytes of an image file, which is turned upright as its EXIF orientation says; or an array:
        grey, RGB or RGBA, whose alpha is ignored. 16 bits are scaled to 8.

    Raises:
      ValueError: the file does not decode, or the array has another type or shape.
    """
    if isinstance(picture, bytes):
        return transforms.decode(picture)
    if isinstance(picture, (str, os.PathLike)):
        return transforms.decode(ImageFile.read(picture))
    if not isinstance(picture, (np.ndarray, jax.Array)):
        raise ValueError(f"an image is a {type(picture).__name__}: expected an array, a path or the bytes of a file")
    image = np.asarray(picture)
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"an image of {image.dtype}: expected uint8 (0 to 255) or uint16 (0 to 65535)")
    if image.ndim not in (2, 3) or 0 in image.shape or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"an image of shape {list(image.shape)}: expected [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]")
    if image.dtype == np.uint16:
        image = np.round(image / 257).astype(np.uint8)
    image = image[..., None] if image.ndim == 2 else image[..., :3]
    return np.broadcast_to(image, (*image.shape[:2], 3))


@struct.dataclass
class View:
    """What the network sees of an image, or of N images with a leading axis.

    Attributes:
      image: [S, S, 3] uint8, black beyond the image.
      extent: [2] width and height of the image in it, pixels.
      scale, offset: [2]; original (x, y) times the scale minus the offset lies at its place.
      inner: [4] bool, whether the image continues to the left, at the top, to the right and at the bottom.
    """

    image: jax.Array
    extent: jax.Array
    scale: jax.Array
    offset: jax.Array
    inner: jax.Array


def views(image: np.ndarray, size: int, scale: float, overlap: int) -> Iterator[View]:
    """Overlapping tiles of an image, row by row; one of an image that is no larger than a tile.

    Args:
      image: uint8 [H, W, 3].
      size: side of the tiles, pixels.
      scale: of the image before it is cut, bilinear as in InsightFace's script.
      overlap: smallest overlap of neighbours, pixels.
    """
    original = np.array(image.shape[1::-1])
    width, height = sides = np.maximum(1, (original * scale + 1e-6).astype(int)).tolist()
    if sides != original.tolist():
        image = cv2.resize(np.ascontiguousarray(image), sides, interpolation=cv2.INTER_LINEAR)

    def starts(length: int) -> list[int]:
        count = max(1, -(-(length - overlap) // (size - overlap)))
        return np.linspace(0, max(0, length - size), count).round().astype(int).tolist()

    for top, left in itertools.product(starts(height), starts(width)):
        part = image[top : top + size, left : left + size]
        tile = np.zeros((size, size, 3), np.uint8)
        tile[: part.shape[0], : part.shape[1]] = part
        inner = np.array([left > 0, top > 0, left + size < width, top + size < height])
        yield View(tile, *np.float32([part.shape[1::-1], np.array(sides) / original, [left, top]]), inner)


class Predictor:
    """A detector with its variables: an image or a list of images -> `Detections` of NumPy arrays.

    Attributes:
      detector: the network and its post-processing; read-only, since compiled in.
      variables: of the network; read-only, too.
      size: side of the square that the network sees, pixels.
      batch_size: images of a list that the network sees at once; on a CPU, one is as fast as several.
      key: what the detector is, see `facejax.programs.kept`.
    """

    def __init__(self, detector: Detector, variables: Any, size: int = 640, batch_size: int = 1, key: str = ""):
        self._detector, self._variables = detector, jax.device_put(variables)
        self.size, self.batch_size = size, batch_size
        predict = programs.kept(self._predict, key)
        self._call = jax.jit(lambda views: predict(self.variables, views))  # constants let XLA fold the norms
        self._said = False

    @property
    def detector(self) -> Detector:
        """The network and its post-processing."""
        return self._detector

    @property
    def variables(self) -> Any:
        """Of the network."""
        return self._variables

    def __call__(self, images: Picture | Sequence[Picture], size: int | None = None) -> Detections:
        """Detections by falling score, in pixels of the image. Boxes may exceed the image; none lies outside of it.

        Args:
          images: an image, see `opened`, or a list of images of any sizes.
          size: in place of the attribute. Each size is compiled once.

        Returns:
          Arrays [K, ...] for an image, [N, K, ...] for a list; K is the detector's number of detections of an image,
          and `mask` marks the real ones. A warning tells of the first image that has K.

        Raises:
          ValueError: an image that `opened` refuses, a size below 32, or an empty list.
        """
        size = self._checked(size)
        single = not isinstance(images, (list, tuple))
        if not single and not images:
            raise ValueError("an empty list of images: expected at least one image")
        arrays = map(opened, [images] if single else images)
        whole = (view for image in arrays for view in views(image, size, size / max(image.shape[:2]), 0))
        found = jax.tree.map(lambda *x: np.concatenate(x), *self._found(whole))
        return jax.tree.map(lambda x: x[0], found) if single else found

    def tiled(
        self, image: Picture, size: int | None = None, overlap: int | None = None, threshold: float = 0.4
    ) -> Detections:
        """Detections in a large photograph, in overlapping tiles at its own scale and in the whole photograph.

        A face of up to 0.8 of the overlap is whole in one of the tiles; boxes at their inner borders are dropped.
        Larger faces are found in the whole photograph; if that is more than eight times as large as a tile, also in
        tiles at a quarter of the scale, and so on. Greedy suppression over all views keeps one box of each face.

        Args:
          image: see `opened`.
          size: side of the tiles, in place of the attribute.
          overlap: of neighbouring tiles, pixels; None: a quarter of the side.
          threshold: largest IoU of two boxes.

        Returns:
          Arrays [F, ...] of the F detections by falling score, without padding.

        Raises:
          ValueError: as from a call, and an overlap outside of 0 to size - 1.
        """
        size, image = self._checked(size), opened(image)
        overlap = size // 4 if overlap is None else overlap
        if not 0 <= overlap < size:
            raise ValueError(f"overlap is {overlap}: expected 0 to {size - 1}, less than the side of a tile")
        whole = size / max(image.shape[:2])
        scales = [1.0] if whole < 1 else []
        while scales and scales[-1] > WHOLE * whole:
            scales.append(scales[-1] / LEVEL)
        tiles = itertools.chain.from_iterable(views(image, size, scale, overlap) for scale in (*scales, whole))
        found = jax.tree.map(lambda *x: np.concatenate(x), *self._found(tiles))
        origin = np.broadcast_to(np.arange(len(found.mask))[:, None], found.mask.shape)[found.mask]
        real = jax.tree.map(lambda x: x[found.mask], found)
        kept = merged(real.boxes, real.scores, real.labels, origin, threshold)
        return jax.tree.map(lambda x: x[kept], real)

    def _checked(self, size: int | None) -> int:
        size = self.size if size is None else size
        if not isinstance(size, (int, np.integer)) or size < SMALLEST:
            raise ValueError(f"size is {size!r}: expected a whole number of pixels, {SMALLEST} or more")
        return int(size)

    def _predict(self, variables: Any, views: View) -> dict[str, jax.Array]:
        """Detections in pixels of the images, without those that have no area, lie outside or at inner borders.

        The fields of `Detections`, and "full" [N], whether the detector had found as many as it can return.
        """
        size = views.image.shape[1:3]
        raw = self.detector.net.apply(variables, self.detector.preprocess(views.image), train=False)
        found = self.detector.decode(raw, size)
        extent, scale, offset, inner = (x[:, None] for x in (views.extent, views.scale, views.offset, views.inner))
        low, high = found.boxes[..., :2], found.boxes[..., 2:]
        margin = MARGIN * (high - low).max(-1, keepdims=True)
        cut = inner & (jnp.concatenate([low, jnp.array(size[::-1]) - high], -1) < margin)
        real = found.mask & ((high > low) & (high > 0) & (low < extent)).all(-1) & ~cut.any(-1)
        low, high, points = (low + offset) / scale, (high + offset) / scale, found.points + offset[:, None]
        boxes, points = jnp.concatenate([low, high], -1), points / scale[:, None]
        rows = jnp.argsort(~real, axis=1, stable=True)
        kept = jnp.take_along_axis(real, rows, 1)
        best = jax.vmap(gathered)(rows, kept, boxes, found.scores, points, found.labels)
        return {"full": found.mask.all(1), **vars(best)}

    def _found(self, views: Iterable[View]) -> Iterator[Detections]:
        """Detections batch by batch; views that do not fill a batch go one by one."""
        views = iter(views)
        while part := list(itertools.islice(views, self.batch_size)):
            for batch in [part] if len(part) == self.batch_size else ([view] for view in part):
                stacked = jax.tree.map(lambda *x: np.stack(x), *batch)
                fields = {name: np.asarray(value) for name, value in self._call(stacked).items()}
                full, found = fields.pop("full"), Detections(**fields)
                if full.any() and not self._said:
                    self._said = True
                    warnings.warn(
                        f"an image has {found.mask.shape[1]} detections or more: here and from now on, only the "
                        f"{found.mask.shape[1]} of the highest scores are kept (count of the detector)",
                        stacklevel=3,
                    )
                yield found


def merged(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, origin: np.ndarray, threshold: float
) -> np.ndarray:
    """Greedy suppression over several views of an image.

    A box is dropped by a better one of its label with an IoU above `threshold`, or by one of another view that covers
    `COVERED` of it, such as a whole face its part.

    Args:
      boxes: [n, 4].
      scores: [n].
      labels: [n] int.
      origin: [n] int, the view of each box.
      threshold: largest IoU of two kept boxes.

    Returns:
      [k] rows of the kept boxes by falling score.
    """
    kept = []
    left = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = (f(boxes[best, s], boxes[left, s]) for f, s in ((np.maximum, np.s_[:2]), (np.minimum, np.s_[2:])))
        shared = np.maximum(high - low, 0).prod(-1)
        same = shared > threshold * (areas[best] + areas[left] - shared)
        same |= (origin[left] != origin[best]) & (shared >= COVERED * areas[left])
        left = left[~(same & (labels[left] == labels[best]))]
    return np.array(kept, int)
