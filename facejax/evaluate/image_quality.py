"""How well scores of images follow distortion levels and ratings (no-reference image quality)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from facejax.data.distorted import Distorter, crop
from facejax.data.distortions import DISTORTIONS
from facejax.metrics import quality
from facejax.train import Report, image_grid, new_figure


def assess_series(
    score: Callable[[np.ndarray], np.ndarray], distorter: Distorter, images: Sequence[np.ndarray], size: int
) -> Report:
    """Compares scores with the levels of distorted images.

    Args:
      score: images [N, size, size, 3] uint8 -> [N], higher for better images.
      distorter: of the distortion series.
      images: [H, W, 3] uint8 each, undistorted; of larger ones a series shows the same random crop.
      size: pixels.

    Returns:
      "srocc" of the scores with minus the level over all images, and "neighbours_ranked", the percentage of
      neighbouring levels of a series that are ranked correctly.
    """
    rng = np.random.default_rng(0)
    rows = [
        {**row, "image": crop(row["image"], size, np.random.default_rng(i), "an image of data.path")}
        for i, image in enumerate(images)
        for row in distorter.series(image, rng)
    ]
    shown, level, kind = (np.stack([row[name] for row in rows]) for name in ("image", "level", "kind"))
    scores = score(shown)
    starts, count = np.flatnonzero(level == 0), len(distorter.kinds)
    right = [np.mean(np.diff(scores[a:b]) < 0) for a, b in zip(starts, [*starts[1:], len(level)], strict=True)]
    figure, axis = new_figure(5, 3.2)
    for number in np.unique(kind):
        mean = [scores[(kind == number) & (level == step)].mean() for step in np.unique(level)]
        axis.plot(np.unique(level), mean, "o-", label=list(DISTORTIONS)[number])
    axis.set(xlabel="level of distortion", ylabel="mean score")
    axis.legend(frameon=False, fontsize=8, ncols=1 + count // 10)
    first = len(shown) if len(starts) == count else int(starts[count])
    return Report(
        {"srocc": quality.spearman(scores, -level), "neighbours_ranked": 100 * float(np.mean(right))},
        figures={"Score over level": figure},
        images={"A series of each distortion": image_grid(shown[:first], int(starts[1]))},
    )


def assess_opinions(scores: np.ndarray, opinions: np.ndarray, crops: int) -> Report:
    """Compares the mean score of an image's crops with its opinion.

    Args:
      scores: [M * crops], image by image (`facejax.data.distorted.Crops`).
      opinions: [M], higher for better images.
      crops: of an image.

    Returns:
      "srocc" (rank correlation) and "lcc" (linear correlation).
    """
    scores = scores.reshape(-1, crops).mean(1)
    figure, axis = new_figure(4, 3.4)
    axis.plot(opinions, scores, ".", ms=4)
    axis.set(xlabel="opinion", ylabel="score")
    return Report(
        {"srocc": quality.spearman(scores, opinions), "lcc": float(np.corrcoef(scores, opinions)[0, 1])},
        figures={"Score over opinion": figure},
        arrays={"scores": scores, "opinions": opinions},
    )
