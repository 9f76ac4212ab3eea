"""Two-hop neighbour sampling for minibatches: ours inside jit versus NumPy, on the same random graph.

    python -m benchmarks.neighbor_sampling                       # 100,000 nodes, 10 and 25 neighbours, batches of 512
    python -m benchmarks.neighbor_sampling --nodes 1000000 --degree 30

Every contender samples both hops of `--batches` minibatches, uniformly and without replacement. "numpy, node by node"
calls Generator.choice for every node; "numpy, whole hops" samples for all nodes of a hop at once by our algorithm
(Floyd's). Ours runs in one scan, as in training. torch_geometric's NeighborLoader runs if torch-sparse is installed; it
also relabels the nodes.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compare import compare
from facejax.graph import graphsage
from facejax.ops import graph as graphs

try:
    import torch
    import torch_sparse  # noqa: F401
    from torch_geometric.data import Data
    from torch_geometric.loader import NeighborLoader
except ImportError:
    NeighborLoader = None


def one_by_one(rng: np.random.Generator, source: np.ndarray, starts: np.ndarray, nodes: np.ndarray, count: int):
    """[B, count] neighbours by a loop over nodes, padded with the node itself."""
    found = np.repeat(nodes[:, None], count, 1)
    for i, node in enumerate(nodes):
        edges = source[starts[node] : starts[node + 1]]
        chosen = edges if len(edges) <= count else rng.choice(edges, count, replace=False)
        found[i, : len(chosen)] = chosen
    return found


def at_once(rng: np.random.Generator, source: np.ndarray, starts: np.ndarray, nodes: np.ndarray, count: int):
    """The same for all nodes at once."""
    degree = starts[nodes + 1] - starts[nodes]
    chosen = np.full((len(nodes), count), -1)
    for j in range(count):
        last = np.maximum(degree - count, 0) + j
        draw = rng.integers(0, last + 1)
        chosen[:, j] = np.where(degree <= count, j, np.where((chosen == draw[:, None]).any(1), last, draw))
    places = np.minimum(starts[nodes][:, None] + chosen, len(source) - 1)
    return np.where(np.arange(count) < degree[:, None], source[places], nodes[:, None])


def main() -> None:
    parser = argparse.ArgumentParser(description="Two hops of sampled neighbours.")
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--degree", type=float, default=20.0, help="mean number of neighbours")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    ends = rng.integers(0, args.nodes, (2, int(args.nodes * args.degree / 2)))
    graph = graphs.make_graph(*graphs.undirected(*ends), args.nodes)
    starts = graphs.offsets(graph)
    seeds = rng.integers(0, args.nodes, (args.batches, args.batch))
    source, first = np.asarray(graph.source), np.asarray(starts)
    print(f"{args.nodes:,} nodes, {len(source):,} edges; {args.batches} batches of {args.batch}, 10 then 25 neighbours")

    def plain(sample):
        def run():
            for nodes in seeds:
                hop = np.append(nodes, sample(rng, source, first, nodes, 10))
                sample(rng, source, first, hop, 25)

        return run

    @jax.jit
    def scanned(key, graph, starts, batches):
        def step(key, nodes):
            key, draw = jax.random.split(key)
            blocks = graphsage.sample_blocks(draw, graph, starts, nodes, (25, 10))
            return key, (blocks[0].neighbors, blocks[0].mask)

        return jax.lax.scan(step, key, batches)[1]

    def loader():
        loader = NeighborLoader(
            Data(
                edge_index=torch.tensor(np.stack([source, graph.destination]), dtype=torch.long), num_nodes=args.nodes
            ),
            [10, 25],
            torch.tensor(seeds.ravel(), dtype=torch.long),
            batch_size=args.batch,
        )
        return lambda: sum(1 for _ in loader)

    contenders = {
        "numpy, node by node": plain(one_by_one),
        "numpy, whole hops": plain(at_once),
        "facejax": lambda: scanned(jax.random.key(0), graph, starts, jnp.asarray(seeds)),
    }
    if NeighborLoader:
        contenders["NeighborLoader"] = loader()
    work = f"both hops of {args.batches} batches of {args.batch}, {args.nodes:,} nodes"
    compare(work, contenders, repeats=args.repeats, unit="batches", amount=args.batches)


if __name__ == "__main__":
    main()
