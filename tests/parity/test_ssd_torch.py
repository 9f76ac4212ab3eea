"""SSD compared with a PyTorch module from the paper's figure and the authors' layer list, with equal random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.detection import ssd
from facejax.detection.base import Truth
from facejax.interop.names import Rule
from tests.detection.test_ssd import caffe_match
from tests.parity.networks import assert_equal_training, converted, nchw, randomized, template

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional

CLASSES, PRIORS, WIDTHS, HIDDEN = 2, (4, 6, 6, 4), (4, 4, 6, 8, 8), 8
EXTRAS = ((4, 6, 3, 2, 1), (4, 6, 3, 1, 0))
SOURCES = ("relu4_3", "relu7", "conv6_2", "conv7_2")
OURS = ssd.Net(CLASSES, ssd.ReducedVGG((2, 2, 3, 3, 3), WIDTHS, HIDDEN), EXTRAS, SOURCES, PRIORS)
BOXES = (
    ssd.Source(8, ((12, 24),)),
    ssd.Source(16, ((24, 40),), (2.0, 3.0)),
    ssd.Source(32, ((40, 60),), (2.0, 3.0)),
    ssd.Source(64, ((60, 90),)),
)


class Reference(nn.Module):
    """Names of the layers as in Caffe."""

    def __init__(self):
        super().__init__()
        a = 3
        for stage, (depth, b) in enumerate(zip((2, 2, 3, 3, 3), WIDTHS, strict=True), 1):
            for i in range(1, depth + 1):
                self.add_module(f"conv{stage}_{i}", nn.Conv2d(a, b, 3, padding=1))
                a = b
        self.fc6, self.fc7 = nn.Conv2d(a, HIDDEN, 3, padding=6, dilation=6), nn.Conv2d(HIDDEN, HIDDEN, 1)
        self.scale, a = nn.Parameter(torch.full((WIDTHS[3],), 20.0)), HIDDEN
        for i, (b, c, kernel, stride, padding) in enumerate(EXTRAS, 6):
            self.add_module(f"conv{i}_1", nn.Conv2d(a, b, 1))
            self.add_module(f"conv{i}_2", nn.Conv2d(b, c, kernel, stride, padding))
            a = c
        widths = (WIDTHS[3], HIDDEN, *(c for _, c, *_ in EXTRAS))
        self.conf = nn.ModuleList(nn.Conv2d(c, n * (CLASSES + 1), 3, padding=1) for c, n in zip(widths, PRIORS))
        self.loc = nn.ModuleList(nn.Conv2d(c, n * 4, 3, padding=1) for c, n in zip(widths, PRIORS))

    def forward(self, x):
        def layers(x, *names):
            for name in names:
                x = F.relu(self.get_submodule(name)(x))
            return x

        x = F.max_pool2d(layers(x, "conv1_1", "conv1_2"), 2)
        x = F.max_pool2d(layers(x, "conv2_1", "conv2_2"), 2)
        x = F.max_pool2d(layers(x, "conv3_1", "conv3_2", "conv3_3"), 2, ceil_mode=True)
        x = layers(x, "conv4_1", "conv4_2", "conv4_3")
        norm = (x.pow(2).sum(1, keepdim=True) + 1e-10).sqrt()
        maps = [x / norm * self.scale[:, None, None]]
        x = F.max_pool2d(layers(F.max_pool2d(x, 2), "conv5_1", "conv5_2", "conv5_3"), 3, 1, 1)
        maps.append(layers(x, "fc6", "fc7"))
        for i in range(6, 6 + len(EXTRAS)):
            maps.append(layers(maps[-1], f"conv{i}_1", f"conv{i}_2"))
        heads = (self.loc, "boxes", 4), (self.conf, "scores", CLASSES + 1)
        found = {}
        for convs, name, each in heads:
            maps_ = [conv(m).permute(0, 2, 3, 1) for conv, m in zip(convs, maps)]
            found[name] = [y.reshape(*y.shape[:3], -1, each) for y in maps_]
        return found


def rules():
    layer = r"(conv\d_\d|fc\d)"
    trunk = r"(conv[1-5]_\d|fc\d)"
    found = [Rule("scale", "params/relu4_3_norm/scale")]
    for i, name in enumerate(SOURCES):
        for kind in ("conf", "loc"):
            found.append(Rule(rf"{kind}\.{i}\.weight", f"params/{name}_{kind}/kernel", "conv"))
            found.append(Rule(rf"{kind}\.{i}\.bias", f"params/{name}_{kind}/bias"))
    for pattern, place in ((trunk, "trunk/"), (layer, "")):
        found.append(Rule(rf"{pattern}\.weight", rf"params/{place}\1/kernel", "conv"))
        found.append(Rule(rf"{pattern}\.bias", rf"params/{place}\1/bias"))
    return found


@pytest.mark.parametrize("size", [(97, 131), (115, 97), (96, 128)])
def test_network(size):
    images = np.random.default_rng(0).normal(size=(2, *size, 3))
    ours = OURS.clone(dtype=jnp.float64, trunk=OURS.trunk.clone(dtype=jnp.float64))
    with jax.enable_x64(True):
        theirs = randomized(Reference()).double()
        assert_equal_training(ours, theirs, images, rules(), outputs=1e-6, inputs=1e-5, params=1e-6, statistics=1e-6)


def torch_loss(raw, boxes, labels, priors):
    """The loss of images, each with boxes [G, 4] in pixels, by the authors' rules."""
    logits, offsets = (torch.cat([x.flatten(1, 3) for x in raw[name]], 1) for name in ("scores", "boxes"))
    low, high = priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2
    corners, conf, loc, matched = np.concatenate([low, high], -1), 0, 0, 0
    for logit, offset, b, y in zip(logits, offsets, boxes, labels):
        shared = np.prod(np.clip(np.minimum(corners[:, None, 2:], b[:, 2:])
                                 - np.maximum(corners[:, None, :2], b[:, :2]), 0, None), -1)  # fmt: skip
        areas = (np.prod(x[:, 2:] - x[:, :2], -1) for x in (corners, b))
        union = np.add.outer(*areas) - shared
        match = caffe_match(shared / union, 0.5)
        positive, target = match >= 0, torch.zeros(len(match), dtype=torch.long)
        target[positive] = torch.tensor(y[match[positive]] + 1)
        entropy = F.cross_entropy(logit, target, reduction="none")
        negatives = np.flatnonzero(~positive)
        hard = negatives[np.argsort(-entropy.detach().numpy()[negatives], kind="stable")[: 3 * positive.sum()]]
        conf = conf + entropy[positive].sum() + entropy[hard].sum()
        g, p = b[match[positive]], priors[positive]
        shift = ((g[:, :2] + g[:, 2:]) / 2 - p[:, :2]) / p[:, 2:] / 0.1
        growth = np.log((g[:, 2:] - g[:, :2]) / p[:, 2:]) / 0.2
        loc = loc + F.smooth_l1_loss(
            offset[positive], torch.tensor(np.concatenate([shift, growth], -1)), reduction="sum"
        )
        matched += positive.sum()
    return (conf + loc) / matched


def test_loss_and_its_gradients():
    """Of a whole network: three images, of which one is crowded and one is empty."""
    rng, size = np.random.default_rng(1), (97, 131)
    images = rng.normal(size=(3, *size, 3))
    counts = (6, 0, 2)
    corner, sides = rng.uniform(0, 60, (3, 8, 2)), rng.uniform(8, 60, (3, 8, 2))
    mask = np.arange(8) < np.array(counts)[:, None]
    boxes = np.where(mask[..., None], np.concatenate([corner, corner + sides], -1), 0)
    labels = np.where(mask, rng.integers(0, CLASSES, (3, 8)), 0)
    ours = OURS.clone(dtype=jnp.float64, trunk=OURS.trunk.clone(dtype=jnp.float64))
    detector = ssd.SSD(ours, BOXES)
    with jax.enable_x64(True):
        theirs = randomized(Reference()).double()
        shapes = template(ours, images)
        variables = converted(theirs.state_dict(), rules(), shapes)
        truth = Truth(boxes, labels, np.zeros((3, 8, 0, 2)), np.zeros((3, 8, 0), bool), mask)

        @jax.jit
        def value(params):
            raw = ours.apply({"params": params}, images, train=True)
            return sum(term.value() for term in detector.losses(raw, truth, size).values())

        loss, gradient = jax.value_and_grad(value)(variables["params"])
        raw = theirs(nchw(images))
        priors = detector.priors(jax.tree.map(lambda x: x.detach().numpy(), raw)).astype(np.float64)
        wanted = torch_loss(raw, [boxes[i, :n] for i, n in enumerate(counts)], labels, priors)
        wanted.backward()
        np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
        expected = converted({k: p.grad for k, p in theirs.named_parameters()}, rules(), shapes)["params"]
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest), gradient, expected)
