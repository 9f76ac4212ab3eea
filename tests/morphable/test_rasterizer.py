import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.morphable import rasterizer
from facejax.morphable.rasterizer import interpolate, rasterize, rasterize_batch


def brute(vertices, triangles, height, width, cull):
    """Tests every triangle on every pixel of its box in float64; also returns each pixel's margin to an edge or tie."""
    v = vertices.astype(np.float64)
    winner = np.full((height, width), -1)
    depth = np.full((height, width), -np.inf)
    doubtful = np.zeros((height, width), bool)
    for number, corners in enumerate(v[triangles]):
        a, b, c = corners
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0 or (cull and area > 0):
            continue
        low = np.clip(np.floor(corners[:, :2].min(0) - 1), 0, None).astype(int)
        high = np.minimum(np.ceil(corners[:, :2].max(0) + 1).astype(int), [width, height])
        if (high <= low).any():
            continue
        x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
        weights = (
            np.stack([(q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) for p, q in ((b, c), (c, a), (a, b))])
            / area
        )
        z = np.tensordot(corners[:, 2], weights, 1)
        window = np.s_[low[1] : high[1], low[0] : high[0]]
        tie = (np.abs(z - depth[window]) < 1e-4) & (weights.min(0) > -1e-4)
        doubtful[window] |= (np.abs(weights.min(0)) < 1e-4) | tie
        nearer = (weights.min(0) >= 0) & (z > depth[window])
        winner[window][nearer], depth[window][nearer] = number, z[nearer]
    return winner, doubtful


def sphere(rows, columns, size):
    v, u = np.meshgrid(np.linspace(0.05, np.pi - 0.05, rows), np.linspace(0, 2 * np.pi, columns), indexing="ij")
    x, y, z = np.sin(v) * np.sin(u), np.cos(v), np.sin(v) * np.cos(u)
    points = np.stack([(0.45 * x + 0.503) * size, (0.501 - 0.45 * y) * size, z * size / 2], -1).reshape(-1, 3)
    a = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    triangles = np.concatenate(
        [np.stack([a, a + columns, a + 1], -1), np.stack([a + 1, a + columns, a + columns + 1], -1)]
    )
    return points.astype(np.float32), triangles.astype(np.int32)


def soup(rng, count, size):
    points = rng.uniform(-0.2, 1.2, (3 * count, 3)) * [size, size, 10]
    return points.astype(np.float32), np.arange(3 * count).reshape(-1, 3).astype(np.int32)


@pytest.mark.parametrize("cull", [True, False])
@pytest.mark.parametrize("mesh", ["soup", "sphere"])
def test_equals_brute_force(mesh, cull):
    size = 24
    vertices, triangles = soup(np.random.default_rng(0), 40, size) if mesh == "soup" else sphere(20, 33, size)
    fragments = jax.jit(lambda v: rasterize(v, triangles, size, size, cull=cull, capacity=40 * size * size))(vertices)
    expected, doubtful = brute(vertices, triangles, size, size, cull)
    assert not fragments.overflow
    assert doubtful.mean() < 0.2
    np.testing.assert_array_equal(np.where(doubtful, -2, fragments.triangle), np.where(doubtful, -2, expected))


def test_number_of_triangles_of_the_basel_face_model():
    vertices, triangles = sphere(220, 243, 64)
    triangles = triangles[:105_840]
    assert len(triangles) == 105_840
    fragments = jax.jit(lambda v: rasterize(v, triangles, 64, 64))(vertices)
    expected, doubtful = brute(vertices, triangles, 64, 64, True)
    assert not fragments.overflow
    np.testing.assert_array_equal(np.where(doubtful, -2, fragments.triangle), np.where(doubtful, -2, expected))


def test_interpolated_positions_and_gradients():
    vertices, triangles = sphere(12, 17, 16)

    def picture(attributes, vertices):
        fragments = rasterize(vertices, triangles, 16, 16)
        return jnp.moveaxis(interpolate(fragments, triangles, attributes), 0, -1), fragments

    drawn, fragments = jax.jit(picture)(vertices, vertices)
    ys, xs = np.mgrid[:16, :16] + 0.5
    hit = np.asarray(fragments.triangle) >= 0
    np.testing.assert_allclose(drawn[hit][:, :2], np.stack([xs, ys], -1)[hit], atol=1e-3)
    np.testing.assert_allclose(drawn[hit][:, 2], fragments.depth[hit], atol=1e-3)
    gradient = jax.grad(lambda a: picture(a, vertices)[0].sum())(jnp.asarray(vertices))
    np.testing.assert_allclose(gradient.sum(0), hit.sum(), rtol=1e-4)
    moved = jax.grad(lambda v: (picture(jnp.asarray(vertices), v)[0] ** 2).sum())(jnp.asarray(vertices))
    assert np.isfinite(moved).all()
    assert np.abs(moved).max() > 0


def test_batch_equals_single():
    vertices, triangles = sphere(10, 13, 12)
    batch = jnp.stack([vertices, vertices + 0.7])
    together = jax.jit(lambda v: rasterize_batch(v, triangles, 12, 12))(batch)
    for i in range(2):
        alone = rasterize(batch[i], triangles, 12, 12)
        np.testing.assert_array_equal(together.triangle[i], alone.triangle)


def test_a_full_work_list_raises():
    vertices, triangles = sphere(10, 13, 32)
    fragments = rasterize(vertices, triangles, 32, 32, capacity=50)
    with pytest.raises(ValueError, match="work list is full"):
        rasterizer.check(fragments)
    rasterizer.check(rasterize(vertices, triangles, 32, 32))
    with pytest.raises(ValueError, match=r"vertices \(3, 2\).*expected \[V, 3\]"):
        rasterize(jnp.zeros((3, 2)), triangles, 4, 4)
