"""Wing loss compared with PyTorch: a network of the authors' layers, and the loss; gradients too."""

import jax
import numpy as np
import pytest

from facejax.alignment import wing
from facejax.interop.names import Rule
from tests.parity.networks import assert_equal_training, assert_near, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional


class Reference(nn.Module):
    def __init__(self, landmarks, widths, dense, cells):
        super().__init__()
        inputs = 3
        self.stages = len(widths)
        for i, width in enumerate(widths, 1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, width, 3, padding=1))
            inputs = width
        self.dense, self.points = nn.Linear(inputs * cells, dense), nn.Linear(dense, 2 * landmarks)

    def forward(self, x):
        for i in range(1, self.stages + 1):
            x = F.max_pool2d(F.relu(self.get_submodule(f"conv{i}")(x)), 2)
        x = self.points(F.relu(self.dense(x.permute(0, 2, 3, 1).flatten(1))))
        return x.view(len(x), 2, -1).transpose(1, 2)


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (28, 4)])
def test_network(size):
    """The last maps are 4 x 4, 3 x 5 and 7 x 1."""
    cells = size[0] * size[1] // 16
    images = np.random.default_rng(0).uniform(0, 1, (2, *size, 3)).astype(np.float32)
    rules = [
        Rule(r"(conv\d)\.weight", r"params/\1/kernel", "conv"),
        Rule(r"(dense|points)\.weight", r"params/\1/kernel", "linear"),
        Rule(r"(conv\d|dense|points)\.bias", r"params/\1/bias"),
    ]
    theirs = randomized(Reference(5, (4, 6), 8, cells))
    tolerances = {"outputs": 1e-5, "inputs": 1e-5, "params": 1e-5, "statistics": 1e-5}
    assert_equal_training(wing.CNN(5, (4, 6), 8), theirs, images, rules, **tolerances)


@pytest.mark.parametrize("shape", [(4, 68, 2), (3, 19, 2)])
def test_loss_and_its_gradient(shape):
    errors = np.random.default_rng(1).normal(0, 10, shape).astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: wing.wing(x).sum()))(errors)
    leaf = torch.tensor(errors, requires_grad=True)
    size = leaf.abs()
    constant = 10 - 10 * np.log(1 + 10 / 2)
    total = torch.cat([10 * torch.log(1 + size[size < 10] / 2), size[size >= 10] - constant]).sum()
    total.backward()
    np.testing.assert_allclose(value, total.detach(), rtol=1e-5)
    assert_near(gradient, leaf.grad.numpy(), 1e-5)
