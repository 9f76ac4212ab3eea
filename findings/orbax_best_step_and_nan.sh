#!/usr/bin/env bash
# One NaN among the metrics makes Orbax's CheckpointManager forget the best checkpoint. Steps of accuracy 0.9, NaN, 0.5:
# best_step() is 3, and max_to_keep=2 deletes the step of 0.9. It orders the steps by Python's sorted() with the metric as
# its key; NaN is neither smaller nor larger than anything, so sorted() returns the numbers on its two sides unordered.
# A single evaluation that is NaN (an empty class, a diverged batch) silently decides which weights survive, in both modes,
# whatever is saved later. If the first or the last metric is NaN, that step itself may be called the best.
#
# A best_fn that turns NaN into -inf (into inf for best_mode="min") is the way out.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - 2>"$folder/log" <<'PYTHON'
import math
import sys
import tempfile
from importlib.metadata import version

import numpy as np
import orbax.checkpoint as ocp

print("orbax-checkpoint", version("orbax-checkpoint"))
NAN = math.nan


def run(metrics, mode, keep, best_fn):
    """The best step and the steps that are left after saving one step a metric."""
    with tempfile.TemporaryDirectory() as folder:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, best_fn=best_fn, best_mode=mode, enable_async_checkpointing=False)
        with ocp.CheckpointManager(folder, options=options) as manager:
            for step, metric in enumerate(metrics, 1):
                manager.save(step, args=ocp.args.StandardSave({"w": np.zeros(1)}), metrics={"metric": metric})
            return manager.best_step(), sorted(manager.all_steps())


seen = {}
for mode, name, metrics in (("max", "accuracy", (0.9, NAN, 0.5)), ("max", "accuracy", (0.6, 0.9, NAN, 0.5, 0.4)),
                            ("min", "loss", (0.1, NAN, 0.5)), ("max", "accuracy", (0.5, 0.9, NAN))):
    worst = -math.inf if mode == "max" else math.inf
    plain = run(metrics, mode, 2, lambda m: m["metric"])
    safe = run(metrics, mode, 2, lambda m: worst if math.isnan(m["metric"]) else m["metric"])
    seen[mode, metrics[:-1], metrics[-1]] = plain, safe
    print(f"best_mode={mode}, max_to_keep=2, {name} of steps 1 to {len(metrics)}: {metrics}: best_step() {plain[0]}, kept "
          f"{plain[1]}; with NaN as {worst}: best_step() {safe[0]}, kept {safe[1]}")
found = list(seen.values())
expected = [((3, [2, 3]), (1, [1, 3])), ((4, [4, 5]), (2, [1, 2])), ((3, [2, 3]), (1, [1, 3]))]
sys.exit(not (found[:3] == expected and found[3][0][0] == 3 and found[3][1][0] == 2))
PYTHON
