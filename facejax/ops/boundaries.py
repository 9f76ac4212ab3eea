"""Boundary lines of a face: which landmarks they join, splines through them, distances and Gaussian maps.

A spline is the cubic one over the cumulative chord length. For given chord lengths it is a linear map of the points,
found by one tridiagonal system per line. Points that equal their predecessor and points that are not finite are left
out, without a change of shapes. Two kinds of ends:

- "not_a_knot": the interpolating B-spline of degree 3 of FITPACK and `scipy.interpolate.splprep(s=0)`, with degree 2
  for three points and 1 for two (Adaptive Wing's code).
- "natural": no curvature at the ends (FAB's code, of LAB's authors).

Coordinates are pixels with integers at pixel centres, as in `facejax.ops.heatmaps`. All functions work under jit and
vmap and have gradients.
"""

from __future__ import annotations

import math
from functools import partial, reduce
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Ends = Literal["not_a_knot", "natural"]

LINES: dict[int, dict[str, tuple[int, ...]]] = {
    68: {
        "face": (*range(17),), "left_brow": (*range(17, 22),), "right_brow": (*range(22, 27),),
        "nose_bridge": (*range(27, 31),), "nose_bottom": (*range(31, 36),),
        "left_eye_upper": (36, 37, 38, 39), "left_eye_lower": (36, 41, 40, 39),
        "right_eye_upper": (42, 43, 44, 45), "right_eye_lower": (42, 47, 46, 45),
        "upper_lip_upper": (*range(48, 55),), "upper_lip_lower": (*range(60, 65),),
        "lower_lip_upper": (60, 67, 66, 65, 64), "lower_lip_lower": (48, 59, 58, 57, 56, 55, 54),
    },
    98: {
        "face": (*range(33),), "left_brow": (*range(33, 38),), "right_brow": (*range(42, 47),),
        "nose_bridge": (*range(51, 55),), "nose_bottom": (*range(55, 60),),
        "left_eye_upper": (*range(60, 65),), "left_eye_lower": (60, 67, 66, 65, 64),
        "right_eye_upper": (*range(68, 73),), "right_eye_lower": (68, 75, 74, 73, 72),
        "upper_lip_upper": (*range(76, 83),), "upper_lip_lower": (*range(88, 93),),
        "lower_lip_upper": (88, 95, 94, 93, 92), "lower_lip_lower": (76, 87, 86, 85, 84, 83, 82),
    },
    29: {
        "left_brow_upper": (0, 4, 2), "left_brow_lower": (0, 5, 2),
        "right_brow_upper": (1, 6, 3), "right_brow_lower": (1, 7, 3), "nose": (18, 21, 19),
        "left_eye_upper": (8, 12, 10), "left_eye_lower": (8, 13, 10),
        "right_eye_upper": (9, 14, 11), "right_eye_lower": (9, 15, 11),
        "upper_lip_upper": (22, 24, 23), "upper_lip_lower": (22, 25, 23),
        "lower_lip_upper": (22, 26, 23), "lower_lip_lower": (22, 27, 23),
    },
    19: {
        "left_brow": (0, 1, 2), "right_brow": (3, 4, 5), "left_eye": (6, 7, 8), "right_eye": (9, 10, 11),
        "nose": (12, 13, 14),
    },
}  # fmt: skip
"""Number of landmarks (300W, WFLW, COFW, AFLW) -> name of a line -> its landmarks. "left" is on the image's left.

68 and 98: the 13 lines of LAB (Wu et al., arXiv:1805.10483). 29 and 19: those of Adaptive Wing's code.
"""


def mirror(landmarks: int) -> np.ndarray:
    """[K] int32, each line's partner under a horizontal flip."""
    names = [*_lines(landmarks)]
    sides = {"left": "right", "right": "left"}
    return np.array([names.index("_".join(sides.get(word, word) for word in name.split("_"))) for name in names], "i4")


def spline(points: jax.Array, samples: int, *, ends: Ends = "not_a_knot", last: bool = True) -> jax.Array:
    """Points on the cubic spline through the given ones, at equal steps of the cumulative chord length.

    Args:
      points: [..., n, 2], n at least 2.
      samples: S, at least 2.
      ends: see above.
      last: whether the last sample is the last point; false: one step before it, as `np.arange(0, 1, 1 / S)`.

    Returns:
      [..., S, 2]. A line with one distinct point is that point; with none, NaN.
    """
    if points.ndim < 2 or points.shape[-2] < 2 or points.shape[-1] != 2:
        raise ValueError(f"spline: points {points.shape}, expected [..., n, 2] with n of 2 or more")
    if samples < 2:
        raise ValueError(f"spline: samples is {samples}, expected 2 or more")
    if ends not in get_args(Ends):
        raise ValueError(f"spline: ends is {ends!r}, expected one of {', '.join(get_args(Ends))}")
    one = partial(_spline, samples=samples, natural=ends == "natural", last=last)
    return jnp.vectorize(one, signature="(n,c)->(s,c)")(points)


def curves(points: jax.Array, samples: int = 100, *, ends: Ends = "not_a_knot", last: bool = True) -> jax.Array:
    """The splines of all lines of a layout.

    Args:
      points: [..., L, 2], L a key of `LINES`.
      samples, ends, last: see `spline`.

    Returns:
      [..., K, samples, 2].
    """
    if points.ndim < 2 or points.shape[-1] != 2:
        raise ValueError(f"curves: points {points.shape}, expected [..., L, 2]")
    lines = _lines(points.shape[-2]).values()
    longest = max(map(len, lines))
    padded = np.array([line + line[-1:] * (longest - len(line)) for line in lines])  # repeated points are left out
    return spline(points[..., padded, :], samples, ends=ends, last=last)


def squared_distances(
    curve: jax.Array, size: tuple[int, int], *, rounded: bool = False, reach: int | None = None
) -> jax.Array:
    """Squared distance of every pixel to a curve, given by samples on it.

    Args:
      curve: [..., S, 2].
      size: (H, W) of the map.
      rounded: distance to the nearest of the pixels that the samples round to, those outside the map left out: the
        exact distance transform of the drawn curve, as in the published code. False: distance to the line segments
        between the samples, inside or outside the map.
      reach: with `rounded`, distances to pixels more rows or columns away than this are infinite, which costs
        4 reach + 2 operations a pixel and line instead of S; None: all distances.

    Returns:
      [..., H, W], infinite where the curve has no (finite) sample.
    """
    if rounded and reach is not None:
        rows, columns = (jnp.floor(curve[..., i, None] + 0.5) == jnp.arange(n) for i, n in ((1, size[0]), (0, size[1])))
        hits = jnp.einsum("...sh,...sw->...hw", rows.astype(jnp.float32), columns.astype(jnp.float32))
        return _lowest(_lowest(jnp.where(hits > 0, 0.0, jnp.inf), -2, reach), -1, reach)
    row, column = jnp.arange(size[0])[:, None, None], jnp.arange(size[1])[:, None]
    x, y = curve[..., None, None, :, 0], curve[..., None, None, :, 1]
    if rounded:
        x, y = jnp.floor(x + 0.5), jnp.floor(y + 0.5)
        inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
        return jnp.min(jnp.where(inside, (column - x) ** 2 + (row - y) ** 2, jnp.inf), -1)
    x0, y0, along, down = x[..., :-1], y[..., :-1], x[..., 1:] - x[..., :-1], y[..., 1:] - y[..., :-1]
    length = along**2 + down**2
    part = jnp.clip(((column - x0) * along + (row - y0) * down) / jnp.where(length > 0, length, 1.0), 0, 1)
    squares = (column - x0 - part * along) ** 2 + (row - y0 - part * down) ** 2
    return jnp.min(jnp.where(jnp.isnan(squares), jnp.inf, squares), -1)


def gaussian(squares: jax.Array, sigma: float = 1.0) -> jax.Array:
    """exp(-d^2 / (2 sigma^2)) of squared distances d^2 below (3 sigma)^2, else 0."""
    return jnp.where(squares < (3 * sigma) ** 2, jnp.exp(-squares / (2 * sigma**2)), 0.0)


def gaussian_reach(sigma: float) -> int:
    """The farthest row or column at which `gaussian` is not 0."""
    return math.ceil(3 * sigma) - 1


def boundary_maps(
    points: jax.Array,
    size: tuple[int, int],
    *,
    sigma: float = 1.0,
    samples: int = 100,
    ends: Ends = "not_a_knot",
    last: bool = True,
    rounded: bool = False,
) -> jax.Array:
    """One Gaussian map per line: [..., L, 2] -> [..., H, W, K].

    The maximum over the last axis is the map of all lines together (Adaptive Wing); FAB takes the sum.

    Args:
      points: [..., L, 2] in pixels of the map, L a key of `LINES`.
      size: (H, W).
      sigma: in pixels.
      samples, ends, last: of `spline`.
      rounded: see `squared_distances`.
    """
    lines = curves(points, samples, ends=ends, last=last)
    squares = squared_distances(lines, size, rounded=rounded, reach=gaussian_reach(sigma))
    return jnp.moveaxis(gaussian(squares, sigma), -3, -1)


def _lowest(squares: jax.Array, axis: int, reach: int) -> jax.Array:
    """Min over -reach <= k <= reach of k^2 + squares at place + k of an axis."""
    pad = [(0, 0)] * squares.ndim
    pad[axis] = (reach, reach)
    padded, length = jnp.pad(squares, pad, constant_values=jnp.inf), squares.shape[axis]
    parts = [
        lax.slice_in_dim(padded, reach + k, reach + k + length, axis=axis) + k**2 for k in range(-reach, reach + 1)
    ]
    return reduce(jnp.minimum, parts)


def _lines(landmarks: int) -> dict[str, tuple[int, ...]]:
    if landmarks not in LINES:
        raise ValueError(
            f"no boundary lines are known for {landmarks} landmarks, only for {', '.join(map(str, LINES))}"
        )
    return LINES[landmarks]


def _spline(points: jax.Array, *, samples: int, natural: bool, last: bool) -> jax.Array:
    """`spline` of one line [n, 2]: second derivatives at the distinct points, then the cubic of each sample's piece."""
    points, count = _distinct(points)
    n = len(points)
    i = jnp.arange(n)
    step = jnp.diff(points, axis=0, append=points[-1:])
    length = jnp.sqrt(jnp.where(i < count - 1, (step**2).sum(-1), 1.0))  # of the piece that begins at a point
    slope = step / length[:, None]
    before = jnp.roll(length, 1)
    second, second_last = (i == 1) & (count > 3) & (not natural), (i == count - 2) & (count > 3) & (not natural)

    # The equations of the inner points. A not-a-knot end has the third derivative of its neighbouring piece: its second
    # derivative is an extrapolation of the next two, and of a parabola's three points that of the middle.
    two_before, after = jnp.roll(length, 2), jnp.roll(length, -1)
    diagonal = 2 * (before + length)
    diagonal += jnp.where(second, before * (before + length) / length, 0.0)
    diagonal += jnp.where(second_last, length * (before + length) / before, 0.0)
    diagonal += jnp.where((count == 3) & (not natural), before + length, 0.0)
    lower = jnp.where(i == 1, 0.0, before - jnp.where(second_last, length**2 / before, 0.0))
    upper = jnp.where(i == count - 2, 0.0, length - jnp.where(second, before**2 / length, 0.0))
    inner = (i > 0) & (i < count - 1)
    right = jnp.where(inner[:, None], 6 * (slope - jnp.roll(slope, 1, 0)), 0.0)
    bend = lax.linalg.tridiagonal_solve(
        jnp.where(inner, lower, 0.0), jnp.where(inner, diagonal, 1.0), jnp.where(inner, upper, 0.0), right
    )
    if not natural:
        ahead, behind = jnp.roll(bend, -1, 0), jnp.roll(bend, 1, 0)
        curved = (count > 3).astype(points.dtype)
        first = ahead + curved * (ahead - jnp.roll(bend, -2, 0)) * (length / after)[:, None]
        end = behind + curved * (behind - jnp.roll(bend, 2, 0)) * (before / two_before)[:, None]
        bend = jnp.where((i == 0)[:, None], first, jnp.where((i == count - 1)[:, None], end, bend))

    place = jnp.append(0.0, jnp.cumsum(jnp.where(i < count - 1, length, 0.0))[:-1])
    at = jnp.arange(samples) * (place[-1] / (samples - 1 if last else samples))
    piece = jnp.clip((at[:, None] >= place).sum(-1) - 1, 0, jnp.maximum(count - 2, 0))
    t, h = (at - place[piece])[:, None], length[piece][:, None]
    start, stop = bend[piece], bend[jnp.minimum(piece + 1, n - 1)]
    linear = slope[piece] - h * (2 * start + stop) / 6
    return points[piece] + t * (linear + t * (start / 2 + t * (stop - start) / (6 * h)))


def _distinct(points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The finite points of [n, 2] without those that repeat the one before, then copies of the last; and their number.

    Points closer than 0.001 count as repeated, as in FAB's code.
    """
    i = jnp.arange(len(points))
    finite = jnp.isfinite(points).all(-1)
    previous = jnp.max(jnp.where(finite & (i < i[:, None]), i, -1), 1)
    step = jnp.where(finite[:, None], points - points[previous], 0.0)
    kept = finite & ((previous < 0) | ((step**2).sum(-1) > 1e-6))
    count = kept.sum()
    place = jnp.minimum(i, count - 1)[:, None]
    order = (kept & (jnp.cumsum(kept) - 1 == place)).argmax(1)
    return points[order], count
