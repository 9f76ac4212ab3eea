"""Every quality score on the same faces, and every pooling of sets, in three tables and one plot.

    python -m experiments.quality_board                                      # rendered faces, some minutes
    python -m experiments.quality_board --only sdd_fiqa,ser_fiq,sharpness
    python -m experiments.quality_board --seed 1

Errors are those of the evaluation recogniser, to which no score was fitted (`facejax.recipes.recogniser`).
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import time
from typing import Any

import numpy as np

from facejax.data.quality_faces import FAULTS, Faces, QualityFaces
from facejax.evaluate import sets as set_evaluation
from facejax.evaluate.quality import QualityProtocol, baseline_scores, edc_figure
from facejax.metrics import quality
from facejax.recipes.recogniser import Recogniser
from facejax.recipes.set_pooling import SetOptions
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
BASELINES = ("sharpness", "random")
COLUMNS = ("aoc", "partial_auc", "edc_area", "fault_correlation", "yaw_correlation")
FACTORS = (*FAULTS, "pose", "light")
POOLED = ("set_tar_at_far_1e-1", "set_tar_at_far_1e-2", "set_tar_at_far_1e-3")


def run(name: str, seed: int, changes: dict[str, Any]) -> tuple[np.ndarray, dict[str, float]]:
    """Scores [N] of the test faces by a method of `SCORES`, and the metrics of its report; `changes` see `board`."""
    module, preset = SCORES[name]
    module = importlib.import_module(f"experiments.{module}")
    config = module.get_config(preset)
    config.seed = seed
    config.update_from_flattened_dict({k: v for k, v in changes.items() if k.partition(".")[0] in config})
    report = app.run(config, module.build, quiet=True)[1]
    if "scores" in report.arrays:
        return report.arrays["scores"], report.metrics
    return np.linalg.norm(report.arrays["embeddings"], axis=1), report.metrics  # MagFace's


def by_factor(scores: np.ndarray, test: Faces) -> dict[str, float]:
    """Rank correlation of scores [N] with the absence of each of `FACTORS`; of a degradation, among images with it."""
    found = {}
    for kind, name in enumerate(FAULTS):
        rows = test.kind == kind
        found[name] = quality.spearman(scores[rows], -test.fault[rows])
    clean = test.kind == -1
    truth = {"pose": np.abs(test.yaw), "light": test.light}
    return found | {name: quality.spearman(scores[clean], -values[clean]) for name, values in truth.items()}


def board(names: list[str], seed: int, changes: dict[str, Any]) -> Report:
    """Trains and evaluates the methods; one row each.

    Args:
      names: of SCORES or BASELINES.
      seed: of all training.
      changes: fields to set, such as {"data.test_people": 20}; a method without their section keeps its own.
    """

    def section(kind: Any, name: str) -> Any:
        fields = {key.partition(".")[2]: value for key, value in changes.items() if key.startswith(f"{name}.")}
        return kind(**fields)

    data, protocol = section(QualityFaces, "data"), section(QualityProtocol, "eval")
    recogniser, options = section(Recogniser, "recogniser"), section(SetOptions, "sets")
    test = data.load("test")
    pairs = protocol.compare(recogniser.evaluator(**data.view)(test.images, protocol.batch_size), test.people)
    rows, factors, sets, curves = [], [], [], {}
    for name in names:
        start = time.monotonic()
        values, own = (baseline_scores(test)[name], {}) if name in BASELINES else run(name, seed, changes)
        found = protocol.measures(values, test, pairs)
        rows.append({"score": name, **{key: found[key] for key in COLUMNS}, "seconds": time.monotonic() - start})
        print(f"{name:16}" + "".join(f"{found[key]:>20.4f}" for key in COLUMNS), flush=True)
        factors.append({"score": name, **by_factor(values, test)})
        curves[name] = protocol.curve(values, pairs)
        if POOLED[0] in own:
            sets.append({"pooling": name, **{key: own[key] for key in POOLED}})
    rows.sort(key=lambda row: -row["aoc"])
    curves["true fault"] = protocol.curve(-test.fault, pairs)
    ordered = sorted(curves, key=lambda name: quality.partial_area(curves[name], 0.8))
    return Report(
        {},
        tables={
            "Scores of faces": rows,
            "Correlation with each factor": factors,
            "Verification of sets": sets + plain_poolings(seed, data, recogniser, options),
        },
        figures={"Error over discarded": edc_figure({name: curves[name] for name in ordered}, protocol.start)},
    )


def plain_poolings(seed: int, data: QualityFaces, recogniser: Recogniser, sets: SetOptions) -> list[dict[str, Any]]:
    """Sets pooled by the mean of unit embeddings of the recogniser, and of raw ones, which weights by their length."""
    test = data.sets("test", sets.size)
    raw = recogniser.embedder(seed, **data.view)(test.flat)
    length = np.linalg.norm(raw, axis=1)
    rows = []
    for name, features in (("mean of directions", raw / length[:, None]), ("weighted by length", raw)):
        found = set_evaluation.assess(features, np.ones(len(raw)), "l1", test).metrics
        rows.append({"pooling": name, **{key: found[key] for key in POOLED}})
    return rows


def main() -> None:
    """Prints the tables and writes report.html."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join((*SCORES, *BASELINES)), help="methods, with commas between them")
    parser.add_argument("--workdir", default="runs/quality_board")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in SCORES and name not in BASELINES]:
        parser.error(f"no score {unknown[0]!r}: expected some of {', '.join((*SCORES, *BASELINES))}")
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
