"""A paper's own claim in miniature: both sides trained over several seeds, and the verdict that was measured.

The gain is paired: method minus baseline of the same seed, its sign turned where lower is better. A claim "shows" when
the two-sided 95 % t-interval of the mean gain over every baseline lies above 0, "does not show here" when one does not,
and is "undecided" with fewer than five seeds.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from facejax.train import app
from facejax.train.report import Report, commit

CONFIDENCE = 0.95
ENOUGH = 5
"""Seeds below which a claim is undecided."""
FIRST_SEED = 1000
"""Seeds from here on are for claims only. Settings may have been chosen on any below, which early rows contain."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says, as two or more presets of its experiment and the metric that decides between them.

    Attributes:
      id: the experiment's module, a dot and a short name, "arcface.margin"; keeps its rows when `text` is reworded.
      text: the claim in words.
      metric: a name in the evaluation's metrics.
      better: "higher" or "lower".
      method: the preset of the paper's method.
      baseline: the presets that it must beat, every one of them.
      seeds: runs of each, two or more.
      system: the experiment's name in the table of systems, where one file holds several ("mobilenet:v1").
    """

    id: str
    text: str
    metric: str
    better: str
    method: str
    baseline: tuple[str, ...]
    seeds: int = ENOUGH
    system: str = ""

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise ValueError(f"claim {self.id!r}: better is {self.better!r}, expected 'higher' or 'lower'")
        if self.seeds < 2:
            raise ValueError(f"claim {self.id!r}: seeds is {self.seeds}, expected 2 or more, as an interval needs")


def gains(claim: Claim, values: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float, float]]:
    """Per baseline the mean of the paired gains and its 95 % t-interval: (mean, low, high); above 0 is better."""
    from scipy import stats  # a second to import

    sign, found = 1 if claim.better == "higher" else -1, {}
    for name in claim.baseline:
        differences = [sign * (m - b) for m, b in zip(values[claim.method], values[name], strict=True)]
        mean, count = statistics.mean(differences), len(differences)
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * statistics.stdev(differences) / count**0.5
        found[name] = (mean, float(mean - reach), float(mean + reach))
    return found


def verdict(claim: Claim, values: Mapping[str, Sequence[float]]) -> str:
    """Says "shows", "does not show here" or "undecided"; see the module's docstring."""
    if len(values[claim.method]) < ENOUGH:
        return "undecided"
    return "shows" if all(low > 0 for _, low, _ in gains(claim, values).values()) else "does not show here"


class Runs:
    """Runs of an experiment's presets, each made once; presets that differ in `eval` alone share training.

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
        self.commit = commit()  # before a recorded row makes it dirty
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


def check_same(claim: Claim, row: Mapping[str, Any]) -> None:
    """Raises ValueError where a row's metric, direction, method or baseline is not the claim's."""
    for field in ("metric", "better", "method", "baseline"):
        now = [*claim.baseline] if field == "baseline" else getattr(claim, field)
        if row[field] != now:
            raise ValueError(f"{claim.id}: the recorded {field} is {row[field]!r}, but now it is {now!r}; measure anew")


def measure(runs: Runs, claim: Claim, seeds: Sequence[int], earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Runs every side of a claim and returns its row.

    Args:
      runs: of the claim's experiment.
      claim: what to measure.
      seeds: to run, all of them new.
      earlier: a row of the same claim (see `check_same`), whose seeds and values the new row begins with.

    Returns:
      A row for results/claims/NAME.jsonl: `seconds` and `commit` belong to the new runs, everything else to all seeds.
    """
    start, values = time.monotonic(), {}
    for preset in (*claim.baseline, claim.method):
        values[preset] = list(earlier["values"][preset]) if earlier else []
        for seed in seeds:
            values[preset].append(round(float(runs.metrics(preset, seed)[claim.metric]), 6))
            print(f"{preset:20} seed {seed}  {claim.metric} {values[preset][-1]:.4f}", flush=True)
    return {
        "id": claim.id,
        "experiment": claim.system or runs.name,
        "claim": claim.text,
        "seeds": [*(earlier["seeds"] if earlier else ()), *seeds],
        "metric": claim.metric,
        "better": claim.better,
        "method": claim.method,
        "baseline": list(claim.baseline),
        "values": values,
        "gains": {name: [round(x, 6) for x in gain] for name, gain in gains(claim, values).items()},
        "verdict": verdict(claim, values),
        "seconds": round(time.monotonic() - start),
        "commit": runs.commit,
    }


def table(row: Mapping[str, Any]) -> str:
    """A row for a terminal: mean and spread of every side, gains, verdict."""
    lines = [f"{row['id']}: {row['claim']}"]
    for preset, runs in row["values"].items():
        lines.append(f"  {preset:20} {row['metric']} {_spread(runs, 4)}  {runs}")
    lines += [f"  gain over {name}: {_interval(gain, 4)}" for name, gain in row["gains"].items()]
    return "\n".join([*lines, f"  {row['verdict']} ({len(row['seeds'])} seeds, {row['seconds']} s)"])


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table, a line for each baseline, and which of the seeds are for claims only."""
    if not rows:
        return "Not measured yet."
    lines = [
        "| claim | metric | method (mean ± sd) | baseline (mean ± sd) | gain, 95 % interval | seeds | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        digits = 4 if max(abs(x) for runs in row["values"].values() for x in runs) < 10 else 2
        side = {preset: f"`{preset}` {_spread(runs, digits)}" for preset, runs in row["values"].items()}
        start = (row["claim"], f"`{row['metric']}`, {row['better']} is better", side[row["method"]])
        end = (_ranges(row["seeds"]), row["verdict"])
        for name, gain in row["gains"].items():
            lines.append(f"| {' | '.join((*start, side[name], _interval(gain, digits), *end))} |")
            start, end = ("",) * len(start), ("",) * len(end)
    if any(seed < FIRST_SEED for row in rows for seed in row["seeds"]):
        lines += [
            "",
            f"Settings may have been chosen on seeds below {FIRST_SEED}; none was on seeds from {FIRST_SEED} on.",
        ]
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _interval(gain: Sequence[float], digits: int) -> str:
    mean, low, high = (f"{x:+.{digits}f}" for x in gain)
    return f"{mean} [{low}, {high}]"


def _ranges(seeds: Sequence[int]) -> str:
    """Numbers in words: "0 to 2, 1000"."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
