"""Pictures of a face's geometry: projected normalized coordinate code (PNCC), depth, and shading over an image.

PNCC: Zhu, Lei, Liu, Shi, Li, "Face alignment across large poses: a 3D solution", CVPR 2016, arXiv:1511.07212, Sec. 3.3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from facejax.morphable.lighting import Incidence, unit, vertex_normals
from facejax.morphable.rasterizer import Fragments, interpolate, rasterize

LIGHT = (0.3, 0.3, 1.0)
"""Towards the light of `shaded`, with y down."""


def coordinate_code(mean: jax.Array) -> jax.Array:
    """NCC: the coordinates of the mean face [V, 3], each scaled to 0..1 over the face."""
    low, high = mean.min(0), mean.max(0)
    return (mean - low) / (high - low)


def render(
    vertices: jax.Array, triangles: jax.Array, colours: jax.Array, size: tuple[int, int], *, capacity: int | None = None
) -> tuple[jax.Array, Fragments]:
    """Colours [V, C] of the nearest surface at every pixel, 0 elsewhere.

    Args:
      vertices: [V, 3] image coordinates, the origin at the corner of the first pixel, larger depth nearer
        (`facejax.morphable.crops.FACEJAX`).
      triangles: [T, 3].
      colours: [V, C].
      size: (height, width) of the picture.
      capacity: see `rasterize`.

    Returns:
      [height, width, C], and the fragments.
    """
    fragments = rasterize(vertices, triangles, *size, capacity=capacity)
    return jnp.moveaxis(interpolate(fragments, triangles, colours), 0, -1), fragments


def render_pncc(
    vertices: jax.Array, triangles: jax.Array, code: jax.Array, size: tuple[int, int], *, capacity: int | None = None
) -> jax.Array:
    """PNCC [N, height, width, 3] of faces [N, V, 3]: `code`, of `coordinate_code`, drawn at their places."""

    def one(face: jax.Array) -> jax.Array:
        return render(face, triangles, code, size, capacity=capacity)[0]

    return lax.platform_dependent(vertices, cpu=lambda v: lax.map(one, v), default=jax.vmap(one))


def depth_picture(fragments: Fragments) -> jax.Array:
    """[H, W] the depth scaled to 0.2..1 over the surface, the nearest brightest; 0 for background."""
    covered = fragments.triangle >= 0
    low = jnp.min(jnp.where(covered, fragments.depth, jnp.inf))
    high = jnp.max(jnp.where(covered, fragments.depth, -jnp.inf))
    return jnp.where(covered, 0.2 + 0.8 * (fragments.depth - low) / jnp.maximum(high - low, 1e-6), 0.0)


def shaded(
    vertices: jax.Array,
    triangles: jax.Array,
    incident: Incidence,
    size: tuple[int, int],
    *,
    colours: jax.Array | None = None,
    capacity: int | None = None,
) -> tuple[jax.Array, Fragments]:
    """A surface under one light: [H, W, 3] in 0..1, and its fragments.

    Args:
      vertices: [V, 3] image coordinates as in `render`.
      triangles: [T, 3].
      incident: of `facejax.morphable.lighting.incidence`.
      size: (H, W).
      colours: [V, 3] in 0..1; light grey when None.
      capacity: see `rasterize`.
    """
    upright = vertices * jnp.array([1.0, -1.0, 1.0])
    normals = vertex_normals(upright, triangles, incident)
    towards = unit(jnp.array(LIGHT))
    light = 0.25 + 0.75 * jnp.clip(normals @ towards, 0, 1)
    colours = jnp.full_like(vertices, 0.85) if colours is None else colours
    picture, fragments = render(vertices, triangles, colours * light[:, None], size, capacity=capacity)
    return jnp.clip(picture, 0, 1), fragments


def blend(image: jax.Array, picture: jax.Array, mask: jax.Array, strength: float = 0.65) -> jax.Array:
    """`picture` [H, W, 3] in 0..1 over an image [H, W, 3] of uint8 where the mask is set, as uint8."""
    mixed = (1 - strength) * image.astype(jnp.float32) + strength * 255 * picture
    return jnp.round(jnp.where(mask[..., None], mixed, image)).astype(jnp.uint8)
