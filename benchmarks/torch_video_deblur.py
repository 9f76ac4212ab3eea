"""OVD in PyTorch, from the layer list of `facejax.restoration.video_deblur`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """Two convolutions with batch norm and a skip connection."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class OVD(nn.Module):
    """Videos [N, T, 3, H, W] -> restored videos; border frames are repeated."""

    def __init__(
        self, context: int = 2, width: int = 64, blocks: int = 4, recurrent: bool = True, blending: bool = True
    ):
        super().__init__()
        self.context, self.recurrent = context, recurrent
        half = width // 2
        self.conv1 = nn.Conv2d(3 * (2 * context + 1), width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, half, 3, 2, 1)
        self.encoder = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.blending = nn.Conv2d(2 * width, width, 5, padding=2) if blending else None
        self.beta = nn.Parameter(torch.zeros(())) if blending else None
        self.decoder = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.features = nn.Conv2d(width, half, 3, padding=1)
        self.up = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def step(
        self, window: torch.Tensor, features: torch.Tensor, old: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(frames [N, 2 context + 1, 3, H, W], both maps) -> (the middle frame [N, 3, H, W], both maps)."""
        x = F.relu(self.conv2(F.relu(self.conv1(window.flatten(1, 2)))))
        x = self.encoder(torch.cat([x, features], 1))
        if self.blending is not None:
            weight = (self.blending(torch.cat([x, old], 1)).tanh().abs() + self.beta).clamp(0, 1)
            x = weight * x + (1 - weight) * old
        y = self.decoder(x)
        sharp = self.out(F.relu(self.up(y)))[..., : window.shape[-2], : window.shape[-1]]
        return sharp, F.relu(self.features(y)), x

    def begin(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps before the first frame."""
        n, _, _, height, width = video.shape
        half = -(-height // 2), -(-width // 2)
        return tuple(video.new_zeros(n, c, *half) for c in (self.features.out_channels, self.up.in_channels))

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        first, last = (video[:, i : i + 1 or None].repeat(1, self.context, 1, 1, 1) for i in (0, -1))
        frames = torch.cat([first, video, last], 1)
        start = maps = self.begin(video)
        restored = []
        for t in range(video.shape[1]):
            sharp, *maps = self.step(frames[:, t : t + 2 * self.context + 1], *maps)
            maps = maps if self.recurrent else start
            restored.append(sharp)
        return torch.stack(restored, 1)
