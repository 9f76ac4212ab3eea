#!/usr/bin/env bash
# Albumentations moves keypoints by two conventions. A flip counts pixel indices (x becomes width - 1 - x), a resize counts
# lengths (x becomes x * factor), and boxes count lengths in both. So the result depends on the order: Resize after
# HorizontalFlip and HorizontalFlip after Resize give equal images and boxes, but keypoints that differ by factor - 1
# pixels, 3 at a factor of 4. A keypoint on the corner of its box lies a pixel beside the corner after a flip. Half a turn
# by Rotate and by SafeRotate are half a pixel apart.
#
# Landmarks trained so carry a shift between mirrored and other images. Keypoints of pixel centres need
# x * factor + (factor - 1) / 2 in a resize; keypoints of lengths, as boxes are, need width - x in a flip.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet albumentations==2.0.8 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
NO_ALBUMENTATIONS_UPDATE=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import albumentations as A
import numpy as np

print("albumentations", A.__version__)
image = np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)
box, point = [10, 8, 30, 20], [10, 8]  # the point is the box's first corner


def moved(*steps):
    """The image, the box and the point after the steps."""
    boxes = A.BboxParams("pascal_voc", label_fields=["labels"])
    points = A.KeypointParams("xy", remove_invisible=False)
    found = A.Compose(steps, bbox_params=boxes, keypoint_params=points)(
        image=image, bboxes=[box], labels=[0], keypoints=[point])
    return found["image"], np.round(found["bboxes"][0], 3).tolist(), np.round(found["keypoints"][0], 3).tolist()


flip = A.HorizontalFlip(p=1)
_, flipped_box, flipped_point = moved(flip)
print(f"flip: box {box} -> {flipped_box}, its corner {point} -> {flipped_point}")
apart = {}
for factor in (2, 4):
    resize = A.Resize(40 * factor, 100 * factor, interpolation=0)  # nearest neighbours: whole pixels
    first, second = moved(resize, flip), moved(flip, resize)
    same = np.array_equal(first[0], second[0]) and first[1] == second[1]
    apart[factor] = first[2][0] - second[2][0]
    print(f"resize by {factor} and flip: equal images and boxes: {same}; x of the point {first[2][0]}, "
          f"in the other order {second[2][0]}")
    if not same:
        sys.exit(1)
turned, safely = moved(A.Rotate((180, 180), p=1))[2], moved(A.SafeRotate((180, 180), p=1))[2]
print(f"half a turn: Rotate {turned}, SafeRotate {safely}")
expected = flipped_box[2] - flipped_point[0] == 1 and apart == {2: 1, 4: 3} and safely[0] - turned[0] == 0.5
sys.exit(not expected)
PYTHON
