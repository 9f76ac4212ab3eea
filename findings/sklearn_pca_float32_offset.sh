#!/usr/bin/env bash
# scikit-learn's PCA of float32 data with a common offset (landmarks in pixels of a photograph) reports a first variance
# up to twenty times too large, and a first component along the mean. The default solver takes the eigenvectors of
# X^T X - n * mean mean^T in the type of the data, which cancels; svd_solver="full" and float64 are right. The default
# changes to that form by itself for many rows and few columns (at most 1,000 columns, ten rows for each).
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1 2>"$folder/log" || { cat "$folder/log"; exit 2; }
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import sklearn
from sklearn.decomposition import PCA

print("scikit-learn", sklearn.__version__)
rng = np.random.default_rng(0)
shape = rng.normal(size=(5000, 136)) * np.linspace(3, 0.1, 136)
ratio = {}
for offset in (0, 300, 1000):
    points = (shape + offset).astype(np.float32)
    truth = PCA(5, svd_solver="full").fit(points.astype(np.float64)).explained_variance_[0]
    for solver in ("auto", "full"):
        found = PCA(5, svd_solver=solver).fit(points)
        ratio[offset, solver] = found.explained_variance_[0] / truth
        along = abs(found.components_[0].mean()) * 136**0.5
        print(f"68 points around {offset:4} px, {solver:4}: first variance {found.explained_variance_[0]:7.2f} (float64 "
              f"{truth:.2f}), cosine of the first component with a shift of all coordinates {along:.2f}")
exact = all(abs(ratio[offset, "full"] - 1) < 1e-3 for offset in (0, 300, 1000))
sys.exit(not (exact and abs(ratio[0, "auto"] - 1) < 1e-3 and ratio[300, "auto"] > 1.5 and ratio[1000, "auto"] > 10))
PYTHON
