"""Rotations: Euler angles in the named conventions, quaternions, and the continuous 6-number form.

Matrices [..., 3, 3] act on column vectors. facejax uses the convention of `from_euler`; readers convert from the
conventions of data sets and papers, because angles of different conventions are not comparable.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def from_euler(angles: jax.Array) -> jax.Array:
    """R = Rx(pitch) Ry(yaw) Rz(roll), right-handed, in the axes of the face model (x right, y up, z to the viewer).

    Positive pitch nods down (forehead towards the viewer), positive yaw turns the face to the viewer's right, positive
    roll turns it counter-clockwise in the image.

    Args:
      angles: [..., 3] pitch, yaw, roll in radians.

    Returns:
      [..., 3, 3].
    """
    pitch, yaw, roll = (_elementary(angles[..., i], i) for i in range(3))
    return pitch @ yaw @ roll


def to_euler(rotation: jax.Array) -> jax.Array:
    """Inverse of `from_euler`: [..., 3] pitch, yaw, roll; yaw lies within +-pi / 2."""
    yaw = jnp.arcsin(jnp.clip(rotation[..., 0, 2], -1.0, 1.0))
    pitch = jnp.arctan2(-rotation[..., 1, 2], rotation[..., 2, 2])
    roll = jnp.arctan2(-rotation[..., 0, 1], rotation[..., 0, 0])
    return jnp.stack([pitch, yaw, roll], -1)


def from_euler_3ddfa(angles: jax.Array) -> jax.Array:
    """Convention of 300W-LP and AFLW2000-3D labels: the same product of *transposed* elementary rotations."""
    return from_euler(-angles)


def to_euler_3ddfa(rotation: jax.Array) -> jax.Array:
    """Inverse of `from_euler_3ddfa`: yaw = -asin(R02), pitch = atan2(R12, R22), roll = atan2(R01, R00)."""
    return -to_euler(rotation)


def to_euler_zyx(rotation: jax.Array) -> jax.Array:
    """Angles of Rz(roll) Ry(-yaw) Rx(pitch), as in `matrix2angle` of 3DDFA and PRNet (Slabaugh).

    Not the inverse of the labels' convention: the signs of single-axis pitch and roll are opposite.
    """
    yaw = jnp.arcsin(jnp.clip(rotation[..., 2, 0], -1.0, 1.0))
    pitch = jnp.arctan2(rotation[..., 2, 1], rotation[..., 2, 2])
    roll = jnp.arctan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return jnp.stack([pitch, yaw, roll], -1)


def from_quaternion(quaternion: jax.Array) -> jax.Array:
    """[..., 4] (w, x, y, z), of any nonzero length -> [..., 3, 3]."""
    w, x, y, z = jnp.moveaxis(quaternion / jnp.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def to_quaternion(rotation: jax.Array) -> jax.Array:
    """[..., 3, 3] -> [..., 4] unit (w, x, y, z) with w >= 0, by the largest of the four candidates (Shepperd)."""
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    candidates = jnp.stack(
        [
            jnp.stack([1 + xx + yy + zz, wx, wy, wz], -1),
            jnp.stack([wx, 1 + xx - yy - zz, xy, xz], -1),
            jnp.stack([wy, xy, 1 - xx + yy - zz, yz], -1),
            jnp.stack([wz, xz, yz, 1 - xx - yy + zz], -1),
        ],
        -2,
    )
    best = jnp.argmax(jnp.diagonal(candidates, axis1=-2, axis2=-1), -1)
    chosen = jnp.take_along_axis(candidates, best[..., None, None], -2)[..., 0, :]
    chosen = chosen / jnp.linalg.norm(chosen, axis=-1, keepdims=True)
    return jnp.where(chosen[..., :1] < 0, -chosen, chosen)


def from_6d(columns: jax.Array) -> jax.Array:
    """Two columns [..., 6] -> rotation by Gram-Schmidt (Zhou et al., CVPR 2019, arXiv:1812.07035, Sec. 4.2)."""
    a, b = columns[..., :3], columns[..., 3:]
    first = a / jnp.linalg.norm(a, axis=-1, keepdims=True)
    b = b - jnp.sum(first * b, -1, keepdims=True) * first
    second = b / jnp.linalg.norm(b, axis=-1, keepdims=True)
    return jnp.stack([first, second, jnp.cross(first, second)], -1)


def to_6d(rotation: jax.Array) -> jax.Array:
    """The first two columns of a rotation, [..., 6]."""
    return jnp.concatenate([rotation[..., 0], rotation[..., 1]], -1)


def geodesic_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Angle [...] in radians, 0..pi, of the rotation that takes `a` to `b`; exact and smooth near zero."""
    skew = jnp.swapaxes(a, -1, -2) @ b
    axis = jnp.stack(
        [skew[..., 2, 1] - skew[..., 1, 2], skew[..., 0, 2] - skew[..., 2, 0], skew[..., 1, 0] - skew[..., 0, 1]], -1
    )
    sine = jnp.sqrt(jnp.sum(axis * axis, -1) + 1e-20) / 2
    return jnp.arctan2(sine, (jnp.trace(skew, axis1=-2, axis2=-1) - 1) / 2)


def _elementary(angle: jax.Array, axis: int) -> jax.Array:
    """Right-handed rotation by `angle` about x, y or z."""
    c, s, zero, one = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle), jnp.ones_like(angle)
    rows = {
        0: [[one, zero, zero], [zero, c, -s], [zero, s, c]],
        1: [[c, zero, s], [zero, one, zero], [-s, zero, c]],
        2: [[c, -s, zero], [s, c, zero], [zero, zero, one]],
    }[axis]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)
