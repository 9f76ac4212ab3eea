"""Super-resolution beside PyTorch and NumPy: `python -m benchmarks.super_resolution`.

EDSR's baseline at x4 (PyTorch with its default layout and with channels last, the same weights), `imresize` of a
2,000 x 2,000 picture (a NumPy re-implementation that gathers every output's inputs), and an enlargement to 4K in tiles.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from typing import Any

import jax
import numpy as np

from benchmarks.compare import compare
from facejax.ops.resize import contributions, imresize, imresize_on_host
from facejax.restoration import enlarge
from facejax.restoration import super_resolution as sr


def torch_edsr(variables: Any) -> Any:
    """EDSR's baseline at x4 in PyTorch, with the weights of ours."""
    import torch

    from benchmarks.torch_super_resolution import EDSR

    net = EDSR(4, features=64, blocks=16, residual_scale=1.0)
    for name, layer in net.named_children():
        ours = {k: torch.tensor(np.asarray(v)) for k, v in variables["params"][name].items()}
        layer.weight.data, layer.bias.data = ours["kernel"].permute(3, 2, 0, 1).contiguous(), ours["bias"]
    return net.eval()


def numpy_imresize(image: np.ndarray, scale: float) -> np.ndarray:
    """MATLAB's `imresize` as its re-implementations in NumPy do it: all inputs of every output, weighted and summed."""
    image = image.astype(np.float64)
    for axis in (0, 1):
        side = image.shape[axis]
        places, weights = contributions(side, int(np.ceil(scale * side)), scale)
        places %= 2 * side
        places = np.where(places < side, places, 2 * side - 1 - places)
        lines = np.moveaxis(image, axis, 0)
        image = np.moveaxis((weights[:, :, None, None] * lines[places]).sum(1), 0, axis)
    return image


def networks(side: int, repeats: int) -> None:
    """EDSR's baseline."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    net, low = sr.edsr_baseline(scale=4), np.random.default_rng(0).uniform(size=(1, side, side, 3)).astype(np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), low)
    plain, folded = jax.jit(net.apply), jax.jit(enlarge.folded(net, variables))
    theirs, x = torch_edsr(variables), torch.tensor(low.transpose(0, 3, 1, 2).copy())
    last, y = torch_edsr(variables).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted = theirs(x).numpy().transpose(0, 2, 3, 1)
        for name, found in (("EDSR", plain(variables, low)), ("folded", folded(low))):
            print(f"{name}: largest difference from PyTorch {np.abs(found - wanted).max():.1e}")
        compare(
            f"EDSR baseline x4, {side} x {side} pixels",
            {
                "torch": lambda: theirs(x),
                "torch, channels last": lambda: last(y),
                "facejax": lambda: plain(variables, low),
                "facejax, folded": lambda: folded(low),
            },
            repeats=repeats, unit="megapixels", amount=(4 * side) ** 2 / 1e6,
        )  # fmt: skip


def resizing(side: int, repeats: int) -> None:
    """`imresize` down and up."""
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    for scale, picture in ((1 / 4, image), (1 / 3, image), (4, image[: side // 4, : side // 4])):
        ours = jax.jit(lambda x, scale=scale: imresize(x, scale))
        difference = np.abs(ours(picture) - numpy_imresize(picture, scale)).max()
        work = f"imresize of {picture.shape[0]} x {picture.shape[1]} by {scale:.3g}"
        print(f"{work}: largest difference {difference:.1e}")
        compare(
            work,
            {
                "NumPy, gathered": lambda scale=scale, picture=picture: numpy_imresize(picture, scale),
                "facejax": lambda ours=ours, picture=picture: ours(picture),
                "facejax on the host": lambda scale=scale, picture=picture: imresize_on_host(picture, scale),
            },
            repeats=repeats, unit="megapixels", amount=picture.size / 3e6,
        )  # fmt: skip


def tiles(height: int, width: int, tile: int) -> None:
    """An enlargement of a quarter of a picture and of the whole, in tiles: time and growth of the largest memory."""
    net = sr.edsr_baseline(scale=4)
    variables = jax.jit(net.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    restore = jax.jit(enlarge.folded(net, variables))
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    for rows, columns in ((height // 2, width // 2), (height, width)):
        begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = enlarge.tiled(restore, picture[:rows, :columns], 4, tile=tile, overlap=net.radius)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        size = f"{found.shape[1]} x {found.shape[0]}"
        print(f"tiles of {tile}, to {size}: {time.perf_counter() - begun:.1f} s, memory grows by {grown:.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=96, help="of the small image for EDSR, pixels")
    parser.add_argument("--picture", type=int, default=2000, help="side of the picture for imresize, pixels")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tile", type=int, default=160)
    arguments = parser.parse_args()
    networks(arguments.side, arguments.repeats)
    resizing(arguments.picture, arguments.repeats)
    tiles(540, 960, arguments.tile)
