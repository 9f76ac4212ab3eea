"""Runs the benchmarks that have a peer, one after the other, and keeps what they measured.

    python -m benchmarks                       # all that need no files
    python -m benchmarks nms knn               # these
    python -m benchmarks gcn --data DATA       # those of files, too
    python -m benchmarks --page                # writes docs/performance.md's first table

DATA holds planetoid (the files ind.cora.*), weights, faces/photos, wider_face_eval and, for wider_face, the folder
widerface_evaluate of github.com/biubug6/Pytorch_Retinaface.

Both sides get `--threads` threads. Every comparison is a line of results/benchmarks.jsonl: seconds of each run, date,
versions, device, load. The table has, of all runs of a comparison, the one with the median ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.compare import JOURNAL

ROOT = pathlib.Path(__file__).parents[1]
JSONL, PAGE = ROOT / "results" / "benchmarks.jsonl", ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
RUNS: dict[str, tuple[str, ...]] = {
    "embedding": (),
    "trainer": (),
    "input_pipeline": (),
    "margin_head": (),
    "knn": (),
    "nms": (),
    "heatmap_decode": (),
    "augmentation": (),
    "mesh_render": (),
    "landmark_fit": (),
    "super_resolution": (),
    "video_deblur": (),
    "stylegan2": (),
    "deformable": (),
    "neighbor_sampling": (),
    "batch_norm": (),
    "gcn": ("{data}/planetoid",),
    "tddfa_v2": ("{data}/weights/3ddfa_v2",),
    "aligners": ("{data}",),
    "detect_photo": (
        "{data}/weights/scrfd/scrfd_500m_kps.onnx", "{data}/faces/photos/multiface.jpg", "--threads", "{threads}",
    ),
    "analysis": ("{data}", "--speed", "--threads", "{threads}"),
    "wider_face": ("{data}/widerface_evaluate", "{data}/wider_face_eval"),
}  # fmt: skip
"""Benchmark -> arguments; {data} is the folder of `--data`, {threads} the number of `--threads`."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def ratios(row: Mapping[str, Any]) -> dict[str, float]:
    """Peer -> its least time over the least time of ours; other forms of facejax are no peers."""
    best = {name: min(values) for name, values in row["seconds"].items()}
    peers = [name for name in best if name != row["ours"] and not name.startswith("facejax")]
    return {name: best[name] / best[row["ours"]] for name in peers}


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: for every comparison with each peer the run of the median ratio, and the range of all runs' ratios."""
    found: dict[tuple[str, str, str], list[tuple[float, Mapping[str, Any]]]] = {}
    for row in rows:
        for peer, ratio in ratios(row).items():
            found.setdefault((row["benchmark"], row["work"], peer), []).append((ratio, row))
    lines = [
        "| benchmark | work | facejax | peer | ratio | of all runs | conditions |",
        "|---|---|---|---|---|---|---|",
    ]
    for (benchmark, work, peer), runs in found.items():
        ratio, row = sorted(runs, key=lambda run: run[0])[(len(runs) - 1) // 2]
        ours, theirs = (_time(min(row["seconds"][name])) for name in (row["ours"], peer))
        ours += "" if row["ours"] == "facejax" else f" ({row['ours']})"
        values = [ratio for ratio, _ in runs]
        span = f"{min(values):.2f}-{max(values):.2f} ({len(runs)})"
        where = f"{row['date'][:10]}, {row['threads']} threads, load {row['load']}, jax {row['versions']['jax']}"
        lines.append(f"| `{benchmark}` | {work} | {ours} | {peer} {theirs} | {ratio:.2f} | {span} | {where} |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a journal; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_page(page: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Puts the table between the page's two marks. Raises ValueError where they are missing."""
    text, new = page.read_text(), f"{BEGIN}\n{table(rows)}\n{END}"
    if not re.search(f"{BEGIN}.*{END}", text, re.DOTALL):
        raise ValueError(f"{page}: expected {BEGIN} and, after it, {END}")
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: new, text, flags=re.DOTALL))


def run(name: str, threads: int, data: str) -> int:
    """Runs a benchmark in a process of its own; the exit code."""
    environment = os.environ | dict.fromkeys(THREADS, str(threads)) | {JOURNAL: str(JSONL), "JAX_PLATFORMS": "cpu"}
    arguments = [argument.format(data=data, threads=threads) for argument in RUNS[name]]
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        cwd=ROOT, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, cores),
    ).returncode  # fmt: skip


def main() -> int:
    """Reads the flags and runs; 1 where a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--threads", type=int, default=2, help="of each side")
    parser.add_argument("--data", default="", help="folder of the files that some benchmarks need")
    parser.add_argument("--page", action="store_true", help="write the table of the recorded runs, run nothing")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in RUNS]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}: expected of {', '.join(RUNS)}")
    if arguments.page:
        write_page(PAGE, read(JSONL))
        return 0
    names = arguments.names or [name for name, given in RUNS.items() if arguments.data or not given]
    needy = [name for name in names if RUNS[name] and not arguments.data]
    if needy:
        parser.error(f"{', '.join(needy)}: expected --data DATA")
    before, failed = len(read(JSONL)), []
    for name in names:
        print(f"--- {name}", flush=True)
        if run(name, arguments.threads, arguments.data):
            failed.append(name)
    print(table(read(JSONL)[before:]))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
