"""Greedy suppression of 8 images of 5,000 boxes beside a NumPy loop, and torchvision's operator where it loads:
`python -m benchmarks.nms`.

Boxes lie in groups around objects, as a detector's do; all contenders keep the same ones.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.compare import compare
from facejax.ops.nms import nms

IMAGES, BOXES, OBJECTS, THRESHOLD, COUNT = 8, 5_000, 400, 0.4, 750


def scenes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, A, 4] around objects of 10 to 120 pixels, and scores [N, A]."""
    each = -(-BOXES // OBJECTS)
    side = np.exp(rng.uniform(np.log(10), np.log(120), (IMAGES, OBJECTS, 1, 1)))
    centre = rng.uniform(0, 640, (IMAGES, OBJECTS, 1, 2)) + 0.12 * side * rng.normal(size=(IMAGES, OBJECTS, each, 2))
    half = side * np.exp(0.12 * rng.normal(size=centre.shape)) / 2
    boxes = np.concatenate([centre - half, centre + half], -1).reshape(IMAGES, -1, 4)[:, :BOXES]
    return boxes.astype(np.float32), rng.uniform(size=(IMAGES, BOXES)).astype(np.float32)


def loop(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Rows that stay, by falling score; every step compares the best box with all that are left."""
    x1, y1, x2, y2 = boxes.T
    areas, left, kept = (x2 - x1) * (y2 - y1), np.argsort(-scores, kind="stable"), []
    while left.size:
        best, others = left[0], left[1:]
        kept.append(int(best))
        width = np.minimum(x2[best], x2[others]) - np.maximum(x1[best], x1[others])
        height = np.minimum(y2[best], y2[others]) - np.maximum(y1[best], y1[others])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        left = others[shared / (areas[best] + areas[others] - shared) <= THRESHOLD]
    return kept


def torchvision_operator() -> Any:
    """torchvision.ops.nms; None where it does not load."""
    try:
        from torchvision.ops import nms as operator
    except (ImportError, RuntimeError):
        return None
    return operator


def main() -> None:
    """Checks that all keep the same boxes and prints the ratios."""
    boxes, scores = scenes(np.random.default_rng(0))
    ours = jax.jit(jax.vmap(partial(nms, threshold=THRESHOLD, count=COUNT)))
    rows, kept = (np.asarray(x) for x in ours(boxes, scores))
    expected = [loop(*image) for image in zip(boxes, scores, strict=True)]
    if [r[k].tolist() for r, k in zip(rows, kept, strict=True)] != [e[:COUNT] for e in expected]:
        raise RuntimeError("the contenders keep different boxes")
    contenders = {
        "NumPy loop": lambda: [loop(*image) for image in zip(boxes, scores, strict=True)],
        "facejax": lambda: ours(boxes, scores),
    }
    if (operator := torchvision_operator()) is not None:
        import torch

        tensors = [(torch.from_numpy(b), torch.from_numpy(s)) for b, s in zip(boxes, scores, strict=True)]
        contenders["torchvision"] = lambda: [operator(b, s, THRESHOLD) for b, s in tensors]
    compare(
        f"greedy suppression, {IMAGES} images of {BOXES:,} boxes", contenders, repeats=15, unit="images", amount=IMAGES
    )


if __name__ == "__main__":
    main()
