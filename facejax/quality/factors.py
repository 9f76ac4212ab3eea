"""Hand-made measures of single degradations of a face image: baselines of learnt quality.

The factors are those that Schlett et al., "Face image quality assessment: a literature survey" (ACM CSUR 2022,
arXiv:2009.01103), collects; formulas are the common ones. Every measure is higher for a better image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

LUMA = (0.299, 0.587, 0.114)


def luminance(images: jax.Array) -> jax.Array:
    """[N, H, W, 3] uint8 -> [N, H, W] in 0..1 (BT.601)."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images of shape {images.shape}: expected [N, H, W, 3]")
    return images.astype(jnp.float32) @ jnp.asarray(LUMA) / 255


def sharpness(images: jax.Array) -> jax.Array:
    """Variance of the four-neighbour Laplacian. [N, H, W, 3] uint8 -> [N]."""
    y = luminance(images)
    middle = y[:, 1:-1, 1:-1]
    return jnp.var(y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * middle, axis=(1, 2))


def exposure(images: jax.Array) -> jax.Array:
    """1 where the mean luminance is one half, 0 where all is black or white. [N]."""
    return 1 - 2 * jnp.abs(luminance(images).mean((1, 2)) - 0.5)


def contrast(images: jax.Array) -> jax.Array:
    """Standard deviation of the luminance. [N]."""
    return luminance(images).std((1, 2))


def light_symmetry(images: jax.Array) -> jax.Array:
    """1 minus the mean absolute difference of the left half and the mirrored right half, over their mean. [N]."""
    y = luminance(images)
    half = y.shape[2] // 2
    left, right = y[:, :, :half], y[:, :, ::-1][:, :, :half]
    return 1 - jnp.abs(left - right).mean((1, 2)) / (0.5 * (left + right).mean((1, 2)) + 1e-6)


def frontality(landmarks: jax.Array) -> jax.Array:
    """1 where the nose tip lies midway between the eyes, falling with its shift over half their distance.

    Args:
      landmarks: [N, 5, 2], eyes, nose tip and mouth corners in the order of the recognition template.
    """
    left, right, nose = landmarks[:, 0], landmarks[:, 1], landmarks[:, 2]
    along = right - left
    shift = jnp.sum((nose - (left + right) / 2) * along, -1) / jnp.maximum(jnp.sum(along * along, -1), 1e-6)
    return 1 - 2 * jnp.abs(shift)


def eye_distance(landmarks: jax.Array) -> jax.Array:
    """Distance of the eyes in pixels, [N, 5, 2] -> [N]: a measure of the resolution."""
    return jnp.linalg.norm(landmarks[:, 1] - landmarks[:, 0], axis=-1)


IMAGE_MEASURES = {"sharpness": sharpness, "exposure": exposure, "contrast": contrast, "light_symmetry": light_symmetry}
LANDMARK_MEASURES = {"frontality": frontality, "eye_distance": eye_distance}
