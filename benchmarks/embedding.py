"""IResNet-50 inference compared with PyTorch, same machine and batch: `python -m benchmarks.embedding`."""

from __future__ import annotations

import argparse

import jax
import numpy as np
import torch

from benchmarks.compare import compare
from benchmarks.torch_recognition import DEPTHS, IResNet
from facejax.backbones.iresnet import iresnet50

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    images = np.random.default_rng(0).normal(size=(arguments.batch, 112, 112, 3)).astype(np.float32)
    net = iresnet50()
    variables = jax.jit(lambda: net.init(jax.random.key(0), images[:1], train=False))()
    ours = jax.jit(lambda v, x: net.apply(v, x, train=False))
    theirs = IResNet(DEPTHS["iresnet50"]).eval()
    nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def torch_forward() -> None:
        with torch.inference_mode():
            theirs(nchw)

    compare(
        f"IResNet-50 inference, {arguments.batch} images of 112 pixels",
        {"torch": torch_forward, "facejax": lambda: ours(variables, images).block_until_ready()},
        repeats=arguments.repeats, unit="images", amount=arguments.batch,
    )  # fmt: skip
