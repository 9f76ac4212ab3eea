"""Parts, edge collapse and barycentric upsampling of meshes."""

import numpy as np
import pytest
from scipy.optimize import nnls

from facejax.morphable import decimation


def grid(rows, columns, height=lambda x, y: 0 * x):
    """A square patch of a height field: vertices [rows * columns, 3] and triangles."""
    y, x = (v.ravel() for v in np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j])
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    lower = np.stack([corner, corner + 1, corner + columns], -1)
    upper = np.stack([corner + 1, corner + columns + 1, corner + columns], -1)
    return np.stack([x, y, height(x, y)], -1), np.concatenate([lower, upper]).astype(np.int32)


def test_part():
    _, triangles = grid(3, 3)
    keep = np.arange(9) != 8  # a corner
    rows, chosen = decimation.part(triangles, keep)
    np.testing.assert_array_equal(rows, np.arange(8))
    assert len(chosen) == len(triangles) - 1
    rows, chosen = decimation.part(triangles, np.arange(9) > 2)
    np.testing.assert_array_equal(rows, np.arange(3, 9))
    np.testing.assert_array_equal(np.sort(rows[chosen].ravel()), np.sort(triangles[(triangles > 2).all(1)].ravel()))


def test_edges():
    sides, counts = decimation.edges(np.array([[0, 1, 2], [2, 1, 3]]))
    np.testing.assert_array_equal(sides, [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]])
    np.testing.assert_array_equal(counts, [1, 1, 2, 1, 1])


@pytest.mark.parametrize("count", [40, 23, 4])
def test_flat_patch_keeps_its_area_and_orientation(count):
    vertices, triangles = grid(9, 11)
    rows, coarse = decimation.decimate(vertices, triangles, count)
    assert len(rows) == count
    a, b, c = (vertices[rows][coarse[:, i]] for i in range(3))
    areas = np.cross(b - a, c - a)[:, 2] / 2
    assert areas.min() > 0
    np.testing.assert_allclose(areas.sum(), 1, atol=1e-9)
    assert {0, 10, 88, 98} <= set(rows.tolist())  # the corners of the border


def test_vertices_stay_where_the_surface_bends():
    vertices, triangles = grid(11, 11, lambda x, y: np.abs(x - 0.5))
    rows, _ = decimation.decimate(vertices, triangles, 6)
    np.testing.assert_array_equal(np.unique(vertices[rows][:, 0].round(6)), [0, 0.5, 1])


def test_upsampling():
    vertices, triangles = grid(9, 11, lambda x, y: 0.3 * x * y)
    rows, coarse = decimation.decimate(vertices, triangles, 20)
    corners, weights = decimation.upsampling(vertices, vertices[rows], coarse)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    found = np.sum(vertices[rows][corners] * weights[..., None], 1)
    np.testing.assert_allclose(found[rows], vertices[rows], atol=1e-6)
    for v in range(0, len(vertices), 7):  # the nearest point of the surface, by least squares in every triangle
        best = min(
            np.linalg.norm(nnls(np.vstack([vertices[rows][t].T, 100 * np.ones(3)]), np.append(vertices[v], 100))[0]
            @ vertices[rows][t] - vertices[v])
            for t in coarse
        )  # fmt: skip
        assert np.linalg.norm(found[v] - vertices[v]) <= best + 1e-3
