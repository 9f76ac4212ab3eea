#!/usr/bin/env bash
# optax.losses.triplet_margin_loss takes a norm_degree "for distance calculation" and is right for even degrees alone. It
# sums the powers of the signed differences: at 1 the "distance" is the sum of the differences, which is negative for half of the
# pairs, cancels for others and gives the same gradient at every point; at 3 it is NaN wherever the sum is negative, and
# jnp.maximum hands it on. With degree 1 a minimum of 0 is reached by adding a constant to an embedding, whatever it shows:
# the loss of a batch falls as it should.
#
# MLX had the same defect and mended it (MLX pull request 3613). For the city-block distance write
# jnp.maximum(jnp.abs(a - p).sum(-1) - jnp.abs(a - n).sum(-1) + margin, 0).
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

print("optax", optax.__version__, "jax", jax.__version__)
anchor, positive, negative = np.random.default_rng(0).normal(size=(3, 1000, 64)).astype(np.float32)
positive = anchor + positive / 4  # near the anchor, the negative is not
loss = optax.losses.triplet_margin_loss
norm = lambda x, degree: np.linalg.norm(x, degree, axis=-1)
found = {}
for degree in (1, 2, 3, 4):
    exact = np.maximum(norm(anchor - positive, degree) - norm(anchor - negative, degree) + 1, 0)
    values = np.asarray(loss(anchor, positive, negative, norm_degree=degree))
    nan = np.isnan(values)
    found[degree] = np.abs(values - exact)[~nan].max(), nan.mean(), np.nanmean(values), exact.mean()
    print(f"degree {degree}: mean loss {found[degree][2]:.4f} where it is a number, should be {found[degree][3]:.4f}; "
          f"largest difference {found[degree][0]:.4f}; NaN for {found[degree][1]:.1%} of the triplets")
one = lambda *points: float(loss(*(jnp.array([point]) for point in points), margin=0.2, norm_degree=1)[0])
swapped = one([0.0, 0.0], [-5.0, 5.0], [0.1, 0.0])  # the positive is 10 away, the negative 0.1
print(f"positive 10 away, negative 0.1, margin 0.2: loss {swapped:.2f}, should be 10.10")
slope = jax.vmap(jax.grad(lambda a, p: loss(a, p, p - 1000.0, norm_degree=1, margin=1e6)))(anchor, positive)
print(f"gradients by the anchor of the 1000 distances at degree 1: {len(np.unique(np.asarray(slope)))} value(s) in all")
right = all(found[degree][0] < 1e-3 and found[degree][1] == 0 for degree in (2, 4))
sys.exit(not (right and found[1][0] > 10 and found[3][1] > 0.2 and swapped < 0.5))
PYTHON
