"""Exact search in a million embeddings, compared with faiss: `python -m benchmarks.search --rows 1000000`.

Random embeddings, queries near some of them. Contenders: faiss's flat index, which `facejax.analysis.index` uses; a
jitted product in float32 with the best of groups; and one in bfloat16, whose candidates are ranked again in float32.
Every row that its rounding could have put below the k-th best is among them, so that the result is exact. All run in
turns. On a busy machine neither time is that of a free one: threads that wait for each other spend processor time, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import faiss
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.ops.vectors import unit_rows

GROUP = 32
ERROR = 2 * 2.0**-8 + 1e-4
"""Largest error of a product of two unit vectors rounded to bfloat16, with room for the summation's."""


@jax.jit
def maxima(keys: jax.Array, queries: jax.Array) -> jax.Array:
    """Best product of each query [Q, D] with each group of GROUP rows of keys [N, D]: [N / GROUP, Q]."""
    products = lax.dot_general(keys, queries, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return products.reshape(-1, GROUP, len(queries)).max(1)


def search(keys: np.ndarray, scanned: jax.Array, queries: np.ndarray, k: int, error: float) -> np.ndarray:
    """Ids [Q, k] of the best rows; groups with a maximum within twice the error of the k-th best are ranked exactly."""
    best = np.asarray(maxima(scanned, jnp.asarray(queries, scanned.dtype)))
    bar = np.partition(best, len(best) - k, axis=0)[len(best) - k] - 2 * error
    found = np.empty((len(queries), k), np.int64)
    for i, query in enumerate(queries):
        groups = np.flatnonzero(best[:, i] >= bar[i])
        rows = (groups[:, None] * GROUP + np.arange(GROUP)).ravel()
        products = keys[rows] @ query
        top = np.argpartition(-products, k - 1)[:k]
        found[i] = rows[top[np.argsort(-products[top])]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="The nearest rows of a batch of queries.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    count = args.rows // GROUP * GROUP
    keys = unit_rows(rng.standard_normal((count, args.width), np.float32))
    queries = keys[rng.integers(0, count, args.queries)] + 0.05 * rng.standard_normal((args.queries, args.width))
    queries = unit_rows(queries, np.float32)
    flat = faiss.IndexFlatIP(args.width)
    flat.add(keys)
    full, half = jnp.asarray(keys), jnp.asarray(keys, jnp.bfloat16)
    contenders: dict[str, Callable[[], Any]] = {
        "faiss flat": lambda: flat.search(queries, args.k)[1],
        "jitted float32": lambda: search(keys, full, queries, args.k, 1e-5),
        "jitted bfloat16, ranked in float32": lambda: search(keys, half, queries, args.k, ERROR),
        "reading alone": lambda: np.dot(keys.ravel(), keys.ravel()),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    results = {}
    for _ in range(args.repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter(), time.process_time()
            results[name] = run()
            seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    square = rng.standard_normal((1024, 1024), np.float32)
    start = time.process_time()
    for _ in range(20):
        square @ square
    rate = 20 * 2 * 1024**3 / (time.process_time() - start)
    for name, times in seconds.items():
        wall, processor = np.array(times[1:]).min(0)
        same = np.mean(results[name] == results["faiss flat"]) if np.ndim(results[name]) == 2 else np.nan
        print(f"{name:36} elapsed {wall:.3f} s, processor {processor:.3f} s, ids as faiss {same:.4f}")
    work = 2 * count * args.width * args.queries
    print(f"products {work / 1e9:.1f} GFLOP: {work / rate:.3f} s of one core at NumPy's {rate / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
