"""PRNet's network in PyTorch, with TensorFlow's paddings written out; reference of the benchmark and the parity test.

Parameters have the names of ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

NORM = {"eps": 1e-3, "momentum": 1e-3}


class Same(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's "SAME"."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1):
        super().__init__(inputs, outputs, size, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (size, stride), side = (self.kernel_size[0], self.stride[0]), x.shape[-1]
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        return super().forward(F.pad(x, (total // 2, total - total // 2) * 2))


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1):
        super().__init__()
        self.conv, self.bn = Same(inputs, outputs, size, stride), nn.BatchNorm2d(outputs, **NORM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu()


class Block(nn.Module):
    """1x1 to half the channels, 4x4, 1x1, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        half = outputs // 2
        self.conv1, self.conv2, self.conv3 = Unit(inputs, half, 1), Unit(half, half, 4, stride), Same(half, outputs, 1)
        self.bn = nn.BatchNorm2d(outputs, **NORM)
        if stride > 1 or inputs != outputs:
            self.shortcut = Same(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv3(self.conv2(self.conv1(x)))
        return self.bn((self.shortcut(x) if hasattr(self, "shortcut") else x) + y).relu()


class PRNet(nn.Module):
    """Crops [N, 3, S, S] in 0..1 -> position maps of the same shape."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem, inputs = Unit(3, width, 4), width
        for level in range(1, 6):
            for i, stride in enumerate((2, 1), 1):
                self.add_module(f"block{level}_{i}", Block(inputs, width << level, stride))
                inputs = width << level
        self.strides = [1, *(2 if i == 0 else 1 for repeats in (3, 3, 3, 2, 2) for i in range(repeats)), 1, 1, 1]
        widths = [width << level for level in (5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 0, 0)] + [3, 3, 3]
        for i, (outputs, stride) in enumerate(zip(widths, self.strides, strict=True), 1):
            layer = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding=stride - 1, bias=False)
            self.add_module(f"up{i}", layer)
            self.add_module(f"up{i}_bn", nn.BatchNorm2d(outputs, **NORM))
            inputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for level in range(1, 6):
            for i in (1, 2):
                x = self.get_submodule(f"block{level}_{i}")(x)
        for i, stride in enumerate(self.strides, 1):
            x = self.get_submodule(f"up{i}")(x)
            x = x if stride == 2 else x[..., 1:-2, 1:-2]
            x = self.get_submodule(f"up{i}_bn")(x)
            x = x.relu() if i < len(self.strides) else x.float().sigmoid()
        return x
