#!/usr/bin/env bash
# On a CPU, XLA takes more than ten times as long for the gradients of convolutions inside a loop (lax.scan) as for the
# same gradients outside of one; the forward convolutions are as fast in both.
#
# The gradients are convolutions with other dimension orders (kernel [..., O, I]; batch and features swapped). Outside
# of loops XLA brings them into the order that its fast convolution needs, inside it does not. `unroll` of lax.scan equal
# to the length does not help; a Python loop does.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax[cpu]==0.10.2" 2>"$folder/log" || { cat "$folder/log"; exit 2; }
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import jax
import jax.numpy as jnp
from jax import lax

STEPS = 6
x, kernel = jnp.ones((8, 16, 16, 32)), jnp.full((5, 5, 32, 32), 0.01)


def layer(x, kernel):
    return jnp.tanh(lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))


def by_hand(kernel):
    y = x
    for _ in range(STEPS):
        y = layer(y, kernel)
    return y.sum()


def scanned(kernel):
    return lax.scan(lambda y, _: (layer(y, kernel), None), x, None, STEPS)[0].sum()


def seconds(function):
    run = jax.jit(function)
    run(kernel).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run(kernel).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


print("JAX", jax.__version__)
forward = seconds(scanned) / seconds(by_hand)
backward = seconds(jax.grad(scanned)) / seconds(jax.grad(by_hand))
print(f"scan relative to a Python loop: values {forward:.1f} times, gradients {backward:.1f} times the time")
sys.exit(not (forward < 3 and backward > 8))
PYTHON
