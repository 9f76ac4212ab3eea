"""All aligners on the same rendered faces with the same number of images: error, failures, cost and pictures.

    python -m experiments.alignment_board                         # rendered faces, some minutes, two cores
    python -m experiments.alignment_board --only wing,pfld
    python -m experiments.alignment_board --images 19200 --seed 1

Every aligner trains with its own recipe, loss and learning rate on its miniature; the number of training images is the
same. "ms" is the time of one crop on this machine.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from facejax.evaluate import alignment
from facejax.evaluate import board as boards
from facejax.train import Report, app

ALIGNERS = ("wing", "adaptive_wing", "dan", "mcl", "lab", "pfld")
COLUMNS = {"nme": "NME %", "failures_at_8": "FR at 8 %", "auc_at_8": "AUC at 8 %", "nme_pose": "NME turned"}
COLUMNS |= boards.COST


def run(name: str, images: int, seed: int, changes: dict[str, Any]) -> Report:
    """Trains one aligner on `images` training images and evaluates it."""
    module = importlib.import_module(f"experiments.{name}")
    config = module.get_config()
    config.seed, config.eval.timed, config.data.hard_test = seed, True, False
    if "profiles" in config:
        config.profiles = 1.0  # all aligners see the same faces
    config.update_from_flattened_dict(changes)
    config.train.steps = max(1, images // config.train.batch_size)
    return app.run(config, module.build, quiet=True)[1]


def board(names: list[str], images: int, seed: int, changes: dict[str, Any]) -> Report:
    """One row per aligner, best first, with their cumulative error curves and the best and worst faces of each.

    Args:
      names: of ALIGNERS.
      images: training images of each.
      seed: of all training.
      changes: fields to set in every configuration, such as {"data.image_size": 32}.
    """
    runs = {name: functools.partial(run, name, images, seed, changes) for name in names}
    rows, reports = boards.compare("aligner", runs, COLUMNS)
    rows.sort(key=lambda row: row["nme"])
    errors = {row["aligner"]: np.asarray(reports[row["aligner"]].arrays["errors"]) for row in rows}
    pictures = {
        name: report.figures["Best and worst faces (true green, predicted red)"] for name, report in reports.items()
    }
    return Report(
        {f"nme_{row['aligner']}": row["nme"] for row in rows},
        tables={"Aligners": rows},
        figures={
            "Faces below an error": alignment.error_figure(errors, 0.08),
            "Error against multiply-adds": boards.cost_figure(
                rows, "aligner", {"nme": "all faces", "nme_pose": "turned by more than 40 degrees"}, "NME, %"
            ),
            **pictures,
        },
    )


def main() -> None:
    """Prints the table and writes report.html."""
    names, given = boards.command_line("alignment_board", __doc__, "aligner", ALIGNERS, 12_800)
    report = board(names, given.images, given.seed, {})
    boards.write_page(report, "alignment_board", __doc__, given)


if __name__ == "__main__":
    main()
