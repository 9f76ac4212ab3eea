"""A mesh of 38,000 vertices drawn with its normalized coordinates into 256 x 256 pixels, beside a vectorised NumPy
z-buffer: `python -m benchmarks.mesh_render`.

The NumPy form lists the pixels of all triangles' boxes, as the library does, and finds the nearest with maximum.at.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compare import compare
from facejax.morphable import pncc, rasterizer, uv

GRID, SIZE = 195, 256
PER_PIXEL = 1.5  # the triangles' boxes hold 1.2 times as many pixels as the picture


def mesh(grid: int = GRID, side: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [grid^2, 3] of a curved sheet turned by 30 degrees, in pixels of a picture, and triangles [T, 3]."""
    y, x = np.mgrid[:grid, :grid].reshape(2, -1) / (grid - 1) * 2 - 1
    z = np.sqrt(np.maximum(1.3 - x**2 / 1.5 - y**2 / 2.5, 0))
    turned = np.stack([x * np.cos(0.5) + z * np.sin(0.5) - 0.3, y, z * np.cos(0.5) - x * np.sin(0.5)], -1)
    vertices = turned * side * 100 / 256 + [side / 2, side / 2, 0]
    return vertices.astype(np.float32), uv.grid_triangles(np.ones((grid, grid), bool))


def capacity(side: int) -> int:
    """Entries of the renderer's work list."""
    return int(PER_PIXEL * side * side)


def numpy_render(vertices: np.ndarray, triangles: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """[SIZE, SIZE, 3] of the nearest front-facing triangle at every pixel."""
    x, y, z = np.moveaxis(vertices[triangles], -1, 0)  # [T, 3] each
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (y[:, 1] - y[:, 0]) * (x[:, 2] - x[:, 0])
    left, top = (np.clip(np.ceil(c.min(1) - 0.5), 0, SIZE).astype(int) for c in (x, y))
    right, bottom = (np.clip(np.floor(c.max(1) + 0.5), 0, SIZE).astype(int) for c in (x, y))
    columns = np.maximum(right - left, 0)
    counts = np.where(area < 0, columns * np.maximum(bottom - top, 0), 0)
    owner = np.repeat(np.arange(len(triangles)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    row, column = top[owner] + within // columns[owner], left[owner] + within % columns[owner]
    px, py, inverse = column + 0.5, row + 0.5, 1 / area[owner]
    ox, oy, oz = x[owner], y[owner], z[owner]
    w0 = ((oy[:, 1] - oy[:, 2]) * (px - ox[:, 2]) + (ox[:, 2] - ox[:, 1]) * (py - oy[:, 2])) * inverse
    w1 = ((oy[:, 2] - oy[:, 0]) * (px - ox[:, 2]) + (ox[:, 0] - ox[:, 2]) * (py - oy[:, 2])) * inverse
    w2 = 1 - w0 - w1
    inside = np.minimum(np.minimum(w0, w1), w2) >= -1e-6
    pixel, depth = (row * SIZE + column)[inside], (w0 * oz[:, 0] + w1 * oz[:, 1] + w2 * oz[:, 2])[inside]
    nearest = np.full(SIZE * SIZE, -np.inf)
    np.maximum.at(nearest, pixel, depth)
    wins = depth == nearest[pixel]
    weights = np.stack([w0, w1, w2], 1)[inside][wins]
    picture = np.zeros((SIZE * SIZE, 3))
    picture[pixel[wins]] = (weights[..., None] * colours[triangles[owner[inside][wins]]]).sum(1)
    return picture.reshape(SIZE, SIZE, 3)


def main() -> None:
    """Checks that both draw the same picture and prints the ratio."""
    vertices, triangles = mesh()
    code = np.asarray(pncc.coordinate_code(jnp.asarray(vertices)))
    given, colours = jnp.asarray(vertices), jnp.asarray(code)
    draw = jax.jit(lambda v: pncc.render(v, triangles, colours, (SIZE, SIZE), capacity=capacity(SIZE)))
    expected, found = numpy_render(vertices, triangles, code), np.asarray(draw(given)[0])
    rasterizer.check(draw(given)[1])
    differs = (np.abs(found - expected) > 1e-3).any(-1).mean()
    if differs > 1e-3:
        raise RuntimeError(f"{differs:.2%} of the pixels differ")
    contenders = {"NumPy": lambda: numpy_render(vertices, triangles, code), "facejax": lambda: draw(given)}
    compare(f"mesh of {len(vertices):,} vertices, {SIZE} pixels", contenders, repeats=15, unit="meshes", amount=1)


if __name__ == "__main__":
    main()
