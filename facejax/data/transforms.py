"""What is done to images on the host: decoding, alignment, augmentation. uint8 RGB, one image or a list of them."""

from __future__ import annotations

import cv2
import numpy as np

cv2.setNumThreads(0)

ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Left eye, right eye (as seen), nose tip, mouth corners: (x, y) in pixels of a 112 x 112 crop (InsightFace)."""


def decode(encoded: bytes) -> np.ndarray:
    """An encoded image (PNG, JPEG, PGM, ...) as uint8 RGB [H, W, 3]."""
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
    if image is None:
        raise ValueError(f"an image of {len(encoded)} bytes does not decode: expected a PNG, JPEG or PGM file")
    return np.ascontiguousarray(image[..., ::-1])


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, or by area where the image gets smaller."""
    if image.shape[:2] == (height, width):
        return image
    smaller = height < image.shape[0] and width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def template(size: int, width: int | None = None) -> np.ndarray:
    """The five points for crops of `size` rows: multiples of 112 scale, multiples of 128 have a margin at the sides.

    Args:
      size: rows, a multiple of 112 or of 128.
      width: columns; equal to the rows when None, or 16 pixels in 112 fewer (the 96 x 112 crops).
    """
    width = width or size
    if size % 112 == 0:
        points = ARCFACE_TEMPLATE * (size / 112)
        return points - [(size - width) / 2, 0]
    if size % 128 == 0 and width == size:
        return ARCFACE_TEMPLATE * (size / 128) + [8 * size / 128, 0]
    raise ValueError(f"template: no crop of {size} x {width} pixels, expected rows in multiples of 112 or 128")


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The scaling, rotation and shift [2, 3] that takes `source` points [N, 2] nearest to `target` (Umeyama 1991)."""
    source, target = np.asarray(source, float), np.asarray(target, float)
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a / len(a))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    variance = a.var(0).sum()
    if variance == 0:
        raise ValueError("similarity_transform: all source points are the same, expected at least two places")
    scale = (s * sign).sum() / variance
    shift = target.mean(0) - scale * rotation @ source.mean(0)
    return np.concatenate([scale * rotation, shift[:, None]], 1)


def align(image: np.ndarray, points: np.ndarray, size: int = 112, width: int | None = None) -> np.ndarray:
    """A crop in which five points [5, 2] lie on the recognition template; black beyond the image's edge."""
    matrix = similarity_transform(points, template(size, width))
    return cv2.warpAffine(image, matrix, (width or size, size), flags=cv2.INTER_LINEAR, borderValue=0)


def five_points(landmarks68: np.ndarray) -> np.ndarray:
    """[..., 68, 2] -> [..., 5, 2]: eyes as the means of their corners, nose tip, mouth corners."""
    p = np.asarray(landmarks68)
    eyes = [(p[..., i, :] + p[..., j, :]) / 2 for i, j in ((36, 39), (42, 45))]
    return np.stack([*eyes, p[..., 30, :], p[..., 48, :], p[..., 54, :]], -2)


def flip(image: np.ndarray) -> np.ndarray:
    """Left and right exchanged, [..., H, W, C]."""
    return image[..., ::-1, :]


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors every second image."""
    return flip(image) if rng.random() < 0.5 else image


def dali_aug(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The optional augmentation of arcface_torch: smaller (0.1), blurred (0.2), recoloured (0.2), grey (0.1).

    Chances and the range of the smaller size, 50 to 80 percent, are the reference's; the strengths of blur and colour
    are ours.
    """
    height, width = image.shape[:2]
    if rng.random() < 0.1:
        factor = rng.uniform(0.5, 0.8)
        small = cv2.resize(
            image, (max(1, int(width * factor)), max(1, int(height * factor))), interpolation=cv2.INTER_AREA
        )
        image = cv2.resize(small, (width, height))
    if rng.random() < 0.2:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.5) * width / 112)
    if rng.random() < 0.2:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 0] = (hsv[..., 0] + rng.uniform(-10, 10)) % 180
        hsv[..., 1:] *= rng.uniform(0.7, 1.3, 2)
        image = cv2.cvtColor(np.clip(hsv, 0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)
    if rng.random() < 0.1:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, -1)
    return image
