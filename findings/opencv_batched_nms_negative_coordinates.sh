#!/usr/bin/env bash
# OpenCV's class-wise NMS, cv2.dnn.NMSBoxesBatched, lets boxes of different classes suppress each other where coordinates
# are negative, even boxes that don't overlap. NMSBoxes on each class alone is right.
#
# It shifts the boxes of class c by c * (largest coordinate + 1), with a largest coordinate of at least 0, and runs the
# plain NMS; that separates the classes only if no coordinate is negative. Neither the documentation nor an error says
# so. Boxes that reach a few pixels beyond the border are hardly affected; boxes in a frame whose origin isn't the upper
# left corner (the middle of the picture, a crop, metres on the ground) are.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import cv2
import numpy as np

print("OpenCV", cv2.__version__)


def batched(boxes, scores, classes):
    return sorted(map(int, cv2.dnn.NMSBoxesBatched(boxes, scores, classes, 0.1, 0.5)))


def each_class(boxes, scores, classes):
    kept = []
    for c in set(classes):
        own = [i for i in range(len(classes)) if classes[i] == c]
        found = cv2.dnn.NMSBoxes([boxes[i] for i in own], [scores[i] for i in own], 0.1, 0.5)
        kept += [own[int(k)] for k in found]
    return sorted(kept)


seen = []
for name, boxes in {
    "one place, x = y = +100": [[100, 100, 50, 50], [100, 100, 50, 50]],
    "one place, x = y = -100": [[-100, -100, 50, 50], [-100, -100, 50, 50]],
    "no overlap, at 0 and -11": [[0, 0, 10, 10], [-11, -11, 10, 10]],
}.items():
    two = boxes, [0.9, 0.8], [0, 1]
    seen.append((batched(*two), each_class(*two)))
    print(f"two boxes of classes 0 and 1, {name:24}: batched keeps {seen[-1][0]}, class by class {seen[-1][1]}")

rng, differ = np.random.default_rng(0), {}
for origin in (0, 640):
    differ[origin] = 0
    for _ in range(300):
        corner = rng.integers(0, 600, (20, 2)) - origin
        boxes = np.concatenate([corner, rng.integers(20, 200, (20, 2))], 1).tolist()
        scene = boxes, ((rng.permutation(20) + 5) / 30).tolist(), rng.integers(0, 4, 20).tolist()
        differ[origin] += batched(*scene) != each_class(*scene)
    print(f"300 random scenes of 20 boxes with coordinates from {-origin}: {differ[origin]} have another result")

expected = [([0, 1], [0, 1]), ([0], [0, 1]), ([0], [0, 1])]
sys.exit(seen != expected or differ[0] != 0 or differ[640] == 0)
PYTHON
