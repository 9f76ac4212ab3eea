"""SCRFD's search on rendered scenes: random trunks, then whole detectors around the best, against one random step.

    python -m experiments.scrfd_search                                  # some minutes, two cores
    python -m experiments.scrfd_search --candidates 16 --steps 400

Both searches train as many candidates of equal multiply-adds. The paper trains 320 of each step for 80 epochs on WIDER
FACE and compares AP on its hard faces; here AP on all faces of the test scenes decides.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from typing import Any

import numpy as np

from facejax.data.detection import DetectionImages
from facejax.detection import scrfd, scrfd_search
from facejax.detection.scrfd_search import PARTS, Candidates, Space
from facejax.recipes.detector import Evaluation, detector
from facejax.train import Options, Report, new_figure, optim, train
from facejax.train.report import write_html

OPTIM = {
    "name": "adamw",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": {"kind": "cosine", "peak": 0.004, "warmup": 30},
}
HALVED = {"strides": (4, 8, 16), "sizes": ((8, 16), (32, 64), (128, 256))}
SPACE = Space((4, 24), (1, 4), neck=(8, 24), head=(8, 32), head_depth=(1, 2), divisor=4, share_tolerance=0.25)
START = Candidates(*(np.array([x]) for x in (False, (8, 16, 24, 48), (1, 1, 2, 2), 16, 24, 1)))
"""A trunk whose widths double from stage to stage; its cost is the budget, its neck and head are those of step one."""
TITLES = {"start": "start", "trunks": "step 1", "whole": "step 2", "random": "one random step"}


def quality(candidates: Candidates, row: int, data: DetectionImages, options: Options, seed: int) -> dict[str, float]:
    """Metrics of one candidate after training."""
    net = candidates.net(row, pool=False)
    model = scrfd.SCRFD(net, **HALVED)
    run = detector(model, data, optim.from_config(OPTIM, options.steps), options, Evaluation(), seed=seed)
    return train(run, options, seed=seed, quiet=True)[1].metrics


def search(count: int, data: DetectionImages, options: Options, seed: int) -> Report:
    """Trains the start, and `count` candidates of either step and of the baseline.

    The baseline draws trunk, neck and head at once, twice as many candidates, so that both searches train equally many.
    """
    size = (data.image_size, data.image_size)
    cost = functools.partial(scrfd_search.costs, size=size, pool=False)
    budget, rng = float(cost(START).sum()), np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []

    def tried(kind: str, candidates: Candidates) -> int:
        """Trains all; returns the best one's row."""
        found = []
        for row in range(len(candidates)):
            ap = quality(candidates, row, data, options, seed)["ap"]
            parts = cost(candidates.take(np.array([row])))[0]
            shares = {part: 100 * value / parts.sum() for part, value in zip(PARTS, parts, strict=True)}
            rows.append({"search": TITLES[kind], "ap": ap, "million": parts.sum() / 1e6, **shares})
            print(f"{TITLES[kind]:16}{ap:8.2f}" + "".join(f"{shares[part]:8.1f}" for part in PARTS), flush=True)
            found.append(ap)
        return int(np.argmax(found))

    print(f"{'search':16}{'ap':>8}" + "".join(f"{part + ' %':>8}" for part in PARTS))
    tried("start", START)
    trunks = scrfd_search.draw_trunks(rng, count, budget, cost, START, SPACE)
    best = trunks.take(np.array([tried("trunks", trunks)]))
    tried("whole", scrfd_search.draw_whole(rng, count, budget, cost, best, SPACE))
    tried("random", scrfd_search.draw_any(rng, 2 * count, budget, cost, SPACE))
    best_of = {
        kind: max((r for r in rows if r["search"] == title), key=lambda r: r["ap"]) for kind, title in TITLES.items()
    }
    metrics = {f"ap_{kind}": row["ap"] for kind, row in best_of.items()}
    metrics["ap_search"] = max(metrics["ap_trunks"], metrics["ap_whole"])
    return Report(
        {"ap_search": metrics.pop("ap_search"), **metrics},
        tables={"Candidates": rows},
        figures={"Multiply-adds of the best of each": share_figure(best_of)},
    )


def share_figure(best: dict[str, dict[str, Any]]) -> Any:
    """The share of every part in the multiply-adds, stacked, one bar for each search."""
    figure, axis = new_figure(6, 3)
    left = np.zeros(len(best))
    names = [f"{TITLES[kind]}: AP {row['ap']:.1f} %" for kind, row in best.items()]
    for part in PARTS:
        values = np.array([row[part] for row in best.values()])
        axis.barh(names, values, left=left, label=part)
        left += values
    axis.invert_yaxis()
    axis.set(xlabel="share of the multiply-adds, %", xlim=(0, 100))
    axis.legend(ncols=len(PARTS), fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    axis.grid(False)
    return figure


def main() -> None:
    """Prints the candidates and writes report.html."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--candidates", type=int, default=4, help="of either step; the baseline trains twice as many")
    parser.add_argument("--steps", type=int, default=150, help="updates of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", default="runs/scrfd_search")
    given = parser.parse_args()
    options = Options(batch_size=16, steps=given.steps)
    report = search(given.candidates, DetectionImages(augment="scrfd"), options, given.seed)
    for name, value in report.metrics.items():
        print(f"{name:12}{value:8.2f}")
    page = pathlib.Path(given.workdir) / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_html(page, "scrfd_search", report, [], str(vars(given)), __doc__.partition("\n")[0])
    print(f"report: {page}")


if __name__ == "__main__":
    main()
