"""WIDER FACE's evaluation compared with the public Python port on the same files, one process, in turns:
`python -m benchmarks.wider_face PORT DATA`.

PORT is the folder widerface_evaluate of github.com/biubug6/Pytorch_Retinaface; NumPy replaces its compiled overlaps of
boxes, which don't build with current NumPy. DATA holds the four .mat files and recorded detections (wider_face_eval of
the test data). "arrays" is the evaluation without reading files.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import pathlib
import re
import sys
import tempfile
import types

import numpy as np

from benchmarks.compare import compare
from facejax.metrics import wider_face


def overlaps(boxes: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """IoU in the pixel-index convention, [N, 4] and [K, 4] -> [N, K]."""
    low, high = np.maximum(boxes[:, None, :2], queries[:, :2]), np.minimum(boxes[:, None, 2:4], queries[:, 2:])
    inside = np.maximum(high - low + 1, 0).prod(-1)
    first, second = ((b[:, 2:4] - b[:, :2] + 1).prod(-1) for b in (boxes, queries))
    return inside / (first[:, None] + second - inside)


def load_port(folder: pathlib.Path) -> types.ModuleType:
    """The port's evaluation.py with NumPy box overlaps and without progress bars."""
    stand_ins = {
        "bbox": {"bbox_overlaps": overlaps},
        "IPython": {"embed": None},
        "tqdm": {"tqdm": type("Bar", (list,), {"set_description": lambda self, text: None})},
    }
    for name, content in stand_ins.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    spec = importlib.util.spec_from_file_location("port", folder / "evaluation.py")
    port = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(port)
    return port


def printed(call) -> list[float]:
    """The three average precisions that a call prints."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        call()
    return [float(value) for value in re.findall(r"AP:? +([0-9.]+)", text.getvalue())]


def main() -> None:
    """Writes the recorded detections as text files and evaluates them with both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--repeats", type=int, default=1, help="timed runs of each; the port takes minutes")
    given = parser.parse_args()
    port = load_port(given.port)
    recorded = np.load(given.data / "synthetic_predictions_reference.npz")
    detections = np.split(recorded["dets_xywh_score"].astype(np.float64), np.cumsum(recorded["dets_per_image"])[:-1])
    truth = wider_face.read_truth(given.data)
    found: dict[str, list[float]] = {}

    def arrays() -> None:
        curves = wider_face.evaluate(detections, truth.boxes, truth.subsets)
        found["facejax, arrays"] = [curve.ap for curve in curves.values()]

    with tempfile.TemporaryDirectory() as folder:
        for name, rows in zip(recorded["image_names"].tolist(), detections, strict=True):
            path = pathlib.Path(folder, f"{name}.txt")
            path.parent.mkdir(exist_ok=True)
            lines = [path.stem, str(len(rows)), *(" ".join(map(repr, row)) for row in rows.tolist())]
            path.write_text("\n".join(lines) + "\n")
        calls = {
            "public port": lambda: port.evaluation(folder, str(given.data)),
            "facejax": lambda: wider_face.main([folder, "--truth", str(given.data)]),
        }
        contenders = {name: lambda name=name: found.update({name: printed(calls[name])}) for name in calls}
        contenders["facejax, arrays"] = arrays
        compare(
            "AP of the recorded detections on WIDER FACE's validation set",
            contenders,
            repeats=given.repeats,
            warmup=0,
            unit="images",
            amount=len(detections),
        )
    for name, values in found.items():
        print(f"{name}: AP easy, medium, hard {', '.join(f'{value:.6f}' for value in values)}")
    np.testing.assert_allclose(np.ptp(list(found.values()), axis=0), 0, atol=1e-6)


if __name__ == "__main__":
    main()
