"""ByeGlassesGAN's networks as PyTorch modules, written from the paper's description with ELEGANT's layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.generation import byeglassesgan as ours
from facejax.interop.names import Rule, convert
from tests.parity.networks import assert_near, nchw, numpy_nhwc, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
nn, F = torch.nn, torch.nn.functional

pytestmark = pytest.mark.parity
WIDTHS = [4, 8, 16]
SIZES = [(16, 24), (24, 40)]
"""Inner maps of 2 x 3 and 3 x 5."""


def leaky(x):
    return F.leaky_relu(x, 0.2)


class Decoder(nn.Module):
    def __init__(self, channels, copies):
        super().__init__()
        outputs = [8, 4, 4]
        inputs = [16] + [width + copies * width for width in (8, 4)]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 3, 2, 1, output_padding=1, bias=False)
            for a, b in zip(inputs, outputs, strict=True)
        )
        self.out = nn.ConvTranspose2d(4 * copies, channels, 3, 1, 1)

    def forward(self, maps, shared):
        x, found = maps[2], []
        for i, up in enumerate(self.ups):
            if i:
                x = torch.cat([x, maps[2 - i], *shared[i - 1 : i]], 1)
            x = leaky(F.instance_norm(up(x)))
            found.append(x)
        return self.out(torch.cat([x, *shared[2:]], 1)), found


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in zip([3, *WIDTHS], WIDTHS, strict=False)
        )
        self.segmentation, self.face = Decoder(2, 1), Decoder(3, 2)

    def forward(self, x):
        maps = []
        for conv in self.convs:
            x = leaky(F.instance_norm(conv(x)))
            maps.append(x)
        masks, shared = self.segmentation(maps, [])
        return torch.tanh(self.face(maps, shared)[0]), masks


class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = [3, 4, 8, 16]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride, 1) for a, b, stride in zip(sizes[:-1], sizes[1:], [2, 2, 1], strict=True)
        )
        self.score = nn.Conv2d(16, 1, 4, 1, 1)

    def forward(self, x):
        x = leaky(self.convs[0](x))
        for conv in self.convs[1:]:
            x = leaky(F.instance_norm(conv(x)))
        return self.score(x)[:, 0]


RULES = [
    Rule(r"convs\.(\d)\.weight", r"params/encoder/conv\1/kernel", "conv"),
    Rule(r"(segmentation|face)\.ups\.(\d)\.weight", r"params/\1/up\2/kernel", "conv_transpose"),
    Rule(r"(segmentation|face)\.out\.weight", r"params/\1/out/kernel", "conv_transpose"),
    Rule(r"(segmentation|face)\.out\.bias", r"params/\1/out/bias"),
]
JUDGE_RULES = [
    Rule(r"convs\.(\d)\.weight", r"params/conv\1/kernel", "conv"),
    Rule(r"convs\.(\d)\.bias", r"params/conv\1/bias"),
    Rule(r"score\.weight", "params/score/kernel", "conv"),
    Rule(r"score\.bias", "params/score/bias"),
]


def arrays(tensors):
    return {name: np.asarray(tensor).copy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("size", SIZES)
def test_generator(size):
    images = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    theirs, net = randomized(Reference()).double(), ours.ByeGlasses(4, 3)
    template = jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, 16, 16, 3))), jax.random.key(0))
    params = convert(arrays(theirs.state_dict()), RULES, template)["params"]

    @jax.jit
    def train(params, images):
        def loss(params, images):
            found = net.apply({"params": params}, images)
            return sum(jnp.sin(3 * x).sum() for x in found), found

        return jax.grad(loss, (0, 1), has_aux=True)(params, images)

    (d_params, d_images), found = train(params, images)
    tensor = nchw(images, torch.float64)
    wanted = theirs(tensor)
    sum((3 * x).sin().sum() for x in wanted).backward()
    for got, want in zip(found, wanted, strict=True):
        assert_near(got, numpy_nhwc(want), 2e-5)
    assert_near(d_images, numpy_nhwc(tensor.grad), 2e-4)
    expected = convert(arrays({n: p.grad for n, p in theirs.named_parameters()}), RULES, template)["params"]
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * largest), d_params, expected)


@pytest.mark.parametrize("size", [(16, 24), (21, 18)])
def test_discriminator_and_local_losses(size):
    """Scores, the loss of a player, and the local error, with gradients of the images."""
    rng = np.random.default_rng(0)
    real, fake = (rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32) for _ in range(2))
    mask = (rng.random((2, *size)) < 0.4).astype(np.float32)
    theirs, net = randomized(Judge()).double(), ours.PatchDiscriminator(4, 2)
    template = jax.eval_shape(lambda key: net.init(key, real), jax.random.key(0))
    variables = convert(arrays(theirs.state_dict()), JUDGE_RULES, template)

    @jax.jit
    def losses(real, fake):
        scores = [net.apply(variables, ours.masked(x, mask)) for x in (real, fake)]
        judged = ours.discriminator_loss(*scores) + 3 * ours.adversarial_loss(scores[1])
        return (judged + 5 * ours.local_error(fake, real, mask)).sum(), scores

    gradients, scores = jax.grad(losses, (0, 1), has_aux=True)(real, fake)
    tensors, cut = [nchw(x, torch.float64) for x in (real, fake)], torch.tensor(mask).double()[:, None]
    r, f = wanted = [theirs(x * cut) for x in tensors]
    judged = F.mse_loss(r, torch.ones_like(r)) + F.mse_loss(f, 0 * f) + 3 * F.mse_loss(f, torch.ones_like(f))
    local = ((tensors[1] - tensors[0]).abs() * cut).sum((1, 2, 3)) / (3 * cut.sum((1, 2, 3)))
    (2 * judged + 5 * local.sum()).backward()
    for got, want in zip(scores, wanted, strict=True):
        assert_near(got, want.detach().numpy(), 1e-5)
    for got, want in zip(gradients, tensors, strict=True):
        assert_near(got, numpy_nhwc(want.grad), 1e-4)
