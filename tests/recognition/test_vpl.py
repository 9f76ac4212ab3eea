from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import vpl as experiment
from facejax.data import normalize
from facejax.evaluate import embedder
from facejax.nn.norm import BatchNorm
from facejax.recognition import arcface, vpl
from facejax.recognition.vpl import Memory
from facejax.train import AXIS, Options, app
from facejax.train.dry_run import dry_run
from facejax.train.parallel import make_executor

CLASSES, WIDTH = 12, 5


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def problem(seed=0, batch=9):
    """Features, centres, labels, and a memory that was written at steps 0 (never) to 11."""
    rng = np.random.default_rng(seed)
    features, centres = rng.normal(size=(batch, WIDTH)), rng.normal(size=(CLASSES, WIDTH))
    memory = Memory(unit(rng.normal(size=(CLASSES, WIDTH))), np.arange(CLASSES, dtype=np.int32))
    labels = rng.integers(0, CLASSES, batch).astype(np.int32)
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32 if x.dtype == float else None), (features, centres, labels, memory)
    )


def loss(features, centres, labels, memory, step, **limits):
    prototypes = vpl.inject(centres, memory, vpl.injection_rates(memory, step, **limits))
    return arcface.margin_softmax_loss(features, prototypes, labels, scale=8.0)


def test_golden_prototype():
    memory = Memory(jnp.array([[0.0, 1.0, 0.0]]), jnp.array([1]))
    for length in (1.0, 7.0):  # the norm of the centre has no effect
        prototype = vpl.inject(jnp.array([[length, 0.0, 0.0]]), memory, jnp.array([0.15]))
        np.testing.assert_allclose(prototype, [[0.98478356, 0.17378533, 0]], rtol=1e-6)


def test_rates_by_hand():
    memory = problem()[3]
    rates = vpl.injection_rates(memory, 11, rate=0.3, start=10, lifetime=4)
    np.testing.assert_allclose(rates, [0.3 if 7 <= c <= 11 else 0 for c in range(CLASSES)])
    assert not vpl.injection_rates(memory, 10, rate=0.3, start=10, lifetime=4).any()
    never = vpl.injection_rates(memory, 1, rate=0.3, start=0, lifetime=4)
    assert never[0] == 0  # although the step is within the lifetime
    assert never[1] > 0
    defaults = vpl.injection_rates(memory.replace(written=memory.written + 7995), 8001)
    np.testing.assert_allclose(defaults, 0.15)
    assert not vpl.injection_rates(memory.replace(written=jnp.full(CLASSES, 8000)), 8201).any()


@pytest.mark.parametrize(
    ("step", "limits"),
    [
        (12, {"rate": 0.0, "start": 0}),
        (12, {"start": 12}),
        (500, {"start": 0, "lifetime": 200}),
    ],
)
def test_without_injection_equals_arcface(step, limits):
    features, centres, labels, memory = problem()
    found = jax.value_and_grad(lambda x, w: loss(x, w, labels, memory, step, **limits).mean(), (0, 1))
    plain = jax.value_and_grad(lambda x, w: arcface.margin_softmax_loss(x, w, labels, scale=8.0).mean(), (0, 1))
    wanted = jax.jit(plain)(features, centres)
    chex.assert_trees_all_close(jax.jit(found)(features, centres), wanted, rtol=1e-5, atol=1e-6)
    injected = loss(features, centres, labels, memory, 12, start=0).mean()
    assert abs(injected - wanted[0]) > 1e-2


def test_prototypes_have_unit_length_and_equal_the_samples_at_rate_one():
    _, centres, _, memory = problem()
    rates = jnp.linspace(0, 1, CLASSES)
    np.testing.assert_allclose(jnp.linalg.norm(vpl.inject(centres, memory, rates), axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(vpl.inject(centres, memory, jnp.ones(CLASSES)), memory.features, rtol=1e-5)
    half = vpl.inject(centres.astype(jnp.bfloat16), memory, rates)
    assert half.dtype == jnp.float32


def test_gradients():
    with jax.enable_x64(True):
        features, centres, labels, memory = problem()
        features, centres = features.astype(jnp.float64), centres.astype(jnp.float64)
        memory = memory.replace(features=memory.features.astype(jnp.float64))
        limits = {"rate": 0.4, "start": 0, "lifetime": 6}

        @jax.jit
        def total(features, centres, bank):
            return loss(features, centres, labels, memory.replace(features=bank), 12, **limits).mean()

        jax.test_util.check_grads(
            lambda x, w: total(x, w, memory.features), (features, centres), order=1, modes=["rev"], rtol=1e-5
        )
        assert not jax.grad(total, 2)(features, centres, memory.features).any()
        kept = jax.grad(lambda x: vpl.remember(memory, labels, x, 3).features.sum())(features)
        assert not kept.any()


def test_memory_equals_a_loop_over_rows():
    memory = problem()[3]
    labels = np.array([3, 11, 3, -1, 0, 12, 3, 11, -5], np.int32)
    features = 4 * np.random.default_rng(1).normal(size=(9, WIDTH)).astype(np.float32)
    new = jax.jit(vpl.remember)(memory, labels, features, 40)
    bank, written = np.array(memory.features), np.array(memory.written)
    for label, row in zip(labels, features, strict=True):
        if 0 <= label < CLASSES:
            bank[label], written[label] = unit(row), 40
    np.testing.assert_allclose(new.features, bank, atol=1e-6)
    np.testing.assert_array_equal(new.written, written)
    np.testing.assert_allclose(new.features[3], unit(features[6]), atol=1e-6)
    untouched = np.isin(np.arange(CLASSES), labels, invert=True)
    np.testing.assert_array_equal(new.features[untouched], memory.features[untouched])
    assert new.written.dtype == jnp.int32


def test_empty_memory():
    memory = Memory.create(jax.random.key(0), 50, 8)
    np.testing.assert_allclose(jnp.linalg.norm(memory.features, axis=1), 1, rtol=1e-6)
    assert not vpl.injection_rates(memory, 9000).any()


def test_many_steps_equal_the_authors_rule_in_numpy():
    """The authors' rule by a loop over classes in float64, over steps in which some features become too old."""
    rng, memory = np.random.default_rng(3), Memory.create(jax.random.key(0), CLASSES, WIDTH)
    bank, written = np.array(memory.features, np.float64), np.zeros(CLASSES, int)
    step_fn = jax.jit(lambda w, m, t: vpl.inject(w, m, vpl.injection_rates(m, t, rate=0.2, start=6, lifetime=3)))
    mixed = 0
    for t in range(1, 16):
        centres = rng.normal(size=(CLASSES, WIDTH))
        wanted = unit(centres)
        for c in range(CLASSES):
            if t > 6 and written[c] and t - written[c] <= 3:
                wanted[c] = unit(0.8 * wanted[c] + 0.2 * bank[c])
                mixed += 1
        np.testing.assert_allclose(step_fn(centres.astype(np.float32), memory, t), wanted, atol=2e-6)
        labels, features = rng.integers(0, CLASSES, 4), rng.normal(size=(4, WIDTH))
        bank[labels], written[labels] = unit(features), t
        memory = vpl.remember(memory, jnp.asarray(labels), jnp.asarray(features, jnp.float32), t)
    assert 20 < mixed < 9 * CLASSES


class Small(nn.Module):
    """A backbone that compiles quickly and shares batch statistics over the devices."""

    embedding_size: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = AXIS

    @nn.compact
    def __call__(self, images, *, train):
        x = BatchNorm(self.axis_name)(images.reshape(len(images), -1), train=train)
        return nn.Dense(self.embedding_size)(x)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(embedder.MINIATURES, "small", Small)


def smoke(path, preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.source": "path", "data.path": str(path), "data.image_size": 16, "data.held_out": 0.25,
            "data.classes": 6, "model.name": "small", "model.embedding_size": 8, "vpl.start": 1, "vpl.lifetime": 2,
            "optim.schedule.kind": "constant", "train.steps": 4, "train.batch_size": 8, "train.log_every": 1,
            "eval.batch_size": 8,
            **changes,
        }
    )  # fmt: skip
    return config


def batches(classes=16, count=5):
    """Batches of 16 in which a class occurs on several devices."""
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8),
            "label": rng.integers(0, classes // 2, 16).astype(np.int32) * 2,
        }
        for _ in range(count)
    ]


def steps(kind, devices, **changes):
    config = smoke("", **{"data.image_size": 8, "data.classes": 16, "train.devices": devices, **changes})
    executor = make_executor(experiment.build(config), kind, devices)
    state, found = executor.init(0), []
    for batch in batches():
        state, metrics = executor.step(state, executor.put(batch))
        found.append(jax.tree.map(np.asarray, (executor.local(executor.canonical(state)).replace(rng=None), metrics)))
    return found


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_eight_devices_equal_one(momentum):
    """Replicated or sharded, under shard_map and pmap, the memory equals that of one device with the whole batch."""
    one = steps("shard_map", 1, **{"vpl.momentum": momentum})
    for kind, split in [("shard_map", False), ("shard_map", True), ("pmap", False), ("pmap", True)]:
        eight = steps(kind, 8, **{"vpl.momentum": momentum, "loss.sharded": split})
        for (state, metrics), (other, measured) in zip(one, eight, strict=True):
            memory, same = state.model_state["memory"], other.model_state["memory"]
            np.testing.assert_array_equal(same.written, memory.written)
            seen = memory.written > 0
            np.testing.assert_allclose(same.features[seen], memory.features[seen], rtol=1e-3, atol=1e-4)
            chex.assert_trees_all_close(other.params, state.params, rtol=1e-3, atol=1e-4)
            chex.assert_trees_all_close(other.ema, state.ema, rtol=1e-3, atol=1e-4)
            for name in metrics:
                value, again = (m[name].total / max(m[name].count, 1) for m in (metrics, measured))
                np.testing.assert_allclose(again, value, rtol=1e-3, atol=1e-4)
    written = one[-1][0].model_state["memory"].written
    assert (written[1::2] == 0).all()
    for number, batch in enumerate(batches(), 1):
        assert (written[batch["label"]] >= number).all()
    assert one[0][1]["injected"].total == 0 == one[0][1]["memory_cosine"].count
    assert one[-1][1]["injected"].total > 0
    assert abs(one[-1][1]["memory_cosine"].total / one[-1][1]["memory_cosine"].count) <= 1


def test_stored_features_are_from_before_the_update():
    config = smoke("", **{"data.image_size": 8, "data.classes": 16, "train.devices": 1})
    wired, batch = experiment.build(config), batches()[0]
    executor = make_executor(wired, "shard_map", 1)
    state = executor.init(0)
    net = Small(8, axis_name=None)
    features, _ = net.apply(
        {"params": state.params["backbone"], "batch_stats": state.model_state["batch_stats"]},
        normalize.symmetric(batch["image"]),
        train=True,
        mutable=["batch_stats"],
    )
    after, _ = executor.step(state, executor.put(batch))
    for label in np.unique(batch["label"]):
        row = features[np.flatnonzero(batch["label"] == label)[-1]]
        np.testing.assert_allclose(after.model_state["memory"].features[label], unit(row), atol=1e-4)


def test_smoke_and_resume_with_memory(photographs, tmp_path):
    state, report = app.run(smoke(photographs), experiment.build, workdir=tmp_path / "whole", quiet=True)
    assert 0 <= report.metrics["tar_at_far_1e-1"] <= 1
    assert (tmp_path / "whole" / "report.html").stat().st_size > 20_000
    memory = state.model_state["memory"]
    assert memory.written.max() == 4
    app.run(smoke(photographs, **{"train.steps": 2}), experiment.build, workdir=tmp_path / "cut", quiet=True)
    again, _ = app.run(smoke(photographs), experiment.build, workdir=tmp_path / "cut", quiet=True)
    chex.assert_trees_all_equal(again.model_state, state.model_state)


def test_momentum_encoder_update_rate(photographs):
    config = smoke(photographs, "momentum", **{"train.steps": 2, "train.devices": 1})
    state, _ = app.run(config, experiment.build, quiet=True)
    first = make_executor(experiment.build(config), "shard_map", 1).init(0)
    gaps = [
        np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, pair), strict=True)))
        for pair in ((state.ema, first.ema), (state.params["backbone"], first.params["backbone"]))
    ]
    assert 0 < gaps[0] < 0.02 * gaps[1]  # one percent of one step; the last step is not included


PARAMETERS = {"ms1mv3_r50": 43_590_336 + 93_432 * 512, "ms1mv3_r100": 65_155_648 + 93_432 * 512}


@pytest.mark.parametrize("preset", experiment.PRESETS)
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset in PARAMETERS:
        assert costs["parameters"] == PARAMETERS[preset]
        memory = 93_432 // 8 * 4 * 513
        parameters = 2 * 4 * (PARAMETERS[preset] - 93_432 * 512 * 7 // 8)  # with momentum
        assert 0 <= costs["state bytes per device"] - memory - parameters < 1e6  # batch statistics
        assert config.train.steps == 25 * 5058
        assert tuple(config.optim.schedule.boundaries) == (50_580, 80_928, 106_218)
        assert config.vpl.to_dict() == {"rate": 0.15, "start": 8000, "lifetime": 200, "momentum": 0.0}
        assert (config.loss.scale, config.loss.angle, config.loss.grad_mode) == (64.0, 0.5, "exact")


def test_invalid_input_raises():
    memory = problem()[3]
    for limits in ({"rate": 1.5}, {"start": -1}, {"lifetime": -1}):
        with pytest.raises(ValueError, match=r"expected a rate in 0\.\.1 and two numbers of steps, not below 0"):
            vpl.injection_rates(memory, 1, **limits)
    with pytest.raises(ValueError, match=r"centres \(12, 4\), memory \(12, 5\) and rates \(12,\), expected \[C, D\]"):
        vpl.inject(jnp.ones((CLASSES, 4)), memory, jnp.ones(CLASSES))
    with pytest.raises(ValueError, match=r"labels \(3,\) and features \(3, 4\), expected \[N\] and \[N, 5\]"):
        vpl.remember(memory, jnp.zeros(3, jnp.int32), jnp.ones((3, 4)), 1)
    with pytest.raises(ValueError, match=r"train\.microbatches is 2: expected 1"):
        experiment.build(smoke("", **{"train.microbatches": 2}))
