"""UV position maps: vertex positions rasterized in the texture plane (Feng et al., PRNet, arXiv:1803.07835)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from facejax.morphable.rasterizer import Fragments, interpolate, rasterize
from facejax.ops.sampling import bilinear_sample


def uv_fragments(uv: jax.Array, triangles: jax.Array, size: int) -> Fragments:
    """Fragments [size, size] of the texture plane, the same for every face."""
    flat = jnp.concatenate([uv * size, jnp.zeros_like(uv[:, :1])], 1)
    return rasterize(flat, triangles, size, size, cull=False, capacity=8 * size * size)


def uv_position_map(fragments: Fragments, triangles: jax.Array, vertices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Positions [size, size, 3] of vertices [V, 3], and the mask [size, size] of texels covered by the mesh."""
    return jnp.moveaxis(interpolate(fragments, triangles, vertices), 0, -1), fragments.triangle >= 0


def read_points(position_map: jax.Array, uv: jax.Array) -> jax.Array:
    """Positions [N, 3] at texture coordinates [N, 2]: such as landmarks, read from a position map [size, size, 3]."""
    return bilinear_sample(position_map, uv * jnp.array([position_map.shape[1], position_map.shape[0]]))
