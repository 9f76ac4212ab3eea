"""Restored images: means, infinite values, whole videos, pictures."""

import numpy as np
import pytest

from facejax.data.unpaired import blur
from facejax.data.videos import ArrayVideo, Pair
from facejax.evaluate import deblurring
from facejax.evaluate.deblurring import Triple
from facejax.metrics import image as metrics


def video(name, count, height=16, width=20, seed=0):
    rng = np.random.default_rng(seed)
    sharp = rng.integers(40, 216, (count, height, width, 3), np.uint8)
    return ArrayVideo(name, Pair((sharp + rng.integers(-30, 30, sharp.shape)).astype(np.uint8), sharp))


def halfway(truth):
    """Restores half of the way to the truth."""
    sharp = iter(np.concatenate(truth))

    def restore(frames):
        for frame in frames:
            assert frame.dtype == np.float32 and frame.max() <= 1
            yield (frame + next(sharp) / 255) / 2 + 1e-4

    return restore


def test_videos():
    known = [video("a", 3), video("b", 2, seed=1), video("c", 1, 18, 14, seed=2)]
    report = deblurring.assess_videos(halfway([v.pair.sharp for v in known[:2]]), known[:2])
    assert report.metrics["psnr"] == pytest.approx(report.metrics["psnr_degraded"] + 6, abs=0.2)
    frames = [metrics.psnr(v.pair.blurred, v.pair.sharp) for v in known[:2]]
    assert report.metrics["psnr_degraded"] == pytest.approx(np.concatenate(frames).mean())
    assert report.metrics["ssim"] > report.metrics["ssim_degraded"]
    rows = report.tables["Videos"]
    assert [(row["video"], row["frames"]) for row in rows] == [("a", 3), ("b", 2)]
    assert rows[1]["psnr_degraded"] == pytest.approx(frames[1].mean())
    (strip,) = report.images.values()
    assert strip.shape == (3, 16, 60, 3) and not report.notes
    np.testing.assert_array_equal(strip[:, :, 40:], known[0].pair.sharp)
    assert len(report.figures) == 2
    sizes = deblurring.assess_videos(lambda frames: frames, known)
    assert sizes.metrics["psnr"] == sizes.metrics["psnr_degraded"]


def test_report_notes_the_infinite_psnr_of_black_videos():
    black = ArrayVideo("black", Pair(*np.zeros((2, 3, 16, 16, 3), np.uint8)))
    report = deblurring.assess_videos(lambda frames: frames, [black])
    assert report.metrics["psnr"] == np.inf and report.metrics["ssim"] == 1
    assert report.notes["psnr"] == "mean over the images in dB, without 3 that equal the truth (infinite)"
    both = deblurring.assess_videos(lambda frames: frames, [black, video("a", 2)])
    alone = deblurring.assess_videos(lambda frames: frames, [video("a", 2)])
    assert both.metrics["psnr"] == pytest.approx(alone.metrics["psnr"])
    for figure in (*report.figures.values(), *both.figures.values()):
        figure.canvas.draw()


def test_the_enlarged_part_is_where_the_error_is():
    error = np.zeros((12, 18))
    error[7, 11] = 5
    rows, columns = deblurring._worst_part(error)
    assert rows.start <= 7 < rows.stop and columns.start <= 11 < columns.stop
    assert rows.stop - rows.start == columns.stop - columns.start == 4


def test_comparison_of_single_images():
    rng = np.random.default_rng(0)
    images = Triple(*rng.integers(0, 256, (3, 1, 12, 12, 3), np.uint8))
    figure = deblurring.comparison_figure(images, "noisy")
    assert len(figure.axes) == 8 and figure.axes[0].get_title() == "noisy"
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), images.truth[0])
    np.testing.assert_allclose(
        figure.axes[7].images[0].get_array(), np.abs(images.restored[0].astype(float) - images.truth[0]).mean(-1)
    )


def test_images():
    rng = np.random.default_rng(0)
    truth = rng.integers(40, 216, (6, 16, 16, 3), np.uint8)
    blurred = (truth + rng.integers(-30, 30, truth.shape)).astype(np.uint8)
    report = deblurring.assess_images(Triple(blurred, truth, truth))
    assert report.metrics["psnr"] == np.inf and report.metrics["psnr_degraded"] < 30
    assert "without 6 that equal the truth" in report.notes["psnr"]
    assert len(report.figures) == 2


def test_transfer_of_blur():
    """A perfect transfer, and one that ignores the code."""
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 256, (5, 12, 12, 3), np.uint8)
    kernels = np.stack([rng.uniform(3, 8, 5), rng.uniform(0, np.pi, 5)], 1)
    blurred = np.stack([blur(image, *kernel) for image, kernel in zip(sharp, kernels, strict=True)])

    def perfect(images, others):
        used = [int(np.abs(blurred.astype(int) - other).sum((1, 2, 3)).argmin()) for other in others]
        return np.stack([blur(image, *kernels[i]) for image, i in zip(images, used, strict=True)])

    report = deblurring.assess_transfer(perfect, lambda x, k: blur(x, *k), blurred, sharp, kernels)
    assert report.metrics["transfer_psnr"] == np.inf and report.metrics["transfer_gain"] == np.inf
    nothing = deblurring.assess_transfer(lambda images, _: images, lambda x, k: blur(x, *k), blurred, sharp, kernels)
    assert abs(nothing.metrics["transfer_gain"]) < 1.5
    (picture,) = nothing.images.values()
    np.testing.assert_array_equal(picture[:12], np.concatenate(list(sharp), 1))
    np.testing.assert_array_equal(picture[12:24, :12], blurred[4])


def test_explained_motion():
    rng = np.random.default_rng(0)
    kernels = np.stack([rng.uniform(3, 8, 200), rng.uniform(0, np.pi, 200)], 1)
    direction = kernels[:, :1] * np.stack([np.cos(2 * kernels[:, 1]), np.sin(2 * kernels[:, 1])], 1)
    mixed = direction @ rng.normal(size=(2, 4)) + 5
    assert deblurring.explained(mixed, kernels) > 0.999
    assert deblurring.explained(rng.normal(size=(200, 4)), kernels) < 0.1
    assert deblurring.explained(mixed, kernels + np.array([0, np.pi])) > 0.999
