"""SCRFD of residual blocks, without landmarks, in PyTorch; reference of the benchmark and the parity test.

The defaults are those of the 10 GF model; parameters have the names of ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class ConvNorm(nn.Module):
    """Convolution, batch norm and, unless `linear`, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, linear: bool = False):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), linear
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x))
        return x if self.linear else x.relu()


class Residual(nn.Module):
    """Two 3x3 convolutions, and a pooled 1x1 shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv1 = ConvNorm(inputs, outputs, 3, stride)
        self.conv2 = ConvNorm(outputs, outputs, 3, linear=True)
        if stride > 1 or inputs != outputs:
            self.shortcut = ConvNorm(inputs, outputs, 1, linear=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.conv1(x))
        if hasattr(self, "shortcut"):
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False) if self.stride > 1 else x
            x = self.shortcut(x)
        return (x + y).relu()


class Trunk(nn.Module):
    """Images -> features at strides 8, 16, 32."""

    def __init__(self, stem: int, widths: Sequence[int], depths: Sequence[int]):
        super().__init__()
        half = stem // 2
        self.stem1, self.stem2, self.stem3 = ConvNorm(3, half, 3, 2), ConvNorm(half, half, 3), ConvNorm(half, stem, 3)
        self.depths, inputs = depths, stem
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), 2):
            for i in range(depth):
                block = Residual(inputs, width, 2 if stage > 2 and i == 0 else 1)
                self.add_module(f"stage{stage}_{i}", block)
                inputs = width

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = F.max_pool2d(self.stem3(self.stem2(self.stem1(x))), 2, ceil_mode=True)
        found = []
        for stage, depth in enumerate(self.depths, 2):
            for i in range(depth):
                x = self.get_submodule(f"stage{stage}_{i}")(x)
            found.append(x)
        return found[1:]


class Neck(nn.Module):
    """Top-down, then bottom-up."""

    def __init__(self, inputs: Sequence[int], width: int):
        super().__init__()
        for i, channels in enumerate(inputs):
            self.add_module(f"lateral{i}", nn.Conv2d(channels, width, 1))
            self.add_module(f"fpn{i}", nn.Conv2d(width, width, 3, 1, 1))
        for i in range(len(inputs) - 1):
            self.add_module(f"down{i}", nn.Conv2d(width, width, 3, 2, 1))
            self.add_module(f"pafpn{i}", nn.Conv2d(width, width, 3, 1, 1))

    def forward(self, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        part, last = self.get_submodule, len(levels) - 1
        levels = [part(f"lateral{i}")(x) for i, x in enumerate(levels)]
        for i in range(last, 0, -1):
            height, width = levels[i - 1].shape[2:]
            larger = F.interpolate(levels[i], scale_factor=2, mode="nearest")
            levels[i - 1] = levels[i - 1] + larger[..., :height, :width]
        levels = [part(f"fpn{i}")(x) for i, x in enumerate(levels)]
        for i in range(last):
            levels[i + 1] = levels[i + 1] + part(f"down{i}")(levels[i])
        return [levels[0], *(part(f"pafpn{i}")(levels[i + 1]) for i in range(last))]


class GroupConv(nn.Module):
    """Convolution, group norm, ReLU."""

    def __init__(self, groups: int, inputs: int, outputs: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.GroupNorm(groups, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).relu()


class Head(nn.Module):
    """Logits [N, A] and distances [N, A, 4] of one level; two anchors a cell."""

    def __init__(self, inputs: int, width: int, depth: int, groups: int):
        super().__init__()
        towers = [GroupConv(groups, width if i else inputs, width) for i in range(depth)]
        self.depth = depth
        for i, tower in enumerate(towers):
            self.add_module(f"tower{i}", tower)
        self.cls, self.reg = nn.Conv2d(width, 2, 3, 1, 1), nn.Conv2d(width, 8, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for i in range(self.depth):
            x = self.get_submodule(f"tower{i}")(x)
        scores, boxes = (y.permute(0, 2, 3, 1).float() for y in (self.cls(x), self.reg(x)))
        return scores.reshape(len(x), -1), boxes.reshape(len(x), -1, 4)


class SCRFD(nn.Module):
    """Images [N, 3, H, W], (x - 127.5) / 128 -> logits [N, A], and distances [N, A, 4] in strides."""

    def __init__(
        self,
        stem: int = 56,
        widths: Sequence[int] = (56, 88, 88, 224),
        depths: Sequence[int] = (3, 4, 2, 3),
        neck: int = 56,
        head: int = 80,
        head_depth: int = 3,
        groups: int = 16,
    ):
        super().__init__()
        self.trunk, self.pyramid = Trunk(stem, widths, depths), Neck(widths[1:], neck)
        self.outputs = Head(neck, head, head_depth, groups)
        for i in range(3):
            self.register_parameter(f"scale{i}", nn.Parameter(torch.ones(())))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = [self.outputs(level) for level in self.pyramid(self.trunk(x))]
        boxes = [level[1] * getattr(self, f"scale{i}") for i, level in enumerate(found)]
        return torch.cat([level[0] for level in found], 1), torch.cat(boxes, 1)
