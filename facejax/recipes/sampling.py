"""`python -m experiments.NAME --sample WORKDIR --seeds 0-15 --out sheet.png`: images from a run's newest checkpoint."""

from __future__ import annotations

import argparse
import math
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from facejax.train import RunError, app, image_grid, warm_start

Sample = Callable[..., np.ndarray]
"""(config, state, seeds, **options) -> images uint8 [N, S, S, 3]."""


def main(
    name: str, get_config: app.GetConfig, build: app.Build, sample: Sample, options: Mapping[str, Any] | None = None
) -> None:
    """`app.main`; with --sample on the command line, writes a sheet instead.

    Args:
      name: of the experiment.
      get_config, build: of the experiment.
      sample: draws the images.
      options: further options of `sample` -> their defaults, whose types they have; "truncation" is --truncation.
    """
    if not any(re.fullmatch(r"--?sample(=.*)?", word) for word in sys.argv[1:]):
        app.main(get_config, build)
        return
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description="A sheet of samples.")
    parser.add_argument("--sample", metavar="WORKDIR", required=True, help="folder of a run; its newest checkpoint")
    parser.add_argument("--seeds", default="0-15", help='of the images, such as "0-15" or "3,8,100-103"')
    parser.add_argument("--out", default="sheet.png", help="file of the sheet")
    parser.add_argument("--columns", type=int, default=0, help="of the sheet; 0: as many as rows")
    for option, default in (options or {}).items():
        parser.add_argument(f"--{option}", type=type(default), default=default, help=f"default {default}")
    given = vars(parser.parse_args())
    folder, words, out, columns = (given.pop(key) for key in ("sample", "seeds", "out", "columns"))
    try:
        numbers = seeds(words)
        if columns < 0:
            raise ValueError(f"--columns is {columns}: expected 0 or more")
        for option, value in given.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"--{option} is {value}: expected a finite number")
        images, step = newest_images(name, build, sample, folder, numbers, **given)
        columns = columns or math.ceil(math.sqrt(len(images)))
        Image.fromarray(image_grid(images, columns)).save(out)
    except (RunError, ValueError, OSError) as error:
        sys.exit(f"experiments.{name}: {error}")
    print(f"{out}: {len(images)} images of step {step}, row by row in the order of --seeds")


def newest_images(
    name: str, build: app.Build, sample: Sample, workdir: str | pathlib.Path, numbers: Sequence[int], **options: Any
) -> tuple[np.ndarray, int]:
    """Images uint8 [N, S, S, 3] from the newest checkpoint of a run, and the checkpoint's step.

    Args:
      name, build, sample: as in `main`.
      workdir: of the run.
      numbers: N seeds.
      options: of `sample`.

    Raises:
      ValueError: the folder holds no run of this experiment, or a run without checkpoints.
    """
    folder = pathlib.Path(workdir)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json: expected the --workdir of a run")
    experiment, saved = warm_start.read_run(folder)
    if experiment.partition(":")[0] != name:
        raise ValueError(f"{folder} is a run of {experiment}: expected one of {name}")
    config = ConfigDict(saved)
    config.train.devices = 0
    state, step = warm_start.newest(folder, build(config))
    return sample(config, state, numbers, **options), step


def seeds(words: str) -> list[int]:
    """The numbers in "0-15" or "3,8,100-103". Raises ValueError for anything else."""
    numbers: list[int] = []
    for word in words.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ValueError(f'--seeds: {word!r} in {words!r}, expected numbers and ranges such as "3,8,100-103"')
        numbers.extend(range(first, last + 1))
    return numbers
