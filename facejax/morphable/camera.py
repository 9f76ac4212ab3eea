"""Projections from the face model's axes to pixels: x to the right, y down, larger depth is nearer."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def weak_perspective(vertices: jax.Array, rotation: jax.Array, scale: jax.Array, translation: jax.Array) -> jax.Array:
    """Scaled orthographic projection.

    Args:
      vertices: [..., V, 3] in the model's axes.
      rotation: [..., 3, 3].
      scale: [...] pixels per model unit.
      translation: [..., 2] position of the model's origin, pixels.

    Returns:
      [..., V, 3] in pixels, including the depth.
    """
    turned = scale[..., None, None] * jnp.einsum("...vj,...ij->...vi", vertices, rotation)
    return _flip(turned) + jnp.concatenate([translation, jnp.zeros_like(translation[..., :1])], -1)[..., None, :]


def perspective(
    vertices: jax.Array, rotation: jax.Array, scale: jax.Array, translation: jax.Array, distance: jax.Array
) -> jax.Array:
    """Pinhole projection whose scale at the depth of the origin is that of `weak_perspective`.

    Args:
      vertices, rotation, scale, translation: as in `weak_perspective`, the limit for infinite distance.
      distance: [...] from the camera to the model's origin, model units; larger than the distance of any vertex.
    """
    turned = jnp.einsum("...vj,...ij->...vi", vertices, rotation)
    nearness = distance[..., None, None] / (distance[..., None, None] - turned[..., 2:])
    x_y = turned[..., :2] * nearness
    placed = scale[..., None, None] * jnp.concatenate([x_y, turned[..., 2:]], -1)
    return _flip(placed) + jnp.concatenate([translation, jnp.zeros_like(translation[..., :1])], -1)[..., None, :]


def _flip(vertices: jax.Array) -> jax.Array:
    return vertices * jnp.array([1.0, -1.0, 1.0])
