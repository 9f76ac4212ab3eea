"""Glasses removed or added: pixels inside and outside the glasses, masks, identity, verification, pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from facejax.evaluate.deblurring import mean_finite
from facejax.metrics import image as metrics
from facejax.metrics.verification import tar_at_far
from facejax.train import Report

Embed = Callable[[np.ndarray], np.ndarray]
"""Images [N, S, S, 3] uint8 -> [N, D]."""
SHOWN = 6
FAR = 1e-3
TAR = f"true acceptance rate in %, at a FAR of at most {FAR}, of every picture against the truths of all others"


class Translated(NamedTuple):
    """Images before and after a translation, and what is known of them.

    Attributes:
      images, made, truth: [N, S, S, 3] uint8: the input, the output, the output as it should be.
      glasses: [N, S, S] bool, the true mask of the glasses, which lie in the input or in the truth.
      found: [N, S, S] bool, the network's mask; None: it has none.
      person: [N] int.
    """

    images: np.ndarray
    made: np.ndarray
    truth: np.ndarray
    glasses: np.ndarray
    found: np.ndarray | None
    person: np.ndarray


def region_psnr(images: np.ndarray, truth: np.ndarray, region: np.ndarray) -> np.ndarray:
    """PSNR in dB over the pixels of a region alone.

    Args:
      images, truth: [N, H, W, 3] in 0..255.
      region: [N, H, W] bool.

    Returns:
      [N] float64; infinite where both are equal in the region, not a number where it is empty.
    """
    squared = np.square(images.astype(float) - truth).mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 10 * np.log10(255**2 / (np.sum(squared * region, (1, 2)) / region.sum((1, 2))))


def region_ssim(images: np.ndarray, truth: np.ndarray, region: np.ndarray) -> np.ndarray:
    """SSIM of the truth whose region is replaced by the image's -> [N]."""
    return metrics.ssim(np.where(region[..., None], images, truth), truth)


def mask_iou(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of masks [N, H, W] -> [N]; 1 where both are empty."""
    both, either = (found & truth).sum((1, 2)), (found | truth).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines of embeddings: [N, D] and [M, D] -> [N, M]."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
    return unit[0] @ unit[1].T


def tar(probes: np.ndarray, gallery: np.ndarray, person: np.ndarray) -> float:
    """TAR in % at a FAR of `FAR` of every probe against every picture of the gallery but the one it was made from.

    Args:
      probes, gallery: embeddings [N, D] of the same pictures in the same order.
      person: [N].
    """
    others = ~np.eye(len(person), dtype=bool)
    scores, same = cosine(probes, gallery)[others], (person[:, None] == person)[others]
    return 100 * float(tar_at_far(scores, same, [FAR])[0])


def assess(pairs: Translated, embed: Embed | None, prefix: str = "") -> Report:
    """Measures how near the output is to the truth.

    Args:
      pairs: the images.
      embed: a recogniser that took no part in the training; None: identity is not measured.
      prefix: of the metrics' names.

    Returns:
      "psnr_glasses", "ssim_glasses", "psnr_outside", "ssim_outside", "psnr_glasses_input" and so on, the input in the
      output's place; "error_drop", by how much the mean absolute error in the glasses' region falls, %; "mask_iou";
      "identity" and "identity_input", mean cosine to the truth; "tar", "tar_input" and "tar_truth", see `tar`, where
      people have several pictures.
    """
    images, made, truth, glasses, found, person = pairs
    values = {}
    for name, picture in (("", made), ("_input", images)):
        for place, region in (("glasses", glasses), ("outside", ~glasses)):
            values[f"psnr_{place}{name}"] = mean_finite(region_psnr(picture, truth, region))
            values[f"ssim_{place}{name}"] = float(region_ssim(picture, truth, region).mean())
    errors = [np.abs(x.astype(float) - truth).mean(-1)[glasses].mean() for x in (made, images)]
    values["error_drop"] = 100 * float(1 - errors[0] / errors[1])
    if found is not None:
        values["mask_iou"] = float(mask_iou(found, glasses).mean())
    if embed:
        features = [embed(x) for x in (made, images, truth)]
        for name, of in zip(("identity", "identity_input"), features, strict=False):
            values[name] = float(np.diag(cosine(of, features[2])).mean())
        if len(np.unique(person)) < len(person):
            values |= {
                f"tar{n}": tar(f, features[2], person) for n, f in zip(("", "_input", "_truth"), features, strict=True)
            }
    return Report(
        {prefix + name: value for name, value in values.items()},
        images={f"{prefix or 'drawn_'}sheet": sheet(pairs)},
        notes={f"{prefix}tar": TAR} if "tar" in values else {},
    )


def sheet(pairs: Translated) -> np.ndarray:
    """Rows of inputs, outputs, truths, true masks and found masks, from the largest error of the input on."""
    change = np.abs(pairs.images.astype(float) - pairs.truth).mean((1, 2, 3))
    rows = np.argsort(-change)[np.linspace(0, len(change) - 1, min(2 * SHOWN, len(change))).astype(int)]
    masks = [pairs.glasses] + ([] if pairs.found is None else [pairs.found])
    grey = [np.repeat(np.uint8(255) * mask[rows][..., None].astype(np.uint8), 3, -1) for mask in masks]
    return np.concatenate([np.concatenate(list(x), 1) for x in (*(y[rows] for y in pairs[:3]), *grey)])
