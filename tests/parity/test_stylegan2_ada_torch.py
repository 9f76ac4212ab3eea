"""A pickle in the layout of StyleGAN2-ADA's, whose classes carry their code: its generator against ours."""

import io
import os
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.generation import stylegan2
from facejax.interop import stylegan2 as interop
from facejax.interop.pytorch import read_pickled_modules

torch = pytest.importorskip("torch", reason="needs the parity extra")
from benchmarks.torch_stylegan import ROOT, SMOOTH, fir, lrelu, zeros_between
from tests.parity.networks import assert_near
from tests.parity.test_stylegan_torch import fixed_noise

pytestmark = pytest.mark.parity
nn, F = torch.nn, torch.nn.functional
LATENT, BASE, LARGEST, RAN = 6, 64, 7, []


def reconstruct(meta):
    RAN.append(meta)


class Persistent(nn.Module):
    """Pickled as by the authors' `persistence`, with a buffer of the filter."""

    def __reduce__(self):
        return reconstruct, ({"type": "class", "version": 6, "module_src": "RAN", "state": self.__dict__},)

    def __init__(self):
        super().__init__()
        self.register_buffer("resample_filter", torch.ones(4, 4) / 16)


class Dense(Persistent):
    def __init__(self, a, b, rate=1.0, bias=0.0):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(b, a) / rate), nn.Parameter(bias + torch.randn(b) / rate / 3)
        self.rate = rate

    def forward(self, x):
        return F.linear(x, self.weight * (self.rate / x.shape[1] ** 0.5), self.bias * self.rate)


class Layer(Persistent):
    """A modulated convolution; of the kernel 3x3 with demodulation and noise."""

    def __init__(self, a, b, size, layer=None, resolution=None):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(b, a, size, size)), nn.Parameter(torch.randn(b) / 3)
        self.affine, self.layer = Dense(LATENT, a, bias=1.0), layer
        if layer is not None:
            self.noise_strength = nn.Parameter(torch.randn([]) / 3)
            self.register_buffer("noise_const", fixed_noise(layer, torch.empty(resolution, resolution))[0, 0])

    def forward(self, x, w, up=False):
        n, style = len(x), self.affine(w)
        if self.layer is None:
            style = style / x.shape[1] ** 0.5
        weight = self.weight * style[:, None, :, None, None]
        if self.layer is not None:
            weight = weight * (weight.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        x = x.reshape(1, -1, *x.shape[2:])
        if up:
            x = F.conv_transpose2d(x, weight.transpose(1, 2).flatten(0, 1), stride=2, groups=n)
            x = fir(F.pad(x, (1, 1, 1, 1)), SMOOTH, 4.0)
        else:
            x = F.conv2d(x, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=n)
        x = x.reshape(n, -1, *x.shape[2:])
        if self.layer is None:
            return x + self.bias[:, None, None]
        return lrelu(x + self.noise_const * self.noise_strength + self.bias[:, None, None]) * ROOT


def width(size):
    return min(2 * BASE // size, LARGEST)


class Generator(Persistent):
    def __init__(self, resolution):
        super().__init__()
        self.mapping, self.synthesis = Persistent(), Persistent()
        self.mapping.register_buffer("w_avg", torch.zeros(LATENT))
        for i in range(2):
            self.mapping.add_module(f"fc{i}", Dense(LATENT, LATENT, 0.01))
        size, layer = 4, 0
        while size <= resolution:
            block = Persistent()
            if size == 4:
                block.const = nn.Parameter(torch.randn(width(4), 4, 4))
            else:
                block.conv0 = Layer(width(size // 2), width(size), 3, layer, size)
                layer += 1
            block.conv1 = Layer(width(size), width(size), 3, layer, size)
            block.torgb = Layer(width(size), 3, 1)
            self.synthesis.add_module(f"b{size}", block)
            size, layer = 2 * size, layer + 1

    def forward(self, z):
        w = z / (z.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()
        for i in range(2):
            w = lrelu(getattr(self.mapping, f"fc{i}")(w)) * ROOT
        x, image = None, 0
        for name, block in self.synthesis.named_children():
            if name == "b4":
                x = block.const.expand(len(w), -1, -1, -1)
            else:
                x = block.conv0(x, w, up=True)
                image = fir(F.pad(zeros_between(image), (2, 1, 2, 1)), SMOOTH, 4.0)
            x = block.conv1(x, w)
            image = image + block.torgb(x, w)
        return image


@pytest.fixture
def pickled(monkeypatch):
    """(networks) -> bytes that refer to the authors' function, which is not there when they are read."""

    def write(value):
        module = types.ModuleType("torch_utils.persistence")
        module._reconstruct_persistent_obj = reconstruct
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
            patch.setitem(sys.modules, "torch_utils.persistence", module)
            patch.setattr(reconstruct, "__module__", "torch_utils.persistence")
            patch.setattr(reconstruct, "__name__", "_reconstruct_persistent_obj")
            patch.setattr(reconstruct, "__qualname__", "_reconstruct_persistent_obj")
            file = io.BytesIO()
            pickle.dump(value, file)
        return file.getvalue()

    return write


@pytest.mark.parametrize("resolution", [8, 16])
def test_generator(resolution, pickled, tmp_path):
    torch.manual_seed(resolution)
    theirs = Generator(resolution)
    path = tmp_path / "network.pkl"
    networks = {"G": Generator(4), "D": None, "G_ema": theirs, "training_set_kwargs": {"size": 3}}
    path.write_bytes(pickled(networks))
    ours = stylegan2.Generator(resolution, LATENT, BASE, LARGEST, 2)
    latents = np.float32(np.random.default_rng(0).normal(size=(3, LATENT)))
    variables = interop.load(path, jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, LATENT))))
    found = jax.jit(ours.apply)(variables, latents)
    assert_near(found, theirs(torch.tensor(latents)).permute(0, 2, 3, 1).detach(), 1e-5)
    assert not RAN
    assert set(read_pickled_modules(path)) > {"G.synthesis.b4.const", "G_ema.mapping.w_avg"}
    with pytest.raises(ValueError, match=r"network\.pkl: no tensors under 'G_emu'; keys with tensors: 'G', 'G_ema'$"):
        interop.load(path, variables, "G_emu")
    with pytest.raises(ValueError, match=r"missing: params/synthesis/conv\d+/"):
        interop.load(path, variables, "G")


def test_hostile_pickles(pickled, tmp_path):
    path = tmp_path / "network.pkl"
    whole = pickled({"G_ema": Generator(4)})
    for data in (whole[:-200], b"", b"\x80\x04.", pickle.dumps({"G_ema": types.SimpleNamespace(a=1)})):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"network\.pkl: "):
            read_pickled_modules(path, "G_ema")

    class Command:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    path.write_bytes(pickle.dumps({"G_ema": Command(), "x": torch.ones(2)}))
    assert list(read_pickled_modules(path)) == ["x"]
    assert not (tmp_path / "made").exists()
