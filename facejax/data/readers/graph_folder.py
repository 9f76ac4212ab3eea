"""A user's graph for node classification: a folder with an edge list, features and labels."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from facejax.data.readers.folder import natural
from facejax.data.readers.planetoid import Citations
from facejax.formats import arrays, limits, texts
from facejax.ops.graph import undirected

UNKNOWN = "-1"
"""The label of a node whose class is not known."""
PARTS = ("train", "validation", "test")


def read_graph(folder: str | pathlib.Path, seed: int = 0, labelled: int = 20, names: Sequence[str] = ()) -> Citations:
    """A graph of N nodes, numbered from 0.

    Args:
      folder: holds labels.txt: N lines, each the class of a node in any words, or -1 for unknown;
        edges.txt: lines "node node", of either direction (lines with # are comments);
        features.npy: [N, F] numbers; without it, every node is its own feature;
        split.txt: N lines "train", "validation", "test" or "none"; without it, the seed chooses `labelled` nodes of
        each class for training, and of the other nodes whose class is known half for validation and half for testing.
      seed: of that choice.
      labelled: training nodes per class.
      names: of the classes, in the order of their numbers, as of the graph that a network was trained on; by default
        the names in labels.txt in their natural order.

    Returns:
      The graph; a node of unknown class has label 0 and is in no part.

    Raises:
      ValueError: a file is missing, damaged or inconsistent with the others, a class is not among `names`, or a part of
        the split is empty.
    """
    folder = pathlib.Path(folder)
    lines = [line.strip() for line in texts.lines(texts.read(folder / "labels.txt"))]
    found = {*lines} - {UNKNOWN}
    if "" in found or (len(found) < 2 and not names):
        raise ValueError(f"{folder / 'labels.txt'}: {len(found)} classes: expected two or more, and no empty line")
    classes = tuple(names) or tuple(sorted(found, key=natural))
    if unknown := sorted(found.difference(classes), key=natural):
        raise ValueError(f"{folder / 'labels.txt'}: class {unknown[0]!r}: expected one of {', '.join(classes)}")
    number = {name: i for i, name in enumerate(classes)} | {UNKNOWN: -1}
    labels = np.array([number[line] for line in lines])
    count = len(labels)
    source, destination = _edges(folder / "edges.txt", count)
    split = (
        _split(folder / "split.txt", labels) if (folder / "split.txt").is_file() else _chosen(labels, seed, labelled)
    )
    for part, mask in zip(PARTS, split, strict=True):
        if not mask.any():
            raise ValueError(f"{folder}: no node of a known class for {part}: expected one or more")
    return Citations(
        _features(folder / "features.npy", count), np.maximum(labels, 0), source, destination, *split, classes
    )


def _edges(path: pathlib.Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    ends = []
    for number, line in enumerate(texts.lines(texts.read(path)), 1):
        fields = line.split("#")[0].replace(",", " ").split()
        if not fields:
            continue
        if len(fields) != 2 or not all(f.isascii() and f.isdecimal() and len(f) < 10 for f in fields):
            raise ValueError(f"{path}, line {number}: {line[:80]!r}: expected two numbers of nodes")
        ends.append((int(fields[0]), int(fields[1])))
        if max(ends[-1]) >= count:
            raise ValueError(
                f"{path}, line {number}: node {max(ends[-1])}: expected 0 to {count - 1}, as in labels.txt"
            )
    pairs = np.array(ends, int).reshape(-1, 2)
    return undirected(pairs[:, 0], pairs[:, 1])


def _features(path: pathlib.Path, count: int) -> np.ndarray:
    if not path.is_file():
        limits.memory(4 * count * count, f"{path}, which is missing: one feature a node")
        return np.eye(count, dtype=np.float32)
    found = arrays.load(path)
    if found.ndim != 2 or len(found) != count or found.dtype.kind not in "biuf":
        raise ValueError(f"{path}: {found.dtype} {found.shape}: expected numbers [{count}, F], as labels.txt has lines")
    if not np.isfinite(found).all():
        raise ValueError(f"{path}: row {int(np.argmin(np.isfinite(found).all(1)))} is not finite")
    return found.astype(np.float32)


def _split(path: pathlib.Path, labels: np.ndarray) -> Sequence[np.ndarray]:
    parts = [line.strip() for line in texts.lines(texts.read(path))]
    if len(parts) != len(labels):
        raise ValueError(f"{path}: {len(parts)} lines: expected {len(labels)}, as labels.txt has")
    for number, (part, label) in enumerate(zip(parts, labels, strict=True), 1):
        if part not in (*PARTS, "none"):
            raise ValueError(f"{path}, line {number}: {part[:80]!r}: expected train, validation, test or none")
        if part != "none" and label < 0:
            raise ValueError(f"{path}, line {number}: {part} for a node of unknown class: expected none")
    return [np.array([p == part for p in parts]) for part in PARTS]


def _chosen(labels: np.ndarray, seed: int, labelled: int) -> Sequence[np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = np.zeros((3, len(labels)), bool)
    for label in range(labels.max() + 1):
        masks[0, rng.permutation(np.flatnonzero(labels == label))[:labelled]] = True
    others = rng.permutation(np.flatnonzero((labels >= 0) & ~masks[0]))
    masks[1, others[: len(others) // 2]] = True
    masks[2, others[len(others) // 2 :]] = True
    return masks
