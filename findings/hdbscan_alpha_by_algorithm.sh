#!/usr/bin/env bash
# HDBSCAN's alpha depends on which algorithm finds the same tree, in both packages that have it, though the algorithm is
# documented as a matter of speed:
# - hdbscan: the Boruvka algorithms, which "best" takes for data of up to 60 dimensions, ignore alpha without a word.
# - scikit-learn: "brute", which "auto" takes for metrics without a tree such as cosine, divides all distances by alpha and
#   only then takes core distances, so that alpha cancels: the labels don't depend on it, and the tree's heights are in
#   other units.
# - The others divide the pairwise distances alone, as robust single linkage does, and agree between the packages.
#
# A search over alpha with the default algorithm finds that it doesn't matter, on one package or one metric.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet hdbscan==0.8.44 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import hdbscan
import numpy as np
from sklearn.cluster import HDBSCAN

print("hdbscan", version("hdbscan"), "scikit-learn", version("scikit-learn"))
rng = np.random.default_rng(0)
points = np.concatenate([rng.normal(size=(40, 2)), rng.normal(size=(40, 2)) + 6, rng.normal(size=(40, 2)) * 3 + [0, 18]])


def labels(package, algorithm, alpha, x=points, **options):
    if package == "hdbscan":
        return hdbscan.HDBSCAN(min_cluster_size=6, min_samples=6, algorithm=algorithm, alpha=alpha, **options).fit(x).labels_
    # min_samples counts the point itself here
    return HDBSCAN(min_cluster_size=6, min_samples=7, algorithm=algorithm, alpha=alpha, copy=True, **options).fit(x).labels_


algorithms = [("hdbscan", a) for a in ("best", "boruvka_kdtree", "boruvka_balltree", "prims_kdtree", "generic")]
algorithms += [("scikit-learn", a) for a in ("auto", "brute", "kd_tree", "ball_tree")]
noise = {}
for package, algorithm in algorithms:
    noise[package, algorithm] = [int((labels(package, algorithm, alpha) < 0).sum()) for alpha in (0.5, 1.0, 2.0, 4.0)]
    print(f"{package:12} algorithm={algorithm:16} points called noise at alpha 0.5, 1, 2, 4: {noise[package, algorithm]}")

angle = rng.normal(size=(3, 16)).repeat(40, 0) + 0.5 * rng.normal(size=(120, 16))  # three persons, 40 embeddings each
cosine = [labels("scikit-learn", "auto", alpha, angle, metric="cosine") for alpha in (0.5, 1.0, 2.0, 4.0)]
fixed = all(np.array_equal(cosine[0], found) for found in cosine)
print(f"scikit-learn, metric='cosine', algorithm='auto': equal labels at every alpha: {fixed}")

constant = {key for key, value in noise.items() if len(set(value)) == 1}
ignoring = {("hdbscan", a) for a in ("best", "boruvka_kdtree", "boruvka_balltree")} | {("scikit-learn", "brute")}
agree = len({tuple(value) for key, value in noise.items() if key not in ignoring}) == 1
sys.exit(not (constant == ignoring and agree and fixed))
PYTHON
