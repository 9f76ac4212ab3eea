"""A paper's own claim in miniature: both sides trained over several seeds, and the verdict that was measured."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pathlib
import statistics
import subprocess
import time
from types import ModuleType
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from facejax.train import app
from facejax.train.report import Report


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says, as two or more presets of its experiment and the metric that decides between them.

    Attributes:
      text: the claim in words.
      metric: a name in the evaluation's metrics.
      better: "higher" or "lower".
      method: the preset of the paper's method.
      baseline: the presets that it must beat, every one of them.
      seeds: runs of each.
      system: the experiment's name in the table of systems, where one file holds several ("mobilenet:v1").
    """

    text: str
    metric: str
    better: str
    method: str
    baseline: tuple[str, ...]
    seeds: int = 3
    system: str = ""

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise ValueError(f"claim {self.text!r}: better is {self.better!r}, expected 'higher' or 'lower'")


def gains(claim: Claim, values: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    """Per baseline the mean gain of the method, seed by seed, and that mean's standard error; above 0 is better."""
    sign = 1 if claim.better == "higher" else -1
    found = {}
    for name in claim.baseline:
        differences = [sign * (m - b) for m, b in zip(values[claim.method], values[name], strict=True)]
        error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("inf")
        found[name] = (statistics.mean(differences), error)
    return found


def verdict(claim: Claim, values: dict[str, list[float]]) -> str:
    """Says "shows" when the mean gain over every baseline exceeds twice its standard error."""
    shows = all(mean > 2 * error for mean, error in gains(claim, values).values())
    return "shows" if shows else "does not show here"


class Runs:
    """Runs of an experiment's presets, each made once; presets that differ only in how they are judged share training.

    Attributes:
      name: the experiment's.
      commit: of the code that runs.

    Args:
      name: see above.
      module: with get_config and build.
      overrides: dotted fields put into every configuration (tests shorten runs with it).
    """

    def __init__(self, name: str, module: ModuleType, overrides: dict[str, Any] | None = None):
        self.name, self._module, self._overrides = name, module, overrides or {}
        self.commit = _commit()  # before a line that is appended to claims.jsonl makes it dirty
        self._metrics: dict[tuple[str, int], dict[str, float]] = {}
        self._states: dict[str, Any] = {}

    def metrics(self, preset: str, seed: int) -> dict[str, float]:
        """The final numbers of a preset run with a seed."""
        if (preset, seed) not in self._metrics:
            config = self._module.get_config(preset)
            config.update_from_flattened_dict({"seed": seed, **self._overrides})
            self._metrics[preset, seed] = self._run(config, f"{self.name}:{preset}").metrics
        return self._metrics[preset, seed]

    def _run(self, config: ConfigDict, heading: str) -> Report:
        training = json.dumps({k: v for k, v in config.to_dict().items() if k != "eval"}, sort_keys=True)
        if training in self._states:
            return self._module.build(config).evaluate(self._states[training])
        state, report = app.run(config, self._module.build, name=heading, quiet=True)
        if state is not None:
            self._states[training] = state
        return report


def measure(runs: Runs, claim: Claim) -> dict[str, Any]:
    """Runs every side of a claim and returns its line for claims.jsonl."""
    start, values = time.monotonic(), {}
    for preset in (*claim.baseline, claim.method):
        values[preset] = []
        for seed in range(claim.seeds):
            values[preset].append(float(runs.metrics(preset, seed)[claim.metric]))
            print(f"{preset:20} seed {seed}  {claim.metric} {values[preset][-1]:.4f}", flush=True)
    return {
        "experiment": claim.system or runs.name,
        "claim": claim.text,
        "seeds": claim.seeds,
        "metric": claim.metric,
        "better": claim.better,
        "method": claim.method,
        "baseline": list(claim.baseline),
        "values": {preset: [round(v, 6) for v in runs] for preset, runs in values.items()},
        "verdict": verdict(claim, values),
        "seconds": round(time.monotonic() - start),
        "commit": runs.commit,
    }


def table(claim: Claim, row: dict[str, Any]) -> str:
    """A measured claim for a terminal: mean and spread of every side, and the verdict."""
    lines = [claim.text]
    for preset, runs in row["values"].items():
        spread = statistics.stdev(runs) if len(runs) > 1 else float("nan")
        lines.append(f"  {preset:20} {claim.metric} {statistics.mean(runs):.4f} +- {spread:.4f}  {runs}")
    lines += [
        f"  gain over {b}: {m:+.4f} (standard error {e:.4f})" for b, (m, e) in gains(claim, row["values"]).items()
    ]
    return "\n".join([*lines, f"  {row['verdict']}  ({row['seconds']} s)"])


def main() -> None:
    """`python -m experiments.claims NAME`: measures, prints, and appends to experiments/claims.jsonl."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", help="an experiment, such as arcface")
    parser.add_argument("--seeds", type=int, help="runs of each side; the claim's own number when left out")
    parser.add_argument("--no_record", action="store_true", help="do not append to claims.jsonl")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    module = importlib.import_module(f"experiments.{arguments.name}")
    claims = module.CLAIM if isinstance(module.CLAIM, tuple) else (module.CLAIM,)
    runs = Runs(arguments.name, module)
    for claim in claims:
        claim = dataclasses.replace(claim, seeds=arguments.seeds or claim.seeds)
        row = measure(runs, claim)
        print(table(claim, row))
        if not arguments.no_record:
            record = pathlib.Path(module.__file__).with_name("claims.jsonl")
            with record.open("a") as file:
                file.write(json.dumps(row) + "\n")


def _commit() -> str:
    """Describes the checked out commit; "unknown" without a repository or a git program."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parent, check=False)
    except FileNotFoundError:
        return "unknown"
    return result.stdout.strip() or "unknown"
