#!/usr/bin/env bash
# PyTorch's default ONNX exporter folds batch norm into the convolution before it and stores the folded numbers under the
# convolution's original name: the initializer "0.weight" has the shape of the state dict's "0.weight" and other values.
# A converter that reads weights by name loads a wrong network without an error. optimize=False keeps
# the original values and the batch norm.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
cd "$folder"
venv/bin/python - 2>log <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import onnx
import torch
from onnx import numpy_helper

print("torch", torch.__version__, "onnx", onnx.__version__, "onnxscript", version("onnxscript"))
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
net[1].running_var.fill_(4.0)
weight = net.state_dict()["0.weight"].numpy()
seen = {}
for optimize in (True, False):
    torch.onnx.export(net, (torch.zeros(1, 3, 8, 8),), "net.onnx", optimize=optimize, external_data=False, verbose=False)
    graph = onnx.load("net.onnx").graph
    stored = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    seen[optimize] = [float(np.abs(stored["0.weight"] - weight).max()), [node.op_type for node in graph.node]]
    print(f"optimize={optimize}: nodes {seen[optimize][1]}, initializers {sorted(stored)}, "
          f'"0.weight" {seen[optimize][0]:.3f} off the state dict\'s')
folded, kept = seen[True], seen[False]
sys.exit(not (folded[0] > 0.05 and "BatchNormalization" not in folded[1]
              and kept[0] == 0 and "BatchNormalization" in kept[1]))
PYTHON
