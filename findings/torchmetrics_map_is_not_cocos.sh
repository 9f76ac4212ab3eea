#!/usr/bin/env bash
# torchmetrics' MeanAveragePrecision(backend="pycocotools") runs pycocotools but doesn't give pycocotools' AP.
#
# It passes torch.linspace(0.5, 0.95, 10).tolist() as IoU thresholds and torch.linspace(0, 1, 101).tolist() as recall
# levels. Rounded to float32, 0.55, 0.6, 0.8 and 0.85 lie above their values, so a detection with exactly such an IoU,
# which boxes in whole pixels often have, is a miss at its own threshold.
# The results differ in the third decimal, in which papers compare detectors. Passing
# iou_thresholds=numpy.linspace(0.5, 0.95, 10).tolist() and rec_thresholds=numpy.linspace(0, 1, 101).tolist() cures it.
#
# Exits with 0 if the behaviour below is still seen. torchvision, which torchmetrics demands, only converts box formats
# here: any version from 0.15.1 on will do, and this one loads beside any torch. Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet "$@" 2>"$folder/log" || { cat "$folder/log"; exit 2; }; }
pip torch==2.13.0 torchmetrics==1.9.0 pycocotools==2.0.11 numpy==2.4.6 requests pillow
pip --no-deps torchvision==0.15.2
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import contextlib
import importlib.metadata
import io
import sys

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision

print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchmetrics", "pycocotools")))
DOUBLE = {"iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(), "rec_thresholds": np.linspace(0, 1, 101).tolist()}


def coco(images):
    """AP of images (true boxes, detected boxes, scores) of one class."""
    truth, found = [], []
    for i, (true, boxes, scores) in enumerate(images):
        for x, y, u, v in true.tolist():
            truth.append({"id": len(truth) + 1, "image_id": i, "category_id": 1, "iscrowd": 0,
                          "area": (u - x) * (v - y), "bbox": [x, y, u - x, v - y]})
        for (x, y, u, v), score in zip(boxes.tolist(), scores.tolist()):
            found.append({"image_id": i, "category_id": 1, "bbox": [x, y, u - x, v - y], "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {"images": [{"id": i} for i in range(len(images))], "categories": [{"id": 1}],
                        "annotations": truth}
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[0]), 4)


def metrics(images, **options):
    metric = MeanAveragePrecision(backend="pycocotools", **options)
    for true, boxes, scores in images:
        boxes, scores, true = (torch.tensor(a, dtype=torch.float32) for a in (boxes, scores, true))
        metric.update([{"boxes": boxes, "scores": scores, "labels": torch.ones(len(boxes), dtype=torch.int64)}],
                      [{"boxes": true, "labels": torch.ones(len(true), dtype=torch.int64)}])
    return round(float(metric.compute()["map"]), 4)


print("one object of 100 x 100 pixels, one detection of 100 x n inside it: AP of torchmetrics, of pycocotools")
wrong = []
for n in range(50, 100, 5):
    one = [(np.array([[0, 0, 100, 100]]), np.array([[0, 0, 100, n]]), np.array([0.9]))]
    pair = metrics(one), coco(one)
    print(f"  IoU {n / 100:.2f}: {pair[0]:.1f} {pair[1]:.1f}")
    if pair[0] != pair[1]:
        wrong.append(n)

rng, scenes = np.random.default_rng(0), []
for _ in range(400):
    corner = rng.integers(0, 500, (5, 2))
    true = np.concatenate([corner, corner + rng.integers(8, 40, (5, 2))], 1)
    boxes = true + rng.integers(-2, 3, true.shape)
    scenes.append((true, boxes, rng.permutation(5) / 8 + rng.integers(0, 8) / 64))
default, exact, double = metrics(scenes), coco(scenes), metrics(scenes, **DOUBLE)
print(f"2000 small objects in whole pixels: torchmetrics {default}, pycocotools {exact}")
print(f"torchmetrics with thresholds in double precision: {double}")
sys.exit(wrong != [55, 60, 80, 85] or default == exact or double != exact)
PYTHON
