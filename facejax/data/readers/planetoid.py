"""The Planetoid files `ind.NAME.*` of Cora, Citeseer and Pubmed: features, labels, edges and the public split."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from facejax.formats import limits, pickles, texts


@dataclasses.dataclass(frozen=True)
class Citations:
    """N documents: features [N, F], labels [N], undirected edges in both directions [E], masks [N] of the split.

    `names` are those of the classes, in the order of their numbers; empty where they have numbers alone.
    """

    features: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    destination: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    names: tuple[str, ...] = ()


_SPARSE = {("scipy.sparse", "csr_matrix"): pickles.Made}
"""Of any release of SciPy."""


def _rows(matrix: Any) -> np.ndarray:
    """A matrix of features [N, F] float32, from a sparse matrix by rows, or an array."""
    if isinstance(matrix, np.ndarray):
        return _table(matrix)
    state = matrix.state if isinstance(matrix, pickles.Made) and isinstance(matrix.state, dict) else {}
    shape = state.get("_shape", state.get("shape"))
    data, columns, starts = (state.get(key) for key in ("data", "indices", "indptr"))
    if not isinstance(shape, tuple) or len(shape) != 2 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("a sparse matrix without a shape")
    if not all(isinstance(x, np.ndarray) and x.ndim == 1 and x.dtype.kind in "biuf" for x in (data, columns, starts)):
        raise ValueError("a sparse matrix without data, indices and indptr")
    limits.memory(4 * shape[0] * shape[1], f"a matrix of {shape}")
    columns, starts = columns.astype(np.int64), starts.astype(np.int64)
    if len(starts) != shape[0] + 1 or starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] > len(data):
        raise ValueError(f"a sparse matrix of {shape} whose indptr is not increasing from 0 to at most {len(data)}")
    count = starts[-1]
    if len(columns) < count or (count and not 0 <= columns[:count].min() <= columns[:count].max() < shape[1]):
        raise ValueError(f"a sparse matrix of {shape} with indices outside 0 to {shape[1] - 1}")
    rows = np.zeros(shape, np.float32)
    np.add.at(rows, (np.repeat(np.arange(shape[0]), np.diff(starts)), columns[:count]), data[:count])
    return rows


def _table(labels: Any) -> np.ndarray:
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "biuf":
        raise ValueError("no matrix of numbers")
    return labels


def _pairs(graph: Any) -> np.ndarray:
    """The edges [E, 2] of a dict from a node to the list of its neighbours."""
    if not isinstance(graph, dict) or not all(isinstance(others, list) for others in graph.values()):
        raise ValueError("no dict from a node to a list of nodes")
    limits.memory(16 * sum(map(len, graph.values())), "the list of edges")
    ends = [end for node, others in graph.items() for other in others for end in (node, other)]
    if not all(type(end) is int and abs(end) < 2**62 for end in ends):
        raise ValueError("a node that is no number")
    return np.array(ends, np.int64).reshape(-1, 2)


_PARTS = {"y": _table, "tx": _rows, "ty": _table, "allx": _rows, "ally": _table, "graph": _pairs}


def read_planetoid(folder: str | pathlib.Path, name: str) -> Citations:
    """Reads a Planetoid data set.

    Args:
      folder: folder of ind.NAME.x, .y, .tx, .ty, .allx, .ally, .graph and .test.index.
      name: "cora", "citeseer" or "pubmed".

    Raises:
      ValueError: a file is missing, damaged or inconsistent with the others.
    """
    folder = pathlib.Path(folder)

    def load(part: str) -> np.ndarray:
        path = folder / f"ind.{name}.{part}"
        content = pickles.load(path, "readable Planetoid file", classes=_SPARSE)
        try:
            return _PARTS[part](content)
        except ValueError as error:
            raise ValueError(f"{path}: not a readable Planetoid file: {error}") from error

    labelled, tx, ty, allx, ally, pairs = map(load, _PARTS)
    path = folder / f"ind.{name}.test.index"
    try:
        test = np.array(texts.read(path).split(), int)
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: not a list of node numbers: {error}") from error
    if not len(test) or len(test) != len(ty) or tx.shape[0] != len(ty) or allx.shape[0] != len(ally):
        raise ValueError(
            f"{path}: {len(test)} test nodes, {tx.shape[0]} rows of features, {len(ty)} of labels, expected one each"
        )
    if tx.shape[1] != allx.shape[1] or ty.shape[1] != ally.shape[1] or len(labelled) > len(ally):
        raise ValueError(
            f"{folder}/ind.{name}: features {tx.shape} and {allx.shape}, labels {labelled.shape}, {ty.shape} and "
            f"{ally.shape}: expected equal widths, and no more training nodes than in ally"
        )
    if test.min() < len(ally) or len(np.unique(test)) < len(test):
        raise ValueError(
            f"{path}: {len(np.unique(test))} different nodes of {len(test)} from {test.min()}: expected each once, "
            f"from {len(ally)} on, after the nodes of allx"
        )
    count = max(int(test.max()) + 1, len(ally) + len(ty))
    limits.memory(4 * count * (allx.shape[1] + 2 * ally.shape[1]), f"{path}: a graph of {count} nodes")
    features, targets = np.zeros((count, allx.shape[1]), np.float32), np.zeros((count, ally.shape[1]))
    features[: len(ally)], targets[: len(ally)] = allx, ally
    features[test], targets[test] = tx, ty  # rows are in the order of test.index; gaps stay zero
    if not np.isfinite(targets).all():
        raise ValueError(f"{folder}/ind.{name}: labels are not finite")
    if not np.isfinite(features).all():
        row = int(np.argmin(np.isfinite(features).all(1)))
        raise ValueError(f"{folder}/ind.{name}: features of node {row} are not finite")
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < count:
        raise ValueError(f"{folder}/ind.{name}.graph: edges with nodes outside 0 to {count - 1}")
    both = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    both = both[both[:, 0] != both[:, 1]]
    number = np.arange(count)
    tested = np.isin(number, test)
    validated = (number >= len(labelled)) & (number < len(labelled) + 500) & ~tested
    return Citations(features, targets.argmax(1), both[:, 0], both[:, 1], number < len(labelled), validated, tested)
