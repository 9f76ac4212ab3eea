"""PG-GAN compared with PyTorch modules of the published layers: outputs, both losses, and all gradients of both.

The discriminator's loss holds the gradient penalty, so its gradients are second derivatives of every layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.generation import pggan
from facejax.interop.names import Rule
from facejax.ops import adversarial
from tests.parity.networks import assert_near, converted, nchw, numpy_nhwc

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional

SIZE, LATENT, BASE, LARGEST = 16, 6, 64, 7


def width(size):
    return min(2 * BASE // size, LARGEST)


def normed(x):
    return x / (x.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()


class Layers(nn.Module):
    """Named layers with stored weights of unit variance."""

    def make_conv(self, name, inputs, outputs, kernel):
        layer = nn.Conv2d(inputs, outputs, kernel)
        self.add_module(name, layer)
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias, 0, 0.3)

    def make_dense(self, name, inputs, outputs, bias=True):
        layer = nn.Linear(inputs, outputs, bias=bias)
        self.add_module(name, layer)
        nn.init.normal_(layer.weight)

    def scaled(self, name, gain=2**0.5):
        layer = self.get_submodule(name)
        return layer.weight * (gain / layer.weight[0].numel() ** 0.5), layer.bias

    def conv(self, name, x, gain=2**0.5):
        weight, bias = self.scaled(name, gain)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


class TorchGenerator(Layers):
    def __init__(self):
        super().__init__()
        self.make_dense("dense", LATENT, 16 * width(4), bias=False)
        self.bias = nn.Parameter(torch.randn(width(4)))
        self.make_conv("conv4", width(4), width(4), 3)
        self.make_conv("to_rgb4", width(4), 3, 1)
        for size in (8, 16):
            self.make_conv(f"up{size}", width(size // 2), width(size), 3)
            self.make_conv(f"conv{size}", width(size), width(size), 3)
            self.make_conv(f"to_rgb{size}", width(size), 3, 1)

    def forward(self, z, size, alpha):
        weight, _ = self.scaled("dense", 2**0.5 / 4)
        x = F.linear(normed(z), weight).view(-1, 4, 4, width(4)).permute(0, 3, 1, 2) + self.bias[:, None, None]
        x = normed(F.leaky_relu(x, 0.2))
        x = normed(F.leaky_relu(self.conv("conv4", x), 0.2))
        image, last = self.conv("to_rgb4", x, 1.0), 4
        while last < size:
            last *= 2
            old = F.interpolate(image, scale_factor=2, mode="nearest")
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            for name in (f"up{last}", f"conv{last}"):
                x = normed(F.leaky_relu(self.conv(name, x), 0.2))
            image = self.conv(f"to_rgb{last}", x, 1.0)
        return image if last == 4 else torch.lerp(old, image, alpha)


class TorchDiscriminator(Layers):
    def __init__(self):
        super().__init__()
        for size in (16, 8):
            self.make_conv(f"from_rgb{size}", 3, width(size), 1)
            self.make_conv(f"conv{size}", width(size), width(size), 3)
            self.make_conv(f"down{size}", width(size), width(size // 2), 3)
        self.make_conv("from_rgb4", 3, width(4), 1)
        self.make_conv("conv4", width(4) + 1, width(4), 3)
        self.make_dense("dense", 16 * width(4), width(2))
        self.make_dense("score", width(2), 1)

    def features(self, image):
        return F.leaky_relu(self.conv(f"from_rgb{image.shape[-1]}", image), 0.2)

    def forward(self, image, alpha, group):
        size = whole = image.shape[-1]
        x = self.features(image)
        while size > 4:
            x = F.leaky_relu(self.conv(f"conv{size}", x), 0.2)
            weight, bias = self.scaled(f"down{size}")
            x = F.leaky_relu(F.avg_pool2d(F.conv2d(x, weight, padding=1), 2) + bias[:, None, None], 0.2)
            if size == whole:
                x = torch.lerp(self.features(F.avg_pool2d(image, 2)), x, alpha)
            size //= 2
        group = min(group, len(x))
        groups = [x[i :: len(x) // group] for i in range(len(x) // group)]
        levels = torch.stack([(g.var(0, unbiased=False) + 1e-8).sqrt().mean() for g in groups])
        plane = levels.repeat(group)[:, None, None, None].expand(-1, 1, 4, 4)
        x = F.leaky_relu(self.conv("conv4", torch.cat([x, plane], 1)), 0.2)
        weight, bias = self.scaled("dense")
        x = F.leaky_relu(F.linear(x.flatten(1), weight, bias), 0.2)
        weight, bias = self.scaled("score", 1.0)
        return F.linear(x, weight, bias)[:, 0]


CONVS = [
    Rule(r"((?:conv|up|down|to_rgb|from_rgb)\d+)\.weight", r"params/\1/kernel", "conv"),
    Rule(r"(\w+)\.bias", r"params/\1/bias"),
]
GENERATOR = [*CONVS, Rule("dense.weight", "params/dense/kernel", "linear"), Rule("bias", "params/bias")]
DISCRIMINATOR = [
    *CONVS,
    Rule("dense.weight", "params/dense/kernel", "flatten", channels=width(4)),
    Rule("score.weight", "params/score/kernel", "linear"),
]


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    theirs = TorchGenerator(), TorchDiscriminator()
    ours = pggan.Generator(SIZE, LATENT, BASE, LARGEST), pggan.Discriminator(SIZE, BASE, LARGEST)
    inputs = jnp.zeros((1, LATENT)), jnp.zeros((1, SIZE, SIZE, 3))
    shapes = [jax.eval_shape(net.init, jax.random.key(0), x) for net, x in zip(ours, inputs, strict=True)]
    return ours, theirs, shapes


def assert_gradients(ours, theirs, rules, shapes):
    """Of the layers in use; those of unused layers are zero."""
    state = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in theirs.named_parameters()}
    expected = converted(state, rules, shapes)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for (path, got), want in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * largest, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(("size", "alpha", "count"), [(4, 1.0, 3), (8, 0.3, 8), (16, 0.75, 5)])
def test_a_step(networks, size, alpha, count):
    """Batches of 3 and 5 are odd: one group of all three; five would not divide, so their group is of five."""
    (generator, discriminator), (torch_generator, torch_discriminator), shapes = networks
    group = 5 if count == 5 else 4
    generator, discriminator = generator.clone(resolution=size), discriminator.clone(resolution=size, group=group)
    pairs = ((torch_generator, GENERATOR), (torch_discriminator, DISCRIMINATOR))
    params = [converted(net.state_dict(), rules, s) for (net, rules), s in zip(pairs, shapes, strict=True)]
    rng, key = np.random.default_rng(size), jax.random.key(1)
    latents = rng.normal(size=(count, LATENT)).astype(np.float32)
    real = rng.uniform(-1, 1, (count, size, size, 3)).astype(np.float32)

    @jax.jit
    def losses(generator_params, discriminator_params, alpha):
        def fake(params):
            return generator.apply(params, latents, alpha=alpha)

        def score(params):
            return lambda images: discriminator.apply(params, images, alpha=alpha)

        def judge(params):
            return pggan.discriminator_loss(score(params), real, fake(generator_params), key).mean()

        def forge(params):
            return pggan.generator_loss(score(discriminator_params), fake(params)).mean()

        judged, forged = jax.value_and_grad(judge)(discriminator_params), jax.value_and_grad(forge)(generator_params)
        return fake(generator_params), judged, forged

    images, (d_loss, d_grads), (g_loss, g_grads) = losses(*params, alpha)

    def score(images):
        return torch_discriminator(images, alpha, group)

    for net in (torch_generator, torch_discriminator):
        net.zero_grad(set_to_none=True)
    fake = torch_generator(torch.tensor(latents), size, alpha)
    assert_near(images, numpy_nhwc(fake), 1e-5)
    forged = -score(fake).mean()
    forged.backward()
    np.testing.assert_allclose(g_loss, forged.item(), rtol=1e-4, atol=1e-5)
    assert_gradients(g_grads, torch_generator, GENERATOR, shapes[0])

    torch_discriminator.zero_grad(set_to_none=True)
    weight = np.asarray(adversarial.mixed_images(key, jnp.zeros((count, 1, 1, 1)), jnp.ones((count, 1, 1, 1))))
    theirs = nchw(real).detach()
    mixed = (theirs + torch.tensor(weight) * (fake.detach() - theirs)).requires_grad_()
    (slope,) = torch.autograd.grad(score(mixed).sum(), mixed, create_graph=True)
    penalty = (slope.pow(2).sum((1, 2, 3)).sqrt() - 1).pow(2)
    truth = score(theirs)
    judged = (score(fake.detach()) - truth + 10 * penalty + 1e-3 * truth.pow(2)).mean()
    judged.backward()
    np.testing.assert_allclose(d_loss, judged.item(), rtol=1e-4, atol=1e-5)
    assert_gradients(d_grads, torch_discriminator, DISCRIMINATOR, shapes[1])
