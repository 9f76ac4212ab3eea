"""Boundary lines: layouts, splines against SciPy, distances against the distance transform, maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline, splev, splprep
from scipy.ndimage import distance_transform_edt

from facejax.data.landmarks import MIRRORS
from facejax.ops import boundaries
from facejax.ops.heatmaps import mirrored

RNG = np.random.default_rng(0)
SPLINE = jax.jit(boundaries.spline, static_argnames=("samples", "ends", "last"))
LINE = np.cumsum(RNG.uniform(0.5, 3, (9, 2)), 0) * [1, -0.7] + RNG.normal(0, 0.5, (9, 2)) + [3, 20]


def face(landmarks, size):
    """Random but smooth lines: every landmark on an ellipse around the middle, with noise."""
    angle = np.linspace(0, 2 * np.pi, landmarks, endpoint=False)
    round_ = np.stack([np.cos(angle), np.sin(angle)], -1) * 0.35 + 0.5
    return (round_ * size + RNG.normal(0, 0.3, (landmarks, 2))).astype(np.float32)


def parameters(points):
    return np.append(0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))


def published(points, samples=100):
    """The curve of Adaptive Wing's code: repeated points removed, degree of at most 3, 0 <= u < 1."""
    points = np.concatenate([points[:1], points[1:][(np.diff(points, axis=0) != 0).any(1)]])
    spline, _ = splprep(points.T, k=min(4, len(points)) - 1, s=0)
    return np.stack(splev(np.arange(samples) / samples, spline), -1)


def through(points, natural=False):
    """40 samples of the spline through at most nine points; the rows that are missing come last."""
    rows = np.concatenate([points, np.full((9 - len(points), 2), np.nan)]).astype(np.float32)
    return SPLINE(rows, samples=40, ends="natural") if natural else SPLINE(rows, samples=40, last=False)


def drawn(curve, size):
    """Distance transform of the pixels that a curve rounds to."""
    image = np.ones(size, bool)
    x, y = np.floor(curve + 0.5).astype(int).T
    inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
    image[y[inside], x[inside]] = False
    return distance_transform_edt(image)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 9])
def test_splines_equal_scipy(count):
    points = LINE[:count]
    np.testing.assert_allclose(through(points), published(points, 40), atol=2e-4)
    u = parameters(points)
    natural = CubicSpline(u, points, bc_type="natural")(np.linspace(0, u[-1], 40))
    np.testing.assert_allclose(through(points, natural=True), natural, atol=2e-4)


@pytest.mark.parametrize("count", [2, 5])
def test_the_number_of_rows_does_not_matter(count):
    short = SPLINE(LINE[:count], samples=40, last=False)
    np.testing.assert_allclose(short, through(LINE[:count]), atol=1e-5)


@pytest.mark.parametrize("copies", [[0, 0, 1, 2, 3, 4], [0, 1, 1, 1, 2, 3, 4, 4], [0, 0, 1, 2, 2], [0, 1, 1, 1]])
def test_repeated_points_are_left_out(copies):
    np.testing.assert_allclose(through(LINE[copies]), published(LINE[copies], 40), atol=2e-4)
    distinct = through(LINE[sorted(set(copies))], natural=True)
    np.testing.assert_allclose(through(LINE[copies], natural=True), distinct, atol=1e-5)


def test_missing_points_are_left_out():
    points = LINE.copy()
    points[[0, 4, 5]] = np.nan
    np.testing.assert_allclose(through(points), through(LINE[[1, 2, 3, 6, 7, 8]]), atol=1e-5)
    between = np.stack([LINE[0], LINE[1], [np.inf, 0], LINE[1], LINE[2]])
    np.testing.assert_allclose(through(between), through(LINE[:3]), atol=1e-5)
    np.testing.assert_allclose(through(LINE[[3, 3]]), np.tile(LINE[3], (40, 1)), atol=1e-5)
    assert np.isnan(through(LINE[:0])).all()


@pytest.mark.parametrize("landmarks", [68, 98, 29, 19])
def test_curves_run_through_their_landmarks_in_the_order_of_the_table(landmarks):
    points = np.stack([face(landmarks, 64), face(landmarks, 40)])
    found = np.asarray(jax.jit(boundaries.curves)(points))
    lines = boundaries.LINES[landmarks]
    assert found.shape == (2, len(lines), 100, 2)
    for k, line in enumerate(lines.values()):
        np.testing.assert_allclose(found[:, k, 0], points[:, line[0]], atol=1e-3)
        np.testing.assert_allclose(found[:, k, -1], points[:, line[-1]], atol=1e-3)
        between = published(points[1, line, :].astype(np.float64), 99)
        np.testing.assert_allclose(found[1, k, :-1], between, atol=2e-3)


@pytest.mark.parametrize("landmarks", [68, 98, 29, 19])
def test_lines_are_symmetric(landmarks):
    lines, partners = [*boundaries.LINES[landmarks].values()], boundaries.mirror(landmarks)
    assert len(lines) == (5 if landmarks == 19 else 13)
    for line, partner in zip(lines, partners, strict=True):
        assert {int(MIRRORS[landmarks][i]) for i in line} == set(lines[partner])
    np.testing.assert_array_equal(partners[partners], np.arange(len(lines)))


@pytest.mark.parametrize("size", [(24, 24), (19, 25)])
def test_rounded_distances_equal_the_distance_transform(size):
    for points in (LINE, LINE + np.array([8, 4])):  # the second one leaves the map
        curve = through(points)
        found = jax.jit(lambda c: boundaries.squared_distances(c, size, rounded=True))(curve)
        np.testing.assert_allclose(np.sqrt(found), drawn(np.asarray(curve), size), atol=1e-5)


@pytest.mark.parametrize("reach", [0, 2, 40])
def test_distances_beyond_the_reach_are_infinite(reach):
    curves = jnp.stack([through(LINE), through(LINE + np.array([8, 4])), jnp.full((40, 2), jnp.nan)])
    every = boundaries.squared_distances(curves, (19, 25), rounded=True)
    found = np.asarray(jax.jit(lambda c: boundaries.squared_distances(c, (19, 25), rounded=True, reach=reach))(curves))
    near = np.isfinite(found)
    np.testing.assert_array_equal(found[near], np.asarray(every)[near])
    assert near[every <= reach**2].all()
    assert not near[every > 2 * reach**2].any()


def test_distances_to_segments():
    curve = jnp.array([[2.0, 3], [2, 3], [7, 3], [7, 30]])
    found = np.sqrt(jax.jit(lambda c: boundaries.squared_distances(c, (12, 11)))(curve))
    row, column = np.mgrid[:12, :11]
    first = np.hypot(np.maximum(np.maximum(2 - column, column - 7), 0), row - 3)
    second = np.hypot(column - 7, np.maximum(3 - row, 0))
    np.testing.assert_allclose(found, np.minimum(first, second), atol=1e-5)
    fine = published(LINE, 4000)
    brute = np.linalg.norm(np.mgrid[:9, :9][::-1, ..., None] - fine.T[:, None, None], axis=0).min(-1)
    coarse = jnp.asarray(published(LINE, 400))
    np.testing.assert_allclose(np.sqrt(boundaries.squared_distances(coarse, (9, 9))), brute, atol=2e-3)
    assert np.isinf(boundaries.squared_distances(jnp.full((4, 2), jnp.nan), (3, 3))).all()
    assert np.isinf(boundaries.squared_distances(jnp.full((4, 2), 50.0), (3, 3), rounded=True)).all()


@pytest.mark.parametrize("landmarks", [68, 98])
def test_maps_equal_adaptive_wings_procedure(landmarks):
    points = np.floor(face(landmarks, 40))
    draw = jax.jit(lambda p: boundaries.boundary_maps(p, (38, 40), last=False, rounded=True))
    found = np.asarray(draw(points))
    certain = np.zeros(found.shape[:2])
    for k, line in enumerate(boundaries.LINES[landmarks].values()):
        curve = published(points[list(line)].astype(np.float64))
        halves = np.abs(curve - np.floor(curve) - 0.5).min() < 1e-3  # rounding decides
        distance = drawn(curve, (38, 40))
        expected = np.where(distance < 3, np.exp(-(distance**2) / 2), 0)
        if not halves:
            np.testing.assert_allclose(found[..., k], expected, atol=1e-5)
            certain = np.maximum(certain, expected)
        assert found[..., k].max() == 1
    assert (found.max(-1) >= certain - 1e-5).all() and certain.max() == 1


def test_maps_of_a_flipped_and_of_a_shifted_face():
    points = face(68, 32)
    draw = jax.jit(lambda p: boundaries.boundary_maps(p, (33, 37), ends="natural"))
    flipped = points[MIRRORS[68]] * [-1, 1] + [36, 0]
    np.testing.assert_allclose(draw(flipped), mirrored(draw(points), boundaries.mirror(68)), atol=1e-4)
    shifted = draw(points + np.float32([2, 1]))
    np.testing.assert_allclose(shifted[1:, 2:], draw(points)[:-1, :-2], atol=1e-4)
    assert (draw(np.full((68, 2), np.nan)) == 0).all()


def test_gaussian():
    found = boundaries.gaussian(jnp.array([0.0, 1, 8.99, 9, jnp.inf]))
    np.testing.assert_allclose(found, [1, np.exp(-0.5), np.exp(-4.495), 0, 0], rtol=1e-6)
    np.testing.assert_allclose(boundaries.gaussian(jnp.array([35.9, 36.0]), 2.0), [np.exp(-35.9 / 8), 0], rtol=1e-5)


@pytest.mark.parametrize("rounded", [False, True])
def test_gradients_are_finite_with_repeated_points(rounded):
    points = jnp.asarray(np.floor(face(98, 16)))
    gradient = jax.jit(jax.grad(lambda p: boundaries.boundary_maps(p, (16, 15), rounded=rounded).sum()))(points)
    assert np.isfinite(gradient).all()
    assert rounded or np.abs(gradient).max() > 0.1


def test_gradient_of_a_spline_by_differences():
    direction = RNG.normal(size=LINE.shape)
    weights = RNG.normal(size=(12, 2))

    def value(step):
        points = LINE + step * direction
        u = parameters(points)
        return (CubicSpline(u, points, bc_type="natural")(np.linspace(0, u[-1], 12)) * weights).sum()

    gradient = jax.jit(jax.grad(lambda p: (boundaries.spline(p, 12, ends="natural") * weights).sum()))(LINE)
    np.testing.assert_allclose((gradient * direction).sum(), (value(1e-5) - value(-1e-5)) / 2e-5, rtol=1e-3)


def test_invalid_input_raises():
    with pytest.raises(ValueError, match=r"no boundary lines are known for 5 landmarks, only for 68, 98, 29, 19"):
        boundaries.curves(jnp.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"curves: points \(68, 3\), expected \[\.\.\., L, 2\]"):
        boundaries.curves(jnp.zeros((68, 3)))
    with pytest.raises(ValueError, match=r"spline: points \(1, 2\), expected"):
        boundaries.spline(jnp.zeros((1, 2)), 10)
    with pytest.raises(ValueError, match="samples is 1, expected 2 or more"):
        boundaries.spline(jnp.zeros((3, 2)), 1)
    with pytest.raises(ValueError, match="ends is 'clamped', expected one of not_a_knot, natural"):
        boundaries.spline(jnp.zeros((3, 2)), 5, ends="clamped")
