"""Comparisons of several systems: a printed table, a figure of quality against cost, and their page."""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker

from facejax.train import Report, new_figure
from facejax.train.report import write_html

COST = {"million_parameters": "M weights", "million_multiply_adds": "M mult-adds", "milliseconds": "ms"}
"""Columns of a network's cost: name of the metric -> heading."""


def compare(
    kind: str, runs: Mapping[str, Callable[[], Report]], columns: Mapping[str, str]
) -> tuple[list[dict[str, Any]], dict[str, Report]]:
    """Runs every system and prints a line for each.

    Args:
      kind: what the systems are, such as "detector"; heading of the first column.
      runs: name -> what trains and evaluates it.
      columns: name of a metric -> heading; a report that lacks it has NaN.

    Returns:
      A row of the table for each system, with its seconds; and the reports by name.
    """
    rows, reports = [], {}
    print(f"{kind:14}" + "".join(f"{title:>13}" for title in columns.values()), flush=True)
    for name, run in runs.items():
        start = time.monotonic()
        reports[name] = run()
        row = {key: reports[name].metrics.get(key, float("nan")) for key in columns}
        print(f"{name:14}" + "".join(f"{value:>13.2f}" for value in row.values()), flush=True)
        rows.append({kind: name, **row, "seconds": time.monotonic() - start})
    return rows, reports


def cost_figure(rows: Sequence[Mapping[str, Any]], kind: str, series: Mapping[str, str], ylabel: str) -> Any:
    """Metrics over the multiply-adds of one image, with the systems' names.

    Args:
      rows, kind: of `compare`.
      series: name of a metric -> its label; names stand at the points of the first.
      ylabel: label of the vertical axis.
    """
    figure, axis = new_figure(6, 3.6)
    cost = np.array([row["million_multiply_adds"] for row in rows])
    for (key, label), marker in zip(series.items(), "o^sv", strict=False):
        axis.plot(cost, [row[key] for row in rows], marker, label=label)
    for row in rows:
        place = (row["million_multiply_adds"], row[next(iter(series))])
        axis.annotate(row[kind], place, textcoords="offset points", xytext=(4, 3), fontsize=7)
    axis.set(xscale="log", xlabel="multiply-adds of one image, millions", ylabel=ylabel)
    axis.set_ylim(bottom=0)
    for scale in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        scale(ticker.ScalarFormatter())
    axis.legend(fontsize=7)
    return figure


def command_line(name: str, about: str, kind: str, names: Sequence[str], images: int) -> tuple[list[str], Any]:
    """The flags --seed, --images, --only and --workdir of a comparison: the chosen names and all flags.

    Args:
      name: of the experiment.
      about: its docstring.
      kind, names: what the systems are, and all of them.
      images: default number of training images of each.
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=about.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=images, help=f"training images of each {kind}")
    parser.add_argument("--only", default=",".join(names), help=f"{kind}s, with commas between them")
    parser.add_argument("--workdir", default=f"runs/{name}")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := [x for x in chosen if x not in names]:
        parser.error(f"no {kind} {unknown[0]!r}: expected some of {', '.join(names)}")
    return chosen, given


def write_page(report: Report, name: str, about: str, given: Any) -> None:
    """Writes report.html into the folder `given.workdir` and prints its path."""
    page = pathlib.Path(given.workdir) / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_html(page, name, report, [], str(vars(given)), about.partition("\n")[0])
    print(f"report: {page}")
