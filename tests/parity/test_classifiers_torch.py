"""MobileNet, Inception and VGG-16 compared with PyTorch modules from the papers' tables, with equal random weights.

The modules use torchvision's names, which also tests the mapping of its published weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones import inception, mobilenet, vgg
from facejax.interop import torchvision
from facejax.interop.names import Rule, batch_norm
from tests.parity.networks import assert_equal_training, assert_near, converted, nchw, numpy_nhwc, randomized, template

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional


def conv_norm(a, b, kernel, stride=1, padding=0, groups=1, activation=nn.ReLU6, eps=1e-5):
    layers = [nn.Conv2d(a, b, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(b, eps=eps)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class MobileNetV1(nn.Module):
    """Table 1 of V1 at width 0.25."""

    def __init__(self, classes):
        super().__init__()
        layers, a = [conv_norm(3, 8, 3, 2, 1)], 8
        rows = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2)] + 5 * [(128, 1)] + [(256, 2), (256, 1)]
        for b, stride in rows:
            layers += [conv_norm(a, a, 3, stride, 1, a), conv_norm(a, b, 1)]
            a = b
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(256, classes)

    def forward(self, x):
        return self.fc(self.layers(x).mean((2, 3)))


def v1_rules():
    names = ["stem", *(f"{kind}{i}" for i in range(1, 14) for kind in ("depthwise", "pointwise"))]
    rules = [Rule(r"fc\.weight", "params/fc/kernel", "linear"), Rule(r"fc\.bias", "params/fc/bias")]
    for i, name in enumerate(names):
        rules.append(Rule(rf"layers\.{i}\.0\.weight", f"params/{name}/conv/kernel", "conv"))
        rules.extend(batch_norm(rf"layers\.{i}\.1", f"{name}/bn"))
    return rules


class Bottleneck(nn.Module):
    """Table 1 of V2."""

    def __init__(self, a, b, stride, expansion):
        super().__init__()
        wide = a * expansion
        layers = [conv_norm(a, wide, 1)] if expansion > 1 else []
        linear = conv_norm(wide, b, 1, activation=None)
        self.conv = nn.Sequential(*layers, conv_norm(wide, wide, 3, stride, 1, wide), *linear)
        self.add = stride == 1 and a == b

    def forward(self, x):
        return x + self.conv(x) if self.add else self.conv(x)


class MobileNetV2(nn.Module):
    """Table 2 of V2 at width 0.5; channels are rounded to multiples of eight."""

    def __init__(self, classes):
        super().__init__()
        layers, a = [conv_norm(3, 16, 3, 2, 1)], 16
        for t, b, n, s in (
            (1, 8, 1, 1), (6, 16, 2, 2), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1),
        ):  # fmt: skip
            for i in range(n):
                layers.append(Bottleneck(a, b, s if i == 0 else 1, t))
                a = b
        self.features = nn.Sequential(*layers, conv_norm(160, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(1280, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class Basic(nn.Module):
    """Convolution, batch norm, ReLU of the Inception networks; nonzero padding keeps the size."""

    def __init__(self, a, b, kernel, stride=1, same=True):
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(k // 2 for k in kernel) if same else 0
        self.conv, self.bn = nn.Conv2d(a, b, kernel, stride, padding, bias=False), nn.BatchNorm2d(b, eps=1e-3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Biased(nn.Module):
    """Convolution with bias, ReLU; same signature as `Basic`."""

    def __init__(self, a, b, kernel, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(a, b, kernel, stride, kernel // 2)

    def forward(self, x):
        return F.relu(self.conv(x))


class V1Module(nn.Module):
    """Fig. 2b of GoogLeNet."""

    def __init__(self, block, a, ones, reduce3, threes, reduce5, fives, pool, kernel):
        super().__init__()
        self.branch1 = block(a, ones, 1)
        self.branch2 = nn.Sequential(block(a, reduce3, 1), block(reduce3, threes, 3))
        self.branch3 = nn.Sequential(block(a, reduce5, 1), block(reduce5, fives, kernel))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), block(a, pool, 1))

    def forward(self, x):
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


V1_ROWS = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64), "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128), "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


class Side(nn.Module):
    """A side classifier: the paper's 5 x 5 averages, in Caffe's ceil mode, or torchvision's 4 x 4 means of any map."""

    def __init__(self, block, a, classes, paper):
        super().__init__()
        self.paper = paper
        self.conv, self.fc1, self.fc2 = block(a, 32, 1), nn.Linear(32 * 16, 256), nn.Linear(256, classes)

    def forward(self, x):
        x = F.avg_pool2d(x, 5, 3, ceil_mode=True) if self.paper else F.adaptive_avg_pool2d(x, (4, 4))
        return self.fc2(F.relu(self.fc1(self.conv(x).flatten(1))))


class GoogLeNet(nn.Module):
    """Table 1 of GoogLeNet at width 0.25 without dropout: the paper's, or torchvision's with batch norm."""

    def __init__(self, classes, paper):
        super().__init__()
        block, kernel, self.window = (Biased, 5, 3) if paper else (Basic, 3, 2)
        self.normalise = nn.LocalResponseNorm(5, 1e-4) if paper else nn.Identity()
        self.conv1, self.conv2, self.conv3 = block(3, 16, 7, 2), block(16, 16, 1), block(16, 48, 3)
        a = 48
        for name, row in V1_ROWS.items():
            row = [c // 4 for c in row]
            setattr(self, f"inception{name}", V1Module(block, a, *row, kernel))
            a = row[0] + row[2] + row[4] + row[5]
        self.aux1, self.aux2 = Side(block, 128, classes, paper), Side(block, 132, classes, paper)
        self.fc = nn.Linear(256, classes)

    def main(self, x):
        return self(x, sides=False)[0]

    def forward(self, x, sides=True):
        x = self.normalise(F.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True))
        x = F.max_pool2d(self.normalise(self.conv3(self.conv2(x))), 3, 2, ceil_mode=True)
        found = []
        for name in V1_ROWS:
            if name in ("4a", "5a"):
                x = F.max_pool2d(x, 3 if name == "4a" else self.window, 2, ceil_mode=True)
            x = getattr(self, f"inception{name}")(x)
            if sides and name in ("4a", "4d"):
                found.append(getattr(self, "aux1" if name == "4a" else "aux2")(x))
        return [self.fc(x.mean((2, 3))), *found]


def googlenet_paper_rules():
    """torchvision's names, with a convolution's bias in place of batch norm."""
    kernels = torchvision.googlenet_rules(32)
    biases = [
        Rule(rule.source.replace(r"\.conv\.weight", r"\.conv\.bias"), rule.target.replace("conv/kernel", "conv/bias"))
        for rule in kernels
        if rule.source.endswith(r"\.conv\.weight")
    ]
    return [*kernels, *biases]


def same(x, kernel, value=0.0):
    """TensorFlow's padding "SAME" of windows of stride 2."""
    edges = [max((-(-n // 2) - 1) * 2 + kernel - n, 0) for n in x.shape[:1:-1]]  # width first, as F.pad takes them
    return F.pad(x, [part for edge in edges for part in (edge // 2, edge - edge // 2)], value=value)


class Halve(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, a, b):
        super().__init__()
        self.add_module("1", Basic(a, b, 3, 2, False))

    def forward(self, x):
        return getattr(self, "1")(same(x, 3))


class BNModule(nn.Module):
    """A row of the BN paper's Fig. 5; without 1x1 convolutions it has stride 2."""

    def __init__(self, a, ones, reduce3, threes, reduce33, pairs, kind, pool):
        super().__init__()
        self.kind, self.halves = kind, not ones

        def last(b, c):
            return Basic(b, c, 3) if ones else Halve(b, c)

        branches = [[Basic(a, ones, 1)]] if ones else []
        branches += [[Basic(a, reduce3, 1), last(reduce3, threes)]]
        branches += [[Basic(a, reduce33, 1), Basic(reduce33, pairs, 3), last(pairs, pairs)]]
        self.branches = nn.ModuleList(nn.Sequential(*branch) for branch in branches)
        if pool:
            self.pool = Basic(a, pool, 1)

    def forward(self, x):
        parts = [branch(x) for branch in self.branches]
        if self.halves:
            return torch.cat([*parts, F.max_pool2d(same(x, 3, -torch.inf), 3, 2)], 1)
        average = self.kind == "avg"
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if average else F.max_pool2d(x, 3, 1, 1)
        return torch.cat([*parts, self.pool(pooled)], 1)


BN_ROWS = {
    "3a": (64, 64, 64, 64, 96, "avg", 32), "3b": (64, 64, 96, 64, 96, "avg", 64), "3c": (0, 128, 160, 64, 96, "max", 0),
    "4a": (224, 64, 96, 96, 128, "avg", 128), "4b": (192, 96, 128, 96, 128, "avg", 128),
    "4c": (160, 128, 160, 128, 160, "avg", 96), "4d": (96, 128, 192, 160, 192, "avg", 96),
    "4e": (0, 128, 192, 192, 256, "max", 0), "5a": (352, 192, 320, 160, 224, "avg", 128),
    "5b": (352, 192, 320, 192, 224, "max", 128),
}  # fmt: skip


class BNInception(nn.Module):
    """Fig. 5 of the BN paper, with a separable first layer, at width 0.25, without dropout."""

    def __init__(self, classes):
        super().__init__()
        self.colours = nn.Conv2d(3, 15, 7, 2, groups=3, bias=False)
        self.conv1, self.conv2, self.conv3 = Basic(15, 16, 1), Basic(16, 16, 1), Basic(16, 48, 3)
        a = 48
        for name, row in BN_ROWS.items():
            row = [c if isinstance(c, str) else c // 4 for c in row]
            setattr(self, f"inception{name}", BNModule(a, *row))
            ones, _, threes, _, pairs, _, pool = row
            a = ones + threes + pairs + (pool or a)
        self.fc = nn.Linear(256, classes)

    def forward(self, x):
        x = self.conv1(self.colours(same(x, 7)))
        x = self.conv3(self.conv2(F.max_pool2d(same(x, 3, -torch.inf), 3, 2)))
        x = F.max_pool2d(same(x, 3, -torch.inf), 3, 2)
        for name in BN_ROWS:
            x = getattr(self, f"inception{name}")(x)
        return self.fc(x.mean((2, 3)))


def bn_inception_rules():
    places = {
        "conv1": "conv1", "conv2": "conv2_reduce", "conv3": "conv2", r"inception(\w+)\.pool": r"mixed\1/pool",
        r"inception(\w+)\.branches\.(\d)\.(\d)(?:\.1)?": r"mixed\1/branch\2_\3",
    }  # fmt: skip
    rules = [Rule(r"colours\.weight", "params/conv1_depthwise/kernel", "conv")]
    rules += [Rule(r"fc\.weight", "params/fc/kernel", "linear"), Rule(r"fc\.bias", "params/fc/bias")]
    for source, target in places.items():
        rules.append(Rule(rf"{source}\.conv\.weight", f"params/{target}/conv/kernel", "conv"))
        rules.extend(batch_norm(rf"{source}\.bn", f"{target}/bn"))
    return rules


class V3Module(nn.Module):
    """Branches of named layers (name, channels, kernel); the last name may be a pair of parallel layers."""

    def __init__(self, a, branches, pool, stride=1):
        super().__init__()
        self.branches, self.stride = branches, stride
        for layers in branches:
            b = a
            for i, (name, c, *kernels) in enumerate(layers):
                strided = stride if i == len(layers) - 1 else 1
                for letter, kernel in zip("ab" if len(kernels) > 1 else " ", kernels, strict=True):
                    setattr(self, (name + letter).strip(), Basic(b, c, kernel, strided, strided == 1))
                b = c
        if pool:
            self.branch_pool = Basic(a, pool, 1)

    def forward(self, x):
        parts = []
        for layers in self.branches:
            y = x
            for name, _, *kernels in layers:
                pair = len(kernels) > 1
                y = torch.cat([getattr(self, (name + s).strip())(y) for s in ("ab" if pair else " ")], 1)
            parts.append(y)
        if self.stride > 1:
            return torch.cat([*parts, F.max_pool2d(x, 3, 2)], 1)
        return torch.cat([*parts, self.branch_pool(F.avg_pool2d(x, 3, 1, 1))], 1)


def v3_rows():
    """Figs. 5 to 7 and 10 of V3, at 1/8 of the widths."""

    def thirty_five(pool):
        double = [("branch3x3dbl_1", 8, 1), ("branch3x3dbl_2", 12, 3), ("branch3x3dbl_3", 12, 3)]
        return [[("branch1x1", 8, 1)], [("branch5x5_1", 6, 1), ("branch5x5_2", 8, 5)], double], pool

    def seventeen(c):
        once = [("branch7x7_1", c, 1), ("branch7x7_2", c, (1, 7)), ("branch7x7_3", 24, (7, 1))]
        twice = [
            ("branch7x7dbl_1", c, 1), ("branch7x7dbl_2", c, (7, 1)), ("branch7x7dbl_3", c, (1, 7)),
            ("branch7x7dbl_4", c, (7, 1)), ("branch7x7dbl_5", 24, (1, 7)),
        ]  # fmt: skip
        return [[("branch1x1", 24, 1)], once, twice], 24

    pair = (1, 3), (3, 1)
    eight = [
        [("branch1x1", 40, 1)], [("branch3x3_1", 48, 1), ("branch3x3_2", 48, *pair)],
        [("branch3x3dbl_1", 56, 1), ("branch3x3dbl_2", 48, 3), ("branch3x3dbl_3", 48, *pair)],
    ], 24  # fmt: skip
    halve = [
        [("branch3x3", 48, 3)], [("branch3x3dbl_1", 8, 1), ("branch3x3dbl_2", 12, 3), ("branch3x3dbl_3", 12, 3)],
    ], 0, 2  # fmt: skip
    last = [
        [("branch3x3_1", 24, 1), ("branch3x3_2", 40, 3)],
        [(f"branch7x7x3_{i}", 24, kernel) for i, kernel in enumerate((1, (1, 7), (7, 1), 3), 1)],
    ], 0, 2  # fmt: skip
    return {
        "5b": (24, *thirty_five(4)), "5c": (32, *thirty_five(8)), "5d": (36, *thirty_five(8)), "6a": (36, *halve),
        "6b": (96, *seventeen(16)), "6c": (96, *seventeen(20)), "6d": (96, *seventeen(20)), "6e": (96, *seventeen(24)),
        "7a": (96, *last), "7b": (160, *eight), "7c": (256, *eight),
    }  # fmt: skip


class InceptionV3(nn.Module):
    """Table 1 of V3 at width 1/8, without dropout."""

    def __init__(self, classes):
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Basic(3, 4, 3, 2, False), Basic(4, 4, 3, 1, False)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = Basic(4, 8, 3), Basic(8, 10, 1)
        self.Conv2d_4a_3x3 = Basic(10, 24, 3, 1, False)
        for name, row in v3_rows().items():
            setattr(self, f"Mixed_{name}", V3Module(*row))
        self.AuxLogits = nn.Module()
        self.AuxLogits.conv0, self.AuxLogits.conv1 = Basic(96, 16, 1), Basic(16, 96, 1, 1, False)
        self.AuxLogits.fc, self.fc = nn.Linear(96, classes), nn.Linear(256, classes)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x, side = F.max_pool2d(x, 3, 2), None
        for name in v3_rows():
            x = getattr(self, f"Mixed_{name}")(x)
            if name == "6e":
                y = F.avg_pool2d(x, (min(5, x.shape[2]), min(5, x.shape[3])), 3)
                side = self.AuxLogits.fc(self.AuxLogits.conv1(self.AuxLogits.conv0(y)).mean((2, 3)))
        return [self.fc(x.mean((2, 3))), side]


class VGG16(nn.Module):
    """Configuration D, narrow except for its last maps, which are 2 x 2."""

    def __init__(self, classes):
        super().__init__()
        layers, a = [], 3
        for depth, width in ((2, 4), (2, 4), (3, 8), (3, 8), (3, 512)):
            for _ in range(depth):
                layers += [nn.Conv2d(a, width, 3, padding=1), nn.ReLU()]
                a = width
            layers.append(nn.MaxPool2d(2))
        self.features, head = nn.Sequential(*layers), []
        for inputs in (2048, 6):
            head += [nn.Linear(inputs, 6), nn.ReLU(), nn.Dropout(0.0)]
        self.classifier = nn.Sequential(*head, nn.Linear(6, classes))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def paired(name):
    """(ours, PyTorch's with random weights, rules from its names to ours, side of the images)."""
    ours, theirs, rules, size = {
        "mobilenet_v1": lambda: (
            mobilenet.MobileNetV1(5, width=0.25, padding=1, momentum=0.9, epsilon=1e-5, dropout=0.0),
            MobileNetV1(5), v1_rules(), 40,
        ),
        "mobilenet_v2": lambda: (
            mobilenet.MobileNetV2(5, width=0.5, padding=1, momentum=0.9, epsilon=1e-5, dropout=0.0),
            MobileNetV2(5), torchvision.mobilenet_v2_rules(), 40,
        ),
        "googlenet": lambda: (
            inception.googlenet_torchvision(5, 0.25, dropout=0.0, auxiliary_dropout=0.0),
            GoogLeNet(5, paper=False), torchvision.googlenet_rules(32), 224,
        ),
        "googlenet_paper": lambda: (
            inception.googlenet(5, 0.25, dropout=0.0, auxiliary_dropout=0.0),
            GoogLeNet(5, paper=True), googlenet_paper_rules(), 224,
        ),
        "bn_inception": lambda: (
            inception.bn_inception(5, 0.25, momentum=0.9, dropout=0.0), BNInception(5), bn_inception_rules(), 96
        ),
        "inception_v3": lambda: (
            inception.inception_v3_torchvision(5, 0.125, dropout=0.0),
            InceptionV3(5), torchvision.inception_v3_rules(), 75,
        ),
        "vgg16": lambda: (
            vgg.VGG((2, 2, 3, 3, 3), (4, 4, 8, 8, 512), 5, hidden=6, dropout=0.0),
            VGG16(5), torchvision.vgg16_rules(), 64,
        ),
    }[name]()  # fmt: skip
    return ours, randomized(theirs), rules, size


NETWORKS = ["mobilenet_v1", "mobilenet_v2", "googlenet", "googlenet_paper", "bn_inception", "inception_v3", "vgg16"]


@pytest.mark.parametrize("name", NETWORKS)
def test_classifier(name):
    """Compares evaluation scores, and a training step: scores of all classifiers, running averages and gradients.

    Uses double precision: with few values per channel, batch statistics and ReLU signs are sensitive to rounding.
    """
    with jax.enable_x64(True):
        ours, theirs, rules, size = paired(name)
        ours, theirs = ours.clone(dtype=jnp.float64), theirs.double()
        loudness = 100 if name == "googlenet_paper" else 1  # response normalisation expects 0..255 minus the mean
        images = loudness * np.random.default_rng(0).uniform(-1, 1, (4, size, size, 3))
        variables = converted(theirs.state_dict(), rules, template(ours, images))
        tested = jax.jit(lambda v: ours.apply(v, images, train=False))(variables)
        assert_near(tested, numpy_nhwc(jax.tree.leaves(theirs.eval()(nchw(images)))[0]))
        assert_equal_training(ours, theirs, images, rules, outputs=1e-5, inputs=1e-3, params=1e-3, statistics=1e-5)


ODD = {"inception_v3": ((77, 91), (99, 83)), "vgg16": ((65, 79), (95, 93))}


@pytest.mark.parametrize("name", NETWORKS)
def test_odd_sizes(name):
    """Pools and strided convolutions at odd maps, where the padding rules of the frameworks differ."""
    with jax.enable_x64(True):
        ours, theirs, rules, size = paired(name)
        ours, theirs = ours.clone(dtype=jnp.float64), theirs.double().eval()
        variables = converted(theirs.state_dict(), rules, template(ours, jnp.zeros((1, size, size, 3))))
        for sides in ODD.get(name, ((33, 47), (61, 75))):
            images = np.random.default_rng(0).uniform(-1, 1, (1, *sides, 3))
            wanted = theirs.main(nchw(images)) if "googlenet" in name else theirs(nchw(images))
            found = jax.jit(lambda v, x: ours.apply(v, x, train=False))(variables, images)
            assert_near(found, numpy_nhwc(jax.tree.leaves(wanted)[0]))


def test_side_classifiers_of_torchvision_take_any_size():
    with jax.enable_x64(True):
        ours, theirs, rules, _ = paired("googlenet")
        ours, theirs = ours.clone(dtype=jnp.float64), theirs.double()
        images = np.random.default_rng(0).uniform(-1, 1, (2, 97, 79, 3))
        variables = converted(theirs.state_dict(), rules, template(ours, images))
        found, _ = jax.jit(lambda v: ours.apply(v, images, train=True, mutable=["batch_stats"]))(variables)
        for got, want in zip(found, theirs.train()(nchw(images)), strict=True):
            assert_near(got, numpy_nhwc(want))


@pytest.mark.parametrize("name", ["mobilenet_v2", "googlenet", "inception_v3", "vgg16"])
def test_weights_are_read_from_files(name, tmp_path):
    ours, theirs, _, size = paired(name)
    ours = ours.clone(auxiliary=False) if "ception" in name or name == "googlenet" else ours
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    shapes = template(ours, jnp.zeros((1, size, size, 3)))
    variables = torchvision.load(tmp_path / "w.pt", shapes)
    last = variables["params"]["classifier"]["fc8"] if name == "vgg16" else variables["params"]["fc"]
    source = {"mobilenet_v2": "classifier.1.bias", "vgg16": "classifier.6.bias"}.get(name, "fc.bias")
    np.testing.assert_array_equal(last["bias"], theirs.state_dict()[source])
    assert jax.tree.structure(variables) == jax.tree.structure(shapes)
