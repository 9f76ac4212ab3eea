"""Graph files for inductive node classification: PPI in the format of GAT's authors, and GraphSAGE's format."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from facejax.data.readers.planetoid import Citations
from facejax.formats import arrays, texts
from facejax.ops.graph import undirected


@dataclasses.dataclass(frozen=True)
class LabelledGraph:
    """N nodes: features [N, F], labels [N, C] of 0 and 1, directed edges [E]."""

    features: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    destination: np.ndarray


def read_ppi(folder: str | pathlib.Path, split: str) -> list[LabelledGraph]:
    """The graphs of a split, from SPLIT_graph.json (see `edge_ends`), _feats.npy, _labels.npy and _graph_id.npy.

    Row i of the arrays is the node of id i where ids are 0 to N - 1 or no nodes are listed, else the i-th node listed.

    Args:
      folder: folder of the files.
      split: "train", "validation" (files named valid_...) or "test".

    Raises:
      ValueError: a file is missing, damaged or inconsistent with the others.
    """
    stem = pathlib.Path(folder) / {"validation": "valid"}.get(split, split)
    try:
        features, labels, owner = (arrays.load(f"{stem}_{part}.npy") for part in ("feats", "labels", "graph_id"))
        graph = texts.read_json(f"{stem}_graph.json", dict)
        ids = [node["id"] for node in graph.setdefault("nodes", [{"id": i} for i in range(len(owner))])]
        edges = edge_ends(graph)
        if set(ids) == set(range(len(ids))):
            edges = np.array(ids)[edges]
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
    """A graph from PREFIX-G.json (see `edge_ends`), -id_map.json, -class_map.json and -feats.npy.

    As in the authors' code, nodes without the fields "val" and "test" are dropped.

    Raises:
      ValueError: a file is missing, damaged or inconsistent with the others.
    """
    try:
        graph, rows, classes = (texts.read_json(f"{prefix}-{part}.json", dict) for part in ("G", "id_map", "class_map"))
        features = arrays.load(f"{prefix}-feats.npy").astype(np.float32)
        place, masks = np.full(len(graph["nodes"]), -1), np.zeros((3, len(features)), bool)
        labels = [None] * len(features)
        for i, node in enumerate(graph["nodes"]):
            if "val" in node and "test" in node:
                place[i] = row = rows[str(node["id"])]
                if row < 0 or labels[row] is not None:
                    raise ValueError(f"id_map gives row {row} to {node['id']!r}, expected a row of its own")
                labels[row] = classes[str(node["id"])]
                masks[2 if node["test"] else 1 if node["val"] else 0, row] = True
        ends = place[edge_ends(graph)]
        blank = np.zeros_like(next(iter(classes.values())))
        labels = np.array([blank if label is None else label for label in labels], int)
    except (OSError, KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{prefix}-*: not a graph in GraphSAGE's format: {error!r}") from error
    if not np.isfinite(features).all():
        raise ValueError(f"{prefix}-feats.npy: row {int(np.argmin(np.isfinite(features).all(1)))} is not finite")
    return Citations(features, labels, *undirected(*ends[(ends >= 0).all(1)].T), *masks)


def edge_ends(graph: dict[str, Any]) -> np.ndarray:
    """Positions [E, 2] in the list "nodes" of the ends of all edges of a graph in networkx's node-link format.

    The ends of "edges" (networkx 3.4 and later) are ids. Those of "links" are positions (1.x) or ids (2.0 and later);
    where they could be both and differ, the order decides: networkx lists the edges by their first node, in the order
    of "nodes", and an edge without direction at the first of its nodes.

    Raises:
      ValueError: ids repeat, an end is neither an id nor a position, or "links" could be both.
    """
    place = {node["id"]: i for i, node in enumerate(graph["nodes"])}
    if len(place) < len(graph["nodes"]):
        raise ValueError(f"{len(place)} different ids of {len(graph['nodes'])} nodes, expected one each")
    key = "edges" if "edges" in graph else "links"
    ends = [end for link in graph[key] for end in (link["source"], link["target"])]
    readings = []
    if all(end in place for end in ends):
        readings.append([place[end] for end in ends])
    if key == "links" and all(isinstance(end, int) and 0 <= end < len(place) for end in ends):
        readings.append(ends)
    readings = [np.array(ends, np.int64).reshape(-1, 2) for ends in readings]
    if not readings:
        raise ValueError(f"an end of {key} is not one of the {len(place)} nodes")
    if len(readings) == 1 or (readings[0] == readings[1]).all():
        return readings[0]
    written = [pairs for pairs in readings if _as_listed(pairs, graph.get("directed", False))]
    if len(written) != 1:
        raise ValueError("links are ids or positions of nodes: expected ids, under the key edges")
    return written[0]


def _as_listed(pairs: np.ndarray, directed: bool) -> bool:
    return bool((np.diff(pairs[:, 0]) >= 0).all() and (directed or (pairs[:, 0] <= pairs[:, 1]).all()))
