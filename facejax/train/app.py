"""`python -m experiments.NAME`: presets, overrides and flags.

Only this module reads flags. An experiment's file defines a dict PRESETS and ends with `app.main(get_config, build)`;
`run` is the same from Python, for notebooks, claims and tests.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

import jax
import numpy as np
from absl import app as absl_app
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from facejax.train import parallel, warm_start
from facejax.train.dry_run import describe, dry_run
from facejax.train.help import attribute_meanings, describe_fields, field_meanings
from facejax.train.logging import read_metrics
from facejax.train.loop import Options, check_steps, train
from facejax.train.report import Report, circumstances, write_html
from facejax.train.state import Experiment, RunError

T = TypeVar("T")
GetConfig = Callable[[str], ConfigDict]
Build = Callable[[ConfigDict], Experiment]

MAY_CHANGE = (
    r"train\.(steps|log_every|eval_every|save_every|save_seconds|keep|parallel|devices|on_bad|keep_best|patience)",
    r"data\.(workers|threads|data_dir)",
    r"eval\..*",
)


def preset(base: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]], name: str) -> ConfigDict:
    """The configuration of a preset: `base` updated with the preset's dotted or nested fields.

    Args:
      base: every field with its default; nested dicts are sections.
      presets: name -> changes, such as {"loss.margin": 0.5, "optim.schedule": {"peak": 0.1}}.
      name: the preset wanted.

    Raises:
      ValueError: unknown preset, or a preset that sets a field missing from `base`.
    """
    if name not in presets:
        raise ValueError(f"no preset {name!r}{_nearest(name, presets)}; presets: {', '.join(presets)}")
    config = ConfigDict(base)
    config.lock()
    for field, value in _flatten(presets[name]):
        try:
            with config.ignore_type():
                config.update_from_flattened_dict({field: value})
        except (KeyError, AttributeError) as error:
            raise ValueError(f"preset {name!r} sets {field!r}, which is not in the base configuration") from error
    return config


def section(kind: type[T], config: Mapping[str, Any]) -> T:
    """Makes a dataclass from a configuration section; ignores fields of the section that the class does not have."""
    return kind(**{field.name: config[field.name] for field in dataclasses.fields(kind)})


def with_classes(config: ConfigDict, count: Callable[[], int]) -> ConfigDict:
    """`config`; where `data.classes` is 0, a copy with the number that `count` finds in the data, which is printed."""
    if config.data.classes:
        return config
    config = config.copy_and_resolve_references()
    config.data.classes = count()
    print(f"data.classes: {config.data.classes}, counted in the data", flush=True)
    return config


def main(get_config: GetConfig, build: Build) -> None:
    """Runs an experiment from the command line."""
    module = sys.modules[get_config.__module__]
    name = getattr(module.__spec__, "name", "experiment").rpartition(".")[2]
    argv, choice = _take_config(sys.argv)
    try:
        get_config, presets, chosen = _resolve(get_config, module.PRESETS, choice)
        config = get_config(chosen)
        _check_overrides(argv, config)
    except (ValueError, OSError) as error:
        sys.exit(f"experiments.{name}: {error}")
    sys.argv = argv
    config_flag = config_flags.DEFINE_config_dict("config", config, lock_config=True)
    workdir = flags.DEFINE_string(
        "workdir",
        f"runs/{name}/{chosen}",
        "Folder for checkpoints, logs and report.html; a run found there resumes. Empty saves nothing.",
    )
    dry = flags.DEFINE_bool("dry_run", False, "Print the preset's parameters, memory and operations, then exit.")
    check = flags.DEFINE_bool("check_data", False, "Decode all images, list those that do not, then exit.")
    eval_only = flags.DEFINE_bool("eval_only", False, "Evaluate the newest checkpoint of --workdir, then exit.")
    best = flags.DEFINE_bool("best", False, "With --eval_only: evaluate the best state, which train.keep_best kept.")
    average = flags.DEFINE_integer(
        "average", 1, "With --eval_only: average the parameters of this many newest checkpoints."
    )
    seeds = flags.DEFINE_integer("seeds", 0, "Run this many seeds, each in its own folder, and print mean and spread.")
    arrays = flags.DEFINE_string(
        "save_arrays", None, "Folder for the evaluation's arrays (embeddings, ...) as .npy files; labels as text, too."
    )
    debug = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    coordinator = flags.DEFINE_string("coordinator", None, "Multi-host: host:port of process 0, or 'auto'.")
    processes = flags.DEFINE_integer("num_processes", None, "Multi-host: number of processes.")
    process = flags.DEFINE_integer("process_id", None, "Multi-host: index of this process, from 0.")
    usage = f"{module.__doc__ or name}\npresets (--config=PRESET): {', '.join(presets)}\n"
    if any(re.fullmatch(r"--?(help\w*|\?)", word) for word in argv):
        usage += f"\nflags:{flags.FLAGS.module_help(__name__).partition(':')[2]}\n"
        usage += _fields_help(chosen, config, module, get_config)

    def start(words: Sequence[str]) -> None:
        logging.set_verbosity(logging.INFO if debug.value else logging.ERROR)  # Orbax logs every detail at INFO
        try:
            if len(words) > 1:
                raise ValueError(f"unexpected word {words[1]!r}: expected flags, such as --config=PRESET (see --help)")
            if coordinator.value:
                parallel.initialize(coordinator.value, processes.value, process.value)
            if dry.value:
                if (experiment := build(config_flag.value)).train_step is None:
                    raise ValueError("--dry_run: this preset trains nothing: expected one that does")
                print(describe(dry_run(experiment, Options(**config_flag.value.train))))
                return
            if check.value:
                check_data(build(config_flag.value))
                return
            options = {
                "name": f"{name}:{chosen}",
                "workdir": workdir.value or None,
                "eval_only": eval_only.value,
                "average": average.value,
                "best": best.value,
                "save_arrays": arrays.value,
                "about": (module.__doc__ or "").partition("\n")[0],
            }
            if seeds.value:
                run_seeds(config_flag.value, build, seeds.value, **options)
            else:
                run(config_flag.value, build, **options)
        except (RunError, ValueError, OSError) as error:
            if debug.value:
                raise
            sys.exit(f"experiments.{name}: {_sentence(error)}")

    sys.modules["__main__"].__doc__ = usage.replace("%", "%%")  # absl applies % formatting to it
    absl_app.run(start, argv)


def check_data(experiment: Experiment) -> None:
    """Decodes all images of training and of the test, and prints a line for each that is bad.

    Raises:
      ValueError: there are bad images, or the experiment trains on no image files.
    """
    data = experiment.train_data() if experiment.train_data else None
    count, flaws = data.check_images() if hasattr(data, "check_images") else (0, [])
    if not count:
        raise ValueError("--check_data: this preset reads no image files: expected one that does")
    print("".join(f"{flaw}\n" for flaw in flaws), end="")
    if flaws:
        raise ValueError(f"{len(flaws)} of {count} images are bad (--config.train.on_bad=skip trains without them)")
    print(f"all {count} images decode")


def run(
    config: ConfigDict,
    build: Build,
    *,
    name: str = "experiment",
    workdir: str | os.PathLike[str] | None = None,
    eval_only: bool = False,
    average: int = 1,
    best: bool = False,
    save_arrays: str | os.PathLike[str] | None = None,
    about: str = "",
    quiet: bool = False,
) -> tuple[Any, Report]:
    """Builds, trains and evaluates the experiment of `config`.

    Args:
      config: from the experiment's `get_config`.
      build: the experiment's `build`.
      name: heading of the report; a workdir must belong to a run of this name.
      workdir: folder for checkpoints, logs and the report; a run found there resumes if its configuration agrees.
      eval_only: evaluates the newest checkpoint in `workdir` (or the weights that the experiment loads) on all visible
        devices, whatever `train.devices` is.
      average: with `eval_only`, number of newest checkpoints whose parameters are averaged (at most `train.keep`).
      best: with `eval_only`, the state of the best evaluation instead of the newest checkpoint.
      save_arrays: folder for the evaluation's arrays.
      quiet: prints nothing.

    Returns:
      The final state (None for a method without training) and the final report.
    """
    began = time.monotonic()
    if average != 1 and not eval_only:
        raise ValueError(f"--average={average}: expected --eval_only beside it, training averages no checkpoints")
    if best and not (eval_only and average == 1 and workdir is not None):
        raise ValueError("--best: expected --eval_only and a --workdir beside it, and no --average")
    folder = None if workdir is None else _open_workdir(pathlib.Path(workdir), name, config, read_only=eval_only)
    experiment = build(_on_all_devices(config) if eval_only else config)
    if experiment.train_step is None:
        state, report = None, experiment.evaluate(None)
    elif eval_only:
        state = _newest_state(experiment, config.seed, folder, average, "best" if best else "checkpoints")
        report = experiment.evaluate(state)
    else:
        state, report = train(experiment, Options(**config.train), seed=config.seed, workdir=folder, quiet=quiet)
    if jax.process_index() == 0:
        run_of = circumstances(state, time.monotonic() - began)
        _finish(report, name, about, config, folder, save_arrays, quiet, run_of)
    return state, report


def run_seeds(
    config: ConfigDict,
    build: Build,
    count: int,
    *,
    workdir: str | os.PathLike[str] | None = None,
    save_arrays: str | os.PathLike[str] | None = None,
    **options: Any,
) -> dict[str, list[float]]:
    """Runs `config` with `count` consecutive seeds, starting at its own, and prints every metric's mean and spread.

    Where the seed selects a fold of the data, one seed per fold gives a cross-validation.

    Args:
      config, build: as in `run`.
      count: number of runs; each uses a folder seed0, seed1, ... of `workdir` and of `save_arrays`.
      workdir, save_arrays, **options: as in `run`.

    Returns:
      name of a metric -> its values in the order of the seeds.
    """
    if count < 1:
        raise ValueError(f"--seeds={count}: expected 1 or more")
    values: dict[str, list[float]] = {}
    for seed in range(config.seed, config.seed + count):
        one = config.copy_and_resolve_references()
        one.seed = seed
        places = {"workdir": workdir, "save_arrays": save_arrays}
        places = {key: place and pathlib.Path(place) / f"seed{seed}" for key, place in places.items()}
        for name, value in run(one, build, **places, **options)[1].metrics.items():
            values.setdefault(name, []).append(float(value))
    width = max(map(len, values))
    for name, found in values.items():
        print(
            f"{name:{width}}  {np.mean(found):.4f} +- {np.std(found, ddof=min(1, count - 1)):.4f}  ({len(found)} seeds)"
        )
    return values


def _finish(
    report: Report,
    name: str,
    about: str,
    config: ConfigDict,
    folder: pathlib.Path | None,
    save_arrays: str | os.PathLike[str] | None,
    quiet: bool,
    run_of: Mapping[str, Any],
) -> None:
    if save_arrays is not None:
        target = pathlib.Path(save_arrays)
        target.mkdir(parents=True, exist_ok=True)
        for key, array in report.arrays.items():
            np.save(target / f"{key}.npy", array)
            if np.ndim(array) == 1 and array.dtype.kind in "iuU":
                (target / f"{key}.txt").write_text("".join(f"{value}\n" for value in array), encoding="utf-8")
    if not quiet:
        width = max(map(len, report.metrics))
        print("\n".join(f"{key:{width}}  {value:.4f}" for key, value in report.metrics.items()))
        print("".join(f"{name}: {text}.\n" for name, text in report.notes.items()), end="")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / "report.html"
        write_html(page, name, report, read_metrics(folder / "metrics.jsonl"), str(config), about, run_of)
        if not quiet:
            print(f"report: {page}")


def _on_all_devices(config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    if "train" in config:
        config.train.devices = 0
    return config


def _newest_state(experiment: Experiment, seed: int, folder: pathlib.Path | None, average: int, directory: str) -> Any:
    """The newest checkpoint of `folder`; without a folder a new state, for experiments that load weights."""
    if folder is None:
        executor = parallel.make_executor(experiment, "shard_map")
        start = experiment.prepare() if experiment.prepare else None
        return executor.local(executor.init(seed, start))
    if not (folder / directory).is_dir():
        raise ValueError(
            f"--eval_only: {folder / directory} holds no checkpoint (an empty --workdir= evaluates the weights in "
            "eval.weights)"
        )
    try:
        return warm_start.newest(folder, experiment, average, directory)[0]
    except ValueError as error:
        raise ValueError(f"--eval_only --average={average}: {error}") from error


def _open_workdir(folder: pathlib.Path, name: str, config: ConfigDict, read_only: bool) -> pathlib.Path:
    """Creates the folder or checks that it belongs to this run, and writes config.json."""
    file = folder / "config.json"
    ours = {"experiment": name, "config": json.loads(config.to_json_best_effort())}
    if file.exists():
        experiment, theirs = warm_start.read_run(folder)
        if experiment.partition(":")[0] != name.partition(":")[0]:
            raise ValueError(f"{folder} is a run of {experiment}, not of {name}: choose another --workdir")
        _compare(folder, dict(_flatten(theirs)), dict(_flatten(ours["config"])))
        if not read_only and "train" in config:
            check_steps(folder, config.train.steps)
    elif folder.is_dir() and any(folder.iterdir()) and not read_only:
        raise ValueError(f"{folder} holds files but no config.json: choose another --workdir")
    if not read_only and jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(ours, indent=2) + "\n")
        temporary.replace(file)
    return folder


def _compare(folder: pathlib.Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    fields = [f for f in {**theirs, **ours} if theirs.get(f) != ours.get(f)]
    fields = [f for f in fields if not any(re.fullmatch(pattern, f) for pattern in MAY_CHANGE)]
    if fields:
        changes = ", ".join(f"{f} was {theirs.get(f)!r} and is {ours.get(f)!r}" for f in fields)
        raise ValueError(f"{folder} was started with another configuration ({changes}): choose another --workdir")


def _take_config(argv: Sequence[str]) -> tuple[list[str], str]:
    """Splits `--config=X` or `--config X` from a command line; overrides (`--config.a.b=v`) remain."""
    rest, choice, words = [], "", iter(argv)
    for word in words:
        if re.fullmatch(r"--?config(=.*)?", word):
            choice = word.partition("=")[2] if "=" in word else next(words, "")
        else:
            rest.append(word)
    return rest, choice


def _resolve(
    get_config: GetConfig, presets: Mapping[str, Any], choice: str
) -> tuple[GetConfig, Mapping[str, Any], str]:
    """The configuration function and preset that `--config` names: PRESET, FILE.py or FILE.py:PRESET."""
    match = re.fullmatch(r"(.+\.py)(?::(.*))?", choice)
    if match:
        file = pathlib.Path(match[1])
        if not file.is_file():
            raise ValueError(f"--config: there is no file {file}")
        spec = importlib.util.spec_from_file_location("config_file", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        get_config, presets, choice = module.get_config, getattr(module, "PRESETS", presets), match[2] or ""
    return get_config, presets, choice or next(iter(presets))


def _fields_help(chosen: str, config: ConfigDict, module: ModuleType, get_config: GetConfig) -> str:
    """All fields of a preset; their meanings come from the source of the experiment and of a --config=FILE.py."""
    meanings = {f"train.{field}": text for field, text in attribute_meanings(Options).items()}
    meanings |= field_meanings(vars(module)) | field_meanings(get_config.__globals__)
    lines = describe_fields(_flatten(config), meanings)
    return f"\nfields (--config.FIELD=VALUE) and their defaults in the preset {chosen}:\n{lines}\n"


def _check_overrides(argv: Sequence[str], config: ConfigDict) -> None:
    names = [name for name, _ in _flatten(config)]
    for word in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", word)
        if match and match[1] not in names:
            raise ValueError(
                f"unknown field --config.{match[1]}{_nearest(match[1], names)}; fields: {', '.join(names)}"
            )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in config.items():
        nested = isinstance(value, Mapping | ConfigDict) and len(value)
        pairs += _flatten(value, f"{prefix}{key}.") if nested else [(prefix + key, value)]
    return pairs


def _nearest(word: str, words: Any) -> str:
    close = difflib.get_close_matches(word, list(words), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _sentence(error: BaseException) -> str:
    return str(error) or type(error).__name__
