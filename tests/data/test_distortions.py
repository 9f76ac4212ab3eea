"""Every distortion against its formula or an example computed by hand."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from facejax.data import distortions
from facejax.data.distortions import DISTORTIONS


def made(kind, image, strength, seed=0):
    found = DISTORTIONS[kind](image, strength, np.random.default_rng(seed))
    assert found.dtype == np.uint8 and found.shape == image.shape and found is not image
    return found


def grey(value, height=64, width=64):
    return np.full((height, width, 3), value, np.uint8)


def photograph(height=64, width=80):
    """Smooth colours with some noise."""
    x = np.stack(np.meshgrid(np.linspace(0, 255, height), np.linspace(0, 255, width), indexing="ij"), -1)
    x = np.concatenate([x, 255 - x[..., :1]], -1) + np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return np.clip(x, 0, 255).astype(np.uint8)


def line(size):
    """Gaussian kernel of MATLAB's fspecial along one axis."""
    weights = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * (size / 6) ** 2))
    return weights / weights.sum()


@pytest.mark.parametrize("size", [3, 7, 15])
def test_kernel_blur_window_and_mirrored_border(size):
    image = grey(0)
    image[32, 32] = 255
    square = np.zeros((64, 64))
    square[32 - size // 2 : 33 + size // 2, 32 - size // 2 : 33 + size // 2] = 255 * np.outer(line(size), line(size))
    np.testing.assert_array_equal(made("kernel_blur", image, size)[..., 1], np.floor(square + 0.5))
    image = grey(0)
    image[:, 0] = 255
    middle = size // 2
    assert made("kernel_blur", image, size)[5, 0, 0] == round(255 * (line(size)[middle] + line(size)[middle + 1]))


def test_noise_has_the_given_variance():
    flat = grey(120, 256, 256)
    np.testing.assert_allclose(np.std(made("noise", flat, 0.01) / 255), 0.1, rtol=0.02)
    found = distortions._ycbcr(made("colour_noise", flat, 0.004)) / 255
    np.testing.assert_allclose(found.std((0, 1)), np.sqrt(0.004), rtol=0.02)
    found = made("multiplicative_noise", np.concatenate([grey(0), grey(120, 256)]), 0.1)
    assert found[:64].max() == 0
    np.testing.assert_allclose(found[64:].std((0, 1)), 12, rtol=0.03)
    assert np.abs(np.corrcoef(found[64:].reshape(-1, 3).T) - np.eye(3)).max() < 0.03


def test_high_frequency_noise_removes_the_highest_frequencies():
    board = 128 + 40 * (-1) ** np.add.outer(np.arange(64), np.arange(64))
    image = np.repeat(board[..., None], 3, -1).astype(np.uint8)
    rest = 40 * (1 - np.exp(-2 / 200))
    assert np.abs(made("high_frequency_noise", image, 0.0) - 128.0).max() <= rest + 0.5
    slow = np.repeat((128 + 40 * np.cos(np.arange(64) * np.pi / 16))[:, None, None], 64, 1).repeat(3, -1)
    assert np.abs(made("high_frequency_noise", slow.astype(np.uint8), 0.0) - slow).max() <= 1.5
    np.testing.assert_allclose(np.std(made("high_frequency_noise", grey(120, 256, 256), 0.01) / 255), 0.1, rtol=0.02)


def test_impulses_are_black_and_white_per_channel():
    found = made("impulses", grey(100, 256, 256), 0.1)
    np.testing.assert_allclose([np.mean(found == v) for v in (0, 100, 255)], [0.05, 0.9, 0.05], atol=0.003)
    assert np.mean((found != 100).any(-1)) > 0.25


def test_quantisation_by_hand():
    image = np.repeat(np.array([[10, 20, 100, 110, 200, 210]], np.uint8)[..., None], 3, -1)
    np.testing.assert_array_equal(made("quantisation", image, 255 / 2)[0, :, 0], [0, 0, 110, 110, 255, 255])
    assert [len(np.unique(made("quantisation", photograph(), s))) for s in (27, 39, 55, 76)] == [10, 8, 6, 4]


def test_otsu_matches_exhaustive_search():
    counts = np.array([3, 0, 5, 1, 0, 7, 2, 2, 9])

    def between(cuts):
        parts = np.split(np.arange(9), [c + 1 for c in cuts])
        return sum((counts[p] @ p) ** 2 / max(counts[p].sum(), 1) for p in parts)

    found = distortions.otsu(counts, 3)
    assert between(found) == max(between(c) for c in itertools.combinations(range(8), 3))


def test_pattern_and_blocks():
    image = photograph(31, 31)
    expected = image.copy()
    expected[:15, :15] = image[5:20, 5:20]
    np.testing.assert_array_equal(made("pattern", image, 1), expected)
    places = set()
    for seed in range(40):
        changed = np.argwhere((made("pattern", photograph(64, 64), 1, seed) != photograph(64, 64)).any(-1))
        places.add(tuple(changed.min(0)))
        assert (np.ptp(changed, axis=0) < 15).all() and changed.max() <= 33 + 14
    assert len(places) > 30
    image = photograph(33, 34)
    mean = image.mean((0, 1))
    for count, red in ((2, 0), (4, mean[0] + 50), (8, mean[0] + 30), (16, mean[0]), (32, mean[0])):
        expected = image.copy()
        expected[:32, 1:33] = np.floor(np.array([red, *mean[1:]]) + 0.5)
        np.testing.assert_array_equal(made("blocks", image, count), expected)
    for kind, size in (("pattern", (30, 31)), ("blocks", (33, 33))):
        with pytest.raises(ValueError, match=rf"an image of {size[0]} x {size[1]} pixels: expected more than 3\d x 3"):
            made(kind, photograph(*size), 1)
    assert np.mean(made("blocks", grey(9, 200, 200), 4)[..., 0] == 59) > 2.5 * 32 * 32 / 200**2


def test_shift_and_contrast_by_hand():
    image = np.array([[[0, 10, 250]]], np.uint8)
    assert made("brighter", image, 15)[0, 0].tolist() == [15, 25, 255]
    assert made("darker", image, -15)[0, 0].tolist() == [0, 0, 235]
    assert made("less_contrast", image, 0.85)[0, 0].tolist() == [0, 9, 213]  # halves up
    assert made("more_contrast", image, 1.8)[0, 0].tolist() == [0, 18, 255]


def test_saturation():
    corners = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(distortions._ycbcr(corners), [[[235, 128, 128], [16, 128, 128], [81, 90, 240]]])
    image = photograph() // 2 + 64
    ycbcr, found = distortions._ycbcr(image), distortions._ycbcr(made("saturation", image, -0.4))
    np.testing.assert_allclose(found[..., 0], ycbcr[..., 0], atol=1)
    expected = 127.5 - 0.4 * (ycbcr[..., 1:] - 127.5)
    np.testing.assert_allclose(found[..., 1:], expected, atol=1.5)
    np.testing.assert_allclose(np.mean(found[..., 1:] - expected), 0, atol=0.3)


def test_colour_quantisation():
    image = photograph()
    for colours in (8, 64):
        assert len(np.unique(made("colour_quantisation", image, colours).reshape(-1, 3), axis=0)) == colours
    two = np.concatenate([grey(40), grey(200)])
    np.testing.assert_array_equal(made("colour_quantisation", two, 8), two)
    ramp = np.tile(np.arange(60, 188, 2, dtype=np.uint8)[:, None], (64, 1, 3))
    error = made("colour_quantisation", ramp, 4).mean((0, 2)) - ramp[0, :, 0]
    assert np.abs(error[7:55]).max() <= 8  # without diffusion, half the distance of two colours: 16


def test_least_variance_by_hand():
    values = np.repeat(np.array([0, 10, 100, 200], np.uint8), [10, 10, 1, 9]).repeat(3).reshape(5, 6, 3)
    np.testing.assert_allclose(np.sort(distortions.least_variance(values, 2)[:, 0]), [200 / 21, 200])
    np.testing.assert_allclose(np.sort(distortions.least_variance(values, 3)[:, 0]), [5, 100, 200])


def test_aberration_shifts_two_channels():
    image = grey(0)
    image[:, 20] = 255
    found = made("aberration", image, 6).astype(float)
    np.testing.assert_allclose(found.sum(0).T @ np.arange(64) / found.sum((0, 1)), [25, 22, 20])
    image[:, 0] = 255
    assert (made("aberration", image, 6)[5, 0] > 200).all()


def test_compression():
    image, file = photograph(), io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=43)
    error = [np.abs(made("jpeg", image, q) - image.astype(float)).mean() for q in (95, 43, 12, 7, 4, 0)]
    assert np.abs(made("jpeg", image, 43) - np.array(Image.open(file), float)).mean() < 0.1
    assert (np.diff(error) > 0).all()
    error = [np.abs(made("jpeg2000", image, r) - image.astype(float)).mean() for r in (1, 10, 52, 150)]
    assert error[0] < 1 and (np.diff(error) > 0).all()
