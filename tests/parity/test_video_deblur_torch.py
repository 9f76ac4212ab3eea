"""OVD beside a PyTorch module of the same layers: restored videos, gradients and running averages through time."""

import flax.linen as nn
import numpy as np
import pytest

from facejax.interop.names import Rule, batch_norm
from facejax.restoration.video_deblur import OVD
from tests.parity.networks import assert_equal_training, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
from benchmarks import torch_video_deblur

pytestmark = pytest.mark.parity
FRAMES = 2
CELL = "params/net/cell"
RULES = [
    Rule(r"net\.(conv1|conv2|features|out)\.weight", rf"{CELL}/\1/kernel", "conv"),
    Rule(r"net\.up\.weight", f"{CELL}/up/kernel", "conv_transpose"),
    Rule(r"net\.(conv1|conv2|features|out|up)\.bias", rf"{CELL}/\1/bias"),
    Rule(r"net\.blending\.weight", f"{CELL}/blending/conv/kernel", "conv"),
    Rule(r"net\.blending\.bias", f"{CELL}/blending/conv/bias"),
    Rule(r"net\.beta", f"{CELL}/blending/beta"),
    Rule(r"net\.(encoder|decoder)\.(\d)\.conv(\d)\.weight", rf"{CELL}/\1\2/layer\3/conv/kernel", "conv"),
    Rule(r"net\.(encoder|decoder)\.(\d)\.conv(\d)\.bias", rf"{CELL}/\1\2/layer\3/conv/bias"),
    *batch_norm(r"net\.(encoder|decoder)\.(\d)\.bn(\d)", r"net/cell/\1\2/layer\3/bn"),
]


class Flat(nn.Module):
    """The network on [N * T, H, W, 3]."""

    net: OVD

    @nn.compact
    def __call__(self, images, *, train):
        return self.net(images.reshape(-1, FRAMES, *images.shape[1:]), train=train).reshape(images.shape)


class FlatReference(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.net = torch_video_deblur.OVD(**options)

    def forward(self, images):
        return self.net(images.unflatten(0, (-1, FRAMES))).flatten(0, 1)


@pytest.mark.parametrize(
    ("size", "options"),
    [((12, 16), {}), ((10, 14), {"context": 1}), ((9, 11), {"context": 1, "blending": False})],
)
def test_training(size, options):
    """Maps of 6 x 8, 5 x 7, and 5 x 6 with a row and a column that are cut off."""
    settings = {"width": 6, "blocks": 1, **options}
    images = np.random.default_rng(0).random((2 * FRAMES, *size, 3)).astype(np.float32)
    theirs = randomized(FlatReference(**settings)).double()
    if "blending" not in options:
        theirs.net.beta.data.fill_(0.1)
    ours = Flat(OVD(**settings, unroll=True))
    assert_equal_training(ours, theirs, images, RULES, outputs=1e-5, inputs=1e-4, params=1e-4, statistics=1e-5)
