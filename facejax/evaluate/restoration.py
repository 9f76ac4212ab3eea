"""Quality of enlarged images beside the bicubic enlargement, by the protocol of the super-resolution benchmarks.

PSNR and SSIM are of 8-bit images, of the luminance and without a border as wide as the scale unless said otherwise; a
set's number is the mean over its images. Images that equal the truth have an infinite PSNR, which a mean leaves out and
a note mentions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.data.restoration import Pair
from facejax.metrics.image import eight_bit, luma, psnr, ssim
from facejax.metrics.landmarks import face_sizes, normalized_mean_error
from facejax.ops.heatmaps import peaks
from facejax.ops.resize import imresize_on_host
from facejax.restoration import enlarge, fsrnet
from facejax.restoration.super_resolution import EDSR
from facejax.train import Report, map_batches

SHOWN, CROP, ZOOM = 3, 128, 32
"""Images of a set in the report; sides of the part that is shown, and of the part that is shown enlarged."""
GAIN = 4
"""Factor of the errors in an error map."""

Enlarge = Callable[[np.ndarray], np.ndarray]
"""[h, w, 3] uint8 -> [scale h, scale w, 3] uint8."""
Tests = Mapping[str, Sequence[Pair]]
"""Test images by the name of their set."""


@dataclasses.dataclass(frozen=True)
class Enlargement:
    """The `eval` section of an experiment.

    Attributes:
      tile: side of the windows that large images are enlarged by, pixels of the small image.
      overlap: pixels on each side of them that are computed and dropped; 0: the network's radius.
      ensemble: whether to average over turned and mirrored images ("+" of EDSR's authors).
      luminance: PSNR and SSIM of Y; otherwise of RGB.
      border: pixels cut off at each border in addition to the scale; minus the scale cuts nothing off.
    """

    tile: int = 192
    overlap: int = 0
    ensemble: bool = False
    luminance: bool = True
    border: int = 0

    def assess(self, method: Enlarge, tests: Tests, scale: int) -> Report:
        """`assess` with these settings."""
        return assess(method, tests, scale, shave=scale + self.border, luminance=self.luminance)

    def network(self, net: Any, variables: Any, tests: Tests, scale: int) -> Report:
        """`assess` of a network; of FSRNet, on faces with 68 landmarks, also "nme", see `prior_error`."""
        face = isinstance(net, fsrnet.FSRNet)
        whole = enlarge.folded(net, variables) if isinstance(net, EDSR) else partial(net.apply, variables)
        restore = (lambda images: whole(images).fine) if face else whole
        restore = jax.jit(enlarge.self_ensemble(restore) if self.ensemble else restore)

        def method(low: np.ndarray) -> np.ndarray:
            if face:
                return enlarge.tiled(restore, low, scale, tile=max(low.shape))
            return enlarge.tiled(restore, low, scale, tile=self.tile, overlap=self.overlap or net.radius)

        report = self.assess(method, tests, scale)
        pairs = [pair for found in tests.values() for pair in found]
        if face and all(pair.points is not None and len(pair.points) == 68 for pair in pairs):
            lows, points = (np.stack([getattr(pair, name) for pair in pairs]) for name in ("low", "points"))
            look = partial(landmark_maps, net)
            errors = prior_error(map_batches(look, variables, lows, 16), points, pairs[0].high.shape[0])
            report.metrics["nme"] = 100 * float(errors.mean())
            report.notes["nme"] = "mean error of the prior network's landmarks, in % of the inter-ocular distance"
        return report


def landmark_maps(net: fsrnet.FSRNet, variables: Any, images: jax.Array) -> jax.Array:
    """The last hourglass's heatmaps [N, H / 2, W / 2, 68] of small images [N, h, w, 3] uint8."""
    return net.apply(variables, images.astype(jnp.float32) / 255).priors[-1][..., : net.landmarks]


def bicubic(scale: int) -> Enlarge:
    """The enlargement that every method is compared with: MATLAB's."""
    return lambda low: eight_bit(imresize_on_host(low, scale))


def assess(method: Enlarge, tests: Tests, scale: int, *, shave: int, luminance: bool = True) -> Report:
    """Enlarges every test image.

    Args:
      method: enlarges an image.
      tests: see `Tests`.
      scale: of the enlargement.
      shave: pixels at each border that do not count.
      luminance: PSNR and SSIM of Y; otherwise of RGB.

    Returns:
      Means over the sets: "psnr" in dB, "gain", the psnr above bicubic's, "ssim", "detail", the energy of the Laplacian
      of Y relative to the truth's, which is 1 at best, and "detail_error", its distance from 1; psnr, gain and ssim of
      every set. The images show bicubic, result, truth and `GAIN` times the error, then the first three enlarged.
    """
    rows, exact, found, images = [], 0, {}, {}
    for name, pairs in tests.items():
        results = [(pair, bicubic(scale)(pair.low), method(pair.low)) for pair in pairs]
        measured = [measures(after, before, pair.high, shave, luminance) for pair, before, after in results]
        exact += sum(np.isinf(row["psnr"]) for row in measured)
        rows += [{"set": name, "image": pair.name, **row} for pair, row in zip(pairs, measured, strict=True)]
        found[name] = {key: finite_mean([row[key] for row in measured]) for key in measured[0]}
        images[f"{name}: bicubic, result, truth, error; enlarged"] = np.concatenate(
            [strip(before, after, pair.high) for pair, before, after in results[:SHOWN]]
        )
    metrics = {key: float(np.mean([row[key] for row in found.values()])) for key in next(iter(found.values()))}
    for name, row in found.items():
        metrics |= {f"{key}_{name}": row[key] for key in ("psnr", "gain", "ssim")}
    notes = {"psnr": f"{'luminance' if luminance else 'RGB'} of 8 bits, without {shave} pixels at each border"}
    if exact:
        notes["exact"] = f"{exact} images equal the truth; their infinite PSNR is left out of the means"
    return Report(metrics, tables={"Images": rows}, images=images, notes=notes)


def measures(
    result: np.ndarray, before: np.ndarray, truth: np.ndarray, shave: int, luminance: bool
) -> dict[str, float]:
    """The numbers of one image; see `assess`."""
    options = {"shave": shave, "luminance": luminance}
    after, base = (float(psnr(x, truth, **options)) for x in (result, before))
    gain = 0.0 if after == base else after - base  # both may be infinite
    inside = slice(shave, -shave or None)
    energy = [np.square(laplacian(luma(x)[inside, inside])).mean() for x in (result, truth)]
    detail = energy[0] / energy[1] if energy[1] else float(energy[0] == 0)
    similarity = float(ssim(result, truth, **options))
    return {"psnr": after, "gain": gain, "ssim": similarity, "detail": detail, "detail_error": abs(detail - 1)}


def finite_mean(values: Sequence[float]) -> float:
    """The mean of the finite values; infinite if there are none."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else np.inf


def laplacian(y: np.ndarray) -> np.ndarray:
    """The sum of the four neighbours less four times the pixel, [H, W, 1] -> [H - 2, W - 2, 1]."""
    return y[2:, 1:-1] + y[:-2, 1:-1] + y[1:-1, 2:] + y[1:-1, :-2] - 4 * y[1:-1, 1:-1]


def strip(before: np.ndarray, result: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """One row of the report: the part of the image that bicubic enlarges worst, with a part of it enlarged."""
    top, left = worst(before, truth, CROP)
    parts = [padded(x[top : top + CROP, left : left + CROP]) for x in (before, result, truth)]
    top, left = worst(parts[0], parts[2], ZOOM)
    error = np.abs(parts[1].astype(int) - parts[2])
    zoomed = [x[top : top + ZOOM, left : left + ZOOM].repeat(CROP // ZOOM, 0).repeat(CROP // ZOOM, 1) for x in parts]
    return np.concatenate([*parts, np.clip(GAIN * error, 0, 255).astype(np.uint8), *zoomed], 1)


def worst(image: np.ndarray, truth: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left of the square with the largest error; along a side shorter than it, 0."""
    error = np.square(image.astype(float) - truth).sum(-1)
    total = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    h, w = (min(side, n) for n in error.shape)
    sums = total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left)


def padded(image: np.ndarray) -> np.ndarray:
    """An image of at most CROP x CROP pixels on a white square."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, CROP - height), (0, CROP - width), (0, 0)), constant_values=255)


def prior_error(maps: np.ndarray, points: np.ndarray, side: int) -> np.ndarray:
    """Normalised mean errors [N] of the peaks of landmark heatmaps, in inter-ocular distances.

    Args:
      maps: [N, h, w, 68].
      points: [N, 68, 2] true landmarks in pixels of an image of `side` pixels, with the origin at the corner.
      side: see `points`.
    """
    found = (np.asarray(peaks(jnp.asarray(maps))[0]) + 0.5) * side / maps.shape[1]
    return normalized_mean_error(found, points, face_sizes(points, "inter_ocular"))
