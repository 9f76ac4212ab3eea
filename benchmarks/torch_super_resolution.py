"""EDSR in PyTorch, reference of the benchmarks and the parity tests; parameters have the names of ours."""

from __future__ import annotations

import torch
from torch import nn

from facejax.restoration.super_resolution import DIV2K_MEAN, factors


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution of unchanged size, with a bias."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class EDSR(nn.Module):
    """Images [N, 3, h, w] in 0..1 -> [N, 3, scale h, scale w]."""

    def __init__(self, scale: int = 2, features: int = 256, blocks: int = 32, residual_scale: float = 0.1):
        super().__init__()
        self.blocks, self.residual_scale, self.steps = blocks, residual_scale, factors(scale, "EDSR")
        self.first, self.after_body, self.last = conv(3, features), conv(features, features), conv(features, 3)
        for i in range(blocks):
            self.add_module(f"block{i}_conv1", conv(features, features))
            self.add_module(f"block{i}_conv2", conv(features, features))
        for i, step in enumerate(self.steps, 1):
            self.add_module(f"up{i}", conv(features, step**2 * features))
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = skip = self.first((x - self.mean) * 255)
        for i in range(self.blocks):
            branch = self.get_submodule(f"block{i}_conv1")(x).relu()
            x = x + self.residual_scale * self.get_submodule(f"block{i}_conv2")(branch)
        x = skip + self.after_body(x)
        for i, step in enumerate(self.steps, 1):
            x = nn.functional.pixel_shuffle(self.get_submodule(f"up{i}")(x), step)
        return self.last(x) / 255 + self.mean
