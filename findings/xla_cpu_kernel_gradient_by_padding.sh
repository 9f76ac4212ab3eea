#!/usr/bin/env bash
# On a CPU, XLA takes more than six times as long for the gradient of a convolution's kernel where the convolution pads
# its input so far that the output is larger than the input. The same convolution of an input that was padded before
# (jnp.pad, then "VALID") has the same gradient in the usual time; the forward pass and the gradient of the input do not
# differ.
#
# Transposed convolutions (lax.conv_transpose, flax.linen.ConvTranspose) are such convolutions, of an input with zeros in
# between: the gradients of decoders and generators take most of a step. XLA swaps the operands of these gradients and
# reverses a window (`rhs_reversal` in the compiled program), for which it has no fast form on a CPU.
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

x = jax.random.normal(jax.random.key(0), (8, 8, 8, 80))
kernel = jax.random.normal(jax.random.key(1), (3, 3, 80, 40))


def convolve(x, kernel, padding, dilation=1):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, lhs_dilation=(dilation, dilation), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def pads_itself(x, kernel):
    return convolve(x, kernel, [(2, 2)] * 2)


def padded_before(x, kernel):
    return convolve(jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), kernel, "VALID")


def same_size(x, kernel):
    return convolve(x, kernel, [(1, 1)] * 2)


def transposed(x, kernel):
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def gradient(layer, argument):
    run = jax.jit(jax.grad(lambda *arguments: jnp.sum(layer(*arguments) ** 2), argument))
    result, times = jax.block_until_ready(run(x, kernel)), []
    for _ in range(20):
        start = time.process_time()
        jax.block_until_ready(run(x, kernel))
        times.append(time.process_time() - start)
    return result, 1e3 * min(times), "rhs_reversal" in run.lower(x, kernel).compile().as_text()


print("jax", jax.__version__)
found = {}
for layer in (pads_itself, padded_before, same_size, transposed):
    for argument, name in ((0, "input"), (1, "kernel")):
        result, milliseconds, reversal = found[layer, name] = gradient(layer, argument)
        print(f"{layer.__name__:14} gradient of the {name:6} {milliseconds:7.2f} ms of processor time, reversal: {reversal}")

ours, theirs = found[pads_itself, "kernel"], found[padded_before, "kernel"]
difference = float(jnp.abs(ours[0] - theirs[0]).max() / jnp.abs(ours[0]).max())
ratio, transposed_ratio = ours[1] / theirs[1], found[transposed, "kernel"][1] / theirs[1]
print(f"kernel gradients: {ratio:.1f} times the time, transposed convolution {transposed_ratio:.1f} times,", end=" ")
print(f"largest relative difference {difference:.0e}")
same = difference < 1e-5
slow = ratio > 6 and transposed_ratio > 4 and ours[2] and not theirs[2]
inputs = found[pads_itself, "input"][1] < 3 * found[padded_before, "input"][1]
sys.exit(0 if same and slow and inputs else 1)
PYTHON
