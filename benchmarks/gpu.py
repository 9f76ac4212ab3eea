"""facejax beside PyTorch on one GPU.

    python -m benchmarks.gpu --json PATH                         # every list that fits into --budget, in order
    python -m benchmarks.gpu recognition --recognition_batch 128 256 512
    python -m benchmarks.gpu scrfd --compile scrfd               # PyTorch's side compiled, too
    python -m benchmarks.gpu --tiny                              # tiny shapes on any device; the default without a GPU

A measurement compiles, warms up and takes the fastest of several timed runs, on random inputs that lie on the device.
Parameters are float32, computations bfloat16 (autocast in PyTorch). A training step has loss, gradients and update;
ours also makes the targets, which PyTorch is given. Both sides of a list run in processes of their own, so that none
holds the other's memory; a list that the budget ends keeps what it has measured. Compiled programs are kept on disk,
so that a second run takes less time. Needs jax, flax, optax and, for its side, torch.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

ROUNDS, LEAST = 5, 0.3
"""Timed runs of a measurement, and about how many seconds one of them takes."""
SIDES = {"facejax": "benchmarks.gpu_facejax", "PyTorch": "benchmarks.gpu_torch"}
PRODUCT = "bfloat16 matrix product"


class Entry(NamedTuple):
    """A list.

    Attributes:
      batch: default of its flag.
      seconds: left of the budget below which it is not begun; a guess.
      sizes: arguments of both sides' functions of the list's name, (batch, **sizes) -> Iterator[Work].
      tiny_batch, tiny: the same of `--tiny`.
      sides: that have it.
      compiled: whether PyTorch's networks are compiled by default.
    """

    batch: int
    seconds: int
    sizes: Mapping[str, Any]
    tiny_batch: int
    tiny: Mapping[str, Any]
    sides: Sequence[str] = tuple(SIDES)
    compiled: bool = False


class Work(NamedTuple):
    """A measurement.

    Attributes:
      what: is done; the same text on both sides.
      amount: of `unit` in a call.
      build: returns the call without arguments, which returns what to wait for.
      unit: what is counted.
      flops: of a unit; 0: no share of the peak is asked, or the other side says it.
    """

    what: str
    amount: float
    build: Callable[[], Callable[[], Any]]
    unit: str = "images"
    flops: float = 0.0


LISTS = {
    "recognition": Entry(
        256, 90,
        {
            "networks": {"IResNet-50": (3, 4, 14, 3), "IResNet-100": (3, 13, 30, 3)},
            "widths": (64, 128, 256, 512), "embedding": 512, "side": 112, "classes": 93_431, "product": 8192,
        },
        2,
        {
            "networks": {"IResNet": (1, 1)}, "widths": (8, 8), "embedding": 8, "side": 8, "classes": 20,
            "product": 64,
        },
        compiled=True,
    ),
    "scrfd": Entry(
        32, 40,
        {
            "stem": 56, "widths": (56, 88, 88, 224), "depths": (3, 4, 2, 3), "neck": 56, "head": 80, "head_depth": 3,
            "groups": 16, "side": 640, "boxes": 128,
        },
        2,
        {
            "stem": 8, "widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "neck": 8, "head": 8, "head_depth": 1,
            "groups": 4, "side": 64, "boxes": 3,
        },
    ),
    "adaptive_wing": Entry(
        32, 60, {"landmarks": 98, "stacks": 4, "depth": 4, "features": 256, "side": 256},
        2, {"landmarks": 68, "stacks": 2, "depth": 1, "features": 8, "side": 32},
    ),
    "prnet": Entry(32, 30, {"width": 16, "side": 256}, 2, {"width": 2, "side": 32}),
    "rendering": Entry(100, 15, {"grid": 195, "side": 256}, 2, {"grid": 20, "side": 32}, sides=("facejax",)),
    "stylegan2": Entry(
        32, 60, {"resolution": 256, "latent": 512, "layers": 8, "base": 16_384, "largest": 512, "steps": 16},
        2, {"resolution": 8, "latent": 4, "layers": 1, "base": 16, "largest": 4, "steps": 1},
    ),
    "super_resolution": Entry(
        16, 30, {"features": 256, "blocks": 32, "scale": 2, "side": 48},
        2, {"features": 8, "blocks": 1, "scale": 2, "side": 8},
    ),
    "margin_head": Entry(
        256, 20, {"classes": (1_000_000, 10_000_000), "embedding": 512, "chunk": 50_000},
        2, {"classes": (50,), "embedding": 8, "chunk": 20}, sides=("facejax",),
    ),
}  # fmt: skip


def rate(work: Work, wait: Callable[[Any], Any], least: float) -> float:
    """Units a second of the fastest timed run, each of about `least` seconds."""
    call = work.build()
    for _ in range(2):
        wait(call())
    begun = time.perf_counter()
    wait(call())
    calls = max(1, round(least / (time.perf_counter() - begun)))
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(calls):
            result = call()
        wait(result)
        times.append(time.perf_counter() - begun)
    return work.amount * calls / min(times)


def measure(
    side: str, name: str, batches: Sequence[int] = (), tiny: bool = True, compiled: bool = False
) -> Iterator[dict[str, Any]]:
    """One side of a list: a row with its versions and device, then a row for every measurement.

    Args:
      side: of `SIDES`.
      name: of `LISTS`.
      batches: the list's default when empty.
      tiny: tiny shapes.
      compiled: whether PyTorch's networks are compiled.
    """
    module, entry = importlib.import_module(SIDES[side]), LISTS[name]
    batch, sizes = (entry.tiny_batch, entry.tiny) if tiny else (entry.batch, entry.sizes)
    options = {"compiled": compiled} if side == "PyTorch" else {}
    about = module.about()
    if not tiny and "cpu" in about.values():
        raise RuntimeError(f"{side} finds no GPU")
    yield {"about": about}
    for size in batches or (batch,):
        for work in getattr(module, name)(size, **sizes, **options):
            row = {"list": name, "what": work.what, "batch": size, "unit": work.unit}
            row |= {"flops": work.flops} if work.flops else {}
            try:
                row[side] = rate(work, module.wait, 0.0 if tiny else LEAST)
            except Exception as error:  # such as too little memory: the next may run
                row["error"] = f"{side}: {type(error).__name__}: {str(error).partition(os.linesep)[0]}"
            yield row
            module.free()


def send(connection: Any, *arguments: Any) -> None:
    """The rows of `measure`, to another process."""
    for row in measure(*arguments):
        connection.send(row)


def rows(seconds: float, *arguments: Any) -> Iterator[dict[str, Any]]:
    """The rows of `measure`, from a process of its own that ends after so many seconds."""
    context, deadline = multiprocessing.get_context("spawn"), time.monotonic() + seconds
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(sender, *arguments))
    process.start()
    sender.close()
    side, name = arguments[:2]
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            yield receiver.recv()
        process.kill()
        process.join()
        yield {"list": name, "error": f"{side}: the budget ended"}
    except EOFError:
        process.join()
        if process.exitcode:
            yield {"list": name, "error": f"{side}: ended with code {process.exitcode}"}


def merged(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for both sides of a measurement, with the ratio of facejax over PyTorch and its share of the peak."""
    joined: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in found:
        both = joined.setdefault(tuple(row.get(key) for key in ("list", "what", "batch")), {})
        errors = [one["error"] for one in (both, row) if "error" in one]
        both.update(row)
        if errors:
            both["error"] = "; ".join(errors)
    products = [row for row in joined.values() if row.get("what") == PRODUCT]
    peak = max((row.get(side, 0.0) for row in products for side in SIDES), default=0.0)
    for row in joined.values():
        if all(side in row for side in SIDES):
            row["ratio"] = row["facejax"] / row["PyTorch"]
        if peak and row.get("flops") and "facejax" in row:
            row["share"] = row["facejax"] * row["flops"] / peak
    return list(joined.values())


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of merged rows."""
    lines = ["| list | what | batch | facejax | PyTorch | ratio | share of peak |", "|---|---|---|---|---|---|---|"]
    for row in found:
        numbers = [f"{row[side]:.4g} {row['unit']}/s" if side in row else "" for side in SIDES]
        numbers[1] += f" ({row['form']})" if row.get("form") and "PyTorch" in row else ""
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        share = f"{row['share']:.1%}" if "share" in row else ""
        what = "; ".join(row[key] for key in ("what", "error") if key in row)
        lines.append(f"| {row['list']} | {what} | {row.get('batch', '')} | {' | '.join(numbers)} | {ratio} | {share} |")
    return "\n".join(lines)


def has_gpu() -> bool:
    """Whether JAX finds one; asked in another process, because this one must not take its memory."""
    code = "import jax; print(jax.default_backend())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "gpu"


def main(given: Sequence[str] | None = None) -> int:
    """Reads the flags, runs the lists, prints the table; 1 where something failed."""
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="LIST", help=f"of {', '.join(LISTS)}; all when none is given")
    parser.add_argument("--json", type=pathlib.Path, help="file for the rows, written after every list")
    parser.add_argument("--budget", type=float, default=530.0, help="seconds; under 9 minutes by default")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes; always without a GPU")
    parser.add_argument("--no_torch", action="store_true", help="facejax alone")
    default = [name for name, entry in LISTS.items() if entry.compiled]
    parser.add_argument("--compile", nargs="*", default=default, metavar="LIST", help="whose PyTorch is compiled")
    for name, entry in LISTS.items():
        parser.add_argument(f"--{name}_batch", type=int, nargs="+", default=[], help=f"default {entry.batch}")
    flags = parser.parse_args(given)
    unknown = [name for name in (*flags.names, *flags.compile) if name not in LISTS]
    if unknown:
        parser.error(f"there is no list {', '.join(unknown)}: expected of {', '.join(LISTS)}")
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home / "facejax" / "compiled"))
    tiny = flags.tiny or not has_gpu()
    left_out = [] if importlib.util.find_spec("torch") and not flags.no_torch else ["PyTorch"]
    about, found, skipped = {"tiny": tiny}, [], []
    for name in flags.names or LISTS:
        left = flags.budget - (time.monotonic() - begun)
        if left < LISTS[name].seconds:
            skipped.append(name)
            print(f"{name}: skipped, {left:.0f} s of the budget are left and it needs {LISTS[name].seconds} or more")
            continue
        for side in LISTS[name].sides:
            if side in left_out:
                continue
            left = flags.budget - (time.monotonic() - begun)
            for row in rows(left, side, name, vars(flags)[f"{name}_batch"], tiny, name in flags.compile):
                about |= row.pop("about", {})
                if row:
                    form = {"form": "compiled" if name in flags.compile else "eager"} if side == "PyTorch" else {}
                    found.append(row | form)
                    print(json.dumps(found[-1]), flush=True)
        if flags.json:
            written = {**about, "seconds": time.monotonic() - begun, "skipped": skipped, "rows": merged(found)}
            flags.json.write_text(json.dumps(written, indent=1) + "\n")
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n")
    print(table(merged(found)))
    return int(any("error" in row for row in found))


if __name__ == "__main__":
    sys.exit(main())
