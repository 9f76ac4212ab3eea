"""StyleGAN2 in PyTorch, and the layers that StyleGAN's parity tests share; reference of the benchmark and the tests.

Convolutions with weights of each image run as one grouped convolution, as in the authors' code at inference, or, as
there in training, with the styles on the maps. Filters are depthwise convolutions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

ROOT = 2**0.5
TRIANGLE, SMOOTH = (1.0, 2.0, 1.0), (1.0, 3.0, 3.0, 1.0)


def width(size: int, base: int, largest: int) -> int:
    """Feature maps at a resolution."""
    return min(2 * base // size, largest)


def lrelu(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU of slope 0.2."""
    return F.leaky_relu(x, 0.2)


def fir(x: torch.Tensor, taps: tuple[float, ...], gain: float = 1.0, stride: int = 1) -> torch.Tensor:
    """A filter in both directions, without padding."""
    kernel = filter_kernel(taps, gain, x.dtype, x.device).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, kernel, stride=stride, groups=x.shape[1])


@functools.cache  # a tensor made at every call would be sent to the GPU at every call
def filter_kernel(taps: tuple[float, ...], gain: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[K, K]."""
    weights = torch.tensor(taps, dtype=dtype) / sum(taps)
    return (gain * torch.outer(weights, weights)).to(device)


def zeros_between(x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W], with a zero behind every pixel along both axes."""
    n, c, h, w = x.shape
    return F.pad(x.reshape(n, c, h, 1, w, 1), (0, 1, 0, 0, 0, 1)).reshape(n, c, 2 * h, 2 * w)


def modulated(
    x: torch.Tensor,
    weight: torch.Tensor,
    style: torch.Tensor,
    *,
    up: bool = False,
    demodulate: bool = True,
    grouped: bool = True,
) -> torch.Tensor:
    """A convolution [features, C, k, k] of maps [N, C, H, W], its weights scaled by styles [N, C] of each image."""
    weight, n, scale = weight[None], len(x), None
    if grouped:
        weight = weight * style[:, None, :, None, None]
        if demodulate:
            weight = weight * (weight.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        x = x.reshape(1, -1, *x.shape[2:])
    else:
        if demodulate:
            scale = (style.pow(2) @ weight[0].pow(2).sum((2, 3)).T + 1e-8).rsqrt()[..., None, None].to(x.dtype)
        x = x * style[..., None, None].to(x.dtype)
    if up:
        turned = weight.flip(3, 4).transpose(1, 2).flatten(0, 1)
        x = F.conv_transpose2d(x, turned, stride=2, groups=len(weight))
        x = fir(F.pad(x, (1, 1, 1, 1)), SMOOTH, 4.0)
    else:
        x = F.conv2d(x, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=len(weight))
    x = x.reshape(n, -1, *x.shape[2:])
    return x if scale is None else x * scale


def pooled_deviation(x: torch.Tensor, group: int = 4) -> torch.Tensor:
    """Appends the mean deviation within groups of images as a channel."""
    group = min(group, len(x))
    groups = [x[i :: len(x) // group] for i in range(len(x) // group)]
    levels = torch.stack([(g.var(0, unbiased=False) + 1e-8).sqrt().mean() for g in groups])
    return torch.cat([x, levels.repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1)


def fresh_noise(layer: int, x: torch.Tensor) -> torch.Tensor:
    """Normal noise for maps [N, C, H, W]."""
    return torch.randn(len(x), 1, *x.shape[2:], dtype=x.dtype, device=x.device)


class Layers(nn.Module):
    """Named layers with stored weights of unit variance."""

    def add(self, name: str, *shape: int, bias: bool = True) -> None:
        """A layer's weight, and its bias."""
        self.register_parameter(f"{name}_weight", nn.Parameter(torch.randn(*shape)))
        if bias:
            self.add_value(f"{name}_bias", shape[0])

    def add_value(self, name: str, *shape: int) -> None:
        """Any other parameter."""
        self.register_parameter(name, nn.Parameter(0.3 * torch.randn(shape)))

    def weight(self, name: str, gain: float) -> torch.Tensor:
        """As used."""
        stored = getattr(self, f"{name}_weight")
        return stored * (gain / stored[0].numel() ** 0.5)

    def bias(self, name: str) -> torch.Tensor | None:
        """None for a layer without."""
        return getattr(self, f"{name}_bias", None)

    def dense(self, name: str, x: torch.Tensor, gain: float) -> torch.Tensor:
        """A dense layer."""
        return F.linear(x, self.weight(name, gain), self.bias(name))

    def conv(self, name: str, x: torch.Tensor, gain: float) -> torch.Tensor:
        """A convolution of unchanged size."""
        weight = self.weight(name, gain)
        return F.conv2d(x, weight, self.bias(name), padding=weight.shape[-1] // 2)


class Mapping(Layers):
    """Latents to w. The stored weights are a hundred times as large, as the authors' are."""

    def __init__(self, size: int = 512, layers: int = 8, *, second: bool = True):
        super().__init__()
        self.layers, self.second = layers, second
        for i in range(layers):
            self.add(f"dense{i}", size, size)
            getattr(self, f"dense{i}_weight").data *= 100
            getattr(self, f"dense{i}_bias").data *= 100

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = z / (z.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()
        for i in range(self.layers):
            weight = self.weight(f"dense{i}", 1.0 if self.second else ROOT) * 0.01
            x = lrelu(F.linear(x, weight, self.bias(f"dense{i}") * 0.01)) * (ROOT if self.second else 1)
        return x


class Synthesis2(Layers):
    """Styles [N, L, W] to images [N, 3, R, R]; `noise`: (layer, maps) -> noise; `grouped`: see above."""

    def __init__(
        self,
        resolution: int = 256,
        latent: int = 512,
        base: int = 16_384,
        largest: int = 512,
        *,
        noise: Callable[[int, torch.Tensor], torch.Tensor] = fresh_noise,
        grouped: bool = False,
    ):
        super().__init__()
        self.noise, self.grouped = noise, grouped
        size, inputs = 4, width(4, base, largest)
        self.const = nn.Parameter(torch.randn(4, 4, inputs))
        while size <= resolution:
            features = width(size, base, largest)
            for name in ([f"up{size}"] if size > 4 else []) + [f"conv{size}"]:
                self.add(name, features, inputs, 3, 3)
                self.add(f"{name}_style", inputs, latent)
                self.add_value(f"{name}_noise")
                inputs = features
            self.add(f"rgb{size}", 3, features, 1, 1)
            self.add(f"rgb{size}_style", features, latent)
            size *= 2

    def modulated(self, name: str, x: torch.Tensor, w: torch.Tensor, **options: bool) -> torch.Tensor:
        """A layer's convolution with weights of each image."""
        style = self.dense(f"{name}_style", w, 1.0)
        return modulated(x, self.weight(name, 1.0), style, grouped=self.grouped, **options)

    def styled(self, name: str, x: torch.Tensor, styles: torch.Tensor, layer: int) -> torch.Tensor:
        """With noise, bias and activation."""
        x = self.modulated(name, x, styles[:, layer], up="up" in name)
        x = x + self.noise(layer, x) * getattr(self, f"{name}_noise").to(x.dtype)
        return lrelu(x + self.bias(name)[:, None, None].to(x.dtype)) * ROOT

    def rgb(self, x: torch.Tensor, styles: torch.Tensor, size: int, layer: int) -> torch.Tensor:
        """The image of a resolution."""
        x = self.modulated(f"rgb{size}", x, styles[:, layer], demodulate=False)
        return x + self.bias(f"rgb{size}")[:, None, None]

    def forward(self, styles: torch.Tensor) -> torch.Tensor:
        x = self.styled("conv4", self.const.permute(2, 0, 1).expand(len(styles), -1, -1, -1), styles, 0)
        image, size = self.rgb(x, styles, 4, 1), 4
        for layer in range(1, styles.shape[1] - 1, 2):
            size *= 2
            x = self.styled(f"up{size}", x, styles, layer)
            x = self.styled(f"conv{size}", x, styles, layer + 1)
            larger = fir(F.pad(zeros_between(image), (2, 1, 2, 1)), SMOOTH, 4.0)
            image = larger + self.rgb(x, styles, size, layer + 2)
        return image


class Discriminator2(Layers):
    """Images [N, 3, R, R] to scores [N]."""

    def __init__(self, resolution: int = 256, base: int = 16_384, largest: int = 512):
        super().__init__()
        self.resolution, size, features = resolution, resolution, width(resolution, base, largest)
        self.add(f"from_rgb{size}", features, 3, 1, 1)
        while size > 4:
            smaller = width(size // 2, base, largest)
            self.add(f"conv{size}", features, features, 3, 3)
            self.add(f"down{size}", smaller, features, 3, 3)
            self.add(f"skip{size}", smaller, features, 1, 1, bias=False)
            size, features = size // 2, smaller
        self.add("conv4", features, features + 1, 3, 3)
        self.add("dense", width(2, base, largest), 16 * features)
        self.add("score", 1, width(2, base, largest))

    def down(self, name: str, x: torch.Tensor, pad: int) -> torch.Tensor:
        """Filter, then convolve at every second pixel."""
        x = fir(F.pad(x, (pad,) * 4), SMOOTH)
        return F.conv2d(x, self.weight(name, 1.0), self.bias(name), stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = self.resolution
        x = lrelu(self.conv(f"from_rgb{size}", x, 1.0)) * ROOT
        while size > 4:
            past = self.down(f"skip{size}", x, 1)
            x = lrelu(self.conv(f"conv{size}", x, 1.0)) * ROOT
            x = (lrelu(self.down(f"down{size}", x, 2)) * ROOT + past) / ROOT
            size //= 2
        x = lrelu(self.conv("conv4", pooled_deviation(x), 1.0)) * ROOT
        return self.dense("score", lrelu(self.dense("dense", x.flatten(1), 1.0)) * ROOT, 1.0)[:, 0]
