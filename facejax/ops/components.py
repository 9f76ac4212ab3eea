"""Connected components of edges, on the host."""

from __future__ import annotations

import numpy as np
import scipy.sparse


def connected_components(source: np.ndarray, destination: np.ndarray, num_nodes: int) -> np.ndarray:
    """Component index [N] of every node, from 0; edges [E] are undirected."""
    matrix = scipy.sparse.coo_matrix((np.ones(len(source), np.int8), (source, destination)), (num_nodes, num_nodes))
    return scipy.sparse.csgraph.connected_components(matrix, directed=False)[1]
