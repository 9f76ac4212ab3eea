"""2DASL's network compared with a PyTorch module of the authors' layers, also with weights from a file like theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.interop import torchvision
from facejax.reconstruction import asl2d
from tests.parity.networks import assert_equal_training, assert_near, nchw, randomized, template

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional

DEPTHS, WIDTHS, OUTPUTS = (1, 1, 2, 1), (4, 4, 6, 8), 5


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            conv = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Reference(nn.Module):
    """Four channels, strides 1, 2, 2, 1, a 7 x 7 pooling without padding."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, WIDTHS[0], 7, 2, 3, bias=False), nn.BatchNorm2d(WIDTHS[0])
        inputs = WIDTHS[0]
        for i, (depth, width, stride) in enumerate(zip(DEPTHS, WIDTHS, (1, 2, 2, 1), strict=True), 1):
            blocks = []
            for j in range(depth):
                blocks.append(Bottleneck(inputs, width, 1 if j else stride))
                inputs = 4 * width
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AvgPool2d(7, 2), nn.Linear(inputs, OUTPUTS)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        features = self.avgpool(x).flatten(1)
        return [features, self.fc(features)]  # the order of our outputs' names


@pytest.mark.parametrize("size", [120, 101])
def test_network(size):
    """The last map has 8 and 7 places a side; in double precision, since few values per channel amplify rounding."""
    ours, theirs = asl2d.Net(OUTPUTS, DEPTHS, WIDTHS, jnp.float64), randomized(Reference()).double()
    images = np.random.default_rng(size).normal(size=(2, size, size, 4))
    with jax.enable_x64(True):
        assert_equal_training(
            ours, theirs, images, torchvision.resnet_rules(), outputs=1e-5, inputs=1e-4, params=1e-5, statistics=1e-6
        )


def test_a_published_file(tmp_path):
    ours, theirs = asl2d.Net(OUTPUTS, DEPTHS, WIDTHS), randomized(Reference()).eval()
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"epoch": 3, "res_state_dict": state}, tmp_path / "stage2.pth.tar")
    images = np.random.default_rng(0).normal(size=(1, 114, 114, 4)).astype(np.float32)
    variables = torchvision.load(tmp_path / "stage2.pth.tar", template(ours, images))
    with torch.no_grad():
        _, wanted = theirs(nchw(images))
    found = jax.jit(lambda v, x: ours.apply(v, x, train=False)["parameters"])(variables, images)
    assert_near(found, wanted.numpy(), 1e-4)
