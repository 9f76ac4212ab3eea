"""PyTorch's side of `benchmarks.gpu`: every function yields the measurements of the list of its name.

Channels last, autocast to bfloat16, cuDNN's fastest algorithms, TF32 products, fused optimizers where there are any.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import torch_stylegan
from benchmarks.gpu import PRODUCT, Work
from benchmarks.torch_adaptive_wing import Net
from benchmarks.torch_prnet import PRNet
from benchmarks.torch_recognition import IResNet
from benchmarks.torch_scrfd import SCRFD
from benchmarks.torch_super_resolution import EDSR

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cudnn.benchmark = True
torch.set_float32_matmul_precision("high")
autocast = partial(torch.autocast, DEVICE.type, torch.bfloat16)


def about() -> dict[str, str]:
    """The version and the device."""
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    return {"torch": torch.__version__, "PyTorch's device": device}


def wait(_: Any) -> None:
    """Until the device is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """Lets go of the last measurement."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def placed(net: torch.nn.Module, compiled: bool = False) -> Any:
    """A network on the device; on a CPU `compiled` traces it without generating code."""
    net = net.to(DEVICE, memory_format=torch.channels_last)
    return torch.compile(net, backend="inductor" if DEVICE.type == "cuda" else "aot_eager") if compiled else net


def images(batch: int, side: int) -> torch.Tensor:
    """uint8 [batch, 3, side, side]."""
    pictures = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=DEVICE)
    return pictures.to(memory_format=torch.channels_last)


def uniform(*shape: int) -> torch.Tensor:
    """In 0..1."""
    return torch.rand(*shape, device=DEVICE)


def training(loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], torch.Tensor]:
    """A call that makes one step; `loss` casts by itself."""

    def call() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return call


def recognition(
    batch: int,
    networks: Mapping[str, Any],
    widths: Sequence[int],
    embedding: int,
    side: int,
    classes: int,
    product: int,
    compiled: bool,
) -> Iterator[Work]:
    """A bfloat16 matrix product, then IResNets with ArcFace."""

    def multiply() -> Callable[[], torch.Tensor]:
        a = torch.randn(product, product, device=DEVICE, dtype=torch.bfloat16)
        return lambda: a @ a

    yield Work(PRODUCT, 2 * product**3, multiply, "FLOP")
    for name, depths in networks.items():

        def build(depths: Sequence[int] = depths) -> Any:
            net = placed(IResNet(depths, widths, embedding, side), compiled)
            centres = torch.nn.Parameter(0.01 * torch.randn(classes, embedding, device=DEVICE))
            pictures, labels = images(batch, side), torch.randint(0, classes, (batch,), device=DEVICE)
            trained = [p for p in net.parameters() if p.requires_grad]

            def loss() -> torch.Tensor:
                with autocast():
                    features = net((pictures.float() - 127.5) / 127.5)
                cosine = F.normalize(features.float()) @ F.normalize(centres).T
                true = cosine.gather(1, labels[:, None]).clamp(-1 + 1e-7, 1 - 1e-7)
                moved = cosine.scatter(1, labels[:, None], torch.cos(torch.arccos(true) + 0.5))
                return F.cross_entropy(64 * moved, labels)

            return training(loss, torch.optim.SGD([*trained, centres], 0.1, 0.9, weight_decay=5e-4, fused=True))

        yield Work(f"{name} + ArcFace, training", batch, build)


def scrfd(
    batch: int,
    stem: int,
    widths: Sequence[int],
    depths: Sequence[int],
    neck: int,
    head: int,
    head_depth: int,
    groups: int,
    side: int,
    boxes: int,
    compiled: bool,
) -> Iterator[Work]:
    """Training with given positive anchors, 4 of every box, and inference."""

    def made() -> Any:
        return placed(SCRFD(stem, widths, depths, neck, head, head_depth, groups), compiled)

    def prepared(pictures: torch.Tensor) -> torch.Tensor:
        return (pictures.float() - 127.5) / 128

    def train() -> Any:
        net, pictures = made(), images(batch, side)
        anchors = 2 * sum((side // stride) ** 2 for stride in (8, 16, 32))
        positive = uniform(batch, anchors) < 4 * boxes / anchors
        wanted = 1 + 3 * uniform(batch, anchors, 4)

        def loss() -> torch.Tensor:
            with autocast():
                scores, found = net(prepared(pictures))
            return detection_loss(scores, found, positive, wanted)

        return training(loss, torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=5e-4, fused=True))

    def infer() -> Any:
        net, pictures = made().eval(), images(batch, side)

        def call() -> Any:
            with torch.inference_mode(), autocast():
                return net(prepared(pictures))

        return call

    yield Work(f"SCRFD, {side} pixels, training", batch, train)
    yield Work(f"SCRFD, {side} pixels, inference", batch, infer)


def detection_loss(
    scores: torch.Tensor, found: torch.Tensor, positive: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Quality focal loss, and DIoU weighted by score; logits [N, A], distances [N, A, 4], mask [N, A]."""
    low, high = torch.minimum(found, wanted), torch.maximum(found, wanted)
    shared = (low[..., :2] + low[..., 2:]).clamp(min=0).prod(-1)
    areas = [(x[..., :2] + x[..., 2:]).prod(-1) for x in (found, wanted)]
    overlap = shared / (areas[0] + areas[1] - shared).clamp(min=1e-6)
    shift = (found - wanted)[..., 2:] - (found - wanted)[..., :2]
    distance = 1 - overlap + (shift / 2).pow(2).sum(-1) / (high[..., :2] + high[..., 2:]).pow(2).sum(-1).clamp(min=1e-6)
    quality, score = torch.where(positive, overlap, 0.0).detach(), scores.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(scores, quality, reduction="none")
    focal = ((quality - score).abs().pow(2) * entropy).sum() / positive.sum().clamp(min=1)
    weight = torch.where(positive, score, 0.0).detach()
    return focal + 2 * (weight * distance).sum() / weight.sum().clamp(min=1e-6)


def adaptive_wing(
    batch: int, landmarks: int, stacks: int, depth: int, features: int, side: int, compiled: bool
) -> Iterator[Work]:
    """Training with given maps."""

    def build() -> Any:
        net, pictures = placed(Net(landmarks, stacks, depth, features), compiled), images(batch, side)
        targets = uniform(batch, landmarks + 1, side // 4, side // 4) ** 8
        weights = 1 + 10 * (F.max_pool2d(targets, 3, 1, 1) >= 0.2).float()

        def loss() -> torch.Tensor:
            with autocast():
                stacked = net(pictures.float() / 255)
            return sum((weights * wing(maps.float(), targets)).mean() for maps in stacked)

        return training(loss, torch.optim.RMSprop(net.parameters(), 1e-4, 0.99, weight_decay=1e-5))

    yield Work(f"Adaptive Wing, {stacks} hourglasses, training", batch, build)


def wing(maps: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The adaptive wing loss of every pixel."""
    d, p = (targets - maps).abs(), 2.1 - targets
    at = 0.5**p
    slope = 28 * p * at / (1 + at)
    curved = 14 * torch.log1p(d.clamp(max=0.5) ** p)
    return torch.where(d < 0.5, curved, slope * (d - 0.5) + 14 * torch.log1p(at))


def prnet(batch: int, width: int, side: int, compiled: bool) -> Iterator[Work]:
    """Training."""

    def build() -> Any:
        net, pictures, truth = placed(PRNet(width), compiled), images(batch, side), uniform(batch, 3, side, side)
        weights = torch.ones(side, side, device=DEVICE)

        def loss() -> torch.Tensor:
            with autocast():
                found = net(pictures.float() / 255)
            return (weights * (found - truth).pow(2).sum(1)).mean()

        return training(loss, torch.optim.Adam(net.parameters(), 1e-4, fused=True))

    yield Work("PRNet, training", batch, build)


def stylegan2(
    batch: int, resolution: int, latent: int, layers: int, base: int, largest: int, steps: int, compiled: bool
) -> Iterator[Work]:
    """Both players' updates, path lengths in every fourth step, R1 in every sixteenth.

    The penalties differentiate twice, which compiled networks cannot: they are of the networks as they are.
    """

    def build() -> Any:
        mapping = placed(torch_stylegan.Mapping(latent, layers))
        plain = placed(torch_stylegan.Synthesis2(resolution, latent, base, largest))
        judge = placed(torch_stylegan.Discriminator2(resolution, base, largest))
        synthesis, score = placed(plain, compiled), placed(judge, compiled)
        options = {"lr": 2e-3, "betas": (0.0, 0.99), "fused": True}
        made = torch.optim.Adam([*mapping.parameters(), *plain.parameters()], **options)
        judged = torch.optim.Adam(judge.parameters(), **options)
        pictures, count = images(batch, resolution), 2 * (resolution.bit_length() - 2)

        def styles(number: int) -> torch.Tensor:
            return mapping(torch.randn(number, latent, device=DEVICE))[:, None].expand(-1, count, -1)

        def real() -> torch.Tensor:
            return pictures.float() / 127.5 - 1

        def generate() -> torch.Tensor:
            return F.softplus(-score(synthesis(styles(batch))).float()).mean()

        def straighten() -> torch.Tensor:
            w = styles(max(1, batch // 2))
            found = plain(w).float()
            (slope,) = torch.autograd.grad((found * torch.randn_like(found) / resolution).sum(), w, create_graph=True)
            lengths = slope.pow(2).sum(2).mean(1).sqrt()
            return 8 * (lengths - (1 + 0.01 * (lengths.mean() - 1))).pow(2).mean()

        def discriminate() -> torch.Tensor:
            with torch.no_grad():
                fake = synthesis(styles(batch))
            return (F.softplus(score(fake).float()) + F.softplus(-score(real()).float())).mean()

        def penalise() -> torch.Tensor:
            given = real().requires_grad_()
            (slope,) = torch.autograd.grad(judge(given).float().sum(), given, create_graph=True)
            return 16 * 5 * slope.pow(2).sum((1, 2, 3)).mean()

        schedule = ((1, generate, made), (4, straighten, made), (1, discriminate, judged), (16, penalise, judged))
        plays = [(interval, player, training(autocast()(loss), player)) for interval, loss, player in schedule]

        def call() -> None:
            for step in range(steps):
                for interval, player, play in plays:
                    if step % interval == 0:
                        judge.requires_grad_(player is judged)
                        play()

        return call

    yield Work(f"StyleGAN2, {resolution} pixels, training", steps * batch / 1000, build, "kimg")


def super_resolution(batch: int, features: int, blocks: int, scale: int, side: int, compiled: bool) -> Iterator[Work]:
    """Training of EDSR on patches, given by the side of the small image."""

    def build() -> Any:
        net = placed(EDSR(scale, features, blocks), compiled)
        small, large = images(batch, side), images(batch, scale * side)

        def loss() -> torch.Tensor:
            with autocast():
                found = net(small.float() / 255)
            return (found.float() - large.float() / 255).abs().mean()

        return training(loss, torch.optim.Adam(net.parameters(), 1e-4, fused=True))

    yield Work(f"EDSR x{scale}, training", batch, build)
