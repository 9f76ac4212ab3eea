"""Graph files for inductive node classification: PPI in the format of GAT's authors, and GraphSAGE's format."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np

from facejax.data.readers.planetoid import Citations
from facejax.ops.graph import undirected


@dataclasses.dataclass(frozen=True)
class LabelledGraph:
    """N nodes: features [N, F], labels [N, C] of 0 and 1, directed edges [E]."""

    features: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    destination: np.ndarray


def read_ppi(folder: str | pathlib.Path, split: str) -> list[LabelledGraph]:
    """The graphs of a split, from SPLIT_graph.json ("links" of "source" and "target"), _feats, _labels, _graph_id.npy.

    Args:
      folder: folder of the files.
      split: "train", "validation" (files named valid_...) or "test".

    Raises:
      ValueError: a file is missing, damaged or inconsistent with the others.
    """
    stem = pathlib.Path(folder) / {"validation": "valid"}.get(split, split)
    try:
        features, labels, owner = (
            np.load(f"{stem}_{part}.npy", allow_pickle=False) for part in ("feats", "labels", "graph_id")
        )
        links = json.loads(pathlib.Path(f"{stem}_graph.json").read_text())["links"]
        edges = np.array([(link["source"], link["target"]) for link in links], np.int64).reshape(-1, 2)
    except Exception as error:  # damaged files raise various exceptions
        raise ValueError(f"{stem}_*: not PPI files: {error}") from error
    if not len(features) == len(labels) == len(owner) or (
        len(edges) and not 0 <= edges.min() <= edges.max() < len(owner)
    ):
        raise ValueError(
            f"{stem}_*: {len(features)} rows of features, {len(labels)} rows of labels, {len(owner)} graph ids, "
            f"edges up to node {edges.max(initial=-1)}: expected equal counts"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"{stem}_feats.npy: row {int(np.argmin(np.isfinite(features).all(1)))} is not finite")
    if (owner[edges[:, 0]] != owner[edges[:, 1]]).any():
        raise ValueError(f"{stem}_graph.json: an edge connects two graphs, expected both nodes in one")
    made = []
    for number in np.unique(owner):
        place = np.cumsum(owner == number) - 1
        inside = edges[owner[edges[:, 0]] == number]
        made.append(LabelledGraph(features[owner == number], labels[owner == number], *place[inside].T))
    return made


def read_graphsage(prefix: str | pathlib.Path) -> Citations:
    """A graph from PREFIX-G.json (node-link format, links by position), -id_map.json, -class_map.json, -feats.npy.

    As in the authors' code, nodes without the fields "val" and "test" are dropped.

    Raises:
      ValueError: a file is missing, damaged or inconsistent with the others.
    """
    try:
        graph, rows, classes = (
            json.loads(pathlib.Path(f"{prefix}-{part}.json").read_text()) for part in ("G", "id_map", "class_map")
        )
        features = np.load(f"{prefix}-feats.npy", allow_pickle=False).astype(np.float32)
        place, masks = np.full(len(graph["nodes"]), -1), np.zeros((3, len(features)), bool)
        labels = [None] * len(features)
        for i, node in enumerate(graph["nodes"]):
            if "val" in node and "test" in node:
                place[i] = row = rows[str(node["id"])]
                labels[row] = classes[str(node["id"])]
                masks[2 if node["test"] else 1 if node["val"] else 0, row] = True
        ends = place[np.array([(link["source"], link["target"]) for link in graph["links"]], int).reshape(-1, 2)]
        blank = np.zeros_like(next(iter(classes.values())))
        labels = np.array([blank if label is None else label for label in labels], int)
    except (OSError, KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{prefix}-*: not a graph in GraphSAGE's format: {error!r}") from error
    if not np.isfinite(features).all():
        raise ValueError(f"{prefix}-feats.npy: row {int(np.argmin(np.isfinite(features).all(1)))} is not finite")
    return Citations(features, labels, *undirected(*ends[(ends >= 0).all(1)].T), *masks)
