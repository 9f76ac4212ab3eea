"""SSH compared with a PyTorch module written from the authors' layers: outputs, losses and gradients."""

import jax
import numpy as np
import pytest

from facejax.detection import ssh
from facejax.interop.names import Rule
from tests.detection.test_ssh import SMALL, TRUTH, code_targets
from tests.parity.networks import assert_equal_training, assert_near, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional


class Module(nn.Module):
    """A detection module with the layer names of the authors' prototxt."""

    def __init__(self, inputs, x, anchors):
        super().__init__()
        self.anchors = anchors
        self.conv3x3, self.reduce = nn.Conv2d(inputs, 2 * x, 3, padding=1), nn.Conv2d(inputs, x, 3, padding=1)
        self.conv5x5, self.conv7x7_1, self.conv7x7_2 = (nn.Conv2d(x, x, 3, padding=1) for _ in range(3))
        self.scores, self.boxes = nn.Conv2d(4 * x, 2 * anchors, 1), nn.Conv2d(4 * x, 4 * anchors, 1)

    def forward(self, x):
        reduced = F.relu(self.reduce(x))
        deep = self.conv7x7_2(F.relu(self.conv7x7_1(reduced)))
        y = F.relu(torch.cat([self.conv3x3(x), self.conv5x5(reduced), deep], 1))
        scores, boxes = self.scores(y), self.boxes(y)
        background, face = (part.permute(0, 2, 3, 1).flatten(1) for part in scores.split(self.anchors, 1))
        return torch.stack([background, face], -1), boxes.permute(0, 2, 3, 1).reshape(len(x), -1, 4)


class Reference(nn.Module):
    def __init__(self, depths, widths, reduced, modules, anchors):
        super().__init__()
        self.depths, inputs = depths, 3
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            for layer in range(1, depth + 1):
                self.add_module(f"conv{stage}_{layer}", nn.Conv2d(inputs, width, 3, padding=1))
                inputs = width
        self.lateral_finer, self.lateral_coarser = nn.Conv2d(widths[-2], reduced, 1), nn.Conv2d(widths[-1], reduced, 1)
        self.fuse = nn.Conv2d(reduced, reduced, 3, padding=1)
        tap = torch.tensor([0.25, 0.75, 0.75, 0.25])
        self.register_buffer("fixed", (tap[:, None] * tap).expand(reduced, 1, 4, 4), persistent=False)
        for i, (width, x) in enumerate(zip((reduced, widths[-1], widths[-1]), modules, strict=True), 1):
            self.add_module(f"module{i}", Module(width, x, anchors))

    def forward(self, x):
        last = {}
        for stage, depth in enumerate(self.depths, 1):
            x = F.max_pool2d(x, 2, ceil_mode=True) if stage > 1 else x
            for layer in range(1, depth + 1):
                x = F.relu(self.get_submodule(f"conv{stage}_{layer}")(x))
            last[stage] = x
        finer = F.relu(self.lateral_finer(last[len(self.depths) - 1]))
        upper = F.relu(self.lateral_coarser(x))
        upper = F.conv_transpose2d(upper, self.fixed, stride=2, padding=1, groups=upper.shape[1])
        fused = F.relu(self.fuse(finer + upper[:, :, : finer.shape[2], : finer.shape[3]]))
        inputs = (fused, x, F.max_pool2d(x, 2, ceil_mode=True))
        return [self.get_submodule(f"module{i}")(y) for i, y in enumerate(inputs, 1)]


RULES = [
    Rule(r"conv(\d_\d)\.weight", r"params/vgg/conv\1/kernel", "conv"),
    Rule(r"conv(\d_\d)\.bias", r"params/vgg/conv\1/bias"),
    Rule(r"(lateral_\w+|fuse)\.weight", r"params/\1/kernel", "conv"),
    Rule(r"(lateral_\w+|fuse)\.bias", r"params/\1/bias"),
    Rule(r"(module\d)\.(scores|boxes)\.weight", r"params/\1/\2/kernel", "conv"),
    Rule(r"(module\d)\.(scores|boxes)\.bias", r"params/\1/\2/bias"),
    Rule(r"(module\d)\.(\w+)\.weight", r"params/\1/context/\2/kernel", "conv"),
    Rule(r"(module\d)\.(\w+)\.bias", r"params/\1/context/\2/bias"),
]


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (80, 112)])
def test_network(size):
    """The maps of stride 16 are 4 x 4, 3 x 5 and 5 x 7."""
    settings = ((1, 2, 1, 1, 2), (4, 6, 8, 8, 6), 5, (2, 3, 2), 2)
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    theirs = randomized(Reference(*settings))
    assert_equal_training(
        ssh.Net(*settings), theirs, images, RULES, outputs=1e-5, inputs=1e-4, params=1e-4, statistics=1e-5
    )


@pytest.mark.parametrize("size", [(80, 112), (48, 80)])
def test_gradients_of_the_losses(size):
    rng = np.random.default_rng(1)
    maps = [
        (rng.normal(size=(3, len(a), 2)).astype(np.float32), rng.normal(0, 0.3, (3, len(a), 4)).astype(np.float32))
        for a in SMALL.anchors(size)
    ]

    def loss(maps):
        return sum(term.value() for term in SMALL.losses(maps, TRUTH, size).values())

    value, gradients = jax.jit(jax.value_and_grad(loss))(maps)
    total, leaves = 0, []
    for m, pair in enumerate(maps):
        logits, offsets = (torch.tensor(x, requires_grad=True) for x in pair)
        leaves.append((logits, offsets))
        for i in range(3):
            faces = np.asarray(TRUTH.boxes[i])[np.asarray(TRUTH.mask[i])]
            face = logits[i].detach().softmax(-1)[:, 1].numpy()
            labels, targets = (torch.tensor(x) for x in code_targets(SMALL, m, size, faces, face))
            scores = F.cross_entropy(logits[i], labels, ignore_index=-1)
            hit = labels == 1
            boxes = F.smooth_l1_loss(offsets[i][hit], targets[hit].float(), reduction="sum", beta=1 / 9)
            total = total + (scores + boxes / (labels >= 0).sum()) / 3
    total.backward()
    np.testing.assert_allclose(value, total.detach(), rtol=1e-5)
    for got, want in zip(jax.tree.leaves(gradients), sum(leaves, ()), strict=True):
        assert_near(got, want.grad.numpy(), 1e-5)
