"""Adaptive Wing compared with PyTorch: a network written from the authors' layers, and the loss; gradients too."""

import jax
import numpy as np
import pytest

from facejax.alignment import adaptive_wing
from facejax.interop.names import IGNORED, Rule, batch_norm
from tests.parity.networks import assert_equal_training, assert_near, converted, nchw, numpy_nhwc, randomized, template

torch = pytest.importorskip("torch", reason="needs the parity extra")
from benchmarks import gpu_torch, torch_adaptive_wing

pytestmark = pytest.mark.parity

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
    theirs = randomized(torch_adaptive_wing.Net(*SETTINGS))
    tolerances = {"outputs": 1e-5, "inputs": 2e-4, "params": 2e-4, "statistics": 1e-5}
    assert_equal_training(adaptive_wing.Net(*SETTINGS), theirs, pictures((24, 40)), rules(), **tolerances)


@pytest.mark.parametrize(("size", "depth"), [((32, 32), 2), ((24, 40), 1), ((56, 8), 1)])
def test_network(size, depth):
    """The smallest maps are 2 x 2, 3 x 5 and 7 x 1."""
    settings, images = (3, 2, depth, 8), pictures(size)
    ours, theirs = adaptive_wing.Net(*settings), randomized(torch_adaptive_wing.Net(*settings)).eval()
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
    assert_near(gpu_torch.wing(leaf, nchw(targets)).sum().detach(), total.detach(), 1e-5)
