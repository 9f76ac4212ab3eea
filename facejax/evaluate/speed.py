"""Time of a jitted function on the first device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


def milliseconds(run: Callable[..., Any], *arguments: Any, repeats: int = 10) -> float:
    """The shortest time of a call of `run`, compiled before, of `repeats` calls."""
    compiled = jax.jit(run)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)
