#!/usr/bin/env bash
# In OpenCV 5.0 the accuracy of warpAffine (bilinear) depends on the type and the number of channels. uint8, uint16 and
# float32 with 1, 3 or 4 channels are interpolated exactly. float64, int16 and every array of two channels (an optical
# flow, a field of offsets) go through the old code, which rounds coordinates to 1/32 pixel: float64 is the least exact
# type, and a flow is off by as much as an image of bytes would be.
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
side = 64
matrix = np.array([[0.9, 0.2, 3.3], [-0.2, 0.9, 5.7]])


def bilinear(image):
    """The warp in double precision; 0 beyond the border."""
    (a, b, c), (d, e, f) = cv2.invertAffineTransform(matrix)
    y, x = np.mgrid[:side, :side]
    u, v = a * x + b * y + c, d * x + e * y + f
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    right_share, low_share = (u - left)[..., None], (v - top)[..., None]
    padded = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)))

    def at(row, column):
        inside = (row >= -1) & (row <= side) & (column >= -1) & (column <= side)
        return padded[np.clip(row, -1, side) + 1, np.clip(column, -1, side) + 1] * inside[..., None]

    upper = at(top, left) * (1 - right_share) + at(top, left + 1) * right_share
    lower = at(top + 1, left) * (1 - right_share) + at(top + 1, left + 1) * right_share
    return upper * (1 - low_share) + lower * low_share


rng, errors = np.random.default_rng(0), {}
for channels in (1, 2, 3, 4):
    image = rng.integers(0, 256, (side, side, channels))
    for dtype in (np.uint8, np.uint16, np.int16, np.float32, np.float64):
        warped = cv2.warpAffine(image.astype(dtype), matrix, (side, side), flags=cv2.INTER_LINEAR)
        error = np.abs(warped.reshape(side, side, channels).astype(float) - bilinear(image)).max()
        errors[channels, dtype.__name__] = error
        print(f"{channels} channels of {dtype.__name__:8} largest error {error:.3f} of values 0 to 255")
coarse = {key for key, error in errors.items() if error > 0.51}
expected = {(n, t) for n, t in errors if n == 2 or t in ("int16", "float64")}
sys.exit(coarse != expected)
PYTHON
