"""ResNet compared with a PyTorch module from the paper's tables, with equal random weights.

The module uses torchvision's names, which also tests the mapping of its published weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones import resnet
from facejax.interop import torchvision
from tests.parity.networks import assert_equal_training, assert_near, nchw, numpy_nhwc, randomized, template

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional


class Block(nn.Module):
    """Convolutions of (outputs, kernel, stride), all 3x3 dilated, with an identity or strided 1x1 shortcut."""

    def __init__(self, inputs, plan, dilation):
        super().__init__()
        self.depth, a, whole = len(plan), inputs, 1
        for i, (b, kernel, stride) in enumerate(plan, 1):
            reach = dilation if kernel == 3 else 1
            conv = nn.Conv2d(a, b, kernel, stride, reach * (kernel // 2), reach, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
            a, whole = b, whole * stride
        self.downsample = None
        if (a, whole) != (inputs, 1):
            self.downsample = nn.Sequential(nn.Conv2d(inputs, a, 1, whole, bias=False), nn.BatchNorm2d(a))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(F.relu(y) if i > 1 else y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Reference(nn.Module):
    """Table 1 of the paper; `kind` selects the blocks; the last stage can use dilation 2 instead of stride 2."""

    def __init__(self, kind, depths, widths, classes, dilated):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False), nn.BatchNorm2d(widths[0])
        a = widths[0]
        for i, (depth, c) in enumerate(zip(depths, widths, strict=True), 1):
            blocks = []
            for j in range(depth):
                s = 2 if j == 0 and i > 1 and not (dilated and i == 4) else 1
                plan = {
                    "basic": [(c, 3, s), (c, 3, 1)],
                    "v1": [(c, 1, s), (c, 3, 1), (4 * c, 1, 1)],
                    "v1.5": [(c, 1, 1), (c, 3, s), (4 * c, 1, 1)],
                }[kind]
                blocks.append(Block(a, plan, 2 if dilated and i == 4 else 1))
                a = plan[-1][0]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.fc = nn.Linear(a, classes)

    def stages(self, x):
        maps = [F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps[1:]

    def forward(self, x):
        return self.fc(self.stages(x)[-1].mean((2, 3)))


@pytest.mark.parametrize("output_stride", [32, 16])
@pytest.mark.parametrize("kind", ["basic", "v1.5", "v1"])
def test_resnet(kind, output_stride, tmp_path):
    """Compares evaluation scores and maps, with weights from a file; and a training step with all gradients.

    Uses double precision: with few values per channel, batch statistics and ReLU signs are sensitive to rounding.
    """
    depths, widths, classes = (1, 1, 1, 2), (8, 12, 16, 24), 5
    ours = resnet.ResNet(
        depths,
        kind != "basic",
        classes,
        widths,
        output_stride=output_stride,
        stride_in_1x1=kind == "v1",
        dtype=jnp.float64,
    )
    theirs = randomized(Reference(kind, depths, widths, classes, output_stride == 16)).double()
    images = np.random.default_rng(0).normal(size=(2, 50, 79, 3))  # every stride of 2 has an odd and an even side
    with jax.enable_x64(True):
        torch.save(theirs.state_dict(), tmp_path / "resnet.pt")
        shapes = template(ours, images)
        variables = torchvision.load(tmp_path / "resnet.pt", shapes)
        headless = {**shapes, "params": {k: v for k, v in shapes["params"].items() if k != "fc"}}
        trunk = torchvision.load(tmp_path / "resnet.pt", headless)

        @jax.jit
        def evaluate(variables, trunk):
            scores = ours.apply(variables, images, train=False)
            return scores, ours.apply(trunk, images, train=False, features=True)

        scores, maps = evaluate(variables, trunk)
        theirs.eval()
        assert_near(scores, numpy_nhwc(theirs(nchw(images))), 1e-6)
        for i, want in enumerate(theirs.stages(nchw(images)), 2):
            assert_near(maps[f"c{i}"], numpy_nhwc(want), 1e-6, f"c{i}")
        assert_equal_training(
            ours, theirs, images, torchvision.resnet_rules(), outputs=1e-6, inputs=1e-5, params=1e-6, statistics=1e-6
        )
