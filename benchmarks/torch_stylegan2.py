"""StyleGAN2 in PyTorch, in the authors' forms: weights of each image in one grouped convolution, depthwise filters."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

ROOT = 2**0.5
SMOOTH = (1.0, 3.0, 3.0, 1.0)


def width(size: int, base: int, largest: int) -> int:
    """Feature maps at a resolution."""
    return min(2 * base // size, largest)


def lrelu(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU of slope 0.2."""
    return F.leaky_relu(x, 0.2)


def fir(x: torch.Tensor, taps: tuple[float, ...] = SMOOTH, gain: float = 1.0, stride: int = 1) -> torch.Tensor:
    """A filter in both directions, without padding."""
    taps = torch.tensor(taps) / sum(taps)
    kernel = (gain * torch.outer(taps, taps)).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, kernel, stride=stride, groups=x.shape[1])


def zeros_between(x: torch.Tensor) -> torch.Tensor:
    """Images of twice the size."""
    n, c, h, w = x.shape
    return F.pad(x.reshape(n, c, h, 1, w, 1), (0, 1, 0, 0, 0, 1)).reshape(n, c, 2 * h, 2 * w)


def modulated(
    x: torch.Tensor, weight: torch.Tensor, style: torch.Tensor, up: bool = False, demodulate: bool = True
) -> torch.Tensor:
    """A convolution [features, C, k, k] of images [N, C, H, W] whose weights are scaled by styles [N, C]."""
    weight = weight * style[:, None, :, None, None]
    if demodulate:
        weight = weight * (weight.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    n, side = len(x), weight.shape[-1]
    x = x.reshape(1, -1, *x.shape[2:])
    if up:
        turned = weight.flip(3, 4).transpose(1, 2).flatten(0, 1)
        x = fir(F.pad(F.conv_transpose2d(x, turned, stride=2, groups=n), (1, 1, 1, 1)), gain=4.0)
    else:
        x = F.conv2d(x, weight.flatten(0, 1), padding=side // 2, groups=n)
    return x.reshape(n, -1, *x.shape[2:])


def pooled_deviation(x: torch.Tensor, group: int = 4) -> torch.Tensor:
    """Maps with one more, the deviation within groups of images."""
    group = min(group, len(x))
    groups = [x[i :: len(x) // group] for i in range(len(x) // group)]
    levels = torch.stack([(g.var(0, unbiased=False) + 1e-8).sqrt().mean() for g in groups])
    return torch.cat([x, levels.repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1)


def random_noise(layer: int, x: torch.Tensor) -> torch.Tensor:
    """One map for each image."""
    return torch.randn(len(x), 1, *x.shape[2:])


class Layers(nn.Module):
    """Named layers with stored weights of unit variance."""

    def add(self, name: str, *shape: int, bias: bool = True) -> None:
        """Weights of a layer."""
        self.register_parameter(f"{name}_weight", nn.Parameter(torch.randn(*shape)))
        if bias:
            self.register_parameter(f"{name}_bias", nn.Parameter(0.3 * torch.randn(shape[0])))

    def add_value(self, name: str, *shape: int) -> None:
        """Other parameters."""
        self.register_parameter(name, nn.Parameter(0.3 * torch.randn(shape)))

    def weight(self, name: str, gain: float) -> torch.Tensor:
        """As used."""
        stored = getattr(self, f"{name}_weight")
        return stored * (gain / stored[0].numel() ** 0.5)

    def bias(self, name: str) -> torch.Tensor | None:
        """None where there is none."""
        return getattr(self, f"{name}_bias", None)

    def dense(self, name: str, x: torch.Tensor, gain: float) -> torch.Tensor:
        """A dense layer."""
        return F.linear(x, self.weight(name, gain), self.bias(name))

    def conv(self, name: str, x: torch.Tensor, gain: float) -> torch.Tensor:
        """A convolution of unchanged size."""
        weight = self.weight(name, gain)
        return F.conv2d(x, weight, self.bias(name), padding=weight.shape[-1] // 2)


class Mapping(Layers):
    """Dense layers of learning rate 0.01: the stored weights are a hundred times as large."""

    def __init__(self, latent_size: int, layers: int = 8, gain: float = 1.0, scale: float = ROOT):
        super().__init__()
        self.layers, self.gain, self.scale = layers, gain, scale
        for i in range(layers):
            self.add(f"dense{i}", latent_size, latent_size)
            getattr(self, f"dense{i}_weight").data *= 100
            getattr(self, f"dense{i}_bias").data *= 100

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = z / (z.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()
        for i in range(self.layers):
            weight = self.weight(f"dense{i}", self.gain) * 0.01
            x = lrelu(F.linear(x, weight, self.bias(f"dense{i}") * 0.01)) * self.scale
        return x


class Synthesis(Layers):
    """Styles [N, L, W] -> images; of fewer styles images of fewer pixels. `noise`: layer and maps -> noise."""

    def __init__(
        self,
        resolution: int,
        latent_size: int,
        base: int,
        largest: int,
        noise: Callable[[int, torch.Tensor], torch.Tensor] = random_noise,
    ):
        super().__init__()
        self.noise = noise
        inputs = width(4, base, largest)
        self.const = nn.Parameter(torch.randn(4, 4, inputs))
        for level in range(2, resolution.bit_length()):
            size = 2**level
            for name in ("up", "conv") if size > 4 else ("conv",):
                self.add(f"{name}{size}", width(size, base, largest), inputs, 3, 3)
                self.add(f"{name}{size}_style", inputs, latent_size)
                self.add_value(f"{name}{size}_noise")
                inputs = width(size, base, largest)
            self.add(f"rgb{size}", 3, inputs, 1, 1)
            self.add(f"rgb{size}_style", inputs, latent_size)

    def styled(self, name: str, x: torch.Tensor, styles: torch.Tensor, layer: int) -> torch.Tensor:
        """A modulated convolution with noise, bias and activation."""
        style = self.dense(f"{name}_style", styles[:, layer], 1.0)
        x = modulated(x, self.weight(name, 1.0), style, "up" in name)
        x = x + self.noise(layer, x) * getattr(self, f"{name}_noise")
        return lrelu(x + self.bias(name)[:, None, None]) * ROOT

    def rgb(self, x: torch.Tensor, styles: torch.Tensor, size: int, layer: int) -> torch.Tensor:
        """The image of a resolution."""
        style = self.dense(f"rgb{size}_style", styles[:, layer], 1.0)
        x = modulated(x, self.weight(f"rgb{size}", 1.0), style, demodulate=False)
        return x + self.bias(f"rgb{size}")[:, None, None]

    def forward(self, styles: torch.Tensor) -> torch.Tensor:
        x = self.styled("conv4", self.const.permute(2, 0, 1).expand(len(styles), -1, -1, -1), styles, 0)
        image, size = self.rgb(x, styles, 4, 1), 4
        for layer in range(1, styles.shape[1] - 1, 2):
            size *= 2
            x = self.styled(f"up{size}", x, styles, layer)
            x = self.styled(f"conv{size}", x, styles, layer + 1)
            larger = fir(F.pad(zeros_between(image), (2, 1, 2, 1)), gain=4.0)
            image = larger + self.rgb(x, styles, size, layer + 2)
        return image


class Discriminator(Layers):
    """Images -> scores [N]."""

    def __init__(self, resolution: int, base: int, largest: int):
        super().__init__()
        self.sizes = [2**level for level in range(resolution.bit_length() - 1, 2, -1)]
        self.add(f"from_rgb{resolution}", width(resolution, base, largest), 3, 1, 1)
        for size in self.sizes:
            here, below = (width(s, base, largest) for s in (size, size // 2))
            self.add(f"conv{size}", here, here, 3, 3)
            self.add(f"down{size}", below, here, 3, 3)
            self.add(f"skip{size}", below, here, 1, 1, bias=False)
        last = width(4, base, largest)
        self.add("conv4", last, last + 1, 3, 3)
        self.add("dense", width(2, base, largest), 16 * last)
        self.add("score", 1, width(2, base, largest))

    def down(self, name: str, x: torch.Tensor, pad: int) -> torch.Tensor:
        """A filter and a convolution at every second pixel."""
        return F.conv2d(fir(F.pad(x, (pad,) * 4)), self.weight(name, 1.0), self.bias(name), stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = lrelu(self.conv(f"from_rgb{x.shape[-1]}", x, 1.0)) * ROOT
        for size in self.sizes:
            past = self.down(f"skip{size}", x, 1)
            x = lrelu(self.conv(f"conv{size}", x, 1.0)) * ROOT
            x = (lrelu(self.down(f"down{size}", x, 2)) * ROOT + past) / ROOT
        x = lrelu(self.conv("conv4", pooled_deviation(x), 1.0)) * ROOT
        return self.dense("score", lrelu(self.dense("dense", x.flatten(1), 1.0)) * ROOT, 1.0)[:, 0]
