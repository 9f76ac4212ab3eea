"""StyleGAN and StyleGAN2 compared with PyTorch modules of the published layers, in the authors' own forms.

Convolutions with weights of each image run as one grouped convolution, filters as depthwise ones behind transposed
convolutions. Outputs, losses, R1 and path length penalties, and their gradients: second derivatives of every layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.generation import stylegan, stylegan2
from facejax.interop.names import Rule
from tests.parity.networks import assert_near, converted, nchw, numpy_nhwc

torch = pytest.importorskip("torch", reason="needs the parity extra")
from benchmarks import torch_stylegan as shared
from benchmarks.torch_stylegan import ROOT, TRIANGLE, Layers, fir, lrelu, pooled_deviation

pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional

SIZE, LATENT, BASE, LARGEST = 16, 6, 64, 7


def width(size):
    return shared.width(size, BASE, LARGEST)


def fixed_noise(layer, x):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), layer), (1, *x.shape[-2:], 1))
    return torch.tensor(np.asarray(noise)).permute(0, 3, 1, 2)


class TorchSynthesis(Layers):
    def __init__(self):
        super().__init__()
        self.const = nn.Parameter(torch.randn(4, 4, width(4)))
        names = {0: None, 1: "conv4", 2: "up8", 3: "conv8", 4: "up16", 5: "conv16"}
        for layer, name in names.items():
            size = 4 << layer // 2
            if name:
                self.add(name, width(size), width(size // 2 if "up" in name else size), 3, 3, bias=False)
            self.add_value(f"noise{layer}", width(size))
            self.add_value(f"bias{layer}", width(size))
            self.add(f"style{layer}", 2 * width(size), LATENT)
        for size in (4, 8, 16):
            self.add(f"rgb{size}", 3, width(size), 1, 1)

    def epilogue(self, x, styles, layer):
        column = (slice(None), None, None)
        x = x + fixed_noise(layer, x) * getattr(self, f"noise{layer}")[column]
        x = F.instance_norm(lrelu(x + getattr(self, f"bias{layer}")[column]), eps=1e-8)
        scale, shift = self.dense(f"style{layer}", styles[:, layer], 1.0)[..., None, None].chunk(2, 1)
        return x * (scale + 1) + shift

    def forward(self, styles, alpha):
        x = self.epilogue(self.const.permute(2, 0, 1).expand(len(styles), -1, -1, -1), styles, 0)
        x = self.epilogue(self.conv("conv4", x, ROOT), styles, 1)
        image, size = self.conv("rgb4", x, 1.0), 4
        for layer in range(2, styles.shape[1], 2):
            size, old = 2 * size, F.interpolate(image, scale_factor=2, mode="nearest")
            x = self.conv(f"up{size}", F.interpolate(x, scale_factor=2, mode="nearest"), ROOT)
            x = self.epilogue(fir(F.pad(x, (1, 1, 1, 1)), TRIANGLE), styles, layer)
            x = self.epilogue(self.conv(f"conv{size}", x, ROOT), styles, layer + 1)
            image = self.conv(f"rgb{size}", x, 1.0)
        return torch.lerp(old, image, alpha)


class TorchDiscriminator(Layers):
    """Of 8 pixels, while they fade in."""

    def __init__(self):
        super().__init__()
        for size in (8, 4):
            self.add(f"from_rgb{size}", width(size), 3, 1, 1)
        self.add("conv8", width(8), width(8), 3, 3)
        self.add("down8", width(4), width(8), 3, 3)
        self.add("conv4", width(4), width(4) + 1, 3, 3)
        self.add("dense", width(2), 16 * width(4))
        self.add("score", 1, width(2))

    def forward(self, image, alpha):
        x = lrelu(self.conv("conv8", lrelu(self.conv("from_rgb8", image, ROOT)), ROOT))
        x = fir(F.pad(x, (1, 1, 1, 1)), TRIANGLE)
        x = F.avg_pool2d(F.conv2d(x, self.weight("down8", ROOT), padding=1), 2)
        old = lrelu(self.conv("from_rgb4", F.avg_pool2d(image, 2), ROOT))
        x = torch.lerp(old, lrelu(x + self.bias("down8")[:, None, None]), alpha)
        x = lrelu(self.conv("conv4", pooled_deviation(x), ROOT))
        return self.dense("score", lrelu(self.dense("dense", x.flatten(1), ROOT)), 1.0)[:, 0]


MAPPING = [
    Rule(r"(dense\d)_weight", r"params/\1/kernel", "linear"),
    Rule(r"(dense\d)_bias", r"params/\1/bias"),
]
SYNTHESIS = [
    Rule("const", "params/const"),
    Rule(r"(noise|bias)(\d)", r"params/epilogue\2/\1"),
    Rule(r"style(\d)_weight", r"params/epilogue\1/style/kernel", "linear"),
    Rule(r"style(\d)_bias", r"params/epilogue\1/style/bias"),
    Rule(r"rgb(\d+)_weight", r"params/to_rgb\1/kernel", "conv"),
    Rule(r"rgb(\d+)_bias", r"params/to_rgb\1/bias"),
    Rule(r"(\w+)_weight", r"params/\1/kernel", "conv"),
]
SYNTHESIS2 = [
    Rule("const", "params/const"),
    Rule(r"rgb(\d+)_weight", r"params/to_rgb\1/kernel", "conv"),
    Rule(r"rgb(\d+)_style_weight", r"params/to_rgb\1/style/kernel", "linear"),
    Rule(r"rgb(\d+)_style_bias", r"params/to_rgb\1/style/bias"),
    Rule(r"rgb(\d+)_bias", r"params/to_rgb\1_bias"),
    Rule(r"(\w+)_style_weight", r"params/\1/conv/style/kernel", "linear"),
    Rule(r"(\w+)_style_bias", r"params/\1/conv/style/bias"),
    Rule(r"(\w+)_noise", r"params/\1/noise"),
    Rule(r"(\w+)_weight", r"params/\1/conv/kernel", "conv"),
    Rule(r"(\w+)_bias", r"params/\1/bias"),
]
DISCRIMINATOR = [
    Rule("dense_weight", "params/dense/kernel", "flatten", channels=width(4)),
    Rule("score_weight", "params/score/kernel", "linear"),
    Rule(r"(\w+)_weight", r"params/\1/kernel", "conv"),
    Rule(r"(\w+)_bias", r"params/\1/bias"),
]


def synthesis2(grouped):
    return shared.Synthesis2(SIZE, LATENT, BASE, LARGEST, noise=fixed_noise, grouped=grouped)


def pair(theirs, rules, ours, example):
    """Both networks and our parameters, those of theirs."""
    shapes = jax.eval_shape(ours.init, jax.random.key(0), example)
    return theirs, ours, converted(theirs.state_dict(), rules, shapes), rules, shapes


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    latents, image = jnp.zeros((1, LATENT)), jnp.zeros((1, 8, 8, 3))
    styles = jnp.zeros((1, stylegan.layer_count(SIZE), LATENT))
    sizes = (SIZE, BASE, LARGEST)
    second = {"gain": 1.0, "scale": ROOT}
    return {
        "mapping": pair(shared.Mapping(LATENT, 2, second=False), MAPPING, stylegan.Mapping(LATENT, 2, LATENT), latents),
        "mapping2": pair(shared.Mapping(LATENT, 2), MAPPING, stylegan.Mapping(LATENT, 2, LATENT, **second), latents),
        "synthesis": pair(TorchSynthesis(), SYNTHESIS, stylegan.Synthesis(*sizes), styles),
        "synthesis2": pair(synthesis2(True), SYNTHESIS2, stylegan2.Synthesis(*sizes), styles),
        "discriminator": pair(TorchDiscriminator(), DISCRIMINATOR, stylegan.Discriminator(8, BASE, LARGEST), image),
        "discriminator2": pair(
            shared.Discriminator2(8, BASE, LARGEST), DISCRIMINATOR, stylegan2.Discriminator(8, BASE, LARGEST), image
        ),
    }


def assert_gradients(ours, theirs, rules, shapes):
    """Of the layers in use; those of unused layers are zero."""
    state = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in theirs.named_parameters()}
    expected = converted(state, rules, shapes)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for (path, got), want in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * largest, err_msg=jax.tree_util.keystr(path))
    theirs.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["mapping", "mapping2"])
def test_mapping(networks, name):
    theirs, ours, params, rules, shapes = networks[name]
    z = np.random.default_rng(0).normal(size=(5, LATENT)).astype(np.float32)
    grads, w = jax.grad(lambda p: (jnp.sum(jnp.sin(ours.apply(p, z))), ours.apply(p, z)), has_aux=True)(params)
    expected = theirs(torch.tensor(z))
    assert_near(w, numpy_nhwc(expected))
    expected.sin().sum().backward()
    assert_gradients(grads, theirs, rules, shapes)


def styles_of(count, layers):
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, layers, LATENT)).astype(np.float32)


@pytest.mark.parametrize("grouped", [True, False])
def test_images_of_the_second_version(networks, grouped):
    known, ours, params, *_ = networks["synthesis2"]
    theirs = synthesis2(grouped)
    theirs.load_state_dict(known.state_dict())
    styles = styles_of(5, stylegan.layer_count(SIZE))
    assert_near(jax.jit(ours.apply)(params, styles), numpy_nhwc(theirs(torch.tensor(styles))))


def test_images_and_gradients_of_the_first_version(networks):
    theirs, ours, params, rules, shapes = networks["synthesis"]
    styles = styles_of(3, stylegan.layer_count(SIZE))

    @jax.jit
    def run(params):
        def loss(params):
            images = ours.apply(params, styles, alpha=0.3)
            return jnp.sum(jnp.sin(images)), images

        return jax.grad(loss, has_aux=True)(params)

    grads, images = run(params)
    expected = theirs(torch.tensor(styles), 0.3)
    assert_near(images, numpy_nhwc(expected))
    expected.sin().sum().backward()
    assert_gradients(grads, theirs, rules, shapes)


def test_path_length(networks):
    """The penalty with the average that carries a gradient, and the gradients of images and penalty."""
    theirs, ours, params, rules, shapes = networks["synthesis2"]
    ours, styles = ours.clone(resolution=8), styles_of(3, stylegan.layer_count(8))
    key, weight = jax.random.key(1), 0.3

    @jax.jit
    def run(params):
        def loss(params):
            synthesize = lambda styles: ours.apply(params, styles)  # noqa: E731
            found = stylegan2.path_length(synthesize, styles, jnp.float32(0.1), key, decay=0.2)
            return jnp.sum(jnp.sin(synthesize(styles))) + weight * jnp.sum(found.penalty), found

        return jax.grad(loss, has_aux=True)(params)

    grads, found = run(params)
    w = torch.tensor(styles, requires_grad=True)
    images = theirs(w)
    direction = nchw(jax.random.normal(key, (3, 8, 8, 3))).detach() / 8
    (slope,) = torch.autograd.grad((images * direction).sum(), w, create_graph=True)
    lengths = slope.pow(2).sum(2).mean(1).sqrt()
    average = 0.1 + 0.2 * (lengths.mean() - 0.1)
    assert_near(found.lengths, lengths.detach().numpy())
    np.testing.assert_allclose(found.average, average.item(), rtol=1e-5)
    (images.sin().sum() + weight * (lengths - average).pow(2).sum()).backward()
    assert_gradients(grads, theirs, rules, shapes)


@pytest.mark.parametrize(("name", "count"), [("discriminator", 8), ("discriminator2", 3)])
def test_discriminators(networks, name, count):
    """Both terms of the loss and R1, with all gradients."""
    theirs, ours, params, rules, shapes = networks[name]
    options = {"alpha": 0.3} if name == "discriminator" else {}
    real, fake = np.random.default_rng(count).uniform(-1, 1, (2, count, 8, 8, 3)).astype(np.float32)

    @jax.jit
    def run(params):
        def loss(params):
            score = lambda images: ours.apply(params, images, **options)  # noqa: E731
            losses = stylegan.discriminator_loss(score, real, fake)
            return jnp.mean(losses + stylegan.r1_penalty(score, real, 3.0)), score(real)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, scores), grads = run(params)
    image = nchw(real)
    of_real, of_fake = (theirs(x, *options.values()) for x in (image, nchw(fake)))
    assert_near(scores, of_real.detach().numpy())
    (slope,) = torch.autograd.grad(of_real.sum(), image, create_graph=True)
    expected = (F.softplus(of_fake) + F.softplus(-of_real) + 1.5 * slope.pow(2).sum((1, 2, 3))).mean()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    expected.backward()
    assert_gradients(grads, theirs, rules, shapes)
