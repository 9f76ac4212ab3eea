"""One step, three executors: bit-identical for equal arithmetic, within 1e-5 for another order of summation."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.train import Mean, parallel
from facejax.train import state as state_module


def run(toy, preset, kind, devices, steps=20, **overrides):
    config = toy.get_config(preset)
    config.update_from_flattened_dict(overrides)
    experiment = toy.build(config)
    executor = parallel.make_executor(experiment, kind, devices)
    state, batches, losses = executor.init(config.seed), experiment.train_data(), []
    for _ in range(steps):
        state, metrics = executor.step(state, executor.put(next(batches)))
        losses.append(float(metrics["loss"].total / metrics["loss"].count))
    batches.close()
    canonical = executor.canonical(state)
    return np.array(losses), jax.tree.map(np.asarray, (canonical.params, canonical.model_state, canonical.ema))


@pytest.fixture(scope="module")
def runs(toy):
    done = {}

    def get(preset, kind, devices, **overrides):
        key = (preset, kind, devices, *overrides.items())
        if key not in done:
            done[key] = run(toy, preset, kind, devices, **overrides)
        return done[key]

    return get


@pytest.mark.parametrize("preset", ["synthetic", "dropout", "sharded"])
def test_pmap_and_shard_map_are_equal_bit_for_bit(runs, preset):
    mapped, pmapped = runs(preset, "shard_map", 8), runs(preset, "pmap", 8)
    np.testing.assert_array_equal(mapped[0], pmapped[0])
    chex.assert_trees_all_equal(mapped[1], pmapped[1])


@pytest.mark.parametrize("preset", ["synthetic", "sharded"])
def test_one_device_equals_eight(runs, preset):
    one, eight = runs(preset, "shard_map", 1), runs(preset, "shard_map", 8)
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(one[1], eight[1], rtol=1e-5, atol=1e-5)
    assert eight[0][-1] < eight[0][0] - 0.1


def test_sharded_head_equals_replicated_head(runs):
    chex.assert_trees_all_close(
        runs("sharded", "shard_map", 8), runs("synthetic", "shard_map", 8), rtol=1e-5, atol=1e-5
    )


def test_a_wrong_gradient_rule_is_detected(toy, runs, monkeypatch):
    def undivided(grads, sharded=()):
        specs = state_module.partition(grads, sharded)
        return jax.tree.map(lambda g, s: jax.lax.pmean(g, "data") if s == jax.P() else g, grads, specs)

    monkeypatch.setattr(state_module, "reduce_gradients", undivided)
    wrong = run(toy, "sharded", "shard_map", 8)
    assert np.abs(wrong[0] - runs("synthetic", "shard_map", 8)[0]).max() > 1e-2


def test_microbatches_add_up_to_the_whole_batch(toy):
    def loss_fn(params, model_state, batch, rng):
        loss = (batch["x"] @ params["w"] - batch["y"]) ** 2
        return loss.mean(), (model_state, {"loss": Mean.of(loss)})

    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(12, 3)), "y": rng.normal(size=12)}
    params = {"w": jnp.ones(3)}
    whole = state_module.value_and_grad(loss_fn)(params, {}, batch, jax.random.key(0))
    sliced = state_module.value_and_grad(loss_fn, 4)(params, {}, batch, jax.random.key(0))
    chex.assert_trees_all_close(whole, sliced, rtol=1e-5)
    with pytest.raises(ValueError, match="does not split into 5"):
        state_module.value_and_grad(loss_fn, 5)(params, {}, batch, jax.random.key(0))


def test_dropout_differs_between_devices_and_steps(toy):
    seen = []

    def step(state, batch, rng):
        return state.replace(step=state.step + 1), {"draw": Mean.of(jax.random.uniform(rng) * batch["one"])}

    experiment = state_module.Experiment(None, train_step=step)
    state = state_module.TrainState(jnp.int32(0), jax.random.key(0), {}, {})
    for devices in (1, 8):
        executor = parallel.make_executor(experiment, "shard_map", devices)
        current = jax.tree.map(jnp.copy, state)
        for _ in range(2):
            current, metrics = executor.step(current, executor.put({"one": np.ones(8, np.float32)}))
            seen.append(float(metrics["draw"].total))
    assert len(set(seen)) == 4


def test_mean_ignores_masked_values():
    mean = Mean.of(jnp.array([[1.0, 2.0], [3.0, jnp.nan]]), jnp.array([[True, True], [True, False]]))
    assert (float(mean.total), float(mean.count)) == (6.0, 3.0)


def test_map_batches_pads_and_cuts():
    inputs = np.arange(21, dtype=np.float32)
    outputs = parallel.map_batches(lambda scale, x: {"y": scale * x}, jnp.float32(2), inputs, 10)
    np.testing.assert_array_equal(outputs["y"], 2 * inputs)
    loaded = parallel.map_batches(lambda _, x: x + 1, 0.0, list(range(5)), 3, load=lambda part: np.float32(part))
    np.testing.assert_array_equal(loaded, np.arange(5) + 1)
    with pytest.raises(ValueError, match="loaded 1 samples of the 8 at 0"):
        parallel.map_batches(lambda _, x: x, 0.0, list(range(8)), 3, load=lambda part: np.float32(part[:1]))
    with pytest.raises(ValueError, match="got no samples"):
        parallel.map_batches(lambda _, x: x, 0.0, np.zeros((0, 2)), 4)


def test_invalid_arguments_raise(toy):
    experiment = toy.build(toy.get_config())
    with pytest.raises(ValueError, match="expected one of shard_map, pmap"):
        parallel.make_executor(experiment, "pjit")
    with pytest.raises(ValueError, match="asks for 99 devices, but 8 are visible"):
        parallel.make_executor(experiment, "shard_map", 99)


def test_hosts_use_all_devices(toy, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    experiment = toy.build(toy.get_config())
    with pytest.raises(ValueError, match=r"train.devices is 4 of 8: several hosts use all, expected 0"):
        parallel.make_executor(experiment, "shard_map", 4)
    parallel.make_executor(experiment, "shard_map", 8)


def start(workdir, devices, *flags):
    level = "--xla_backend_optimization_level=1 --xla_force_host_platform_device_count="
    environment = {"PYTHONPATH": str(pathlib.Path(__file__).parents[2]), "XLA_FLAGS": f"{level}{devices}"}
    command = [sys.executable, str(pathlib.Path(__file__).with_name("toy.py")), f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)


def start_two(workdir, *flags):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        joined = [f"--coordinator=localhost:{free.getsockname()[1]}", "--num_processes=2"]
    return [start(workdir, 1, *flags, *joined, f"--process_id={i}") for i in range(2)]


def codes(processes):
    return [p.wait(timeout=180) for p in processes]


def test_two_processes_equal_one_with_two_devices(tmp_path):
    """The same global batches, and the same numbers from them, however the devices are spread over processes."""
    assert codes([*start_two(tmp_path / "two"), start(tmp_path / "one", 2)]) == [0, 0, 0]
    lines = [(tmp_path / folder / "metrics.jsonl").read_text() for folder in ("one", "two")]
    assert lines[0] == lines[1]
    assert len(json.loads(lines[0].splitlines()[0])) == 2


def test_a_run_moves_between_processes_and_workers(tmp_path):
    """Two processes for ten steps, then one with two devices and two workers; a whole run logs the same."""
    flags = ["--config.optim.schedule.kind=constant", "--config.train.log_every=5"]
    first = start_two(tmp_path / "moved", *flags, "--config.train.steps=10")
    assert codes([*first, start(tmp_path / "whole", 2, *flags)]) == [0, 0, 0]
    assert codes([start(tmp_path / "moved", 2, *flags, "--config.data.workers=2")]) == [0]
    assert (tmp_path / "moved" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
