"""Heatmaps: comparison with NumPy loops, hand-computed peaks, round trips, shift of the flip test."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.ops import heatmaps

DECODE = jax.jit(heatmaps.decode)
TAYLOR = jax.jit(lambda maps: heatmaps.decode_taylor(maps, sigma=2.0))


def brute_force(points, size, sigma, radius):
    """Target maps by a loop over pixels."""
    maps, weights = np.zeros((*size, len(points))), np.zeros(len(points))
    for i, (x, y) in enumerate(points):
        x, y = np.floor(x + 0.5), np.floor(y + 0.5)
        for row, column in np.ndindex(*size):
            if abs(row - y) <= radius and abs(column - x) <= radius:
                maps[row, column, i] = np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * sigma**2))
                weights[i] = 1
    return maps, weights


def drawn(points, size, **options):
    return jax.jit(lambda p: heatmaps.gaussian_maps(p, size, **options))(jnp.asarray(points, jnp.float32))


POINTS = np.array([[3.4, 5.5], [0, 0], [11.6, 8], [-6.4, 2], [-6.6, 2], [30, 4], [5, 14.49], [5, 14.5]])


@pytest.mark.parametrize(("sigma", "radius"), [(2, None), (1.75, 3), (1, None)])
def test_targets_equal_the_definition(sigma, radius):
    maps, weights = jax.jit(lambda p: heatmaps.gaussian_maps(p, (9, 12), sigma=sigma, radius=radius))(POINTS)
    expected, counted = brute_force(POINTS, (9, 12), sigma, radius or 3 * sigma)
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    np.testing.assert_array_equal(weights, counted)
    assert maps[6, 3, 0] == maps[0, 0, 1] == 1


def test_window_weight_and_visibility():
    maps, weights = drawn([[10, 10]] * 3, (21, 21), sigma=2, visible=jnp.array([1, 0, 1]))
    assert np.count_nonzero(maps[..., 0]) == 13 * 13  # three sigma on either side
    np.testing.assert_array_equal(weights, [1, 0, 1])
    assert not maps[..., 1].any()
    far, weights = drawn([[-6, 3], [-7, 3]], (8, 8), sigma=2)
    np.testing.assert_array_equal(weights, [1, 0])
    assert far[..., 0].max() > 0


def test_centres_without_rounding():
    maps, _ = drawn([[4.5, 3]], (8, 9), sigma=1, rounded=False)
    np.testing.assert_allclose(maps[3, 4:6, 0], np.exp(-0.125), rtol=1e-6)
    assert drawn([[4.5, 3]], (8, 9), sigma=1)[0][3, 5, 0] == 1


def test_round_trip_is_exact_for_integers_and_within_half_a_pixel_otherwise():
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 16, (5, 40, 2)).astype(np.float32)
    maps, _ = drawn(whole, (16, 16), sigma=2)
    points, heights = jax.jit(heatmaps.peaks)(maps)
    np.testing.assert_array_equal(points, whole)
    np.testing.assert_array_equal(heights, 1)
    between = whole.clip(2, 13) + rng.uniform(-0.5, 0.5, whole.shape)
    maps, _ = drawn(between, (16, 16), sigma=2, rounded=False)
    errors = {name: np.abs(found - between) for name, (found, _) in {
        "peak": heatmaps.peaks(maps), "shift": DECODE(maps), "taylor": TAYLOR(maps)
    }.items()}  # fmt: skip
    inner = ((whole > 5) & (whole < 10)).all(-1)  # where the smoothing does not reach the edge
    assert errors["peak"].max() <= 0.501
    assert errors["shift"][inner].max() <= 0.251
    assert errors["taylor"][inner].max() < 0.01


def test_quarter_pixel_towards_the_higher_neighbour():
    maps = np.zeros((6, 7, 3), np.float32)
    maps[3, 2, 0], maps[3, 3, 0], maps[2, 2, 0] = 1, 0.5, 0.2
    maps[3, 1, 1], maps[3, 2, 1] = 1, 0.5  # second column: shifted only with margin 1
    maps[4, 5, 2], maps[4, 4, 2] = 1, 0.5
    points, _ = DECODE(maps)
    np.testing.assert_allclose(points, [[2.25, 2.75], [1, 3], [4.75, 4]])
    np.testing.assert_allclose(jax.jit(lambda m: heatmaps.decode(m, margin=1))(maps)[0][1], [1.25, 3])
    np.testing.assert_allclose(
        jax.jit(lambda m: heatmaps.decode(m, shift=0.0))(maps)[0], heatmaps.peaks(jnp.asarray(maps))[0]
    )
    last = jnp.zeros((6, 7, 1)).at[3, 6].set(1).at[3, 5].set(0.5)
    np.testing.assert_allclose(DECODE(last)[0][0], [6, 3])


def test_peaks_of_ties_and_empty_maps():
    maps = jnp.full((4, 5, 1), -1.0).at[1, 3].set(2).at[2, 0].set(2)
    np.testing.assert_array_equal(heatmaps.peaks(maps)[0], [[3, 1]])
    points, heights = DECODE(jnp.full((4, 5, 1), -0.5))
    np.testing.assert_array_equal(points, [[0, 0]])
    assert heights[0] == -0.5
    assert np.isfinite(TAYLOR(jnp.zeros((8, 8, 1)))[0]).all()


@pytest.mark.parametrize(("sigma", "kernel"), [(1.0, 5), (2.0, 11), (3.0, 17)])
def test_taylor_equals_loops_over_opencv(sigma, kernel):
    """The authors' procedure: zero border, OpenCV's blur, scaled to the old height, logarithm, Newton's step.

    Targets with noise, whose steps are within a pixel, and maps of noise, many of whose steps are not: here they keep
    the peak.
    """
    rng = np.random.default_rng(1)
    targets = heatmaps.gaussian_maps(jnp.float32(rng.uniform(4, 20, (15, 2))), (24, 26), sigma=sigma, rounded=False)[0]
    maps = np.asarray(targets) + rng.uniform(0, 0.05, targets.shape)
    maps = np.float32(np.concatenate([maps, rng.uniform(0, 1, (24, 26, 60))], 2))
    peaks, steps, smoothed = [], [], []
    for i in range(maps.shape[2]):
        border = (kernel - 1) // 2
        padded = cv2.copyMakeBorder(maps[..., i], *[border] * 4, cv2.BORDER_CONSTANT, value=0)
        smooth = cv2.GaussianBlur(padded, (kernel, kernel), 0)[border:-border, border:-border]
        smoothed.append(smooth)
        logs = np.log(np.maximum(smooth * maps[..., i].max() / smooth.max(), 1e-10)).astype(np.float64)
        y, x = np.unravel_index(maps[..., i].argmax(), maps.shape[:2])
        move = np.zeros(2)
        if 2 <= x < 24 and 2 <= y < 22:
            slope = np.array([logs[y, x + 1] - logs[y, x - 1], logs[y + 1, x] - logs[y - 1, x]]) / 2
            xy = (logs[y + 1, x + 1] - logs[y - 1, x + 1] - logs[y + 1, x - 1] + logs[y - 1, x - 1]) / 4
            xx = (logs[y, x + 2] - 2 * logs[y, x] + logs[y, x - 2]) / 4
            yy = (logs[y + 2, x] - 2 * logs[y, x] + logs[y - 2, x]) / 4
            move = -np.linalg.solve([[xx, xy], [xy, yy]], slope)
        peaks.append([x, y])
        steps.append(move)
    blurred = heatmaps.blur(jnp.asarray(maps), border)
    np.testing.assert_allclose(blurred, np.stack(smoothed, 2), rtol=1e-5, atol=1e-6)
    peaks, steps = np.array(peaks), np.array(steps)
    longest = np.abs(steps).max(1)
    assert longest[:15].max() < 1 and (longest > 2).mean() > 0.05
    found = np.asarray(heatmaps.decode_taylor(jnp.asarray(maps), sigma=sigma)[0])
    certain = np.abs(longest - 1) > 0.05  # of the others rounding decides
    expected = peaks + np.where(longest[:, None] > 1, 0, steps)
    np.testing.assert_allclose(found[certain], expected[certain], atol=2e-3)


def test_vmap_equals_leading_axes():
    maps = jax.random.uniform(jax.random.key(0), (2, 3, 8, 9, 4))
    for decode in (heatmaps.decode, lambda m: heatmaps.decode_taylor(m, sigma=1.0)):
        points, heights = jax.jit(decode)(maps)
        mapped, tall = jax.jit(jax.vmap(jax.vmap(decode)))(maps)
        assert points.shape == (2, 3, 4, 2)
        np.testing.assert_allclose(points, mapped, atol=1e-5)
        np.testing.assert_array_equal(heights, tall)


def test_flip_test():
    partners = np.array([1, 0, 2])
    maps, _ = drawn([[3, 2], [6, 4], [5, 5]], (8, 10), sigma=1)
    mirror = maps[..., ::-1, :][..., partners]
    np.testing.assert_array_equal(heatmaps.mirrored(mirror, partners), maps)
    np.testing.assert_array_equal(heatmaps.flip_average(maps, mirror, partners, shift=0), maps)
    moved = heatmaps.flip_average(jnp.zeros_like(maps), 2 * mirror, partners)
    np.testing.assert_array_equal(moved[:, 1:], maps[:, :-1])
    np.testing.assert_array_equal(moved[:, 0], maps[:, 0])


def test_flipped_targets_are_three_quarters_of_a_pixel_left():
    x = np.arange(20.0, 30.0)
    back = 16 - 1 - (64 - 1 - x) / 4
    np.testing.assert_allclose(x / 4 - back, 0.75)


def test_loss_and_its_gradient():
    rng = np.random.default_rng(2)
    maps, targets = rng.normal(size=(2, 2, 3, 4, 5)).astype(np.float32)
    weights = np.array([[1, 0, 1, 1, 0], [1, 1, 1, 0, 0]], np.float32)
    expected = [
        np.mean([0.5 * np.mean((weights[n, k] * (maps[n, ..., k] - targets[n, ..., k])) ** 2) for k in range(5)])
        for n in range(2)
    ]
    np.testing.assert_allclose(heatmaps.squared_error(maps, targets, weights), expected, rtol=1e-5)
    gradient = jax.grad(lambda m: heatmaps.squared_error(m, targets, weights).sum())(maps)
    np.testing.assert_allclose(gradient, weights[:, None, None] * (maps - targets) / 60, atol=1e-7)


def test_invalid_input_raises():
    with pytest.raises(ValueError, match=r"points \(4, 3\), expected \[\.\.\., L, 2\]"):
        heatmaps.gaussian_maps(jnp.zeros((4, 3)), (8, 8), sigma=2)
    with pytest.raises(ValueError, match=r"visible \(3,\), expected \(4,\)"):
        heatmaps.gaussian_maps(jnp.zeros((4, 2)), (8, 8), sigma=2, visible=jnp.ones(3))
    with pytest.raises(ValueError, match="sigma is 0, expected above 0"):
        heatmaps.gaussian_maps(jnp.zeros((4, 2)), (8, 8), sigma=0)
    with pytest.raises(ValueError, match=r"weights \(5,\), expected \[\.\.\., H, W, L\] twice and \[\.\.\., L\]"):
        heatmaps.squared_error(jnp.zeros((8, 8, 4)), jnp.zeros((8, 8, 4)), jnp.ones(5))
    with pytest.raises(ValueError, match=r"partners \(3,\), expected \(4,\), one per map"):
        heatmaps.mirrored(jnp.zeros((8, 8, 4)), np.arange(3))
    with pytest.raises(ValueError, match=r"maps \(8, 4\), expected \[\.\.\., H, W, L\]"):
        heatmaps.peaks(jnp.zeros((8, 4)))
