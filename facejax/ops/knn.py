"""k nearest neighbours by cosine (exact in blocks, approximate, or by faiss) and their affinity graph."""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax

from facejax.ops import vectors
from facejax.ops.graph import Graph


class Neighbours(NamedTuple):
    """The k nearest neighbours of every row, including itself, nearest first.

    Attributes:
      ids: [N, k] int32.
      similarity: [N, k] float32 cosines in 0..1 (negative cosines become 0).
    """

    ids: np.ndarray
    similarity: np.ndarray


def knn(features: np.ndarray, k: int, *, method: str = "exact", block: int = 8192) -> Neighbours:
    """The k nearest rows of every row by cosine.

    Args:
      features: [N, D]; the function normalises the rows.
      k: number of neighbours, including the row itself.
      method: "exact"; "approximate" (`lax.approx_max_k`, recall 0.95: fast on a TPU); or "faiss" (its flat index).
      block: rows per block; memory is O(block^2 + N k).

    "exact" runs on the accelerator, or on a CPU with NumPy's BLAS, which uses the symmetry of the products.

    Raises:
      ValueError: k exceeds the number of rows, no rows, features that are not finite, or an unknown method.
    """
    features = vectors.unit_rows(features, np.float32)
    if not features.size:
        raise ValueError(f"features are {features.shape}: expected [N, D] with at least one row")
    count = len(features)
    if not 1 <= k <= count:
        raise ValueError(f"k is {k}: expected 1 to {count}, the number of rows")
    if method == "faiss":
        import faiss

        index = faiss.IndexFlatIP(features.shape[1])
        index.add(features)
        similarity, ids = index.search(features, k)
    elif method == "exact" and jax.default_backend() == "cpu":
        similarity, ids = _on_host(features, k, block)
    elif method in ("exact", "approximate"):
        found = nearest(jnp.asarray(features), k, exact=method == "exact", block=block)
        return Neighbours(*map(np.asarray, found))
    else:
        raise ValueError(f"method is {method!r}: expected exact, approximate or faiss")
    return itself_first(np.asarray(ids, np.int32), np.asarray(similarity))


def nearest(features: jax.Array, k: int, *, exact: bool = True, block: int = 8192) -> Neighbours:
    """`knn` for use inside jit, as JAX arrays.

    Args:
      features: [N, D] of unit length.
      k: number of neighbours, including the row itself; at most N.
      exact: False uses `lax.approx_max_k`.
      block: as in `knn`.
    """
    count = len(features)
    if not 1 <= k <= count:
        raise ValueError(f"k is {k}: expected 1 to {count}, the number of rows")
    similarity, ids = _blocks(features, k=k, size=min(block, -(-count // 32) * 32), exact=exact)
    return itself_first(ids, similarity)


def itself_first(ids: Any, similarity: Any) -> Neighbours:
    """Puts every row first in its own list, even if it ties with duplicates."""
    xp = jnp if isinstance(ids, jax.Array) else np
    rows = xp.arange(len(ids), dtype=np.int32)[:, None]
    place = xp.where((ids == rows).any(1), (ids == rows).argmax(1), ids.shape[1] - 1)[:, None]
    column = xp.arange(1, ids.shape[1])
    others = xp.where(column <= place, column - 1, column)
    similarity = xp.clip(xp.take_along_axis(similarity, others, 1), 0, 1)
    return Neighbours(
        xp.concatenate([rows, xp.take_along_axis(ids, others, 1)], 1),
        xp.concatenate([xp.ones_like(similarity, shape=rows.shape), similarity], 1),
    )


CROWD = 8
"""A row with this many times k candidates, as one of thousands of equal rows has, takes the best of all at once."""


def _on_host(features: np.ndarray, k: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and ids of the k best, [N, k]; sorts only candidates above a row's current k-th best."""
    starts = np.linspace(0, len(features), -(-len(features) // block) + 1).astype(int)
    parts = [slice(a, b) for a, b in itertools.pairwise(starts)]
    values, ids = np.full((len(features), k), -2, np.float32), np.zeros((len(features), k), np.int32)

    def offer(rows: slice, columns: slice, products: np.ndarray, bar: np.ndarray, axis: int) -> None:
        """Merges products [R, C] (axis 1) or [C, R] (axis 0) above the threshold [R] into the best of the rows."""
        better = products > np.expand_dims(bar, axis)
        crowded = np.flatnonzero(np.count_nonzero(better, axis) > max(CROWD * k, 256))
        for part in np.array_split(crowded, -(-len(crowded) // 512)) if len(crowded) else ():
            new = products[part] if axis else products[:, part].T
            pool = np.concatenate([values[rows][part], new], 1)
            best = np.argpartition(pool, pool.shape[1] - k, axis=1)[:, -k:]  # many times faster on ties than -pool
            kept = np.take_along_axis(ids[rows][part], np.minimum(best, k - 1), 1)
            ids[rows.start + part] = np.where(best < k, kept, columns.start + best - k)
            values[rows.start + part] = np.take_along_axis(pool, best, 1)
        better[crowded if axis else (slice(None), crowded)] = False
        above = np.flatnonzero(better)
        if not len(above):
            return
        place = np.unravel_index(above, products.shape)
        order = slice(None) if axis else np.argsort(place[1], kind="stable")
        row, column, value = place[1 - axis][order], place[axis][order], products.ravel()[above][order]
        found = np.bincount(row, minlength=len(bar))
        slot = k + np.arange(len(row)) - np.repeat(np.cumsum(found) - found, found)
        pool = np.full((len(bar), k + found.max()), -2, np.float32), np.zeros((len(bar), k + found.max()), np.int32)
        for kept, every, new in zip((values, ids), pool, (value, columns.start + column), strict=True):
            every[:, :k], every[row, slot] = kept[rows], new
        best = np.argpartition(-pool[0], k - 1, axis=1)[:, :k]
        values[rows], ids[rows] = (np.take_along_axis(x, best, 1) for x in pool)

    for part in parts:
        products = features[part] @ features[part].T
        offer(part, part, products, _floor(products, k), 1)
    with ThreadPoolExecutor(2) as threads:
        for i, rows in enumerate(parts):
            for columns in parts[i + 1 :]:
                products = features[rows] @ features[columns].T
                sides = ((rows, columns, 1), (columns, rows, 0))
                tasks = [threads.submit(offer, a, b, products, values[a].min(1), axis) for a, b, axis in sides]
                for task in tasks:
                    task.result()
    order = np.argsort(-values, axis=1)
    return np.take_along_axis(values, order, 1), np.take_along_axis(ids, order, 1)


def _floor(products: np.ndarray, k: int) -> np.ndarray:
    """Threshold [R] that at least k entries per row of [R, C] exceed: below the k-th largest of group maxima."""
    group = max(min(32, products.shape[1] // (2 * k)), 1)
    groups = products.shape[1] // group
    if groups < k:
        return np.full(len(products), -2, np.float32)
    maxima = products[:, : group * groups].reshape(len(products), group, groups).max(1)
    return np.nextafter(np.partition(maxima, groups - k, axis=1)[:, groups - k], np.float32(-2))


@functools.partial(jax.jit, static_argnames=("k", "size", "exact"))
def _blocks(features: jax.Array, *, k: int, size: int, exact: bool) -> tuple[jax.Array, jax.Array]:
    """Similarities and ids of the k best, [N, k], by blocks of rows and columns."""
    count, width = features.shape
    rows = jnp.pad(features, ((0, -count % size), (0, 0))).reshape(-1, size, width)
    top = _top if exact else lax.approx_max_k

    def block(queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        def merge(best: tuple[jax.Array, jax.Array], column: tuple[jax.Array, jax.Array]) -> Any:
            first, keys = column
            places = first + jnp.arange(size)
            found, index = top(jnp.where(places < count, queries @ keys.T, -2.0), min(k, size))
            values, order = lax.top_k(jnp.concatenate([best[0], found], 1), k)
            ids = jnp.concatenate([best[1], first + index.astype(jnp.int32)], 1)
            return (values, jnp.take_along_axis(ids, order, 1)), None

        start = jnp.full((size, k), -2.0), jnp.zeros((size, k), jnp.int32)
        return lax.scan(merge, start, (size * jnp.arange(len(rows)), rows))[0]

    values, ids = lax.map(block, rows)
    return values.reshape(-1, k)[:count], ids.reshape(-1, k)[:count]


def _top(products: jax.Array, k: int, group: int = 32) -> tuple[jax.Array, jax.Array]:
    """Exact top k of [R, C] in two stages: the k groups with the largest maxima contain the result."""
    rows, columns = products.shape
    if columns % group or columns // group <= k:
        return lax.top_k(products, k)
    grouped = products.reshape(rows, columns // group, group)
    _, groups = lax.top_k(grouped.max(2), k)
    candidates = jnp.take_along_axis(grouped, groups[:, :, None], 1).reshape(rows, k * group)
    values, place = lax.top_k(candidates, k)
    return values, jnp.take_along_axis(groups, place // group, 1) * group + place % group


def density(neighbours: Neighbours) -> np.ndarray:
    """Sum [N] of each row's cosines with its other neighbours."""
    return neighbours.similarity[:, 1:].sum(1)


def affinity(neighbours: Neighbours, min_similarity: float = 0.0) -> Graph:
    """The graph of the mean aggregator: row-stochastic D^-1 (max(A, A^T) + I), with A the cosines without diagonal.

    Args:
      neighbours: of N rows.
      min_similarity: edges with a smaller cosine are left out.
    """
    ids, similarity = neighbours
    count, k = ids.shape
    rows = np.repeat(np.arange(count, dtype=np.int32), k)
    keep = (similarity.ravel() >= min_similarity) & (rows != ids.ravel()) & (similarity.ravel() > 0)
    matrix = scipy.sparse.csr_matrix((similarity.ravel()[keep], (rows[keep], ids.ravel()[keep])), (count, count))
    matrix = (matrix.maximum(matrix.T) + scipy.sparse.identity(count, np.float32, "csr")).tocsr()
    matrix.sort_indices()
    degree = np.diff(matrix.indptr)
    weight = matrix.data / np.repeat(np.add.reduceat(matrix.data, matrix.indptr[:-1]), degree)
    return Graph(
        jnp.asarray(matrix.indices, jnp.int32),
        jnp.asarray(np.repeat(np.arange(count), degree), jnp.int32),
        jnp.asarray(weight, jnp.float32),
        count,
    )
