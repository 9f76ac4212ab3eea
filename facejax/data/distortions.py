"""Image distortions of a given strength: [H, W, 3] uint8 RGB in and out.

The functions from `kernel_blur` on reproduce the MATLAB code with which RankIQA's authors generate the distortions of
LIVE and TID2013, its deviations from the definitions included. TID2013's image denoising is missing: it needs CBM3D.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

Distort = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
"""BT.601 matrix for RGB in 0..255, without the offsets."""
OFFSETS = np.array([16.0, 128.0, 128.0])


def blur(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur of `sigma` pixels with mirrored borders."""
    del rng
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def noise(image: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """White Gaussian noise; the variance is for images in 0..1."""
    noisy = image + rng.normal(size=image.shape) * 255 * np.sqrt(variance)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)


def jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """JPEG compression of quality 0..100."""
    del rng
    encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, round(quality)])[1]
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])


def jpeg2000(image: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """JPEG 2000 compression to 24 / `ratio` bits per pixel."""
    del rng
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True)
    return np.array(Image.open(file).convert("RGB"))


def resolution(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Downsampling by `factor`, then upsampling to the original size."""
    del rng
    height, width = image.shape[:2]
    small = max(1, round(width / factor)), max(1, round(height / factor))
    return cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))


def kernel_blur(image: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur with a window of `size` x `size` pixels, sigma `size` / 6 and mirrored borders."""
    del rng
    line = cv2.getGaussianKernel(int(size), size / 6)
    return _bytes(cv2.sepFilter2D(image.astype(np.float64), -1, line, line, borderType=cv2.BORDER_REFLECT))


def colour_noise(image: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """White Gaussian noise on the YCbCr channels; the variance is for channels in 0..1."""
    return _rgb(_ycbcr(image) + rng.normal(size=image.shape) * 255 * np.sqrt(variance))


def high_frequency_noise(image: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian notch of standard deviation 10 in the spectrum, then white noise.

    The authors centre their high-pass filter on a spectrum without shift, so that it removes the highest frequencies
    instead of the lowest.
    """
    rows, columns = (np.arange(1, n + 1) - n / 2 for n in image.shape[:2])
    dip = 1 - np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * 10**2))
    spectrum = np.fft.fft2(image, axes=(0, 1)) * dip[..., None]
    return noise(_bytes(np.fft.ifft2(spectrum, axes=(0, 1)).real), variance, rng)


def impulses(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Impulse noise: a fraction `share` of all values, drawn per channel, becomes 0 or 255 in equal parts."""
    chance = rng.random(image.shape)
    return np.where(chance < share / 2, 0, np.where(chance < share, 255, image)).astype(np.uint8)


def quantisation(image: np.ndarray, step: float, rng: np.random.Generator) -> np.ndarray:
    """Quantisation at 255 / `step` Otsu thresholds of the histogram over all channels.

    Values up to the first threshold become 0, values above the last 255, others the next higher threshold.
    """
    del rng
    cuts = otsu(np.bincount(image.ravel(), minlength=256), round(255 / step))
    return np.r_[0, cuts[1:], 255].astype(np.uint8)[np.searchsorted(cuts, image)]


def otsu(counts: np.ndarray, number: int) -> np.ndarray:
    """Thresholds [number] that maximise the variance between classes: the last value of each class but the highest.

    Args:
      counts: [L] histogram.
      number: number of thresholds.
    """
    count, total = (np.r_[0, np.cumsum(x)] for x in (counts, counts * np.arange(len(counts))))
    weight, mass = count - count[:, None], total - total[:, None]  # of the class of values i to j - 1
    gain = np.where(np.tri(len(count), k=-1).T > 0, mass**2 / np.maximum(weight, 1), -np.inf)
    best, came = gain[0], []
    for _ in range(number):
        choices = best[:, None] + gain
        came.append(choices.argmax(0))
        best = choices.max(0)
    cuts = [len(counts)]
    for start in reversed(came):
        cuts.append(int(start[cuts[-1]]))
    return np.array(cuts[:0:-1]) - 1


def pattern(image: np.ndarray, count: float, rng: np.random.Generator) -> np.ndarray:
    """Replaces `count` squares of 15 pixels by the image content 5 pixels below and to the right of them."""
    out = image.copy()
    for _ in range(int(count)):
        y, x = _corner(image, 30, 0, rng)
        out[y : y + 15, x : x + 15] = image[y + 5 : y + 20, x + 5 : x + 20]
    return out


def blocks(image: np.ndarray, count: float, rng: np.random.Generator) -> np.ndarray:
    """Replaces `count` squares of 32 pixels by the image's mean colour; a count of 2, 4 or 8 also changes its red."""
    colour, out = image.mean((0, 1)), image.copy()
    colour[0] = {2: 0.0, 4: colour[0] + 50, 8: colour[0] + 30}.get(int(count), colour[0])
    for _ in range(int(count)):
        y, x = _corner(image, 32, 1, rng)
        out[y : y + 32, x : x + 32] = _bytes(colour)
    return out


def mean_shift(image: np.ndarray, shift: float, rng: np.random.Generator) -> np.ndarray:
    """Adds `shift` to all values."""
    del rng
    return _bytes(image.astype(float) + shift)


def contrast(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Multiplies all values by `factor`."""
    del rng
    return _bytes(image.astype(float) * factor)


def saturation(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Multiplies both colour differences (Cb, Cr) by `factor`, around the middle of 0..255."""
    del rng
    ycbcr = _ycbcr(image)
    return _rgb(np.concatenate([ycbcr[..., :1], 127.5 + (ycbcr[..., 1:] - 127.5) * factor], -1))


def multiplicative_noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Multiplies every value by a normal variate of mean 1."""
    return _bytes(image * (1 + deviation * rng.normal(size=image.shape)))


def colour_quantisation(image: np.ndarray, colours: float, rng: np.random.Generator) -> np.ndarray:
    """Quantisation to `colours` colours with Floyd-Steinberg error diffusion."""
    del rng
    palette = Image.new("P", (1, 1))
    palette.putpalette(_bytes(least_variance(image, int(colours))).ravel().tolist())
    return np.array(Image.fromarray(image).quantize(palette=palette).convert("RGB"))


def least_variance(image: np.ndarray, colours: int) -> np.ndarray:
    """A palette [at most `colours`, 3]: mean colours of boxes that partition the image's colours.

    Each split is the axis-aligned one that reduces the sum of squared distances to the box means most; colours are
    first quantised in steps of 8.
    """
    cells = image.reshape(-1, 3).astype(np.int64)
    _, place = np.unique(cells // 8 @ np.array([1024, 32, 1]), return_inverse=True)
    weight = np.bincount(place).astype(float)
    means = np.stack([np.bincount(place, channel) for channel in cells.T], 1) / weight[:, None]
    boxes = [_best_cut(means, weight, np.arange(len(weight)))]
    while len(boxes) < colours and max(gain for gain, *_ in boxes) > 0:
        _, low, high = boxes.pop(max(range(len(boxes)), key=lambda i: boxes[i][0]))
        boxes += [_best_cut(means, weight, low), _best_cut(means, weight, high)]
    parts = [np.concatenate(cut) for _, *cut in boxes]
    return np.stack([np.average(means[rows], axis=0, weights=weight[rows]) for rows in parts])


def _best_cut(means: np.ndarray, weight: np.ndarray, rows: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The best split of the colours at `rows`: the reduction of the squared distances, and the rows of both parts."""
    best = (0.0, rows, rows[:0])
    for channel in range(3):
        order = rows[np.argsort(means[rows, channel], kind="stable")]
        count, total = np.cumsum(weight[order]), np.cumsum(means[order] * weight[order, None], 0)
        low, high = np.sum(total**2, 1)[:-1] / count[:-1], np.sum((total[-1] - total) ** 2, 1)[:-1]
        gains = low + high / (count[-1] - count[:-1]) - np.sum(total[-1] ** 2) / count[-1]
        if len(gains) and gains.max() > best[0] + 1e-6:
            cut = int(gains.argmax()) + 1
            best = (float(gains.max()), order[:cut], order[cut:])
    return best


def aberration(image: np.ndarray, shift: float, rng: np.random.Generator) -> np.ndarray:
    """Shifts red right by `shift` - 1 pixels and green by `shift` / 2 - 1, then applies `kernel_blur` of size 3.

    The authors' code calls the second channel blue. Pixels at the left edge stay unchanged.
    """
    out = image.copy()
    for channel, pixels in ((0, int(shift) - 1), (1, int(shift) // 2 - 1)):
        out[:, pixels:, channel] = image[:, : image.shape[1] - pixels, channel]
    return kernel_blur(out, 3, rng)


def _corner(image: np.ndarray, margin: int, left: int, rng: np.random.Generator) -> tuple[int, int]:
    """A random pixel (row, column), more than `margin` from the bottom and right edges and `left` from the left one."""
    height, width = image.shape[:2]
    if height <= margin or width <= margin + left:
        raise ValueError(f"an image of {height} x {width} pixels: expected more than {margin} x {margin + left}")
    return int(rng.integers(height - margin)), int(rng.integers(left, width - margin))


def _bytes(values: np.ndarray) -> np.ndarray:
    """Clips to 0..255 and rounds, halves up."""
    return np.floor(np.clip(values, 0, 255) + 0.5).astype(np.uint8)


def _ycbcr(image: np.ndarray) -> np.ndarray:
    """Integer-valued YCbCr, as of MATLAB's `rgb2ycbcr` for uint8."""
    return np.floor(image @ YCBCR.T + OFFSETS + 0.5)


def _rgb(ycbcr: np.ndarray) -> np.ndarray:
    return _bytes((ycbcr - OFFSETS) @ np.linalg.inv(YCBCR).T)


DISTORTIONS: dict[str, Distort] = {
    "blur": blur, "noise": noise, "jpeg": jpeg, "jpeg2000": jpeg2000, "resolution": resolution,
    "kernel_blur": kernel_blur, "colour_noise": colour_noise, "high_frequency_noise": high_frequency_noise,
    "impulses": impulses, "quantisation": quantisation, "pattern": pattern, "blocks": blocks,
    "brighter": mean_shift, "darker": mean_shift, "more_contrast": contrast, "less_contrast": contrast,
    "saturation": saturation, "multiplicative_noise": multiplicative_noise,
    "colour_quantisation": colour_quantisation, "aberration": aberration,
}  # fmt: skip
"""Name -> function; two names share a function if its strength can increase in either direction."""
