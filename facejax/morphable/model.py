"""A 3D morphable face model as one pytree: linear shape, expression and albedo over a fixed mesh.

Blanz & Vetter, "A morphable model for the synthesis of 3D faces", SIGGRAPH 1999. `bfm.from_bfm` reads the model of
Paysan et al., "A 3D face model for pose and illumination invariant face recognition", AVSS 2009;
`procedural.procedural` makes a model without data.

Axes: right-handed, x to the viewer's right, y up, z towards the viewer; the face looks along +z.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class MorphableModel:
    """V vertices, T triangles, I identity, E expression and A albedo dimensions, an H x W texture.

    Coefficients are in standard deviations: standard normal vectors give a random identity, expression and albedo.

    Attributes:
      mean_shape: [V, 3] mean vertex positions; the half height of the head is about 1.
      identity_basis, identity_std: [V, 3, I] orthonormal (as [3V, I]) and [I] descending standard deviations.
      expression_basis, expression_std: [V, 3, E] orthonormal and [E], likewise.
      expressions: name -> [E] coefficients of a pure expression at full strength ("jaw_open", "smile", ...).
      albedo_mean: [H, W, 3] mean diffuse albedo in 0..1, gamma-encoded (linear light to the power 1 / 2.2), which makes
        the variation of human skin approximately linear.
      albedo_basis, albedo_std: [H, W, 3, A] orthonormal and [A].
      triangles: [T, 3] int32, counter-clockwise seen from outside.
      uv: [V, 2] texture coordinates in 0..1, u to the right, v down: texel (row, column) centres lie at
        ((row + 0.5) / H, (column + 0.5) / W).
      landmarks68, landmarks98: [68] and [98] int32 vertex indices, in the order of 300-W and of WFLW.
      boundaries: name -> int32 vertex indices along a line of the face (LAB's thirteen boundaries).
      symmetry: [V] int32 index of the mirror partner (x -> -x) of every vertex.
      regions: name -> [V] bool ("skin", "eyes", "brows", "nose", "lips", "neck", ...).
    """

    mean_shape: jax.Array
    identity_basis: jax.Array
    identity_std: jax.Array
    expression_basis: jax.Array
    expression_std: jax.Array
    expressions: dict[str, jax.Array]
    albedo_mean: jax.Array
    albedo_basis: jax.Array
    albedo_std: jax.Array
    triangles: jax.Array
    uv: jax.Array
    landmarks68: jax.Array
    landmarks98: jax.Array
    boundaries: dict[str, jax.Array]
    symmetry: jax.Array
    regions: dict[str, jax.Array]


def shape(model: MorphableModel, identity: jax.Array, expression: jax.Array) -> jax.Array:
    """Vertices of faces.

    Args:
      model: the face model.
      identity: [..., <=I] coefficients in standard deviations; missing trailing ones are zero.
      expression: [..., <=E] likewise.

    Returns:
      [..., V, 3] vertices.
    """
    offset = _combine(model.identity_basis, model.identity_std, identity)
    return model.mean_shape + offset + _combine(model.expression_basis, model.expression_std, expression)


def albedo(model: MorphableModel, coefficients: jax.Array) -> jax.Array:
    """Textures [..., H, W, 3] in linear light, 0..1, from [..., <=A] coefficients in standard deviations."""
    encoded = model.albedo_mean + _combine(model.albedo_basis, model.albedo_std, coefficients)
    return jnp.exp(2.2 * jnp.log(jnp.clip(encoded, 0.01, 1.0)))  # four times as fast as ** 2.2 on a CPU


def _combine(basis: jax.Array, std: jax.Array, coefficients: jax.Array) -> jax.Array:
    count, limit = coefficients.shape[-1], basis.shape[-1]
    if count > limit:
        raise ValueError(f"morphable model: {count} coefficients given, but the basis has {limit}")
    return jnp.tensordot(coefficients * std[:count], basis[..., :count], axes=((-1,), (-1,)))
