"""Inference of GCN-V and STAR-FC on graphs of ten thousand to a million nodes: seconds and peak memory by size.

    python -m benchmarks.graph_inference                                 # both, 10^4, 10^5 and 10^6 nodes, k 80
    python -m benchmarks.graph_inference --nodes 100000 --k 40 --only star_fc
    python -m benchmarks.graph_inference --count 10000000                # estimate for accelerators, without a run

The networks have their full size with 256 features per node; weights and neighbours are random, which does not change
the cost. The time includes the affinity graph, the network and the clusters, but not the neighbour search (see
benchmarks/knn.py). The networks process nodes in blocks with their incoming edges, so only features, graph and results
exist for all nodes. Each line runs in a separate process, which gives its own peak memory.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.clustering import star_fc, vegcn
from facejax.nn.graph import GraphConv, PReLUHead
from facejax.ops import knn
from facejax.ops.graph import Graph, make_graph, propagate

WIDTH, HIDDEN, ROWS, CHUNK = 256, 512, 2**14, 2**15


def random_people(nodes: int, k: int) -> tuple[np.ndarray, knn.Neighbours]:
    """Unit features [N, 256], and k neighbours of each node, itself first, with descending cosines."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((nodes, WIDTH), np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids = rng.integers(nodes, size=(nodes, k), dtype=np.int32)
    ids[:, 0] = np.arange(nodes)
    similarity = np.sort(rng.random((nodes, k), np.float32), axis=1)[:, ::-1]
    similarity[:, 0] = 1
    return features, knn.Neighbours(ids, similarity)


def runs(graph: Graph, rows: int) -> Iterator[tuple[slice, tuple[np.ndarray, ...]]]:
    """Blocks of nodes with their incoming edges, all of the same size."""
    source, destination, weight = (np.asarray(x) for x in graph.edges)
    starts = np.arange(0, graph.num_nodes, rows)
    ends = np.searchsorted(destination, np.append(starts, graph.num_nodes))
    longest = np.diff(ends).max()
    for start, a, b in zip(starts, ends, ends[1:], strict=False):
        spare = (0, longest - (b - a))
        part = slice(start, min(start + rows, graph.num_nodes))
        yield (
            part,
            (
                np.pad(source[a:b], spare),
                np.pad(destination[a:b] - start, spare, constant_values=rows - 1),
                np.pad(weight[a:b], spare),
            ),
        )


def forward(layers: Callable[..., Any], variables: Any, features: np.ndarray, graph: Graph) -> list[np.ndarray]:
    """Applies layers(variables, own, aggregated) to all nodes, block by block."""
    rows = min(ROWS, graph.num_nodes)

    @jax.jit
    def one(variables: Any, features: jax.Array, own: np.ndarray, edges: tuple[np.ndarray, ...]) -> Any:
        return layers(variables, own, propagate(Graph(*edges, rows), features, chunk=CHUNK))

    everyone, whole = jnp.asarray(features), None
    for part, edges in runs(graph, rows):
        own = features[np.minimum(np.arange(part.start, part.start + rows), graph.num_nodes - 1)]
        found = one(variables, everyone, own, edges)
        if whole is None:
            whole = [np.empty((graph.num_nodes, *x.shape[1:]), x.dtype) for x in found]
        for array, piece in zip(whole, found, strict=True):
            array[part] = piece[: part.stop - part.start]
    return whole


def run_gcn_v(features: np.ndarray, near: knn.Neighbours, graph: Graph) -> tuple[float, np.ndarray]:
    """Time at which the network finishes, and clusters [N] from trees over the given neighbours."""
    net = vegcn.GCNV(HIDDEN)
    variables = net.init(jax.random.key(0), jnp.zeros((1, WIDTH)), make_graph(np.zeros(1), np.zeros(1), 1))

    def layers(variables: Any, own: jax.Array, aggregated: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = variables["params"]
        hidden = GraphConv(HIDDEN).apply({"params": params["GraphConv_0"]}, own, aggregated)
        return PReLUHead(HIDDEN, 1).apply({"params": params["PReLUHead_0"]}, hidden)[:, 0], hidden

    confidence, _ = forward(layers, variables, features, graph)
    done = time.monotonic()
    return done, vegcn.trees_to_labels(vegcn.nearest_peaks(near, confidence), 0.5)


def run_star_fc(features: np.ndarray, near: knn.Neighbours, graph: Graph) -> tuple[float, np.ndarray]:
    """The same for STAR-FC: scores all directed edges; the better half enters the intimacy."""
    net, one = star_fc.EdgeNet(HIDDEN), jnp.zeros(1, jnp.int32)
    variables = net.init(
        jax.random.key(0), jnp.zeros((1, WIDTH)), make_graph(np.zeros(1), np.zeros(1), 1), one, one
    )  # fmt: skip

    def halves(net: star_fc.EdgeNet, own: jax.Array, aggregated: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = net.convolution(own, aggregated)
        return net.first(hidden), net.second(hidden)

    ends = forward(functools.partial(net.apply, method=halves), variables, features, graph)
    ends = tuple(jnp.asarray(x) for x in ends)
    edges = star_fc.directed_edges(near)
    probability = np.asarray(star_fc.edge_probabilities(net, variables, ends, edges, chunk=2**14))
    done = time.monotonic()
    score = float(np.median(probability[:100_000]))
    return done, star_fc.cluster(edges, probability, len(features), score=score, shared=0.72)


SYSTEMS = {"gcn_v": run_gcn_v, "star_fc": run_star_fc}


def measure(name: str, nodes: int, k: int) -> dict[str, float]:
    """Seconds of the graph, the network and the clusters, and the peak MiB of this process."""
    features, near = random_people(nodes, k)
    start = time.monotonic()
    graph = knn.affinity(near)
    built = time.monotonic()
    done, _ = SYSTEMS[name](features, near, graph)
    end = time.monotonic()
    return {
        "edges": len(graph.source),
        "graph s": built - start,
        "network s": done - built,
        "clusters s": end - done,
        "us per node": 1e6 * (end - start) / nodes,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def count(nodes: int, k: int, devices: int) -> dict[str, float]:
    """Estimates GB per device and seconds of inference on H100s from array sizes and operations, without a run.

    Assumptions: float32; replicated features, everything else sharded evenly, including STAR-FC's edges; every edge
    in both directions (2 k - 1 per node); half of 3.35 TB/s for gathers and top-k passes, 400 TFLOP/s for products. The
    estimate excludes transfers between devices and host work.
    """
    arcs, pairs, number = nodes * (2 * k - 1), nodes * (k - 1), 4
    speed, product = 0.5 * 3.35e12 * devices, 400e12 * devices
    dense = 2 * nodes * (2 * WIDTH * HIDDEN + HIDDEN * HIDDEN)
    return {
        "features GB": nodes * WIDTH * number / 1e9,
        "graph GB": arcs * 3 * number / devices / 1e9,
        "GCN-V's results GB": nodes * (HIDDEN + 1) * number / devices / 1e9,
        "STAR-FC's results GB": (2 * nodes * HIDDEN + 3 * pairs) * number / devices / 1e9,
        "neighbours s": 2 * nodes**2 * WIDTH / product + 3 * nodes**2 * number / speed,
        "GCN-V s": arcs * WIDTH * number / speed + dense / product,
        "STAR-FC s": (arcs * WIDTH + 2 * pairs * HIDDEN) * number / speed + 1.5 * dense / product,
    }


def main() -> None:
    """Prints one line per system and size, or the estimate."""
    parser = argparse.ArgumentParser(description="Inference of GCN-V and STAR-FC.")
    parser.add_argument("--nodes", default="10000,100000,1000000", help="sizes, separated by commas")
    parser.add_argument("--k", type=int, default=80, help="neighbours per node, including itself")
    parser.add_argument("--only", default=",".join(SYSTEMS), help="systems, separated by commas")
    parser.add_argument("--count", type=int, help="number of nodes for an estimate of memory and time, without a run")
    args = parser.parse_args()
    if args.count:
        print(f"{args.count:,} nodes, k {args.k}: estimate for one H100 and for eight, not measured")
        one, eight = (count(args.count, args.k, devices) for devices in (1, 8))
        for name, value in one.items():
            print(f"{name:24}{value:10.1f}{eight[name]:10.1f}")
        return
    print(f"k {args.k}, features of {WIDTH}, networks of {HIDDEN}")
    for name in args.only.split(","):
        for nodes in map(int, args.nodes.split(",")):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                row = process.submit(measure, name, nodes, args.k).result()
            print(
                f"{name:8} {nodes:>10,}  " + "  ".join(f"{key} {value:,.1f}" for key, value in row.items()), flush=True
            )


if __name__ == "__main__":
    main()
