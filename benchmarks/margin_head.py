"""The margin softmax over very many classes: chunked versus dense, and sharded versus one device.

    python -m benchmarks.margin_head                                      # 1,000,000 classes: about 9 GiB of memory
    python -m benchmarks.margin_head --classes 100000 --shard_classes 10000

Every contender computes losses and gradients of features and centres, jitted, in float32, on the same input; their runs
alternate. "planned" is the temporary memory of the compiled program (per device), "resident" the growth of the process
during a run minus its results; both exclude the centres and their gradient. The devices of the sharded part are
simulated on the cores of the machine, so its ratio measures the overhead of sharding, not the gain.
"""

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.compare import record
from facejax.recognition import arcface

DEVICES = 8
GIB = 2**30


def resident() -> int:
    """Resident memory of this process, bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(call: Callable, arguments: tuple) -> tuple[object, float, int]:
    """Result of `call`, its seconds, and the peak growth of resident memory beyond the results, bytes."""
    before, done = resident(), threading.Event()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    results = jax.block_until_ready(call(*arguments))
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return results, seconds, peak - before - sum(x.nbytes for x in jax.tree.leaves(results))


def compare(work: str, contenders: dict[str, tuple[Callable, tuple]], repeats: int) -> None:
    """Prints seconds, memory and the ratio to the first contender; fails if losses or gradients differ by 1e-4."""
    print(work)
    compiled = {name: (call.lower(*arguments).compile(), arguments) for name, (call, arguments) in contenders.items()}
    seconds, memory = {name: [] for name in compiled}, {name: [] for name in compiled}
    for _ in range(repeats):
        first = None
        for name, (call, arguments) in compiled.items():
            (loss, gradients), duration, rise = run(call, arguments)
            seconds[name].append(duration)
            memory[name].append(rise)
            small = np.asarray(loss), np.asarray(gradients[0])
            del loss, gradients
            first = first or small
            for ours, theirs in zip(small, first):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max(), err_msg=name)
    *_, ours = compiled
    record(work, seconds, ours)
    base = statistics.median(seconds[next(iter(compiled))])
    for name, (call, _) in compiled.items():
        median, planned = statistics.median(seconds[name]), call.memory_analysis().temp_size_in_bytes
        print(
            f"  {name:10s} {median:7.2f} s ({min(seconds[name]):.2f}-{max(seconds[name]):.2f}), {base / median:5.2f} "
            f"times as fast; planned {planned / GIB:.3f} GiB, resident {max(memory[name]) / GIB:.3f} GiB",
            flush=True,
        )


def problem(classes: int, width: int, batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features, centres and labels drawn from a fixed seed."""
    keys = jax.random.split(jax.random.key(0), 3)
    centres = jax.jit(lambda key: 0.01 * jax.random.normal(key, (classes, width)))(keys[1])
    return jax.random.normal(keys[0], (batch, width)), centres, jax.random.randint(keys[2], (batch,), 0, classes)


def gradient(loss: Callable) -> Callable:
    return jax.jit(jax.value_and_grad(lambda f, w, y: loss(f, w, y).mean(), (0, 1)))


def sharded_gradient(mesh: Mesh, classes: int) -> Callable:
    """Value and gradients with the centres sharded over `mesh`, by the gradient rule for sharded leaves."""

    def per_device(features, centres, labels):
        def loss(features, centres):
            return arcface.sharded_margin_softmax_loss(
                features, centres, labels, axis_name="data", num_classes=classes
            ).mean()

        value, gradients = jax.value_and_grad(loss, (0, 1))(features, centres)
        return value, jax.tree.map(lambda g: g / lax.axis_size("data"), gradients)

    specs = (P(), (P("data"), P("data")))
    return jax.jit(jax.shard_map(per_device, mesh=mesh, in_specs=P("data"), out_specs=specs, check_vma=False))


def main() -> None:
    parser = argparse.ArgumentParser(description="The margin softmax over very many classes.")
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--shard_classes", type=int, default=100_000, help="classes of the sharded part")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.shard_classes % DEVICES:
        parser.error(f"--shard_classes={args.shard_classes}: expected a multiple of {DEVICES}")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)

    arguments = problem(args.classes, args.width, args.batch)
    dense = gradient(arcface.margin_softmax_loss)
    chunked = gradient(arcface.chunked_margin_softmax_loss)
    work = f"margin softmax, {args.classes:,} x {args.width}, batch {args.batch}, loss and gradients, one device"
    compare(work, {"dense": (dense, arguments), "chunked": (chunked, arguments)}, args.repeats)
    del arguments

    work = f"margin softmax, {args.shard_classes:,} x {args.width}, batch {args.batch}, {DEVICES} simulated devices"
    arguments = problem(args.shard_classes, args.width, args.batch)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = jax.device_put(arguments, NamedSharding(mesh, P("data")))
    sharded = sharded_gradient(mesh, args.shard_classes)
    compare(work, {"dense": (dense, arguments), "sharded": (sharded, split)}, args.repeats)


if __name__ == "__main__":
    main()
