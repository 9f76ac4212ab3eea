"""YOLO5Face's layers and loss compared with PyTorch code written here from their description."""

import math

import jax
import numpy as np
import pytest

from facejax.detection import yolo5face
from facejax.interop.names import IGNORED, Rule, batch_norm
from tests.detection.test_yolo5face import SIZE, brute_matches, levels, model, random_raw, scene
from tests.parity.networks import assert_equal_training, assert_near, nchw, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, functional = torch.nn, torch.nn.functional


class Reference(nn.Module):
    """Layers are made at their first use, with the names of ours."""

    def __init__(self, images, trunk, neck, depth, focus=False):
        super().__init__()
        self.focus = focus
        self.trunk, self.neck, self.depth, self.layers = trunk, neck, depth, nn.ModuleDict()
        self(nchw(images))

    def conv(self, name, x, features, kernel=1, stride=1, groups=1, silu=True):
        if f"{name}/conv" not in self.layers:
            layer = nn.Conv2d(x.shape[1], features, kernel, stride, kernel // 2, groups=groups, bias=False)
            self.layers[f"{name}/conv"] = layer
            self.layers[f"{name}/bn"] = nn.BatchNorm2d(features, eps=1e-3, momentum=0.03)
        x = self.layers[f"{name}/bn"](self.layers[f"{name}/conv"](x))
        return functional.silu(x) if silu else x

    def stem(self, x, features):
        if self.focus:
            x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
            return self.conv("trunk/stem/down", self.conv("trunk/stem/first", x, features // 2, 3), features, 3, 2)
        x = self.conv("trunk/stem/first", x, features, 3, 2)
        y = self.conv("trunk/stem/down", self.conv("trunk/stem/narrow", x, features // 2), features, 3, 2)
        return self.conv("trunk/stem/join", torch.cat([y, functional.max_pool2d(x, 2, 2, ceil_mode=True)], 1), features)

    def c3(self, name, x, features, depth, shortcut):
        y, plain = (self.conv(f"{name}/{part}", x, features // 2) for part in ("deep", "plain"))
        for i in range(depth):
            z = self.conv(f"{name}/expand{i}", self.conv(f"{name}/reduce{i}", y, features // 2), features // 2, 3)
            y = y + z if shortcut else z
        return self.conv(f"{name}/join", torch.cat([y, plain], 1), features)

    def spp(self, x, features):
        x = self.conv("trunk/spp/reduce", x, x.shape[1] // 2)
        pooled = [functional.max_pool2d(x, k, 1, k // 2) for k in (3, 5, 7)]
        return self.conv("trunk/spp/join", torch.cat([x, *pooled], 1), features)

    def shuffle(self, name, x, features, stride):
        half = features // 2
        if stride == 1:
            first, second = x.chunk(2, 1)
        else:
            first = self.conv(f"{name}/branch1_depthwise", x, x.shape[1], 3, 2, x.shape[1], False)
            first, second = self.conv(f"{name}/branch1_conv", first, half), x
        second = self.conv(f"{name}/conv1", second, half)
        second = self.conv(f"{name}/depthwise", second, half, 3, stride, half, False)
        x = torch.cat([first, self.conv(f"{name}/conv2", second, half)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    def features(self, x):
        found = []
        if isinstance(self.trunk[0], float):
            width, depth, count = self.trunk
            wide = {32: (256, 512, 1024), 64: (256, 512, 768, 1024)}[4 * 2**count]
            first, second, *wide = (math.ceil(c * width / 8) * 8 for c in (64, 128, *wide))
            often = [max(round(n * depth), 1) for n in (3, 9, 9, *(3,) * (count - 2))]
            x = self.c3("trunk/stage2", self.stem(x, first), second, often[0], True)
            for i, (c, n) in enumerate(zip(wide, often[1:], strict=True)):
                x = self.conv(f"trunk/down{i + 3}", x, c, 3, 2)
                x = self.spp(x, c) if i == count - 1 else x
                x = self.c3(f"trunk/stage{i + 3}", x, c, n, i < count - 1)
                found.append(x)
            return found
        first, widths, often = self.trunk
        x = self.stem(x, first)
        for stage, (c, n) in enumerate(zip(widths, often, strict=True), 3):
            for i in range(n):
                x = self.shuffle(f"trunk/stage{stage}_{i}", x, c, 1 if i else 2)
            found.append(x)
        return found

    def forward(self, x):
        found, lateral = self.features(x), {}
        x = found[-1]
        for i in reversed(range(len(found) - 1)):
            x = lateral[i] = self.conv(f"lateral{i}", x, self.neck[i])
            x = functional.interpolate(x, scale_factor=2)[..., : found[i].shape[2], : found[i].shape[3]]
            x = self.c3(f"up{i}", torch.cat([x, found[i]], 1), self.neck[i], self.depth, False)
        outputs = [x]
        for i in range(len(found) - 1):
            x = torch.cat([self.conv(f"down{i}", x, self.neck[i], 3, 2), lateral[i]], 1)
            x = self.c3(f"out{i + 1}", x, self.neck[i + 1], self.depth, False)
            outputs.append(x)
        rows = []
        for i, y in enumerate(outputs):
            if f"detect{i}" not in self.layers:
                self.layers[f"detect{i}"] = nn.Conv2d(y.shape[1], 48, 1)
            rows.append(self.layers[f"detect{i}"](y).permute(0, 2, 3, 1).reshape(len(y), -1, 16))
        y = torch.cat(rows, 1)
        points = y[..., 5:15].reshape(*y.shape[:2], 5, 2)
        return [y[..., :4], y[..., 15], points.permute(0, 3, 1, 2), y[..., 4]]


RULES = [
    IGNORED,
    Rule(r"layers\.(detect\d)\.weight", r"params/\1/kernel", "conv"),
    Rule(r"layers\.(detect\d)\.bias", r"params/\1/bias"),
    Rule(r"layers\.(.+/conv)\.weight", r"params/\1/kernel", "conv"),
    *batch_norm(r"layers\.(.+/bn)", r"\1"),
]


@pytest.mark.parametrize(("size", "focus"), [((64, 96), True), ((45, 61), False), ((75, 33), False)])
def test_shuffle_network_in_training(size, focus):
    images = np.random.default_rng(0).normal(size=(3, *size, 3)).astype(np.float32)
    trunk, neck = (8, (8, 12, 16), (2, 1, 2)), (8, 12, 8)
    stem = yolo5face.Focus if focus else yolo5face.StemBlock
    ours = yolo5face.Net(lambda **options: yolo5face.ShuffleTrunk(*trunk, stem, **options), neck, 2)
    theirs = randomized(Reference(images, trunk, neck, 2, focus))
    assert_equal_training(ours, theirs, images, RULES, outputs=1e-4, inputs=2e-3, params=1e-3, statistics=1e-4)


@pytest.mark.parametrize(("size", "count"), [((64, 96), 3), ((75, 141), 4)])
def test_csp_network_in_training(size, count):
    images = np.random.default_rng(1).normal(size=(3, *size, 3)).astype(np.float32)
    ours = yolo5face.csp(0.05, 0.3, count)
    theirs = randomized(Reference(images, (0.05, 0.3, count), ours.neck, ours.depth))
    assert_equal_training(ours, theirs, images, RULES, outputs=1e-4, inputs=2e-3, params=1e-3, statistics=1e-4)


def ciou(a, b):
    """Complete IoU of boxes (centre, size) [n, 4], the weight of its aspect term constant."""
    low, high = (torch.stack([x[:, :2] + side * x[:, 2:] / 2 for x in (a, b)]) for side in (-1, 1))
    shared = (high.amin(0) - low.amax(0)).clamp(0).prod(1)
    overlap = shared / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - shared)
    distance = ((a[:, :2] - b[:, :2]) ** 2).sum(1) / ((high.amax(0) - low.amin(0)) ** 2).sum(1)
    aspect = 4 / math.pi**2 * (torch.atan(b[:, 2] / b[:, 3]) - torch.atan(a[:, 2] / a[:, 3])) ** 2
    with torch.no_grad():
        weight = aspect / (1 - overlap + aspect + 1e-7)
    return overlap - distance - weight * aspect


def torch_loss(detector, raw, truth):
    """The loss of a batch, one list of matches a level; a later match replaces the objectness target."""
    total, start = 0.0, 0
    for (stride, anchors, rows, columns), balance in zip(levels(detector), detector.balance, strict=True):
        count, wide = rows * columns * len(anchors), torch.tensor(anchors / stride, dtype=torch.float64)
        goal = torch.zeros(len(truth.boxes), count, dtype=torch.float64)
        boxes, wanted, points, errors, places = [], [], [], [], []
        for n in range(len(truth.boxes)):
            for a, i, j, g in brute_matches(truth, n, stride, anchors, rows, columns):
                at = (i * columns + j) * len(anchors) + a
                t = raw["boxes"][n, start + at].sigmoid()
                boxes.append(torch.cat([2 * t[:2] - 0.5, (2 * t[2:]) ** 2 * wide[a]]))
                x1, y1, x2, y2 = np.float64(truth.boxes[n, g]) / stride
                wanted.append([(x1 + x2) / 2 - j, (y1 + y2) / 2 - i, x2 - x1, y2 - y1])
                places.append((n, at))
                target = torch.tensor(np.float64(truth.points[n, g]) / stride - [j, i])
                errors.append((raw["points"][n, start + at] * wide[a] - target)[truth.visible[n, g]].reshape(-1))
        overlap = ciou(torch.stack(boxes), torch.tensor(np.array(wanted)))
        for (n, at), value in zip(places, overlap.detach(), strict=True):
            goal[n, at] = value.clamp(0)
        size = torch.cat(errors).abs()
        points = torch.where(size < 10, 10 * torch.log(1 + size / 2), size - 10 + 10 * math.log(6))
        scores = functional.binary_cross_entropy_with_logits(raw["scores"][:, start : start + count], goal)
        total = total + 0.05 * (1 - overlap).mean() + balance * scores + 0.005 * points.mean()
        start += count
    return 64 * total


def test_loss_and_gradients():
    detector, truth = model(), scene(1, faces=8)
    raw = random_raw(detector, 2)
    tensors = {name: torch.tensor(np.float64(x), requires_grad=True) for name, x in raw.items()}
    expected = torch_loss(detector, tensors, truth)
    expected.backward()

    @jax.jit
    def ours(raw):
        return sum(term.value() for term in detector.losses(raw, truth, SIZE).values())

    value, slopes = jax.value_and_grad(ours)(raw)
    np.testing.assert_allclose(value, expected.item(), rtol=2e-6)
    for name in ("boxes", "scores", "points"):
        assert_near(slopes[name], tensors[name].grad.numpy(), 1e-5, name)
    assert not np.asarray(slopes["classes"]).any()
