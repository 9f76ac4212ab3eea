"""Compares the time and memory of several implementations in one process.

    results = compare("my net, 64 images", {"torch": lambda: net(x), "facejax": lambda: apply(v, x)}, unit="images",
                      amount=64)

The contenders alternate, and each round starts with the next one, so that a slowdown of the machine affects all.
`compare` blocks on JAX results; a contender that uses a GPU through another framework must synchronise itself.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

MIB = 2**20
JOURNAL = "FACEJAX_BENCHMARKS"
"""Environment variable: the file to which `record` appends."""
PEERS = ("torch", "torch_geometric", "onnxruntime", "faiss-cpu", "scipy", "numpy")
"""Packages whose versions are recorded where they are in use."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One contender's measurements.

    Attributes:
      seconds: of each timed run, in order.
      memory: peak growth of the process's resident memory during a separate, untimed run, bytes. It does not include
        memory that the allocator holds from an earlier run.
      ratio: speed relative to the first contender, by medians.
    """

    seconds: tuple[float, ...]
    memory: int
    ratio: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def compare(
    work: str,
    contenders: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 5,
    warmup: int = 1,
    unit: str = "",
    amount: float = 0.0,
) -> dict[str, Result]:
    """Runs the contenders and prints one line for each: median and minimum time, ratio, memory, throughput.

    Args:
      work: what all of them do, with its sizes.
      contenders: name -> call without arguments; the first is the reference of the ratios.
      repeats: number of timed runs of each.
      warmup: number of untimed runs before, which compile and fill caches.
      unit, amount: work of one run, such as 64 "images"; adds the throughput to the line.

    Returns:
      name -> Result.
    """
    if not contenders or repeats < 1:
        raise ValueError(f"{len(contenders)} contenders, {repeats} repeats; expected one or more of each")
    names = list(contenders)
    for name in names:
        for _ in range(warmup):
            jax.block_until_ready(contenders[name]())
    memory = {name: peak_memory(contenders[name]) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            jax.block_until_ready(contenders[name]())
            seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds[names[0]])
    results = {n: Result(tuple(seconds[n]), memory[n], base / statistics.median(seconds[n])) for n in names}
    record(work, seconds)
    width = max(map(len, names))
    for name, result in results.items():
        line = (
            f"{name:{width}}  median {1e3 * result.median:10.2f} ms  min {1e3 * min(result.seconds):10.2f} ms  "
            f"{result.ratio:6.2f} x  +{result.memory / MIB:.0f} MiB"
        )
        print(line + (f"  {amount / result.median:.1f} {unit}/s" if amount else ""), flush=True)
    return results


def record(work: str, seconds: Mapping[str, Sequence[float]], ours: str = "facejax") -> None:
    """Appends a run to the file that `JOURNAL` names, as a line of JSON; does nothing without it.

    Args:
      work: what was done, with its sizes.
      seconds: contender -> seconds of each timed run.
      ours: the contender that is compared with the others.
    """
    if JOURNAL not in os.environ:
        return
    used = [name for name in PEERS if name.split("-")[0] in sys.modules]
    row = {
        "benchmark": pathlib.Path(sys.argv[0]).stem,
        "work": work,
        "ours": ours,
        "seconds": {name: [round(value, 6) for value in values] for name, values in seconds.items()},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "threads": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", *used)},
    }
    with open(os.environ[JOURNAL], "a") as file:
        file.write(json.dumps(row) + "\n")


def peak_memory(call: Callable[[], Any]) -> int:
    """Peak growth of this process's resident memory during one run, bytes; polled every 2 ms, on Linux."""
    before, done = _resident(), threading.Event()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        jax.block_until_ready(call())
        peak = max(peak, _resident())
    finally:
        done.set()
        watcher.join()
    return peak - before


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
