"""Forward and backward pass with batch norm's variance in two passes and in one: `python -m benchmarks.batch_norm`.

MobileNet V1 of width 0.25. `facejax.nn.norm` uses two passes, E[(x - E[x])^2]; Flax's default is E[x^2] - E[x]^2.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compare import record
from facejax.backbones.mobilenet import MobileNetV1

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    shape = arguments.batch, arguments.size, arguments.size, 3
    images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    net, norm = MobileNetV1(width=0.25), nn.BatchNorm
    variables = jax.jit(lambda: net.init(jax.random.key(0), images[:1], train=False))()

    def loss(params: dict, fast: bool) -> jax.Array:
        def make(**options):
            return norm(**{**options, "use_fast_variance": fast})

        with mock.patch.object(nn, "BatchNorm", make):
            rngs = {"dropout": jax.random.key(1)}
            output, _ = net.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"], rngs=rngs
            )
        return jnp.square(output).mean()

    step = {
        name: jax.jit(jax.value_and_grad(lambda params, fast=fast: loss(params, fast)))
        .lower(variables["params"])
        .compile()
        for name, fast in {"one pass": True, "two passes": False}.items()
    }
    seconds = {name: ([], []) for name in step}
    for _ in range(arguments.repeats):
        for name, run in step.items():
            wall, busy = time.perf_counter(), time.process_time()
            jax.block_until_ready(run(variables["params"]))
            seconds[name][0].append(time.perf_counter() - wall)
            seconds[name][1].append(time.process_time() - busy)
    shape = f"{arguments.batch} images of {arguments.size} pixels"
    record(
        f"variance of batch norms, step of MobileNet V1, {shape}", {k: v[0] for k, v in seconds.items()}, "two passes"
    )
    for name, (wall, busy) in seconds.items():
        print(f"{name}: median {statistics.median(wall):.3f} s, processor time {statistics.median(busy):.3f} s")
