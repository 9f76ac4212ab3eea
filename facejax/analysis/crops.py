"""Where a network looks at a face, and the crops of many faces in one call on the device.

A rule says which pixels of the photograph a crop shows, by the published code of its networks. Regions are made on the
host in float64, since that code rounds them; pixels are resampled on the device: bilinear, black beyond the photograph.
Rectangles are resized in the integers of OpenCV's `resize`, since small networks tell a grey level more or less apart.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from facejax.data import transforms
from facejax.morphable import crops

FEWEST_PIXELS = 2**16
"""Pixels of a call's photographs are padded to this, times a power of two."""


class Regions(NamedTuple):
    """What the crops of F faces show of their photographs.

    Attributes:
      matrices: [F, 2, 3] from (column, row, 1) of a crop to those of the photograph; integers are pixel centres.
      limits: [F, 4] x0, y0, x1, y1 of the pixels that a crop may show; those beyond are as the nearest within.
      rects: [F, 4] float64 x0, y0, x1, y1, to which a network's outputs refer.
    """

    matrices: np.ndarray
    limits: np.ndarray
    rects: np.ndarray


@dataclasses.dataclass(frozen=True)
class Aligned:
    """The similarity that brings five points next to the recognition template, see `facejax.data.transforms.template`.

    Attributes:
      side: of the crop, pixels.
    """

    side: int = 112

    def __call__(self, boxes: np.ndarray, points: np.ndarray, size: tuple[int, int]) -> Regions:
        """Regions of faces with `boxes` [F, 4] and `points` [F, 5, 2] in a photograph of `size` (width, height)."""
        template = transforms.template(self.side) @ [1, 1j]
        places = np.asarray(points, np.float64) @ [1, 1j]
        middle, centre = places.mean(1, keepdims=True), template.mean()
        to, start = template - centre, places - middle
        spread = np.sum(np.abs(start) ** 2, 1, keepdims=True)
        factor = np.sum(np.conj(start) * to, 1, keepdims=True) / np.where(spread > 0, spread, 1)
        factor = np.where(np.abs(factor) > 1e-9, factor, 1)  # points that are all in one place
        inverse, shift = (1 / factor)[:, 0], (middle - centre / factor)[:, 0]
        matrices = np.stack([inverse.real, -inverse.imag, shift.real, inverse.imag, inverse.real, shift.imag], -1)
        everywhere = np.tile(np.float64([-(2**30), -(2**30), 2**30, 2**30]), (len(boxes), 1))
        return Regions(matrices.reshape(-1, 2, 3), everywhere, np.float64(boxes))


@dataclasses.dataclass(frozen=True)
class Enlarged:
    """The box, whose corners are cut to whole pixels, enlarged and clipped to the photograph (FSA-Net, SSR-Net).

    Attributes:
      side: of the crop, pixels.
      margin: added on each side, relative to the box's width and height.
    """

    side: int
    margin: float

    def __call__(self, boxes: np.ndarray, points: np.ndarray | None, size: tuple[int, int]) -> Regions:
        """As `Aligned`; the points are not used."""
        low, high = np.split(np.trunc(np.float64(boxes)), 2, 1)
        added, last = self.margin * (high - low), np.array(size) - 1
        first = np.clip(np.trunc(low - added), 0, last)
        return _stretched(np.concatenate([first, np.clip(np.trunc(high + added), first, last) + 1], 1), self.side)


@dataclasses.dataclass(frozen=True)
class Square:
    """A square around the middle of the box, in whole pixels (PFLD of cunjian/pytorch_face_landmark).

    Attributes:
      side: of the crop, pixels.
      factor: the square's side over the shorter side of the box.
    """

    side: int
    factor: float

    def __call__(self, boxes: np.ndarray, points: np.ndarray | None, size: tuple[int, int]) -> Regions:
        """As `Aligned`; the points are not used."""
        low, high = np.split(np.trunc(np.float64(boxes)), 2, 1)
        extent = high - low + 1
        length = np.maximum(np.trunc(self.factor * extent.min(1, keepdims=True)), 1)
        first = low + extent // 2 - length // 2
        return _stretched(np.concatenate([first, first + length], 1), self.side)


@dataclasses.dataclass(frozen=True)
class Roi:
    """The square of 3DDFA_V2 around a box; see `facejax.morphable.crops.roi_from_box`.

    Attributes:
      side: of the crop, pixels.
    """

    side: int = 120

    def __call__(self, boxes: np.ndarray, points: np.ndarray | None, size: tuple[int, int]) -> Regions:
        """As `Aligned`; the points are not used. `rects` are not rounded, as in the published code."""
        rects = crops.roi_from_box(boxes)
        low, high = np.split(np.round(rects), 2, 1)
        found = _stretched(np.concatenate([low, np.maximum(high, low + 1)], 1), self.side)
        return found._replace(rects=np.concatenate([rects[:, :2], np.maximum(rects[:, 2:], rects[:, :2] + 1)], 1))


Rule = Aligned | Enlarged | Square | Roi
BITS = 11
"""Of the weights of `cv2.resize`."""


def _stretched(rects: np.ndarray, side: int) -> Regions:
    """Rectangles of whole pixels [F, 4], resized to `side` as `cv2.resize` does."""
    scale = (rects[:, 2:] - rects[:, :2]) / side
    matrices = np.zeros((len(rects), 2, 3))
    matrices[:, (0, 1), (0, 1)] = scale
    matrices[:, :, 2] = rects[:, :2] + 0.5 * scale - 0.5
    return Regions(matrices, rects, rects)


class Pixels(NamedTuple):
    """The pixels of several photographs in one array, whose length is padded so that few programs are compiled.

    Attributes:
      packed: [P] uint32, red in the lowest byte, row by row.
      places: [N, 3] int32, where each photograph begins, its width and its height.
    """

    packed: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, photos: Sequence[np.ndarray]) -> Pixels:
        """Of photographs uint8 RGB [H, W, 3]."""
        counts = [photo.shape[0] * photo.shape[1] for photo in photos]
        total = FEWEST_PIXELS
        while total < sum(counts):
            total *= 2
        packed, starts = np.empty(total, np.uint32), np.cumsum([0, *counts[:-1]])
        for photo, start, count in zip(photos, starts, counts, strict=True):
            four = packed[start : start + count].view(np.uint8).reshape(*photo.shape[:2], 4)
            cv2.cvtColor(np.ascontiguousarray(photo), cv2.COLOR_RGB2RGBA, dst=four)
        places = [(start, *photo.shape[1::-1]) for photo, start in zip(photos, starts, strict=True)]
        return cls(packed, np.int32(places))


@functools.partial(jax.jit, static_argnames="rules")
def cut(
    packed: jax.Array, places: jax.Array, regions: Mapping[int, tuple[jax.Array, jax.Array]], rules: tuple[Rule, ...]
) -> list[jax.Array]:
    """The crops of n faces under several rules.

    Args:
      packed: [P], see `Pixels`.
      places: [n, 3] int32 of the faces' photographs.
      regions: for each rule (by its number) matrices [n, 2, 3] and limits [n, 4].
      rules: K of them.

    Returns:
      K arrays [n, side, side, 3] uint8.
    """
    return [
        jax.vmap(functools.partial(_resampled, packed, side=rule.side, integers=not isinstance(rule, Aligned)))(
            places, *regions[k]
        )
        for k, rule in enumerate(rules)
    ]


def _resampled(
    packed: jax.Array, place: jax.Array, matrix: jax.Array, limits: jax.Array, side: int, integers: bool
) -> jax.Array:
    """One crop [side, side, 3] uint8; with `integers` rounded as `cv2.resize` does it."""
    start, width, height = place
    rows, columns = jnp.mgrid[:side, :side].astype(jnp.float32)
    x, y = (line[0] * columns + line[1] * rows + line[2] for line in matrix)
    column, row = jnp.floor(x), jnp.floor(y)
    u, v = (x - column)[..., None], (y - row)[..., None]

    def tap(dx: int, dy: int) -> jax.Array:
        near = jnp.clip(column + dx, limits[0], limits[2] - 1), jnp.clip(row + dy, limits[1], limits[3] - 1)
        across, down = (place.astype(jnp.int32) for place in near)
        inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
        colour = packed[start + jnp.clip(down, 0, height - 1) * width + jnp.clip(across, 0, width - 1)]
        colour = jnp.where(inside, colour, 0)
        return jnp.stack([(colour >> shift & 255).astype(jnp.int32) for shift in (0, 8, 16)], -1)

    (left, right), (above, below) = ((1 - u, u), (1 - v, v))
    if integers:
        left, right, above, below = (jnp.round(w * 2**BITS).astype(jnp.int32) for w in (left, right, above, below))
    top, bottom = tap(0, 0) * left + tap(1, 0) * right, tap(0, 1) * left + tap(1, 1) * right
    if integers:
        return ((above * (top >> 4) >> 16) + (below * (bottom >> 4) >> 16) + 2 >> 2).astype(jnp.uint8)
    return jnp.round(top * above + bottom * below).astype(jnp.uint8)
