#!/usr/bin/env bash
# Mixed precision in Flax (parameters in float32, dtype=bfloat16) returns a float32 gradient of an Embed that stops growing:
# a row that is looked up 40,000 times, with a gradient of 1 each, gets 256. In float32 it gets 40,000, and so does, but for
# rounding, the kernel of a Dense in bfloat16. Smaller gradients stop as early: 1/8192 each gives 256 / 8192. Frequent
# tokens or classes learn as if they were rare, without a NaN or a warning. The same sum is jax.ops.segment_sum of bfloat16,
# so that the sum over the neighbours of a hub stops at 256 times one of them.
#
# The table is cast before the lookup; the scatter-add that its gradient is runs in bfloat16, where 256 + 1 is 256, and the
# total is cast to float32. jnp.sum and products sum in float32. (For float32, at 2^24: JAX's issue 18440.)
#
# nn.Embed in float32 and a cast of its output, values.astype(float32) in segment_sum are the way out.
#
# Exits with 0 if the behaviour below is still seen, on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

print("flax", flax.__version__, "jax", jax.__version__)
found = {}
for kind in ("float32", "bfloat16"):
    embed, dense = nn.Embed(2, 1, dtype=kind), nn.Dense(1, dtype=kind, use_bias=False)
    params = {"embedding": jnp.ones((2, 1))}, {"kernel": jnp.ones((1, 1))}

    @jax.jit
    def gradients(params, ids, ones, scale):
        def loss(params):
            outputs = embed.apply({"params": params[0]}, ids), dense.apply({"params": params[1]}, ones)
            return sum((y.astype(jnp.float32) * scale).sum() for y in outputs)

        return jax.grad(loss)(params), jax.ops.segment_sum(ones[:, 0].astype(kind), ids, 2)

    for count, scale in ((100, 1.0), (40_000, 1.0), (40_000, 1 / 8192)):
        (table, kernel), total = gradients(params, jnp.zeros(count, jnp.int32), jnp.ones((count, 1)), scale)
        found[kind, count, scale] = row, exact, total = [
            float(x) for x in (table["embedding"][0, 0] / scale, kernel["kernel"][0, 0] / scale, total[0])
        ]
        print(f"{kind:8}, {count:5} gradients of {scale:.5f} over their size: row of Embed {row:.0f} "
              f"({table['embedding'].dtype}), kernel of Dense {exact:.0f}; segment_sum of as many ones {total:.0f}")
right = all(abs(x / key[1] - 1) < 1e-3 for key, values in found.items() if key[0] == "float32" for x in values)
stuck = all(found["bfloat16", 40_000, scale][i] == 256 for scale in (1.0, 1 / 8192) for i in (0, 2))
kernel = all(abs(found["bfloat16", 40_000, scale][1] / 40_000 - 1) < 5e-3 for scale in (1.0, 1 / 8192))
sys.exit(not (right and stuck and kernel and found["bfloat16", 100, 1.0] == [100, 100, 100]))
PYTHON
