"""Image operations on the host: decoding, alignment, augmentation of uint8 RGB images."""

from __future__ import annotations

import cv2
import numpy as np

from facejax.data import decoding

cv2.setNumThreads(0)

ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Eyes, nose tip, mouth corners, from the image's left: (x, y) in pixels of a 112 x 112 crop (InsightFace)."""


def decode(encoded: bytes, *, upright: bool = True) -> np.ndarray:
    """Decodes an image (see `decoding.FORMATS`) to uint8 RGB [H, W, 3].

    Args:
      encoded: content of the image file; errors name the origin of a `decoding.ImageFile`.
      upright: rotate and mirror the image as its EXIF orientation says. False where coordinates (boxes, keypoints,
        landmarks) belong to the image: annotations refer to the stored pixels.

    Raises:
      BadImage: the image does not decode.
    """
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.cvtColor(decoding.pixels(encoded, flags), cv2.COLOR_BGR2RGB)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes bilinearly, or by area averaging if both sides shrink."""
    if image.shape[:2] == (height, width):
        return image
    smaller = height < image.shape[0] and width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def template(size: int, width: int | None = None) -> np.ndarray:
    """The five template points for crops of `size` rows; multiples of 128 have an additional margin left and right.

    Args:
      size: number of rows, a multiple of 112 or of 128.
      width: number of columns; None: `size`. Other widths, such as 96 of 112, crop the sides equally.
    """
    width = width or size
    if size % 112 == 0:
        points = ARCFACE_TEMPLATE * (size / 112)
        return points - [(size - width) / 2, 0]
    if size % 128 == 0 and width == size:
        return ARCFACE_TEMPLATE * (size / 128) + [8 * size / 128, 0]
    raise ValueError(f"template: no crop of {size} x {width} pixels, expected rows in multiples of 112 or 128")


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares similarity transform [2, 3] from points `source` [N, 2] to `target` (Umeyama 1991)."""
    source, target = np.asarray(source, float), np.asarray(target, float)
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a / len(a))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    variance = a.var(0).sum()
    if variance == 0:
        raise ValueError("similarity_transform: all source points are the same, expected at least two distinct points")
    scale = (s * sign).sum() / variance
    shift = target.mean(0) - scale * rotation @ source.mean(0)
    return np.concatenate([scale * rotation, shift[:, None]], 1)


def align(image: np.ndarray, points: np.ndarray, size: int = 112, width: int | None = None) -> np.ndarray:
    """A crop that maps five points [5, 2] to the recognition template; black outside the image."""
    matrix = similarity_transform(points, template(size, width))
    return warp(image, matrix, (size, width or size))


def warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
    """Bilinear affine warp, black outside the image unless `border` says otherwise.

    OpenCV 5.0 warps other types, and arrays of two channels, with errors of several grey levels; those are refused.

    Args:
      image: [H, W] or [H, W, C] with 1, 3 or 4 channels; uint8 or float32.
      matrix: [2, 3] from the image to the result.
      size: (height, width) of the result.
      border: a border mode of OpenCV.
    """
    if image.dtype not in (np.uint8, np.float32) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"an image {image.shape} of {image.dtype}: expected uint8 or float32 with 1, 3 or 4 channels for warping"
        )
    return cv2.warpAffine(
        np.ascontiguousarray(image), matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=border, borderValue=0
    )


def five_points(landmarks68: np.ndarray) -> np.ndarray:
    """[..., 68, 2] -> [..., 5, 2]: midpoints of the eye corners, nose tip, mouth corners."""
    p = np.asarray(landmarks68)
    eyes = [(p[..., i, :] + p[..., j, :]) / 2 for i, j in ((36, 39), (42, 45))]
    return np.stack([*eyes, p[..., 30, :], p[..., 48, :], p[..., 54, :]], -2)


def flip(image: np.ndarray) -> np.ndarray:
    """Horizontal flip of [..., H, W, C]."""
    return image[..., ::-1, :]


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Horizontal flip with probability 0.5."""
    return flip(image) if rng.random() < 0.5 else image


def dali_aug(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The optional augmentation of arcface_torch: random downsampling, blur, colour change and greyscale.

    Probabilities and the downsampling range are the reference's; the strengths of blur and colour change are ours.
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
