"""The hourglass trunk in PyTorch with the names of CornerNet's and CenterNet's code."""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="needs the parity extra")
nn = torch.nn


class Convolution(nn.Module):
    def __init__(self, size, inputs, outputs, stride=1, norm=True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=not norm)
        self.bn = nn.BatchNorm2d(outputs) if norm else nn.Identity()

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


def linear(inputs, outputs, stride=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.skip = linear(inputs, outputs, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.skip(x)).relu()


def chain(widths, stride=1):
    pairs = itertools.pairwise(widths)
    return nn.Sequential(*[Residual(*pair, 1 if i else stride) for i, pair in enumerate(pairs)])


class Module(nn.Module):
    def __init__(self, widths, depths):
        super().__init__()
        (a, b), d = widths[:2], depths[0]
        self.up1, self.low1 = chain([a] * (d + 1)), chain([a, *[b] * d], 2)
        self.low2 = Module(widths[1:], depths[1:]) if len(widths) > 2 else chain([b] * (depths[1] + 1))
        self.low3 = chain([*[b] * d, a])

    def forward(self, x):
        low = self.low3(self.low2(self.low1(x)))
        return self.up1(x) + nn.functional.interpolate(low, scale_factor=2, mode="nearest")


class Trunk(nn.Module):
    def __init__(self, stacks, widths, depths, stem, features):
        super().__init__()
        self.pre = nn.Sequential(Convolution(7, 3, stem, 2), Residual(stem, widths[0], 2))
        self.kps = nn.ModuleList(Module(widths, depths) for _ in range(stacks))
        self.cnvs = nn.ModuleList(Convolution(3, widths[0], features) for _ in range(stacks))
        self.inters = nn.ModuleList(Residual(widths[0], widths[0]) for _ in range(stacks - 1))
        self.inters_ = nn.ModuleList(linear(widths[0], widths[0]) for _ in range(stacks - 1))
        self.cnvs_ = nn.ModuleList(linear(features, widths[0]) for _ in range(stacks - 1))

    def features(self, x):
        x, found = self.pre(x), []
        for i, (kp, cnv) in enumerate(zip(self.kps, self.cnvs, strict=True)):
            found.append(cnv(kp(x)))
            if i < len(self.inters):
                x = self.inters[i]((self.inters_[i](x) + self.cnvs_[i](found[-1])).relu())
        return found


def make_head(inputs, width, outputs):
    return nn.Sequential(Convolution(3, inputs, width, norm=False), nn.Conv2d(width, outputs, 1))
