"""MCL's networks compared with PyTorch networks written from the authors' layers: outputs, gradients, averages."""

import numpy as np
import pytest

from facejax.alignment import mcl
from facejax.interop.names import Rule, batch_norm
from tests.parity.networks import assert_equal_training, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional

LANDMARKS, WIDTHS, FEATURES = 5, (3, 4, 4), 6


class Reference(nn.Module):
    def __init__(self, size, pooled):
        super().__init__()
        self.size, self.pooled, inputs = size, pooled, 1
        for i, width in enumerate(WIDTHS, 1):
            for j in (1, 2):
                self.block(f"{i}{j}", inputs, width)
                inputs = width
            size = -(-size // 2)  # Caffe rounds up
        if pooled:
            self.block("41", inputs, FEATURES)
        else:
            self.fc5 = nn.Linear(inputs * size * size, FEATURES)
        self.shape = nn.Linear(FEATURES, 2 * LANDMARKS)

    def block(self, name, inputs, width):
        self.add_module(f"conv{name}", nn.Conv2d(inputs, width, 3, padding=1))
        self.add_module(f"norm{name}", nn.BatchNorm2d(width))

    def run(self, name, x):
        return F.relu(self.get_submodule(f"norm{name}")(self.get_submodule(f"conv{name}")(x)))

    def forward(self, x):
        for i in range(1, len(WIDTHS) + 1):
            x = self.run(f"{i}2", self.run(f"{i}1", x))
            if i < len(WIDTHS) or not self.pooled:
                x = F.max_pool2d(x, 2, ceil_mode=True)
        x = self.run("41", x).mean((2, 3)) if self.pooled else self.fc5(x.flatten(1))
        points = self.size / 10 * self.shape(x).reshape(len(x), LANDMARKS, 2) + (self.size - 1) / 2
        return [x, points / 10]  # the sine of the comparison needs small numbers


class Scaled(mcl.Net):
    def __call__(self, images, *, train):
        out = super().__call__(images, train=train)
        return [out["features"], out["points"] / 10]


RULES = [
    Rule(r"conv(\d\d)\.weight", r"params/conv\1/conv/kernel", "conv"),
    Rule(r"conv(\d\d)\.bias", r"params/conv\1/conv/bias"),
    *batch_norm(r"norm(\d\d)", r"conv\1/bn"),
    Rule(r"fc5\.weight", "params/fc5/kernel", "flatten", WIDTHS[-1]),
    Rule(r"fc5\.bias", "params/fc5/bias"),
    Rule(r"shape\.weight", "params/shape/kernel", "linear"),
    Rule(r"shape\.bias", "params/shape/bias"),
]


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("size", [20, 13, 25])
def test_training(size, pooled):
    images = np.random.default_rng(size).uniform(-1, 1, (4, size, size, 1)).astype(np.float32)
    theirs = randomized(Reference(size, pooled)).double()
    ours = Scaled(LANDMARKS, WIDTHS, FEATURES, pooled)
    assert_equal_training(ours, theirs, images, RULES, outputs=1e-5, inputs=1e-4, params=1e-4, statistics=1e-5)
