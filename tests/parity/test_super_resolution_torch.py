"""SRCNN, EDSR, SRResNet, RRDBNet, ESRGAN's discriminator and FSRNet compared with PyTorch modules of their layers."""

import jax
import numpy as np
import pytest

from facejax.interop.names import Rule, batch_norm, convert
from facejax.ops.resize import imresize
from facejax.restoration import fsrnet, srgan
from facejax.restoration import super_resolution as sr
from tests.parity.networks import assert_equal_training, assert_near, converted, randomized, template

torch = pytest.importorskip("torch", reason="needs the parity extra")
from benchmarks import torch_super_resolution

pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional

SIZES = [(8, 12), (7, 9), (5, 11)]
CONV = [Rule(r"(\w+)\.weight", r"params/\1/kernel", "conv"), Rule(r"(\w+)\.bias", r"params/\1/bias")]
TOLERANCES = {"outputs": 2e-5, "inputs": 2e-4, "params": 2e-4, "statistics": 1e-5}


def conv(inputs, outputs, size=3, stride=1, bias=True, padding=None):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2 if padding is None else padding, bias=bias)


def images(size, number=2):
    return np.random.default_rng(0).uniform(size=(number, *size, 3)).astype(np.float32)


@pytest.mark.parametrize(("size", "scale"), zip(SIZES, (2, 3, 4), strict=True))
def test_edsr(size, scale):
    settings = (scale, 6, 2, 0.1)
    assert_equal_training(
        sr.EDSR(*settings), randomized(torch_super_resolution.EDSR(*settings)), images(size), CONV, **TOLERANCES
    )


class SRResNet(nn.Module):
    def __init__(self, scale, features, blocks):
        super().__init__()
        self.blocks, self.steps = blocks, [3] if scale == 3 else [2] * (scale // 2)
        self.first, self.first_prelu, self.last = conv(3, features, 9), nn.PReLU(), conv(features, 3, 9)
        self.after_body, self.after_bn = conv(features, features), nn.BatchNorm2d(features)
        for i in range(blocks):
            for j in (1, 2):
                self.add_module(f"block{i}_conv{j}", conv(features, features))
                self.add_module(f"block{i}_bn{j}", nn.BatchNorm2d(features))
            self.add_module(f"block{i}_prelu", nn.PReLU())
        for i, step in enumerate(self.steps, 1):
            self.add_module(f"up{i}", conv(features, step**2 * features))
            self.add_module(f"up{i}_prelu", nn.PReLU())

    def forward(self, x):
        part = self.get_submodule
        x = skip = self.first_prelu(self.first(x))
        for i in range(self.blocks):
            y = part(f"block{i}_prelu")(part(f"block{i}_bn1")(part(f"block{i}_conv1")(x)))
            x = x + part(f"block{i}_bn2")(part(f"block{i}_conv2")(y))
        x = skip + self.after_bn(self.after_body(x))
        for i, step in enumerate(self.steps, 1):
            x = part(f"up{i}_prelu")(F.pixel_shuffle(part(f"up{i}")(x), step))
        return self.last(x)


@pytest.mark.parametrize("size", SIZES)
def test_srresnet(size, monkeypatch):
    settings, theirs = (4, 5, 2), randomized(SRResNet(4, 5, 2))
    rules = [
        Rule(r"(\w+prelu)\.weight", r"params/\1/negative_slope"),
        *batch_norm(r"(\w*bn\d?)", r"\1"),
        Rule(r"(\w*(?:first|last|body|conv\d|up\d))\.weight", r"params/\1/kernel", "conv"),
        Rule(r"(\w*(?:first|last|body|conv\d|up\d))\.bias", r"params/\1/bias"),
    ]
    monkeypatch.setattr("tests.parity.networks.convert", converted_slopes)
    assert_equal_training(sr.SRResNet(*settings), theirs, images(size), rules, **TOLERANCES)


def converted_slopes(tensors, rules, shapes):
    """PyTorch keeps a shared slope as [1]."""
    return convert({k: v[0] if "prelu" in k else v for k, v in tensors.items()}, rules, shapes)


class RRDBNet(nn.Module):
    def __init__(self, scale, features, blocks, growth):
        super().__init__()
        self.blocks, self.doublings = blocks, scale.bit_length() - 1
        self.first, self.after_body = conv(3, features), conv(features, features)
        self.full, self.last = conv(features, features), conv(features, 3)
        for i in range(blocks):
            for j in (1, 2, 3):
                for k in range(1, 6):
                    layer = conv(features + (k - 1) * growth, growth if k < 5 else features)
                    self.add_module(f"block{i}_dense{j}_conv{k}", layer)
        for i in range(1, self.doublings + 1):
            self.add_module(f"up{i}", conv(features, features))

    def forward(self, x):
        def leaky(x):
            return F.leaky_relu(x, 0.2)

        x = skip = self.first(x)
        for i in range(self.blocks):
            y = x
            for j in (1, 2, 3):
                maps = [y]
                for k in range(1, 6):
                    maps.append(self.get_submodule(f"block{i}_dense{j}_conv{k}")(torch.cat(maps, 1)))
                    maps[-1] = leaky(maps[-1]) if k < 5 else maps[-1]
                y = y + 0.2 * maps[-1]
            x = x + 0.2 * y
        x = skip + self.after_body(x)
        for i in range(1, self.doublings + 1):
            x = leaky(self.get_submodule(f"up{i}")(F.interpolate(x, scale_factor=2, mode="nearest")))
        return self.last(leaky(self.full(x)))


@pytest.mark.parametrize(("size", "scale"), zip(SIZES, (4, 2, 4), strict=True))
def test_rrdbnet(size, scale):
    settings = (scale, 6, 1, 4)
    rules = [
        Rule(r"(block\d_dense\d)_(conv\d)\.weight", r"params/\1/\2/kernel", "conv"),
        Rule(r"(block\d_dense\d)_(conv\d)\.bias", r"params/\1/\2/bias"),
        *CONV,
    ]
    assert_equal_training(sr.RRDBNet(*settings), randomized(RRDBNet(*settings)), images(size), rules, **TOLERANCES)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernels", [(9, 1, 5), (5, 3, 3)])
def test_srcnn(size, kernels):
    """Valid convolutions inside; a repeated border around; chroma as the enlargement has it."""
    net = sr.SRCNN(2, kernels, (6, 4))
    layers = [nn.Conv2d(*pair, k) for pair, k in zip(((1, 6), (6, 4), (4, 1)), kernels, strict=True)]
    theirs = randomized(nn.ModuleDict({f"conv{i}": layer for i, layer in enumerate(layers, 1)}))
    variables = converted(theirs.state_dict(), CONV, template(net, images(size)))
    luma = sr.to_ycbcr(imresize(images(size), 2))
    y = torch.tensor(np.array(luma[..., :1])).permute(0, 3, 1, 2)
    for i, layer in enumerate(layers):
        y = layer(F.pad(y, (kernels[i] // 2,) * 4, mode="replicate"))
        y = y.relu() if i < 2 else y
    found = sr.to_ycbcr(net.apply(variables, images(size)))
    assert_near(found[..., 0], y.detach()[:, 0].numpy())
    assert_near(found[..., 1:], luma[..., 1:])


class Discriminator(nn.Module):
    def __init__(self, widths, hidden, side):
        super().__init__()
        self.widths, inputs = widths, 3
        for i, width in enumerate(widths):
            self.add_module(f"conv{i}_0", conv(inputs, width, bias=i == 0))
            self.add_module(f"conv{i}_1", nn.Conv2d(width, width, 4, 2, 1, bias=False))
            for j in (0, 1) if i else (1,):
                self.add_module(f"bn{i}_{j}", nn.BatchNorm2d(width))
            inputs = width
        self.hidden = nn.Linear(inputs * (side[0] * side[1] // 4 ** len(widths)), hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, x):
        for i in range(len(self.widths)):
            for j in (0, 1):
                x = self.get_submodule(f"conv{i}_{j}")(x)
                x = self.get_submodule(f"bn{i}_{j}")(x) if i or j else x
                x = F.leaky_relu(x, 0.2)
        x = self.hidden(x.permute(0, 2, 3, 1).flatten(1))  # in our order
        return self.score(F.leaky_relu(x, 0.2))[:, 0]


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (8, 40)])
def test_discriminator(size):
    net = srgan.Discriminator((4, 6, 8), kernel=4, hidden=5, norm_bias=False)
    rules = [
        Rule(r"(hidden|score)\.weight", r"params/\1/kernel", "linear"),
        Rule(r"(hidden|score)\.bias", r"params/\1/bias"),
        Rule(r"(conv\d_\d)\.weight", r"params/\1/kernel", "conv"),
        Rule(r"(conv\d_\d)\.bias", r"params/\1/bias"),
        *batch_norm(r"(bn\d_\d)", r"\1"),
    ]
    theirs = randomized(Discriminator((4, 6, 8), 5, size))
    assert_equal_training(net, theirs, images(size, 3), rules, **TOLERANCES)


class Block(nn.Module):
    """Layers with the names of ours."""

    def norm(self, name, inputs, outputs, size=3, stride=1):
        self.add_module(f"{name}_conv", conv(inputs, outputs, size, stride, bias=False))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))

    def run(self, name, x):
        return self.get_submodule(f"{name}_bn")(self.get_submodule(f"{name}_conv")(x))


class Residual(Block):
    def __init__(self, width):
        super().__init__()
        self.norm("conv1", width, width)
        self.norm("conv2", width, width)

    def forward(self, x):
        return x + self.run("conv2", self.run("conv1", x).relu())


class Bottleneck(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        half = outputs // 2
        for i, (a, b, size) in enumerate(((inputs, half, 1), (half, half, 3), (half, outputs, 1)), 1):
            self.add_module(f"bn{i}", nn.BatchNorm2d(a))
            self.add_module(f"conv{i}", conv(a, b, size))
        self.shortcut = conv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x):
        y = x
        for i in (1, 2, 3):
            y = self.get_submodule(f"conv{i}")(self.get_submodule(f"bn{i}")(y).relu())
        return y + (x if self.shortcut is None else self.shortcut(x))


class Hourglass(nn.Module):
    def __init__(self, depth, width):
        super().__init__()
        self.shortcut, self.down, self.up = (Bottleneck(width, width) for _ in range(3))
        self.inner = Hourglass(depth - 1, width) if depth > 1 else Bottleneck(width, width)

    def forward(self, x):
        low = self.up(self.inner(self.down(F.max_pool2d(x, 2))))
        return self.shortcut(x) + F.interpolate(low, scale_factor=2, mode="nearest")


class FSRNet(Block):
    """Takes the enlargement, which PyTorch cannot make."""

    def __init__(self, maps, width, blocks, stacks, depth):
        super().__init__()
        self.blocks, self.stacks = dict(zip(("coarse", "encoder", "prior", "decoder"), blocks, strict=True)), stacks
        self.norm("coarse_first", 3, width)
        self.norm("encoder_first", 3, width, 3, 2)
        self.norm("prior_first", 3, width, 7, 2)
        self.norm("decoder_first", 3 * width, width)
        self.coarse_last, self.decoder_last = (conv(width, 3, bias=False) for _ in range(2))
        self.encoder_last, self.prior_widen = conv(width, width, bias=False), Bottleneck(width, 2 * width)
        for part, count in self.blocks.items():
            for i in range(count):
                self.add_module(f"{part}_block{i}", Residual(2 * width if part == "prior" else width))
        for i in range(stacks):
            self.add_module(f"prior_stack{i}", Hourglass(depth, 2 * width))
            self.add_module(f"maps{i}", conv(2 * width, maps, 1))
        self.decoder_up = nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False)
        self.decoder_up_bn = nn.BatchNorm2d(width)

    def chain(self, part, x):
        for i in range(self.blocks[part]):
            x = self.get_submodule(f"{part}_block{i}")(x)
        return x

    def forward(self, up):
        coarse = self.coarse_last(self.chain("coarse", self.run("coarse_first", up).relu()))
        encoded = self.encoder_last(self.chain("encoder", self.run("encoder_first", coarse).relu()))
        x = self.chain("prior", self.prior_widen(self.run("prior_first", coarse).relu()))
        priors = []
        for i in range(self.stacks):
            x = self.get_submodule(f"prior_stack{i}")(x)
            priors.append(self.get_submodule(f"maps{i}")(x))
        x = self.run("decoder_first", torch.cat([encoded, x], 1)).relu()
        x = self.decoder_up_bn(self.decoder_up(x)).relu()
        return [coarse, *priors, self.decoder_last(self.chain("decoder", x))]


FSR_RULES = [
    Rule(r"decoder_up\.weight", "params/decoder_up/kernel", "conv"),
    *batch_norm("decoder_up_bn", "decoder_up_bn"),
    Rule(r"(\w+_first)_conv\.weight", r"params/\1/conv/kernel", "conv"),
    *batch_norm(r"(\w+_first)_bn", r"\1/bn"),
    Rule(r"(\w+_block\d)\.(conv\d)_conv\.weight", r"params/\1/\2/conv/kernel", "conv"),
    *batch_norm(r"(\w+_block\d)\.(conv\d)_bn", r"\1/\2/bn"),
    *[
        rule
        for depth in range(4)
        for rule in (
            Rule(r"(\w+)" + r"\.(\w+)" * depth + r"\.(conv\d|shortcut)\.weight",
                 "params/" + "/".join(rf"\{i}" for i in range(1, depth + 3)) + "/kernel", "conv"),
            Rule(r"(\w+)" + r"\.(\w+)" * depth + r"\.(conv\d|shortcut)\.bias",
                 "params/" + "/".join(rf"\{i}" for i in range(1, depth + 3)) + "/bias"),
            *batch_norm(r"(\w+)" + r"\.(\w+)" * depth + r"\.(bn\d)", "/".join(rf"\{i}" for i in range(1, depth + 3))),
        )
    ],
    *CONV,
]  # fmt: skip


@pytest.mark.parametrize(("size", "stacks", "depth"), [((8, 16), 1, 2), ((4, 20), 2, 1), ((12, 12), 2, 1)])
def test_fsrnet(size, stacks, depth, monkeypatch):
    monkeypatch.setattr(fsrnet, "imresize", lambda x, scale: x)
    net = fsrnet.FSRNet(1, 3, 2, 4, (1, 1, 1, 1), stacks, depth)
    theirs = randomized(FSRNet(5, 4, (1, 1, 1, 1), stacks, depth))
    monkeypatch.setattr("tests.parity.networks.convert", converted_transposed)
    assert_equal_training(net, theirs, images(size), FSR_RULES, **TOLERANCES)


def converted_transposed(tensors, rules, shapes):
    """The kernel of a transposed convolution is [in, out, kh, kw] in PyTorch."""
    turned = {k: v.swapaxes(0, 1) if k == "decoder_up.weight" else v for k, v in tensors.items()}
    return convert(turned, rules, shapes)


def test_losses():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 7)).astype(np.float32)
    r, f, bce = torch.tensor(real), torch.tensor(fake), F.binary_cross_entropy_with_logits
    one, zero = torch.ones(7), torch.zeros(7)
    np.testing.assert_allclose(
        srgan.relativistic_loss(real, fake).mean(), (bce(r - f.mean(), one) + bce(f - r.mean(), zero)) / 2, rtol=1e-6
    )
    np.testing.assert_allclose(srgan.discriminator_loss(real, fake).mean(), bce(r, one) + bce(f, zero), rtol=1e-6)
    np.testing.assert_allclose(srgan.generator_loss(fake).mean(), bce(f, one), rtol=1e-6)


def test_pixel_shuffle():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 18)).astype(np.float32)
    theirs = F.pixel_shuffle(torch.tensor(x).permute(0, 3, 1, 2), 3).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(jax.jit(sr.pixel_shuffle, static_argnums=1)(x, 3), theirs)
