"""Face detection in a photograph compared with ONNX Runtime: `python -m benchmarks.detect_photo MODEL PHOTOGRAPH`.

MODEL is InsightFace's scrfd_500m_kps.onnx. The peer is ONNX Runtime with the usual script: OpenCV resizes and makes the
input, NumPy decodes and suppresses. Both use `--threads` threads, and run in turns: the network alone from an array of
640 x 640 pixels, and the whole path from the decoded photograph to boxes and landmarks. On a busy machine the minima of
the elapsed times and of the processor times count; with `--threads 1` the two hardly differ. Needs onnxruntime.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from benchmarks.compare import record

SIZE, LOWEST, THRESHOLD = 640, 0.5, 0.4


class Peer:
    """The model in ONNX Runtime; an RGB photograph -> boxes and scores [n, 5], landmarks [n, 5, 2]."""

    def __init__(self, path: str, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def network(self, blob: np.ndarray) -> list[np.ndarray]:
        """[1, 3, H, W] -> scores, distances and points of the three strides."""
        return self.session.run(None, {self.input: blob})

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = SIZE / max(image.shape[:2])
        height, width = (int(n * scale + 1e-6) for n in image.shape[:2])
        square = np.zeros((SIZE, SIZE, 3), np.uint8)
        square[:height, :width] = cv2.resize(image, (width, height))
        outputs = self.network(cv2.dnn.blobFromImage(square, 1 / 128, (SIZE, SIZE), (127.5,) * 3))
        found = []
        for i, stride in enumerate((8, 16, 32)):
            cells = np.stack(np.mgrid[: SIZE // stride, : SIZE // stride][::-1], -1).reshape(-1, 2) * stride
            centres = np.repeat(cells, 2, 0).astype(np.float32)
            scores, distances, points = (x.reshape(len(centres), -1) for x in outputs[i::3])
            rows = np.flatnonzero(scores[:, 0] >= LOWEST)
            centres, distances = centres[rows], distances[rows] * stride
            corners = [centres - distances[:, :2], centres + distances[:, 2:], scores[rows]]
            landmarks = centres[:, None] + points[rows].reshape(-1, 5, 2) * stride
            found.append((np.concatenate(corners, 1), landmarks))
        boxes, points = (np.concatenate(x) for x in zip(*found, strict=True))
        order = np.argsort(-boxes[:, 4], kind="stable")
        boxes, points = boxes[order], points[order]
        kept = suppress(boxes)
        boxes[:, :4] /= scale
        return boxes[kept], points[kept] / scale


def suppress(boxes: np.ndarray) -> list[int]:
    """The usual greedy suppression of sorted boxes in NumPy, inclusive pixels."""
    x1, y1, x2, y2 = boxes[:, :4].T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    order, kept = np.arange(len(boxes)), []
    while order.size:
        i, rest = order[0], order[1:]
        kept.append(i)
        width = np.maximum(0, np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest]) + 1)
        height = np.maximum(0, np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest]) + 1)
        shared = width * height
        order = rest[shared / (areas[i] + areas[rest] - shared) <= THRESHOLD]
    return kept


def race(contenders: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Runs the contenders in turns and prints the minima of elapsed and processor time; ratios to the first.

    Returns:
      name -> elapsed seconds of each run.
    """
    elapsed, processor = ({name: [] for name in contenders} for _ in range(2))
    for call in contenders.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in contenders.items():
            start, cpu = time.perf_counter(), time.process_time()
            call()
            elapsed[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - cpu)
    first, width = next(iter(contenders)), max(map(len, contenders))
    for name in contenders:
        low, cpu = min(elapsed[name]), min(processor[name])
        print(
            f"{name:{width}}  elapsed {1e3 * low:6.2f} ms, time ratio {low / min(elapsed[first]):.2f}; "
            f"processor {1e3 * cpu:6.2f} ms, time ratio {cpu / min(processor[first]):.2f}; "
            f"median {1e3 * np.median(elapsed[name]):.2f} ms of {len(elapsed[name])}"
        )
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description="Face detection in a photograph, beside ONNX Runtime.")
    parser.add_argument("model")
    parser.add_argument("photograph", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20, help="of each race")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])  # XLA takes as many threads
    import jax

    import facejax
    from facejax.predictor import opened, views

    jax.config.update("jax_platforms", "cpu")
    image = opened(arguments.photograph)
    ours, peer = facejax.load_pretrained("scrfd_500m_kps", arguments.model), Peer(arguments.model, arguments.threads)
    (view,) = views(image, SIZE, SIZE / max(image.shape[:2]), 0)
    blob = cv2.dnn.blobFromImage(view.image, 1 / 128, (SIZE, SIZE), (127.5,) * 3)
    detector, variables = ours.detector, ours.variables
    apply = jax.jit(lambda images: detector.net.apply(variables, detector.preprocess(images), train=False))

    found, (boxes, points) = ours(image), peer(image)
    assert found.mask.sum() == len(boxes), f"{found.mask.sum()} and {len(boxes)} faces"
    scale = view.scale / (SIZE / max(image.shape[:2]))  # the script scales both sides alike
    differences = [
        np.abs(found.boxes[found.mask] * np.tile(scale, 2) - boxes[:, :4]).max(initial=0),
        np.abs(found.points[found.mask] * scale - points).max(initial=0),
    ]
    print(f"{len(boxes)} faces; largest difference {max(differences):.4f} pixels; load {os.getloadavg()[0]:.1f}")
    network = {
        "ONNX Runtime": lambda: peer.network(blob),
        "facejax": lambda: jax.block_until_ready(apply(view.image[None])),
    }
    record(f"SCRFD-500M-KPS, {SIZE} x {SIZE}, the network", race(network, arguments.seconds))
    whole = {"ONNX Runtime": lambda: peer(image), "facejax": lambda: ours(image)}
    record(f"SCRFD-500M-KPS, {SIZE} x {SIZE}, from the decoded photograph to boxes", race(whole, arguments.seconds))
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
