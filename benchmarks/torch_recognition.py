"""IResNet and MobileFaceNet in PyTorch, references of the benchmarks and the parity tests.

Layers, order and parameter names are those of arcface_torch, so `facejax.interop.arcface_torch` maps their state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class IBasicBlock(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3 with the stride, BN, then adds the shortcut."""

    def __init__(self, inner: int, features: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv1 = nn.Conv2d(inner, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.prelu = nn.PReLU(features)
        self.conv2 = nn.Conv2d(features, features, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(features)
        self.downsample = None
        if stride > 1 or inner != features:
            self.downsample = nn.Sequential(nn.Conv2d(inner, features, 1, stride, bias=False), nn.BatchNorm2d(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Faces [N, 3, size, size] to embeddings; the scale of the last batch norm is constant 1."""

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        embedding_size: int = 512,
        size: int = 112,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        inner = widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            blocks = [IBasicBlock(inner, width, 2), *(IBasicBlock(width, width, 1) for _ in range(depth - 1))]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            inner, size = width, -(-size // 2)
        self.stages = [f"layer{stage}" for stage in range(1, len(depths) + 1)]
        self.bn2 = nn.BatchNorm2d(inner)
        self.fc = nn.Linear(inner * size * size, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        x = self.bn2(x).flatten(1)
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))


class Layers(nn.Module):
    """A sequence of layers; `residual` adds the input to the output."""

    def __init__(self, *layers: nn.Module, residual: bool = False):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


def conv_block(
    inner: int, features: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1, linear: bool = False
) -> Layers:
    """Convolution, batch norm and, unless `linear`, a PReLU."""
    layers = [nn.Conv2d(inner, features, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(features)]
    return Layers(*layers) if linear else Layers(*layers, nn.PReLU(features))


def bottleneck(inner: int, features: int, expanded: int, stride: int = 1, residual: bool = False) -> Layers:
    """1x1 expansion, depthwise 3x3 with the stride, linear 1x1 projection."""
    return Layers(
        conv_block(inner, expanded, 1),
        conv_block(expanded, expanded, 3, stride, 1, expanded),
        conv_block(expanded, features, 1, linear=True),
        residual=residual,
    )


class MobileFaceNet(nn.Module):
    """Faces [N, 3, size, size] to embeddings, with the global depthwise head."""

    def __init__(
        self, blocks: Sequence[int] = (1, 4, 6, 2), scale: int = 2, embedding_size: int = 512, size: int = 112
    ):
        super().__init__()

        def residuals(width: int, expanded: int, count: int) -> Layers:
            return Layers(*(bottleneck(width, width, expanded, residual=True) for _ in range(count)))

        narrow, wide = 64 * scale, 128 * scale
        first = conv_block(narrow, narrow, 3, 1, 1, 64) if blocks[0] == 1 else residuals(narrow, 128, blocks[0])
        self.layers = nn.Sequential(
            conv_block(3, narrow, 3, 2, 1),
            first,
            bottleneck(narrow, narrow, 128, 2),
            residuals(narrow, 128, blocks[1]),
            bottleneck(narrow, wide, 256, 2),
            residuals(wide, 256, blocks[2]),
            bottleneck(wide, wide, 512, 2),
            residuals(wide, 256, blocks[3]),
        )
        self.conv_sep = conv_block(wide, 512, 1)
        head = conv_block(512, 512, size // 16, groups=512, linear=True)
        dense = nn.Linear(512, embedding_size, bias=False)
        self.features = Layers(head, nn.Flatten(), dense, nn.BatchNorm1d(embedding_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(self.conv_sep(self.layers(x)))


DEPTHS = {"iresnet18": (2, 2, 2, 2), "iresnet50": (3, 4, 14, 3), "iresnet100": (3, 13, 30, 3)}
