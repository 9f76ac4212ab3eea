"""RetinaNet compared with a PyTorch module from the paper's figure, with equal random weights.

Names are torchvision's (models/detection/retinanet.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones.resnet import ResNet
from facejax.detection import retinanet
from facejax.detection.base import Truth
from facejax.interop import torchvision
from facejax.interop.names import Rule
from facejax.ops import boxes as box
from tests.detection.test_retinanet import detectron_match
from tests.parity import test_resnet_torch as resnet
from tests.parity.networks import assert_equal_training, converted, nchw, randomized, template

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional

CLASSES, ANCHORS, WIDTH, DEPTHS, WIDTHS = 3, 9, 6, (1, 1, 1, 1), (4, 6, 6, 8)


class Tower(nn.Module):
    def __init__(self, depth, outputs, last):
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()) for _ in range(depth))
        )
        self.last, self.outputs = last, outputs
        self.add_module(last, nn.Conv2d(WIDTH, ANCHORS * outputs, 3, padding=1))

    def forward(self, x):
        y = self.get_submodule(self.last)(self.conv(x))
        n, _, h, w = y.shape
        return y.view(n, ANCHORS, self.outputs, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, self.outputs)


class Reference(nn.Module):
    def __init__(self, coarse):
        super().__init__()
        self.body = resnet.Reference("v1", DEPTHS, WIDTHS, 1, False)
        del self.body.fc
        channels = [4 * w for w in WIDTHS[1:]]
        self.inner = nn.ModuleList(nn.Conv2d(c, WIDTH, 1) for c in channels)
        self.layer = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in channels)
        self.coarse = coarse
        self.p6 = nn.Conv2d(channels[-1] if coarse == "c5" else WIDTH, WIDTH, 3, 2, 1)
        self.p7 = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)
        self.cls, self.reg = Tower(2, CLASSES, "cls_logits"), Tower(2, 4, "bbox_reg")

    def forward(self, x):
        maps = self.body.stages(x)[1:]
        inner = [conv(m) for conv, m in zip(self.inner, maps)]
        for i in (1, 0):
            inner[i] = inner[i] + F.interpolate(inner[i + 1], size=inner[i].shape[-2:], mode="nearest")
        levels = [conv(m) for conv, m in zip(self.layer, inner)]
        levels.append(self.p6(maps[-1] if self.coarse == "c5" else levels[-1]))
        levels.append(self.p7(F.relu(levels[-1])))
        return {
            name: torch.cat([head(x) for x in levels], 1) for name, head in (("boxes", self.reg), ("scores", self.cls))
        }


def rules():
    def moved(rule):
        places = ((f"{kind}/", f"{kind}/backbone/") for kind in ("params", "batch_stats"))
        target = rule.target
        for old, new in places:
            target = target.replace(old, new)
        return dataclasses.replace(rule, source=r"body\." + rule.source, target=target)

    found = [moved(rule) for rule in torchvision.resnet_rules() if "fc" not in rule.target]
    pairs = [(r"(p[67])\.", r"pyramid/\1")]
    for i in range(3):
        pairs += [(rf"inner\.{i}\.", f"pyramid/lateral{i + 3}"), (rf"layer\.{i}\.", f"pyramid/output{i + 3}")]
    for theirs, ours in (("cls", "cls"), ("reg", "box")):
        pairs += [
            (rf"{theirs}\.conv\.(\d)\.0\.", rf"{ours}/conv\1"),
            (rf"{theirs}\.(?:cls_logits|bbox_reg)\.", f"{ours}/output"),
        ]
    for source, target in pairs:
        found += [
            Rule(source + "weight", f"params/{target}/kernel", "conv"),
            Rule(source + "bias", f"params/{target}/bias"),
        ]
    return found


def ours(coarse):
    trunk = ResNet(DEPTHS, True, widths=WIDTHS, stride_in_1x1=True, dtype=jnp.float64)
    return retinanet.Net(trunk, CLASSES, features=WIDTH, depth=2, coarse=coarse, dtype=jnp.float64)


@pytest.mark.parametrize(("coarse", "size"), [("c5", (101, 75)), ("c5", (96, 128)), ("p5", (67, 131))])
def test_network(coarse, size):
    images = np.random.default_rng(0).normal(size=(2, *size, 3))
    with jax.enable_x64(True):
        theirs = randomized(Reference(coarse)).double()
        tolerances = {"outputs": 1e-6, "inputs": 1e-5, "params": 1e-6, "statistics": 1e-6}
        assert_equal_training(ours(coarse), theirs, images, rules(), **tolerances)


def torch_loss(raw, boxes, labels, anchors):
    """The loss of images by Detectron's rules, with the focal loss as torchvision writes it."""
    corners, conf, loc, count = np.asarray(box.from_center(anchors)), 0, 0, 0
    for logits, offsets, b, y in zip(raw["scores"], raw["boxes"], boxes, labels):
        label, owner, fg = detectron_match(corners, b, y)
        used, target = label >= 0, torch.zeros_like(logits)
        for a in np.flatnonzero(label > 0):
            target[a, label[a] - 1] = 1
        p, ce = torch.sigmoid(logits), F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        p_t = p * target + (1 - p) * (1 - target)
        loss = ce * (1 - p_t) ** 2 * (0.25 * target + 0.75 * (1 - target))
        conf = conf + loss[used].sum()
        positive = label > 0
        if positive.any():
            g, a = b[owner[positive]], anchors[positive]
            shift = ((g[:, :2] + g[:, 2:]) / 2 - a[:, :2]) / a[:, 2:]
            wanted = torch.tensor(np.concatenate([shift, np.log((g[:, 2:] - g[:, :2]) / a[:, 2:])], -1))
            loc = loc + F.smooth_l1_loss(offsets[positive], wanted, reduction="sum", beta=0.11)
        count += fg + 1
    return (conf + loc) / count


def test_loss_and_its_gradients():
    """Of a whole network: two images with boxes and one without."""
    rng, size, counts = np.random.default_rng(1), (101, 75), (5, 0, 2)
    images = rng.normal(size=(3, *size, 3))
    corner, sides = rng.uniform(0, 40, (3, 6, 2)), rng.uniform(8, 60, (3, 6, 2))
    mask = np.arange(6) < np.array(counts)[:, None]
    boxes = np.where(mask[..., None], np.concatenate([corner, corner + sides], -1), 0)
    labels = np.where(mask, rng.integers(0, CLASSES, (3, 6)), 0)
    detector = retinanet.RetinaNet(ours("c5").clone(frozen_norm=True))
    with jax.enable_x64(True):
        theirs = randomized(Reference("c5")).double().eval()
        shapes = template(detector.net, images)
        variables = converted(theirs.state_dict(), rules(), shapes)
        truth = Truth(boxes, labels, np.zeros((3, 6, 0, 2)), np.zeros((3, 6, 0), bool), mask)

        @jax.jit
        def value(params):
            raw = detector.net.apply({**variables, "params": params}, images, train=True)
            return sum(term.value() for term in detector.losses(raw, truth, size).values())

        loss, gradient = jax.value_and_grad(value)(variables["params"])
        anchors = np.concatenate(detector.anchors(size))
        cut = [(boxes[i, :n], labels[i, :n]) for i, n in enumerate(counts)]
        wanted = torch_loss(theirs(nchw(images)), *zip(*cut, strict=True), anchors)
        wanted.backward()
        np.testing.assert_allclose(loss, wanted.item(), rtol=1e-6)
        tensors = theirs.state_dict() | {k: p.grad for k, p in theirs.named_parameters()}
        expected = converted(tensors, rules(), shapes)["params"]
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * largest), gradient, expected)
