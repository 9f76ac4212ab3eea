"""Compares the time and memory of several implementations in one process.

    results = compare({"torch": lambda: net(x), "facejax": lambda: apply(variables, x)}, unit="images", amount=64)

The contenders alternate, and each round starts with the next one, so that a slowdown of the machine affects all.
`compare` blocks on JAX results; a contender that uses a GPU through another framework must synchronise itself.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

MIB = 2**20


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
    contenders: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 5,
    warmup: int = 1,
    unit: str = "",
    amount: float = 0.0,
) -> dict[str, Result]:
    """Runs the contenders and prints one line for each: median and minimum time, ratio, memory, throughput.

    Args:
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
    width = max(map(len, names))
    for name, result in results.items():
        line = (
            f"{name:{width}}  median {1e3 * result.median:10.2f} ms  min {1e3 * min(result.seconds):10.2f} ms  "
            f"{result.ratio:6.2f} x  +{result.memory / MIB:.0f} MiB"
        )
        print(line + (f"  {amount / result.median:.1f} {unit}/s" if amount else ""), flush=True)
    return results


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
