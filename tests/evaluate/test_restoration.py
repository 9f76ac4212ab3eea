import numpy as np
import pytest

from facejax.data.restoration import Pair, small
from facejax.evaluate import restoration as evaluation
from facejax.metrics.image import psnr


def pair(seed=0, size=(48, 40), name="a"):
    high = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    return Pair(name, small(high, 4), high)


def test_perfect_and_bicubic_results():
    pairs = {"x": [pair(0), pair(1)], "y": [pair(2, (200, 160))]}
    truth = {p.low.tobytes(): p.high for found in pairs.values() for p in found}
    report = evaluation.assess(lambda low: truth[low.tobytes()], pairs, 4, shave=4)
    assert next(iter(report.metrics)) == "psnr"
    assert report.metrics["psnr"] == report.metrics["gain"] == np.inf
    assert report.metrics["ssim"] == report.metrics["detail"] == 1
    assert report.notes["exact"].startswith("3 images equal the truth; their infinite PSNR")
    bicubic = evaluation.assess(evaluation.bicubic(4), pairs, 4, shave=4)
    assert bicubic.metrics["gain"] == 0 and "exact" not in bicubic.notes
    expected = [psnr(evaluation.bicubic(4)(p.low), p.high, shave=4, luminance=True) for p in pairs["x"]]
    assert bicubic.metrics["psnr_x"] == pytest.approx(np.mean(expected))
    assert bicubic.metrics["psnr"] == pytest.approx((bicubic.metrics["psnr_x"] + bicubic.metrics["psnr_y"]) / 2)
    assert 0 < bicubic.metrics["detail"] < 0.5 and len(bicubic.tables["Images"]) == 3
    assert [image.shape for image in bicubic.images.values()] == [(2 * 128, 7 * 128, 3), (128, 7 * 128, 3)]


def test_an_infinite_psnr_does_not_hide_the_others():
    black = np.zeros((48, 40, 3), np.uint8)
    pairs = {"x": [Pair("black", small(black, 4), black), pair()]}
    report = evaluation.assess(evaluation.bicubic(4), pairs, 4, shave=4)
    assert report.notes["exact"].startswith("1 images equal the truth")
    assert (
        report.metrics["psnr"] == evaluation.assess(evaluation.bicubic(4), {"x": [pair()]}, 4, shave=4).metrics["psnr"]
    )
    assert report.tables["Images"][0]["psnr"] == np.inf
    assert report.metrics["gain"] == 0 and report.tables["Images"][0]["detail"] == 1


def test_colour_and_border():
    one = pair()
    wrong = one.high.copy()
    wrong[:6] //= 2
    report = evaluation.assess(lambda low: wrong, {"x": [one]}, 4, shave=6, luminance=False)
    assert report.metrics["psnr"] == np.inf
    assert report.notes["psnr"] == "RGB of 8 bits, without 6 pixels at each border"
    assert evaluation.assess(lambda low: wrong, {"x": [one]}, 4, shave=5, luminance=False).metrics["psnr"] < 40


def test_the_worst_part_is_shown():
    truth = np.zeros((300, 280, 3), np.uint8)
    result = truth.copy()
    result[200:210, 150:160] = 90
    top, left = evaluation.worst(result, truth, 128)
    assert top <= 200 and left <= 150 and top + 128 >= 210 and left + 128 >= 160
    assert evaluation.worst(result[:50, :60], truth[:50, :60], 128) == (0, 0)
    row = evaluation.strip(result, truth // 2 + 9, truth)
    assert row.shape == (128, 896, 3) and (row[:, 384:512] == 36).all() and row[:, :128].max() == 90


def test_errors_of_landmarks():
    rng = np.random.default_rng(0)
    cells = rng.integers(2, 14, (3, 68, 2))
    cells[:, 36], cells[:, 45] = (2, 8), (12, 8)
    maps = np.zeros((3, 16, 16, 68), np.float32)
    for i in range(3):
        maps[i, cells[i, :, 1], cells[i, :, 0], np.arange(68)] = 1
    points = (cells + 0.5) * 4
    np.testing.assert_allclose(evaluation.prior_error(maps, points, 64), 0, atol=1e-6)
    np.testing.assert_allclose(evaluation.prior_error(maps, points + np.array([4, 0]), 64), 4 / 40, rtol=1e-5)
