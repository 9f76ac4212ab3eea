"""Exact nearest neighbours compared with faiss's flat index: `python -m benchmarks.knn --rows 200000`.

Features are synthetic identities on the hypersphere, about 20 images each. Prints the times, their ratio, the fraction
of neighbours that agree, and the peak resident memory.
"""

import argparse

import numpy as np

from benchmarks.compare import compare
from facejax.ops import knn, vectors


def main() -> None:
    parser = argparse.ArgumentParser(description="k nearest neighbours of every row.")
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--block", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(args.rows // 20 + 1, args.width))
    features = centres[rng.integers(0, len(centres), args.rows)] + rng.normal(size=(args.rows, args.width))
    features = vectors.unit_rows(features, np.float32)
    found = {}

    def run(method: str) -> None:
        found[method] = knn.knn(features, args.k, method=method, block=args.block)

    contenders = {"faiss flat": lambda: run("faiss"), "facejax": lambda: run("exact")}
    work = f"exact neighbours, {args.rows:,} x {args.width}, k {args.k}"
    compare(work, contenders, repeats=args.repeats, warmup=int(args.repeats > 1), unit="rows", amount=args.rows)
    same = np.mean([len(np.intersect1d(a, b)) for a, b in zip(found["faiss"].ids, found["exact"].ids, strict=True)])
    print(f"{same / args.k:.6f} of the neighbours agree")


if __name__ == "__main__":
    main()
