"""Image degradations: occlusion, blur, low resolution, noise, compression.

The functions process single images with OpenCV. Strengths come from `factors.picture`; lengths refer to an image of 112
pixels and scale with its size.
"""

from __future__ import annotations

import cv2
import numpy as np

from facejax.data.synthetic.factors import Factors


def degrade(image: np.ndarray, factors: Factors) -> np.ndarray:
    """Applies all degradations of `factors`: [H, W, 3] float in 0..1, gamma-encoded -> [H, W, 3] uint8."""
    rng = np.random.default_rng(int(factors["degrade_seed"]))
    size = image.shape[0]
    if factors["occluder"] > 0:
        image = occlude(image, factors, rng)
    if factors["motion"] > 0:
        image = motion_blur(image, float(factors["motion"]) * size / 112, float(factors["motion_angle"]))
    if factors["defocus"] > 0:
        image = cv2.GaussianBlur(image, (0, 0), float(factors["defocus"]) * size / 112)
    if factors["resolution"] > 1:
        small = max(4, round(size / float(factors["resolution"])))
        image = cv2.resize(cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA), (size, size))
    if factors["noise"] > 0:
        image = image + rng.normal(size=image.shape).astype(np.float32) * float(factors["noise"]) / 255
    image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    if factors["jpeg"] > 0:
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, round(float(factors["jpeg"]))])[1]
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return image


def motion_blur(image: np.ndarray, length: float, angle: float) -> np.ndarray:
    """Averages along a line of `length` pixels at `angle` radians from the horizontal."""
    size = 2 * int(np.ceil(length / 2)) + 1
    steps = np.linspace(-0.5, 0.5, 8 * size)
    kernel = np.zeros((size, size), np.float32)
    x, y = (size // 2 + steps * length * f for f in (np.cos(angle), np.sin(angle)))
    np.add.at(kernel, (np.rint(y).astype(int), np.rint(x).astype(int)), 1)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def occlude(image: np.ndarray, factors: Factors, rng: np.random.Generator) -> np.ndarray:
    """Covers the occluder's box with a textured patch; an empty box changes nothing."""
    left, top, right, bottom = occluder_box(factors, image.shape[0])
    if right <= left or bottom <= top:
        return image
    texture = cv2.resize(
        rng.random((4, 4)).astype(np.float32), (right - left, bottom - top), interpolation=cv2.INTER_CUBIC
    )
    out = image.copy()
    out[top:bottom, left:right] = factors["occluder_colour"] * (0.75 + 0.35 * texture[..., None])
    return out


def occluder_box(factors: Factors, size: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels; empty without an occluder."""
    centre, half = factors["occluder_place"] * size, float(factors["occluder"]) * size / 2
    low = np.clip(np.rint(centre - half), 0, size).astype(int)
    high = np.clip(np.rint(centre + half), 0, size).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def background(factors: Factors, size: int) -> np.ndarray:
    """[size, size, 3] linear light: two colours, mixed by a smooth random pattern."""
    rng = np.random.default_rng(int(factors["background_seed"]))
    cells = int(rng.integers(2, 7))
    pattern = cv2.resize(rng.random((cells, cells)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.4:
        pattern = np.tanh(6 * (pattern - 0.5)) * 0.5 + 0.5
    first, second = factors["background"].astype(np.float32)
    colour = np.clip(first + (second - first) * pattern[..., None], 0, 1)
    grey = colour.mean(-1, keepdims=True)
    return cv2.pow(0.45 * colour + 0.55 * grey, 2.2)
