"""Similarity of images: PSNR and SSIM with the conventions of the restoration literature.

Values are 0..peak. Everything is computed in float64 on the host, one number per image; a data set's number is the mean
over its images. Super-resolution papers report `shave` equal to the scale and `luminance`, after `eight_bit`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LUMINANCE = np.array([65.481, 128.553, 24.966])
"""Weights of red, green and blue (0..1) in Y of ITU-R BT.601, whose range is 16..235 (MATLAB's rgb2ycbcr)."""

WINDOWS = ("gaussian", "uniform")


def eight_bit(images: ArrayLike) -> np.ndarray:
    """Values of 0..255 clipped and rounded to uint8.

    Raises:
      ValueError: a value is not finite.
    """
    images = np.asarray(images)
    if not np.isfinite(images).all():
        raise ValueError(f"eight_bit: images {images.shape} contain a value that is not finite")
    return np.rint(np.clip(images, 0, 255)).astype(np.uint8)


def luma(images: ArrayLike) -> np.ndarray:
    """Y of RGB [..., 3] in 0..255: [..., 1] float64 in 16..235, not rounded."""
    images = np.asarray(images, np.float64)
    if images.shape[-1] != 3:
        raise ValueError(f"luma: images {images.shape}: expected three channels, RGB")
    return 16 + images @ LUMINANCE[:, None] / 255


def psnr(
    images: ArrayLike, truth: ArrayLike, *, shave: int = 0, luminance: bool = False, peak: float = 255.0
) -> np.ndarray:
    """Peak signal-to-noise ratio 10 log10(peak^2 / MSE) in dB, infinite for equal images.

    Args:
      images, truth: [..., H, W, C] in 0..peak.
      shave: pixels dropped at each border.
      luminance: compares `luma` instead of RGB; `peak` is 255 then.
      peak: the largest possible value.

    Returns:
      [...] float64.

    Raises:
      ValueError: shapes differ, values lie outside 0..peak, or nothing is left after shaving.
    """
    images, truth = _compared("psnr", images, truth, shave, luminance, peak, 1)
    error = np.square(images - truth).mean((-3, -2, -1))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / error)


def ssim(
    images: ArrayLike,
    truth: ArrayLike,
    *,
    shave: int = 0,
    luminance: bool = False,
    peak: float = 255.0,
    window: str = "gaussian",
) -> np.ndarray:
    """Structural similarity: mean of the map over the windows that lie inside the image, and over channels.

    K1 = 0.01 and K2 = 0.03.

    Args:
      images, truth, shave, luminance, peak: see `psnr`.
      window: "gaussian", 11x11 of standard deviation 1.5 with population moments (Wang et al., 2004; the literature on
        super-resolution); "uniform", 7x7 with sample moments (scikit-image's default).

    Returns:
      [...] float64, at most 1.

    Raises:
      ValueError: as `psnr`, an unknown window, or images smaller than it.
    """
    if window not in WINDOWS:
        raise ValueError(f"ssim: window is {window!r}: expected one of {', '.join(WINDOWS)}")
    gaussian = window == "gaussian"
    taps = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2)) if gaussian else np.ones(7)
    taps /= taps.sum()
    unbiased = 1 if gaussian else 49 / 48
    x, y = _compared("ssim", images, truth, shave, luminance, peak, len(taps))
    mx, my, xx, yy, xy = (_filtered(_filtered(m, taps, -3), taps, -2) for m in (x, y, x * x, y * y, x * y))
    vx, vy, cov = (unbiased * (m2 - m) for m2, m in ((xx, mx * mx), (yy, my * my), (xy, mx * my)))
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    similarity = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similarity.mean((-3, -2, -1))


def _compared(
    who: str, images: ArrayLike, truth: ArrayLike, shave: int, luminance: bool, peak: float, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both images in float64, checked, converted and shaved to at least `least` pixels a side."""
    pair = [np.asarray(x) for x in (images, truth)]
    if pair[0].shape != pair[1].shape or pair[0].ndim < 3:
        raise ValueError(
            f"{who}: images {pair[0].shape} and truth {pair[1].shape}: expected equal shapes [..., H, W, C]"
        )
    for name, x in zip(("images", "truth"), pair, strict=True):
        if x.size and not (x.min() >= 0 and x.max() <= peak):
            raise ValueError(
                f"{who}: {name} from {x.min()} to {x.max()}: expected values in 0..{peak:g}; clip them first"
            )
    if luminance and peak != 255:
        raise ValueError(f"{who}: peak is {peak:g}: expected 255 with luminance")
    if shave < 0 or min(pair[0].shape[-3:-1]) - 2 * shave < least:
        height, width = pair[0].shape[-3:-1]
        raise ValueError(
            f"{who}: images of {height} x {width} pixels, shave {shave}: expected {least} x {least} at least to be left"
        )
    first, second = (_shaved(luma(x) if luminance else x.astype(np.float64), shave) for x in pair)
    return first, second


def _shaved(images: np.ndarray, shave: int) -> np.ndarray:
    return images[..., shave : images.shape[-3] - shave, shave : images.shape[-2] - shave, :]


def _filtered(images: np.ndarray, taps: np.ndarray, axis: int) -> np.ndarray:
    """Correlation along an axis, inside the image only."""
    count = images.shape[axis] - len(taps) + 1
    views: Any = (np.take(images, range(i, i + count), axis) for i in range(len(taps)))
    return sum(tap * view for tap, view in zip(taps, views, strict=True))
