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

from facejax.train import app


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


def measure(
    name: str,
    module: ModuleType,
    claim: Claim,
    overrides: dict[str, Any] | None = None,
    done: dict[tuple[str, int], Any] | None = None,
) -> dict[str, Any]:
    """Runs every side of a claim and returns its line for claims.jsonl.

    Args:
      name: the experiment's name.
      module: with get_config and build.
      claim: what to measure.
      overrides: dotted fields put into every configuration (tests shorten runs with it).
      done: metrics by preset and seed; what an earlier claim of the experiment put here is not run again.
    """
    start, values, done = time.monotonic(), {}, {} if done is None else done
    for preset in (*claim.baseline, claim.method):
        values[preset] = []
        for seed in range(claim.seeds):
            if (preset, seed) not in done:
                config = module.get_config(preset)
                config.update_from_flattened_dict({"seed": seed, **(overrides or {})})
                done[preset, seed] = app.run(config, module.build, name=f"{name}:{preset}", quiet=True)[1].metrics
            values[preset].append(float(done[preset, seed][claim.metric]))
            print(f"{preset:20} seed {seed}  {claim.metric} {values[preset][-1]:.4f}", flush=True)
    return {
        "experiment": claim.system or name,
        "claim": claim.text,
        "seeds": claim.seeds,
        "metric": claim.metric,
        "better": claim.better,
        "method": claim.method,
        "baseline": list(claim.baseline),
        "values": {preset: [round(v, 6) for v in runs] for preset, runs in values.items()},
        "verdict": verdict(claim, values),
        "seconds": round(time.monotonic() - start),
        "commit": _commit(),
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
    done: dict[tuple[str, int], Any] = {}
    for claim in claims:
        claim = dataclasses.replace(claim, seeds=arguments.seeds or claim.seeds)
        row = measure(arguments.name, module, claim, done=done)
        print(table(claim, row))
        if not arguments.no_record:
            record = pathlib.Path(module.__file__).with_name("claims.jsonl")
            with record.open("a") as file:
                file.write(json.dumps(row) + "\n")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parent, check=False)
    return result.stdout.strip() or "unknown"
