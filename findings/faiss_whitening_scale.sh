#!/usr/bin/env bash
# faiss's PCA with full whitening (PCAMatrix with eigen_power=-0.5, "PCAW64" in an index factory) returns components of
# variance 1 / n, n being the number of training vectors, where whitening means 1, as in scikit-learn: the eigenvalues are
# those of the scatter matrix, not divided by n. From 1,000 vectors of training to 4,000 all distances halve, and so a
# threshold on distances, the radius of range_search and the epsilon of a DBSCAN on top are right for one n alone (nearest
# neighbours and cosines are not changed). Its epsilon, which is added to the eigenvalues, weighs less with n too.
#
# Multiply the output by sqrt(n), n at most max_points_per_d * d (1,000 a dimension by default), for unit variance.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet faiss-cpu==1.15.1 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import faiss
import numpy as np
from sklearn.decomposition import PCA

print("faiss", faiss.__version__, "scikit-learn", version("scikit-learn"))
scale = np.linspace(3, 0.5, 16)
queries = (np.random.default_rng(1).normal(size=(500, 16)) * scale).astype(np.float32)
deviation, hits = {}, {}
for n in (250, 1000, 4000, 16000):
    training = (np.random.default_rng(0).normal(size=(n, 16)) * scale).astype(np.float32)
    whitening = faiss.PCAMatrix(16, 8, -0.5)
    whitening.train(training)
    deviation[n] = float(whitening.apply(queries).std(0).mean())
    usual = float(PCA(8, whiten=True).fit(training).transform(queries).std(0).mean())
    index = faiss.index_factory(16, "PCAW8,Flat")
    index.train(training)
    index.add(queries)
    hits[n] = int(index.range_search(queries, 0.01)[0][-1]) / len(queries)
    print(f"trained on {n:5} vectors: deviation of whitened queries {deviation[n]:.4f} (times sqrt(n) {deviation[n] * n**0.5:.2f}), "
          f"scikit-learn's {usual:.2f}; range_search of radius 0.01 among the 500 finds {hits[n]:.1f} each")
unit = all(abs(value * n**0.5 - 1) < 0.1 for n, value in deviation.items())
sys.exit(not (unit and hits[250] < 50 < hits[1000] * 10 and hits[16000] > 400))
PYTHON
