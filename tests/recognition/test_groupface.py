from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import arcface
from experiments import groupface as experiment
from facejax.backbones import iresnet
from facejax.evaluate import embedder, groups
from facejax.nn.norm import BatchNorm
from facejax.recipes import recogniser as recipe
from facejax.recognition import groupface
from facejax.train import AXIS, Options, app
from facejax.train.dry_run import count, dry_run
from facejax.train.parallel import make_executor

GOLDEN = np.array([[0.7, 0.3], [0.6, 0.4], [0.55, 0.45]])


def test_golden_labels():
    with jax.enable_x64(True):
        expected = jnp.asarray(GOLDEN.mean(0))
        np.testing.assert_allclose(expected, [0.616667, 0.383333], rtol=1e-5)
        even = groupface.normalized_probabilities(jnp.asarray(GOLDEN), expected)
        np.testing.assert_allclose(even, [[0.541667, 0.458333], [0.491667, 0.508333], [0.466667, 0.533333]], rtol=1e-5)
        np.testing.assert_array_equal(groupface.self_distributed_labels(jnp.asarray(GOLDEN), expected), [0, 1, 1])
        np.testing.assert_array_equal(GOLDEN.argmax(1), [0, 0, 0])


@pytest.mark.parametrize("groups", [1, 3, 32])
def test_normalized_probabilities_have_a_uniform_mean(groups):
    p = jax.nn.softmax(3 * jax.random.normal(jax.random.key(0), (50, groups)) + jnp.arange(groups))
    even = groupface.normalized_probabilities(p, p.mean(0))
    np.testing.assert_allclose(even.mean(0), 1 / groups, rtol=1e-5)
    np.testing.assert_allclose(even.sum(1), 1, rtol=1e-5)
    labels = groupface.self_distributed_labels(p, p.mean(0))
    np.testing.assert_array_equal(labels, jnp.argmax(p - p.mean(0), 1))
    uniform = jnp.full(groups, 1 / groups)
    np.testing.assert_array_equal(groupface.self_distributed_labels(p, uniform), jnp.argmax(p, 1))


def test_normalisation_removes_a_bias_that_collapses_argmax():
    rng = np.random.default_rng(0)
    p = np.clip(0.7 + 0.05 * rng.normal(size=400), 0.51, 1)
    p = jnp.asarray(np.stack([p, 1 - p], 1))
    assert jnp.argmax(p, 1).sum() == 0
    share = groupface.self_distributed_labels(p, p.mean(0)).mean()
    assert 0.4 < share < 0.6


def test_the_window_contains_the_newest_means():
    rng = np.random.default_rng(1)
    means = rng.dirichlet(np.ones(3), 7).astype(np.float32)
    window = jnp.zeros((4, 3))
    np.testing.assert_allclose(groupface.expectation(window), 1 / 3)
    for i, mean in enumerate(means, 1):
        window = jax.jit(groupface.observe)(window, mean)
        np.testing.assert_array_equal(window[0], mean)
        np.testing.assert_allclose(groupface.expectation(window), means[max(i - 4, 0) : i].mean(0), rtol=1e-5)
    gradient = jax.grad(lambda m: groupface.expectation(groupface.observe(window, m))[0])(means[0])
    assert not gradient.any()


def test_soft_with_one_hot_equals_hard_and_hard_selects_the_best():
    rng = np.random.default_rng(0)
    branches, p = rng.normal(size=(6, 4, 5)).astype(np.float32), rng.dirichlet(np.ones(4), 6).astype(np.float32)
    soft = groupface.combine(branches, p, "soft")
    np.testing.assert_allclose(soft, np.sum(p[:, :, None] * branches, 1), rtol=1e-5)
    hard = groupface.combine(branches, p, "hard")
    np.testing.assert_array_equal(hard, [b[k] for b, k in zip(branches, p.argmax(1), strict=True)])
    one_hot = np.eye(4, dtype=np.float32)[p.argmax(1)]
    np.testing.assert_allclose(groupface.combine(branches, one_hot, "soft"), hard, rtol=1e-6)
    gradients = jax.grad(lambda q: groupface.combine(branches, q, "soft")[:, 0].sum())(p)
    np.testing.assert_allclose(gradients, branches[:, :, 0], rtol=1e-6)
    assert not jax.grad(lambda q: groupface.combine(branches, q, "hard").sum())(p).any()
    np.testing.assert_array_equal(groupface.combine(branches, p, "none"), np.zeros(hard.shape))


class Small(nn.Module):
    """A backbone that compiles quickly, with the names of an IResNet; can share batch statistics over devices."""

    embedding_size: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        x = BatchNorm(self.axis_name, name="bn2")(images.reshape(len(images), -1), train=train)
        x = nn.Dense(self.embedding_size, name="fc")(x)
        return BatchNorm(self.axis_name, use_scale=False, name="features")(x, train=train)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(0), (5, 8, 8, 3), minval=-1.0)


@pytest.mark.parametrize("ensemble", ["soft", "hard"])
def test_the_network_equals_its_parts(images, ensemble):
    net = groupface.GroupFace(Small(16), 3, 7, (6, 4), ensemble)
    variables = net.init(jax.random.key(1), images, train=False)
    found = net.apply(variables, images, train=False)
    chex.assert_shape(list(found), [(5, 7), (5, 3), (5, 4)])
    params = jax.tree.map(np.asarray, variables["params"])
    stats = variables["batch_stats"]["backbone"]
    shared = Small(16).apply({"params": params["backbone"], "batch_stats": stats}, images, train=False)
    instance = shared @ params["instance"]["kernel"] + params["instance"]["bias"]
    x = instance
    for i in range(2):
        layer = params["decision"][f"fc{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jnp.where(x >= 0, x, x * params["decision"][f"prelu{i}"]["slope"])
    logits = x @ params["decision"]["fc2"]["kernel"] + params["decision"]["fc2"]["bias"]
    p = np.asarray(jax.nn.softmax(logits))
    embedding = np.array(instance)
    for n in range(5):
        for k in range(3):
            weight = p[n, k] if ensemble == "soft" else float(k == p[n].argmax())
            branch = shared[n] @ params["branches"]["kernel"][:, k] + params["branches"]["bias"][k]
            embedding[n] += weight * branch
    np.testing.assert_allclose(found.embedding, embedding, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.decision, x, rtol=1e-4, atol=1e-5)


def test_one_group_has_probability_one(images):
    net = groupface.GroupFace(Small(16), 1, 7, (6, 4))
    variables = net.init(jax.random.key(1), images, train=False)
    soft = net.apply(variables, images, train=False)
    hard = net.clone(ensemble="hard").apply(variables, images, train=False)
    chex.assert_trees_all_close(soft, hard, rtol=1e-6)
    p = jax.nn.softmax(soft.logits)
    np.testing.assert_array_equal(p, 1)
    assert not groupface.self_distributed_labels(p, p.mean(0)).any()
    assert groups.entropy(np.ones(1)) == 1


def test_group_aware_similarity_by_hand():
    cosine, distance = jnp.array([0.5, 0.5, 0.9]), jnp.array([0.0, 8.0, 0.027])
    np.testing.assert_allclose(groupface.group_aware_similarity(cosine, distance), [0.5, 0.3, 0.87], rtol=1e-5)
    np.testing.assert_array_equal(groupface.group_aware_similarity(cosine, distance, beta=0.0), cosine)


def full_size(groups):
    """Parameters by layer: trunk up to the flattened map, shared feature, branches, decision network."""
    convolutions = 65_155_648 - (25_088 * 512 + 512) - 512
    shared = 25_088 * 4096 + 4096 + 4096  # dense layer and bias of the batch norm
    branches = (1 + groups) * (4096 * 512 + 512)
    decision = (512 * 256 + 256 + 256) + (256 * 256 + 256 + 256) + (256 * groups + groups)
    return convolutions + shared + branches + decision


@pytest.mark.parametrize("groups", [4, 16, 32])
def test_parameters_at_full_size(groups):
    net = groupface.GroupFace(iresnet.iresnet100(embedding_size=4096), groups)
    variables = jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, 112, 112, 3)), train=False), jax.random.key(0))
    assert count(variables["params"]) == full_size(groups)
    assert full_size(32) - full_size(0) == 32 * (4096 * 512 + 512) + 32 * 257  # branches and decision layer


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(embedder.MINIATURES, "small", lambda **options: Small(axis_name=AXIS, **options))


def smoke(path, preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.source": "path", "data.path": str(path), "data.image_size": 16, "data.held_out": 0.25,
            "data.classes": 6, "model.name": "small", "model.embedding_size": 8, "model.hidden": (6, 6),
            "groups.window": 3, "recogniser.steps": 0, "train.steps": 3, "train.batch_size": 8, "train.log_every": 1,
            "eval.batch_size": 8,
            **({} if preset == "arcface" else {"model.shared": 16, "model.groups": 3}),
            **changes,
        }
    )  # fmt: skip
    return config


def test_smoke_and_packs(photographs, pack, tmp_path):
    config = smoke(photographs)
    state, report = app.run(config, experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"tar_at_far_1e-1", "tar_at_far_1e-1_group_aware", "group_entropy", "nmi_person"} <= set(report.metrics)
    assert 0 <= report.metrics["group_entropy"] <= 1
    assert report.arrays["probabilities"].shape == (8, 3)
    np.testing.assert_allclose(state.model_state["window"].sum(1), 1, rtol=1e-5)
    config.eval.packs = str(pack)
    _, report = app.run(config, experiment.build, workdir=tmp_path / "run", eval_only=True, quiet=True)
    assert set(report.metrics) == {"mine_accuracy", "mine_accuracy_group_aware"}


def test_without_groups_equals_arcface(photographs):
    config = smoke(photographs, "arcface")
    settings = arcface.get_config()
    for part in ("data", "loss", "optim", "train"):
        settings[part].update(config[part])
    for part in ("model", "eval"):
        settings[part].update({field: config[part].get(field, value) for field, value in settings[part].items()})
    ours, plain = experiment.build(config), arcface.build(settings)
    states = [built.init(jax.random.key(0)) for built in (ours, plain)]
    for part in ("params", "model_state"):
        chex.assert_trees_all_equal(*(getattr(state, part) for state in states))
    assert ours.batch == plain.batch
    assert ours.train_step.__code__ is plain.train_step.__code__
    reports = [built.evaluate(states[0]) for built in (ours, plain)]
    assert reports[0].metrics == reports[1].metrics and "tar_at_far_1e-2" in reports[0].metrics
    assert all(a.keys() == b.keys() for a, b in zip(*(vars(report).values() for report in reports), strict=True))
    chex.assert_trees_all_equal(*(report.arrays for report in reports))


def steps(kind, devices, **changes):
    config = smoke("", **{"data.image_size": 8, "train.batch_size": 16, "train.devices": devices, **changes})
    executor = make_executor(experiment.build(config), kind, devices)
    state, rng, found = executor.init(0), np.random.default_rng(0), []
    for _ in range(4):
        batch = {
            "image": rng.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8),
            "label": rng.integers(0, 6, 16).astype(np.int32),
        }
        state, metrics = executor.step(state, executor.put(batch))
        found.append(jax.tree.map(np.asarray, (executor.local(executor.canonical(state)).replace(rng=None), metrics)))
    return found


def test_eight_devices_equal_one_with_a_global_window():
    one = steps("shard_map", 1)
    for (state, metrics), (other, measured) in zip(one, steps("pmap", 8), strict=True):
        window = state.model_state["window"]
        np.testing.assert_allclose(other.model_state["window"], window, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(other.params, state.params, rtol=1e-3, atol=1e-4)
        for name in metrics:
            value, again = (m[name].total / m[name].count for m in (metrics, measured))
            np.testing.assert_allclose(again, value, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal((one[1][0].model_state["window"] > 0).all(1), [True, True, False])
    newest = one[-1][0].model_state["window"]
    np.testing.assert_array_equal(newest[1:], one[-2][0].model_state["window"][:2])


def test_the_labelling_rule_has_an_effect():
    changes = {"groups.weight": 5.0, "optim.schedule.peak": 0.1}
    runs = [steps("shard_map", 1, **{"groups.labels": way, **changes})[-1][0].params for way in experiment.LABELS]
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, runs), strict=True)) > 1e-3


@pytest.mark.parametrize("preset", ["synthetic", "arcface"])
def test_the_trunk_starts_from_a_recogniser(monkeypatch, preset):
    """The layers of the shared feature, which replace those of ArcFace's embedding, do not."""
    net = Small(8)
    variables = net.init(jax.random.key(9), jnp.zeros((1, 8, 8, 3)), train=False)
    loaded, asked = jax.tree.map(lambda x: np.asarray(x) + 3, variables), []

    def read(path, net, image_size):
        asked.append((path, net.embedding_size))
        return loaded

    monkeypatch.setattr(recipe, "read_weights", read)
    recogniser = {"recogniser.weights": "r.pth", "recogniser.name": "small", "recogniser.embedding_size": 8}
    wired = experiment.build(smoke("", preset, **{"data.image_size": 8, **recogniser}))
    state = wired.init(jax.random.key(0), wired.prepare())
    found, stats = state.params["backbone"], state.model_state
    if preset == "synthetic":
        found, stats = found["backbone"], stats["batch_stats"]["backbone"]
    chex.assert_trees_all_equal(found["bn2"], loaded["params"]["bn2"])
    chex.assert_trees_all_equal(stats["bn2"], loaded["batch_stats"]["bn2"])
    assert found["fc"]["kernel"].shape[1] == (16 if preset == "synthetic" else 8)
    assert abs(found["fc"]["bias"]).max() == 0 == abs(stats["features"]["norm"]["mean"]).max()
    assert asked == [("r.pth", 8)]


@pytest.mark.parametrize("preset", experiment.PRESETS)
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset.startswith("ms1m"):
        assert costs["parameters"] == full_size(32) + 85_744 * 512
        assert (config.train.steps, config.train.batch_size) == (80_000, 512)
        assert (config.loss.scale, config.loss.angle, config.groups.weight) == (64.0, 0.5, 0.1)


def test_the_report_describes_the_groups():
    rng = np.random.default_rng(0)
    examples = [
        {"glasses": g, "age": a, "albedo": rng.normal(size=3), "pose": rng.normal(size=3), "light": rng.normal(size=9)}
        for g, a in zip(rng.integers(0, 2, 90), np.arange(90), strict=True)
    ]
    known = groups.attributes(examples, np.arange(90) // 9)
    np.testing.assert_array_equal(np.bincount(known["age"]), [30, 30, 30])
    assert (np.diff(known["age"]) >= 0).all()
    assert set(known["glasses"]) == {0, 1}
    assert set(groups.attributes([{"label": 1}], np.ones(1))) == {"person"}
    np.testing.assert_allclose(groups.entropy(np.array([0.5, 0.5, 0, 0])), 0.5)
    np.testing.assert_allclose(groups.entropy(np.full(4, 0.25)), 1)
    assert groups.entropy(np.array([1.0, 0])) == 0


def test_invalid_input_raises():
    with pytest.raises(ValueError, match=r"ensemble 'softer', expected one of \('soft', 'hard', 'none'\)"):
        groupface.combine(jnp.ones((2, 3, 4)), jnp.ones((2, 3)), "softer")
    with pytest.raises(ValueError, match=r"branches \(2, 3, 4\) and probabilities \(2, 4\), expected \[N, K, D\]"):
        groupface.combine(jnp.ones((2, 3, 4)), jnp.ones((2, 4)), "soft")
    with pytest.raises(ValueError, match=r"window \(5, 3\) and mean \(4,\), expected \[B, K\] and \[K\]"):
        groupface.observe(jnp.zeros((5, 3)), jnp.ones(4))
    with pytest.raises(ValueError, match=r"expectation of shape \(2,\), expected \[K\] = \[3\]"):
        groupface.self_distributed_labels(jnp.ones((2, 3)), jnp.ones(2))
    with pytest.raises(ValueError, match=r"groups\.labels is 'even': expected one of self_distributed, argmax"):
        experiment.build(smoke("", **{"model.name": "tiny", "groups.labels": "even"}))
