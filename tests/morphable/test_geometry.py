"""Rotations, cameras, lighting and UV maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from facejax.morphable import camera, lighting, uv
from facejax.ops import rotation
from facejax.ops.sampling import bilinear_sample

ANGLES = np.random.default_rng(0).uniform(-1.4, 1.4, (20, 3)).astype(np.float32)


def test_euler_angles_equal_scipys_intrinsic_xyz_and_invert():
    matrices = rotation.from_euler(ANGLES)
    np.testing.assert_allclose(matrices, Rotation.from_euler("XYZ", ANGLES).as_matrix(), atol=1e-6)
    np.testing.assert_allclose(rotation.to_euler(matrices), ANGLES, atol=1e-4)


def test_3ddfa_convention():
    p, y, r = 0.3, 0.5, -0.2
    c, s = np.cos, np.sin
    rx = np.array([[1, 0, 0], [0, c(p), s(p)], [0, -s(p), c(p)]])
    ry = np.array([[c(y), 0, -s(y)], [0, 1, 0], [s(y), 0, c(y)]])
    rz = np.array([[c(r), s(r), 0], [-s(r), c(r), 0], [0, 0, 1]])
    np.testing.assert_allclose(rotation.from_euler_3ddfa(jnp.array([p, y, r])), rx @ ry @ rz, atol=1e-6)
    np.testing.assert_allclose(rotation.to_euler_3ddfa(rx @ ry @ rz), [p, y, r], atol=1e-6)
    read = np.degrees(rotation.to_euler_zyx(rotation.from_euler_3ddfa(jnp.radians(jnp.array([20.0, 40.0, 25.0])))))
    np.testing.assert_allclose(read, [-4.35, 43.79, -15.91], atol=0.01)


def test_quaternions_and_6d_rotations_invert():
    matrices = rotation.from_euler(ANGLES)
    quaternions = rotation.to_quaternion(matrices)
    np.testing.assert_allclose(rotation.from_quaternion(3 * quaternions), matrices, atol=1e-5)
    scipys = Rotation.from_matrix(matrices).as_quat(scalar_first=True, canonical=True)
    np.testing.assert_allclose(quaternions, scipys, atol=1e-5)
    half_turns = np.stack([np.diag(d) for d in ([1, -1, -1], [-1, 1, -1], [-1, -1, 1])]).astype(np.float32)
    np.testing.assert_allclose(rotation.from_quaternion(rotation.to_quaternion(half_turns)), half_turns, atol=1e-6)
    np.testing.assert_allclose(rotation.from_6d(rotation.to_6d(matrices) * 2), matrices, atol=1e-5)


def test_geodesic_distance():
    turned = rotation.from_euler(jnp.array([[0.0, 0.7, 0.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(rotation.geodesic_distance(turned, jnp.eye(3)), [0.7, 0], atol=1e-6)
    assert np.isfinite(jax.grad(lambda m: rotation.geodesic_distance(m, jnp.eye(3)))(jnp.eye(3))).all()


def test_bilinear_sample():
    image = jnp.arange(12.0).reshape(3, 4, 1)
    points = jnp.array([[0.5, 0.5], [1.0, 0.5], [0.5, 1.0], [3.5, 2.5], [-5.0, 9.0]])
    np.testing.assert_allclose(bilinear_sample(image, points)[:, 0], [0, 0.5, 2, 11, 8])


def test_cameras():
    points = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    weak = camera.weak_perspective(points, jnp.eye(3), jnp.float32(10.0), jnp.array([50.0, 60.0]))
    np.testing.assert_allclose(weak, [[50, 60, 0], [60, 60, 0], [50, 50, 0], [50, 60, 10]])
    strong = camera.perspective(points, jnp.eye(3), jnp.float32(10.0), jnp.array([50.0, 60.0]), jnp.float32(4.0))
    np.testing.assert_allclose(strong, weak)
    ahead = camera.perspective(
        jnp.array([[1.0, 0, 2.0]]), jnp.eye(3), jnp.float32(10.0), jnp.zeros(2), jnp.float32(4.0)
    )
    np.testing.assert_allclose(ahead, [[20, 0, 20]])


def test_normals_of_a_sphere_point_outward():
    v, u = np.meshgrid(np.linspace(0.3, 2.8, 20), np.linspace(0, 2 * np.pi, 30), indexing="ij")
    points = np.stack([np.sin(v) * np.sin(u), np.cos(v), np.sin(v) * np.cos(u)], -1).reshape(-1, 3).astype(np.float32)
    a = (np.arange(19)[:, None] * 30 + np.arange(29)).ravel()
    triangles = np.concatenate([np.stack([a, a + 30, a + 1], -1), np.stack([a + 1, a + 30, a + 31], -1)])
    incident = lighting.incidence(triangles, len(points) + 1, usual=4)
    lonely = np.concatenate([points, np.zeros((1, 3), np.float32)])
    normals = lighting.vertex_normals(lonely, triangles, incident)
    assert (np.sum(normals[:-1] * points, -1) > 0.99).all()
    np.testing.assert_array_equal(normals[-1], 0)


def test_spherical_harmonics_are_orthonormal():
    rng = np.random.default_rng(0)
    directions = lighting.unit(jnp.asarray(rng.normal(size=(3, 200_000)), jnp.float32))
    values = lighting.spherical_harmonics(directions)
    np.testing.assert_allclose(4 * np.pi * (values @ values.T) / values.shape[1], np.eye(9), atol=0.03)


def test_lighting_is_approximately_lambertian():
    light = lighting.directional_light(jnp.array([0.0, 0.0, 2.0]), jnp.ones(3), jnp.full(3, 0.2))
    angles = jnp.linspace(0, jnp.pi, 30)
    normals = jnp.stack([jnp.sin(angles), jnp.zeros(30), jnp.cos(angles)])
    expected = np.maximum(np.cos(angles), 0) + 0.2
    np.testing.assert_allclose(lighting.shade(normals, light)[0], expected, atol=0.1)


def test_position_map_round_trip():
    grid = np.stack(np.meshgrid(np.linspace(0.05, 0.95, 9), np.linspace(0.05, 0.95, 9)), -1).reshape(-1, 2)
    a = (np.arange(8)[:, None] * 9 + np.arange(8)).ravel()
    triangles = np.concatenate([np.stack([a, a + 9, a + 1], -1), np.stack([a + 1, a + 9, a + 10], -1)])
    coordinates = jnp.asarray(grid, jnp.float32)
    points = jnp.stack([coordinates[:, 0] * 3, coordinates[:, 1] ** 2, jnp.ones(81)], -1)
    fragments = uv.uv_fragments(coordinates, jnp.asarray(triangles), 64)
    positions, mask = uv.uv_position_map(fragments, jnp.asarray(triangles), points)
    assert 0.75 < mask.mean() < 0.85
    inner = (grid > 0.1).all(1) & (grid < 0.9).all(1)
    np.testing.assert_allclose(uv.read_points(positions, coordinates)[inner], points[inner], atol=0.02)


@pytest.mark.parametrize("bad", [np.zeros(3)])
def test_unit_of_zero_is_zero(bad):
    assert np.isfinite(jax.jacobian(lighting.unit)(jnp.asarray(bad))).all()
