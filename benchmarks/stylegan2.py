"""StyleGAN2's layers and its training step beside PyTorch: `python -m benchmarks.stylegan2`.

The filters beside depthwise convolutions, XLA's and PyTorch's; the modulated convolution beside PyTorch's grouped one,
values and the gradients of images, weights and styles; a step of both players, with R1 in every 16th and path lengths
in every fourth step: the mean of 16 steps, from the times of each kind.
"""

from __future__ import annotations

import argparse
import collections
import copy
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from jax import lax

from benchmarks import torch_stylegan as peer
from benchmarks.compare import compare, record
from experiments import stylegan as experiment
from facejax.generation import stylegan2
from facejax.ops import fir
from facejax.train import parallel

LATENT, MAPPING_LAYERS, CYCLE = 512, 8, 16


def nchw(array: np.ndarray) -> torch.Tensor:
    """A leaf tensor with a gradient."""
    return torch.tensor(array.transpose(0, 3, 1, 2).copy(), requires_grad=True)


def depthwise(x: jax.Array, up: int, down: int, padding: tuple[int, int]) -> jax.Array:
    """The whole filter as one convolution of every channel."""
    taps = np.array(fir.SMOOTH) / sum(fir.SMOOTH)
    kernel = jnp.asarray(up**2 * np.outer(taps, taps), x.dtype)[..., None, None].repeat(x.shape[-1], -1)
    dims = lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    edges = ((padding[0], padding[1] + up - 1),) * 2
    return lax.conv_general_dilated(
        x, kernel, (down, down), edges, (up, up), dimension_numbers=dims, feature_group_count=x.shape[-1]
    )


def torch_filter(x: torch.Tensor, up: int, down: int, padding: tuple[int, int]) -> torch.Tensor:
    """The same in PyTorch."""
    x = peer.zeros_between(x) if up == 2 else x
    return peer.fir(F.pad(x, (*padding, *padding)), peer.SMOOTH, float(up**2), stride=down)


def filters(images: int, side: int, channels: int, repeats: int) -> None:
    """Enlargement, reduction and the filter alone."""
    x = np.random.default_rng(0).normal(size=(images, side, side, channels)).astype(np.float32)
    theirs = nchw(x).detach()
    for name, up, down, padding in (("enlarged", 2, 1, (2, 1)), ("reduced", 1, 2, (1, 1)), ("filtered", 1, 1, (2, 1))):
        ours = jax.jit(lambda x, u=up, d=down, p=padding: fir.upfirdn(x, fir.SMOOTH, up=u, down=d, padding=p))
        plain = jax.jit(lambda x, u=up, d=down, p=padding: depthwise(x, u, d, p))
        other = torch_filter(theirs, up, down, padding).permute(0, 2, 3, 1).numpy()
        errors = [np.abs(np.asarray(found) - other).max() for found in (ours(x), plain(x))]
        print(f"{name}: largest difference from PyTorch {max(errors):.1e}")
        compare(
            f"upfirdn, {images} x {side} x {side} x {channels} {name}",
            {
                "XLA's depthwise convolution": lambda plain=plain: plain(x),
                "torch, depthwise": lambda u=up, d=down, p=padding: torch_filter(theirs, u, d, p),
                "facejax": lambda ours=ours: ours(x),
            },
            repeats=repeats,
        )


def modulation(images: int, side: int, channels: int, repeats: int) -> None:
    """Values and all gradients, with and without enlargement."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(images, side, side, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, channels)).astype(np.float32)
    style = rng.normal(1, 0.3, (images, channels)).astype(np.float32)
    weight = torch.tensor(kernel.transpose(3, 2, 0, 1).copy(), requires_grad=True)
    theirs = (nchw(x), weight, torch.tensor(style, requires_grad=True))
    for up in (False, True):

        def loss(x: jax.Array, kernel: jax.Array, style: jax.Array, up: bool = up) -> jax.Array:
            return jnp.sum(jnp.square(stylegan2.modulated_conv(x, kernel, style, up=up)))

        def torch_run(up: bool = up) -> torch.Tensor:
            value = peer.modulated(*theirs, up=up).pow(2).sum()
            torch.autograd.grad(value, theirs)
            return value

        ours = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
        print(f"relative difference from PyTorch {abs(float(ours(x, kernel, style)[0]) / torch_run().item() - 1):.1e}")
        compare(
            f"modulated convolution, all gradients, {images} x {side} x {side} x {channels}{', enlarged' * up}",
            {"torch, grouped": torch_run, "facejax": lambda ours=ours: ours(x, kernel, style)},
            repeats=repeats,
        )


class TorchTraining:
    """Both players in PyTorch; a step's name is that of facejax: its regularisers, or "plain"."""

    def __init__(self, side: int, base: int, largest: int, settings: Any):
        self.settings, self.layers, self.path_average = settings, 2 * side.bit_length() - 4, torch.zeros(())
        self.rng = np.random.default_rng(0)
        self.mapping = peer.Mapping(LATENT, MAPPING_LAYERS)
        self.synthesis = peer.Synthesis2(side, LATENT, base, largest, grouped=True)
        self.discriminator = peer.Discriminator2(side, base, largest)
        self.generator = torch.nn.ModuleList([self.mapping, self.synthesis])
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        players = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers = {k: torch.optim.Adam(net.parameters(), 2e-3, (0.0, 0.99)) for k, net in players.items()}

    def styles(self, count: int) -> torch.Tensor:
        """Mixed styles of new latents."""
        w, other = self.mapping(torch.randn(2 * count, LATENT)).chunk(2)
        cutoff = self.rng.integers(1, self.layers) if self.rng.random() < self.settings.mixing else self.layers
        before = (torch.arange(self.layers) < cutoff)[:, None]
        return torch.where(before, w[:, None], other[:, None])

    def update(self, player: str, loss: torch.Tensor) -> None:
        """A step of a player's optimizer."""
        parameters = [p for group in self.optimizers[player].param_groups for p in group["params"]]
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            parameter.grad = slope
        self.optimizers[player].step()

    def step(self, real: torch.Tensor, name: str) -> None:
        """The generator's updates, then the discriminator's, then the average."""
        count, settings = len(real), self.settings
        self.update("generator", F.softplus(-self.discriminator(self.synthesis(self.styles(count)))).mean())
        if "path" in name:
            styles = self.styles(max(1, count // 2))
            images = self.synthesis(styles)
            direction = torch.randn_like(images) / images.shape[-1]
            (slope,) = torch.autograd.grad((images * direction).sum(), styles, create_graph=True)
            lengths = slope.pow(2).sum(2).mean(1).sqrt()
            average = self.path_average + 0.01 * (lengths.mean() - self.path_average)
            self.path_average = average.detach()
            weight = settings.path_interval * settings.path_weight
            self.update("generator", weight * (lengths - average).pow(2).mean())
        with torch.no_grad():
            fake = self.synthesis(self.styles(count))
        losses = F.softplus(self.discriminator(fake)) + F.softplus(-self.discriminator(real))
        self.update("discriminator", losses.mean())
        if "r1" in name:
            image = real.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.discriminator(image).sum(), image, create_graph=True)
            penalty = settings.gamma / 2 * slope.pow(2).sum((1, 2, 3)).mean()
            self.update("discriminator", settings.r1_interval * penalty)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 0.01)


def training(side: int, images: int, base: int, largest: int, repeats: int) -> None:
    """Times each kind of step in turns."""
    config = experiment.get_config("stylegan2")
    config.data.image_size, config.train.batch_size = side, images
    config.model.update(latent_size=LATENT, mapping_layers=MAPPING_LAYERS, base=base, largest=largest)
    made = experiment.run(config).experiment()
    kinds = collections.Counter(made.step_name(number) for number in range(1, CYCLE + 1))
    executor = parallel.make_executor(made, "shard_map", 1)
    state = executor.init(0)
    real = np.random.default_rng(0).integers(0, 256, (images, side, side, 3)).astype(np.uint8)
    batch, theirs = executor.put({"image": real}), TorchTraining(side, base, largest, config.loss)
    tensor = torch.tensor(real.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
    taken: dict[str, list[float]] = {"torch": [], "facejax": []}

    def ours(kind: str) -> None:
        nonlocal state
        state, _ = executor.step(state, batch, kind)
        jax.block_until_ready(state)

    def mean(step: Callable[[str], None]) -> float:
        total = 0.0
        for kind, count in kinds.items():
            begun = time.perf_counter()
            step(kind)
            total += count * (time.perf_counter() - begun)
        return total / CYCLE

    contenders = {"torch": lambda kind: theirs.step(tensor, kind), "facejax": ours}
    for step in contenders.values():
        mean(step)
    for turn in range(repeats):
        for name in sorted(contenders, reverse=bool(turn % 2)):
            taken[name].append(mean(contenders[name]))
    work = f"StyleGAN2 step, {images} images of {side} pixels, at most {min(largest, base)} maps"
    record(work, taken)
    for name, values in taken.items():
        print(f"{work}: {name} {min(values):.2f} s, {min(values) / min(taken['facejax']):.2f} of facejax's")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="of the images, pixels")
    parser.add_argument("--images", type=int, default=8, help="of a batch")
    parser.add_argument("--channels", type=int, default=64, help="of the layers alone")
    parser.add_argument("--base", type=int, default=4096, help="maps at 2 pixels, half as many at each double")
    parser.add_argument("--largest", type=int, default=256, help="and at most so many")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layer = arguments.images, arguments.side, arguments.channels, arguments.repeats
    filters(*layer)
    modulation(*layer)
    training(arguments.side, arguments.images, arguments.base, arguments.largest, max(1, arguments.repeats // 2))
