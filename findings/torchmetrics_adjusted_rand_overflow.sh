#!/usr/bin/env bash
# torchmetrics' adjusted_rand_score overflows for large N: of 100,000 samples of ten classes with 10 % of wrong labels it
# returns -33 in place of 0.81, with other numbers a plausible value inside its range. The function multiplies two counts of
# pairs, each up to N squared, as int64 tensors, which wrap without a word; products exceed 9.2e18 from about 80,000 samples
# on for two balanced classes, and for 584,000 faces of 8,600 persons (a usual benchmark of face clustering) as well.
#
# The counts of pairs themselves are right: Python's integers, or scikit-learn, which converts them first, give the score.
# (The same defect was met downstream: TorchDR pull request 332.)
#
# Exits with 0 if the behaviour below is still seen. torchvision, which torchmetrics imports, does nothing here: any version
# from 0.15.1 on will do, and this one loads beside any torch. Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet "$@" 2>"$folder/log" || { cat "$folder/log"; exit 2; }; }
pip torch==2.13.0 torchmetrics==1.9.0 scikit-learn==1.9.1 numpy==2.4.6 requests pillow
pip --no-deps torchvision==0.15.2
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score as reference
from torchmetrics.functional.clustering import adjusted_rand_score

print(", ".join(f"{name} {version(name)}" for name in ("torch", "torchmetrics", "scikit-learn")))
rng, error = np.random.default_rng(0), {}
for samples, classes in ((50_000, 2), (100_000, 2), (100_000, 10), (200_000, 10), (400_000, 100)):
    true = rng.integers(0, classes, samples)
    found = np.where(rng.random(samples) < 0.1, rng.integers(0, classes, samples), true)
    score, exact = float(adjusted_rand_score(torch.tensor(found), torch.tensor(true))), float(reference(true, found))
    error[samples, classes] = abs(score - exact)
    print(f"{samples:7} samples of {classes:3} classes: torchmetrics {score:8.4f}, scikit-learn {exact:.4f}")

# 8,600 persons of 68 faces, each found as two clusters of 34: the dense table would take gigabytes, its pairs are these
persons, faces = 8600, 68
samples = persons * faces
together = persons * 2 * 34**2 - samples  # ordered pairs, as the function counts them
apart = samples**2 - persons * faces**2
split = persons * faces**2 - persons * 2 * 34**2
exact = 2 * together * apart / ((together + split) * (split + apart) + together * apart)
pairs = torch.tensor([[apart, 0], [split, together]])
(tn, fp), (fn, tp) = pairs
wrapped = float(2.0 * (tp * tn - fn * fp) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn)))  # the function's own formula
print(f"{samples} faces of {persons} persons, each split into two halves: its formula {wrapped:.4f}, exact {exact:.4f}")
small = error[50_000, 2] < 1e-4
sys.exit(not (small and error[100_000, 2] > 0.1 and error[100_000, 10] > 1 and abs(wrapped - exact) > 0.1))
PYTHON
