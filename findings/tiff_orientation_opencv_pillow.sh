#!/usr/bin/env bash
# The pixels of a TIFF as they are stored cannot be had where its tag says that it is turned. OpenCV turns it under
# IMREAD_IGNORE_ORIENTATION and IMREAD_UNCHANGED too, which keep JPEG, PNG and WebP as stored. Pillow turns it as it loads:
# size is that of the turned picture at once and the tag is there until the pixels are read, so that a program that reads
# the orientation and turns the pixels itself, as it has to for a JPEG, turns a TIFF twice.
#
# Boxes and landmarks that refer to stored pixels are off for such files alone. Setting the tag 274 in the file's bytes to
# 1 before decoding is the way out.
#
# Exits with 0 if the behaviour below is still seen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 pillow==13.0.0 numpy==2.4.6 2>"$folder/log" || { cat "$folder/log"; exit 2; }
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import cv2
import numpy as np
import PIL
from PIL import Image

print("OpenCV", cv2.__version__, "Pillow", PIL.__version__)
TAG = 0x0112
stored = np.kron(np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3), np.ones((10, 10), np.uint8))  # 20 rows of 30
turned = np.rot90(stored, -1)
FLAGS = {"IMREAD_GRAYSCALE": cv2.IMREAD_GRAYSCALE,
         "with IMREAD_IGNORE_ORIENTATION": cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
         "IMREAD_UNCHANGED": cv2.IMREAD_UNCHANGED}


def way(pixels):
    """Whether pixels are stored or turned ones; JPEG changes them a little."""
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    for name, wanted in (("stored", stored), ("turned", turned), ("turned twice", np.rot90(stored, 2))):
        if grey.shape == wanted.shape and np.abs(grey.astype(int) - wanted).max() < 20:
            return name
    return "other"


found = {}
for kind, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
    exif, file = Image.Exif(), io.BytesIO()
    exif[TAG] = 6  # to be turned clockwise by 90 degrees
    Image.fromarray(stored).save(file, kind, exif=exif, **options)
    data = np.frombuffer(file.getvalue(), np.uint8)
    for name, flags in FLAGS.items():
        found[kind, name] = way(cv2.imdecode(data, flags))
    picture = Image.open(file)
    size, orientation = picture.size, picture.getexif().get(TAG)
    found[kind, "Pillow"] = way(np.asarray(picture))
    again = np.rot90(np.asarray(picture), -1) if orientation == 6 else np.asarray(picture)
    found[kind, "Pillow, then turned by the tag"] = way(again)
    print(f"{kind}: " + ", ".join(f"{name}: {value}" for (k, name), value in found.items() if k == kind)
          + f"; Pillow's size {size}, tag {orientation}")
rest = ["with IMREAD_IGNORE_ORIENTATION", "IMREAD_UNCHANGED", "Pillow"]
usual = all(found[kind, name] == "stored" for kind in ("JPEG", "PNG", "WEBP") for name in rest)
tiff = [found["TIFF", name] for name in (*rest, "Pillow, then turned by the tag")]
sys.exit(not (usual and tiff == ["turned"] * 3 + ["turned twice"]))
PYTHON
