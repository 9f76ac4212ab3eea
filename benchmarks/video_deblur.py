"""OVD, frame by frame as a camera sends them, beside PyTorch in the same process: `python -m benchmarks.video_deblur`.

The default is one frame of 1280 x 720 pixels at the published size: 2 x 230 G multiply-adds.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.compare import compare
from benchmarks.torch_video_deblur import OVD as TorchOVD
from facejax.restoration.video_deblur import OVD

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280), help="height and width, pixels")
    parser.add_argument("--dtype", default="float32", help="of the computation of facejax")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    window = np.random.default_rng(0).random((1, 5, *arguments.size, 3)).astype(np.float32)
    net, theirs = OVD(dtype=jnp.dtype(arguments.dtype)), TorchOVD().eval()
    small = jnp.zeros((1, 1, 16, 16, 3))
    variables = jax.jit(lambda: net.init(jax.random.key(0), small, train=False))()
    state, frame = net.begin(jnp.asarray(window[:, 0])), jnp.asarray(window[:, -1])
    step = jax.jit(lambda variables, state, frame: net.apply(variables, state, frame, method="step"))
    frames = torch.from_numpy(window.transpose(0, 1, 4, 2, 3).copy())
    maps = theirs.begin(frames)

    def torch_step() -> None:
        with torch.inference_mode():
            theirs.step(frames, *maps)

    compare(
        f"OVD, a frame of {arguments.size[1]} x {arguments.size[0]} pixels",
        {"torch": torch_step, "facejax": lambda: step(variables, state, frame)},
        repeats=arguments.repeats, unit="frames", amount=1,
    )  # fmt: skip
