"""Distortions with levels, as image-quality data sets grade them: [H, W, 3] uint8 in and out."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Distort = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def blur(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian of `sigma` pixels; the border is mirrored."""
    del rng
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def noise(image: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """White noise on pictures of range 0..1."""
    noisy = image + rng.normal(size=image.shape) * 255 * np.sqrt(variance)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)


def jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """JPEG of a quality 0..100."""
    del rng
    encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, round(quality)])[1]
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])


def jpeg2000(image: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """JPEG 2000 made `ratio` times smaller than 24 bits a pixel."""
    del rng
    part = max(1, min(1000, round(1000 / ratio)))
    encoded = cv2.imencode(".jp2", image[..., ::-1], [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, part])[1]
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])


def resolution(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Made smaller by `factor` and large again."""
    del rng
    height, width = image.shape[:2]
    small = max(1, round(width / factor)), max(1, round(height / factor))
    return cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))


DISTORTIONS: dict[str, Distort] = {
    "blur": blur, "noise": noise, "jpeg": jpeg, "jpeg2000": jpeg2000, "resolution": resolution,
}  # fmt: skip
