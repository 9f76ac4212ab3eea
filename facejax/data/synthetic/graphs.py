"""Graphs without downloads: stochastic block models, and Zachary's karate club from networkx."""

from __future__ import annotations

import dataclasses

import numpy as np

from facejax.data.readers.node_graphs import LabelledGraph
from facejax.data.readers.planetoid import Citations
from facejax.ops.graph import undirected


def blocks(
    nodes: int, classes: int, degree_in: float, degree_out: float, seed: int, *, features: int = 100, labelled: int = 5
) -> Citations:
    """A stochastic block model with weakly informative binary features.

    Args:
      nodes, classes: number of nodes and of classes.
      degree_in, degree_out: expected number of neighbours of a node's own class and of all other classes.
      seed: seed of labels, edges, features and split.
      features: number of features. Each is associated with a class with probability 0.08 and then set in 15 % of its
        nodes instead of 3 %.
      labelled: training nodes per class; another 30 per class are validation nodes, all others test nodes.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=nodes)
    same = labels[:, None] == labels
    chance = np.where(same, degree_in * classes, degree_out * classes / (classes - 1)) / nodes
    source, destination = undirected(*np.nonzero(np.triu(rng.random(same.shape) < chance, 1)))
    topics = rng.random((classes, features)) < 0.08
    values = (rng.random((nodes, features)) < 0.03 + 0.12 * topics[labels]).astype(np.float32)
    order = rng.permutation(nodes)
    rank = np.zeros(nodes, int)
    for c in range(classes):
        members = order[labels[order] == c]
        rank[members] = np.arange(len(members))
    first, second = rank < labelled, rank < labelled + 30
    return Citations(values, labels, source, destination, first, second & ~first, ~second)


def karate_club() -> Citations:
    """The karate club with one-hot features; classes are its four Louvain communities, with one training node each."""
    import networkx

    club = networkx.karate_club_graph()
    labels = np.zeros(34, int)
    for c, members in enumerate(networkx.community.louvain_communities(club, seed=0)):
        labels[list(members)] = c
    source, destination = undirected(*np.array(club.edges()).T)
    train = np.isin(np.arange(34), [np.flatnonzero(labels == c)[0] for c in range(4)])
    return Citations(np.eye(34, dtype=np.float32), labels, source, destination, train, ~train, ~train)


def mislead(citations: Citations, share: float, seed: int) -> Citations:
    """Permutes the features of a fraction `share` of the nodes and adds ten binary features that mark these nodes.

    The marks have probability 0.4 in the permuted nodes and 0.03 in the others.
    """
    rng = np.random.default_rng([seed, 1])
    wrong = rng.random(len(citations.labels)) < share
    features = citations.features.copy()
    features[wrong] = features[rng.permutation(np.flatnonzero(wrong))]
    marks = rng.random((len(wrong), 10)) < np.where(wrong, 0.4, 0.03)[:, None]
    return dataclasses.replace(citations, features=np.concatenate([features, marks], 1, dtype=np.float32))


def several_blocks(
    count: int, nodes: int, classes: int, degree_in: float, degree_out: float, misleading: float, seed: int
) -> dict[str, list[LabelledGraph]]:
    """Block models with common classes, split 3:1:1 into "train", "validation" and "test".

    The features of a node are eight normal variates around the centre of its class, and a mark. A marked node has twice
    the centre of another marked node's class instead. All features are divided by four, so that attention starts with
    nearly equal weights.

    Args:
      count: number of graphs.
      nodes, classes: number of nodes and of classes per graph.
      degree_in, degree_out: see `blocks`.
      misleading: fraction of marked nodes, 0..1.
      seed: seed of all draws.
    """
    whole = blocks(nodes * count, classes, degree_in * count, degree_out * count, seed)
    rng = np.random.default_rng([seed, 1])
    wrong = rng.random(len(whole.labels)) < misleading
    content = rng.normal(size=(classes, 8))[whole.labels]
    content[wrong] = 2 * content[rng.permutation(np.flatnonzero(wrong))]
    features = np.c_[content + 2 * rng.normal(size=content.shape), 4 * wrong] / 4
    made = []
    for i in range(count):
        inside = (whole.source // nodes == i) & (whole.destination // nodes == i)
        part = slice(i * nodes, (i + 1) * nodes)
        labels = np.eye(classes)[whole.labels[part]]
        edges = (x[inside] - i * nodes for x in (whole.source, whole.destination))
        made.append(LabelledGraph(features[part], labels, *edges))
    a, b = count * 3 // 5, count * 4 // 5
    return {"train": made[:a], "validation": made[a:b], "test": made[b:]}
