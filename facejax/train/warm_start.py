"""States that a run begins from or is evaluated with: checkpoints of a workdir, or an earlier stage trained here."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.formats import texts
from facejax.train import checkpoint, parallel
from facejax.train.loop import Options, train
from facejax.train.report import Report
from facejax.train.state import Experiment, TrainState

Build = Callable[[ConfigDict], Experiment]


def restore(workdir: str | os.PathLike[str], build: Build, expected: Mapping[str, Any]) -> TrainState:
    """The state of a finished run, as NumPy arrays.

    Args:
      workdir: of the run.
      build: of the run's experiment.
      expected: dotted field -> the value that the run's configuration must have, such as {"model.name": "iresnet50"}.

    Raises:
      ValueError: no run, another configuration, or a run that has not come to its last step.
    """
    folder = pathlib.Path(workdir)
    if not (folder / "config.json").exists():
        stage = f" of stage {expected['stage']!r}" if "stage" in expected else ""
        raise ValueError(f"{folder} holds no config.json: expected a finished run{stage}")
    config = ConfigDict(read_run(folder)[1])
    for field, wanted in expected.items():
        if (found := _field(config, field)) != wanted:
            raise ValueError(f"{folder} is a run with {field} {found!r}: expected {wanted!r}")
    config.train.devices = 0
    state, step = newest(folder, build(config))
    if step != config.train.steps:
        raise ValueError(f"{folder} has come to step {step}: expected the last, {config.train.steps}")
    return jax.tree.map(_to_numpy, state)


def read_run(folder: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """Name and configuration of a run, of its config.json. Raises ValueError for another file."""
    found = texts.read_json(folder / "config.json", dict)
    name, config = found.get("experiment"), found.get("config")
    if not isinstance(name, str) or not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'}: no experiment and no config, expected the file of a run")
    return name, config


def previous_stage(settings: ConfigDict, build: Build, workdir: str, same: Sequence[str]) -> TrainState:
    """What the previous stage of a paper left: read from its workdir, or trained now where that is "".

    Args:
      settings: of the previous stage; its field `stage` names it.
      build: of the experiment.
      workdir: of a finished run of that stage.
      same: dotted fields in which that run must agree with `settings`, besides `stage`.
    """
    if not workdir:
        return trained(settings, build)
    return restore(workdir, build, {field: _field(settings, field) for field in ("stage", *same)})


def newest(folder: pathlib.Path, experiment: Experiment, average: int = 1) -> tuple[TrainState, int]:
    """The newest checkpoint of a run, on all devices, and its step.

    Args:
      folder: the run's workdir.
      experiment: whose state it holds, built with `train.devices` 0.
      average: with more than 1, parameters (and their moving average, where one is kept) are the mean of as many
        newest checkpoints.

    Raises:
      ValueError: fewer checkpoints than asked for.
      RunError: one of them is damaged.
    """
    directory = folder / "checkpoints"
    steps = checkpoint.saved_steps(directory)[-average:]
    if not steps:
        raise ValueError(f"{folder} holds no checkpoint")
    if not 0 < average <= len(steps):
        raise ValueError(f"{folder} holds {len(steps)} checkpoints: expected {average} to average (see train.keep)")
    executor = parallel.make_executor(experiment, "shard_map")
    states = (checkpoint.read(directory, s).state(executor.abstract(experiment.abstract_state(s))) for s in steps)
    state = next(states)
    total = state.params
    for state in states:
        total = jax.tree.map(jnp.add, total, state.params)
    if average > 1:
        mean = jax.tree.map(lambda x: x / average, total)
        state = state.replace(params=mean, ema=None if state.ema is None else mean)
    return executor.local(state), steps[-1]


def trained(config: ConfigDict, build: Build) -> TrainState:
    """The final state of a run, trained now without a workdir or an evaluation, as NumPy arrays; kept in memory."""
    return _trained(config.to_json_best_effort(sort_keys=True), build)


@functools.lru_cache(maxsize=8)
def _trained(settings: str, build: Build) -> TrainState:
    config = ConfigDict(json.loads(settings))
    experiment = dataclasses.replace(build(config), evaluate=lambda state: Report({}))
    state, _ = train(experiment, Options(**config.train), seed=config.seed, quiet=True)
    return jax.tree.map(_to_numpy, state)


def taken(start: Any, made: Any) -> Any:
    """`start` in place of `made`, where there is one; both must have the same structure and shapes.

    Args:
      start: what `Experiment.prepare` gave, or a part of it; None in a dry run.
      made: freshly initialised variables.
    """
    if start is None:
        return made
    chex.assert_trees_all_equal_shapes(start, made)
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), start, made)


def _field(config: ConfigDict, field: str) -> Any:
    return functools.reduce(lambda section, name: section.get(name, ConfigDict()), field.split("."), config)


def _to_numpy(x: Any) -> Any:
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)
