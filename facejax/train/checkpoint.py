"""Checkpoints: the state, the position of the data iterator and the progress of the run, saved together by Orbax."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from facejax.train.state import RunError


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
      step: number of updates done.
      pending: sums and counts of the metrics since the last log entry.
      log_bytes: length of metrics.jsonl; a killed run may have written more, which is discarded on resume.
      evaluate: whether the evaluation at this step is still pending.
    """

    step: int = 0
    pending: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    log_bytes: int = 0
    evaluate: bool = False


class JsonHandler(ocp.CheckpointHandler):
    """Saves one small JSON value per process."""

    def save(self, directory: epath.Path, args: JsonSave) -> None:
        self._file(directory).write_text(json.dumps(args.item))

    def restore(self, directory: epath.Path, args: JsonRestore) -> Any:
        file = self._file(directory)
        if not file.exists():
            processes = jax.process_count()
            raise ValueError(f"{directory} was not saved by a run of {processes} processes: expected {file.name} in it")
        return json.loads(file.read_text())

    def _file(self, directory: epath.Path) -> epath.Path:
        return directory / f"process_{jax.process_index()}-of-{jax.process_count()}.json"


@ocp.args.register_with_handler(JsonHandler, for_save=True)
@dataclasses.dataclass
class JsonSave(ocp.args.CheckpointArgs):
    """The value to save."""

    item: Any


@ocp.args.register_with_handler(JsonHandler, for_restore=True)
@dataclasses.dataclass
class JsonRestore(ocp.args.CheckpointArgs):
    """Arguments to restore the value; there are none."""


class Checkpointer:
    """Saves and restores a run in `directory`, which it creates if missing.

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
        self.latest_started: int | None = self.latest

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, newest last."""
        return sorted(self._manager.all_steps())

    @property
    def newest(self) -> str:
        """Path of the newest complete checkpoint for messages; waits for a save in progress."""
        with contextlib.suppress(RunError):
            self.wait()
        steps = ocp.utils.checkpoint_steps(self._directory)
        return str(self._directory / str(max(steps))) if steps else "none: no step was saved"

    def due(self) -> bool:
        """Whether `min_seconds` have passed since the last save; always true on several hosts, whose clocks differ."""
        return jax.process_count() > 1 or time.monotonic() - self._saved_at >= self._min_seconds

    def save(self, state: Any, iterator: Any, progress: Progress) -> None:
        """Starts a save in the background; the state may be donated once this returns."""
        position = iterator.get_state() if hasattr(iterator, "get_state") else None
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), loop=JsonSave({"data": position, **dataclasses.asdict(progress)})
        )
        with self._explained():
            self._manager.save(progress.step, args=items, force=True)
        self.latest_started, self._saved_at = progress.step, time.monotonic()

    def restore(self, abstract: Any, iterator: Any = None, step: int | None = None) -> tuple[Any, Progress]:
        """State and progress at `step` (by default the newest); moves `iterator` to its saved position."""
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), loop=JsonRestore())
        restored = self._manager.restore(self.latest if step is None else step, args=items)
        loop = dict(restored.loop)
        position = loop.pop("data")
        if position is not None and hasattr(iterator, "set_state"):
            iterator.set_state(position)
        return restored.state, Progress(**loop)

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
            reason = str(error).split("[source locations")[0].strip().split("\n")[0]
            raise RunError(f"a checkpoint could not be written to {self._directory}: {reason}") from error
