"""RetinaFace compared with PyTorch modules and the multibox loss, built here from the layer lists and the rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones.resnet import ResNet
from facejax.detection.base import Truth
from facejax.detection.retinaface import MobileNetBody, RetinaFace, RetinaFaceNet, retinaface_mobilenet025
from facejax.interop import retinaface as interop
from tests.parity.networks import assert_equal_training, assert_near, converted, nchw, numpy_nhwc, randomized, template
from tests.parity.test_resnet_torch import Reference as ResNetReference

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional


def conv(inputs, outputs, size, stride=1, groups=1, slope=0.0):
    layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([] if slope is None else [nn.LeakyReLU(slope)]))


def pair(inputs, outputs, stride, slope):
    return nn.Sequential(*conv(inputs, inputs, 3, stride, inputs, slope), *conv(inputs, outputs, 1, slope=slope))


class Body(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.stage1 = nn.Sequential(
            conv(3, 8, 3, 2, slope=slope), pair(8, 16, 1, slope), pair(16, 32, 2, slope), pair(32, 32, 1, slope),
            pair(32, 64, 2, slope), pair(64, 64, 1, slope),
        )  # fmt: skip
        self.stage2 = nn.Sequential(pair(64, 128, 2, slope), *[pair(128, 128, 1, slope) for _ in range(5)])
        self.stage3 = nn.Sequential(pair(128, 256, 2, slope), pair(256, 256, 1, slope))

    def stages(self, x):
        maps = [self.stage1(x)]
        maps.append(self.stage2(maps[-1]))
        return [*maps, self.stage3(maps[-1])]


class Pyramid(nn.Module):
    def __init__(self, inputs, c, slope):
        super().__init__()
        for i, a in enumerate(inputs, 1):
            setattr(self, f"output{i}", conv(a, c, 1, slope=slope))
        self.merge1, self.merge2 = conv(c, c, 3, slope=slope), conv(c, c, 3, slope=slope)

    def forward(self, maps):
        one, two, three = (getattr(self, f"output{i}")(x) for i, x in enumerate(maps, 1))
        two = self.merge2(two + F.interpolate(three, size=two.shape[2:], mode="nearest"))
        return self.merge1(one + F.interpolate(two, size=one.shape[2:], mode="nearest")), two, three


class Context(nn.Module):
    def __init__(self, c, slope):
        super().__init__()
        self.conv3X3, self.conv5X5_1 = conv(c, c // 2, 3, slope=None), conv(c, c // 4, 3, slope=slope)
        self.conv5X5_2, self.conv7X7_2 = conv(c // 4, c // 4, 3, slope=None), conv(c // 4, c // 4, 3, slope=slope)
        self.conv7x7_3 = conv(c // 4, c // 4, 3, slope=None)

    def forward(self, x):
        shared = self.conv5X5_1(x)
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))], 1))


class OneHead(nn.Module):
    def __init__(self, c, outputs):
        super().__init__()
        self.conv1x1 = nn.Conv2d(c, outputs, 1)


class Reference(nn.Module):
    def __init__(self, body, inputs, c, slope):
        super().__init__()
        self.body, self.fpn = body, Pyramid(inputs, c, slope)
        self.ssh1, self.ssh2, self.ssh3 = (Context(c, slope) for _ in range(3))
        self.BboxHead, self.ClassHead, self.LandmarkHead = (
            nn.ModuleList(OneHead(c, 2 * size) for _ in range(3)) for size in (4, 2, 10)
        )

    def forward(self, x):
        maps = self.fpn(self.body.stages(x)[-3:])
        maps = [ssh(x) for ssh, x in zip((self.ssh1, self.ssh2, self.ssh3), maps, strict=True)]
        found = {}
        for name, heads, size in (
            ("boxes", self.BboxHead, 4), ("logits", self.ClassHead, 2), ("points", self.LandmarkHead, 10)
        ):  # fmt: skip
            parts = [
                h.conv1x1(x).permute(0, 2, 3, 1).reshape(len(x), -1, size) for h, x in zip(heads, maps, strict=True)
            ]
            found[name] = torch.cat(parts, 1)
        return found | {"points": found["points"].reshape(len(x), -1, 5, 2).permute(0, 3, 1, 2)}  # as a feature map


def resnet_body():
    body = ResNetReference("v1.5", (1, 1, 1, 1), (4, 8, 8, 8), 10, False)
    del body.fc
    return body


@pytest.mark.parametrize(("slope", "shape"), [(0.1, (2, 50, 79, 3)), (0.0, (1, 83, 64, 3))])
def test_mobilenet_form(slope, shape):
    ours = retinaface_mobilenet025(slope=slope, dtype=jnp.float64)
    theirs = randomized(Reference(Body(slope), (64, 128, 256), 64, slope)).double()
    check(ours, theirs, interop.mobilenet_rules(), shape, train=slope > 0)


def test_resnet_form():
    body = ResNet((1, 1, 1, 1), True, widths=(4, 8, 8, 8), dtype=jnp.float64)
    ours = RetinaFaceNet(body, 8, 0.0, dtype=jnp.float64)
    theirs = randomized(Reference(resnet_body(), (32, 32, 32), 8, 0.0)).double()
    check(ours, theirs, interop.resnet_trunk_rules(), (2, 79, 50, 3), train=True)


def check(ours, theirs, trunk, shape, train):
    images = np.random.default_rng(0).normal(size=shape)
    with jax.enable_x64(True):
        rules = [*trunk, *interop.rules()]
        variables = converted(theirs.state_dict(), rules, template(ours, images))
        found = jax.jit(lambda v: ours.apply(v, images, train=False))(variables)
        want = theirs.eval()(nchw(images))
        for name in want:  # the predictions are float32
            assert_near(found[name], numpy_nhwc(want[name]), 1e-6, name)
        if train:
            assert_equal_training(ours, theirs, images, rules, outputs=1e-6, inputs=1e-5, params=1e-5, statistics=1e-6)


def test_pretraining_classifier():
    net = MobileNetBody(num_classes=7)
    theirs = randomized(Body(0.1)).eval()
    fc = nn.Linear(256, 7)
    images = np.random.default_rng(0).normal(size=(2, 70, 45, 3)).astype(np.float32)
    state = {f"body.{name}": x for name, x in theirs.state_dict().items()}
    shapes = template(net, images)
    body = {c: {"body": {k: v for k, v in shapes[c].items() if k != "fc"}} for c in shapes}
    trunk = {c: v["body"] for c, v in converted(state, interop.mobilenet_rules(), body).items()}
    trunk["params"]["fc"] = {"kernel": fc.weight.detach().numpy().T, "bias": fc.bias.detach().numpy()}
    with torch.no_grad():
        want = fc(theirs.stages(torch.tensor(images.transpose(0, 3, 1, 2)))[-1].mean((2, 3)))
    assert_near(net.apply(trunk, images, train=False), want.numpy(), 1e-4)


def literal_loss(raw, anchors, images):
    """biubug6's loss, one image and one face at a time, differentiable in `raw`; images: (boxes, points, labels)."""
    sums, faces, annotated = [0.0, 0.0, 0.0], 0, 0
    for row, (boxes, points, labels) in enumerate(images):
        overlap = np.array([[iou(b, corners(a)) for a in anchors] for b in boxes])
        best, which, label = overlap.max(0), overlap.argmax(0), np.zeros(len(anchors), int)
        valid = [j for j in range(len(boxes)) if overlap[j].max() >= 0.2]
        if valid:
            for j in valid:
                best[overlap[j].argmax()] = 2
            for j in range(len(boxes)):
                which[overlap[j].argmax()] = j
            label = np.where(best < 0.35, 0, labels[which])
        entropy = (
            torch.logsumexp(raw["logits"][row], -1) - raw["logits"][row][range(len(anchors)), (label != 0).astype(int)]
        )
        masked = np.where(label != 0, 0, entropy.detach().numpy())
        order = np.argsort(-masked, kind="stable")[: min(7 * (label != 0).sum(), len(anchors) - 1)]
        for a in set(order.tolist()) | set(np.flatnonzero(label).tolist()):
            sums[1] += entropy[a]
        for a in np.flatnonzero(label):
            (cx, cy, w, h), (x1, y1, x2, y2) = anchors[a], boxes[which[a]]
            shift = [((x1 + x2) / 2 - cx) / (0.1 * w), ((y1 + y2) / 2 - cy) / (0.1 * h)]
            goal = [*shift, np.log((x2 - x1) / w) / 0.2, np.log((y2 - y1) / h) / 0.2]
            sums[0] += F.smooth_l1_loss(raw["boxes"][row, a], torch.tensor(goal), reduction="sum")
            faces += 1
            if label[a] > 0:
                goal = (points[which[a]] - [cx, cy]) / [0.1 * w, 0.1 * h]
                sums[2] += F.smooth_l1_loss(raw["points"][row, a], torch.tensor(goal), reduction="sum")
                annotated += 1
    return 2 * sums[0] / max(faces, 1), sums[1] / max(faces, 1), sums[2] / max(annotated, 1)


def corners(a):
    return a[0] - a[2] / 2, a[1] - a[3] / 2, a[0] + a[2] / 2, a[1] + a[3] / 2


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("size", [(64, 64), (77, 50), (43, 95)])
def test_multibox_loss_and_its_gradient(size):
    rng, (height, width) = np.random.default_rng(sum(size)), size
    model, count, most = RetinaFace(None), 7, 9
    anchors = model.anchors(size).astype(np.float64)
    images = []
    for kind in ("faces", "tiny", "none"):
        centre = rng.uniform(0, 1, (count, 1, 2)) * [width, height]
        side = np.exp(rng.uniform(*((0, 0.5) if kind == "tiny" else (0.5, 4.5)), (count, 1, 1))) * rng.uniform(
            0.6, 1.6, (count, 1, 2)
        )
        boxes = np.concatenate([centre - side / 2, centre + side / 2], -1)[:, 0]
        if kind == "faces":  # two faces with one best anchor, and a face below 0.2 whose best anchor another has
            boxes[1], boxes[2] = boxes[0] + 0.25, [*boxes[0, :2], *(boxes[0, :2] + 1)]
        labels = rng.choice([-1, 1], count)
        images.append((boxes, centre + side * rng.normal(size=(count, 5, 2)) / 4, labels))
    images[2] = tuple(x[:0] for x in images[2])
    raw = {"boxes": (4,), "logits": (2,), "points": (5, 2)}
    raw = {name: rng.normal(size=(3, len(anchors), *shape)) for name, shape in raw.items()}

    with jax.enable_x64(True):
        truth = padded(images, most)

        def loss(raw):
            terms = model.losses(raw, truth, size)
            return sum(term.value() for term in terms.values()), terms

        (_, terms), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(jax.tree.map(jnp.asarray, raw))
    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in raw.items()}
    want = literal_loss(tensors, anchors, [image for image in images if len(image[0])])
    sum(want).backward()
    for name, value in zip(("boxes", "logits", "points"), want, strict=True):
        np.testing.assert_allclose(terms[name].value(), float(value.detach()), rtol=1e-6, err_msg=name)
        assert_near(gradient[name], tensors[name].grad.numpy(), 1e-6, name)


def padded(images, most):
    boxes, points = np.zeros((len(images), most, 4)), np.zeros((len(images), most, 5, 2))
    mask, visible = np.zeros((len(images), most), bool), np.zeros((len(images), most, 5), bool)
    for row, (b, p, labels) in enumerate(images):
        boxes[row, : len(b)], points[row, : len(b)], mask[row, : len(b)] = b, p, True
        visible[row, : len(b)] = (labels > 0)[:, None]
    return Truth(*map(jnp.asarray, (boxes, np.zeros(mask.shape, int), points, visible, mask)))
