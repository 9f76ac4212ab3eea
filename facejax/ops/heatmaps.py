"""Heat maps of points: drawing targets, finding peaks below a pixel's width, averaging with a mirrored picture's.

Maps are [..., H, W, L], a channel for each of L points, as networks here give them. Points are [..., L, 2] (x, y) in
pixels of the map, whole numbers at the pixels' centres: a peak at `maps[row, column]` is the point (column, row), as in
the published code. Where pixel centres lie at halves (`facejax.ops.sampling`), take 0.5 off before drawing and add it
after decoding. All functions work under jit and vmap; decoding has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def gaussian_maps(
    points: jax.Array,
    size: tuple[int, int],
    *,
    sigma: float,
    radius: float | None = None,
    visible: jax.Array | None = None,
    rounded: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """exp(-d^2 / (2 sigma^2)) around each point, 0 beyond a square window, and which maps count.

    Args:
      points: [..., L, 2].
      size: (H, W).
      sigma: in pixels.
      radius: pixels from the window's centre to its sides; 3 sigma when None.
      visible: [..., L] bool, points to draw; None draws all.
      rounded: centres move to the nearest pixel (halves upwards), so that every peak is 1; otherwise they stay.

    Returns:
      maps [..., H, W, L]; and weights [..., L], 1 where the point is visible and any pixel of its window lies in the
      map, else 0 with an empty map.
    """
    if points.ndim < 2 or points.shape[-1] != 2:
        raise ValueError(f"gaussian_maps: points {points.shape}, expected [..., L, 2]")
    if visible is not None and visible.shape != points.shape[:-1]:
        raise ValueError(f"gaussian_maps: visible {visible.shape}, expected {points.shape[:-1]} as the points have it")
    if sigma <= 0:
        raise ValueError(f"gaussian_maps: sigma is {sigma}, expected above 0")
    height, width = size
    radius = 3 * sigma if radius is None else radius
    centres = jnp.floor(points + 0.5) if rounded else points

    def profile(centre: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
        """[..., length, L], and [..., L] whether any of it is inside the window."""
        distance = jnp.arange(length)[:, None] - centre[..., None, :]
        inside = jnp.abs(distance) <= radius
        return jnp.where(inside, jnp.exp(-(distance**2) / (2 * sigma**2)), 0.0), inside.any(-2)

    across, in_columns = profile(centres[..., 0], width)
    down, in_rows = profile(centres[..., 1], height)
    drawn = in_columns & in_rows if visible is None else in_columns & in_rows & visible.astype(bool)
    down = jnp.where(drawn[..., None, :], down, 0.0)
    return down[..., :, None, :] * across[..., None, :, :], drawn.astype(points.dtype)


def squared_error(maps: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Half the mean squared difference over all pixels and maps; maps that do not count add 0 (JointsMSELoss).

    Args:
      maps, targets: [..., H, W, L].
      weights: [..., L], multiplied to both before they are subtracted.

    Returns:
      [...].
    """
    if maps.shape != targets.shape or weights.shape != (*maps.shape[:-3], maps.shape[-1]):
        raise ValueError(
            f"squared_error: maps {maps.shape}, targets {targets.shape} and weights {weights.shape}, "
            "expected [..., H, W, L] twice and [..., L]"
        )
    difference = (maps.astype(jnp.float32) - targets) * weights[..., None, None, :]
    return 0.5 * jnp.mean(difference**2, (-3, -2, -1))


def peaks(maps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The highest pixel of each map, the first of equals.

    Args:
      maps: [..., H, W, L].

    Returns:
      points [..., L, 2] of whole numbers; and heights [..., L]. A map with nothing above 0 has its point at (0, 0).
    """
    if maps.ndim < 3:
        raise ValueError(f"peaks: maps {maps.shape}, expected [..., H, W, L]")
    flat, width = _flat(maps), maps.shape[-2]
    index = jnp.argmax(flat, -2)
    heights = jnp.take_along_axis(flat, index[..., None, :], -2)[..., 0, :]
    points = jnp.stack([index % width, index // width], -1)
    return jnp.where(heights[..., None] > 0, points, 0).astype(jnp.float32), heights


def decode(maps: jax.Array, *, shift: float = 0.25, margin: int = 2) -> tuple[jax.Array, jax.Array]:
    """Peaks, moved by a part of a pixel towards the higher neighbour on either axis.

    Args:
      maps: [..., H, W, L].
      shift: pixels moved; 0 leaves the peaks whole.
      margin: a peak in the first `margin` columns or rows, or in the last one, is not moved (HRNet's code: 2).

    Returns:
      points [..., L, 2], heights [..., L].
    """
    points, heights = peaks(maps)
    at = _neighbours(maps, points)
    slope = jnp.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], -1)
    end = jnp.array([maps.shape[-2] - 1, maps.shape[-3] - 1])
    inner = ((points >= margin) & (points < end)).all(-1, keepdims=True)
    return points + jnp.where(inner, shift * jnp.sign(slope), 0.0), heights


def decode_taylor(maps: jax.Array, *, sigma: float) -> tuple[jax.Array, jax.Array]:
    """Distribution-aware decoding: the top of the parabola through the logarithm of the smoothed map.

    Zhang et al. "Distribution-aware coordinate representation for human pose estimation", CVPR 2020, arXiv:1910.06093.
    The map is smoothed with the targets' Gaussian, scaled back to its height, kept above 1e-10. Derivatives are taken
    at the peak of the map as given; the second ones over two pixels, as in the authors' code. Nothing is moved within
    two pixels of the map's edge, or where the second derivatives have no inverse.

    Args:
      maps: [..., H, W, L].
      sigma: of the targets; the smoothing reaches 3 sigma - 1 pixels (their kernels of 11 at 2 and 17 at 3).

    Returns:
      points [..., L, 2], heights [..., L] of the map as given.
    """
    points, heights = peaks(maps)
    top = heights[..., None, None, :]
    smooth = blur(maps, sigma, max(1, round(3 * sigma) - 1))
    smooth = smooth * (top / jnp.maximum(smooth.max((-3, -2), keepdims=True), 1e-30))
    at = _neighbours(jnp.log(jnp.maximum(smooth, 1e-10)), points)
    x, y = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    xx, yy = (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4, (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4
    xy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    determinant = xx * yy - xy**2
    flat = determinant == 0
    move = jnp.stack([xy * y - yy * x, xy * x - xx * y], -1) / jnp.where(flat, 1.0, determinant)[..., None]
    end = jnp.array([maps.shape[-2] - 2, maps.shape[-3] - 2])
    inner = ((points >= 2) & (points < end)).all(-1) & ~flat
    return points + jnp.where(inner[..., None], move, 0.0), heights


def blur(maps: jax.Array, sigma: float, radius: int) -> jax.Array:
    """[..., H, W, L] smoothed by a Gaussian of `sigma` cut at `radius` pixels; beyond the map there are zeros."""
    for axis in (-3, -2):
        length = maps.shape[axis]
        distance = np.subtract.outer(np.arange(length), np.arange(length))
        weights = np.where(np.abs(distance) <= radius, np.exp(-(distance**2) / (2 * sigma**2)), 0.0)
        weights /= np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2)).sum()
        maps = jnp.moveaxis(
            jnp.tensordot(maps, jnp.asarray(weights, maps.dtype), ((axis,), (1,)), precision="highest"), -1, axis
        )
    return maps


def mirrored(maps: jax.Array, partners: jax.Array) -> jax.Array:
    """Maps of the mirrored picture as maps of the picture: turned over, and each in the place of its partner.

    Args:
      maps: [..., H, W, L].
      partners: [L] int, the number of each point's mirror partner.
    """
    if np.shape(partners) != maps.shape[-1:]:
        raise ValueError(f"mirrored: partners {np.shape(partners)}, expected {maps.shape[-1:]}, one for each map")
    return maps[..., ::-1, :][..., jnp.asarray(partners)]


def flip_average(maps: jax.Array, of_mirror: jax.Array, partners: jax.Array, *, shift: int = 1) -> jax.Array:
    """The flip test: mean of a picture's maps and those of its mirror image.

    A network of stride 4 whose targets lie at x / 4 puts the mirrored picture's maps three quarters of a pixel too far
    left; HRNet's code moves them right by one.

    Args:
      maps, of_mirror: [..., H, W, L], of the picture and of its mirror image.
      partners: see `mirrored`.
      shift: columns that the second is moved to the right; the first columns stay.
    """
    back = mirrored(of_mirror, partners)
    moved = jnp.concatenate([back[..., :shift, :], back[..., : maps.shape[-2] - shift, :]], -2)
    return (maps + moved) / 2


def _flat(maps: jax.Array) -> jax.Array:
    return maps.reshape(*maps.shape[:-3], -1, maps.shape[-1])


def _neighbours(maps: jax.Array, points: jax.Array) -> Callable[[int, int], jax.Array]:
    """A function (x, y) -> [..., L], the maps' values that far from whole points; beyond the edge those at the edge."""
    height, width = maps.shape[-3:-1]
    flat, (column, row) = _flat(maps), jnp.moveaxis(points.astype(jnp.int32), -1, 0)

    def at(x: int, y: int) -> jax.Array:
        index = jnp.clip(row + y, 0, height - 1) * width + jnp.clip(column + x, 0, width - 1)
        return jnp.take_along_axis(flat, index[..., None, :], -2)[..., 0, :]

    return at
