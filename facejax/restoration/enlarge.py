"""Enlarging pictures of any size: in tiles, with EDSR's upsampler folded into one convolution, with a self-ensemble.

Tiles are windows of one size that overlap by the network's radius and lie inside the picture, so that memory is bounded
and one compiled program serves all of them; the result equals that of the whole picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.ops.conv import conv
from facejax.restoration.super_resolution import EDSR, pixel_shuffle

Restore = Callable[[jax.Array], jax.Array]
"""RGB images [N, h, w, 3] in 0..1 -> [N, scale h, scale w, 3]."""

REACH = 2
"""Pixels of the input that the upsampler of EDSR looks to each side, whatever its scale."""
LARGE = 2.0**12
"""Brightness of a pixel whose response is measured, beside which the mean colour costs no digits."""


def tiled(restore: Restore, picture: np.ndarray, scale: int, *, tile: int = 192, overlap: int = 32) -> np.ndarray:
    """Enlarges a picture window by window.

    Args:
      restore: the network, jitted or not.
      picture: [H, W, 3] uint8 RGB.
      scale: of the enlargement.
      tile: pixels of a window that are kept, at most; a picture no larger than a window is enlarged as a whole.
      overlap: pixels on each side of it that are computed and dropped. From the network's radius on, the result
        equals that of the whole picture; less gives small differences.

    Returns:
      [scale H, scale W, 3] uint8.

    Raises:
      ValueError: the picture is no uint8 RGB, or its sides, `tile` or `overlap` are too small.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(
            f"tiled: a picture {picture.shape} of {picture.dtype}: expected [H, W, 3] of uint8, RGB without alpha"
        )
    if tile < 1 or overlap < 0:
        raise ValueError(f"tiled: tile {tile} and overlap {overlap}: expected at least 1 and 0")
    sides = picture.shape[:2]
    window = [min(side, tile + 2 * overlap) for side in sides]
    found = np.empty((scale * sides[0], scale * sides[1], 3), np.uint8)
    for spans in itertools.product(*(_spans(side, w, overlap) for side, w in zip(sides, window, strict=True))):
        (top, rows), (left, columns) = spans
        part = picture[None, top : top + window[0], left : left + window[1]]
        large = np.asarray(restore(part.astype(np.float32) / 255))[0]
        kept = large[_scaled(rows, top, scale), _scaled(columns, left, scale)]
        found[_scaled(rows, 0, scale), _scaled(columns, 0, scale)] = np.rint(np.clip(255 * kept, 0, 255))
    return found


def _spans(side: int, window: int, overlap: int) -> list[tuple[int, tuple[int, int]]]:
    """(start of a window, (first, last + 1) of the pixels kept of it) along one side; windows lie inside."""
    if window == side:
        return [(0, (0, side))]
    step = window - 2 * overlap
    starts = [min(i, side - window) for i in range(0, side - 2 * overlap, step)]
    ends = [start + window - overlap for start in starts[:-1]] + [side]
    return list(zip(starts, zip([0, *ends[:-1]], ends, strict=True), strict=True))


def _scaled(span: tuple[int, int], start: int, scale: int) -> slice:
    return slice(scale * (span[0] - start), scale * (span[1] - start))


def folded(net: EDSR, variables: Any) -> Restore:
    """EDSR with its upsampler as one 5 x 5 convolution to scale^2 colours and a pixel shuffle.

    The upsampler has no activation, so that it is linear, and its response to one pixel is that convolution's kernel.
    At the border, where each of its layers pads with zeros, the original computes. The results are equal; of EDSR's
    baseline at x4, a third of the multiplications is left out, and the maps at full size are never made.
    """

    def rebuilt(x: jax.Array) -> jax.Array:
        return net.apply(variables, x, method=net.rebuilt)

    @jax.jit
    def response() -> tuple[jax.Array, jax.Array]:
        """Kernel [5, 5, F, 3 scale^2] and bias [3 scale^2], in the order of channels that `pixel_shuffle` expects."""
        side, middle = 4 * REACH + 1, 2 * REACH
        pixels = jnp.zeros((net.features, side, side, net.features))
        pixels = pixels.at[jnp.arange(net.features), middle, middle, jnp.arange(net.features)].set(LARGE)
        none = blocks(rebuilt(jnp.zeros((1, side, side, net.features))))
        around = slice(middle - REACH, middle + REACH + 1)
        found = ((blocks(rebuilt(pixels)) - none) / LARGE)[:, around, around]
        return found[:, ::-1, ::-1].transpose(1, 2, 0, 3), none[0, middle, middle]

    def blocks(images: jax.Array) -> jax.Array:
        """The inverse of `pixel_shuffle`: [N, scale h, scale w, 3] -> [N, h, w, 3 scale^2]."""
        n, height, width, _ = images.shape
        s = net.scale
        x = images.reshape(n, height // s, s, width // s, s, 3)
        return x.transpose(0, 1, 3, 5, 2, 4).reshape(n, height // s, width // s, -1)

    kernel, bias = response()

    def restore(images: jax.Array) -> jax.Array:
        x = net.apply(variables, images, method=net.extracted)
        if min(x.shape[1:3]) <= 2 * REACH:
            return rebuilt(x)
        edge, s = 2 * REACH, net.scale
        inside = pixel_shuffle(conv(x, kernel.astype(x.dtype)).astype(jnp.float32) + bias, s)
        kept = REACH * s
        left, right = rebuilt(x[:, :, :edge])[:, kept:-kept, :kept], rebuilt(x[:, :, -edge:])[:, kept:-kept, -kept:]
        top, bottom = rebuilt(x[:, :edge])[:, :kept], rebuilt(x[:, -edge:])[:, -kept:]
        return jnp.concatenate([top, jnp.concatenate([left, inside, right], 2), bottom], 1)

    return restore


def self_ensemble(restore: Restore) -> Restore:
    """The mean over the four turns of an image and of its mirror image, turned back ("+" of EDSR's authors)."""

    def ensemble(images: jax.Array) -> jax.Array:
        found = []
        for turns, mirrored in itertools.product(range(4), (False, True)):
            view = jnp.rot90(images[:, :, ::-1] if mirrored else images, turns, (1, 2))
            large = jnp.rot90(restore(view), -turns, (1, 2))
            found.append(large[:, :, ::-1] if mirrored else large)
        return sum(found) / len(found)

    return ensemble
