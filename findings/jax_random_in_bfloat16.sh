#!/usr/bin/env bash
# jax.random draws in bfloat16 from 128 numbers, which changes the distribution and not only its rounding. normal() never
# exceeds 2.9 (one draw in 270 should), and categorical() on bfloat16 logits, the usual output of a language model,
# draws a class of probability 0.9 beside a hundred of 0.001 in 99 % of the cases: the rare ones become ten times rarer.
# PyTorch's randn in bfloat16 has its tails, since it draws in float32 and rounds. float16 is off as well, by less.
#
# categorical() adds Gumbel noise in the type of the logits. Its documentation speaks of a bias for float32, below
# probabilities of 1e-7. Drawing in float32 (logits.astype(float32)) or mode="high" is the way out.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__)
key = jax.random.key(0)
exact = jnp.log(jnp.array([0.9] + [0.001] * 100))
largest, values, share = {}, {}, {}
for kind in ("float32", "float16", "bfloat16"):
    drawn = np.asarray(jax.random.normal(key, (1_000_000,), kind)).astype(np.float32)
    largest[kind], values[kind] = float(np.abs(drawn).max()), len(np.unique(drawn))
    logits = exact.astype(kind)
    softmax = float(jax.nn.softmax(logits.astype(jnp.float32))[0])  # what rounding alone makes of 0.9
    for mode in ("low", "high"):
        classes = np.asarray(jax.random.categorical(key, logits, shape=(200_000,), mode=mode))
        share[kind, mode] = float((classes == 0).mean())
    print(f"{kind:8} a million normal numbers: {values[kind]:6} values, largest {largest[kind]:.2f}; class of probability "
          f"{softmax:.3f} drawn in {share[kind, 'low']:.3f} by default, in {share[kind, 'high']:.3f} with mode='high'")
tails = values["bfloat16"] == 128 and largest["bfloat16"] < 3 < 4.5 < largest["float32"]
rare = share["bfloat16", "low"] > 0.98 and abs(share["float32", "low"] - 0.9) < 0.005
sys.exit(not (tails and rare and abs(share["bfloat16", "high"] - 0.9) < 0.01))
PYTHON
