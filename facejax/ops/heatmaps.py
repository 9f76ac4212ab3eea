"""Heatmaps of points: target maps, sub-pixel decoding, and the flip test.

Maps are [..., H, W, L], one channel per point. Points are [..., L, 2] (x, y) in pixels of the map with integers at
pixel centres, as in the published code: a peak at `maps[row, column]` is the point (column, row). For coordinates with
pixel centres at 0.5 (`facejax.ops.sampling`), subtract 0.5 before drawing and add it after decoding. All functions work
under jit and vmap; decoding has no gradient.
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
    """Target maps exp(-d^2 / (2 sigma^2)) around each point, 0 outside a square window, and their weights.

    Args:
      points: [..., L, 2].
      size: (H, W).
      sigma: in pixels.
      radius: half side of the window, pixels; 3 sigma when None.
      visible: [..., L] bool, points to draw; all when None.
      rounded: whether to round centres to the nearest pixel (halves upwards), so that every peak is 1.

    Returns:
      maps [..., H, W, L]; and weights [..., L], 1 where the point is visible and its window overlaps the map, else 0
      (the map is then zero).
    """
    if points.ndim < 2 or points.shape[-1] != 2:
        raise ValueError(f"gaussian_maps: points {points.shape}, expected [..., L, 2]")
    if visible is not None and visible.shape != points.shape[:-1]:
        raise ValueError(f"gaussian_maps: visible {visible.shape}, expected {points.shape[:-1]} as for the points")
    if sigma <= 0:
        raise ValueError(f"gaussian_maps: sigma is {sigma}, expected above 0")
    height, width = size
    radius = 3 * sigma if radius is None else radius
    centres = jnp.floor(points + 0.5) if rounded else points

    def profile(centre: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
        """Profile [..., length, L], and [..., L] whether the window overlaps it."""
        distance = jnp.arange(length)[:, None] - centre[..., None, :]
        inside = jnp.abs(distance) <= radius
        return jnp.where(inside, jnp.exp(-(distance**2) / (2 * sigma**2)), 0.0), inside.any(-2)

    across, in_columns = profile(centres[..., 0], width)
    down, in_rows = profile(centres[..., 1], height)
    drawn = in_columns & in_rows if visible is None else in_columns & in_rows & visible.astype(bool)
    down = jnp.where(drawn[..., None, :], down, 0.0)
    return down[..., :, None, :] * across[..., None, :, :], drawn.astype(points.dtype)


def squared_error(maps: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Half the mean squared difference over all pixels and maps (JointsMSELoss); maps of weight 0 contribute 0.

    Args:
      maps, targets: [..., H, W, L].
      weights: [..., L], factor of both maps and targets.

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
    """The highest pixel of each map; in a tie the first.

    Args:
      maps: [..., H, W, L].

    Returns:
      points [..., L, 2], integral; and heights [..., L]. A map without positive values has its point at (0, 0).
    """
    if maps.ndim < 3:
        raise ValueError(f"peaks: maps {maps.shape}, expected [..., H, W, L]")
    highest = maps.max(-2)  # on a CPU, argmax over whole maps takes seven times as long
    row, heights = jnp.argmax(highest, -2), highest.max(-2)
    line = jnp.take_along_axis(maps, row[..., None, None, :], -3)[..., 0, :, :]
    points = jnp.stack([jnp.argmax(line, -2), row], -1)
    return jnp.where(heights[..., None] > 0, points, 0).astype(jnp.float32), heights


def decode(maps: jax.Array, *, shift: float = 0.25, margin: int = 2) -> tuple[jax.Array, jax.Array]:
    """Peaks, shifted by a fraction of a pixel towards the higher neighbour along each axis.

    Args:
      maps: [..., H, W, L].
      shift: pixels; 0 for integral peaks.
      margin: peaks in the first `margin` columns or rows, or in the last one, are not shifted (HRNet's code: 2).

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
    """Distribution-aware decoding: the maximum of a second-order expansion of the smoothed map's logarithm.

    Zhang et al. "Distribution-aware coordinate representation for human pose estimation", CVPR 2020, arXiv:1910.06093.
    The map is smoothed with about the Gaussian of the targets, rescaled to its original height, and clipped at 1e-10.
    Derivatives are evaluated at the peak of the unsmoothed map, second ones over two pixels, as in the authors' code.
    Peaks within two pixels of the edge, with a singular Hessian, or with a step of more than one pixel along an axis
    stay integral; the authors take any step, which on a map of noise can leave the image.

    Args:
      maps: [..., H, W, L].
      sigma: of the targets. The radius is 3 sigma - 1 pixels and the Gaussian OpenCV's of that size, as in the authors'
        code: its deviation is sigma for 2, and 2.9 for 3.

    Returns:
      points [..., L, 2], heights [..., L] of the unsmoothed map.
    """
    points, heights = peaks(maps)
    top = heights[..., None, None, :]
    smooth = blur(maps, max(1, round(3 * sigma) - 1))
    smooth = smooth * (top / jnp.maximum(smooth.max((-3, -2), keepdims=True), 1e-30))
    at = _neighbours(jnp.log(jnp.maximum(smooth, 1e-10)), points)
    x, y = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    xx, yy = (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4, (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4
    xy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    determinant = xx * yy - xy**2
    flat = determinant == 0
    move = jnp.stack([xy * y - yy * x, xy * x - xx * y], -1) / jnp.where(flat, 1.0, determinant)[..., None]
    end = jnp.array([maps.shape[-2] - 2, maps.shape[-3] - 2])
    inner = ((points >= 2) & (points < end)).all(-1) & ~flat & (jnp.abs(move) <= 1).all(-1)
    return points + jnp.where(inner[..., None], move, 0.0), heights


def blur(maps: jax.Array, radius: int) -> jax.Array:
    """[..., H, W, L] smoothed by OpenCV's Gaussian of 2 radius + 1 pixels (deviation 0), with zero padding."""
    import cv2  # only this decoding needs it

    profile = cv2.getGaussianKernel(2 * radius + 1, 0)[:, 0]
    for axis in (-3, -2):
        length = maps.shape[axis]
        distance = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
        weights = np.where(distance <= radius, profile[radius + np.minimum(distance, radius)], 0.0)
        maps = jnp.moveaxis(
            jnp.tensordot(maps, jnp.asarray(weights, maps.dtype), ((axis,), (1,)), precision="highest"), -1, axis
        )
    return maps


def mirrored(maps: jax.Array, partners: jax.Array) -> jax.Array:
    """Maps of the mirrored image converted to the original image: flipped, with left and right points exchanged.

    Args:
      maps: [..., H, W, L].
      partners: [L] int, index of each point's mirror partner.
    """
    if np.shape(partners) != maps.shape[-1:]:
        raise ValueError(f"mirrored: partners {np.shape(partners)}, expected {maps.shape[-1:]}, one per map")
    return maps[..., ::-1, :][..., jnp.asarray(partners)]


def flip_average(maps: jax.Array, of_mirror: jax.Array, partners: jax.Array, *, shift: int = 1) -> jax.Array:
    """The flip test: mean of the maps of an image and of its mirror image.

    With stride 4 and targets at x / 4, the flipped maps of the mirror image are 3/4 pixel too far left; HRNet's code
    shifts them right by one pixel.

    Args:
      maps, of_mirror: [..., H, W, L], of the image and of its mirror image.
      partners: see `mirrored`.
      shift: columns by which to shift the flipped maps to the right; their first columns do not change.
    """
    back = mirrored(of_mirror, partners)
    moved = jnp.concatenate([back[..., :shift, :], back[..., : maps.shape[-2] - shift, :]], -2)
    return (maps + moved) / 2


def _flat(maps: jax.Array) -> jax.Array:
    return maps.reshape(*maps.shape[:-3], -1, maps.shape[-1])


def _neighbours(maps: jax.Array, points: jax.Array) -> Callable[[int, int], jax.Array]:
    """A function (x, y) -> [..., L], the map values at that offset from integral points, with edge padding."""
    height, width = maps.shape[-3:-1]
    flat, (column, row) = _flat(maps), jnp.moveaxis(points.astype(jnp.int32), -1, 0)

    def at(x: int, y: int) -> jax.Array:
        index = jnp.clip(row + y, 0, height - 1) * width + jnp.clip(column + x, 0, width - 1)
        return jnp.take_along_axis(flat, index[..., None, :], -2)[..., 0, :]

    return at
