"""Networks of PyTorch with the names and layouts of published files, random weights, against ours after conversion."""

import itertools
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import facejax
from facejax.clustering import star_fc, vegcn
from facejax.detection import centerface, scrfd, yolo5face
from facejax.graph import gat, gcn
from facejax.interop import centerface as centerface_files
from facejax.interop import clustering
from facejax.interop import scrfd as scrfd_files
from facejax.interop import torch_geometric as geometric_files
from facejax.interop import yolo5face as yolo5face_files
from facejax.ops import graph as graphs

torch = pytest.importorskip("torch", reason="needs the parity extra")
from tests.parity.networks import assert_near, nchw, numpy_nhwc, randomized, template

pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional


def saved(path, net, **beside):
    torch.save({"meta": {"epoch": 1}, "state_dict": net.state_dict(), **beside}, path)
    return path


def images(size, scale=1.0):
    return np.float32(np.random.default_rng(size[0]).uniform(-scale, scale, (2, *size, 3)))


class Unit(nn.Module):
    """mmdet's ConvModule, and the convolution of YOLOv5."""

    def __init__(self, a, b, size=1, stride=1, groups=1, norm=None, act=None):
        super().__init__()
        self.conv = nn.Conv2d(a, b, size, stride, size // 2, groups=groups, bias=norm is None)
        if norm is not None:
            self.add_module("gn" if norm else "bn", nn.GroupNorm(norm, b) if norm else nn.BatchNorm2d(b))
        self.act, self.layers = act, list(self.children())

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x if self.act is None else self.act(x)


class SeparableUnit(nn.Module):
    def __init__(self, a, b, norm):
        super().__init__()
        self.depthwise_conv = Unit(a, a, 3, groups=a, norm=norm, act=F.relu)
        self.pointwise_conv = Unit(a, b, norm=norm, act=F.relu)

    def forward(self, x):
        return self.pointwise_conv(self.depthwise_conv(x))


def mobile_pair(a, b, stride):
    first = [nn.Conv2d(a, a, 3, stride, 1, groups=a, bias=False), nn.BatchNorm2d(a), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())


class MobileTrunk(nn.Module):
    def __init__(self, stem, widths, depths):
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, stem[0], 3, 2, 1, bias=False), nn.BatchNorm2d(stem[0]), nn.ReLU())
        self.stem = nn.Sequential(first, mobile_pair(*stem, 1))
        before = stem[1]
        for n, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
            blocks = [mobile_pair(width if i else before, width, 1 if i else 2) for i in range(depth)]
            self.add_module(f"layer{n}", nn.Sequential(*blocks))
            before = width

    def forward(self, x):
        x, found = self.stem(x), []
        for n in range(1, 5):
            x = getattr(self, f"layer{n}")(x)
            found.append(x)
        return found[1:]


class Residual(nn.Module):
    def __init__(self, a, inner, stride, bottleneck, pool_always):
        super().__init__()
        b = inner * (4 if bottleneck else 1)
        sizes = ((a, inner, 1, 1), (inner, inner, 3, stride), (inner, b, 1, 1))
        sizes = sizes if bottleneck else ((a, inner, 3, stride), (inner, b, 3, 1))
        for n, (i, o, size, step) in enumerate(sizes, 1):
            self.add_module(f"conv{n}", nn.Conv2d(i, o, size, step, size // 2, bias=False))
            self.add_module(f"bn{n}", nn.BatchNorm2d(o))
        self.count, self.downsample = len(sizes), None
        if stride > 1 or a != b:
            layers = [nn.AvgPool2d(stride, stride, 0, True, False)] if stride > 1 or pool_always else []
            self.downsample = nn.Sequential(*layers, nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        for n in range(1, self.count + 1):
            x = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(x))
            x = x.relu() if n < self.count else x
        return (x + shortcut).relu()


class ResidualTrunk(nn.Module):
    def __init__(self, stem, widths, depths, bottleneck, pool_always):
        super().__init__()
        layers = []
        for a, b, stride in ((3, stem // 2, 2), (stem // 2, stem // 2, 1), (stem // 2, stem, 1)):
            layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.stem, a = nn.Sequential(*layers), stem
        for n, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
            blocks = []
            for i in range(depth):
                blocks.append(Residual(a, width, 2 if n > 1 and not i else 1, bottleneck, pool_always))
                a = width * (4 if bottleneck else 1)
            self.add_module(f"layer{n}", nn.Sequential(*blocks))

    def forward(self, x):
        x, found = F.max_pool2d(self.stem(x), 2, 2, ceil_mode=True), []
        for n in range(1, 5):
            x = getattr(self, f"layer{n}")(x)
            found.append(x)
        return found[1:]


class Neck(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.lateral_convs = nn.ModuleList(Unit(a, width) for a in inputs)
        self.fpn_convs = nn.ModuleList(Unit(width, width, 3) for _ in inputs)
        self.downsample_convs = nn.ModuleList(Unit(width, width, 3, 2) for _ in inputs[1:])
        self.pafpn_convs = nn.ModuleList(Unit(width, width, 3) for _ in inputs[1:])

    def forward(self, maps):
        maps = [layer(x) for layer, x in zip(self.lateral_convs, maps, strict=True)]
        for i in (2, 1):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[2:], mode="nearest")
        maps = [layer(x) for layer, x in zip(self.fpn_convs, maps, strict=True)]
        for i in (0, 1):
            maps[i + 1] = maps[i + 1] + self.downsample_convs[i](maps[i])
        return [maps[0], *(layer(x) for layer, x in zip(self.pafpn_convs, maps[1:], strict=True))]


class SCRFDReference(nn.Module):
    def __init__(self, trunk, inputs, neck, head, depth, separable, groups, shared, points):
        super().__init__()
        self.backbone, self.neck, self.bbox_head = trunk, Neck(inputs, neck), nn.Module()
        self.keys = ["0"] * 3 if shared else [f"({s}, {s})" for s in (8, 16, 32)]
        kinds = {"cls": 2, "reg": 8, **({"kps": 20} if points else {})}
        for name in ("cls_stride_convs", "reg_stride_convs", *(f"stride_{kind}" for kind in kinds)):
            setattr(self.bbox_head, name, nn.ModuleDict())
        for key in dict.fromkeys(self.keys):
            tower, a = nn.ModuleList(), neck
            for _ in range(depth):
                unit = SeparableUnit(a, head, groups) if separable else Unit(a, head, 3, norm=groups, act=F.relu)
                tower.append(unit)
                a = head
            self.bbox_head.cls_stride_convs[key], self.bbox_head.reg_stride_convs[key] = tower, nn.ModuleList()
            for kind, size in kinds.items():
                getattr(self.bbox_head, f"stride_{kind}")[key] = nn.Conv2d(head, size, 3, padding=1)
        self.kinds, self.shared = kinds, shared
        if shared:
            self.bbox_head.scales = nn.ModuleList(nn.Module() for _ in range(3))
            for i, scale in enumerate(self.bbox_head.scales):
                scale.scale = nn.Parameter(torch.tensor(1.0 + i / 4))
        self.bbox_head.integral = nn.Module()
        self.bbox_head.integral.register_buffer("project", torch.linspace(0, 8, 9))

    def forward(self, x):
        found = {kind: [] for kind in self.kinds}
        for i, (level, key) in enumerate(zip(self.neck(self.backbone(x)), self.keys, strict=True)):
            for layer in self.bbox_head.cls_stride_convs[key]:
                level = layer(level)
            for kind, size in self.kinds.items():
                y = getattr(self.bbox_head, f"stride_{kind}")[key](level)
                y = y * self.bbox_head.scales[i].scale if kind == "reg" and self.shared else y
                found[kind].append(y.permute(0, 2, 3, 1).reshape(len(y), -1, size // 2))
        return {kind: torch.cat(parts, 1) for kind, parts in found.items()}


def mobile_scrfd():
    sizes = ((4, 6), (8, 8, 12, 10), (1, 2, 1, 2))
    ours = scrfd.Net(partial(scrfd.MobileTrunk, *sizes), 8, 16, separable=True, norm_groups=4)
    return ours, SCRFDReference(MobileTrunk(*sizes), (8, 12, 10), 8, 16, 2, True, 4, True, 0)


def residual_scrfd():
    sizes = (8, (6, 6, 10, 8), (1, 2, 1, 1))
    ours = scrfd.Net(partial(scrfd.ResidualTrunk, *sizes), 8, 12, 3, **scrfd.KEYPOINTS)
    theirs = ResidualTrunk(*sizes, False, True)
    return ours, SCRFDReference(theirs, (6, 10, 8), 8, 12, 3, False, 0, False, 5)


def bottleneck_scrfd():
    sizes = (8, (2, 3, 4, 2), (2, 1, 1, 1))
    ours = scrfd.Net(partial(scrfd.ResidualTrunk, *sizes, True), 8, 12, norm_groups=3)
    return ours, SCRFDReference(ResidualTrunk(*sizes, True, False), (12, 16, 8), 8, 12, 2, False, 3, True, 0)


@pytest.mark.parametrize(
    ("make", "size"), [(mobile_scrfd, (61, 93)), (residual_scrfd, (45, 77)), (bottleneck_scrfd, (77, 45))]
)
def test_scrfd(make, size, tmp_path):
    ours, theirs = make()
    theirs = randomized(theirs).eval()
    path = saved(tmp_path / "model.pth", theirs, optimizer={"state": {0: {"momentum_buffer": torch.ones(3)}}})
    variables = scrfd_files.load(path, template(ours, jnp.zeros((1, 32, 32, 3))))
    found = jax.jit(partial(ours.apply, train=False))(variables, images(size))
    expected = theirs(nchw(images(size)))
    assert_near(found["scores"], numpy_nhwc(expected["cls"])[..., 0], 1e-4)
    assert_near(found["boxes"], numpy_nhwc(expected["reg"]), 1e-4)
    if "kps" in expected:
        assert_near(found["points"].reshape(2, -1, 10), numpy_nhwc(expected["kps"]), 1e-4)


class CenterFaceReference(nn.Module):
    """MobileNet V2 of a width of 0.25, and the pyramid, with the heads' names in the published file."""

    GROUPS = ((1, 8, 1, 1), (6, 8, 2, 2), (6, 8, 3, 2), (6, 16, 4, 2), (6, 24, 3, 1), (6, 40, 3, 2), (6, 80, 1, 1))

    def __init__(self):
        super().__init__()
        self.stem, a, self.groups = Unit(3, 8, 3, 2, norm=0, act=F.relu), 8, nn.ModuleList()
        for t, b, count, stride in self.GROUPS:
            blocks = nn.ModuleList()
            for i in range(count):
                layers = [Unit(a, a * t, norm=0, act=F.relu)] if t > 1 else []
                layers.append(Unit(a * t, a * t, 3, stride if i == 0 else 1, a * t, 0, F.relu))
                blocks.append(nn.Sequential(*layers, Unit(a * t, b, norm=0)))
                a = b
            self.groups.append(blocks)
        self.lateral = nn.ModuleList(Unit(b, 8, norm=0, act=F.relu) for b in (80, 24, 8, 8))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)
        )
        self.merge = Unit(8, 8, 3, norm=0, act=F.relu)
        for name, size in {"pos": 1, "reg": 2, "off": 2, "lm": 10}.items():
            self.add_module(f"{name}_conv", nn.Conv2d(8, size, 1))

    def forward(self, x):
        x, maps = self.stem(x), []
        for (_, _, _, stride), blocks in zip(self.GROUPS, self.groups, strict=True):
            for i, block in enumerate(blocks):
                y = block(x)
                x = y + x if y.shape == x.shape and (i or stride == 1) else y
            maps.append(x)
        x = self.lateral[0](maps[6])
        for up, lateral, level in zip(self.up, self.lateral[1:], (4, 2, 1), strict=True):
            x = up(x) + lateral(maps[level])
        x = self.merge(x)
        return self.pos_conv(x).sigmoid(), self.reg_conv(x), self.off_conv(x), self.lm_conv(x)


def test_centerface(tmp_path):
    theirs, ours = randomized(CenterFaceReference()).eval(), centerface.Net(0.25, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(theirs, torch.zeros(1, 3, 32, 32), tmp_path / "c.onnx", dynamo=False)
    variables = centerface_files.load(tmp_path / "c.onnx", template(ours, jnp.zeros((1, 32, 32, 3))))
    run = jax.jit(partial(ours.apply, train=False))
    for size in ((32, 96), (64, 32)):
        found = run(variables, images(size))
        for name, want in zip(centerface.OUTPUTS, theirs(nchw(images(size))), strict=True):
            got = jax.nn.sigmoid(found[name]) if name == "heat" else found[name]
            assert_near(got, numpy_nhwc(want), 1e-4, name)
    with pytest.raises(ValueError, match=r"c\.onnx: 63 layers, expected 66$"):
        params = template(ours, jnp.zeros((1, 32, 32, 3)))["params"]
        centerface_files.load(tmp_path / "c.onnx", {"params": {**params, "group9_0": params["group1_0"]}})


def silu(a, b, size=1, stride=1):
    return Unit(a, b, size, stride, 1, 0, F.silu)


class Stem(nn.Module):
    def __init__(self, b):
        super().__init__()
        self.stem_1, self.stem_2a, self.stem_2b = silu(3, b, 3, 2), silu(b, b // 2), silu(b // 2, b, 3, 2)
        self.stem_3 = silu(2 * b, b)

    def forward(self, x):
        x = self.stem_1(x)
        return self.stem_3(torch.cat([self.stem_2b(self.stem_2a(x)), F.max_pool2d(x, 2, 2, ceil_mode=True)], 1))


class Bottleneck(nn.Module):
    def __init__(self, a, shortcut):
        super().__init__()
        self.cv1, self.cv2, self.shortcut = silu(a, a), silu(a, a, 3), shortcut

    def forward(self, x):
        return self.cv2(self.cv1(x)) + (x if self.shortcut else 0)


class C3(nn.Module):
    def __init__(self, a, b, depth, shortcut):
        super().__init__()
        self.cv1, self.cv2, self.cv3 = silu(a, b // 2), silu(a, b // 2), silu(b, b)
        self.m = nn.Sequential(*(Bottleneck(b // 2, shortcut) for _ in range(depth)))

    def forward(self, x):
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))


class SPP(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.cv1, self.cv2 = silu(a, a // 2), silu(2 * a, b)

    def forward(self, x):
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(F.max_pool2d(x, k, 1, k // 2) for k in (3, 5, 7))], 1))


class Shuffle(nn.Module):
    def __init__(self, a, b, stride):
        super().__init__()
        half, inner = b // 2, a if stride > 1 else b // 2

        def wide(i, o, size=1, groups=1):
            step = stride if size > 1 else 1
            return [nn.Conv2d(i, o, size, step, size // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]

        self.stride, self.branch1 = stride, nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(*wide(a, a, 3, a), *wide(a, half), nn.SiLU())
        parts = [*wide(inner, half), nn.SiLU(), *wide(half, half, 3, half), *wide(half, half), nn.SiLU()]
        self.branch2 = nn.Sequential(*parts)

    def forward(self, x):
        first, second = x.chunk(2, 1) if self.stride == 1 else (self.branch1(x), x)
        x = torch.cat([first, self.branch2(second)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Detect(nn.Module):
    def __init__(self, widths, anchors):
        super().__init__()
        self.m = nn.ModuleList(nn.Conv2d(a, 48, 1) for a in widths)
        sides = torch.tensor(anchors).float().view(len(widths), 3, 2)
        self.register_buffer("anchors", sides / 8 / 2.0 ** torch.arange(len(widths))[:, None, None])
        self.register_buffer("anchor_grid", sides.view(-1, 1, 3, 1, 1, 2))


class YOLO(nn.Module):
    """`modules` are numbered as in the authors' files; `taps` are the modules whose results the neck reads."""

    def __init__(self, trunk, taps, widths, neck, depth, anchors):
        super().__init__()
        layers, self.taps, self.joins, self.ends = list(trunk), taps, {}, []
        a, levels = widths[-1], len(widths)
        laterals = {}
        for i in reversed(range(levels - 1)):
            laterals[i] = len(layers)
            layers += [silu(a, neck[i]), nn.Upsample(scale_factor=2), nn.Identity()]
            self.joins[len(layers) - 1] = taps[i]
            layers.append(C3(neck[i] + widths[i], neck[i], depth, False))
            a = neck[i]
        self.ends.append(len(layers) - 1)
        for i in range(levels - 1):
            layers += [silu(a, neck[i], 3, 2), nn.Identity()]
            self.joins[len(layers) - 1] = laterals[i]
            layers.append(C3(2 * neck[i], neck[i + 1], depth, False))
            a = neck[i + 1]
            self.ends.append(len(layers) - 1)
        self.model = nn.Sequential(*layers, Detect(neck, anchors))

    def forward(self, x):
        found = []
        for i, layer in enumerate(self.model[:-1]):
            if i in self.joins:
                other = found[self.joins[i]]
                x = torch.cat([x[..., : other.shape[2], : other.shape[3]], other], 1)
            x = layer(x)
            found.append(x)
        rows = [conv(found[i]) for conv, i in zip(self.model[-1].m, self.ends, strict=True)]
        return torch.cat([y.permute(0, 2, 3, 1).reshape(len(y), -1, 16) for y in rows], 1)


def csp_yolo(levels):
    ours = yolo5face.csp(0.05, 0.34, levels)
    widths = [yolo5face.scaled(c, 0.05) for c in yolo5face.csp_widths(levels)]
    first, second = (yolo5face.scaled(c, 0.05) for c in (64, 128))
    layers, a, taps = [Stem(first), C3(first, second, 1, True)], second, []
    for i, width in enumerate(widths):
        layers.append(silu(a, width, 3, 2))
        if i == levels - 1:
            layers.append(SPP(width, width))
        layers.append(C3(width, width, 3 if i < 2 else 1, i < levels - 1))
        taps.append(len(layers) - 1)
        a = width
    anchors = yolo5face_files.ANCHORS[levels]
    return ours, YOLO(layers, taps, widths, ours.neck, ours.depth, anchors)


def shuffle_yolo(depths=(3, 2, 1)):
    widths, neck = (8, 12, 16), (8, 12, 8)
    ours = yolo5face.Net(partial(yolo5face.ShuffleTrunk, 8, widths, depths), neck, 1)
    layers, a, taps = [Stem(8)], 8, []
    for width, depth in zip(widths, depths, strict=True):
        rest = [Shuffle(width, width, 1) for _ in range(depth - 1)]
        layers += [Shuffle(a, width, 2), rest[0] if len(rest) == 1 else nn.Sequential(*rest)]
        taps.append(len(layers) - 1)
        a = width
    return ours, YOLO(layers, taps, widths, neck, 1, yolo5face_files.ANCHORS[3])


@pytest.mark.parametrize(
    ("make", "size"),
    [(partial(csp_yolo, 3), (77, 45)), (partial(csp_yolo, 4), (64, 141)), (shuffle_yolo, (45, 61))],
    ids=["csp", "p6", "shuffle"],
)
def test_yolo5face(make, size, tmp_path):
    """The file holds the pickled module in 16 bits, as the authors' does."""
    ours, theirs = make()
    anchors = theirs.model[-1].anchors.clone()
    theirs = randomized(theirs).half().float().eval()
    theirs.model[-1].anchors.copy_(anchors)
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-3
    torch.save({"epoch": -1, "model": theirs.half(), "ema": None, "optimizer": None}, tmp_path / "face.pt")
    variables = yolo5face_files.load(tmp_path / "face.pt", template(ours, jnp.zeros((1, 64, 64, 3))))
    found = jax.jit(partial(ours.apply, train=False))(variables, images(size))
    expected = numpy_nhwc(theirs.float()(nchw(images(size))))
    assert_near(found["boxes"], expected[..., :4], 2e-4)
    assert_near(found["scores"], expected[..., 4], 2e-4)
    assert_near(found["points"].reshape(2, -1, 10), expected[..., 5:15], 2e-4)
    assert_near(found["classes"], expected[..., 15], 2e-4)


def test_yolo5face_with_other_anchors(tmp_path):
    ours, theirs = shuffle_yolo()
    theirs.model[-1].anchors *= 1.5
    torch.save({"model": theirs}, tmp_path / "face.pt")
    with pytest.raises(
        ValueError, match=r"face\.pt: its anchors, in cells, are \[ 0\.8  0\.9  1\.5 .*; expected \[ 0\.5 "
    ):
        yolo5face_files.load(tmp_path / "face.pt", template(ours, jnp.zeros((1, 64, 64, 3))))
    for levels, detector in ((3, yolo5face.YOLO5Face), (4, yolo5face.yolo5face_p6)):
        assert detector(None).anchors == tuple(
            tuple(map(tuple, np.reshape(a, (3, 2)).tolist())) for a in yolo5face_files.ANCHORS[levels]
        )


class GraphConv(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(2 * a, b)), nn.Parameter(torch.zeros(b))

    def forward(self, x, adjacency):
        return (torch.cat([x, adjacency @ x], -1) @ self.weight + self.bias).relu()


class Clusterer(nn.Module):
    """GCN-V, GCN-E and the two parts of STAR-FC."""

    def __init__(self, widths, inputs, outputs):
        super().__init__()
        for i, (a, b) in enumerate(itertools.pairwise(widths), 1):
            self.add_module(f"conv{i}", GraphConv(a, b))
        self.classifier = nn.Sequential(
            nn.Linear(inputs, widths[-1]), nn.PReLU(widths[-1]), nn.Linear(widths[-1], outputs)
        )

    def hidden(self, x, adjacency):
        for name, layer in self.named_children():
            x = layer(x, adjacency) if name.startswith("conv") else x
        return x


def stochastic(rng, *shape):
    weights = rng.uniform(size=shape) * (rng.uniform(size=shape) < 0.4) + 1e-3
    return np.float32(weights / weights.sum(-1, keepdims=True))


@pytest.mark.parametrize("nodes", [7, 13])
def test_gcn_v_and_gcn_e(nodes, tmp_path):
    rng = np.random.default_rng(nodes)
    theirs = randomized(Clusterer((5, 8), 8, 1))
    x, adjacency = np.float32(rng.normal(size=(nodes, 5))), stochastic(rng, nodes, nodes)
    row, column = np.nonzero(adjacency)
    graph = graphs.make_graph(column, row, nodes, adjacency[row, column])
    ours = vegcn.GCNV(8)
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), x, graph))
    variables = clustering.load(saved(tmp_path / "v.pth", theirs), shapes)
    hidden = theirs.hidden(torch.tensor(x), torch.tensor(adjacency))
    found = ours.apply(variables, x, graph)
    assert_near(found[0], theirs.classifier(hidden)[:, 0].detach())
    assert_near(found[1], hidden.detach())

    theirs, ours = randomized(Clusterer((5, 8, 8, 4, 4), 4, 2)), vegcn.GCNE((8, 8, 4, 4))
    x, adjacency = np.float32(rng.normal(size=(3, nodes, 5))), stochastic(rng, 3, nodes, nodes)
    inputs = vegcn.Subgraphs(x, adjacency, np.ones((3, nodes), bool))
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), inputs))
    variables = clustering.load(saved(tmp_path / "e.pth", theirs), shapes)
    hidden = theirs.hidden(torch.tensor(x), torch.tensor(adjacency))
    expected = theirs.classifier(hidden.flatten(0, 1)).view(3, nodes, 2)
    assert_near(ours.apply(variables, inputs), expected.detach())


@pytest.mark.parametrize("files", [1, 2])
def test_star_fc(files, tmp_path):
    rng = np.random.default_rng(files)
    theirs, ours = randomized(Clusterer((5, 8), 16, 2)), star_fc.EdgeNet(8)
    x, adjacency = np.float32(rng.normal(size=(9, 5))), stochastic(rng, 9, 9)
    row, column = np.nonzero(adjacency)
    graph = graphs.make_graph(column, row, 9, adjacency[row, column])
    first, second = rng.integers(0, 9, (2, 20))
    state = theirs.state_dict()
    head = {name: tensor for name, tensor in state.items() if name.startswith("classifier")}
    if files == 2:
        torch.save(head, tmp_path / "Head_Epoch_4.pth")
        state = {name: tensor for name, tensor in state.items() if name not in head}
    torch.save(state, tmp_path / "Backbone_Epoch_4.pth")
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), x, graph, first, second))
    variables = clustering.load_star_fc(tmp_path / "Backbone_Epoch_4.pth", shapes)
    hidden = theirs.hidden(torch.tensor(x), torch.tensor(adjacency))
    expected = theirs.classifier(torch.cat([hidden[first], hidden[second]], 1))
    assert_near(ours.apply(variables, x, graph, first, second), expected.detach())


def edges(rng, nodes):
    source, destination = graphs.undirected(*rng.integers(0, nodes, (2, 4 * nodes)))
    apart = source != destination
    return source[apart], destination[apart]


@pytest.mark.parametrize(("nodes", "heads"), [(11, 1), (17, 3)])
def test_gat(nodes, heads, tmp_path):
    geometric = pytest.importorskip("torch_geometric.nn")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = geometric.GATConv(5, 4, heads=2)
            self.conv2 = geometric.GATConv(8, 3, heads=heads, concat=heads == 1)

        def forward(self, x, index):
            return self.conv2(F.elu(self.conv1(x, index)), index)

    rng = np.random.default_rng(nodes)
    theirs, ends = randomized(Net()), edges(rng, nodes)
    x, ours = np.float32(rng.normal(size=(nodes, 5))), gat.GAT(3, (4,), (2, heads))
    graph = gat.neighborhood(*ends, nodes)
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), x, graph, train=False))
    path = tmp_path / "gat.pt"
    torch.save(theirs.state_dict(), path)
    variables = geometric_files.load_gat(path, shapes)
    expected = theirs(torch.tensor(x), torch.tensor(np.stack(ends)))
    assert_near(ours.apply(variables, x, graph, train=False), expected.detach(), 1e-5)
    options = {"num_classes": 3, "widths": (4,), "heads": (2, heads)}
    with pytest.raises(ValueError, match=r"unused: conv1\.lin\.weight \(8, 5\)"):
        facejax.load_pretrained("gat_cora", path, **options)


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_gcn(bias, tmp_path):
    geometric = pytest.importorskip("torch_geometric.nn")
    rng = np.random.default_rng(0)
    theirs = geometric.GCN(5, 6, 2, out_channels=3, dropout=0.0)
    for name, tensor in theirs.named_parameters():
        nn.init.constant_(tensor, bias) if name.endswith("bias") else nn.init.normal_(tensor)
    torch.save(theirs.state_dict(), tmp_path / "gcn.pt")
    ends, x = edges(rng, 11), np.float32(rng.normal(size=(11, 5)))
    ours, rows = gcn.GCN(3, 6), gcn.SparseFeatures.from_dense(x)
    graph = gcn.renormalized(*ends, 11)
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), rows, graph, train=False))
    if bias:
        with pytest.raises(ValueError, match=r"convs\.0\.bias \(6,\), because it is not zeros"):
            geometric_files.load_gcn(tmp_path / "gcn.pt", shapes)
        return
    variables = geometric_files.load_gcn(tmp_path / "gcn.pt", shapes)
    expected = theirs(torch.tensor(x), torch.tensor(np.stack(ends)))
    assert_near(ours.apply(variables, rows, graph, train=False), expected.detach(), 1e-5)
