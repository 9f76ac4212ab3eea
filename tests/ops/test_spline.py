"""Splines beside SciPy's; the warp beside closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator

from facejax.ops import spline

fit = jax.jit(spline.fit, static_argnames="order")
evaluate = jax.jit(spline.evaluate, static_argnames="order")
warp = jax.jit(spline.warp, static_argnames=("order", "border"))
KERNELS = {1: "linear", 2: "thin_plate_spline"}


def scattered(seed, count, dimensions=2):
    rng = np.random.default_rng(seed)
    return rng.random((count, dimensions)).astype(np.float32), rng.normal(size=(count, 3)).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.03])
@pytest.mark.parametrize("order", [1, 2])
def test_scipy(order, smoothing):
    points, values = scattered(0, 17)
    queries = np.random.default_rng(1).uniform(-0.3, 1.3, (5, 7, 2)).astype(np.float32)
    oracle = RBFInterpolator(points, values, kernel=KERNELS[order], degree=1, smoothing=smoothing)
    found = fit(points, values, order=order, smoothing=smoothing)
    np.testing.assert_allclose(
        evaluate(found, queries, order=order), oracle(queries.reshape(-1, 2)).reshape(5, 7, 3), atol=2e-3
    )
    at_points = evaluate(found, points, order=order)
    if not smoothing:
        np.testing.assert_allclose(at_points, values, atol=1e-4)
    assert (abs(at_points - values).max() > 1e-3) == bool(smoothing)


@pytest.mark.parametrize("order", [1, 2])
def test_affine_values_need_no_weights(order):
    points, _ = scattered(2, 11, 3)
    matrix = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    found = fit(points, points @ matrix + 0.5, order=order)
    np.testing.assert_allclose(found.weights, 0, atol=1e-4)
    np.testing.assert_allclose(found.affine, [*matrix, [0.5, 0.5]], atol=1e-4)


def test_border_points():
    assert spline.border_points(0).shape == (0, 2)
    np.testing.assert_array_equal(spline.border_points(1), [[0, 0], [1, 0], [1, 1], [0, 1]])
    assert {(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)} <= {tuple(p) for p in spline.border_points(2).tolist()}


SIZES = [(9, 13), (16, 16)]


def picture(height, width):
    return np.random.default_rng(3).random((height, width, 3)).astype(np.float32)


def inner_points(height, width, count=6):
    return (np.random.default_rng(4).uniform(0.2, 0.8, (count, 2)) * [width, height]).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_points_that_stay_leave_the_image_as_it_is(size):
    image, points = picture(*size), inner_points(*size)
    for order in (1, 2):
        np.testing.assert_allclose(warp(image, points, points, order=order), image, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_translation_by_whole_pixels(size):
    image, points = picture(*size), inner_points(*size)
    found = warp(image, points, points + np.float32([2, 1]), border=0)
    np.testing.assert_allclose(found[1:, 2:], image[:-1, :-2], atol=1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_affine_map_of_a_ramp(order):
    """A picture that is linear in x and y stays linear wherever all samples lie inside."""
    height, width = 11, 15
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    places = np.stack([x, y], -1).astype(np.float32)
    points, turn = inner_points(height, width), np.float32([[0.9, 0.1], [-0.05, 0.8]])
    centre = np.float32([width / 2, height / 2])
    moved = (points - centre) @ turn + centre
    found = warp(places, points, moved, order=order, border=0)
    came = (places - centre) @ np.linalg.inv(turn) + centre
    inside = ((came > 0.5) & (came < [width - 0.5, height - 0.5])).all(-1)
    assert 40 < inside.sum() < height * width
    np.testing.assert_allclose(found[inside], came[inside], atol=2e-3)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_at_a_point_arrives_there(size):
    """The displacement at the target's pixel is the point's, and 0 at the corners."""
    height, width = size
    target = np.floor(inner_points(height, width, 3)) + 0.5
    target = np.unique(target, axis=0).astype(np.float32)
    source = target + np.float32([0.7, -0.4])
    moved = np.asarray(jax.jit(spline.displacements, static_argnums=(2, 3))(source, target, height, width))
    rows = target.astype(int)
    np.testing.assert_allclose(moved[rows[:, 1], rows[:, 0]], target - source, atol=1e-4)
    assert abs(moved[0, 0]).max() < abs(moved[rows[0, 1], rows[0, 0]]).max()


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_are_finite_differences(order):
    rng, (height, width) = np.random.default_rng(5), (9, 11)
    image, source = picture(height, width), inner_points(height, width)
    target = source + rng.uniform(-0.6, 0.6, source.shape).astype(np.float32)
    weights = rng.normal(size=image.shape)

    def total(image, source, target):
        return jnp.sum(weights * spline.warp(image, source, target, order=order, smoothing=1e-3))

    with jax.enable_x64(True):
        inputs = [jnp.asarray(x, jnp.float64) for x in (image, source, target)]
        slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*inputs)
        value = jax.jit(total)
        for number, slope in enumerate(slopes):
            way = rng.normal(size=slope.shape)
            ends = [[x + (sign * 1e-6 * way if i == number else 0) for i, x in enumerate(inputs)] for sign in (1, -1)]
            difference = (value(*ends[0]) - value(*ends[1])) / 2e-6
            np.testing.assert_allclose(jnp.sum(slope * way), difference, rtol=1e-4, atol=1e-4)


def test_gradient_at_a_control_point_is_finite():
    points, values = scattered(0, 6)
    for order in (1, 2):

        def total(q, order=order):
            return spline.evaluate(spline.fit(q, values, order=order), points, order=order).sum()

        slope = jax.jit(jax.grad(total))(points)
        assert np.isfinite(slope).all()


def test_bad_input():
    with pytest.raises(ValueError, match="a spline of order 3: expected 1 or 2"):
        spline.basis(jnp.ones(2), 3)
    with pytest.raises(ValueError, match=r"points \(4, 2\) and values \(3, 2\), expected \[P, D\] and \[P, C\]"):
        spline.fit(jnp.zeros((4, 2)), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"warp: points \(4, 2\) to \(5, 2\), expected \[P, 2\] twice"):
        spline.warp(jnp.zeros((4, 4, 3)), jnp.zeros((4, 2)), jnp.zeros((5, 2)))
