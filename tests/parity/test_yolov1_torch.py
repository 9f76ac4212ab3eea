"""YOLO v1's layers compared with PyTorch modules built here from the layer lists."""

import numpy as np
import pytest

from facejax.detection import yolov1
from facejax.interop.names import IGNORED, Rule, batch_norm
from tests.parity.networks import assert_equal_training, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn = torch.nn
GRID, CLASSES, BOXES = 3, 4, 2
LAYERS = ((6, 7, 2), yolov1.POOL, (4, 1, 1), (8, 3, 1), (5, 3, 2))


class Reference(nn.Module):
    """Convolutions with names conv1, bn1, and so on; the dense layers see channels, rows, columns in order."""

    def __init__(self, side, norm, bottleneck):
        super().__init__()
        self.layers, inputs = [], 3
        for features, kernel, stride in LAYERS:
            if not features:
                self.layers.append(nn.MaxPool2d(kernel, stride))
                side //= 2
                continue
            i = 1 + sum(isinstance(layer, nn.Conv2d) for layer in self.layers)
            conv = nn.Conv2d(inputs, features, kernel, stride, kernel // 2, bias=not norm)
            setattr(self, f"conv{i}", conv)
            self.layers.append(conv)
            if norm:
                setattr(self, f"bn{i}", nn.BatchNorm2d(features))
                self.layers.append(getattr(self, f"bn{i}"))
            self.layers.append(nn.LeakyReLU(0.1))
            inputs, side = features, -(-side // stride)
        flat = inputs * side**2
        if bottleneck:
            self.bottleneck = nn.Linear(flat, bottleneck)
        self.hidden = nn.Linear(bottleneck or flat, 16)
        self.output = nn.Linear(16, GRID**2 * (CLASSES + 5 * BOXES))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        x = x.flatten(1)
        if hasattr(self, "bottleneck"):
            x = self.bottleneck(x)
        x = self.output(nn.functional.leaky_relu(self.hidden(x), 0.1))
        classes, confidence, boxes = x.split([GRID**2 * n for n in (CLASSES, BOXES, 4 * BOXES)], 1)
        maps = [part.reshape(len(x), GRID, GRID, -1).movedim(-1, 1) for part in (classes, confidence)]
        return [boxes.reshape(len(x), GRID, GRID, BOXES, 4), *maps]


def rules(norm, bottleneck):
    conv = r"params/conv\1/conv/kernel" if norm else r"params/conv\1/kernel"
    first = "bottleneck" if bottleneck else "hidden"
    return [
        IGNORED,
        Rule(r"conv(\d)\.weight", conv, "conv"),
        Rule(r"(conv\d)\.bias", r"params/\1/bias"),
        *batch_norm(r"bn(\d)", r"conv\1/bn"),
        Rule(rf"{first}\.weight", f"params/{first}/kernel", "flatten", LAYERS[-1][0]),
        Rule(r"(\w+)\.weight", r"params/\1/kernel", "linear"),
        Rule(r"(\w+)\.bias", r"params/\1/bias"),
    ]


@pytest.mark.parametrize(("side", "norm", "bottleneck"), [(40, False, 0), (37, True, 6), (21, False, 6)])
def test_network_in_training(side, norm, bottleneck):
    images = np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)
    ours = yolov1.Net(LAYERS, 16, bottleneck, GRID, BOXES, CLASSES, dropout=0.0, norm=norm)
    theirs = randomized(Reference(side, norm, bottleneck))
    assert_equal_training(
        ours, theirs, images, rules(norm, bottleneck), outputs=2e-5, inputs=1e-4, params=1e-4, statistics=1e-5
    )
