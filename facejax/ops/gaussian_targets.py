"""Target maps of object detectors that predict key points: Gaussians whose radius follows the size of the object."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gaussian_radius(height: jax.Array, width: jax.Array, overlap: float, *, exact: bool = True) -> jax.Array:
    """Largest shift of a box's corners with which it still overlaps the true box by an IoU of `overlap`.

    The least of three cases: one corner inside and one outside, both inside, both outside.

    Args:
      height, width: [...] of the boxes.
      overlap: in 0..1, both excluded.
      exact: the roots of the three quadratic equations, as in CornerNet's code. False: (b + sqrt(b^2 - 4ac)) / 2 for
        all three, as in CenterNet's; these radii are larger.

    Returns:
      [...], at least 0, in the unit of the sides.
    """
    if not 0 < overlap < 1:
        raise ValueError(f"gaussian_radius: overlap is {overlap}, expected above 0 and below 1")
    total, product = height + width, height * width

    def root(a: float, b: jax.Array, c: jax.Array, sign: int) -> jax.Array:
        spread = jnp.sqrt(b**2 - 4 * a * c)
        return (b + sign * spread) / (2 * a) if exact else (b + spread) / 2

    return jnp.minimum(
        jnp.minimum(
            root(1, total, product * (1 - overlap) / (1 + overlap), -1),
            root(4, 2 * total, (1 - overlap) * product, -1),
        ),
        root(4 * overlap, -2 * overlap * total, (overlap - 1) * product, 1),
    )


def splat(
    places: jax.Array, radii: jax.Array, labels: jax.Array, mask: jax.Array, size: tuple[int, int], classes: int
) -> jax.Array:
    """Maps of unnormalised Gaussians, of which each pixel has the highest.

    A Gaussian covers a square of 2 r + 1 pixels and has a deviation of a sixth of that; its centre is exactly 1.

    Args:
      places: [G, 2] int (column, row) of the centres.
      radii: [G] int, r.
      labels: [G] int, the map of each.
      mask: [G] bool, those to draw.
      size: (H, W).
      classes: C.

    Returns:
      [H, W, C] float32 in 0..1.
    """
    deviation = (2 * radii.astype(jnp.float32) + 1)[:, None] / 6

    def profile(centres: jax.Array, length: int) -> jax.Array:
        distance = jnp.arange(length) - centres[:, None]
        height = jnp.exp(-(distance**2) / (2 * deviation**2))
        return jnp.where(jnp.abs(distance) <= radii[:, None], height, 0.0)

    across, down = profile(places[:, 0], size[1]), profile(places[:, 1], size[0])
    drawn = jnp.where(mask[:, None, None], down[:, :, None] * across[:, None], 0.0)
    return jnp.zeros((classes, *size)).at[labels].max(drawn).transpose(1, 2, 0)
