import numpy as np
import pytest
from skimage import metrics as oracle

from facejax.metrics import image as metric

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (2, 23, 30, 3)).astype(np.uint8)
    return metric.eight_bit(truth + rng.normal(size=truth.shape) * 20), truth


def test_psnr_by_hand():
    truth = np.zeros((2, 2, 2, 1))
    images = truth + np.array([1, 10])[:, None, None, None]
    np.testing.assert_allclose(metric.psnr(images, truth), [48.1308036, 28.1308036])
    np.testing.assert_allclose(metric.psnr(images[0] / 10, truth[0], peak=1), 20)
    border = np.pad(np.zeros((4, 4, 1)), ((2, 2), (2, 2), (0, 0)), constant_values=9)
    assert metric.psnr(border, np.zeros((8, 8, 1)), shave=2) == np.inf
    np.testing.assert_allclose(
        metric.psnr(border, np.zeros((8, 8, 1)), shave=1), 20 * np.log10(255 / 9 / (20 / 36) ** 0.5)
    )


def test_black_images_are_equal():
    black = np.zeros((1, 16, 16, 3), np.uint8)
    assert metric.psnr(black, black, luminance=True) == np.inf
    assert metric.ssim(black, black, luminance=True) == 1


def test_luma():
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    np.testing.assert_allclose(metric.luma(colours)[:, 0], [16, 235, 81.481, 144.553, 40.966])


@pytest.mark.parametrize("window", metric.WINDOWS)
def test_equals_scikit_image(pair, window):
    options = {"gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}, "uniform": {}}
    expected = [
        oracle.structural_similarity(y, x, channel_axis=-1, data_range=255, **options[window])
        for x, y in zip(*pair, strict=True)
    ]
    np.testing.assert_allclose(metric.ssim(*pair, window=window), expected, rtol=1e-12)
    expected = [oracle.peak_signal_noise_ratio(y, x) for x, y in zip(*pair, strict=True)]
    np.testing.assert_allclose(metric.psnr(*pair), expected, rtol=1e-12)


def test_ssim_properties(pair):
    images, truth = pair
    np.testing.assert_allclose(metric.ssim(truth, truth), 1)
    np.testing.assert_allclose(metric.ssim(images, truth), metric.ssim(truth, images))
    np.testing.assert_allclose(metric.ssim(images, truth), metric.ssim(images[..., ::-1], truth[..., ::-1]))
    a, b, c1 = 30.0, 90.0, 2.55**2
    flat = [np.full((12, 11, 1), v) for v in (a, b)]
    np.testing.assert_allclose(metric.ssim(*flat), (2 * a * b + c1) / (a * a + b * b + c1), rtol=1e-6)
    shaved = metric.ssim(images[:, 3:-3, 3:-3], truth[:, 3:-3, 3:-3], luminance=True)
    np.testing.assert_allclose(metric.ssim(images, truth, shave=3, luminance=True), shaved)


def test_matlab_luma_and_the_published_numbers(test_data):
    matlab = np.load(test_data / "sr/Set5/matlab_x4_butterfly_woman.npz")
    for name, published in (("butterfly", 22.100), ("woman", 26.467)):
        np.testing.assert_allclose(metric.luma(matlab[f"{name}_im_gt"])[..., 0], matlab[f"{name}_im_gt_y"], atol=1e-4)
        up, truth = (matlab[f"{name}_im_{kind}_y"][..., None] for kind in ("b", "gt"))
        assert metric.psnr(up, truth, shave=4) == pytest.approx(published, abs=5e-4)


def test_eight_bit():
    np.testing.assert_array_equal(metric.eight_bit([-3, 0.4, 0.6, 254.7, 300]), [0, 0, 1, 255, 255])
    with pytest.raises(ValueError, match="not finite"):
        metric.eight_bit([np.nan])


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((16, 15, 3)), {}, "equal shapes"),
        (np.full((16, 16, 3), 256.0), {}, "expected values in 0..255; clip them first"),
        (np.full((16, 16, 3), np.nan), {}, "expected values in 0..255"),
        (np.zeros((16, 16, 3)), {"shave": 8}, "shave 8: expected 1 x 1"),
        (np.zeros((16, 16, 3)), {"luminance": True, "peak": 1.0}, "expected 255 with luminance"),
    ],
)
def test_bad_input(images, options, message):
    with pytest.raises(ValueError, match=message):
        metric.psnr(images, np.zeros((16, 16, 3)), **options)


def test_bad_windows_and_channels():
    with pytest.raises(ValueError, match="expected one of gaussian, uniform"):
        metric.ssim(np.zeros((16, 16, 3)), np.zeros((16, 16, 3)), window="box")
    with pytest.raises(ValueError, match="expected 11 x 11"):
        metric.ssim(np.zeros((10, 16, 3)), np.zeros((10, 16, 3)))
    with pytest.raises(ValueError, match="expected three channels"):
        metric.psnr(np.zeros((16, 16, 1)), np.zeros((16, 16, 1)), luminance=True)
