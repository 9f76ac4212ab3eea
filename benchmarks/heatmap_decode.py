"""Landmarks from heatmaps compared with a NumPy loop over maps: `python -m benchmarks.heatmap_decode`.

64 images of 98 maps of 64 x 64: the highest pixel, shifted by a quarter of a pixel towards the higher neighbour along
each axis, as in HRNet's code. The loop is that of the published evaluation scripts. Both give the same points.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

from benchmarks.compare import compare
from facejax.ops import heatmaps

LANDMARKS, SIDE, SIGMA = 98, 64, 1.5


def loop(maps: np.ndarray) -> np.ndarray:
    """[N, L, H, W] -> [N, L, 2], map by map."""
    points = np.zeros((*maps.shape[:2], 2), np.float32)
    for i, image in enumerate(maps):
        for j, values in enumerate(image):
            row, column = divmod(int(values.argmax()), values.shape[1])
            points[i, j] = (column, row) if values[row, column] > 0 else 0
            column, row = points[i, j].astype(int)
            if 1 < column < values.shape[1] - 1 and 1 < row < values.shape[0] - 1:
                slope = (
                    values[row, column + 1] - values[row, column - 1],
                    values[row + 1, column] - values[row - 1, column],
                )
                points[i, j] += np.sign(slope) * 0.25
    return points


def main() -> None:
    """Checks that both find the same points and prints the ratio."""
    parser = argparse.ArgumentParser(description="Landmarks from heatmaps, beside a NumPy loop.")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    points = rng.uniform(0, SIDE - 1, (arguments.images, LANDMARKS, 2)).astype(np.float32)
    draw = jax.jit(lambda p: heatmaps.gaussian_maps(p, (SIDE, SIDE), sigma=SIGMA, rounded=False)[0])
    maps = draw(points) + rng.uniform(0, 0.1, (arguments.images, SIDE, SIDE, LANDMARKS)).astype(np.float32)
    channels_first = np.ascontiguousarray(np.moveaxis(np.asarray(maps), -1, 1))
    decode = jax.jit(lambda x: heatmaps.decode(x)[0])
    np.testing.assert_array_equal(decode(maps), loop(channels_first))
    compare(
        f"landmarks of {arguments.images} x {LANDMARKS} maps of {SIDE} x {SIDE}",
        {"NumPy loop": lambda: loop(channels_first), "facejax": lambda: decode(maps)},
        repeats=arguments.repeats, unit="images", amount=arguments.images,
    )  # fmt: skip


if __name__ == "__main__":
    main()
