"""Detection at several scales of one image."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from facejax.ops.pooling import resize_bilinear


def resized(images: jax.Array, scale: float) -> jax.Array:
    """Images [N, H, W, C] resized by a factor, to whole pixels and without anti-aliasing, in float32."""
    height, width = (max(1, round(side * scale)) for side in images.shape[1:3])
    return resize_bilinear(jnp.asarray(images, jnp.float32), (height, width))


def padded(x: jax.Array, multiple: int) -> jax.Array:
    """[N, H, W, C] with zeros at the bottom and the right, so that `multiple` divides both sides."""
    return jnp.pad(x, ((0, 0), *((0, -side % multiple) for side in x.shape[1:3]), (0, 0)))


def mirrored(boxes: jax.Array, width: float) -> jax.Array:
    """Boxes [..., 4] of an image that was flipped from left to right, in the image as it was."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack([width - x2, y1, width - x1, y2], -1)
