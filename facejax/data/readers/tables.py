"""Tables of one's own: CSV files with the names of their columns in the first line, read strictly."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Collection, Sequence

import numpy as np

Row = tuple[str, dict[str, str]]


def read(path: str | os.PathLike[str], columns: Sequence[str]) -> list[Row]:
    """The lines below the first: where each stands ("scores.csv, line 2"), and its fields by the names of the columns.

    Args:
      path: of the file, in UTF-8.
      columns: those that must be there; others may be.

    Raises:
      ValueError: a column is missing, no line is there, or one has fewer or more fields than the first; names it.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := set(columns) - set(reader.fieldnames or ()):
            raise ValueError(f"{path}: no column {', '.join(sorted(missing))}: expected {', '.join(columns)}")
        rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    if not rows:
        raise ValueError(f"{path} holds no line under the names of the columns: expected one or more")
    for where, row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{where}: expected {len(reader.fieldnames)} fields, as in the first line")
    return rows


def number(text: str, where: str, what: str) -> float:
    """A finite number; `where` and `what` go into the error."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {what} {text!r}: expected a finite number")
    return value


def numbers(path: str | os.PathLike[str], column: str, names: Sequence[str], known: Collection[str] = ()) -> np.ndarray:
    """A number for each of N names, [N], from a CSV with the columns name and `column`.

    Args:
      path: of the file.
      column: of the numbers.
      names: whose numbers are wanted; each must have a line.
      known: names that may have a line besides.

    Raises:
      ValueError: a name is unknown, there twice or missing, or a number is not finite; says which, and the line.
    """
    wanted, found = {*names, *known}, {}
    for where, row in read(path, ("name", column)):
        name = row["name"]
        if name not in wanted:
            raise ValueError(f"{where}: {name!r}: expected a known picture, such as {names[0]!r}")
        if name in found:
            raise ValueError(f"{where}: {name!r} is there twice: expected one line for each picture")
        found[name] = number(row[column], where, column)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{path}: no line for {missing[0]!r}, one of {len(missing)}: expected all {len(names)} pictures"
        )
    return np.array([found[name] for name in names])
