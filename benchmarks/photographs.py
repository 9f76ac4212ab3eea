"""A detector trained on rendered scenes, in photographs: `python -m benchmarks.photographs scrfd WORKDIR PHOTOS`.

PHOTOS holds photographs and retinaface_boxes.json, the boxes of a published RetinaFace, which are the reference: name
of the photograph -> [{"box_xyxy": [x1, y1, x2, y2], ...}, ...]. Prints precision and recall at an IoU of 0.5, at the
score of the highest F1, for each size of the network's input, and writes photographs.png at the size of the highest F1:
reference green, detections red.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pathlib
from typing import Any
from unittest import mock

import numpy as np
from ml_collections import ConfigDict

from facejax.data import transforms
from facejax.data.synthetic.faces import png
from facejax.detection.base import Detector
from facejax.evaluate import detection
from facejax.metrics.detection import Detections, Objects
from facejax.predictor import Predictor, opened
from facejax.train import warm_start


def trained(experiment: str, workdir: pathlib.Path) -> tuple[Detector, Any]:
    """The detector of a finished run and its variables."""
    module = importlib.import_module(f"experiments.{experiment}")
    state = warm_start.restore(workdir, module.build, {})
    config = ConfigDict(json.loads((workdir / "config.json").read_text())["config"])
    with mock.patch.object(module, "detector", lambda model, *_, **__: model):
        model = module.build(config)
    return model, {"params": state.params if state.ema is None else state.ema, **state.model_state}


def reference(folder: pathlib.Path) -> dict[str, Objects]:
    """Name of the photograph -> recorded boxes."""
    recorded = json.loads((folder / "retinaface_boxes.json").read_text())
    boxes = {name: np.array([face["box_xyxy"] for face in faces]).reshape(-1, 4) for name, faces in recorded.items()}
    return {name: Objects(b, np.zeros(len(b), int)) for name, b in boxes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="A detector trained on rendered scenes, in photographs.")
    parser.add_argument("experiment", help="such as scrfd")
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("photographs", type=pathlib.Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512], help="sides of the network's input")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("photographs.png"))
    arguments = parser.parse_args()
    model, variables = trained(arguments.experiment, arguments.workdir)
    true = reference(arguments.photographs)
    images = [opened(arguments.photographs / name) for name in true]
    best = (-1.0, [], 1.0)
    for size in arguments.sizes:
        stacked = Predictor(model, variables, size)(images)
        found = [
            Detections(stacked.boxes[i][mask], stacked.scores[i][mask], stacked.labels[i][mask])
            for i, mask in enumerate(stacked.mask)
        ]
        score, precision, recall = detection.working_point(found, list(true.values()))
        print(
            f"{size} pixels: precision {100 * precision:.1f} %, recall {100 * recall:.1f} % of "
            f"{sum(len(o.boxes) for o in true.values())} faces at score {score:.3f}"
        )
        f1 = 2 * precision * recall / max(precision + recall, 1e-9)
        best = max(best, (f1, found, score), key=lambda entry: entry[0])
    _, found, score = best
    drawn = [shown(*entry, score) for entry in zip(images, found, true.values(), strict=True)]
    arguments.out.write_bytes(png(detection.tiled(drawn, 640, 3)))


def shown(image: np.ndarray, found: Detections, true: Objects, score: float, side: int = 640) -> np.ndarray:
    """A photograph of `side` pixels with the reference in green, and detections of at least `score` in red."""
    scale = side / max(image.shape[:2])
    small = transforms.resize(image, *(round(n * scale) for n in image.shape[:2]))
    return detection.draw(
        small,
        dataclasses.replace(found, boxes=found.boxes * scale),
        dataclasses.replace(true, boxes=true.boxes * scale),
        score,
        1,
    )


if __name__ == "__main__":
    main()
