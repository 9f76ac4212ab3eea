"""DSFD compared with PyTorch modules written from the release's and the paper's layers: outputs and gradients."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.detection import dsfd
from facejax.interop.names import Rule, batch_norm
from facejax.interop.torchvision import resnet_rules
from tests.parity import test_resnet_torch
from tests.parity.networks import assert_equal_training, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional


class ResNetMaps(nn.Module):
    """Four stages and layer5, layer6 of 1x1 and 3x3/2 convolutions with bias and batch norm."""

    def __init__(self, depths, widths, extras):
        super().__init__()
        self.resnet = test_resnet_torch.Reference("v1.5", depths, widths, 1, False)
        self.resnet.fc = nn.Identity()
        self.extras, inputs = len(extras), 4 * widths[-1]
        for i, (inner, outer) in enumerate(extras, 1):
            for j, conv in enumerate((nn.Conv2d(inputs, inner, 1), nn.Conv2d(inner, outer, 3, 2, 1)), 1):
                self.add_module(f"extra{i}_{j}", nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()))
            inputs = outer
        self.widths = [4 * w for w in widths] + [outer for _, outer in extras]

    def forward(self, x):
        found = self.resnet.stages(x)
        for i in range(1, self.extras + 1):
            found.append(self.get_submodule(f"extra{i}_2")(self.get_submodule(f"extra{i}_1")(found[-1])))
        return found


class VGGMaps(nn.Module):
    """conv3_3, conv4_3, conv5_3, fc7 and extras, one convolution a stage."""

    def __init__(self, widths, fc, extras):
        super().__init__()
        self.stages, self.extras, inputs = len(widths), len(extras), 3
        for stage, width in enumerate(widths, 1):
            self.add_module(f"conv{stage}_1", nn.Conv2d(inputs, width, 3, padding=1))
            inputs = width
        self.fc6, self.fc7 = nn.Conv2d(inputs, fc, 3, padding=1), nn.Conv2d(fc, fc, 1)
        self.widths, inputs = [*widths[2:], fc, *(outer for _, outer in extras)], fc
        for i, (inner, outer) in enumerate(extras, 1):
            self.add_module(f"extra{i}_1", nn.Conv2d(inputs, inner, 1))
            self.add_module(f"extra{i}_2", nn.Conv2d(inner, outer, 3, 2, 1))
            inputs = outer

    def forward(self, x):
        found = []
        for stage in range(1, self.stages + 1):
            x = F.relu(self.get_submodule(f"conv{stage}_1")(x))
            found.append(x)
            x = F.max_pool2d(x, 2)
        found = [*found[2:], F.relu(self.fc7(F.relu(self.fc6(x))))]
        for i in range(1, self.extras + 1):
            hidden = F.relu(self.get_submodule(f"extra{i}_1")(found[-1]))
            found.append(F.relu(self.get_submodule(f"extra{i}_2")(hidden)))
        return found


class Release(nn.Module):
    """cpm1 to cpm5 of the released FEM."""

    def __init__(self, inputs, features):
        super().__init__()
        a, b = features // 2, features // 4
        self.conv1, self.conv2 = nn.Conv2d(inputs, a, 3, padding=1), nn.Conv2d(inputs, a, 3, dilation=2, padding=2)
        self.conv3, self.conv4 = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(a, b, 3, dilation=2, padding=2)
        self.conv5, self.outputs = nn.Conv2d(b, b, 3, padding=1), features

    def forward(self, x):
        x2 = F.relu(self.conv2(x))
        x3 = F.relu(self.conv5(F.relu(self.conv4(x2))))
        return torch.cat([F.relu(self.conv1(x)), F.relu(self.conv3(x2)), x3], 1)


class Split(nn.Module):
    """A third of the channels each through one, two and three convolutions of dilation 3."""

    def __init__(self, inputs):
        super().__init__()
        third = inputs // 3
        self.sizes, self.outputs = [third, third, inputs - 2 * third], inputs
        for i, size in enumerate(self.sizes, 1):
            for j in range(1, i + 1):
                self.add_module(f"conv{i}_{j}", nn.Conv2d(size, size, 3, dilation=3, padding=3))

    def forward(self, x):
        parts = list(x.split(self.sizes, 1))
        for i in range(3):
            for j in range(i + 1):
                parts[i] = F.relu(self.get_submodule(f"conv{i + 1}_{j + 1}")(parts[i]))
        return torch.cat(parts, 1)


class Scale(nn.Module):
    """L2 norm over the channels times a learnt scale."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x / x.pow(2).sum(1, keepdim=True).add(1e-10).sqrt() * self.scale[:, None, None]


def head(inputs, outputs, features, depth):
    layers = []
    for _ in range(depth):
        layers += [nn.Conv2d(inputs, min(inputs, features), 3, padding=1), nn.ReLU()]
        inputs = min(inputs, features)
    return nn.Sequential(*layers, nn.Conv2d(inputs, outputs, 1 if depth else 3, padding=0 if depth else 1))


class Reference(nn.Module):
    def __init__(self, maps, block, *, products, slots, max_in_out, features, depth, norms, first):
        super().__init__()
        self.maps, self.levels, self.products = maps, len(maps.widths), products
        self.slots, self.max_in_out, self.norms, self.first = slots, max_in_out, norms, first
        for i, width in enumerate(maps.widths, 1):
            if i <= products:
                self.add_module(f"above{i}", nn.Conv2d(maps.widths[i], width, 1))
                self.add_module(f"lateral{i}", nn.Conv2d(width, width, 1))
            enhance, count = block(width), min(slots, i)
            self.add_module(f"enhance{i}", enhance)
            conf = 2 * count + 2 * max_in_out
            self.add_module(f"boxes{i}", head(enhance.outputs, 4 * count, features, depth))
            self.add_module(f"scores{i}", head(enhance.outputs, conf, features, depth))
            if first:
                self.add_module(f"firstboxes{i}", head(width, 4, features, depth))
                self.add_module(f"firstscores{i}", head(width, 2, features, depth))
        for i in range(1, norms + 1):
            self.add_module(f"norm{i}", Scale(maps.widths[i - 1]))
            if first:
                self.add_module(f"firstnorm{i}", Scale(maps.widths[i - 1]))

    def normed(self, maps, name):
        return [self.get_submodule(f"{name}{i}")(x) if i <= self.norms else x for i, x in enumerate(maps, 1)]

    def heads(self, maps, prefix, slots):
        found = [[] for _ in range(slots)]
        for i, x in enumerate(maps, 1):
            loc, conf = (self.get_submodule(f"{prefix}{name}{i}")(x) for name in ("boxes", "scores"))
            if self.max_in_out:
                most = torch.max(torch.max(conf[:, :1], conf[:, 1:2]), conf[:, 2:3])
                pair = [most, conf[:, 3:4]] if i == 1 else [conf[:, 3:4], most]
                conf = torch.cat([*pair, conf[:, 4:]], 1)
            for slot in range(min(slots, i)):
                parts = conf[:, 2 * slot : 2 * slot + 2], loc[:, 4 * slot : 4 * slot + 4]
                found[slot].append([p.permute(0, 2, 3, 1).flatten(1, 2) for p in parts])
        return [tuple(torch.cat(parts, 1) for parts in zip(*levels, strict=True)) for levels in found]

    def forward(self, x):
        maps = self.maps(x)
        found = {}
        if self.first:
            found["first"] = self.heads(self.normed(maps, "firstnorm"), "first", 1)[0]
        for i in range(self.products, 0, -1):
            lateral = self.get_submodule(f"lateral{i}")(maps[i - 1])
            above = self.get_submodule(f"above{i}")(maps[i])
            maps[i - 1] = F.interpolate(above, lateral.shape[2:], mode="bilinear", align_corners=False) * lateral
        maps = [self.get_submodule(f"enhance{i}")(x) for i, x in enumerate(self.normed(maps, "norm"), 1)]
        names = ("face", "head", "body")[: self.slots]
        found |= dict(zip(names, self.heads(maps, "", self.slots), strict=True))
        return {name: found[name] for name in sorted(found)}


def rules(depth):
    """Names of `Reference` -> ours."""
    place = r"params/\1/{}/"
    found = [
        dataclasses.replace(rule, source=r"maps\.resnet\." + rule.source, target=_within(rule.target))
        for rule in resnet_rules()
    ]
    for j in (1, 2):
        found += [
            Rule(rf"maps\.(extra\d_{j})\.0\.weight", r"params/maps/\1/conv/kernel", "conv"),
            Rule(rf"maps\.(extra\d_{j})\.0\.bias", r"params/maps/\1/conv/bias"),
            *batch_norm(rf"maps\.(extra\d_{j})\.1", r"maps/\1/bn"),
        ]
    layers = [f"conv{i + 1}" for i in range(depth)] + ["out"]
    for i, layer in enumerate(layers):
        found.append(Rule(rf"(\w*(?:boxes|scores)\d)\.{2 * i}\.weight", place.format(layer) + "kernel", "conv"))
        found.append(Rule(rf"(\w*(?:boxes|scores)\d)\.{2 * i}\.bias", place.format(layer) + "bias"))
    for part, layout in (("weight", "conv"), ("bias", "same")):
        ours = {"weight": "kernel", "bias": "bias"}[part]
        found += [
            Rule(rf"((?:above|lateral)\d)\.{part}", rf"params/products/\1/{ours}", layout),
            Rule(rf"(enhance\d)\.(conv\w+)\.{part}", rf"params/\1/\2/{ours}", layout),
            Rule(rf"maps\.(conv\d_\d)\.{part}", rf"params/maps/vgg/\1/{ours}", layout),
            Rule(rf"maps\.(\w+)\.{part}", rf"params/maps/\1/{ours}", layout),
        ]
    return [*found, Rule(r"((?:first)?norm\d)\.scale", r"params/\1/scale")]


def _within(target):
    collection, path = target.split("/", 1)
    return f"{collection}/maps/resnet/{path}"


@pytest.mark.parametrize("size", [(64, 64), (61, 75)])
def test_release_with_resnet(size):
    """In double precision, because batch statistics are of few values; heads return float32."""
    depths, widths, extras = (1, 1, 1, 1), (2, 3, 2, 3), ((4, 5), (3, 4))
    ours = dsfd.Net(
        dsfd.ResNetMaps(depths, True, widths, extras, dtype=jnp.float64), block=partial(dsfd.DilatedBlock, 8), head=5,
        head_depth=2, dtype=jnp.float64,
    )  # fmt: skip
    theirs = Reference(
        ResNetMaps(depths, widths, extras), partial(Release, features=8), products=3, slots=3, max_in_out=True,
        features=5, depth=2, norms=0, first=False,
    )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(2, *size, 3))
    with jax.enable_x64(True):
        assert_equal_training(
            ours, randomized(theirs).double(), images, rules(2), outputs=1e-6, inputs=1e-5, params=1e-5, statistics=1e-6
        )


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
@pytest.mark.parametrize("form", ["dual", "release"])
def test_vgg(form, size):
    """The maps of stride 32 of the second size are 3 x 5."""
    widths, fc, extras = (3, 4, 6, 5, 4), 7, ((3, 5), (4, 6))
    maps, plain = dsfd.VGGMaps((1,) * 5, widths, fc, extras), VGGMaps(widths, fc, extras)
    if form == "dual":
        ours, depth = dsfd.dual(maps, norms=(10.0, 8.0, 5.0)), 0
        theirs = Reference(
            plain, Split, products=5, slots=1, max_in_out=False, features=0, depth=0, norms=3, first=True
        )
    else:
        block = partial(dsfd.DilatedBlock, 8)
        ours, depth = dsfd.Net(maps, block=block, norms=(10.0, 8.0, 5.0), head=5, head_depth=1), 1
        theirs = Reference(
            plain, partial(Release, features=8), products=3, slots=3, max_in_out=True, features=5, depth=1, norms=3,
            first=False,
        )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    assert_equal_training(
        ours, randomized(theirs), images, rules(depth), outputs=2e-5, inputs=2e-4, params=2e-4, statistics=1e-5
    )
