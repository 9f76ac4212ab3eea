"""Checkpoints: the state, the position of the data iterator and the progress of the run, saved together by Orbax.

A checkpoint holds a digest of every leaf of the state, and of the small JSON record that stands beside the state.
Reading verifies all of them: a checkpoint is read with the numbers that were saved, or it is damaged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from facejax.train.state import RunError

PROGRAMS_IN_FLIGHT = 16


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
      step: number of updates done.
      pending: sums and counts of the metrics since the last log entry.
      log_bytes: length of metrics.jsonl; a killed run may have written more, which is discarded on resume.
      evaluate: whether the evaluation at this step is still pending.
      devices: number of devices that the state was laid out for.
      best: metric, value and step of the best evaluation before this step, see `Options.keep_best`.
      waited: evaluations since then.
    """

    step: int = 0
    pending: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    log_bytes: int = 0
    evaluate: bool = False
    devices: int = 1
    best: dict[str, Any] | None = None
    waited: int = 0


class DamagedError(RunError):
    """A checkpoint does not hold what was saved."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes:
      leaves: of the state, by their dotted names; random keys as their data.
      data: position of the data iterator.
      progress: of the run.
    """

    leaves: dict[str, np.ndarray]
    data: Any
    progress: Progress

    def state(self, abstract: Any) -> Any:
        """The state with the structure, shapes and shardings of `abstract`, on any number of devices.

        Leaves that are split over devices have padding rows, so that their rows divide evenly: the rows that the other
        number of devices does not need are cut; rows that it needs repeat the last one.

        Raises:
          ValueError: the checkpoint is of another state.
        """
        wanted = _named(abstract)
        if different := sorted(wanted.keys() ^ self.leaves.keys()):
            raise ValueError(f"checkpoint {self.progress.step} holds another state: {', '.join(different[:5])} differ")
        leaves = [self._leaf(name, like) for name, like in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def _leaf(self, name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
        array, is_key = self.leaves[name], jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
        if like.sharding.spec != P():
            array = self._repadded(array, like)
        if not is_key and (array.shape, array.dtype) != (like.shape, like.dtype):
            raise ValueError(
                f"checkpoint {self.progress.step} holds {name} as {array.dtype}{list(array.shape)}: "
                f"expected {like.dtype}{list(like.shape)}"
            )
        array = jax.make_array_from_callback(array.shape, like.sharding, lambda place: array[place])
        return jax.random.wrap_key_data(array) if is_key else array

    def _repadded(self, array: np.ndarray, like: jax.ShapeDtypeStruct) -> np.ndarray:
        if not array.ndim:
            return array
        rows, more = like.shape[0], like.shape[0] - len(array)
        if more >= like.sharding.mesh.size or -more >= self.progress.devices:
            return array  # more than padding: another number of classes
        return array[:rows] if more < 0 else np.concatenate([array, np.repeat(array[-1:], more, 0)])


def saved_steps(directory: pathlib.Path) -> list[int]:
    """Steps of all complete checkpoints, newest last."""
    return sorted(ocp.utils.checkpoint_steps(directory)) if directory.is_dir() else []


def read(directory: pathlib.Path, step: int) -> Saved:
    """The checkpoint of `step`.

    Raises:
      DamagedError: it is not as it was saved.
      RunError: it has the form of an earlier version, without digests.
    """
    folder = directory.absolute() / str(step)
    if any(folder.glob("loop/process_*")):
        raise RunError(f"{folder} was saved by an earlier version, whose checkpoints have no digests: start a new run")
    try:
        file = json.loads((folder / "loop" / "metadata").read_text())
        record = file["record"]
        if file["digest"] != zlib.crc32(json.dumps(record).encode()):
            raise ValueError("its record differs from what was saved")
        if record["progress"]["step"] != step:
            raise ValueError(f"it was saved as step {record['progress']['step']}")
        handler = ocp.PyTreeCheckpointHandler()
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder / "state"))
        leaves = _named(handler.restore(folder / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy)))
        if different := sorted(name for name, _ in digests(leaves).items() ^ record["digests"].items()):
            raise ValueError(f"{different[0]} differs from what was saved")
    except Exception as error:
        raise DamagedError(f"{folder} is damaged: {_first_line(error)}") from error
    return Saved(leaves, record["data"], Progress(**record["progress"]))


def newest_intact(directory: pathlib.Path) -> Saved | None:
    """The newest checkpoint that is not damaged, or None if there are none at all.

    Damaged ones that are newer are moved to the folder "damaged" beside `directory`, and named on stderr.

    Raises:
      DamagedError: all are damaged.
    """
    damaged = {}
    for step in reversed(saved_steps(directory)):
        try:
            saved = read(directory, step)
        except DamagedError as error:
            damaged[step] = error
            continue
        _set_aside(directory, damaged)
        return saved
    if damaged:
        raise DamagedError(f"no checkpoint is left to resume from: {'; '.join(map(str, damaged.values()))}")
    return None


def _set_aside(directory: pathlib.Path, damaged: dict[int, DamagedError]) -> None:
    if jax.process_index() == 0:
        for step, error in damaged.items():
            target = directory.parent / "damaged" / f"{step}-{time.time_ns()}"
            target.parent.mkdir(exist_ok=True)
            (directory / str(step)).rename(target)
            print(f"{error}; it is now {target}, an older one is used", file=sys.stderr)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")


def digests(leaves: dict[str, Any]) -> dict[str, str]:
    """Type, shape and a checksum of the bits of every leaf.

    Of more than 32 programs that wait on several CPU devices, one with a collective never ends: every thread of XLA's
    pool waits to queue a program, none is left to run the collective, and XLA aborts the process after a minute.
    """
    names, sums = list(leaves), {}
    for start in range(0, len(names), PROGRAMS_IN_FLIGHT):
        part = names[start : start + PROGRAMS_IN_FLIGHT]
        sums |= jax.block_until_ready({name: _checksum(leaves[name]) for name in part})
    sums = jax.device_get(sums)
    return {name: f"{x.dtype}{list(x.shape)} {sums[name]:08x}" for name, x in leaves.items()}


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """[] uint32, computed where the array is; it changes with every change of one word of at most 32 bits."""
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    words = lax.bitcast_convert_type(x, f"uint{min(8 * x.dtype.itemsize, 32)}").astype(jnp.uint32).ravel()
    return jnp.sum(_mixed(words ^ _mixed(jnp.arange(words.size, dtype=jnp.uint32))), dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every bit depends on all (lowbias32 of Wellons, "Hash Prospector")."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by dotted names, which are the same for a state and for what Orbax reads; keys as their data."""

    def data(x: Any) -> Any:
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): data(x) for path, x in leaves}


def _first_line(error: Exception) -> str:
    return str(error).split("[source locations")[0].strip().split("\n")[0] or type(error).__name__


class Checkpointer:
    """Saves a run in `directory`, which it creates if missing.

    Args:
      directory: contains one sub-folder per step.
      keep: number of checkpoints kept on disk.
      min_seconds: minimum time between two saves, seconds; see `due`.
    """

    def __init__(self, directory: pathlib.Path, keep: int = 2, min_seconds: float = 60.0):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._directory = directory.absolute()
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._min_seconds = min_seconds
        self._saved_at = time.monotonic()
        self.latest_started: int | None = self._manager.latest_step()

    @property
    def newest(self) -> str:
        """Path of the newest complete checkpoint for messages; waits for a save in progress."""
        with contextlib.suppress(RunError):
            self.wait()
        steps = saved_steps(self._directory)
        return str(self._directory / str(steps[-1])) if steps else "none: no step was saved"

    def due(self) -> bool:
        """Whether `min_seconds` have passed since the last save; always true on several hosts, whose clocks differ."""
        return jax.process_count() > 1 or time.monotonic() - self._saved_at >= self._min_seconds

    def save(self, state: Any, iterator: Any, progress: Progress) -> None:
        """Starts a save in the background; the state may be donated once this returns."""
        record = {
            "progress": dataclasses.asdict(progress),
            "data": iterator.get_state() if hasattr(iterator, "get_state") else None,
            "digests": digests(_named(state)),
        }
        file = {"record": record, "digest": zlib.crc32(json.dumps(record).encode())}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), loop=ocp.args.JsonSave(file))
        with self._explained():
            self._manager.save(progress.step, args=items, force=True)
        self.latest_started, self._saved_at = progress.step, time.monotonic()

    def wait(self) -> None:
        """Waits until all saves are on disk; raises their errors."""
        with self._explained():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for pending saves and closes the directory."""
        with self._explained():
            self._manager.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Converts errors of the storage library (full disk, missing folder) to a RunError with a short message."""
        try:
            yield
        except Exception as error:
            raise RunError(f"a checkpoint could not be written to {self._directory}: {_first_line(error)}") from error
