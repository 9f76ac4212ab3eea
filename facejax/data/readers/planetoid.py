"""The Planetoid files `ind.NAME.*` of Cora, Citeseer and Pubmed: features, labels, edges and the public split."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import pickle
from typing import Any

import numpy as np
import scipy.sparse


@dataclasses.dataclass(frozen=True)
class Citations:
    """N documents: features [N, F], labels [N], undirected edges in both directions [E], masks [N] of the split."""

    features: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    destination: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class _Unpickler(pickle.Unpickler):
    """Builds arrays, SciPy's sparse matrices and dictionaries only, under their module names of any release."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "csr_matrix" and module.startswith("scipy.sparse"):
            return scipy.sparse.csr_matrix
        if (module, name) == ("collections", "defaultdict"):
            return collections.defaultdict
        if name in ("list", "int") and module in ("builtins", "__builtin__"):
            return {"list": list, "int": int}[name]
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in (
            "ndarray",
            "dtype",
            "_reconstruct",
            "scalar",
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"pickle refers to {module}.{name}, expected arrays and containers only")


def read_planetoid(folder: str | pathlib.Path, name: str) -> Citations:
    """Reads a Planetoid data set.

    Args:
      folder: folder of ind.NAME.x, .y, .tx, .ty, .allx, .ally, .graph and .test.index.
      name: "cora", "citeseer" or "pubmed".

    Raises:
      ValueError: a file is missing, damaged or inconsistent with the others.
    """
    folder = pathlib.Path(folder)

    def load(part: str) -> Any:
        path = folder / f"ind.{name}.{part}"
        try:
            with path.open("rb") as file:
                return _Unpickler(file, encoding="latin1").load()
        except Exception as error:  # damaged pickles raise various exceptions
            raise ValueError(f"{path}: not a readable Planetoid file: {error}") from error

    labelled, tx, ty, allx, ally, edges = (load(p) for p in ("y", "tx", "ty", "allx", "ally", "graph"))
    path = folder / f"ind.{name}.test.index"
    try:
        test = np.array(path.read_text().split(), int)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a list of node numbers: {error}") from error
    if not len(test) or len(test) != len(ty) or tx.shape[0] != len(ty) or allx.shape[0] != len(ally):
        raise ValueError(
            f"{path}: {len(test)} test nodes, {tx.shape[0]} rows of features, {len(ty)} of labels, expected one each"
        )
    if test.min() < len(ally) or len(np.unique(test)) < len(test):
        raise ValueError(
            f"{path}: {len(np.unique(test))} different nodes of {len(test)} from {test.min()}: expected each once, "
            f"from {len(ally)} on, after the nodes of allx"
        )
    count = max(int(test.max()) + 1, len(ally) + len(ty))
    features, targets = np.zeros((count, allx.shape[1]), np.float32), np.zeros((count, ally.shape[1]))
    features[: len(ally)], targets[: len(ally)] = allx.toarray(), ally
    features[test], targets[test] = tx.toarray(), ty  # rows are in the order of test.index; gaps stay zero
    if not np.isfinite(targets).all():
        raise ValueError(f"{folder}/ind.{name}: labels are not finite")
    if not np.isfinite(features).all():
        row = int(np.argmin(np.isfinite(features).all(1)))
        raise ValueError(f"{folder}/ind.{name}: features of node {row} are not finite")
    pairs = np.array([(a, b) for a, others in edges.items() for b in others]).reshape(-1, 2)
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < count:
        raise ValueError(f"{folder}/ind.{name}.graph: edges with nodes outside 0 to {count - 1}")
    both = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    both = both[both[:, 0] != both[:, 1]]
    number = np.arange(count)
    tested = np.isin(number, test)
    validated = (number >= len(labelled)) & (number < len(labelled) + 500) & ~tested
    return Citations(features, targets.argmax(1), both[:, 0], both[:, 1], number < len(labelled), validated, tested)
