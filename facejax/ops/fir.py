"""Images filtered, enlarged and reduced with short symmetric filters (StyleGAN, arXiv:1812.04948, and StyleGAN2).

Images are [N, H, W, C]; borders are padded with zeros; a filter acts on rows and columns alike and is scaled to sum 1.
`conv_downscale` and `upscale_conv` follow StyleGAN2's code (arXiv:1912.04958): filter, then convolve at every second
pixel; or convolve the image with zeros between its pixels, then filter.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.ops.scaled_conv import LAYOUT

TRIANGLE = (1, 2, 1)
"""StyleGAN's filter."""
SMOOTH = (1, 3, 3, 1)
"""StyleGAN2's filter."""


def upfirdn(
    x: jax.Array, taps: Sequence[float], *, up: int = 1, down: int = 1, padding: tuple[int, int] = (0, 0)
) -> jax.Array:
    """Zeros between pixels, padding, a filter, every so-manyth pixel.

    Args:
      x: [N, H, W, C].
      taps: the filter along one axis; applied reversed, as a convolution.
      up: a pixel is followed by up - 1 zeros; the filter is then scaled to sum `up` along an axis.
      down: of the filtered pixels the first of every `down` stays.
      padding: zeros before the first and behind the last row and column; negative: pixels that are cut.

    Returns:
      [N, H', W', C], H' = ceil((up H + sum(padding) - len(taps) + 1) / down).
    """
    weights = up * np.asarray(taps, np.float64)[::-1] / np.sum(taps)
    before, after = padding
    for axis in (1, 2):
        edges = [(0, 0, 0)] * x.ndim
        edges[axis] = (before, after + up - 1, up - 1)
        wide = lax.pad(x, jnp.zeros((), x.dtype), edges)
        size = wide.shape[axis] - len(weights) + 1
        parts = (lax.slice_in_dim(wide, i, i + size, down, axis) * float(tap) for i, tap in enumerate(weights))
        x = sum(parts)
    return x


def blur(x: jax.Array, taps: Sequence[float] = TRIANGLE) -> jax.Array:
    """The filtered image, of unchanged size; an odd number of taps."""
    return upfirdn(x, taps, padding=(len(taps) // 2,) * 2)


def upscale(x: jax.Array, taps: Sequence[float] = SMOOTH) -> jax.Array:
    """Enlargement by two. [N, H, W, C] -> [N, 2H, 2W, C]."""
    more = len(taps) - 2
    return upfirdn(x, taps, up=2, padding=((more + 1) // 2 + 1, more // 2))


def downscale(x: jax.Array, taps: Sequence[float] = SMOOTH) -> jax.Array:
    """Reduction by two. [N, H, W, C] -> [N, H/2, W/2, C]."""
    more = len(taps) - 2
    return upfirdn(x, taps, down=2, padding=((more + 1) // 2, more // 2))


def upscale_conv(x: jax.Array, kernel: jax.Array, taps: Sequence[float] = SMOOTH) -> jax.Array:
    """`upscale`, then a cross-correlation of unchanged size with a 3x3 kernel, at 4/9 of the cost.

    Zeros between pixels are left out: of the convolved image, even rows see two rows of `x`, odd ones one, so that
    one 2x2 convolution computes the four kinds of pixels.

    Args:
      x: [N, H, W, C].
      kernel: [3, 3, C, features].
      taps: of the filter; four.

    Returns:
      [N, 2H, 2W, features].
    """
    if kernel.shape[:2] != (3, 3) or len(taps) != 4:
        raise ValueError(
            f"upscale_conv: a kernel {kernel.shape} and {len(taps)} taps, expected [3, 3, C, features] and 4"
        )
    n, height, width, _ = x.shape
    kernels = [part for rows in _even_and_odd(kernel, 0) for part in _even_and_odd(rows, 1)]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = lax.conv_general_dilated(x, jnp.concatenate(kernels, -1), (1, 1), "VALID", dimension_numbers=LAYOUT)
    y = y.reshape(n, height + 1, width + 1, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(n, 2 * height + 2, 2 * width + 2, -1)
    return 4 * upfirdn(y, taps, padding=(1, 0))


def conv_downscale(x: jax.Array, kernel: jax.Array, taps: Sequence[float] = SMOOTH) -> jax.Array:
    """The filtered image, convolved at every second pixel.

    Args:
      x: [N, H, W, C], of even sides.
      kernel: [k, k, C, features], k odd.
      taps: of the filter.

    Returns:
      [N, H/2, W/2, features].
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"conv_downscale: images {x.shape}, expected even sides")
    more = len(taps) - 2 + kernel.shape[0] - 1
    x = upfirdn(x, taps, padding=((more + 1) // 2, more // 2))
    return lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=LAYOUT)


def _even_and_odd(kernel: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Taps for even places, which see pixels i - 1 and i, and for odd ones, which see i."""
    first, middle, last = jnp.split(kernel, 3, axis)
    return jnp.concatenate([first, last], axis), jnp.concatenate([jnp.zeros_like(middle), middle], axis)
