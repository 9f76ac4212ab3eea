"""All detectors on the same rendered scenes with the same number of images: AP by face size, cost and a picture each.

    python -m experiments.detection_board                         # rendered scenes, about half an hour, two cores
    python -m experiments.detection_board --only scrfd,ssh,retinaface
    python -m experiments.detection_board --images 6400 --seed 1

Every detector trains with its own recipe, loss and learning rate on its miniature; the number of training images is the
same. "speed" is the time of one image on this machine, network and post-processing.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import time
from typing import Any

import numpy as np
from matplotlib import ticker

from facejax.train import Report, app, new_figure
from facejax.train.report import write_html

DETECTORS = (
    "scrfd", "retinaface", "yolo5face", "ssh", "dsfd", "ssd", "retinanet", "centernet", "cornernet", "yolov1",
)  # fmt: skip
COLUMNS = {
    "ap": "AP %", "ap_tiny": "AP to 16", "ap_small": "16 to 32", "ap_large": "32 up", "nme": "NME %",
    "million_parameters": "M weights", "million_multiply_adds": "M mult-adds", "milliseconds": "ms",
}  # fmt: skip


def run(name: str, images: int, seed: int, changes: dict[str, Any]) -> Report:
    """Trains one detector on `images` training images and evaluates it."""
    module = importlib.import_module(f"experiments.{name}")
    config = module.get_config()
    config.seed, config.eval.timed = seed, True
    config.update_from_flattened_dict(changes)
    config.train.steps = max(1, images // config.train.batch_size)
    return app.run(config, module.build, quiet=True)[1]


def board(names: list[str], images: int, seed: int, changes: dict[str, Any]) -> Report:
    """One row per detector, best first, with a figure of AP against multiply-adds and the pictures of all.

    Args:
      names: of DETECTORS.
      images: training images of each.
      seed: of all training.
      changes: fields to set in every configuration, such as {"data.image_size": 64}.
    """
    rows, pictures = [], {}
    print(f"{'detector':12}" + "".join(f"{title:>13}" for title in COLUMNS.values()), flush=True)
    for name in names:
        start = time.monotonic()
        report = run(name, images, seed, changes)
        row = {key: report.metrics.get(key, float("nan")) for key in COLUMNS}
        print(f"{name:12}" + "".join(f"{value:>13.2f}" for value in row.values()), flush=True)
        rows.append({"detector": name, **row, "seconds": time.monotonic() - start})
        pictures[name] = next(iter(report.images.values()))
    rows.sort(key=lambda row: -row["ap"])
    return Report(
        {f"ap_{row['detector']}": row["ap"] for row in rows},
        tables={"Detectors": rows},
        figures={"AP against multiply-adds": cost_figure(rows)},
        images=pictures,
    )


def cost_figure(rows: list[dict[str, Any]]) -> Any:
    """AP of all faces and of those below 32 pixels over the multiply-adds of one image."""
    figure, axis = new_figure(6, 3.6)
    cost = np.array([row["million_multiply_adds"] for row in rows])
    for key, label, marker in (("ap", "all faces", "o"), ("ap_small", "16 to 32 pixels", "^")):
        axis.plot(cost, [row[key] for row in rows], marker, label=label)
    for row in rows:
        axis.annotate(row["detector"], (row["million_multiply_adds"], row["ap"]), textcoords="offset points",
                      xytext=(4, 3), fontsize=7)  # fmt: skip
    axis.set(xscale="log", xlabel="multiply-adds of one image, millions", ylabel="average precision, %", ylim=(0, 101))
    for scale in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        scale(ticker.ScalarFormatter())
    axis.legend(fontsize=7)
    return figure


def main() -> None:
    """Prints the table and writes report.html."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=9600, help="training images of each detector")
    parser.add_argument("--only", default=",".join(DETECTORS), help="detectors, with commas between them")
    parser.add_argument("--workdir", default="runs/detection_board")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := [name for name in names if name not in DETECTORS]:
        parser.error(f"no detector {unknown[0]!r}: expected some of {', '.join(DETECTORS)}")
    report = board(names, given.images, given.seed, {})
    page = pathlib.Path(given.workdir) / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_html(page, "detection_board", report, [], str(vars(given)), __doc__.partition("\n")[0])
    print(f"report: {page}")


if __name__ == "__main__":
    main()
