#!/usr/bin/env bash
# Orbax restores other numbers from a checkpoint of which one bit changed, without an error or a warning, for many of the
# bits. The format compresses the arrays with zstd without its checksum, so that nothing covers their bytes: a bad disk
# block or an interrupted copy goes on training from other weights. Whoever needs to know must keep digests of the arrays.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
JAX_PLATFORMS=cpu FOLDER=$folder "$folder/venv/bin/python" - 2>"$folder/log" <<'PYTHON'
import collections
import os
import pathlib
import shutil
import sys
from importlib.metadata import version

import numpy as np
import orbax.checkpoint as ocp

print("orbax-checkpoint", version("orbax-checkpoint"))
folder = pathlib.Path(os.environ["FOLDER"])
rng = np.random.default_rng(0)
state = {"kernel": rng.normal(size=(64, 64)).astype(np.float32), "bias": rng.normal(size=64).astype(np.float32)}
checkpointer = ocp.StandardCheckpointer()
checkpointer.save(folder / "intact", state)
checkpointer.wait_until_finished()
data = max((f for f in (folder / "intact").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
place, size = data.relative_to(folder / "intact"), data.stat().st_size
results = collections.Counter()
for trial in range(40):
    copy = folder / f"copy{trial}"
    shutil.copytree(folder / "intact", copy)
    content = bytearray((copy / place).read_bytes())
    content[rng.integers(size)] ^= 1 << int(rng.integers(8))
    (copy / place).write_bytes(content)
    try:
        found = checkpointer.restore(copy, state)
    except Exception:
        results["an error"] += 1
    else:
        same = all(np.array_equal(found[name], state[name]) for name in state)
        results["the same numbers" if same else "other numbers, no error"] += 1
    shutil.rmtree(copy)
print(f"one random bit of the {size} bytes of {place.parent}/ flipped, 40 times:", dict(results))
sys.exit(results["other numbers, no error"] < 10)
PYTHON
