"""k nearest neighbours by cosine: exact in blocks, approximate, or by faiss; and the affinity graph that they make."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax

from facejax.ops import segment


class Neighbours(NamedTuple):
    """The k nearest of every row, itself included, nearest first.

    Attributes:
      ids: [N, k] int32.
      similarity: [N, k] float32 cosines, 0 to 1 (a negative cosine is 0).
    """

    ids: np.ndarray
    similarity: np.ndarray


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, [N, D] float32; a row of zeros stays.

    Raises:
      ValueError: not two-dimensional, no rows, or values that are not finite.
    """
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"features are {features.shape}: expected [N, D] with at least one row")
    length = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(length).all():
        raise ValueError(f"features: row {int(np.argmin(np.isfinite(length)))} is not finite")
    return features / np.where(length > 0, length, 1)


def knn(features: np.ndarray, k: int, *, method: str = "exact", block: int = 8192) -> Neighbours:
    """The k nearest rows of every row by cosine.

    Args:
      features: [N, D]; rows are normalised here.
      k: neighbours, the row itself being one of them.
      method: "exact"; "approximate" (`lax.approx_max_k`, recall 0.95: fast on a TPU); or "faiss" (its flat index).
      block: rows at a time; memory is O(block^2 + N k).

    Raises:
      ValueError: k beyond the rows, features that are not finite, a method that does not exist.
    """
    features = unit(features)
    count = len(features)
    if not 1 <= k <= count:
        raise ValueError(f"k is {k}: expected 1 to {count}, the number of rows")
    if method == "faiss":
        import faiss

        index = faiss.IndexFlatIP(features.shape[1])
        index.add(features)
        similarity, ids = index.search(features, k)
    elif method in ("exact", "approximate"):
        size = min(block, -(-count // 32) * 32)
        similarity, ids = _blocks(jnp.asarray(features), k=k, size=size, exact=method == "exact")
    else:
        raise ValueError(f"method is {method!r}: expected exact, approximate or faiss")
    return _itself_first(np.asarray(ids, np.int32), np.clip(np.asarray(similarity), 0, 1))


def _itself_first(ids: np.ndarray, similarity: np.ndarray) -> Neighbours:
    """Rows that tie with their duplicates come first in their own lists, and are never crowded out of them."""
    rows = np.arange(len(ids), dtype=np.int32)[:, None]
    place = np.where((ids == rows).any(1), (ids == rows).argmax(1), ids.shape[1] - 1)[:, None]
    column = np.arange(ids.shape[1])
    source = np.where(column == 0, place, np.where(column <= place, column - 1, column))
    ids, similarity = np.take_along_axis(ids, source, 1), np.take_along_axis(similarity, source, 1)
    ids[:, 0], similarity[:, 0] = rows[:, 0], 1
    return Neighbours(ids, similarity)


@functools.partial(jax.jit, static_argnames=("k", "size", "exact"))
def _blocks(features: jax.Array, *, k: int, size: int, exact: bool) -> tuple[jax.Array, jax.Array]:
    """Similarities and ids of the k best, [N, k]: a block of rows meets one block of columns after the other."""
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
    """Exact top k of [R, C] in two stages: the k groups with the greatest maxima hold all winners."""
    rows, columns = products.shape
    if columns % group or columns // group <= k:
        return lax.top_k(products, k)
    grouped = products.reshape(rows, columns // group, group)
    _, groups = lax.top_k(grouped.max(2), k)
    candidates = jnp.take_along_axis(grouped, groups[:, :, None], 1).reshape(rows, k * group)
    values, place = lax.top_k(candidates, k)
    return values, jnp.take_along_axis(groups, place // group, 1) * group + place % group


def affinity(neighbours: Neighbours, min_similarity: float = 0.0) -> segment.Graph:
    """The graph of the mean aggregator: row-stochastic D^-1 (max(A, A^T) + I), A the cosines without the diagonal.

    Args:
      neighbours: of N rows.
      min_similarity: weaker ones are left out.
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
    return segment.Graph(
        jnp.asarray(matrix.indices, jnp.int32),
        jnp.asarray(np.repeat(np.arange(count), degree), jnp.int32),
        jnp.asarray(weight, jnp.float32),
        count,
    )
