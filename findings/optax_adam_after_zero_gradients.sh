#!/usr/bin/env bash
# The same training, two Adams: a part of the network gets no gradient for 4,000 steps (its term of the loss comes later)
# and then a steady one. PyTorch's Adam gives such a parameter no state until its first gradient (grad is None until then)
# and begins with one learning rate a step. jax.grad has no None: the gradient is an array of zeros, optax's step counter
# is one for the whole tree and runs on, so that bias correction is over when the first gradient comes. The first moment
# answers ten times faster than the second: the first step is 3.1 learning rates long, the twelfth 6.5, and the sum of
# the first hundred is 4.6 times PyTorch's, where a rate was chosen for 1. ReLU networks can die of it.
#
# With b2=0.99 in place of 0.999 the longest step is 2.1 rates; initialising the state anew when the part joins (or
# optax.multi_transform with a state of its own that begins there) gives PyTorch's numbers.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 optax==0.2.8 torch==2.13.0 2>"$folder/log" ||
  { cat "$folder/log"; exit 2; }
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

print("optax", optax.__version__, "torch", torch.__version__)
RATE, ALONE, JOINT = 1e-3, 4000, 100


def of_optax(b2: float) -> np.ndarray:
    """Steps of the second part, in learning rates, from its first gradient on."""
    tx = optax.adam(RATE, b2=b2)
    params = {"first": jnp.zeros(()), "second": jnp.zeros(())}

    def step(carry, number):
        params, state = carry
        loss = lambda p: p["first"] + jnp.where(number >= ALONE, p["second"], 0.0)
        moves, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, moves), state), moves["second"]

    _, moves = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(ALONE + JOINT))
    return -np.asarray(moves)[ALONE:] / RATE


def of_torch() -> np.ndarray:
    first, second = (torch.nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2))
    adam, places = torch.optim.Adam([first, second], lr=RATE), []
    for number in range(ALONE + JOINT):
        adam.zero_grad()
        (first + second if number >= ALONE else first).backward()
        adam.step()
        places.append(float(second.detach()))
    return -np.diff([0.0, *places])[ALONE:] / RATE


steps = {"torch": of_torch(), "optax": of_optax(0.999), "optax, b2 0.99": of_optax(0.99)}
for name, moves in steps.items():
    print(f"{name:15} first step {moves[0]:.2f} rates, longest {moves.max():.2f} (number {moves.argmax() + 1}), "
          f"the first {JOINT} together {moves.sum():.0f}")
torch_moves, moves, short = steps.values()
same = np.allclose(torch_moves, 1, atol=1e-3)
sys.exit(not (same and moves[0] > 3 and moves.max() > 6 and moves.sum() > 4 * torch_moves.sum() and short.max() < 3))
PYTHON
