"""Adaptive Wing's stacked hourglass in PyTorch, reference of the benchmark and the parity tests; names of ours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def with_coordinates(x: torch.Tensor, heat: torch.Tensor | None = None) -> torch.Tensor:
    """x, then the position along rows, along columns and the radius; of a boundary, the first two where it is hot."""
    n, _, h, w = x.shape
    rows, columns = (torch.arange(side, device=x.device) / (side - 1) * 2 - 1 for side in (h, w))
    rows, columns = rows.view(1, 1, h, 1).expand(n, 1, h, w), columns.view(1, 1, 1, w).expand(n, 1, h, w)
    radius = (rows**2 + columns**2).sqrt()
    parts = [rows, columns, radius / radius.max()]
    if heat is not None:
        hot = heat[:, -1:].clamp(0, 1) > 0.05
        parts += [torch.where(hot, rows, 0.0), torch.where(hot, columns, 0.0)]
    return torch.cat([x, *(part.to(x.dtype) for part in parts)], 1)


class Block(nn.Module):
    """Three 3x3 convolutions, joined, plus a shortcut."""

    def __init__(self, inputs: int, f: int):
        super().__init__()
        sizes = {"1": (inputs, f // 2, 3), "2": (f // 2, f // 4, 3), "3": (f // 4, f // 4, 3)}
        if inputs != f:
            sizes["_shortcut"] = (inputs, f, 1)
        for name, (a, b, k) in sizes.items():
            self.add_module(f"bn{name}", nn.BatchNorm2d(a))
            self.add_module(f"conv{name}", nn.Conv2d(a, b, k, padding=k // 2, bias=False))

    def layer(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Batch norm, ReLU, convolution."""
        return self.get_submodule(f"conv{name}")(F.relu(self.get_submodule(f"bn{name}")(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.layer(x, "1")
        b = self.layer(a, "2")
        joined = torch.cat([a, b, self.layer(b, "3")], 1)
        return joined + (self.layer(x, "_shortcut") if hasattr(self, "conv_shortcut") else x)


class Hourglass(nn.Module):
    """A block at this resolution plus blocks at halves of it."""

    def __init__(self, depth: int, f: int):
        super().__init__()
        self.skip, self.down, self.up = Block(f, f), Block(f, f), Block(f, f)
        self.inner = Hourglass(depth - 1, f) if depth > 1 else Block(f, f)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.up(self.inner(self.down(F.avg_pool2d(x, 2))))
        return self.skip(x) + F.interpolate(low, scale_factor=2, mode="nearest")


class Net(nn.Module):
    """Images [N, 3, H, W] -> `stacks` maps [N, landmarks + 1, H / 4, W / 4]."""

    def __init__(self, landmarks: int = 98, stacks: int = 4, depth: int = 4, f: int = 256):
        super().__init__()
        self.stacks = stacks
        self.stem, self.stem_bn = nn.Conv2d(6, f // 4, 7, 2, 3), nn.BatchNorm2d(f // 4)
        self.block1, self.block2, self.block3 = Block(f // 4, f // 2), Block(f // 2, f // 2), Block(f // 2, f)
        for i in range(stacks):
            self.add_module(f"coordinates{i}", nn.Conv2d(f + (5 if i else 3), f, 1))
            self.add_module(f"hourglass{i}", Hourglass(depth, f))
            self.add_module(f"top{i}", Block(f, f))
            self.add_module(f"features{i}", nn.Conv2d(f, f, 1))
            self.add_module(f"features{i}_bn", nn.BatchNorm2d(f))
            self.add_module(f"maps{i}", nn.Conv2d(f, landmarks + 1, 1))
            if i < stacks - 1:
                self.add_module(f"from_features{i}", nn.Conv2d(f, f, 1))
                self.add_module(f"from_maps{i}", nn.Conv2d(landmarks + 1, f, 1))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        part = self.get_submodule
        x = F.relu(self.stem_bn(self.stem(with_coordinates(x))))
        x = self.block3(self.block2(F.avg_pool2d(self.block1(x), 2)))
        found: list[torch.Tensor] = []
        for i in range(self.stacks):
            y = part(f"coordinates{i}")(with_coordinates(x, found[-1] if found else None))
            y = part(f"top{i}")(part(f"hourglass{i}")(y))
            y = F.relu(part(f"features{i}_bn")(part(f"features{i}")(y)))
            found.append(part(f"maps{i}")(y))
            if i < self.stacks - 1:
                x = x + part(f"from_features{i}")(y) + part(f"from_maps{i}")(found[-1])
        return found
