"""Evaluation of glasses removal: regions, masks, verification, the report."""

import numpy as np

from facejax.evaluate import glasses
from facejax.evaluate.glasses import Translated, mask_iou, region_psnr, region_ssim
from facejax.metrics import image as metrics


def test_regions_by_hand():
    rng = np.random.default_rng(0)
    truth = rng.integers(20, 200, (2, 16, 16, 3)).astype(np.uint8)
    images, region = truth.copy(), np.zeros((2, 16, 16), bool)
    region[:, 3:7, 2:9] = True
    images[0, 3:7, 2:9] += 10
    images[1, 10:] += 20
    np.testing.assert_allclose(region_psnr(images, truth, region), [20 * np.log10(25.5), np.inf])
    np.testing.assert_allclose(
        region_psnr(images, truth, ~region), [np.inf, 10 * np.log10(255**2 / (400 * 6 * 16 / (256 - 28)))]
    )
    assert np.isnan(region_psnr(images, truth, np.zeros_like(region))).all()
    whole = metrics.ssim(images, truth)
    np.testing.assert_allclose(region_ssim(images, truth, region), [whole[0], 1])
    np.testing.assert_allclose(region_ssim(images, truth, ~region), [1, whole[1]])


def test_mask_iou():
    a, b = np.zeros((2, 3, 4, 4), bool)
    a[0, 0], b[0, 0, :2], a[1, 0] = True, True, True
    np.testing.assert_allclose(mask_iou(a, b), [0.5, 0, 1])


def test_tar_leaves_out_the_picture_itself():
    person = np.repeat(np.arange(4), 2)
    codes = np.eye(8)
    assert glasses.tar(codes, codes, person) == 0  # only a picture is like itself
    assert glasses.tar(np.eye(4)[person], np.eye(4)[person], person) == 100


def test_report():
    rng = np.random.default_rng(0)
    truth = rng.integers(50, 200, (8, 16, 16, 3)).astype(np.uint8)
    mask = np.zeros((8, 16, 16), bool)
    mask[:, 4:8, 3:12] = True
    images, made = truth.copy(), truth.copy()
    images[mask], made[mask] = images[mask] // 2, made[mask] + 5
    person = np.repeat(np.arange(4), 2)

    def embed(x):
        return x.reshape(len(x), -1).astype(float) - 125

    pairs = Translated(images, made, truth, mask, mask, person)
    found = glasses.assess(pairs, embed, "x_").metrics
    np.testing.assert_allclose(found["x_psnr_glasses"], 20 * np.log10(255 / 5))
    assert found["x_psnr_outside"] == np.inf and found["x_ssim_outside"] == 1 == found["x_mask_iou"]
    before = np.abs(images.astype(int) - truth)[mask].mean()
    np.testing.assert_allclose(found["x_error_drop"], 100 * (1 - 5 / before))
    assert found["x_identity_input"] < found["x_identity"] < 1 and {"x_tar", "x_tar_input", "x_tar_truth"} < set(found)
    (sheet,) = glasses.assess(pairs, embed).images.values()
    assert sheet.shape == (5 * 16, 8 * 16, 3)
    alone = glasses.assess(pairs._replace(found=None, person=np.arange(8)), None)
    assert not {"identity", "tar", "mask_iou"} & set(alone.metrics)
    assert next(iter(alone.images.values())).shape == (4 * 16, 8 * 16, 3)
