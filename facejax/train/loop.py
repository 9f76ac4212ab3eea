"""The training loop: steps, logs, evaluations and checkpoints, with exact resume after a kill at any moment.

A killed run that is restarted with the same command ends with bit-identical parameters and metrics.jsonl: a checkpoint
holds the state, the position of the data iterator, the metrics not yet logged, the length of metrics.jsonl, and whether
an evaluation is pending.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import math
import pathlib
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from facejax.train import checkpoint, parallel
from facejax.train.checkpoint import Checkpointer, Progress
from facejax.train.logging import Logger
from facejax.train.report import Report
from facejax.train.state import Experiment, Metrics, RunError

STEPS_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Options:
    """The `train` section of a configuration. Intervals are in steps; 0 means never.

    Attributes:
      batch_size: samples per step over all devices and hosts.
      steps: total number of updates.
      log_every, eval_every, save_every: steps from one to the next; the last step of a run always does all three.
      save_seconds: minimum time between two checkpoints, seconds.
      keep: number of checkpoints kept on disk.
      microbatches: slices per device batch for gradient accumulation.
      parallel: "shard_map" or "pmap".
      devices: number of visible devices to use; 0 uses all.
      on_bad: what an image that does not decode does: "error" ends the run; "skip" puts another of its batch in its
        place, and the log counts them as "replaced".
      keep_best: metric of the evaluation whose best state is kept in WORKDIR/best, beside the newest ones; a minus
        before its name: lower is better. Empty: none.
      patience: evaluations without a better value of that metric after which the run ends.
    """

    batch_size: int
    steps: int
    log_every: int = 50
    eval_every: int = 0
    save_every: int = 50
    save_seconds: float = 60.0
    keep: int = 2
    microbatches: int = 1
    parallel: str = "shard_map"
    devices: int = 0
    on_bad: str = "error"
    keep_best: str = ""
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "log_every", "save_every", "keep", "microbatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}: expected 1 or more")
        if self.on_bad not in ("error", "skip"):
            raise ValueError(f"train.on_bad is {self.on_bad!r}: expected 'error' or 'skip'")
        if self.keep_best and not self.eval_every:
            raise ValueError("train.keep_best compares evaluations: expected train.eval_every above 0")
        if self.patience < 0 or (self.patience and not self.keep_best):
            raise ValueError(f"train.patience is {self.patience}: expected 0, or more with a metric in train.keep_best")


class Window:
    """Metrics of the steps since the last log entry; they stay on the device until read, then add up in order."""

    def __init__(self, sums: dict[str, list[float]]):
        self.sums = sums
        self._waiting: deque[tuple[int, Metrics]] = deque()

    def add(self, step: int, metrics: Metrics) -> None:
        """Adds a step's metrics; waits so that only a few steps are queued on the device."""
        self._waiting.append((step, metrics))
        if len(self._waiting) > STEPS_IN_FLIGHT:
            jax.block_until_ready(self._waiting[-1 - STEPS_IN_FLIGHT][1])

    def drain(self) -> dict[str, list[float]]:
        """Sums and counts so far. Raises RunError at the first value that is not finite."""
        for step, metrics in jax.device_get(list(self._waiting)):
            for name, mean in metrics.items():
                if not math.isfinite(mean.total):
                    raise RunError(f"step {step}: {name} is {float(mean.total)}")
                total, count = self.sums.get(name, (0.0, 0.0))
                self.sums[name] = [total + float(mean.total), count + float(mean.count)]
        self._waiting.clear()
        return self.sums

    def means(self) -> dict[str, float]:
        """Returns the means and empties the window. Leaves out metrics with a count of zero."""
        means = {name: total / count for name, (total, count) in self.drain().items() if count}
        self.sums = {}
        return means


class Best:
    """The best evaluation of a run so far, by `Options.keep_best`.

    Attributes:
      record: metric, value and step of it; None before the first.
      waited: evaluations since then.
    """

    def __init__(self, options: Options, progress: Progress):
        self._metric, self._patience = options.keep_best, options.patience
        same = progress.best is not None and progress.best["metric"] == self._metric
        self.record, self.waited = (progress.best, progress.waited) if same else (None, 0)

    def is_new(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Counts an evaluation; whether it is the best so far. Raises ValueError if it lacks the metric."""
        if not self._metric:
            return False
        name = self._metric.removeprefix("-")
        if name not in metrics:
            raise ValueError(f"train.keep_best is {self._metric!r}: expected one of {', '.join(metrics)}")
        value, sign = float(metrics[name]), -1 if self._metric[0] == "-" else 1
        if math.isfinite(value) and (self.record is None or sign * value > sign * self.record["value"]):
            self.record, self.waited = {"metric": self._metric, "value": value, "step": step}, 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether the run has waited for a better one as long as it may."""
        return bool(self._patience) and self.waited >= self._patience


class Termination:
    """Handles SIGTERM, SIGHUP and SIGINT: the loop stops between steps, and at once while `interrupting`.

    The exit code is 128 plus the number of the signal. A second SIGINT (Ctrl-C) is a KeyboardInterrupt. Several
    processes agree on SIGTERM only, and leave the other signals as they are.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._interrupting = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        alone = jax.process_count() == 1
        watched = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT) if alone else (signal.SIGTERM,)
        before = {number: signal.signal(number, self._receive) for number in watched}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        self._interrupting = True
        try:
            if self.signal:
                raise self.exit()
            yield
        finally:
            self._interrupting = False

    def asked(self, step: int) -> bool:
        """Whether to stop after `step`; all hosts of a run agree."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signal is not None

    def exit(self) -> SystemExit:
        """The exception that ends the run; of hosts that were not signalled themselves, as for SIGTERM."""
        return SystemExit(128 + (self.signal or signal.SIGTERM))

    def _receive(self, number: int, _: Any) -> None:
        if number == self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        if self._interrupting:
            raise self.exit()


def train(
    experiment: Experiment, options: Options, *, seed: int, workdir: pathlib.Path | None = None, quiet: bool = False
) -> tuple[Any, Report]:
    """Trains until step `options.steps` and evaluates.

    Args:
      experiment: model, data and evaluation.
      options: number of steps, intervals and devices.
      seed: of the initial parameters and of all random draws in the steps.
      workdir: folder for checkpoints and logs; a run found there resumes. None saves nothing.
      quiet: suppresses the progress bar and all output.

    Returns:
      The final state, its replicated parts on this process's first device, and the report of the final evaluation.

    Raises:
      RunError: a value is not finite, a checkpoint could not be written or is damaged, or another run uses `workdir`.
      ValueError: the run in `workdir` has come further than `options.steps`, or data and experiment do not match.
    """
    termination = Termination()
    with termination.watching(), contextlib.ExitStack() as stack:
        if workdir is not None and jax.process_index() == 0:
            stack.enter_context(_locked(workdir))
        with termination.interrupting():
            executor = parallel.make_executor(experiment, options.parallel, options.devices)
            if options.batch_size % executor.num_devices:
                raise ValueError(
                    f"train.batch_size {options.batch_size} is not a multiple of the {executor.num_devices} devices"
                )
            saved, checkpointer = None, None
            if workdir is not None:
                check_steps(workdir, options.steps)
                saved = checkpoint.newest_intact(workdir / "checkpoints")
            start = experiment.prepare() if experiment.prepare and saved is None else None
            iterator = experiment.train_data() if experiment.train_data else itertools.repeat({})
            stack.callback(getattr(iterator, "close", lambda: None))
            skips = options.on_bad == "skip" and hasattr(iterator, "replace_bad")
            if skips:
                iterator.replace_bad()
            if workdir is not None:
                checkpointer = Checkpointer(workdir / "checkpoints", options.keep, options.save_seconds)
                stack.callback(_close, checkpointer)
            state, progress = _start(executor, experiment, seed, start, saved, iterator)
        main = jax.process_index() == 0
        logger = Logger(workdir if main else None, progress, options.steps, enabled=main and not quiet)
        stack.callback(logger.close)
        window, report, checked, examples = Window(progress.pending), None, set(), 0
        best = Best(options, progress)

        def save(step: int, evaluate: bool, wait: bool = False) -> None:
            if checkpointer is None:
                return
            pending = window.drain()
            if not parallel.all_finite(state):
                raise RunError(f"step {step}: the state contains values that are not finite")
            if checkpointer.latest_started != step:
                checkpointer.save(executor.canonical(state), iterator, reached(step, pending, evaluate))
            if wait:
                checkpointer.wait()

        def reached(step: int, pending: dict[str, list[float]], evaluate: bool) -> Progress:
            return Progress(step, pending, logger.log_bytes, evaluate, executor.num_devices, best.record, best.waited)

        def keep(step: int) -> None:
            """Saves the state in the folder of the best one; a resumed run finds it there."""
            directory = workdir / "best"
            if step not in checkpoint.saved_steps(directory):
                with contextlib.closing(Checkpointer(directory, 1)) as saver:
                    saver.save(executor.canonical(state), iterator, reached(step, {}, False))
                    saver.wait()

        def evaluate(step: int) -> Report:
            try:
                with termination.interrupting():
                    report = experiment.evaluate(executor.local(executor.canonical(state)))
            except SystemExit:
                save(step, evaluate=True, wait=True)
                raise
            logger.evaluation(step, report.metrics)
            if best.is_new(step, report.metrics) and workdir is not None:
                keep(step)
            return report

        try:
            if progress.evaluate:
                report = evaluate(progress.step)
            for done in range(progress.step + 1, options.steps + 1) if not best.exhausted else ():
                name = experiment.step_name(done)
                state, batch = executor.grow(state, done), next(iterator)
                if name not in checked:
                    _check_batch(batch, experiment.batch_of(name), jax.process_count())
                    checked.add(name)
                state, metrics = executor.step(state, executor.put(batch), name)
                window.add(done, metrics)
                examples += batch_examples(experiment.batch_of(name), options.batch_size)
                logger.advance(done)
                last = done == options.steps
                if last or done % options.log_every == 0:
                    counts = {"replaced": iterator.replaced} if skips else {}
                    logger.train(done, {**window.means(), **counts}, examples)
                    examples = 0
                due = last or bool(options.eval_every and done % options.eval_every == 0)
                stop = termination.asked(done) and not last
                timely = done % options.save_every == 0 and checkpointer is not None and checkpointer.due()
                if last or stop or timely or (due and options.patience):  # a run that patience ends is saved there
                    save(done, due, wait=stop or last)
                if stop:
                    raise termination.exit()
                report = evaluate(done) if due else report
                if best.exhausted:
                    logger.ended_early(done, best.record["step"] if best.record else 0)
                    break
            report = report or evaluate(options.steps)
        except SystemExit:
            logger.stopped(int(executor.local(state).step), saved=checkpointer is not None)
            raise
        except RunError as error:
            kept = f"the last good checkpoint is {checkpointer.newest}" if checkpointer else "no checkpoint was saved"
            raise RunError(f"{error}; {kept}") from error
        return executor.local(executor.canonical(state)), report


def check_steps(workdir: pathlib.Path, steps: int) -> None:
    """Raises ValueError if the run in `workdir` has come further than `steps`."""
    reached = max(checkpoint.saved_steps(workdir / "checkpoints"), default=0)
    if reached > steps:
        raise ValueError(f"{workdir} has come to step {reached}: expected train.steps of at least that, got {steps}")


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other runs out of `workdir`; the lock ends with the process, killed or not."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another run uses {workdir}: wait for its end or choose another --workdir") from error
        yield


def _close(checkpointer: Checkpointer) -> None:
    """Closes the folder; the wait before has already reported write errors."""
    with contextlib.suppress(RunError):
        checkpointer.close()


def _start(
    executor: parallel.ShardMapExecutor,
    experiment: Experiment,
    seed: int,
    start: Any,
    saved: checkpoint.Saved | None,
    iterator: Any,
) -> tuple[Any, Progress]:
    """The initial state: that of the checkpoint `saved` if there is one, else a new one from what was prepared."""
    if saved is None:
        return executor.init(seed, start), Progress()
    abstract = executor.abstract(experiment.abstract_state(saved.progress.step))
    state = executor.place(saved.state(abstract))
    if saved.data is not None:
        try:
            iterator.set_state(saved.data)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"checkpoint {saved.progress.step} holds the position of other data: {error!r}") from error
    return state, saved.progress


def batch_examples(batch: dict[str, jax.ShapeDtypeStruct], default: int) -> int:
    """Examples in a global batch; `default` for one without arrays."""
    return next((leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.shape), default)


def _check_batch(batch: dict[str, Any], shapes: dict[str, jax.ShapeDtypeStruct], processes: int) -> None:
    expected = {k: ((v.shape[0] // processes, *v.shape[1:]), v.dtype.name) for k, v in shapes.items()}
    given = {k: (tuple(v.shape), v.dtype.name) for k, v in batch.items()}
    if given != expected:
        raise ValueError(f"train_data yielded a batch of {given}: the experiment expects {expected}")
