"""Every quality score on the same faces, and every pooling of sets, in three tables and one plot.

    python -m experiments.quality_board                                      # rendered faces, some minutes
    python -m experiments.quality_board --only sdd_fiqa,ser_fiq,sharpness
    python -m experiments.quality_board --seed 1

Errors are those of a recogniser that no score was fitted to; see `quality_common`.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import time
from typing import Any

import numpy as np

from experiments import quality_common as common
from experiments import sets_common, tinyfqnet
from facejax.metrics import quality
from facejax.train import Report, app
from facejax.train.report import write_html

SCORES = {
    "tinyfqnet": ("tinyfqnet", "synthetic"),
    "faceqnet v0": ("faceqnet", "v0"),
    "faceqnet v1": ("faceqnet", "synthetic"),
    "pcnet": ("pcnet", "synthetic"),
    "sdd_fiqa": ("sdd_fiqa", "synthetic"),
    "ser_fiq": ("ser_fiq", "synthetic"),
    "ser_fiq on top": ("ser_fiq", "on_top"),
    "rankiqa": ("rankiqa", "synthetic"),
    "human": ("human_quality", "synthetic"),
    "matcher": ("human_quality", "matcher"),
    "norm": ("ser_fiq", "norm"),
    "magface": ("magface", "synthetic"),
    "eqface": ("eqface", "synthetic"),
    "qan": ("qan", "synthetic"),
    "qan_pp": ("qan_pp", "synthetic"),
}
FLOORS = ("sharpness", "random")
COLUMNS = ("aoc", "partial_auc", "edc_area", "fault_correlation", "yaw_correlation")
FACTORS = (*common.FAULTS, "pose", "light")
POOLED = ("set_tar_at_far_1e-1", "set_tar_at_far_1e-2", "set_tar_at_far_1e-3")


def scored(name: str, seed: int, changes: dict[str, Any]) -> tuple[np.ndarray, dict[str, float]]:
    """Scores [N] of the faces to be judged by a method of `SCORES`, and its own metrics; `changes` see `board`."""
    module, preset = SCORES[name]
    module = importlib.import_module(f"experiments.{module}")
    config = module.get_config(preset)
    config.seed = seed
    config.update_from_flattened_dict({k: v for k, v in changes.items() if k.partition(".")[0] in config})
    report = app.run(config, module.build, quiet=True)[1]
    if "scores" in report.arrays:
        return report.arrays["scores"], report.metrics
    return np.linalg.norm(report.arrays["embeddings"], axis=1), report.metrics  # MagFace's


def by_factor(scores: np.ndarray, test: common.Faces) -> dict[str, float]:
    """Rank correlation of scores [N] with the absence of each of `FACTORS`; of a fault, among pictures that have it."""
    found = {}
    for kind, name in enumerate(common.FAULTS):
        rows = test.kind == kind
        found[name] = quality.spearman(scores[rows], -test.fault[rows])
    clean = test.kind == -1
    truth = {"pose": np.abs(test.yaw), "light": test.light}
    return found | {name: quality.spearman(scores[clean], -values[clean]) for name, values in truth.items()}


def board(names: list[str], seed: int, changes: dict[str, Any]) -> Report:
    """Trains and judges the methods; one row each.

    Args:
      names: of SCORES or FLOORS.
      seed: of everything that learns.
      changes: fields to set, such as {"data.judged": 20}; a method without their section keeps its own.
    """
    config = tinyfqnet.get_config()
    config.update_from_flattened_dict(changes)
    test = common.people(config.data, "test")
    compared = common.pairs(config, test)
    rows, factors, sets, curves = [], [], [], {}
    for name in names:
        start = time.monotonic()
        values, own = (common.floors(test)[name], {}) if name in FLOORS else scored(name, seed, changes)
        found = common.measures(config, values, test, compared)
        rows.append({"score": name, **{key: found[key] for key in COLUMNS}, "seconds": time.monotonic() - start})
        print(f"{name:16}" + "".join(f"{found[key]:>20.4f}" for key in COLUMNS), flush=True)
        factors.append({"score": name, **by_factor(values, test)})
        curves[name] = common.discard_curve(config, values, compared)
        if POOLED[0] in own:
            sets.append({"pooling": name, **{key: own[key] for key in POOLED}})
    rows.sort(key=lambda row: -row["aoc"])
    curves["true fault"] = common.discard_curve(config, -test.fault, compared)
    ordered = sorted(curves, key=lambda name: quality.partial_area(curves[name], 0.8))
    return Report(
        {},
        tables={
            "Scores of faces": rows,
            "Correlation with each factor": factors,
            "Verification of sets": sets + plain_poolings(seed, changes),
        },
        figures={"Error over discarded": common.edc_figure(config, {name: curves[name] for name in ordered})},
    )


def plain_poolings(seed: int, changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The recogniser's sets by the mean of embeddings of unit length, and of raw ones, which weighs by length."""
    config = importlib.import_module("experiments.qan_pp").get_config()
    config.update_from_flattened_dict({"seed": seed, **changes})
    images = sets_common.sets(config, "test").images
    raw = common.recogniser(config, seed)(images.reshape(-1, *images.shape[2:]))
    length = np.linalg.norm(raw, axis=1)
    rows = []
    for name, features in (("mean of directions", raw / length[:, None]), ("weighted by length", raw)):
        found = sets_common.assess(config, features, np.ones(len(raw)), "l1").metrics
        rows.append({"pooling": name, **{key: found[key] for key in POOLED}})
    return rows


def main() -> None:
    """Prints the tables and writes report.html."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join((*SCORES, *FLOORS)), help="methods, with commas between them")
    parser.add_argument("--workdir", default="runs/quality_board")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in SCORES and name not in FLOORS]:
        parser.error(f"no score {unknown[0]!r}: expected some of {', '.join((*SCORES, *FLOORS))}")
    print(f"{'score':16}" + "".join(f"{column:>20}" for column in COLUMNS))
    report = board(names, arguments.seed, {})
    print(f"{'score':16}" + "".join(f"{factor:>12}" for factor in FACTORS))
    for row in report.tables["Correlation with each factor"]:
        print(f"{row['score']:16}" + "".join(f"{row[factor]:>12.3f}" for factor in FACTORS))
    for row in report.tables["Verification of sets"]:
        print(f"{row['pooling']:20}" + "".join(f"{key} {row[key]:.4f}  " for key in POOLED))
    page = pathlib.Path(arguments.workdir) / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_html(page, "quality_board", report, [], str(vars(arguments)), __doc__.partition("\n")[0])
    print(f"report: {page}")


if __name__ == "__main__":
    main()
