"""LAB's networks compared with PyTorch modules written from the layers that its page names: outputs and gradients."""

import flax.linen as flax_nn
import numpy as np
import pytest

from facejax.alignment import lab
from facejax.interop.names import Rule, batch_norm
from tests.parity.networks import assert_equal_training, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional


class Bottleneck(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        a, b, c = inputs, outputs // 2, outputs
        self.bn1, self.conv1 = nn.BatchNorm2d(a), nn.Conv2d(a, b, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(b), nn.Conv2d(b, b, 3, padding=1)
        self.bn3, self.conv3 = nn.BatchNorm2d(b), nn.Conv2d(b, c, 1)
        self.shortcut = nn.Conv2d(a, c, 1) if a != c else nn.Identity()

    def forward(self, x):
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return self.conv3(F.relu(self.bn3(y))) + self.shortcut(x)


class Hourglass(nn.Module):
    def __init__(self, depth, width):
        super().__init__()
        self.level, self.down, self.up = (Bottleneck(width, width) for _ in range(3))
        if depth > 1:
            self.inner = Hourglass(depth - 1, width)
        else:
            self.middle = Bottleneck(width, width)

    def forward(self, x):
        low = self.down(F.max_pool2d(x, 2))
        low = self.inner(low) if hasattr(self, "inner") else self.middle(low)
        return self.level(x) + F.interpolate(self.up(low), scale_factor=2)


def unit(inputs, outputs, size, stride=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Messages(nn.Module):
    """Edges of the port's graph, written out once more: (sender, receiver), boundaries from 1."""

    EDGES = (
        (1, 2), (2, 3), (1, 4), (3, 4), (2, 5), (4, 5), (1, 6), (5, 6), (1, 7), (6, 7), (1, 8), (7, 8), (7, 9), (8, 9),
        (7, 10), (9, 10), (1, 11), (7, 11), (7, 12), (11, 12), (7, 13), (12, 13),
    )  # fmt: skip

    def __init__(self, channels, width, kernel):
        super().__init__()
        self.width, half = width, kernel // 2
        for name in ("up", "down"):
            self.add_module(f"{name}_own", nn.Conv2d(channels, 13 * width, kernel, padding=half, bias=False))
            self.add_module(f"{name}_join", nn.Conv2d(13 * width, channels, 1, bias=False))
            for i in range(13):
                self.add_module(f"{name}_{i}", nn.Sequential(nn.BatchNorm2d(width), nn.PReLU(width)))
                k = len(self.receivers(name, i + 1))
                if k:
                    self.add_module(f"{name}_{i}_sent", nn.Sequential(
                        nn.Conv2d(width, k * width // 2, kernel, padding=half, bias=False),
                        nn.BatchNorm2d(k * width // 2), nn.PReLU(k * width // 2),
                        nn.Conv2d(k * width // 2, k * width, kernel, padding=half, groups=k, bias=False),
                    ))  # fmt: skip

    def receivers(self, name, sender):
        edges = self.EDGES if name == "up" else [(b, a) for a, b in self.EDGES]
        return [b for a, b in edges if a == sender]

    def direction(self, x, name, order):
        own, found, sent = self.get_submodule(f"{name}_own")(x).split(self.width, 1), {}, {}
        for i in order:
            total = own[i - 1] + sum(message for (_, receiver), message in sent.items() if receiver == i)
            found[i], to = self.get_submodule(f"{name}_{i - 1}")(total), self.receivers(name, i)
            if to:
                messages = self.get_submodule(f"{name}_{i - 1}_sent")(found[i]).split(self.width, 1)
                sent |= {(i, receiver): message for receiver, message in zip(to, messages, strict=True)}
        return self.get_submodule(f"{name}_join")(torch.cat([found[i] for i in range(1, 14)], 1))

    def forward(self, x):
        return self.direction(x, "up", range(1, 14)) + self.direction(x, "down", range(13, 0, -1))


class Estimator(nn.Module):
    def __init__(self, stacks, width, outputs, depth, stride, messages, kernel):
        super().__init__()
        self.stem_conv, self.pool = unit(3, width // 4, 7, 2), stride // 2
        self.stem1, self.stem2 = Bottleneck(width // 4, width // 2), Bottleneck(width // 2, width // 2)
        self.stem3 = Bottleneck(width // 2, width)
        self.stacks = stacks
        for i in range(stacks):
            self.add_module(f"hourglass{i}", Hourglass(depth, width))
            self.add_module(f"block{i}", Bottleneck(width, width))
            self.add_module(f"features{i}", unit(width, width, 1))
            self.add_module(f"messages{i}", Messages(width, messages, kernel) if messages else nn.Identity())
            self.add_module(f"head{i}", nn.Conv2d(width, outputs, 1))

    def forward(self, x):
        x = F.max_pool2d(self.stem1(self.stem_conv(x)), self.pool)
        x, last, found = self.stem3(self.stem2(x)), 0, []
        for i in range(self.stacks):
            x = self.get_submodule(f"block{i}")(self.get_submodule(f"hourglass{i}")(x))
            x = self.get_submodule(f"messages{i}")(self.get_submodule(f"features{i}")(x))
            found.append(self.get_submodule(f"head{i}")(x))
            x, last = x + last, x
        return found


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class Fusion(nn.Module):
    def __init__(self, channels, maps, depth):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(channels + maps), nn.Conv2d(channels + maps, channels, 1)
        self.hourglass = Hourglass(depth, channels)

    def forward(self, x, maps):
        maps = F.interpolate(maps, x.shape[2:], mode="bilinear")
        mask = self.hourglass(self.conv(F.relu(self.bn(torch.cat([x, maps], 1))))).sigmoid()
        return torch.cat([x, x * mask], 1)


class Regressor(nn.Module):
    """Image and heatmaps (here of half its size, cut out of further channels) to coordinates, as [N, L, 2]."""

    def __init__(self, landmarks, maps, widths, blocks, hidden, depth, cells):
        super().__init__()
        self.stem, self.landmarks, self.stages = unit(3 + maps, widths[0], 7, 2), landmarks, len(widths)
        inputs = widths[0]
        for stage, width in enumerate(widths):
            if stage:
                self.add_module(f"fusion{stage}", Fusion(inputs, maps, depth))
                inputs *= 2
            layers = [Residual(width if b else inputs, width, 2 if stage and not b else 1) for b in range(blocks)]
            self.add_module(f"stage{stage}", nn.Sequential(*layers))
            inputs = width
        self.fc1, self.fc1_bn = nn.Linear(inputs * cells, hidden, bias=False), nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, 2 * landmarks)

    def forward(self, x):
        images, maps = x[:, :3], x[:, 3:, ::2, ::2]
        size = torch.tensor(images.shape[:1:-1])
        large = F.interpolate(maps, images.shape[2:], mode="bilinear")
        x = self.stem(torch.cat([images, large * images.mean(1, keepdim=True)], 1))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(self.stages):
            x = self.get_submodule(f"fusion{stage}")(x, maps) if stage else x
            x = self.get_submodule(f"stage{stage}")(x)
        x = self.fc2(F.relu(self.fc1_bn(self.fc1(x.flatten(1))))).reshape(len(x), self.landmarks, 2)
        return (size - 1) / 2 + size * x


class Whole(flax_nn.Module):
    """Our regressor with image and heatmaps in one input."""

    regressor: flax_nn.Module

    def __call__(self, x, *, train):
        return self.regressor(x[..., :3], x[:, ::2, ::2, 3:], train=train)


def layer(source, target):
    return [
        Rule(rf"{source}\.weight", f"params/{target}/kernel", "conv"),
        Rule(rf"{source}\.bias", f"params/{target}/bias"),
    ]


def pair(source, target):
    return [
        Rule(rf"{source}\.0\.weight", f"params/{target}/conv/kernel", "conv"),
        *batch_norm(rf"{source}\.1", f"{target}/bn"),
    ]


def bottlenecks(source, target, group):
    """Of blocks whose source has `group` groups."""
    number = rf"\{group + 1}"
    return [
        *layer(rf"{source}\.(conv\d|shortcut)", f"{target}/{number}"),
        *batch_norm(rf"{source}\.(bn\d)", f"{target}/{number}"),
    ]


def hourglasses(source, target, group, depth):
    """Of hourglasses whose source has `group` groups."""
    found = []
    for level in range(depth):
        place = rf"{source}" + r"\.inner" * level + r"\.(level|down|up|middle)"
        found += bottlenecks(place, target + "/inner" * level + rf"/\{group + 1}", group + 1)
    return found


ESTIMATOR = [
    *pair("stem_conv", "stem_conv"),
    *bottlenecks(r"(stem\d|block\d)", r"\1", 1),
    *hourglasses(r"(hourglass\d)", r"\1", 1, 2),
    *pair(r"(features\d)", r"\1"),
    *layer(r"(head\d)", r"\1"),
    Rule(r"(messages\d)\.(\w+)_(own|join)\.weight", r"params/\1/\2_\3/kernel", "conv"),
    Rule(r"(messages\d)\.(\w+)_sent\.0\.weight", r"params/\1/\2_narrow/kernel", "conv"),
    *batch_norm(r"(messages\d)\.(\w+_sent)\.1", r"\1/\2_bn"),
    Rule(r"(messages\d)\.(\w+_sent)\.2\.weight", r"params/\1/\2_prelu/slope"),
    Rule(r"(messages\d)\.(\w+)_sent\.3\.weight", r"params/\1/\2_widen/kernel", "conv"),
    *batch_norm(r"(messages\d)\.([a-z]+_\d+)\.0", r"\1/\2_bn"),
    Rule(r"(messages\d)\.([a-z]+_\d+)\.1\.weight", r"params/\1/\2_prelu/slope"),
]
REGRESSOR = [
    *pair("stem", "regressor/stem"),
    *batch_norm(r"(fusion\d)\.bn", r"regressor/\1/bn"),
    *layer(r"(fusion\d)\.conv", r"regressor/\1/conv"),
    *hourglasses(r"(fusion\d)\.hourglass", r"regressor/\1/hourglass", 1, 1),
    Rule(r"(stage\d)\.(\d)\.(conv\d)\.weight", r"params/regressor/\1_\2/\3/kernel", "conv"),
    *batch_norm(r"(stage\d)\.(\d)\.(bn\d)", r"regressor/\1_\2/\3"),
    Rule(r"(stage\d)\.(\d)\.shortcut\.0\.weight", r"params/regressor/\1_\2/shortcut_conv/kernel", "conv"),
    *batch_norm(r"(stage\d)\.(\d)\.shortcut\.1", r"regressor/\1_\2/shortcut_bn"),
    Rule(r"fc1\.weight", "params/regressor/fc1/kernel", "flatten", 6),
    *batch_norm("fc1_bn", "regressor/fc1_bn"),
    Rule(r"fc2\.weight", "params/regressor/fc2/kernel", "linear"),
    Rule(r"fc2\.bias", "params/regressor/fc2/bias"),
]
TOLERANCES = {"outputs": 1e-4, "inputs": 1e-3, "params": 1e-3, "statistics": 1e-4}


@pytest.mark.parametrize(
    ("size", "stacks", "stride", "messages"), [((16, 32), 3, 2, 0), ((48, 80), 2, 4, 0), ((24, 40), 1, 2, 2)]
)
def test_estimator(size, stacks, stride, messages):
    """The innermost maps are 2 x 4, 3 x 5 and 3 x 5."""
    images = np.random.default_rng(0).normal(size=(3, *size, 3))
    theirs = randomized(Estimator(stacks, 8, 3, 2, stride, messages, 3)).double()
    ours = lab.BoundaryEstimator(stacks, 8, 3, 2, stride, messages, 3)
    assert_equal_training(ours, theirs, images.astype(np.float32), ESTIMATOR, **TOLERANCES)


@pytest.mark.parametrize("size", [(64, 64), (61, 64), (63, 61)])
def test_regressor(size):
    images = np.random.default_rng(0).normal(size=(3, *size, 5))
    theirs = randomized(Regressor(4, 2, (4, 4, 6), 1, 8, 1, 16)).double()
    ours = Whole(lab.LandmarkRegressor(4, (4, 4, 6), 1, 8, 1))
    assert_equal_training(ours, theirs, images.astype(np.float32), REGRESSOR, **TOLERANCES)
