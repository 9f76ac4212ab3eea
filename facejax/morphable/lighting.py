"""Vertex normals and order-2 spherical-harmonic lighting.

Ramamoorthi & Hanrahan, "An efficient representation for irradiance environment maps", SIGGRAPH 2001: nine values per
colour channel describe diffuse light on a convex object.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Incidence(NamedTuple):
    """The triangles around every vertex, padded with T; with it, normals need no scatter.

    Attributes:
      around: [V, K] the first K triangles of every vertex.
      crowded: [P] the few vertices with more than K, such as the poles of a head.
      others: [P, K'] their further triangles.
    """

    around: np.ndarray
    crowded: np.ndarray
    others: np.ndarray


def incidence(triangles: np.ndarray, num_vertices: int, usual: int = 8) -> Incidence:
    """The `Incidence` of triangles [T, 3] and V vertices; `usual` is K."""
    triangles = np.asarray(triangles)
    corner = triangles.ravel()
    order = np.argsort(corner, kind="stable")
    counts = np.bincount(corner, minlength=num_vertices)
    table = np.full((num_vertices, max(counts.max(), usual)), len(triangles), np.int32)
    within = np.arange(len(corner)) - np.repeat(np.cumsum(counts) - counts, counts)
    table[corner[order], within] = order // 3
    crowded = np.flatnonzero(counts > usual)
    return Incidence(table[:, :usual], crowded, table[crowded, usual:])


def vertex_normals(vertices: jax.Array, triangles: jax.Array, incident: Incidence) -> jax.Array:
    """Area-weighted unit normals; zero where all triangles around a vertex are degenerate.

    Args:
      vertices: [V, 3] in right-handed axes.
      triangles: [T, 3] counter-clockwise from outside.
      incident: from `incidence`.

    Returns:
      [V, 3].
    """
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    faces = jnp.concatenate([jnp.cross(b - a, c - a), jnp.zeros((1, 3), vertices.dtype)])
    total = sum(faces[column] for column in incident.around.T)
    return unit(total.at[incident.crowded].add(faces[incident.others].sum(1)).T).T


def unit(vectors: jax.Array) -> jax.Array:
    """Normalises vectors [3, ...], component axis first as in rendering; finite gradient at zero."""
    x, y, z = vectors
    return vectors * jax.lax.rsqrt(jnp.maximum(x * x + y * y + z * z, 1e-20))


def spherical_harmonics(normals: jax.Array) -> jax.Array:
    """The nine real, orthonormal spherical harmonics up to order 2 at unit vectors [3, ...]: [9, ...].

    Order: Y00, Y1-1 (y), Y10 (z), Y11 (x), Y2-2 (xy), Y2-1 (yz), Y20 (3z^2 - 1), Y21 (xz), Y22 (x^2 - y^2).
    """
    x, y, z = normals
    constants = np.sqrt(np.array([1 / 4, 3 / 4, 3 / 4, 3 / 4, 15 / 4, 15 / 4, 5 / 16, 15 / 4, 15 / 16]) / np.pi)
    terms = [jnp.ones_like(x), y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y]
    return jnp.stack([t * c for t, c in zip(terms, constants.astype(np.float32), strict=True)])


def shade(normals: jax.Array, light: jax.Array) -> jax.Array:
    """Irradiance / pi [3, ...], at least 0, at unit normals [3, ...] under light [9, 3]. Multiply it by the albedo."""
    weights = light.reshape(9, 3, *(1,) * (normals.ndim - 1))
    return jnp.maximum(sum(w * h for w, h in zip(weights, spherical_harmonics(normals), strict=True)), 0.0)


def directional_light(direction: jax.Array, colour: jax.Array, ambient: jax.Array) -> jax.Array:
    """Coefficients for `shade` of a directional and an ambient light.

    Args:
      direction: [3] towards the light, any length.
      colour: [3] irradiance / pi of a surface that faces the directional light, up to the order-2 approximation.
      ambient: [3] irradiance / pi added for every surface.

    Returns:
      [9, 3].
    """
    cosine_lobe = np.array([np.pi, *[2 * np.pi / 3] * 3, *[np.pi / 4] * 5], np.float32) / np.pi
    towards = spherical_harmonics(unit(direction)) * cosine_lobe * np.pi
    even = jnp.zeros(9).at[0].set(np.sqrt(4 * np.pi))
    return towards[:, None] * colour + even[:, None] * ambient
