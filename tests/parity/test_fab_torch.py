"""FAB's networks compared with PyTorch modules written from the layers of the authors' code: outputs and gradients."""

import flax.linen as flax_nn
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.alignment import fab
from facejax.interop.names import Rule, batch_norm
from tests.parity.networks import assert_equal_training, assert_near, nchw, numpy_nhwc, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional
TOLERANCES = {"outputs": 1e-4, "inputs": 1e-3, "params": 1e-3, "statistics": 1e-4}


def same(x, size, stride, value=0.0):
    """TensorFlow's SAME padding."""
    pads = []
    for n in (x.shape[3], x.shape[2]):
        total = max((-(-n // stride) - 1) * stride + size - n, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


class Same(nn.Conv2d):
    def forward(self, x):
        return super().forward(same(x, self.kernel_size[0], self.stride[0]))


def conv(inputs, outputs, size, stride=1, bias=False):
    return Same(inputs, outputs, size, stride, bias=bias)


class Predictor(nn.Module):
    def __init__(self, widths):
        super().__init__()
        pairs = zip((2, *widths), widths, strict=False)
        for i, ((a, b), size) in enumerate(zip(pairs, (5, 5, 3, 3, 3, 5), strict=True), 1):
            self.add_module(f"conv{i}", conv(a, b, size))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b, eps=1e-3, momentum=0.25))
        self.conv7 = conv(widths[-1], 3, 5, bias=True)

    def forward(self, x):
        size = x.shape[2:]
        for i in range(1, 7):
            x = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x)))
            x = F.max_pool2d(x, 2) if i <= 3 else x
            if i in (3, 4, 5):
                x = F.interpolate(x, [n * 2**i // 32 for n in size], mode="bilinear")
        x = self.conv7(x).tanh()
        return torch.cat([x[:, :2], (1 + x[:, 2:]) / 2], 1)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = conv(width, width, 3), conv(width, width, 3)
        self.norm1, self.norm2 = (nn.InstanceNorm2d(width, eps=1e-3, affine=True) for _ in range(2))

    def forward(self, x):
        return x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


class Deblur(nn.Module):
    """Inputs, features and hidden map in one tensor, the latter two at every second pixel."""

    def __init__(self, inputs, width, blocks):
        super().__init__()
        self.parts = [inputs, width // 2, width]
        self.conv1, self.conv2 = conv(inputs, width, 5), conv(width, width // 2, 3, 2)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.fusion, self.epsilon = nn.Conv2d(2 * width, width, 5, bias=False), nn.Parameter(torch.zeros(1))
        self.features, self.image = conv(width, width // 2, 3), conv(width, 3, 3)
        self.up = nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False)

    def forward(self, x):
        x, old, hidden = x.split(self.parts, 1)
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = torch.cat([x, old[:, :, ::2, ::2]], 1)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == len(self.blocks) // 2 - 1:
                old = hidden[:, :, ::2, ::2]
                alpha = 2 * (self.fusion(torch.cat([x, old], 1)).sigmoid() - 0.5).abs() + self.epsilon
                alpha = F.pad(alpha.clamp(0, 1) - 1, [2] * 4) + 1
                x = hidden = alpha * x + (1 - alpha) * old
        return [self.image(F.relu(self.up(x))), F.relu(self.features(x)), hidden]


class Activated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.shift, self.prelu = nn.Parameter(torch.zeros(width)), nn.PReLU(width)

    def forward(self, x):
        return self.prelu(x + self.shift[:, None, None])


class Stage(nn.Module):
    """Two bottlenecks: the first without activation before and after, the second with both."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.a0, self.b0, self.c0 = conv(inputs, width, 1, stride), conv(width, width, 3), conv(width, 4 * width, 1)
        self.shortcut0 = conv(inputs, 4 * width, 1, stride)
        self.a1, self.b1, self.c1 = conv(4 * width, width, 1), conv(width, width, 3), conv(width, 4 * width, 1)
        self.act_a0, self.act_b0, self.act_a1, self.act_b1 = (Activated(width) for _ in range(4))
        self.act_pre1, self.act_end = Activated(4 * width), Activated(4 * width)

    def forward(self, x):
        x = self.c0(self.act_b0(self.b0(self.act_a0(self.a0(x))))) + self.shortcut0(x)
        return self.act_end(x + self.c1(self.act_b1(self.b1(self.act_a1(self.a1(self.act_pre1(x)))))))


class Landmarks(nn.Module):
    def __init__(self, landmarks, stem, widths, hidden):
        super().__init__()
        self.conv, self.stem, self.pool, self.landmarks = (
            conv(3, stem, 7, 2),
            Activated(stem),
            Activated(stem),
            landmarks,
        )
        self.stages, inputs = nn.ModuleList(), stem
        for i, width in enumerate(widths):
            self.stages.append(Stage(inputs, width, 2 if i else 1))
            inputs = 4 * width
        self.fc1, self.fc2, self.fc3 = (
            nn.Linear(inputs, hidden),
            nn.Linear(hidden, hidden),
            nn.Linear(hidden, 2 * landmarks),
        )

    def forward(self, x):
        size = torch.tensor(x.shape[:1:-1])
        x = self.stem(self.conv(x))
        x = self.pool(F.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2))
        x = F.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)
        for stage in self.stages:
            x = stage(x)
        x = self.fc3(self.fc2(self.fc1(x.mean((2, 3)))))
        return (size - 1) * (0.5 + x.reshape(len(x), self.landmarks, 2))


class JoinedPredictor(flax_nn.Module):
    net: flax_nn.Module

    def __call__(self, x, *, train):
        return jnp.concatenate(self.net(x, train=train), -1)


class SplitDeblur(flax_nn.Module):
    net: flax_nn.Module
    inputs: int

    def __call__(self, x, *, train):
        features = self.inputs + self.net.width // 2
        half = x[:, ::2, ::2]
        return list(self.net(x[..., : self.inputs], half[..., self.inputs : features], half[..., features:]))


class Plain(flax_nn.Module):
    net: flax_nn.Module

    def __call__(self, x, *, train):
        return self.net(x)


def layer(source, target, layout="conv"):
    return [
        Rule(rf"{source}\.weight", f"params/net/{target}/kernel", layout),
        Rule(rf"{source}\.bias", f"params/net/{target}/bias"),
    ]


def activation(source, target):
    return [
        Rule(rf"{source}\.shift", f"params/net/{target}_bias"),
        Rule(rf"{source}\.prelu\.weight", f"params/net/{target}_prelu/slope"),
    ]


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (56, 8)])
def test_structure_predictor(size):
    """The innermost maps are 2 x 2, 3 x 5 and 7 x 1."""
    widths, images = (4, 5, 6, 5, 4, 3), np.random.default_rng(0).normal(size=(2, *size, 2)).astype(np.float32)
    theirs = randomized(Predictor(widths))
    for name, scale in theirs.named_parameters():
        if name.startswith("bn") and name.endswith("weight"):
            scale.requires_grad_(False).fill_(1)  # our norms have none
    rules = [*layer(r"(conv\d)", r"\1"), *batch_norm(r"(bn\d)", r"net/\1", scale=False)]
    ours = JoinedPredictor(fab.StructurePredictor(widths, momentum=0.75))
    assert_equal_training(ours, theirs.double(), images, rules, **TOLERANCES)


@pytest.mark.parametrize("size", [(12, 16), (10, 14), (18, 10)])
def test_deblurring_network(size):
    """Maps of half the size: 6 x 8, 5 x 7 and 9 x 5."""
    images = np.random.default_rng(0).normal(size=(2, *size, 5 + 2 + 4)).astype(np.float32)
    theirs = randomized(Deblur(5, 4, 4)).double()
    theirs.epsilon.data.fill_(0.05)
    rules = [
        *layer("(conv1|conv2|features|image)", r"\1"),
        Rule(r"fusion\.weight", "params/net/fusion/conv/kernel", "conv"),
        *layer(r"blocks\.(\d)\.(conv\d)", r"block\1/\2"),
        Rule(r"blocks\.(\d)\.(norm\d)\.weight", r"params/net/block\1/\2/scale"),
        Rule(r"blocks\.(\d)\.(norm\d)\.bias", r"params/net/block\1/\2/bias"),
        Rule("epsilon", "params/net/fusion/epsilon"),
        Rule(r"up\.weight", "params/net/up/kernel", "conv_transpose"),
    ]
    ours = SplitDeblur(fab.Deblur(4, 4), 5)
    assert_equal_training(ours, theirs, images, rules, **TOLERANCES)


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (45, 39)])
def test_landmark_network(size):
    images = np.random.default_rng(0).uniform(size=(2, *size, 3)).astype(np.float32)
    theirs = randomized(Landmarks(5, 4, (2, 3), 6)).double()
    rules = [
        *layer("conv", "conv"), *activation("(stem|pool)", r"\1"),
        *layer(r"stages\.(\d)\.([abc]|shortcut)(\d)", r"stage\1_\3_\2"),
        *activation(r"stages\.(\d)\.act_(a|b|pre)(\d)", r"stage\1_\3_\2"),
        *activation(r"stages\.(\d)\.act_end", r"stage\1"),
        *layer(r"(fc\d)", r"\1", "linear"),
    ]  # fmt: skip
    assert_equal_training(Plain(fab.LandmarkNet(5, 4, (2, 3), 6)), theirs, images, rules, **TOLERANCES)


@pytest.mark.parametrize("size", [(8, 10), (9, 11), (7, 13)])
def test_extrapolation(size):
    """Against grid_sample, with flows that leave the frame."""
    rng = np.random.default_rng(0)
    maps, flow = rng.uniform(size=(2, *size, 2)), rng.uniform(-0.6, 0.6, (2, *size, 2))
    mask = rng.uniform(size=(2, *size, 1))
    maps, flow, mask = (x.astype(np.float32) for x in (maps, flow, mask))
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    grid, move, tensor = torch.stack([columns, rows], -1), torch.tensor(flow), nchw(maps)
    options = {"mode": "bilinear", "padding_mode": "border", "align_corners": True}
    older = F.grid_sample(tensor[:, :1], grid + 2 * move, **options)
    newer = F.grid_sample(tensor[:, 1:], grid + move, **options)
    weight = nchw(mask)
    assert_near(fab.extrapolate(maps, flow, mask), numpy_nhwc(weight * older + (1 - weight) * newer), 1e-5)
