"""Adaptive Wing compared with PyTorch: a network written from the authors' layers, and the loss; gradients too."""

import jax
import numpy as np
import pytest

from facejax.alignment import adaptive_wing
from facejax.interop.names import IGNORED, Rule, batch_norm
from tests.parity.networks import assert_equal_training, assert_near, converted, nchw, numpy_nhwc, randomized, template

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional


def with_coordinates(x, heat=None):
    """x, then the position along rows, along columns and the radius; of a boundary, the first two where it is hot."""
    n, _, h, w = x.shape
    rows = (torch.arange(h) / (h - 1) * 2 - 1).view(1, 1, h, 1).expand(n, 1, h, w)
    columns = (torch.arange(w) / (w - 1) * 2 - 1).view(1, 1, 1, w).expand(n, 1, h, w)
    radius = (rows**2 + columns**2).sqrt()
    parts = [x, rows, columns, radius / radius.max()]
    if heat is not None:
        hot = heat[:, -1:].clamp(0, 1) > 0.05
        parts += [torch.where(hot, rows, 0.0), torch.where(hot, columns, 0.0)]
    return torch.cat(parts, 1)


class Block(nn.Module):
    def __init__(self, inputs, f):
        super().__init__()
        sizes = {"1": (inputs, f // 2, 3), "2": (f // 2, f // 4, 3), "3": (f // 4, f // 4, 3)}
        if inputs != f:
            sizes["_shortcut"] = (inputs, f, 1)
        for name, (a, b, k) in sizes.items():
            self.add_module(f"bn{name}", nn.BatchNorm2d(a))
            self.add_module(f"conv{name}", nn.Conv2d(a, b, k, padding=k // 2, bias=False))

    def layer(self, x, name):
        return self.get_submodule(f"conv{name}")(F.relu(self.get_submodule(f"bn{name}")(x)))

    def forward(self, x):
        a = self.layer(x, "1")
        b = self.layer(a, "2")
        joined = torch.cat([a, b, self.layer(b, "3")], 1)
        return joined + (self.layer(x, "_shortcut") if hasattr(self, "conv_shortcut") else x)


class Hourglass(nn.Module):
    def __init__(self, depth, f):
        super().__init__()
        self.skip, self.down, self.up = Block(f, f), Block(f, f), Block(f, f)
        self.inner = Hourglass(depth - 1, f) if depth > 1 else Block(f, f)

    def forward(self, x):
        low = self.up(self.inner(self.down(F.avg_pool2d(x, 2))))
        return self.skip(x) + F.interpolate(low, scale_factor=2, mode="nearest")


class Reference(nn.Module):
    def __init__(self, landmarks, stacks, depth, f):
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

    def forward(self, x):
        part = self.get_submodule
        x = F.relu(self.stem_bn(self.stem(with_coordinates(x))))
        x = self.block3(self.block2(F.avg_pool2d(self.block1(x), 2)))
        found = []
        for i in range(self.stacks):
            y = part(f"coordinates{i}")(with_coordinates(x, found[-1] if found else None))
            y = part(f"top{i}")(part(f"hourglass{i}")(y))
            y = F.relu(part(f"features{i}_bn")(part(f"features{i}")(y)))
            found.append(part(f"maps{i}")(y))
            if i < self.stacks - 1:
                x = x + part(f"from_features{i}")(y) + part(f"from_maps{i}")(found[-1])
        return found


BLOCKS = r"(block\d|top\d|hourglass\d|inner|skip|down|up)"


def rules():
    """Dots between the parts of a name become slashes, and a CoordConv has its convolution inside."""
    found = [IGNORED]
    for depth in (1, 2, 3, 4):
        source = r"\.".join([BLOCKS] * depth)
        target = "/".join(f"\\{i}" for i in range(1, depth + 1))
        last = depth + 1
        found.append(Rule(rf"{source}\.(conv\w+)\.weight", rf"params/{target}/\{last}/kernel", "conv"))
        found += batch_norm(rf"{source}\.(bn\w+)", rf"{target}/\{last}")
    found += batch_norm(r"(stem_bn|features\d_bn)", r"\1")
    for suffix, name, layout in (("weight", "kernel", "conv"), ("bias", "bias", "same")):
        found.append(Rule(rf"(stem|coordinates\d)\.{suffix}", rf"params/\1/conv/{name}", layout))
        found.append(Rule(rf"(features\d|maps\d|from_\w+\d)\.{suffix}", rf"params/\1/{name}", layout))
    return found


SETTINGS = (3, 2, 1, 8)


def pictures(size):
    return np.random.default_rng(0).uniform(0, 1, (2, *size, 3)).astype(np.float32)


def test_training():
    """The maps are 6 x 10, halved once."""
    theirs = randomized(Reference(*SETTINGS))
    tolerances = {"outputs": 1e-5, "inputs": 2e-4, "params": 2e-4, "statistics": 1e-5}
    assert_equal_training(adaptive_wing.Net(*SETTINGS), theirs, pictures((24, 40)), rules(), **tolerances)


@pytest.mark.parametrize(("size", "depth"), [((32, 32), 2), ((24, 40), 1), ((56, 8), 1)])
def test_network(size, depth):
    """The smallest maps are 2 x 2, 3 x 5 and 7 x 1."""
    settings, images = (3, 2, depth, 8), pictures(size)
    ours, theirs = adaptive_wing.Net(*settings), randomized(Reference(*settings)).eval()
    variables = converted(theirs.state_dict(), rules(), template(ours, images))
    found = jax.jit(lambda v, x: ours.apply(v, x, train=False))(variables, images)
    assert len(found) == 2
    for got, want in zip(found, theirs(nchw(images)), strict=True):
        assert_near(got, numpy_nhwc(want), 1e-5)


def loss_torch(maps, targets):
    """The published form with two masks."""
    d, p = (targets - maps).abs(), 2.1 - targets
    a = 14 * (1 / (1 + 0.5**p)) * p * 0.5 ** (p - 1)
    c = 0.5 * a - 14 * torch.log(1 + 0.5**p)
    small = d < 0.5
    return torch.cat([14 * torch.log(1 + d[small] ** p[small]), a[~small] * d[~small] - c[~small]]).sum()


@pytest.mark.parametrize("size", [(16, 16), (13, 15)])
def test_loss_and_its_gradient(size):
    rng = np.random.default_rng(1)
    targets = rng.uniform(0, 1, (2, *size, 3)).astype(np.float32)
    maps = (targets + rng.normal(0, 0.4, targets.shape)).astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(lambda m: adaptive_wing.adaptive_wing(m, targets).sum()))(maps)
    leaf = nchw(maps)
    total = loss_torch(leaf, nchw(targets).detach())
    total.backward()
    np.testing.assert_allclose(value, total.detach(), rtol=1e-5)
    assert_near(gradient, numpy_nhwc(leaf.grad), 1e-5)
