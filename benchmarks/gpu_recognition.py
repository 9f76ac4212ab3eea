"""ArcFace training on one GPU compared with PyTorch on the same GPU: `python -m benchmarks.gpu_recognition`.

IResNet-50 and -100 with a margin softmax, batch 128 to 512, bfloat16, synthetic images: images per second, fraction of
the GPU's measured bfloat16 peak, peak memory. Then heads of 1 and 10 million classes. Needs neither tfds nor Grain.
`--smoke` runs a tiny version on any device.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from facejax.backbones import iresnet
from facejax.recognition import arcface

FLOPS = {"iresnet50": 3 * 2 * 6.31e9, "iresnet100": 3 * 2 * 12.09e9}  # forward and backward, per image
DEPTHS = {"iresnet50": (3, 4, 14, 3), "iresnet100": (3, 13, 30, 3)}


def seconds(run: Callable[[], Any], repeats: int = 20) -> float:
    """Seconds per call after two warm-up calls; `run` returns an array to wait for."""
    for _ in range(2):
        jax.block_until_ready(run())
    start = time.perf_counter()
    for _ in range(repeats):
        out = run()
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / repeats


def peak_flops(size: int) -> float:
    """Operations per second of a large bfloat16 matrix product."""
    a = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(lambda x: x @ a)
    return 2 * size**3 / seconds(lambda: product(a))


def facejax_step(net: Any, batch: int, size: int, classes: int, chunk: int) -> Callable[[], Any]:
    """A jitted training step that holds its state."""
    images = jax.random.randint(jax.random.key(0), (batch, size, size, 3), 0, 255).astype(jnp.uint8)
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, classes)
    variables = jax.jit(lambda: net.init(jax.random.key(2), jnp.zeros((2, size, size, 3)), train=False))()
    centres = 0.01 * jax.random.normal(jax.random.key(3), (classes, net.embedding_size))
    params = {"backbone": variables["params"], "head": centres}
    tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9))

    def loss_fn(params: Any, stats: Any) -> Any:
        x = (images.astype(jnp.float32) - 127.5) / 127.5
        features, updated = net.apply(
            {"params": params["backbone"], "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        if chunk:
            loss = arcface.chunked_margin_softmax_loss(features, params["head"], labels, chunk=chunk)
        else:
            loss = arcface.margin_softmax_loss(features, params["head"], labels)
        return loss.mean(), updated["batch_stats"]

    def step(state: Any) -> Any:
        params, stats, opt = state
        (_, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, stats)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), stats, opt

    compiled = jax.jit(step, donate_argnums=0)
    state = [(params, variables["batch_stats"], tx.init(params))]

    def run() -> Any:
        state[0] = compiled(state[0])
        return state[0]

    return run


def torch_step(name: str, batch: int, size: int, classes: int) -> Callable[[], Any]:
    """The same step in PyTorch: channels last, autocast to bfloat16, torch.compile."""
    import torch

    from benchmarks.torch_recognition import IResNet

    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    net = IResNet(DEPTHS[name], size=size).cuda().to(memory_format=torch.channels_last)
    net = torch.compile(net)
    centres = torch.nn.Parameter(0.01 * torch.randn(classes, 512, device="cuda"))
    images = torch.randint(0, 255, (batch, 3, size, size), device="cuda").float().to(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (batch,), device="cuda")
    optimizer = torch.optim.SGD([*net.parameters(), centres], 0.1, 0.9, weight_decay=5e-4)

    def run() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            features = net((images - 127.5) / 127.5)
        normalize = torch.nn.functional.normalize
        cosine = normalize(features.float()) @ normalize(centres).T
        theta = torch.arccos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
        target = torch.cos(theta + 0.5)
        hit = torch.nn.functional.one_hot(labels, classes).bool()
        loss = torch.nn.functional.cross_entropy(64 * torch.where(hit, target, cosine), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def synchronised() -> None:
        run()
        torch.cuda.synchronize()

    return synchronised


def memory() -> str:
    """Peak memory of the device so far, if it reports it."""
    stats = jax.devices()[0].memory_stats() or {}
    return f"{stats.get('peak_bytes_in_use', 0) / 2**30:.1f} GiB"


def main() -> None:
    """Prints one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, no PyTorch")
    parser.add_argument("--no_torch", action="store_true")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256, 512])
    arguments = parser.parse_args()
    print(jax.__version__, jax.devices()[0].device_kind)
    if arguments.smoke:
        net = iresnet.IResNet((1, 1, 1, 1), (8, 8, 8, 8), 16, dtype=jnp.bfloat16)
        for chunk in (0, 300):
            print(f"smoke, chunk {chunk}: {4 / seconds(facejax_step(net, 4, 16, 1000, chunk), 2):.0f} images/s")
        return
    peak = peak_flops(8192)
    print(f"bfloat16 peak {peak / 1e12:.0f} TFLOP/s")
    for name in FLOPS:
        for batch in arguments.batches:
            net = getattr(iresnet, name)(dtype=jnp.bfloat16)
            ours = batch / seconds(facejax_step(net, batch, 112, 93_431, 0))
            line = f"{name} batch {batch}: {ours:.0f} images/s, {ours * FLOPS[name] / peak:.1%} of peak, {memory()}"
            gc.collect()
            if not arguments.no_torch:
                theirs = batch / seconds(torch_step(name, batch, 112, 93_431))
                line += f"; PyTorch {theirs:.0f} images/s, ratio {ours / theirs:.2f}"
            print(line, flush=True)
    for classes in (1_000_000, 10_000_000):
        net = iresnet.IResNet((1, 1, 1, 1), (8, 8, 8, 8), 512, dtype=jnp.bfloat16)
        run = facejax_step(net, 256, 32, classes, 50_000)
        print(
            f"head of {classes:,} classes, batch 256: {1e3 * seconds(run, 5):.1f} ms per step, {memory()}", flush=True
        )
        gc.collect()


if __name__ == "__main__":
    main()
