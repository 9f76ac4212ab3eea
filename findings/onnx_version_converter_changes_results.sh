#!/usr/bin/env bash
# onnx.version_converter, which brings a model to another opset, changes what three operators compute, without a warning
# (the checker passes the result):
# - Up, from 10 or less to 11 or more: Resize and Upsample sampled at x / scale; later versions have a choice of
#   coordinates with another default, which is left at it. A bilinear enlargement by 2 moves by half a pixel of its output.
# - Up, from 12 to 13: Hardmax went over all axes from "axis" on, and goes over that axis alone then. Softmax and
#   LogSoftmax changed in the same way and are converted rightly.
# - Down, from 13 to 12: Softmax and LogSoftmax keep their axis, and so go over all axes from there on. A softmax over the
#   channels of N x C x H x W sums to 1 over a whole picture then.
#
# The first is known (onnx issue 8480). Comparing a converted model's outputs with the original's on random inputs finds all.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper, version_converter

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
picture = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
ramp = np.broadcast_to(np.arange(4, dtype=np.float32), (1, 1, 4, 4))
double = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def both(operator, x, source, target, constants=(), **attributes):
    """The outputs of one operator in opset source and after the conversion to target."""
    node = helper.make_node(operator, ["x", *(c.name for c in constants)], ["y"], **attributes)
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x.shape), ("y", list("nchw")))]
    graph = helper.make_graph([node], "graph", shapes[:1], shapes[1:], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", source)], ir_version=8)
    checker.check_model(model)
    converted = version_converter.convert_version(model, target)
    checker.check_model(converted)
    return run(model, x), run(converted, x)


differ = {}
for operator, source, target in (("Upsample", 9, 13), ("Resize", 10, 13), ("Resize", 11, 13)):
    before, after = both(operator, ramp, source, target, [double] if source < 11 else
                         [numpy_helper.from_array(np.zeros(0, np.float32), "roi"), double], mode="linear")
    differ[operator, source, target] = not np.allclose(before, after, atol=1e-6)
    print(f"{operator} of 0 1 2 3 by 2, opset {source}: {before[0, 0, 0].tolist()}\n{'':20}as opset {target}: {after[0, 0, 0].tolist()}")
for operator, source, target in (("Hardmax", 11, 13), ("Softmax", 11, 13), ("LogSoftmax", 11, 13), ("Softmax", 13, 12), ("LogSoftmax", 13, 12)):
    before, after = both(operator, picture, source, target, axis=1)
    differ[operator, source, target] = not np.allclose(before, after, atol=1e-6)
    if operator == "LogSoftmax":
        before, after = np.exp(before), np.exp(after)
    sums = [f"{y.sum(1).min():.3f} to {y.sum(1).max():.3f}" for y in (before, after)]
    print(f"{operator} over axis 1 of 1 x 3 x 4 x 4, opset {source}: each pixel's channels sum to {sums[0]}, as opset {target} to {sums[1]}")
wrong = {("Upsample", 9, 13), ("Resize", 10, 13), ("Hardmax", 11, 13), ("Softmax", 13, 12), ("LogSoftmax", 13, 12)}
sys.exit({key for key, value in differ.items() if value} != wrong)
PYTHON
