#!/usr/bin/env bash
# torchmetrics' retrieval metrics count a relevant document only where its score is above 0. The order of the documents is
# all that average precision, reciprocal rank, precision and recall at k are defined on, but adding a constant to all
# scores changes them. By negative distances or log probabilities each is 0, whatever the ranking is. By cosines or logits,
# relevant documents of negative score count as irrelevant; as average precision is the mean over those that are left, it
# mostly rises: a model that pushes hard positives below 0 is rewarded. RetrievalMAP "accepts float predictions from a
# model output"; nothing names a range or warns. NDCG and AUROC have no such mask. (For probabilities of 0, on purpose: pull
# request 3104 of torchmetrics.)
#
# RetrievalMAP(top_k=k) also divides by the relevant documents found among the k, not by all (or by k): one hit at rank 1 and
# fifty missed ones is an AP@10 of 1 (known from PyTorch Geometric's issue 9989, whose LinkPredMAP divides by the smaller).
#
# Pass torch.sigmoid(scores) in float64 or exp(-distance): any increasing function to positive numbers that ties none.
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

import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.retrieval import retrieval_average_precision
from torchmetrics.retrieval import (RetrievalAUROC, RetrievalMAP, RetrievalMRR, RetrievalNormalizedDCG, RetrievalPrecision,
                                    RetrievalRecall)

print(", ".join(f"{name} {version(name)}" for name in ("torch", "torchmetrics", "scikit-learn")))
generator = torch.Generator().manual_seed(0)
people = torch.arange(20).repeat_interleave(10)  # 20 persons of 10 faces; the first face of each is a query
centres = torch.nn.functional.normalize(torch.randn(20, 32, generator=generator), dim=1)
faces = torch.nn.functional.normalize(centres[people] + 0.3 * torch.randn(200, 32, generator=generator), dim=1)
query = torch.arange(200) % 10 == 0
cosine = faces[query] @ faces[~query].T
relevant = people[query][:, None] == people[~query]
rows = torch.arange(20)[:, None].expand_as(cosine)
scores = {"cosine + 1": cosine + 1, "cosine": cosine, "cosine - 0.3": cosine - 0.3, "-distance": -(2 - 2 * cosine).clamp(0).sqrt()}
metrics = {"MAP": RetrievalMAP(), "MRR": RetrievalMRR(), "recall@20": RetrievalRecall(top_k=20),
           "precision@20": RetrievalPrecision(top_k=20), "NDCG": RetrievalNormalizedDCG(), "AUROC": RetrievalAUROC()}
found = {}
for name, value in scores.items():
    exact = sum(average_precision_score(r, s) for r, s in zip(relevant.numpy(), value.numpy())) / len(value)
    found[name] = {key: round(float(metric(value, relevant, indexes=rows)), 4) for key, metric in metrics.items()}
    print(f"{name:12}: scikit-learn's MAP {exact:.4f}; torchmetrics " + ", ".join(f"{k} {v:.4f}" for k, v in found[name].items()))
    found[name]["right"] = abs(exact - found[name]["MAP"]) < 1e-3
ranked, hits = torch.arange(100, 0, -1.0), torch.zeros(100, dtype=torch.bool)
hits[0], hits[50:] = True, True
cut = {k: round(float(retrieval_average_precision(ranked, hits, top_k=k)), 4) for k in (1, 10, 100)}
print(f"51 relevant documents, at ranks 1 and 51 to 100: AP@k {cut}")
masked = ("MAP", "MRR", "recall@20", "precision@20")
kept = all(found[name][key] == found["cosine"][key] for name in scores for key in ("NDCG", "AUROC"))
zero = all(found["-distance"][key] == 0 for key in masked)
sys.exit(not (found["cosine + 1"]["right"] and zero and kept and found["cosine - 0.3"]["MAP"] > found["cosine + 1"]["MAP"] + 0.05
              and cut[10] == 1 and cut[100] < 0.4))
PYTHON
