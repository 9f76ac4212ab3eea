#!/usr/bin/env bash
# jax2onnx writes operators of ONNX in place of JAX's where the two agree on usual input only. The exported model runs, passes
# a comparison on random numbers, and returns other numbers than JAX without a word here:
# - lax.dynamic_slice: XLA moves a window that reaches over the end back inside (documented); ONNX's Slice cuts it off.
#   The output has fewer elements than the model declares, and a sum over the window is another number.
# - jax.nn.one_hot: -1, the usual label of "nobody" or "ignore", is a row of zeros in JAX and the last class in ONNX.
# - float to uint8, the last step of a network that returns a picture: XLA clips to 0..255 (not promised for all backends),
#   onnxruntime wraps: 300 becomes 44, -2.7 becomes 254, so that highlights turn black.
# - jnp.abs of a spectrum (jnp.fft.rfft): the absolute values of the real and the imaginary part, on an axis more, in place
#   of the magnitude.
# - lax.round, whose default is away from zero: 0.5 becomes 0 and 2.5 becomes 2 (jnp.round is to even in both).
# - dot_product_attention: a query whose mask has nothing to look at is the mean of the values in JAX and 0 in ONNX.
#
# Clip the start before dynamic_slice and the values before the cast, write (labels[:, None] == jnp.arange(n)) for one_hot,
# jnp.hypot(y.real, y.imag) for the magnitude; test an export on such numbers too, not on random ones alone.
#
# Exits with 0 if the behaviour below is still seen. jax2onnx demands an older Orbax, for other functions than these: its
# requirements are named here by hand.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet "$@" 2>"$folder/log" || { cat "$folder/log"; exit 2; }; }
pip jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0 numpy==2.4.6
pip --no-deps jax2onnx==0.17.1
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import logging
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from jax import lax

logging.disable(logging.CRITICAL)
from jax2onnx import to_onnx

print(", ".join(f"{name} {version(name)}" for name in ("jax2onnx", "jax", "onnx", "onnxruntime")))
ramp = np.arange(10, dtype=np.float32)
wave = np.cos(np.pi * np.arange(8) / 2 + 0.5).astype(np.float32)
queries = np.random.default_rng(0).normal(size=(1, 2, 1, 4)).astype(np.float32)
mask = np.array([[[[True, False], [False, False]]]])
window = lambda x, start: lax.dynamic_slice(x, (start,), (4,))
cases = {  # the function, its inputs, whether the two differ
    "window of 4 from 5 of 0..9": (window, (ramp, np.int32(5)), False),
    "window of 4 from 8": (window, (ramp, np.int32(8)), True),
    "its sum": (lambda x, start: window(x, start).sum(), (ramp, np.int32(8)), True),
    "its sum, start clipped": (lambda x, start: window(x, jnp.clip(start, 0, 6)).sum(), (ramp, np.int32(8)), False),
    "one_hot of 2": (lambda k: jax.nn.one_hot(k, 3), (np.array([2], np.int32),), False),
    "one_hot of 3 among 3": (lambda k: jax.nn.one_hot(k, 3), (np.array([3], np.int32),), False),
    "one_hot of -1": (lambda k: jax.nn.one_hot(k, 3), (np.array([-1], np.int32),), True),
    "100.4, 300, -2.7 to uint8": (lambda x: x.astype(jnp.uint8), (np.array([100.4, 300, -2.7], np.float32),), True),
    "magnitude of a spectrum": (lambda x: jnp.abs(jnp.fft.rfft(x)), (wave,), True),
    "lax.round of 0.5, 1.5, 2.5": (lambda x: lax.round(x), (np.array([0.5, 1.5, 2.5], np.float32),), True),
    "jnp.round of the same": (jnp.round, (np.array([0.5, 1.5, 2.5], np.float32),), False),
    "attention, 2nd query masked": (lambda q, m: jax.nn.dot_product_attention(q, q, q, mask=m), (queries, mask), True),
}
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
as_stated = True
for name, (function, inputs, differs) in cases.items():
    model = to_onnx(function, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs])
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    onnx, = session.run(None, {put.name: np.asarray(x) for put, x in zip(session.get_inputs(), inputs)})
    expected = np.asarray(jax.jit(function)(*inputs))
    equal = onnx.shape == expected.shape and np.allclose(onnx, expected, atol=1e-5)
    as_stated &= equal != differs
    text = [" ".join(f"{v:.4g}" for v in array.ravel()) for array in (expected, onnx)]
    print(f"{name}: JAX {text[0]} | ONNX {text[1]}" + ("" if equal else f" (declared {session.get_outputs()[0].shape}, "
          f"is {list(onnx.shape)})"))
sys.exit(not as_stated)
PYTHON
