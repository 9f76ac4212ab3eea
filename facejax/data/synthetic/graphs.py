"""Graphs without any download: stochastic block models, and Zachary's karate club by networkx."""

from __future__ import annotations

from typing import Any

import numpy as np

from facejax.data.readers.planetoid import Citations, read_planetoid
from facejax.ops.graph import undirected


def load(data: Any, seed: int) -> Citations:
    """The graph that `data.source` names: "blocks" and "karate" are made here, others read from `data.path`."""
    if data.source == "blocks":
        return blocks(data.nodes, data.classes, data.degree_in, data.degree_out, seed)
    if data.source == "karate":
        return karate_club()
    if data.source not in ("cora", "citeseer", "pubmed"):
        raise ValueError(f"data.source is {data.source!r}: expected blocks, karate, cora, citeseer or pubmed")
    return read_planetoid(data.path, data.source)


def blocks(
    nodes: int, classes: int, degree_in: float, degree_out: float, seed: int, *, features: int = 100, labelled: int = 5
) -> Citations:
    """A stochastic block model with weakly informative binary features.

    Args:
      nodes, classes: how many.
      degree_in, degree_out: expected neighbours of a node's own class and of all others.
      seed: of everything.
      features: how many; a twelfth of them are likelier in a class.
      labelled: nodes of a class in the training mask; thirty more are for validation, the rest for the test.
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
    """34 members, one-hot features, four communities (by the Louvain method) with one labelled member each."""
    import networkx

    club = networkx.karate_club_graph()
    labels = np.zeros(34, int)
    for c, members in enumerate(networkx.community.louvain_communities(club, seed=0)):
        labels[list(members)] = c
    source, destination = undirected(*np.array(club.edges()).T)
    train = np.isin(np.arange(34), [np.flatnonzero(labels == c)[0] for c in range(4)])
    return Citations(np.eye(34, dtype=np.float32), labels, source, destination, train, ~train, ~train)
