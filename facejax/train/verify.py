"""Verifies all checkpoints of a run, the best one included, against their digests.

python -m facejax.train.verify WORKDIR
"""

from __future__ import annotations

import pathlib
import sys

from facejax.train import checkpoint
from facejax.train.state import RunError


def verify(workdir: pathlib.Path) -> list[str]:
    """One sentence for every checkpoint that cannot be used; prints a line for every checkpoint.

    Raises:
      ValueError: there is no checkpoint.
    """
    directories, faults = (workdir / "checkpoints", workdir / "best"), []
    places = [(directory, step) for directory in directories for step in checkpoint.saved_steps(directory)]
    if not places:
        raise ValueError(f"{workdir} holds no checkpoint")
    for directory, step in places:
        try:
            saved = checkpoint.read(directory, step)
            print(f"{directory / str(step)} is intact: {len(saved.leaves)} arrays")
        except RunError as error:
            faults.append(str(error))
            print(error)
    return faults


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m facejax.train.verify WORKDIR")
    try:
        sys.exit(1 if verify(pathlib.Path(sys.argv[1])) else 0)
    except ValueError as error:
        sys.exit(f"verify: {error}")
