"""CenterNet's three networks compared with PyTorch ones of the same layers, and its loss with the authors' formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones.dla import DLA, DLAUp
from facejax.backbones.hourglass import Hourglass
from facejax.backbones.resnet import ResNet
from facejax.detection import centernet
from facejax.detection.base import Truth
from facejax.interop import centernet as interop
from tests.parity import hourglass
from tests.parity.networks import assert_equal_training, assert_near, converted, nchw, numpy_nhwc, randomized, template
from tests.parity.test_deformable_torch import deform_conv2d_torch
from tests.parity.test_resnet_torch import Reference as ResNetReference

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional

HEADS = {"hm": ("heat", 3), "wh": ("size", 2), "reg": ("offset", 2)}
WIDTH = 5


class DCN(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.zeros(s)) for s in ((outputs, inputs, 3, 3), (outputs,)))
        self.conv_offset_mask = nn.Conv2d(inputs, 27, 3, 1, 1)

    def forward(self, x):
        found = self.conv_offset_mask(x).permute(0, 2, 3, 1)
        options = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
        kernel, mask = self.weight.permute(2, 3, 1, 0), found[..., 18:].sigmoid()
        y = deform_conv2d_torch(x.permute(0, 2, 3, 1), found[..., :18], kernel, mask, **options)
        return (y + self.bias).permute(0, 3, 1, 2)


class Heads(nn.Module):
    def add_heads(self, inputs):
        for name, (_, outputs) in HEADS.items():
            head = nn.Sequential(nn.Conv2d(inputs, WIDTH, 3, 1, 1), nn.ReLU(), nn.Conv2d(WIDTH, outputs, 1))
            self.add_module(name, head)

    def heads(self, x):
        return [{ours: getattr(self, theirs)(x) for theirs, (ours, _) in HEADS.items()}]


class ResNetUpReference(Heads):
    def __init__(self, depths, widths, up):
        super().__init__()
        trunk = ResNetReference("basic", depths, widths, 1, False)
        for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(trunk, name))
        layers, a = [], widths[-1]
        for b in up:
            layers += [DCN(a, b), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.ConvTranspose2d(b, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            a = b
        self.deconv_layers = nn.Sequential(*layers)
        self.add_heads(a)

    def forward(self, x):
        return self.heads(self.deconv_layers(ResNetReference.stages(self, x)[-1]))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x, shortcut):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + shortcut).relu()


class Root(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, *maps):
        return self.bn(self.conv(torch.cat(maps, 1))).relu()


class Tree(nn.Module):
    """Of one or two levels; the projection of one of two levels has no influence."""

    def __init__(self, levels, inputs, outputs, stride, root_input, root_extra=0):
        super().__init__()
        self.levels, self.stride, self.root_input = levels, stride, root_input
        extra = root_extra + (inputs if root_input else 0)
        if levels == 1:
            self.tree1, self.tree2 = Block(inputs, outputs, stride), Block(outputs, outputs, 1)
            self.root = Root(2 * outputs + extra, outputs)
        else:
            self.tree1 = Tree(1, inputs, outputs, stride, False)
            self.tree2 = Tree(1, outputs, outputs, 1, False, extra + outputs)
        self.project = hourglass.linear(inputs, outputs) if inputs != outputs else None

    def forward(self, x, children=()):
        bottom = F.max_pool2d(x, self.stride) if self.stride > 1 else x
        shortcut = bottom if self.project is None else self.project(bottom)
        children = [*children, bottom] if self.root_input else [*children]
        if self.levels == 1:
            first = self.tree1(x, shortcut)
            return self.root(self.tree2(first, first), first, *children)
        first = self.tree1(x) + 0 * shortcut
        return self.tree2(first, [*children, first])


class DeformConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.actf, self.conv = nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU()), DCN(inputs, outputs)

    def forward(self, x):
        return self.actf(self.conv(x))


class IDAUp(nn.Module):
    def __init__(self, inputs, outputs, factors):
        super().__init__()
        for i, (a, f) in enumerate(zip(inputs[1:], factors[1:], strict=True), 1):
            self.add_module(f"proj_{i}", DeformConv(a, outputs))
            self.add_module(
                f"up_{i}", nn.ConvTranspose2d(outputs, outputs, 2 * f, f, f // 2, groups=outputs, bias=False)
            )
            self.add_module(f"node_{i}", DeformConv(outputs, outputs))

    def forward(self, maps):
        found = [maps[0]]
        for i, x in enumerate(maps[1:], 1):
            proj, up, node = (getattr(self, f"{name}_{i}") for name in ("proj", "up", "node"))
            found.append(node(up(proj(x)) + found[-1]))
        return found


class DLAReference(Heads):
    def __init__(self, widths):
        super().__init__()

        def conv(a, b, size, stride):
            return nn.Sequential(nn.Conv2d(a, b, size, stride, size // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU())

        self.base = nn.Module()
        self.base.base_layer = conv(3, widths[0], 7, 1)
        self.base.level0, self.base.level1 = conv(widths[0], widths[0], 3, 1), conv(widths[0], widths[1], 3, 2)
        for i, levels in ((2, 1), (3, 2), (4, 2), (5, 1)):
            self.base.add_module(f"level{i}", Tree(levels, widths[i - 1], widths[i], 2, i > 2))
        self.dla_up = nn.Module()
        self.dla_up.ida_0 = IDAUp([widths[4], widths[5]], widths[4], [1, 2])
        self.dla_up.ida_1 = IDAUp([widths[3], widths[4], widths[4]], widths[3], [1, 2, 2])
        self.dla_up.ida_2 = IDAUp([widths[2], widths[3], widths[3], widths[3]], widths[2], [1, 2, 2, 2])
        self.ida_up = IDAUp(widths[2:5], widths[2], [1, 2, 4])
        self.add_heads(widths[2])

    def forward(self, x):
        x, maps = self.base.base_layer(x), []
        for i in range(6):
            x = getattr(self.base, f"level{i}")(x)
            maps.append(x)
        _, b5 = self.dla_up.ida_0(maps[4:])
        _, c4, c5 = self.dla_up.ida_1([maps[3], maps[4], b5])
        *_, d5 = self.dla_up.ida_2([maps[2], maps[3], c4, c5])
        return self.heads(self.ida_up([d5, c5, b5])[-1])


class HourglassReference(hourglass.Trunk):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        for name, (_, outputs) in HEADS.items():
            heads = [hourglass.make_head(sizes["features"], WIDTH, outputs) for _ in range(sizes["stacks"])]
            self.add_module(name, nn.ModuleList(heads))

    def forward(self, x):
        features = enumerate(self.features(x))
        return [{ours: getattr(self, theirs)[i](f) for theirs, (ours, _) in HEADS.items()} for i, f in features]


DOUBLE = {"dtype": jnp.float64}
STACKS = {"stacks": 2, "widths": (6, 6, 8), "depths": (1, 2, 2), "stem": 4, "features": 6}
WIDTHS = (3, 4, 4, 6, 8, 10)


def resnet_pair():
    trunk = ResNet((1, 1, 1, 2), False, widths=(4, 4, 6, 8), **DOUBLE)
    theirs = ResNetUpReference((1, 1, 1, 2), (4, 4, 6, 8), (6, 5, 4))
    return centernet.ResNetUp(trunk, (6, 5, 4), **DOUBLE), theirs, interop.resnet_rules()


def dla_pair():
    return (
        DLAUp(DLA(widths=WIDTHS, **DOUBLE), centernet.deformable, **DOUBLE),
        DLAReference(WIDTHS),
        interop.dla_rules(),
    )


def hourglass_pair():
    return Hourglass(**STACKS, **DOUBLE), HourglassReference(**STACKS), interop.hourglass_rules(2)


@pytest.mark.parametrize(
    ("make", "sizes"),
    [(resnet_pair, [(64, 96)]), (dla_pair, [(64, 96)]), (hourglass_pair, [(31, 47), (45, 61)])],
    ids=["resnet", "dla", "hourglass"],
)
def test_network(make, sizes):
    """Evaluation and a training step with all gradients, in double precision; only the hourglass takes odd sizes."""
    trunk, theirs, rules = make()
    net = centernet.Net(trunk, 3, WIDTH, **DOUBLE)
    theirs = randomized(theirs).double()
    with jax.enable_x64(True):
        for size in sizes:
            images = np.random.default_rng(0).normal(size=(2, *size, 3))
            variables = converted(theirs.state_dict(), rules, template(net, images))
            found = jax.jit(partial(net.apply, train=False))(variables, images)
            expected = jax.tree.leaves(theirs.eval()(nchw(images)))
            for got, want in zip(jax.tree.leaves(found), expected, strict=True):
                assert_near(got, numpy_nhwc(want), 1e-6)
        assert_equal_training(net, theirs, images, rules, outputs=1e-6, inputs=1e-5, params=1e-6, statistics=1e-6)


@pytest.mark.parametrize(
    ("make", "sizes"),
    [(resnet_pair, [(32, 64), (64, 32)]), (dla_pair, [(32, 96), (64, 32)]), (hourglass_pair, [(31, 47), (45, 61)])],
    ids=["resnet", "dla", "hourglass"],
)
def test_published_files(make, sizes, tmp_path):
    """The layout of the authors' files: their names, BGR, and a classifier of DLA that nothing uses."""
    trunk, theirs, _ = make()
    theirs = randomized(theirs).eval()
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    if make is dla_pair:
        state |= {"module.base.fc.weight": torch.ones(7, 10, 1, 1), "module.base.fc.bias": torch.ones(7)}
    torch.save({"epoch": 230, "state_dict": state}, tmp_path / "ctdet.pth")
    net = centernet.Net(trunk.clone(dtype=jnp.float32), 3, WIDTH)
    variables = interop.load(tmp_path / "ctdet.pth", template(net, jnp.zeros((1, *sizes[0], 3))))
    run = jax.jit(partial(net.apply, train=False))
    for size in sizes:
        images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
        expected = jax.tree.leaves(theirs(nchw(images[..., ::-1])))
        for got, want in zip(jax.tree.leaves(run(variables, images)), expected, strict=True):
            assert_near(got, numpy_nhwc(want), 1e-4)


def authors_loss(raw, boxes, labels, masks, points, visible, ratio):
    """The loss of the authors' training step for one device, written from their formulas; maps are [N, C, H, W]."""
    (n, g), shape = masks.shape, raw[0]["heat"].shape[2:]
    heat, cells = np.zeros((n, 3, *shape)), np.zeros((n, g), int)
    wanted = {"size": np.zeros((n, g, 2)), "offset": np.zeros((n, g, 2)), "points": np.zeros((n, g, 10))}
    valid = {name: np.zeros(value.shape, bool) for name, value in wanted.items()}
    for i, k in zip(*np.nonzero(masks), strict=True):
        x1, y1, x2, y2 = boxes[i, k] * np.tile(ratio, 2)
        w, h, x, y = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
        column, row = int(x), int(y)
        b, c = np.ceil(h) + np.ceil(w), np.ceil(h) * np.ceil(w)
        radius = int(
            min(
                (b + np.sqrt(b**2 - 4 * c * 0.3 / 1.7)) / 2,
                (2 * b + np.sqrt(4 * b**2 - 16 * 0.3 * c)) / 2,
                (-1.4 * b + np.sqrt((1.4 * b) ** 2 + 4 * 2.8 * 0.3 * c)) / 2,
            )
        )
        for r in range(max(0, row - radius), min(shape[0], row + radius + 1)):
            for s in range(max(0, column - radius), min(shape[1], column + radius + 1)):
                value = np.exp(-((r - row) ** 2 + (s - column) ** 2) / (2 * ((2 * radius + 1) / 6) ** 2))
                heat[i, labels[i, k], r, s] = max(heat[i, labels[i, k], r, s], value)
        cells[i, k] = row * shape[1] + column
        wanted["size"][i, k], wanted["offset"][i, k] = (w, h), (x - column, y - row)
        wanted["points"][i, k] = (points[i, k] * ratio - [column, row]).ravel()
        valid["size"][i, k] = valid["offset"][i, k] = True
        valid["points"][i, k] = visible[i, k].repeat(2)
    total, target, places = 0.0, torch.tensor(heat), torch.tensor(cells)[..., None]
    for maps in raw:
        p = maps["heat"].sigmoid().clamp(1e-4, 1 - 1e-4)
        positive, negative = target.eq(1), target.lt(1)
        focal = -(p[positive].log() * (1 - p[positive]) ** 2).sum()
        focal -= ((1 - p[negative]).log() * p[negative] ** 2 * (1 - target[negative]) ** 4).sum()
        total = total + focal / positive.sum()
        for name, weight in (("size", 0.1), ("offset", 1.0), ("points", 1.0)):
            where = torch.tensor(valid[name])
            read = maps[name].flatten(2).transpose(1, 2).gather(1, places.expand(-1, -1, where.shape[-1]))
            total = total + weight * (read - torch.tensor(wanted[name]))[where].abs().sum() / where.sum()
    return total / len(raw)


@pytest.mark.parametrize("size", [(64, 96), (60, 84), (31, 47)])
def test_loss_and_its_gradient(size):
    rng, shape = np.random.default_rng(1), tuple(-(-n // 4) for n in size)
    low = rng.uniform(0, 0.5, (3, 5, 2)) * size[::-1]
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.45, (3, 5, 2)) * size[::-1]], -1)
    points, visible = rng.uniform(0, size[::-1], (3, 5, 5, 2)), rng.uniform(size=(3, 5, 5)) > 0.2
    labels, masks = rng.integers(0, 3, (3, 5)), np.arange(5) < np.array([5, 3, 0])[:, None]
    boxes[~masks], labels[~masks], points[~masks], visible[~masks] = 0, 0, 0, False
    channels = {"heat": 3, "size": 2, "offset": 2, "points": 10}
    raw = [{name: 3 * rng.normal(size=(3, *shape, c)) for name, c in channels.items()} for _ in range(2)]
    theirs = jax.tree.map(nchw, raw)
    expected = authors_loss(theirs, boxes, labels, masks, points, visible, np.array(shape[::-1]) / size[::-1])
    expected.backward()
    with jax.enable_x64(True):
        truth = Truth(*(jnp.asarray(x) for x in (boxes, labels, points, visible, masks)))
        detector = centernet.CenterNet(centernet.Net(None, 3, points=5))

        def loss(raw):
            return sum(term.value() for term in detector.losses(raw, truth, size).values())

        value, slopes = jax.jit(jax.value_and_grad(loss))(raw)
    np.testing.assert_allclose(value, expected.item(), rtol=2e-6)
    for got, want in zip(jax.tree.leaves(slopes), jax.tree.leaves(theirs), strict=True):
        assert_near(got, numpy_nhwc(want.grad), 1e-5)
