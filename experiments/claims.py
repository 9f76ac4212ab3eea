"""Measures a paper's claim and writes what was measured into the pages.

    python -m experiments.claims arcface                      # every claim of the experiment, on seeds 1000, 1001, ...
    python -m experiments.claims magface --id magface.templates --seeds 10
    python -m experiments.claims arcface --more 2             # two seeds more, beside those recorded
    python -m experiments.claims --pages                      # README.md's table and the pages of docs/systems

Each measurement appends a row to results/claims/NAME.jsonl; the last row of an id counts. Seeds from 1000 on are for
claims only: choose settings on others. Rows from before that rule hold seeds from 0 on, on some of which settings were
chosen; `--more` adds seeds from 1000 on to them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pathlib
import re
from typing import Any

from absl import logging

from experiments import __main__ as catalog
from facejax.train import claims
from facejax.train.claims import Claim

BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"


def pages() -> dict[pathlib.Path, str]:
    """What README.md and the pages of docs/systems say once the recorded numbers are in them.

    A page's heading names its experiments in backquotes; the numbers stand between `BEGIN` and `END`.

    Raises:
      ValueError: a page of an experiment lacks the two marks.
    """
    readme, heading = catalog.ROOT / "README.md", re.escape(catalog.markdown().split("\n")[0])
    written = {readme: re.sub(rf"{heading}\n(\|.*\n)+", lambda _: catalog.markdown() + "\n", readme.read_text())}
    for page in sorted((catalog.ROOT / "docs" / "systems").rglob("*.md")):
        text = page.read_text()
        names = re.findall(r"`([^`]+)`", "".join(re.findall(r"^# .*", text, re.MULTILINE)[:1]))
        systems = [system for system in catalog.SYSTEMS if system.experiment in names]
        if systems:
            if not re.search(f"{BEGIN}.*{END}", text, re.DOTALL):
                raise ValueError(f"{page}: expected {BEGIN} and, after it, {END}")
            numbers = f"{BEGIN}\n{claims.markdown([row for system in systems for row in system.claims()])}\n{END}"
            written[page] = re.sub(f"{BEGIN}.*{END}", lambda _, new=numbers: new, text, flags=re.DOTALL)
    return written


def main() -> None:
    """Reads the flags, measures, prints, records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = sorted({system.program.stem for system in catalog.SYSTEMS if system.program.exists()})
    parser.add_argument("name", nargs="?", metavar="NAME", choices=built, help="an experiment, such as arcface")
    parser.add_argument("--id", help="this claim alone")
    parser.add_argument("--seeds", type=int, help="runs of each side; default: the claim's own number")
    parser.add_argument("--more", type=int, help="runs of each side to add to the recorded ones")
    parser.add_argument("--no_record", action="store_true", help="write no row")
    parser.add_argument("--pages", action="store_true", help="write README.md's table and the pages of docs/systems")
    arguments = parser.parse_args()
    if not (arguments.name or arguments.pages):
        parser.error("expected NAME, --pages or both")
    if arguments.name:
        module = importlib.import_module(f"experiments.{arguments.name}")
        try:
            todo = plan(module.CLAIM, catalog.recorded(arguments.name), arguments.id, arguments.seeds, arguments.more)
        except ValueError as error:
            parser.error(str(error))
        logging.set_verbosity(logging.ERROR)
        runs = claims.Runs(arguments.name, module)
        for claim, seeds, earlier in todo:
            row = claims.measure(runs, claim, seeds, earlier)
            print(claims.table(row))
            if not arguments.no_record:
                record = catalog.record(arguments.name)
                record.parent.mkdir(parents=True, exist_ok=True)
                with record.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    if arguments.pages:
        for page, text in pages().items():
            page.write_text(text)


def plan(
    named: Claim | tuple[Claim, ...],
    recorded: dict[str, dict[str, Any]],
    only: str | None = None,
    count: int | None = None,
    more: int | None = None,
) -> list[tuple[Claim, range, dict[str, Any] | None]]:
    """What to run: claims with their seeds and the row that each goes on from.

    Args:
      named: the experiment's CLAIM.
      recorded: the last row of each id.
      only: the id of the one claim wanted; all of them where it is None.
      count: seeds of each; the claim's own number where it is None.
      more: seeds beside those recorded; None begins a row anew.

    Raises:
      ValueError: no such id, a number that is too small, or no recorded row of the same comparison to add to.
    """
    all_of_them = named if isinstance(named, tuple) else (named,)
    found = [claim for claim in all_of_them if only in (None, claim.id)]
    if not found:
        raise ValueError(f"no claim {only!r} in this experiment; claims: {', '.join(c.id for c in all_of_them)}")
    if more is None:
        found = [c if count is None else dataclasses.replace(c, seeds=count) for c in found]
        return [(c, range(claims.FIRST_SEED, claims.FIRST_SEED + c.seeds), None) for c in found]
    if more < 1 or count is not None:
        raise ValueError("--more takes a number above 0, and no --seeds beside it")
    todo = []
    for claim in found:
        if claim.id not in recorded:
            raise ValueError(f"{claim.id}: there is no recorded row; leave --more out")
        earlier = recorded[claim.id]
        claims.check_same(claim, earlier)
        first = max(claims.FIRST_SEED, max(earlier["seeds"]) + 1)
        todo.append((claim, range(first, first + more), earlier))
    return todo


if __name__ == "__main__":
    main()
