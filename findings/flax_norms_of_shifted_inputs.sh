#!/usr/bin/env bash
# Flax's normalisation layers return values of the wrong size where the mean of a channel is large beside its deviation:
# a group norm of inputs with mean 1,000 and deviation 1 returns a deviation of about 400 in place of 1, a layer norm of
# mean 5,000 about 700. They compute the variance as E[x^2] - E[x]^2 in float32, and where that cancels to 0 or less, they
# divide by the square root of epsilon. PyTorch's layers on the same numbers return 1. Flat regions of images in 0 to 255
# and raw measurements meet this; `use_fast_variance=False` is the way out.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import flax
import flax.linen as nn
import jax

print("flax", flax.__version__, "jax", jax.__version__)
noise = jax.random.normal(jax.random.key(0), (4, 32, 32, 32))
layers = {
    "LayerNorm": nn.LayerNorm,
    "GroupNorm(8)": lambda **options: nn.GroupNorm(8, **options),
    "InstanceNorm": nn.InstanceNorm,
    "BatchNorm": lambda **options: nn.BatchNorm(use_running_average=False, **options),
}
size = {}
for name, layer in layers.items():
    for mean in (0, 1000, 5000):
        for fast in (True, False):
            y = layer(use_fast_variance=fast).init_with_output(jax.random.key(0), noise + mean)[0]
            y = y[0] if isinstance(y, tuple) else y
            size[name, mean, fast] = float(y.std())
        print(f"{name:13} of mean {mean:4}, deviation 1: deviation {size[name, mean, True]:8.3f}, "
              f"with use_fast_variance=False {size[name, mean, False]:.3f}")
exact = all(abs(size[name, mean, False] - 1) < 0.01 for name in layers for mean in (0, 1000, 5000))
wrong = size["GroupNorm(8)", 1000, True] > 10 and size["LayerNorm", 5000, True] > 10
sys.exit(not (exact and wrong))
PYTHON
