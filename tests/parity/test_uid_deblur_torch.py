"""UID-GAN's networks as PyTorch modules, written from the layer list of the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.interop.names import Rule, convert
from facejax.restoration import uid_deblur as ours
from tests.parity.networks import assert_near, nchw, numpy_nhwc, randomized

torch = pytest.importorskip("torch", reason="needs the parity extra")
nn, F = torch.nn, torch.nn.functional

pytestmark = pytest.mark.parity
WIDTH, BLOCKS, CODE = 4, 1, 3
SIZES = [(16, 24), (20, 36), (28, 20)]
"""Contents of 4 x 6, 5 x 9 and 7 x 5."""


def mirrored(conv, x, padding):
    return conv(F.pad(x, (padding,) * 4, mode="reflect"))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 3)

    def forward(self, x):
        y = F.relu(F.instance_norm(mirrored(self.conv1, x, 1)))
        return x + F.instance_norm(mirrored(self.conv2, y, 1))


class ContentEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, WIDTH, 7)
        self.conv1, self.conv2 = (nn.Conv2d(WIDTH << i, WIDTH << i + 1, 3, 2) for i in range(2))
        self.block0 = Residual(4 * WIDTH)

    def forward(self, x):
        x = F.leaky_relu(mirrored(self.conv0, x, 3), 0.01)
        for conv in (self.conv1, self.conv2):
            x = F.relu(F.instance_norm(mirrored(conv, x, 1)))
        return self.block0(x)


class Pooling(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inputs, inputs, 3), nn.Conv2d(inputs, outputs, 3)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        y = mirrored(self.conv1, F.leaky_relu(x, 0.2), 1)
        y = mirrored(self.conv2, F.leaky_relu(y, 0.2), 1)
        return F.avg_pool2d(y, 2) + self.shortcut(F.avg_pool2d(x, 2))


class BlurEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, WIDTH, 4, 2)
        for i in range(1, 4):
            self.add_module(f"block{i}", Pooling(WIDTH * i, WIDTH * (i + 1)))
        self.mean, self.log_variance = nn.Linear(4 * WIDTH, CODE), nn.Linear(4 * WIDTH, CODE)

    def forward(self, x):
        x = mirrored(self.conv0, x, 1)
        for i in range(1, 4):
            x = self.get_submodule(f"block{i}")(x)
        x = F.leaky_relu(x, 0.2).mean((2, 3))
        return self.mean(x), self.log_variance(x)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        width = 4 * WIDTH + CODE
        self.block0 = Residual(width)
        for i in range(2):
            self.add_module(f"up{i}", nn.ConvTranspose2d(width + CODE, (width + CODE) // 2, 3, 2, 1, 1))
            width = (width + CODE) // 2
            self.add_module(f"scale{i}", nn.Linear(1, width))  # scale and bias of a channel
        self.out = nn.ConvTranspose2d(width + CODE, 3, 1)

    def forward(self, x, z):
        def joined(x):
            return torch.cat([x, z[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)

        x = self.block0(joined(x))
        for i in range(2):
            norm = self.get_submodule(f"scale{i}")
            x = self.get_submodule(f"up{i}")(joined(x))
            weight, bias = (p.reshape(-1, 1, 1).expand(x.shape[1:]) for p in (norm.weight, norm.bias))
            x = F.relu(F.layer_norm(x, x.shape[1:], weight, bias))
        return torch.tanh(self.out(joined(x)))


class Reference(nn.Module):
    """The path of a blurred image, and the generator of blurred ones."""

    def __init__(self):
        super().__init__()
        self.blurred, self.sharp, self.shared_content = ContentEncoder(), ContentEncoder(), Residual(4 * WIDTH)
        self.blur_encoder, self.shared = BlurEncoder(), Residual(4 * WIDTH)
        self.to_sharp, self.to_blurred = Decoder(), Decoder()

    def forward(self, sharp, blurred):
        content = self.shared_content(self.blurred(blurred))
        other = self.shared_content(self.sharp(sharp))
        mean, log_variance = self.blur_encoder(blurred)
        return self.to_sharp(self.shared(content), mean), self.to_blurred(self.shared(other), mean), log_variance


def both(source, target, layout="conv"):
    """Rules of a layer's weight and bias."""
    kernel = Rule(rf"{source}\.weight", f"params/{target}/kernel", layout)
    return [kernel, Rule(rf"{source}\.bias", f"params/{target}/bias")]


RULES = [
    *both(r"(sharp|blurred)\.conv(\d)", r"content/\1/conv\2/conv"),
    *both(r"(sharp|blurred)\.block0\.conv(\d)", r"content/\1/block0/conv\2/conv"),
    *both(r"shared_content\.conv(\d)", r"content/shared/conv\1/conv"),
    *both(r"shared\.conv(\d)", r"generator/shared/conv\1/conv"),
    *both(r"blur_encoder\.conv0", "blur_encoder/conv0/conv"),
    *both(r"blur_encoder\.block(\d)\.(\w+)", r"blur_encoder/block\1/\2/conv"),
    *both(r"blur_encoder\.(mean|log_variance)", r"blur_encoder/\1", "linear"),
    *both(r"to_(sharp|blurred)\.block0\.conv(\d)", r"generator/\1/block0/conv\2/conv"),
    *both(r"to_(sharp|blurred)\.(up\d|out)", r"generator/\1/\2", "conv_transpose"),
    Rule(r"to_(sharp|blurred)\.scale(\d)\.bias", r"params/generator/\1/norm\2/bias"),
    Rule(r"to_(sharp|blurred)\.scale(\d)\.weight", r"params/generator/\1/norm\2/scale"),
]


def state(tensors):
    """Arrays by name; scales of norms are [C]."""
    return {n: np.asarray(t).reshape(-1) if ".scale" in n else np.asarray(t).copy() for n, t in tensors.items()}


@pytest.mark.parametrize("size", SIZES)
def test_encoders_and_generators(size):
    rng = np.random.default_rng(0)
    images = [rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32) for _ in range(2)]
    theirs, net = randomized(Reference()).double(), ours.UID(WIDTH, BLOCKS, CODE)
    template = jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, 16, 16, 3))), jax.random.key(0))
    params = convert(state(theirs.state_dict()), RULES, template)["params"]

    @jax.jit
    def train(params, sharp, blurred):
        def loss(params, sharp, blurred):
            found = (
                net.apply({"params": params}, blurred),
                net.apply({"params": params}, sharp, blurred, method="transferred"),
                net.apply({"params": params}, blurred, method="blur_code").log_variance,
            )
            return sum(jnp.sin(3 * x).sum() for x in found), found

        return jax.grad(loss, (0, 1, 2), has_aux=True)(params, sharp, blurred)

    (d_params, *d_images), found = train(params, *images)
    tensors = [nchw(x, torch.float64) for x in images]
    wanted = theirs(*tensors)
    sum((3 * x).sin().sum() for x in wanted).backward()
    for got, want in zip(found, wanted, strict=True):
        assert_near(got, numpy_nhwc(want), 2e-5)
    for got, want in zip(d_images, tensors, strict=True):
        assert_near(got, numpy_nhwc(want.grad), 2e-4)
    expected = convert(state({n: p.grad for n, p in theirs.named_parameters()}), RULES, template)["params"]
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * largest), d_params, expected)


class PatchReference(nn.Module):
    def __init__(self, scales):
        super().__init__()
        self.scales = scales
        for s in range(scales):
            for i in range(3):
                self.add_module(f"scale{s}_conv{i}", nn.Conv2d(3 if i == 0 else WIDTH << i - 1, WIDTH << i, 4, 2))
            self.add_module(f"scale{s}_score", nn.Conv2d(WIDTH << 2, 1, 1))

    def forward(self, x):
        scores = []
        for s in range(self.scales):
            y = x
            for i in range(3):
                y = F.leaky_relu(mirrored(self.get_submodule(f"scale{s}_conv{i}"), y, 1), 0.01)
            scores.append(self.get_submodule(f"scale{s}_score")(y)[:, 0])
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return scores


@pytest.mark.parametrize("size", [(32, 48), (36, 28), (44, 52)])
def test_discriminator_and_its_losses(size):
    rng = np.random.default_rng(0)
    real, fake = (rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32) for _ in range(2))
    theirs, net = randomized(PatchReference(2)).double(), ours.Discriminator(WIDTH, 3, 2)
    template = jax.eval_shape(lambda key: net.init(key, real), jax.random.key(0))
    variables = convert(state(theirs.state_dict()), both(r"(scale\d_\w+)", r"\1/conv"), template)

    @jax.jit
    def losses(real, fake):
        scores = [net.apply(variables, x) for x in (real, fake)]
        made = ours.adversarial_loss(scores[1])
        return ours.discriminator_loss(*scores).sum() + 3 * made.sum(), (scores, made)

    gradients, (scores, _) = jax.grad(losses, (0, 1), has_aux=True)(real, fake)
    tensors = [nchw(x, torch.float64) for x in (real, fake)]
    wanted = [theirs(x) for x in tensors]
    total = 0
    for r, f in zip(*wanted, strict=True):
        ones, zeros = torch.ones_like(r), torch.zeros_like(r)
        entropy = F.binary_cross_entropy
        total = total + 2 * (entropy(r.sigmoid(), ones) + entropy(f.sigmoid(), zeros) + 3 * entropy(f.sigmoid(), ones))
    total.backward()
    for got, want in zip(jax.tree.leaves(scores), wanted[0] + wanted[1], strict=True):
        assert_near(got, want.detach().numpy(), 1e-5)
    for got, want in zip(gradients, tensors, strict=True):
        assert_near(got, numpy_nhwc(want.grad), 1e-4)
