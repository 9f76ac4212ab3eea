#!/usr/bin/env bash
# torch_geometric's NormalizeFeatures does two things beside what its documentation says ("row-normalizes the attributes to
# sum-up to one"). It first subtracts the smallest number of the whole matrix from all: (1, 2, 1) becomes (0, 1, 0) and not
# (0.25, 0.5, 0.25), and another value, (0.24, 0.51, 0.24), when another node joins the graph. So the features that a
# network sees depend on which nodes are in the Data object: training nodes alone (inductive), all (transductive), or a
# batch of graphs. And it leaves rows whose sum is under 1 as they are.
#
# Neither shows in the citation graphs, whose features are counts with many zeros, where it is the transform of most
# examples. It does with dense features: a GCN of embeddings. x / x.sum(-1, keepdim=True) is what the documentation says.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torch-geometric==2.8.1 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import torch_geometric
from torch_geometric.data import Data
from torch_geometric.transforms import NormalizeFeatures

print("torch", torch.__version__, "torch_geometric", torch_geometric.__version__)


def normalized(rows):
    return [[round(v, 3) for v in row] for row in NormalizeFeatures()(Data(x=torch.tensor(rows))).x.tolist()]


rows = {
    "two nodes": [[1.0, 2.0, 1.0], [3.0, 1.0, 4.0]],
    "the same and a third": [[1.0, 2.0, 1.0], [3.0, 1.0, 4.0], [0.1, 0.2, 0.1]],
    "shares of a half": [[0.1, 0.2, 0.0], [0.3, 0.1, 0.1]],
    "counts with zeros": [[0.0, 1.0, 1.0], [2.0, 0.0, 2.0]],
}
found = {name: normalized(x) for name, x in rows.items()}
for name, x in rows.items():
    plain = (torch.tensor(x) / torch.tensor(x).sum(-1, keepdim=True)).tolist()
    print(f"{name}: {x}\n  NormalizeFeatures {found[name]}, sums {[round(sum(row), 3) for row in found[name]]}\n"
          f"  divided by its sum {[[round(v, 3) for v in row] for row in plain]}")

rng = torch.Generator().manual_seed(0)
points = torch.rand(1000, 64, generator=rng) + 1
whole = NormalizeFeatures()(Data(x=torch.cat([points, torch.zeros(1, 64)]))).x[:1000]  # one node of zeros joins
alone = NormalizeFeatures()(Data(x=points)).x
change = float((whole - alone).norm() / alone.norm())
print(f"1000 nodes of 64 features of 1 to 2: one more node of zeros changes the others by {100 * change:.0f} %")
sys.exit(not (found["two nodes"] == [[0, 1, 0], [0.4, 0, 0.6]] and found["the same and a third"][0] == [0.243, 0.514, 0.243]
              and found["shares of a half"] == [[0.1, 0.2, 0], [0.3, 0.1, 0.1]]
              and found["counts with zeros"] == [[0, 0.5, 0.5], [0.5, 0, 0.5]] and change > 0.2))
PYTHON
