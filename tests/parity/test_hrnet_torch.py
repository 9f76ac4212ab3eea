"""HRNet compared with PyTorch modules built here from the layer lists, with the published names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones import hrnet
from facejax.interop import hrnet_torch
from tests.parity.networks import assert_equal_training, assert_near, converted, nchw, numpy_nhwc, randomized, template

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn = torch.nn


def conv_bn(inputs, outputs, size, stride=1, *, bias=False, relu=True):
    layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=bias), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class Block(nn.Module):
    def __init__(self, inputs, width, bottleneck):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        plan = (
            [(inputs, width, 1), (width, width, 3), (width, outputs, 1)]
            if bottleneck
            else [(inputs, width, 3), (width, width, 3)]
        )
        for i, (a, b, size) in enumerate(plan, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, size, 1, size // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.depth = len(plan)
        self.downsample = conv_bn(inputs, outputs, 1, relu=False) if inputs != outputs else None

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.depth else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Module(nn.Module):
    def __init__(self, widths, blocks, outputs):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*[Block(w, w, False) for _ in range(blocks)]) for w in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self.path(widths, j, i) for j in range(len(widths))) for i in range(outputs)
        )

    @staticmethod
    def path(widths, j, i):
        if j == i:
            return None
        if j > i:
            return nn.Sequential(*conv_bn(widths[j], widths[i], 1, relu=False), nn.Upsample(scale_factor=2 ** (j - i)))
        steps = [conv_bn(widths[j], widths[j], 3, 2) for _ in range(i - j - 1)]
        return nn.Sequential(*steps, conv_bn(widths[j], widths[i], 3, 2, relu=False))

    def forward(self, maps):
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [
            sum(x if layer is None else layer(x) for layer, x in zip(row, maps, strict=True)).relu()
            for row in self.fuse_layers
        ]


class Reference(nn.Module):
    def __init__(self, width, modules, blocks, stem, first, joints=0, classes=0):
        super().__init__()
        self.conv1, self.bn1, _ = conv_bn(3, stem, 3, 2)
        self.conv2, self.bn2, _ = conv_bn(stem, stem, 3, 2)
        self.layer1 = nn.Sequential(*[Block(4 * first if i else stem, first, True) for i in range(2)])
        widths = [width * 2**i for i in range(4)]
        self.transition1 = nn.ModuleList(
            [conv_bn(4 * first, width, 3), nn.Sequential(conv_bn(4 * first, widths[1], 3, 2))]
        )
        for s in (2, 3):
            new = nn.Sequential(conv_bn(widths[s - 1], widths[s], 3, 2))
            setattr(self, f"transition{s}", nn.ModuleList([*[None] * s, new]))
        for s, count in enumerate(modules, 2):
            last = [1 if joints and s == 4 and m == count - 1 else s for m in range(count)]
            setattr(self, f"stage{s}", nn.Sequential(*[Module(widths[:s], blocks, n) for n in last]))
        if joints:
            self.final_layer = nn.Conv2d(width, joints, 1)
            return
        heads = [32, 64, 128, 256]
        self.incre_modules = nn.ModuleList(nn.Sequential(Block(w, h, True)) for w, h in zip(widths, heads, strict=True))
        self.downsamp_modules = nn.ModuleList(conv_bn(4 * h, 8 * h, 3, 2, bias=True) for h in heads[:3])
        self.final_layer = conv_bn(1024, 2048, 1, bias=True)
        self.classifier = nn.Linear(2048, classes)

    def forward(self, x):
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        x = self.layer1(x)
        maps = self.stage2([layer(x) for layer in self.transition1])
        maps = self.stage3([*maps, self.transition2[2](maps[-1])])
        maps = self.stage4([*maps, self.transition3[3](maps[-1])])
        if not hasattr(self, "classifier"):
            return self.final_layer(maps[0])
        y = self.incre_modules[0](maps[0])
        for i in range(3):
            y = self.incre_modules[i + 1](maps[i + 1]) + self.downsamp_modules[i](y)
        return self.classifier(self.final_layer(y).mean((2, 3)))


IMAGES = np.random.default_rng(0).normal(size=(3, 64, 32, 3)).astype(np.float32)
SIZES = {"stem_width": 6, "first_blocks": 2, "first_width": 3}


def test_pose_network_in_training():
    stage = {"modules": (1, 1, 2), "blocks": 1}
    ours = hrnet.PoseNet(hrnet.HRNet(4, **stage, **SIZES, finest_only=True), 5)
    theirs = randomized(Reference(4, **stage, stem=6, first=3, joints=5))
    rules = hrnet_torch.rules(classifier=False)
    assert_equal_training(ours, theirs, IMAGES, rules, outputs=1e-4, inputs=2e-3, params=5e-4, statistics=1e-4)


def test_classifier_from_its_file(tmp_path):
    stage = {"modules": (1, 1, 1), "blocks": 1}
    ours = hrnet.Classifier(hrnet.HRNet(4, **stage, **SIZES), 7)
    theirs = randomized(Reference(4, **stage, stem=6, first=3, classes=7)).eval()
    torch.save(theirs.state_dict(), tmp_path / "classifier.pth")
    variables = hrnet_torch.load(tmp_path / "classifier.pth", template(ours, IMAGES))
    evaluated = jax.jit(lambda v: ours.apply(v, IMAGES, train=False))(variables)
    assert_near(evaluated, numpy_nhwc(theirs(nchw(IMAGES))), 2e-5)


def test_exchange_alone():
    """Three input branches; all, or only the finest, as output."""
    widths = [4, 8, 16]
    maps = [
        np.random.default_rng(i).normal(size=(2, 8 >> i, 12 >> i, w)).astype(np.float32) for i, w in enumerate(widths)
    ]
    for outputs in (0, 1):
        ours, theirs = hrnet.HighResolutionModule(1, outputs), randomized(Module(widths, 1, outputs or 3)).eval()
        state = {f"stage2.0.{k}": v for k, v in theirs.state_dict().items()}
        wrapped = {kind: {"trunk": {"stage2_0": tree}} for kind, tree in template(ours, maps).items()}
        variables = converted(state, hrnet_torch.rules(False), wrapped)
        variables = {kind: tree["trunk"]["stage2_0"] for kind, tree in variables.items()}
        found, vjp = jax.vjp(jax.jit(lambda m, net=ours, v=variables: net.apply(v, m, train=False)), maps)
        tensors = [nchw(m) for m in maps]
        expected = theirs(tensors)
        for got, want in zip(found, expected, strict=True):
            assert_near(got, numpy_nhwc(want), 1e-5)
        sum(y.sin().sum() for y in expected).backward()
        (gradients,) = vjp([jnp.cos(y) for y in found])
        for got, want in zip(gradients, tensors, strict=True):
            assert_near(got, numpy_nhwc(want.grad), 1e-4)
