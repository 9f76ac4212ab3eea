"""SCRFD of residual blocks against PyTorch modules of the same layers: outputs, gradients, running averages."""

import types
from functools import partial

import numpy as np
import pytest

from facejax.detection import scrfd
from facejax.interop.names import IGNORED, Rule, batch_norm
from facejax.ops import boxes as box
from tests.parity.networks import assert_equal_training, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
from benchmarks import gpu_torch, torch_scrfd

pytestmark = pytest.mark.parity
TRUNK, HEAD = (8, (8, 8, 12, 16), (1, 2, 1, 1)), (6, 8, 2)


class Reference(torch.nn.Module):
    """Distances, then logits."""

    def __init__(self):
        super().__init__()
        self.net = torch_scrfd.SCRFD(*TRUNK, *HEAD, groups=4)

    def forward(self, x):
        return list(self.net(x))[::-1]


def without_points(net):
    """Distances, then logits."""

    def apply(*arguments, **options):
        found, moved = net.apply(*arguments, **options)
        return [found["boxes"], found["scores"]], moved

    return types.SimpleNamespace(init=net.init, apply=apply)


def rules():
    """Dots between the parts of a name become slashes."""
    found = [IGNORED, Rule(r"net\.(scale\d)", r"params/\1")]
    for suffix, name, layout in (("weight", "kernel", "conv"), ("bias", "bias", "same")):
        found.append(
            Rule(rf"net\.(\w+)\.(lateral\d|p?a?fpn\d|down\d|cls|reg)\.{suffix}", rf"params/\1/\2/{name}", layout)
        )
    for suffix, name in (("weight", "scale"), ("bias", "bias")):
        found.append(Rule(rf"net\.outputs\.(tower\d)\.norm\.{suffix}", rf"params/outputs/\1/norm/{name}"))
    for depth in (2, 3):
        source = r"net" + r"\.(\w+)" * depth
        target = "/".join(f"\\{i}" for i in range(1, depth + 1))
        found.append(Rule(rf"{source}\.conv\.weight", f"params/{target}/conv/kernel", "conv"))
        found += batch_norm(rf"{source}\.bn", f"{target}/bn")
    return found


@pytest.mark.parametrize("size", [(64, 64), (40, 72), (56, 104)])
def test_training(size):
    """The largest stride has maps of 2 x 2, 2 x 3 and 2 x 4; 40, 72, 56 and 104 are odd multiples of 8."""
    ours = without_points(scrfd.Net(partial(scrfd.ResidualTrunk, *TRUNK), *HEAD, norm_groups=4))
    images = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    tolerances = {"outputs": 2e-5, "inputs": 3e-4, "params": 3e-4, "statistics": 2e-5}
    assert_equal_training(ours, randomized(Reference()), images, rules(), **tolerances)


def test_loss():
    """Of given positive anchors, against the library's parts."""
    rng = np.random.default_rng(0)
    scores, positive = rng.normal(size=(2, 9)).astype(np.float32), rng.uniform(size=(2, 9)) < 0.5
    found, wanted = rng.uniform(0.5, 3, (2, 2, 9, 4)).astype(np.float32)
    sign = np.float32([-1, -1, 1, 1])
    quality = np.where(positive, box.iou(sign * found, sign * wanted), 0)
    weight = np.where(positive, 1 / (1 + np.exp(-scores)), 0)
    expected = scrfd.quality_focal_loss(scores, quality).sum() / positive.sum()
    expected += 2 * (weight * (1 - box.diou(sign * found, sign * wanted))).sum() / weight.sum()
    got = gpu_torch.detection_loss(*map(torch.tensor, (scores, found, positive, wanted)))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
