#!/usr/bin/env bash
# safetensors.numpy.save stores an array that isn't C-contiguous in the order of its memory under the array's shape: a
# transposed or Fortran-ordered matrix is read back with other values, without an error or a warning. The same call for
# PyTorch refuses such a tensor.
#
# Transposed weights are common where matrices move between frameworks (`kernel.T`, `np.asfortranarray`, HDF5 and MATLAB
# readers). `np.ascontiguousarray` before saving is the way out.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

print("safetensors", safetensors.__version__, "numpy", np.__version__)
matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
equal = {}
for name, array in {
    "C-contiguous": matrix,
    "transposed": matrix.T,
    "Fortran order": np.asfortranarray(matrix),
    "transposed, made contiguous": np.ascontiguousarray(matrix.T),
}.items():
    read = load(save({"weight": array}))["weight"]
    equal[name] = np.array_equal(read, array)
    print(f"{name:28} saved {array.tolist()}, read {read.tolist()}")
sys.exit(list(equal.values()) != [True, False, False, True])
PYTHON
