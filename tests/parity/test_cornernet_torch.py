"""CornerNet compared with a PyTorch network of the same layers, and its loss with one from the authors' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones.hourglass import Hourglass
from facejax.detection import cornernet
from facejax.detection.base import Truth
from facejax.interop import hourglass_torch
from facejax.interop.names import Rule, batch_norm
from tests.parity import hourglass
from tests.parity.networks import assert_equal_training, assert_near, converted, nchw, numpy_nhwc, randomized, template

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional

SIZES = {"stacks": 2, "widths": (6, 6, 8), "depths": (1, 2, 2), "stem": 4, "features": 6}
WIDTH, POOLED, CLASSES = 5, 4, 3


class CornerModule(nn.Module):
    def __init__(self, dim, pooled, forward):
        super().__init__()
        self.p1_conv1, self.p2_conv1 = (hourglass.Convolution(3, dim, pooled) for _ in range(2))
        self.p_conv1, self.p_bn1 = nn.Conv2d(pooled, dim, 3, 1, 1, bias=False), nn.BatchNorm2d(dim)
        self.conv1, self.bn1 = nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim)
        self.conv2, self.looks_forward = hourglass.Convolution(3, dim, dim), forward

    def pool(self, x, axis):
        if not self.looks_forward:
            return x.cummax(axis).values
        return x.flip(axis).cummax(axis).values.flip(axis)

    def forward(self, x):
        pooled = self.pool(self.p1_conv1(x), 2) + self.pool(self.p2_conv1(x), 3)
        return self.conv2((self.p_bn1(self.p_conv1(pooled)) + self.bn1(self.conv1(x))).relu())


class Reference(hourglass.Trunk):
    """With the authors' names: tl_cnvs, tl_heats, tl_tags, tl_regrs, and br_ for the other corner."""

    def __init__(self):
        super().__init__(**SIZES)
        dim, stacks = SIZES["features"], range(SIZES["stacks"])
        for corner in ("tl", "br"):
            modules = nn.ModuleList(CornerModule(dim, POOLED, corner == "tl") for _ in stacks)
            self.add_module(f"{corner}_cnvs", modules)
            for name, outputs in (("heats", CLASSES), ("tags", 1), ("regrs", 2)):
                heads = nn.ModuleList(hourglass.make_head(dim, WIDTH, outputs) for _ in stacks)
                self.add_module(f"{corner}_{name}", heads)

    def forward(self, x):
        found = []
        for i, features in enumerate(self.features(x)):
            outputs = {}
            for corner, name in (("tl", "top_left"), ("br", "bottom_right")):
                y = getattr(self, f"{corner}_cnvs")[i](features)
                parts = (("heat", "heats"), ("tag", "tags"), ("offset", "regrs"))
                outputs[name] = {ours: getattr(self, f"{corner}_{theirs}")[i](y) for ours, theirs in parts}
            found.append(outputs)
        return found


def rules():
    found = hourglass_torch.rules(len(SIZES["widths"]) - 1)
    for corner, name in (("tl", "top_left"), ("br", "bottom_right")):
        source, target = rf"{corner}_cnvs\.(\d+)\.", rf"{name}\1/"
        for theirs, ours in (("p1_conv1", "rows"), ("p2_conv1", "columns"), ("conv2", "conv")):
            found += hourglass_torch.convolution(source + theirs, target + ours)
        for conv, bn, ours in (("p_conv1", "p_bn1", "merge"), ("conv1", "bn1", "shortcut")):
            found.append(Rule(rf"{source}{conv}\.weight", f"params/{target}{ours}/conv/kernel", "conv"))
            found += batch_norm(source + bn, f"{target}{ours}/bn")
        for theirs, ours in (("heats", "heat"), ("tags", "tag"), ("regrs", "offset")):
            found += hourglass_torch.head(rf"{corner}_{theirs}\.(\d+)", rf"{name}_{ours}\1")
    return found


@pytest.mark.parametrize("size", [(64, 48), (31, 47), (45, 61)])
def test_network(size):
    """Evaluation; and at an odd size a training step with all gradients, in double precision."""
    net = cornernet.Net(Hourglass(**SIZES, dtype=jnp.float64), CLASSES, width=WIDTH, pooled=POOLED, dtype=jnp.float64)
    theirs = randomized(Reference()).double()
    images = np.random.default_rng(0).normal(size=(2, *size, 3))
    with jax.enable_x64(True):
        variables = converted(theirs.state_dict(), rules(), template(net, images))
        found = jax.jit(lambda v: net.apply(v, images, train=False))(variables)
        expected = theirs.eval()(nchw(images))
        for (path, got), want in zip(
            jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
        ):
            assert_near(got, numpy_nhwc(want), 1e-6, jax.tree_util.keystr(path))
        if size == (31, 47):
            assert_equal_training(net, theirs, images, rules(), outputs=1e-6, inputs=1e-5, params=1e-6, statistics=1e-6)


def authors_loss(raw, boxes, labels, masks, shape, ratio):
    """The loss of the authors' training step for one device, written from their formulas; maps are [N, C, H, W]."""
    n, g = masks.shape
    total, stacks = 0.0, len(raw)
    height, width = shape
    targets, cells, offsets = {}, {}, {}
    for corner, first in (("top_left", 0), ("bottom_right", 2)):
        heat = np.zeros((n, CLASSES, *shape))
        cell, offset = np.zeros((n, g), int), np.zeros((n, g, 2))
        for i, k in zip(*np.nonzero(masks), strict=True):
            x, y = boxes[i, k, first : first + 2] * ratio
            column, row = int(x), int(y)
            w, h = (np.ceil((boxes[i, k, 2 + a] - boxes[i, k, a]) * ratio[a]) for a in (0, 1))
            radius = max(0, int(authors_radius(h, w, 0.3)))
            for r in range(max(0, row - radius), min(height, row + radius + 1)):
                for c in range(max(0, column - radius), min(width, column + radius + 1)):
                    value = np.exp(-((r - row) ** 2 + (c - column) ** 2) / (2 * ((2 * radius + 1) / 6) ** 2))
                    heat[i, labels[i, k], r, c] = max(heat[i, labels[i, k], r, c], value)
            cell[i, k], offset[i, k] = row * width + column, (x - column, y - row)
        targets[corner], cells[corner] = torch.tensor(heat), torch.tensor(cell)
        offsets[corner] = torch.tensor(offset)
    mask = torch.tensor(masks)
    for outputs in raw:
        tags = []
        for corner in targets:
            maps, target = outputs[corner], targets[corner]
            p = maps["heat"].sigmoid().clamp(1e-4, 1 - 1e-4)
            positive, negative = target.eq(1), target.lt(1)
            loss = -(p[positive].log() * (1 - p[positive]) ** 2).sum()
            loss -= ((1 - p[negative]).log() * p[negative] ** 2 * (1 - target[negative]) ** 4).sum()
            total = total + loss / positive.sum()
            read = {
                name: maps[name].flatten(2).transpose(1, 2).gather(1, cells[corner][..., None].expand(-1, -1, size))
                for name, size in (("tag", 1), ("offset", 2))
            }
            error = F.smooth_l1_loss(read["offset"][mask], offsets[corner][mask], reduction="sum")
            total = total + error / mask.sum()
            tags.append(read["tag"][..., 0])
        count = mask.sum(1, keepdim=True).double()
        mean = (tags[0] + tags[1]) / 2
        for tag in tags:
            total = total + 0.1 * ((tag - mean) ** 2 / (count + 1e-4))[mask].sum()
        near = (1 - (mean[:, None] - mean[:, :, None]).abs()).relu() - 1 / (count[..., None] + 1e-4)
        near = near / ((count * (count - 1))[..., None] + 1e-4)
        total = total + 0.1 * near[mask[:, None] & mask[:, :, None]].sum()
    return total / stacks


def authors_radius(height, width, overlap):
    b, c = height + width, width * height
    first = (b - np.sqrt(b**2 - 4 * c * (1 - overlap) / (1 + overlap))) / 2
    second = (2 * b - np.sqrt(4 * b**2 - 16 * (1 - overlap) * c)) / 8
    third = (-2 * overlap * b + np.sqrt(4 * overlap**2 * b**2 - 16 * overlap * (overlap - 1) * c)) / (8 * overlap)
    return min(first, second, third)


@pytest.mark.parametrize("size", [(64, 48), (31, 47), (45, 61)])
def test_loss_and_its_gradient(size):
    rng, shape = np.random.default_rng(1), tuple(-(-n // 4) for n in size)
    low = rng.uniform(0, 0.5, (3, 5, 2)) * size[::-1]
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.45, (3, 5, 2)) * size[::-1]], -1)
    labels, masks = rng.integers(0, CLASSES, (3, 5)), np.arange(5) < np.array([5, 3, 1])[:, None]
    boxes[~masks], labels[~masks] = 0, 0
    raw = [
        {
            corner: {
                "heat": 3 * rng.normal(size=(3, *shape, CLASSES)),
                "tag": rng.normal(size=(3, *shape, 1)),
                "offset": rng.normal(size=(3, *shape, 2)),
            }
            for corner in cornernet.CORNERS
        }
        for _ in range(2)
    ]
    theirs = jax.tree.map(nchw, raw)
    expected = authors_loss(theirs, boxes, labels, masks, shape, np.array(shape[::-1]) / size[::-1])
    expected.backward()
    with jax.enable_x64(True):
        truth = Truth(
            jnp.asarray(boxes), jnp.asarray(labels), jnp.zeros((3, 5, 0, 2)), jnp.zeros((3, 5, 0), bool), masks
        )
        detector = cornernet.CornerNet(cornernet.Net(None, CLASSES), together=3)

        def loss(raw):
            return sum(term.value() for term in detector.losses(raw, truth, size).values())

        value, slopes = jax.jit(jax.value_and_grad(loss))(raw)
    np.testing.assert_allclose(value, expected.item(), rtol=2e-6)
    for got, want in zip(jax.tree.leaves(slopes), jax.tree.leaves(theirs), strict=True):
        assert_near(got, numpy_nhwc(want.grad), 1e-5)
