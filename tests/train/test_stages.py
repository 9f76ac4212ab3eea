"""Steps chosen by number, growing parameters, resident arrays and prepared starts, with exact resume."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from facejax.train import AXIS, Experiment, Mean, Options, Report, TrainState, reduce_gradients, train, warm_start
from facejax.train.dry_run import dry_run

TX = optax.adam(0.1)


class Batches:
    """Batches of 8 samples, of 16 on every third step."""

    def __init__(self):
        self._done = 0

    def __next__(self):
        self._done += 1
        size = 16 if self._done % 3 == 0 else 8
        return {"x": np.random.default_rng(self._done).normal(size=(size, 2)).astype(np.float32)}

    def get_state(self):
        return self._done

    def set_state(self, state):
        self._done = state


def update(state, grads):
    updates, opt_state = TX.update(reduce_gradients(grads), state.opt_state, state.params)
    return state.replace(step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state)


def wire(**changes):
    def init(rng, start=None):
        return TrainState.create(rng, {"a": warm_start.taken(start, jnp.zeros(2))}, TX)

    def grow(state):
        params = {**state.params, "b": jax.random.normal(state.rng, (2,))}
        return state.replace(params=params, opt_state=TX.init(params))

    def plain(state, batch, rng):
        def loss(params):
            return jnp.mean((batch["x"] @ sum(params.values()) - batch["x"] @ batch["truth"]) ** 2)

        value, grads = jax.value_and_grad(loss)(state.params)
        return update(state, grads), {"loss": Mean.of(value)}

    def regularised(state, batch, rng):
        state, _ = plain(state, batch, rng)
        penalty = sum(jnp.sum(x**2) for x in state.params.values())
        return state.replace(params=jax.tree.map(lambda x: 0.9 * x, state.params)), {"penalty": Mean.of(penalty)}

    shapes = {name: {"x": jax.ShapeDtypeStruct((n, 2), jnp.float32)} for name, n in (("plain", 8), ("regularised", 16))}
    made = Experiment(
        evaluate=lambda state: Report({"a": float(state.params["a"][0])}),
        init=init,
        train_step={"plain": plain, "regularised": regularised},
        train_data=Batches,
        batch=shapes,
        prepare=lambda: np.ones(2, np.float32),
        choose=lambda number: "regularised" if number % 3 == 0 else "plain",
        grow={6: grow},
        resident=lambda: {"truth": jnp.array([2.0, -1.0])},
    )
    return dataclasses.replace(made, **changes)


def options(steps, **changes):
    return Options(batch_size=8, steps=steps, log_every=100, save_every=1, save_seconds=0.0, devices=2, **changes)


def test_a_resumed_run_repeats_steps_growth_and_start(tmp_path):
    whole, _ = train(wire(), options(10), seed=3, quiet=True)
    assert set(whole.params) == {"a", "b"}
    for steps in (4, 5, 6, 10):  # before, at and after the growth
        state, _ = train(wire(prepare=wire().prepare), options(steps), seed=3, workdir=tmp_path, quiet=True)
    chex.assert_trees_all_equal(state.params, whole.params)
    chex.assert_trees_all_equal(state.opt_state, whole.opt_state)


def test_pmap_runs_the_same_steps():
    states = [train(wire(), options(10, parallel=kind), seed=3, quiet=True)[0] for kind in ("shard_map", "pmap")]
    chex.assert_trees_all_equal(states[0].params, states[1].params)


def test_prepare_runs_only_for_a_new_run(tmp_path):
    first, _ = train(wire(), options(1), seed=3, workdir=tmp_path, quiet=True)
    without, _ = train(wire(prepare=None), options(1), seed=3, quiet=True)
    assert abs(float(first.params["a"][0]) - float(without.params["a"][0])) > 0.5

    def refuse():
        raise AssertionError("prepare must not run when a run resumes")

    train(wire(prepare=refuse), options(2), seed=3, workdir=tmp_path, quiet=True)
    dry_run(wire(prepare=refuse), options(10))


def test_prepare_comes_first_then_the_data_then_the_state():
    calls = []

    def note(name, fn):
        return lambda *args: (calls.append(name), fn(*args))[1]

    made = wire()
    parts = {name: note(name, getattr(made, name)) for name in ("prepare", "train_data", "init")}
    train(dataclasses.replace(made, **parts), options(1), seed=0, quiet=True)
    assert list(dict.fromkeys(calls)) == ["prepare", "train_data", "init"]

    def missing():
        raise ValueError("start.workdir has no run")

    calls.clear()
    with pytest.raises(ValueError, match="no run"):
        train(dataclasses.replace(made, **parts | {"prepare": missing}), options(1), seed=0, quiet=True)
    assert not calls


def test_each_step_is_compiled_once():
    traces = []

    def counted(name, step):
        def run(state, batch, rng):
            traces.append(name)
            return step(state, batch, rng)

        return run

    experiment = wire(grow={})
    steps = {name: counted(name, step) for name, step in experiment.train_step.items()}
    train(dataclasses.replace(experiment, train_step=steps), options(10), seed=0, quiet=True)
    assert sorted(traces) == ["plain", "regularised"]


def test_dry_run_counts_the_grown_state():
    assert dry_run(wire(), options(5))["parameters"] == 2
    assert dry_run(wire(), options(6))["parameters"] == 4


def test_full_batch_training_needs_no_data():
    def step(state, batch, rng):
        grads = {"a": state.params["a"] - batch["truth"] + 0 * jax.lax.axis_index(AXIS)}
        return update(state, grads), {"loss": Mean.of(grads["a"] ** 2)}

    experiment = wire(train_step=step, choose=None, train_data=None, batch={}, grow={})
    state, _ = train(experiment, options(200), seed=0, quiet=True)
    np.testing.assert_allclose(state.params["a"], [2.0, -1.0], atol=1e-2)


def test_inconsistent_steps_raise():
    with pytest.raises(ValueError, match="require each other"):
        wire(choose=None)
    with pytest.raises(ValueError, match="have batches"):
        wire(batch={})
    with pytest.raises(ValueError, match="named 'other'"):
        wire(choose=lambda number: "other").step_name(1)
    with pytest.raises(AssertionError, match="shape"):
        warm_start.taken(np.ones(3), jnp.ones(2))
