"""Logs of a run: progress bar, TensorBoard event files and metrics.jsonl."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tqdm import tqdm

from facejax.formats import texts
from facejax.train.checkpoint import Progress

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class MetricsFile:
    """metrics.jsonl: one object per line, {"step": int, name: number, ...}, without times, so that equal runs agree.

    Args:
      path: the file; created if missing.
      length: bytes to keep; later bytes were written after the checkpoint from which the run resumes. A shorter file,
        which has lost entries, keeps its whole lines; a line on stderr reports it.
    """

    def __init__(self, path: pathlib.Path, length: int):
        self._file = path.open("a+b")
        size = self._file.seek(0, os.SEEK_END)
        if size < length:
            self._file.seek(0)
            kept = self._file.read().rfind(b"\n") + 1
            print(
                f"{path} has {size} bytes and had {length} at the checkpoint: its last entries are lost, "
                f"the first {kept} bytes are kept",
                file=sys.stderr,
            )
            length = kept
        self._file.truncate(length)
        self._file.seek(0, os.SEEK_END)  # truncate does not move the position, which `length` reports

    @property
    def length(self) -> int:
        return self._file.tell()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write((json.dumps({"step": step, **values}) + "\n").encode())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """All logged points in order; empty if the file does not exist. Raises ValueError for a damaged line."""
    points = []
    for number, line in enumerate(texts.read(path).splitlines() if path.exists() else (), 1):
        try:
            points.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not a point of a log: {error}") from error
    return points


class Logger:
    """Writes the logs of a run on process 0; does nothing on other processes.

    Args:
      workdir: folder for metrics.jsonl and TensorBoard files; None writes no files.
      progress: at which the run starts.
      steps: last step of the run.
      enabled: False prints nothing.
    """

    def __init__(self, workdir: pathlib.Path | None, progress: Progress, steps: int, enabled: bool = True):
        step = progress.step
        self._file = MetricsFile(workdir / "metrics.jsonl", progress.log_bytes) if workdir else None
        self._board = _event_writer(workdir / "tensorboard", step) if workdir else None
        self._terminal = enabled and sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True, disable=not self._terminal)
        self._lines = enabled and not self._terminal
        self._since, self._step, self._steps = time.monotonic(), step, steps

    @property
    def log_bytes(self) -> int:
        """Current length of metrics.jsonl, bytes."""
        return self._file.length if self._file else 0

    def advance(self, step: int) -> None:
        self._bar.update(step - self._bar.n)

    def train(self, step: int, values: Mapping[str, float], examples: int) -> None:
        """Logs means over the steps since the last call, which took so many examples, and the speed in samples/s."""
        now = time.monotonic()
        taken = max(now - self._since, 1e-9)
        speed, left = examples / taken, (self._steps - step) * taken / max(step - self._step, 1)
        self._since, self._step = now, step
        self._write(step, {f"train/{k}": v for k, v in values.items()}, {"speed/examples_per_second": speed})
        text = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        self._bar.set_postfix_str(f"{text}  {speed:.0f} samples/s", refresh=False)
        if self._lines:
            print(f"step {step}/{self._steps}  {text}  {speed:.0f} samples/s  {left:.0f} s left", flush=True)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of an evaluation after `step`; its time does not count in the training speed."""
        self._write(step, {f"eval/{k}": v for k, v in values.items()}, {})
        if self._lines or self._terminal:
            self._bar.clear()
            print(f"step {step}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
        self._since = time.monotonic()

    def stopped(self, step: int, *, saved: bool) -> None:
        """Says where a run that a signal ended goes on."""
        if self._lines or self._terminal:
            self._bar.clear()
            further = "the same command goes on from there" if saved else "nothing was saved"
            print(f"stopped after step {step}: {further}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()

    def _write(self, step: int, values: Mapping[str, float], times: Mapping[str, float]) -> None:
        if self._file:
            self._file.write(step, values)
            for name, value in {**values, **times}.items():
                self._board.add_scalar(name, value, step)


def _event_writer(folder: pathlib.Path, step: int) -> SummaryWriter:
    from tensorboardX import SummaryWriter  # slow: imports PyTorch if that is installed

    return SummaryWriter(str(folder), purge_step=step or None)
