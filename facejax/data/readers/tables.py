"""CSV files with a header line. Errors name the file and the line."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Collection, Sequence

import numpy as np

from facejax.formats import texts

Row = tuple[str, dict[str, str]]


def read(path: str | os.PathLike[str], columns: Sequence[str]) -> list[Row]:
    """The lines after the header: the position of each ("scores.csv, line 2"), and its fields by column name.

    Args:
      path: path of the UTF-8 file.
      columns: required columns; the file may have others.

    Raises:
      ValueError: a column is missing, the table is empty, or a line differs from the header in its number of fields.
    """
    reader = csv.DictReader(io.StringIO(texts.read(path), newline=""))
    try:
        if missing := set(columns) - set(reader.fieldnames or ()):
            raise ValueError(f"{path}: no column {', '.join(sorted(missing))}: expected {', '.join(columns)}")
        rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num + 1}: no line of a CSV file: {error}") from error
    if not rows:
        raise ValueError(f"{path}: no lines after the header: expected one or more")
    for where, row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{where}: expected {len(reader.fieldnames)} fields, as in the header")
    return rows


def number(text: str, where: str, what: str) -> float:
    """Parses a finite number; the error message starts with `where` and `what`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {what} {text!r}: expected a finite number")
    return value


def numbers(path: str | os.PathLike[str], column: str, names: Sequence[str], known: Collection[str] = ()) -> np.ndarray:
    """Numbers [N] of N names, from a CSV with the columns name and `column`.

    Args:
      path: path of the file.
      column: column of the numbers.
      names: names to read; the file must contain each once.
      known: other names that the file may contain.

    Raises:
      ValueError: a name is unknown, duplicate or missing, or a number is not finite.
    """
    wanted, found = {*names, *known}, {}
    for where, row in read(path, ("name", column)):
        name = row["name"]
        if name not in wanted:
            raise ValueError(f"{where}: unknown image {name!r}: expected one such as {names[0]!r}")
        if name in found:
            raise ValueError(f"{where}: {name!r} occurs twice: expected one line per image")
        found[name] = number(row[column], where, column)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{path}: no line for {missing[0]!r}, one of {len(missing)} missing: expected all {len(names)} images"
        )
    return np.array([found[name] for name in names])
