"""Every clustering method and the usual baselines on the same people, in one table.

    python -m experiments.clustering_board                                  # simulated embeddings, some minutes
    python -m experiments.clustering_board --noise 0.9 --people 100 --only hac,star_fc
    python -m experiments.clustering_board --source arrays --path DIR     # embeddings.npy, labels.npy of --save_arrays

Each runs in a process of its own, so that its seconds (imports, compilation and training included) and its peak memory
are its own. Thresholds are those with the best pairwise F on labelled people; the k-means are told the true number.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import pathlib
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.clustering_common import BASELINES, baseline, choose
from facejax.data.synthetic import embeddings
from facejax.metrics import clustering
from facejax.train import Report, app, new_figure
from facejax.train.report import write_html

METHODS = {
    "cdp": ("cdp", "synthetic"),
    "cdp_single": ("cdp", "single"),
    "density": ("vegcn", "density"),
    "gcn_v": ("vegcn", "gcn_v"),
    "vegcn": ("vegcn", "synthetic"),
    "density_aware": ("density_aware", "synthetic"),
    "star_fc": ("star_fc", "synthetic"),
}
COLUMNS = ("pairwise_f", "bcubed_f", "nmi", "seconds", "peak MiB")


def run(name: str, data: dict[str, Any], seed: int) -> dict[str, Any]:
    """One line of the table.

    Args:
      name: of METHODS or BASELINES.
      data: settings as in `embeddings.SETTINGS`.
      seed: of the people and of the training.
    """
    start = time.monotonic()
    if name in METHODS:
        module, preset = METHODS[name]
        module = importlib.import_module(f"experiments.{module}")
        config = module.get_config(preset)
        config.update_from_flattened_dict({"seed": seed, **{f"data.{key}": value for key, value in data.items()}})
        metrics = app.run(config, module.build, quiet=True)[1].metrics
    else:
        labelled, people = embeddings.load(ConfigDict(data), seed)

        def cluster(here: embeddings.Embeddings, threshold: float) -> np.ndarray:
            return baseline(name, here.features, threshold, k=20, clusters=len(np.unique(here.labels)))

        threshold = BASELINES[name][0]
        if len(BASELINES[name]) > 1:
            threshold, _ = choose(labelled.labels, lambda t: cluster(labelled, t), BASELINES[name])
        metrics = clustering.report(people.labels, cluster(people, threshold))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {key: round(float(metrics[key]), 4) for key in COLUMNS[:3]}
    return {"method": name, **row, "seconds": round(time.monotonic() - start, 1), "peak MiB": round(peak)}


def figure(rows: list[dict[str, Any]]) -> Any:
    """Bars of both F, the best method on top."""
    drawing, axis = new_figure(6.5, 0.3 * len(rows) + 1)
    place = np.arange(len(rows))[::-1]
    for shift, name in ((0.2, "pairwise_f"), (-0.2, "bcubed_f")):
        axis.barh(place + shift, [row[name] for row in rows], 0.4, label=name)
    axis.set_yticks(place, [row["method"] for row in rows])
    axis.set(xlim=(0, 1))
    axis.legend(frameon=False, fontsize=8)
    return drawing


def main() -> None:
    """Prints the table and writes report.html."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    chosen = {
        **embeddings.SETTINGS,
        "labelled": 1000,
        "people": 200,
        "width": 32,
        "noise": 0.7,
        "drift": 1.5,
        "views": 4,
    }
    for key, value in chosen.items():
        parser.add_argument(f"--{key}", type=type(value), default=value, help=f"data.{key} (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join((*METHODS, *BASELINES)), help="methods, with commas between them")
    parser.add_argument("--workdir", default="runs/clustering_board")
    arguments = vars(parser.parse_args())
    data = {key: arguments[key] for key in chosen}
    names = arguments["only"].split(",")
    if unknown := [name for name in names if name not in METHODS and name not in BASELINES]:
        parser.error(f"no method {unknown[0]!r}: expected some of {', '.join((*METHODS, *BASELINES))}")
    rows = []
    print(f"{'method':18}" + "".join(f"{c:>12}" for c in COLUMNS))
    for name in names:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            rows.append(process.submit(run, name, data, arguments["seed"]).result())
        print(f"{name:18}" + "".join(f"{rows[-1][c]:>12}" for c in COLUMNS), flush=True)
    rows.sort(key=lambda row: -row["pairwise_f"])
    page = pathlib.Path(arguments["workdir"]) / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    report = Report({}, tables={"Clustering": rows}, figures={"Both F": figure(rows)})
    write_html(page, "clustering_board", report, [], str(data), __doc__.partition("\n")[0])
    print(f"report: {page}")


if __name__ == "__main__":
    main()
