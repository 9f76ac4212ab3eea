"""GCN on Cora: facejax, torch_geometric's example and its fastest form known to us; milliseconds per epoch.

    python -m benchmarks.gcn DIR                # DIR contains ind.cora.*; needs torch and torch_geometric

An epoch is a training step on the labelled nodes and a pass without dropout, full batch; two layers of width 16.
"PyG, dense" is torch_geometric's example: dense features, edge list, cached normalisation. "PyG, sparse" stores
features (with dropout on the values) and adjacency as sparse matrices. facejax trains as in `experiments.gcn`: sparse
features, 20 epochs per training step.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.compare import compare
from experiments import gcn as experiment
from facejax.data.readers.planetoid import Citations, read_planetoid
from facejax.graph.gcn import row_normalized
from facejax.train import parallel

try:
    import torch
    import torch.nn.functional as F
    from torch_geometric.nn import GCNConv
except ImportError as error:
    raise SystemExit(f"{error}: this benchmark needs torch and torch_geometric (pip install torch_geometric)") from None


class PyG(torch.nn.Module):
    """Two GCNConv layers on one graph.

    Args:
      data: the graph.
      sparse: features and adjacency as sparse matrices; otherwise dense features and a list of edges.
    """

    def __init__(self, data: Citations, sparse: bool):
        super().__init__()
        self.features = torch.tensor(row_normalized(data.features), dtype=torch.float32)
        self.graph = torch.tensor(np.stack([data.source, data.destination]))
        if sparse:
            size = (len(data.labels),) * 2
            self.graph = torch.sparse_coo_tensor(self.graph, torch.ones(self.graph.shape[1]), size).to_sparse_csr()
            self.features = self.features.to_sparse_coo()
        self.sparse = sparse
        self.first = GCNConv(data.features.shape[1], 16, cached=True)
        self.second = GCNConv(16, int(data.labels.max()) + 1, cached=True)

    def forward(self) -> torch.Tensor:
        """Logits of all nodes."""
        inputs = self.features
        if self.sparse:
            values = F.dropout(inputs.values(), training=self.training)
            inputs = torch.sparse_coo_tensor(inputs.indices(), values, inputs.shape, is_coalesced=True)
        else:
            inputs = F.dropout(inputs, training=self.training)
        hidden = F.dropout(self.first(inputs, self.graph).relu(), training=self.training)
        return self.second(hidden, self.graph)


def torch_training(data: Citations, epochs: int, sparse: bool) -> Callable[[], float]:
    """A call that trains a new network and returns its test accuracy, %."""
    labels, train, test = (torch.tensor(x) for x in (data.labels, data.train, data.test))

    def run() -> float:
        torch.manual_seed(0)
        net = PyG(data, sparse)
        groups = [{"params": net.first.parameters(), "weight_decay": 5e-4}, {"params": net.second.parameters()}]
        optimizer = torch.optim.Adam(groups, lr=0.01)
        for _ in range(epochs):
            net.train()
            optimizer.zero_grad()
            F.cross_entropy(net()[train], labels[train]).backward()
            optimizer.step()
            net.eval()
            with torch.no_grad():
                right = net().argmax(1) == labels
        return 100 * float(right[test].float().mean())

    return run


def main() -> None:
    """Prints training times in milliseconds per epoch, ratios, and the compilation time in seconds."""
    parser = argparse.ArgumentParser(description="GCN on Cora.")
    parser.add_argument("path", type=pathlib.Path, help="folder with ind.cora.*")
    parser.add_argument("--epochs", type=int, default=200, help="a multiple of 20")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    data = read_planetoid(args.path, "cora")
    config = experiment.get_config("cora")
    config.data.path = str(args.path)
    config.optim.update({"epochs_per_step": min(20, args.epochs), "patience": args.epochs, "runs": 1})
    run = experiment.build(config)
    executor = parallel.make_executor(run, "shard_map", 1)

    def ours(epochs: int) -> Any:
        state = executor.init(0)
        for _ in range(epochs // config.optim.epochs_per_step):
            state, _ = executor.step(state, {})
        return jax.block_until_ready(state)

    start = time.perf_counter()
    ours(config.optim.epochs_per_step)
    compilation = time.perf_counter() - start
    accuracy: dict[str, float] = {}

    def noted(name: str, call: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            accuracy[name] = float(call())

        return run

    calls = {
        "PyG, dense": torch_training(data, args.epochs, sparse=False),
        "PyG, sparse": torch_training(data, args.epochs, sparse=True),
    }
    contenders = {name: noted(name, call) for name, call in calls.items()} | {"facejax": lambda: ours(args.epochs)}
    results = compare(
        f"GCN on Cora, {args.epochs} epochs", contenders, repeats=args.repeats, unit="epochs", amount=args.epochs
    )
    accuracy["facejax"] = run.evaluate(ours(args.epochs)).metrics["test_accuracy"]
    for name, result in results.items():
        times = result.median / results["facejax"].median
        print(f"{name:12} {1e3 * result.median / args.epochs:8.2f} ms per epoch, test accuracy {accuracy[name]:.1f} %, "
              f"facejax is {times:.1f} times as fast")  # fmt: skip
    print(f"facejax compiles in {compilation:.1f} s, once")


if __name__ == "__main__":
    main()
