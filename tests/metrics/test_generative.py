"""Closed forms, hand-worked cases and SciPy."""

import cv2
import numpy as np
import pytest
from scipy import linalg, ndimage, stats

from facejax.metrics import generative
from facejax.metrics.generative import Moments


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 100, rng.normal(size=(200, 6)) * 2 + 99


def test_moments_of_parts_add_up(features):
    parts = [Moments.of(part) for part in np.split(features[0], [1, 50, 120])]
    together = sum(parts[1:], parts[0])
    np.testing.assert_allclose(together.mean, features[0].mean(0))
    np.testing.assert_allclose(together.covariance, np.cov(features[0], rowvar=False), rtol=1e-9)
    assert together.count == 300


def test_frechet_distance_equals_scipys(features):
    first, second = map(Moments.of, features)
    root = linalg.sqrtm(first.covariance @ second.covariance).real
    expected = np.sum((first.mean - second.mean) ** 2) + np.trace(first.covariance + second.covariance - 2 * root)
    np.testing.assert_allclose(generative.frechet_distance(first, second), expected, rtol=1e-9)
    np.testing.assert_allclose(generative.frechet_distance(second, first), expected, rtol=1e-9)


def test_frechet_distance_in_closed_form():
    one = Moments(3, np.array([1.0, 2.0]), 2 * np.diag([4.0, 9.0]))
    other = Moments(5, np.array([4.0, 6.0]), 4 * np.diag([1.0, 16.0]))
    assert generative.frechet_distance(one, one) == pytest.approx(0, abs=1e-12)
    assert generative.frechet_distance(one, other) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 4) ** 2)


def test_frechet_distance_of_fewer_features_than_dimensions(features):
    few = np.random.default_rng(1).normal(size=(2, 5, 40))
    found = generative.frechet_distance(*map(Moments.of, few))
    turn = stats.ortho_group.rvs(40, random_state=0)
    assert found > 0
    np.testing.assert_allclose(generative.frechet_distance(*(Moments.of(3 * x @ turn) for x in few)), 9 * found)


def test_kernel_distance_by_loops():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)) + 1

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    def mean(rows, others, skip):
        values = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(others) if not (skip and i == j)]
        return np.mean(values)

    expected = mean(real, real, True) + mean(fake, fake, True) - 2 * mean(real, fake, False)
    np.testing.assert_allclose(generative.kernel_distance(real, fake, subsets=2, size=7), expected)
    many = rng.normal(size=(400, 3))
    same, moved = (generative.kernel_distance(many[:200], many[200:] + d, subsets=20, size=100) for d in (0, 1))
    assert abs(same) < 0.05 * moved


def test_precision_and_recall_by_hand():
    """With one neighbour, radii of the real points are 1, 1, 7, and of the generated 0.5, 0.5, 4.5."""
    real, fake = np.array([[0.0], [1], [8]]), np.array([[1.5], [2], [6.5]])
    found = generative.precision_recall(real, fake, 1)
    assert found.precision == 1  # 1.5 and 2 lie within 1 of 1, 6.5 within 7 of 8
    assert found.recall == pytest.approx(2 / 3)  # 1 within 0.5 of 1.5, 8 within 4.5 of 6.5; 0 nowhere
    far = generative.precision_recall(real, fake + 100, 1)
    assert far == (0, 0)


def test_precision_and_recall_by_brute_force(monkeypatch):
    monkeypatch.setattr(generative, "BLOCK", 16)
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(50, 2)), rng.normal(size=(60, 2)) * 0.5 + 0.5

    def inside(rows, others):
        own = np.linalg.norm(others[:, None] - others, axis=-1)
        reach = np.sort(own, 1)[:, 3]
        return np.mean((np.linalg.norm(rows[:, None] - others, axis=-1) <= reach).any(1))

    np.testing.assert_allclose(generative.precision_recall(real, fake), (inside(fake, real), inside(real, fake)))


def test_pyramid():
    """The blur is OpenCV's, and the levels add up to the images."""
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    fine, middle, coarse = generative.laplacian_pyramid(images, 3)
    for image, small in zip(images, generative.laplacian_pyramid(images, 2)[1], strict=True):
        np.testing.assert_allclose(cv2.pyrDown(image.astype(np.float32)), small, atol=1e-3)
    kernel = np.outer(generative.BINOMIAL, generative.BINOMIAL)[None, :, :, None] * 4
    for details in (middle, fine):
        stuffed = np.zeros_like(details)
        stuffed[:, ::2, ::2] = coarse
        coarse = ndimage.convolve(stuffed, kernel, mode="mirror") + details
    np.testing.assert_allclose(coarse, images, atol=1e-3)


def test_sliced_wasserstein_by_loops(monkeypatch):
    """Patches are drawn from parts of two images, directions after them; the loops repeat the same draws."""
    monkeypatch.setattr(generative, "PYRAMIDS", 2)
    rng, sets, described = np.random.default_rng(0), [], []
    for seed in range(2):
        images = rng.integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
        sets.append(generative.Patches(32, patches=4, seed=seed))
        draws, levels = np.random.default_rng(seed), {32: [], 16: []}
        for part in (images[:3], images[3:]):
            sets[-1].add(part)
            for some in (part[:2], part[2:]) if len(part) > 2 else (part,):
                for level in generative.laplacian_pyramid(some, 2):
                    places = [draws.integers(0, level.shape[1] - 6, (len(some), 4)) for _ in range(2)]
                    for i in range(len(some)):
                        cut = (level[i, y : y + 7, x : x + 7] for y, x in zip(*(p[i] for p in places), strict=True))
                        levels[level.shape[1]] += list(cut)
        stacked = [np.stack(level).astype(np.float64) for level in levels.values()]
        stacked = [(x - x.mean((0, 1, 2))) / x.std((0, 1, 2)) for x in stacked]
        described.append([x.transpose(0, 3, 1, 2).reshape(20, -1) for x in stacked])
    found = generative.sliced_wasserstein(*sets, repeats=2, directions=4, seed=1)
    assert list(found) == [32, 16]
    draws = np.random.default_rng(1)
    for level, a, b in zip(found, *described, strict=True):
        total = []
        for _ in range(2):
            ways = draws.normal(size=(147, 4))
            total += [np.abs(np.sort(a @ w) - np.sort(b @ w)).mean() for w in (ways / np.linalg.norm(ways, axis=0)).T]
        np.testing.assert_allclose(found[level], 1000 * np.mean(total), rtol=1e-4)


def test_distance_of_sorted_projections():
    """In one dimension, equally many points: the mean distance between points of equal rank, SciPy's."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 100))
    np.testing.assert_allclose(np.abs(np.sort(a) - np.sort(b)).mean(), stats.wasserstein_distance(a, b))


def test_slerp():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 8))
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    np.testing.assert_allclose(generative.slerp(a, 7 * b, np.zeros(5)), unit_a)
    np.testing.assert_allclose(generative.slerp(a, 7 * b, np.ones(5)), unit_b)
    middle = generative.slerp(a, b, np.full(5, 0.5))
    np.testing.assert_allclose(np.sum(middle * unit_a, 1), np.sum(middle * unit_b, 1))
    np.testing.assert_allclose(np.linalg.norm(middle, axis=1), 1)


def test_path_length_of_a_linear_generator():
    """Squared distances of images A w along straight paths: ||A (w2 - w1)||^2, without the two extreme hundredths."""
    rng = np.random.default_rng(0)
    matrix, first, second = rng.normal(size=(4, 3)), rng.normal(size=(1000, 3)), rng.normal(size=(1000, 3))
    t, epsilon = rng.random((1000, 1)), 1e-3
    at, beyond = ((first + s * (second - first)) @ matrix.T for s in (t, t + epsilon))
    found = generative.path_length(np.sum((beyond - at) ** 2, 1), epsilon)
    lengths = np.sort(np.sum(((second - first) @ matrix.T) ** 2, 1))
    np.testing.assert_allclose(found, lengths[9:991].mean(), rtol=1e-6)
    assert found < lengths.mean()


def test_separability():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2000, 4))
    flat = (latents[:, 0] > 0.1).astype(float)
    chance = rng.random(2000).round()
    assert generative.separability(latents, flat[:, None]) == pytest.approx(1, abs=0.1)
    assert generative.separability(latents, chance[:, None]) == pytest.approx(2, abs=0.02)
    both = np.stack([chance, rng.random(2000).round(), np.ones(2000)], 1)
    assert generative.separability(latents, both) == pytest.approx(4, abs=0.1)
    unsure = np.where(rng.random(2000) < 0.5, flat, 0.5 + 0.1 * (chance - 0.5))
    assert generative.separability(latents, unsure[:, None], keep=0.4) == pytest.approx(1, abs=0.1)


def test_bad_input(features):
    with pytest.raises(ValueError, match="row 1 is not finite"):
        Moments.of(np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match="covariance of 1 features: expected 2 or more"):
        _ = Moments.of(np.ones((1, 3))).covariance
    with pytest.raises(ValueError, match="of 6 and of 5 dimensions"):
        generative.frechet_distance(Moments.of(features[0]), Moments.of(features[1][:, :5]))
    with pytest.raises(ValueError, match="expected more than 3"):
        generative.precision_recall(features[0], features[1][:3])
    with pytest.raises(ValueError, match="images of 24 pixels, expected a power of two, 16 or more"):
        generative.Patches(24)
    one, other = generative.Patches(16), generative.Patches(16)
    with pytest.raises(ValueError, match=r"images \(2, 16, 16, 1\), expected \[N, 16, 16, 3\]"):
        one.add(np.zeros((2, 16, 16, 1), np.uint8))
    one.add(np.zeros((2, 16, 16, 3), np.uint8))
    other.add(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="256 and 128 patches, expected as many"):
        generative.sliced_wasserstein(one, other)
