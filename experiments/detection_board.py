"""All detectors on the same rendered scenes with the same number of images: AP by face size, cost and a picture each.

    python -m experiments.detection_board                         # rendered scenes, about half an hour, two cores
    python -m experiments.detection_board --only scrfd,ssh,retinaface
    python -m experiments.detection_board --images 6400 --seed 1

Every detector trains with its own recipe, loss and learning rate on its miniature; the number of training images is the
same. "ms" is the time of one image on this machine, network and post-processing.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from facejax.evaluate import board as boards
from facejax.train import Report, app

DETECTORS = (
    "scrfd", "retinaface", "yolo5face", "ssh", "dsfd", "ssd", "retinanet", "centernet", "cornernet", "yolov1",
)  # fmt: skip
COLUMNS = {
    "ap": "AP %", "ap_tiny": "AP to 16", "ap_small": "16 to 32", "ap_large": "32 up", "nme": "NME %", **boards.COST,
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
    runs = {name: functools.partial(run, name, images, seed, changes) for name in names}
    rows, reports = boards.compare("detector", runs, COLUMNS)
    rows.sort(key=lambda row: -row["ap"])
    series = {"ap": "all faces", "ap_small": "16 to 32 pixels"}
    return Report(
        {f"ap_{row['detector']}": row["ap"] for row in rows},
        tables={"Detectors": rows},
        figures={"AP against multiply-adds": boards.cost_figure(rows, "detector", series, "average precision, %")},
        images={name: next(iter(report.images.values())) for name, report in reports.items()},
    )


def main() -> None:
    """Prints the table and writes report.html."""
    names, given = boards.command_line("detection_board", __doc__, "detector", DETECTORS, 9600)
    report = board(names, given.images, given.seed, {})
    boards.write_page(report, "detection_board", __doc__, given)


if __name__ == "__main__":
    main()
