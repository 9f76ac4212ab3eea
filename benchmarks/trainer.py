"""Overhead of the training loop over its jitted step: `python -m benchmarks.trainer`."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.compare import record
from facejax.train import Experiment, Mean, Options, Report, TrainState, parallel, supervised_step, train

STEPS, WIDTH, BATCH = 200, 1024, 256


def experiment() -> Experiment:
    """Dense layers whose step takes about 20 ms on two cores."""
    tx = optax.sgd(1e-3)

    def init(rng: jax.Array) -> TrainState:
        keys = jax.random.split(rng, 3)
        return TrainState.create(rng, [0.02 * jax.random.normal(k, (WIDTH, WIDTH)) for k in keys], tx)

    def loss_fn(params, model_state, batch, rng):
        del rng
        x = batch["x"]
        for w in params:
            x = jnp.tanh(x @ w)
        losses = jnp.mean(x * x, -1)
        return losses.mean(), (model_state, {"loss": Mean.of(losses)})

    shape = {"x": jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)}
    return Experiment(lambda _: Report({"done": 1.0}), init, supervised_step(loss_fn, tx), batches, shape)


def batches():
    """Cycles through a few batches."""
    rng = np.random.default_rng(0)
    pool = [{"x": rng.normal(size=(BATCH, WIDTH)).astype(np.float32)} for _ in range(8)]
    while True:
        yield from pool


def bare(steps: int) -> float:
    """Seconds of the jitted step alone, with the same input path as the loop."""
    run = experiment()
    executor = parallel.make_executor(run, "shard_map", 1)
    state, data = executor.init(0), batches()
    state, metrics = executor.step(state, executor.put(next(data)))
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = executor.step(state, executor.put(next(data)))
        jax.block_until_ready(metrics)
    jax.block_until_ready(state)
    return time.perf_counter() - start


def looped(steps: int) -> float:
    """Seconds per step in the loop: a long run minus a short one, which excludes compilation."""
    times = []
    for count in (steps // 10, steps // 10 + steps):
        start = time.perf_counter()
        train(experiment(), Options(BATCH, count, log_every=50, devices=1), seed=0, quiet=True)
        times.append(time.perf_counter() - start)
    return times[1] - times[0]


if __name__ == "__main__":
    pairs = [(bare(STEPS), looped(STEPS)) for _ in range(3)]
    step_times, loop_times = zip(*pairs, strict=True)
    record(f"{STEPS} steps of the training loop", {"the bare step": step_times, "facejax": loop_times})
    ratios = sorted(loop / step for step, loop in pairs)
    for step, loop in pairs:
        print(f"step {1e3 * step / STEPS:.2f} ms   in the loop {1e3 * loop / STEPS:.2f} ms   ratio {loop / step:.3f}")
    print(f"median ratio {ratios[1]:.3f}")
