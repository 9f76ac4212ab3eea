#!/usr/bin/env bash
# onnxslim, which is to make ONNX models smaller at equal results, changes results without a word in two usual graphs:
# - Convolution, then Mul with a constant along the width or the height (a window, a row of coordinates): if its length is
#   the number of channels, it is folded into the convolution as a factor of each channel. Any other length is right, and
#   Add, the same pattern, is right at every length.
# - RandomNormalLike nodes with the same input and attributes become one node, as if they were deterministic. Two
#   independent noises become the same noise: their sum has a deviation of 2 in place of 1.41, their difference is 0. A
#   generator with noise in two layers of one size would get it once.
#
# skip_optimizations=["subexpression_elimination"] and skip_fusion_patterns=["FusionConvMul"] are the way out. Comparing
# outputs on random inputs finds the first; random outputs need their deviations compared.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxslim==0.1.98 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
import onnxslim

print(", ".join(f"{name} {version(name)}" for name in ("onnxslim", "onnx", "onnxruntime")))
SKIP = {"skip_optimizations": ["subexpression_elimination"], "skip_fusion_patterns": ["FusionConvMul"]}
rng = np.random.default_rng(0)


def run(text, x, **constants):
    """The first output of the model, of the slim model and of the slim model without the two steps."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items())
    onnx.checker.check_model(model)
    models = [model, onnxslim.slim(model), onnxslim.slim(model, **SKIP)]
    return [onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
            for m in models]


weight, image = rng.normal(size=(8, 3, 3, 3)), rng.normal(size=(1, 3, 18, 10)).astype(np.float32)  # 8 channels of 16 x 8
error = {}
for op in ("Mul", "Add"):
    for name, shape in (("width, 8", (8,)), ("height, 16", (16, 1)), ("channels, 8", (8, 1, 1))):
        text = f"(float[1,3,18,10] x) => (float[1,8,16,8] y) {{ z = Conv(x, w) y = {op}(z, row) }}"
        exact, slim, kept = run(text, image, w=weight, row=np.linspace(0, 1, max(shape)).reshape(shape))
        error[op, name] = float(np.abs(slim - exact).max()), float(np.abs(kept - exact).max())
        print(f"Conv, then {op} along the {name:11}: {error[op, name][0]:.4f} off, without the two steps {error[op, name][1]:.4f}")

zeros = np.zeros((1, 4, 64, 64), np.float32)
text = """(float[1,4,64,64] x) => (float[1,4,64,64] y)
  {{ a = RandomNormalLike(x) b = RandomNormalLike(x) y = {}(a, b) }}"""
deviation = {}
for op in ("Add", "Sub"):
    deviation[op] = [float(y.std()) for y in run(text.format(op), zeros)]
    print(f"{op} of two noises: deviation {deviation[op][0]:.3f}, slim {deviation[op][1]:.3f}, without {deviation[op][2]:.3f}")

wrong = error.pop(("Mul", "width, 8"))
near = [abs(deviation[op][i] - 2**0.5) < 0.05 for op in ("Add", "Sub") for i in (0, 2)]
sys.exit(not (wrong[0] > 1 and wrong[1] < 1e-4 and max(map(max, error.values())) < 1e-4 and all(near)
              and abs(deviation["Add"][1] - 2) < 0.05 and deviation["Sub"][1] == 0))
PYTHON
