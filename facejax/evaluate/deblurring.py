"""Restored images beside degraded and true ones: PSNR, SSIM, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from facejax.data.videos import Video
from facejax.metrics import image as metrics
from facejax.train import Report, new_figure

SHOWN = 4
STRENGTHS = 5
"""Groups of equally many frames in the curve over the strength of the blur."""


class Triple(NamedTuple):
    """Images [..., H, W, 3] uint8."""

    degraded: np.ndarray
    restored: np.ndarray
    truth: np.ndarray


def scores(images: Triple) -> dict[str, np.ndarray]:
    """PSNR (dB) and SSIM of every restored image, and of the degraded one: "psnr", "psnr_degraded", "ssim", ..."""
    found = {}
    for name, measure in (("psnr", metrics.psnr), ("ssim", metrics.ssim)):
        found[name] = measure(images.restored, images.truth)
        found[f"{name}_degraded"] = measure(images.degraded, images.truth)
    return found


def mean_finite(values: np.ndarray) -> float:
    """Mean of the finite values; infinite if there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("inf")


def summary(found: Mapping[str, np.ndarray]) -> Report:
    """Means of `scores` [N]; the notes say how many images equal the truth, whose infinite PSNR is left out."""
    equal = {name: int(np.isinf(found[name]).sum()) for name in ("psnr", "psnr_degraded")}
    notes = {
        name: f"mean over the images in dB, without {count} that equal the truth (infinite)"
        for name, count in equal.items()
        if count
    }
    return Report({name: mean_finite(values) for name, values in found.items()}, notes=notes)


def gain_figure(found: Mapping[str, np.ndarray], degraded: str) -> Any:
    """PSNR of restored images over that of the degraded ones, from the strongest degradation to the weakest."""
    known = np.isfinite(found["psnr"]) & np.isfinite(found["psnr_degraded"])
    before, after = found["psnr_degraded"][known], found["psnr"][known]
    figure, axis = new_figure(5.2, 3.6)
    if len(before):
        groups = np.array_split(np.argsort(before), min(STRENGTHS, len(before)))
        centre = [before[group].mean() for group in groups]
        axis.plot(before, after, ".", ms=3, alpha=0.4, color="0.5")
        axis.plot(centre, [after[group].mean() for group in groups], "o-", label="restored")
        axis.plot(centre, centre, "k--", lw=1, label=degraded)
        axis.legend(frameon=False)
    axis.set(xlabel=f"PSNR of the {degraded} image, dB (left: strongest)", ylabel="PSNR, dB")
    return figure


def comparison_figure(images: Triple, degraded: str) -> Any:
    """A row for each image [N, H, W, 3]: degraded, restored, true; the same enlarged where it is worst; error maps."""
    rows = len(images.truth)
    figure, axes = new_figure(13, 1.75 * rows + 0.3, rows, 8)
    errors = [np.abs(x.astype(float) - images.truth).mean(-1) for x in images[:2]]
    top = max(float(np.percentile(errors[0], 99)), 1.0)
    titles = (degraded, "restored", "true", "", "", "", f"error, {degraded}", "error, restored")
    psnr = [metrics.psnr(x, images.truth) for x in images[:2]]
    for row, panels in enumerate(np.reshape(axes, (rows, 8))):
        part = _worst_part(errors[0][row])
        shown = [x[row] for x in images] + [x[row][part] for x in images] + [x[row] for x in errors]
        for column, (panel, picture) in enumerate(zip(panels, shown, strict=True)):
            panel.imshow(picture, interpolation="nearest", cmap="magma", vmin=0, vmax=top if column > 5 else None)
            panel.set_axis_off()
            if row == 0:
                panel.set_title(titles[column], fontsize=9)
        for panel, value in zip(panels[:2], psnr, strict=True):
            panel.text(0.03, 0.03, f"{value[row]:.1f} dB", transform=panel.transAxes, fontsize=7, color="white")
    return figure


def _worst_part(error: np.ndarray) -> tuple[slice, slice]:
    """The square of a third of the shorter side with the largest mean error of a map [H, W]."""
    side = max(min(error.shape) // 3, 1)
    mean = cv2.boxFilter(error, -1, (side, side), anchor=(0, 0))[
        : error.shape[0] - side + 1, : error.shape[1] - side + 1
    ]
    top, left = np.unravel_index(np.argmax(mean), mean.shape)
    return slice(top, top + side), slice(left, left + side)


def assess_videos(
    restore: Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]], videos: Sequence[Video], degraded: str = "blurred"
) -> Report:
    """Restores whole videos and compares every frame with the sharp one.

    Args:
      restore: frames [H, W, 3] in 0..1, one after the other -> as many restored frames.
      videos: with sharp frames.
      degraded: adjective of the input in the pictures.

    Returns:
      "psnr", "psnr_degraded", "ssim", "ssim_degraded": means over all frames, after rounding to 8 bits.
    """
    values: list[dict[str, np.ndarray]] = []
    hardest: list[Triple] = []
    table = []
    for number, video in enumerate(videos):
        pair = video.read(0, len(video))
        restored = metrics.eight_bit(
            255 * np.stack([np.asarray(frame) for frame in restore(frame / np.float32(255) for frame in pair.blurred)])
        )
        images = Triple(pair.blurred, restored, pair.sharp)
        found = scores(images)
        values.append(found)
        worst = int(np.argmin(found["psnr_degraded"]))
        if number < SHOWN:
            hardest.append(Triple(*(frames[worst] for frames in images)))
        if number == 0:
            strip = np.concatenate(images, 2)
        means = {name: mean_finite(of_frames) for name, of_frames in found.items()}
        table.append({"video": video.name, "frames": len(video), **means})
    found = {name: np.concatenate([of_video[name] for of_video in values]) for name in values[0]}
    same = [triple for triple in hardest if triple.truth.shape == hardest[0].truth.shape]
    return summary(found) | Report(
        {},
        tables={"Videos": table},
        figures={
            "Frames with the strongest blur": comparison_figure(
                Triple(*map(np.stack, zip(*same, strict=True))), degraded
            ),
            "PSNR by strength of the blur": gain_figure(found, degraded),
        },
        images={f"Video: {degraded}, restored, true": strip},
    )


def assess_images(images: Triple, degraded: str = "blurred") -> Report:
    """Compares restored images [N, H, W, 3] with the true ones: "psnr", "psnr_degraded", "ssim", "ssim_degraded"."""
    found = scores(images)
    order = np.argsort(found["psnr_degraded"])
    shown = order[np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int)]
    return summary(found) | Report(
        {},
        figures={
            "From the strongest blur to the weakest": comparison_figure(Triple(*(x[shown] for x in images)), degraded),
            "PSNR by strength of the blur": gain_figure(found, degraded),
        },
    )


def assess_transfer(
    transfer: Callable[[np.ndarray, np.ndarray], np.ndarray],
    reblur: Callable[[np.ndarray, np.ndarray], np.ndarray],
    blurred: np.ndarray,
    sharp: np.ndarray,
    kernels: np.ndarray,
) -> Report:
    """Whether the blur of one image can be given to another.

    Args:
      transfer: (sharp images, blurred images of other scenes) -> the sharp images with the blur of the others.
      reblur: (a sharp image, a kernel) -> the image that this should give.
      blurred, sharp: [N, H, W, 3] uint8.
      kernels: [N, ...] of the blurred images.

    Returns:
      "transfer_psnr": of the result with respect to the sharp image with the other's kernel; "transfer_gain": how far
      this is above the PSNR with respect to the same image with a third image's kernel, dB; about 0 if the code does
      not matter. The picture shows the sharp image, the blurred one, the result, and what it should be.
    """
    others, thirds = (np.roll(np.arange(len(sharp)), shift) for shift in (1, 2))
    made = transfer(sharp, blurred[others])
    wanted, wrong = (
        np.stack([reblur(image, kernels[i]) for image, i in zip(sharp, rows, strict=True)]) for rows in (others, thirds)
    )
    right, confused = (metrics.psnr(made, truth) for truth in (wanted, wrong))
    rows = [np.concatenate(list(x[: 2 * SHOWN]), 1) for x in (sharp, blurred[others], made, wanted)]
    return Report(
        {"transfer_psnr": mean_finite(right), "transfer_gain": float(np.mean(right - confused))},
        images={"Sharp, blurred, blur of the second given to the first, what this should be": np.concatenate(rows)},
    )


def explained(features: np.ndarray, kernels: np.ndarray) -> float:
    """R^2 of a linear fit of motion (length times the cosine and sine of twice the angle) to features [N, D].

    Kernels are [N, 2], lengths and angles. Each half of the images is predicted by the fit to the other half.
    """
    length, angle = kernels.T
    wanted = length[:, None] * np.stack([np.cos(2 * angle), np.sin(2 * angle)], 1)
    known = np.concatenate([features, np.ones((len(features), 1))], 1)
    half = np.arange(len(known)) % 2 == 0
    error = 0.0
    for rows in (half, ~half):
        fit = np.linalg.solve(known[rows].T @ known[rows] + 1e-3 * np.eye(known.shape[1]), known[rows].T @ wanted[rows])
        error += np.square(known[~rows] @ fit - wanted[~rows]).sum()
    return float(1 - error / np.square(wanted - wanted.mean(0)).sum())
