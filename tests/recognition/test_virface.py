import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import virface as experiment
from facejax.data import identities, sources
from facejax.ops import vectors
from facejax.recognition import arcface, virface
from facejax.train import AXIS, Options, Report, app
from facejax.train.dry_run import dry_run

virclass_loss, virinstance_loss = jax.jit(virface.virclass_loss), jax.jit(virface.virinstance_loss)


@pytest.fixture(scope="module")
def problem():
    """Nine embeddings of eleven classes, six unlabelled ones (the second of class 2) and five samples of each."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(11, 16))
    labels = rng.integers(0, 11, 9)
    features = centres[labels] + 0.8 * rng.normal(size=(9, 16))
    features[0] = -centres[labels[0]] + 0.1 * rng.normal(size=16)  # the angle plus the margin exceeds pi
    unlabelled = rng.normal(size=(6, 16))
    unlabelled[1] = 3 * centres[2] + 0.05 * rng.normal(size=16)
    samples = unlabelled + 0.5 * rng.normal(size=(5, 6, 16))
    floats = (jnp.float32(x) for x in (features, centres, unlabelled, samples))
    return *floats, jnp.asarray(labels, jnp.int32)


def brute_force(features, classes, labels, scale=32.0, margin=0.5):
    """Cross-entropy of one embedding after another, in float64."""
    losses = []
    for x, label in zip(np.asarray(features, np.float64), np.asarray(labels), strict=True):
        cosine = np.array([x @ w / np.linalg.norm(x) / np.linalg.norm(w) for w in np.asarray(classes, np.float64)])
        angle = np.arccos(cosine[label]) + margin
        logits = scale * cosine
        logits[label] = scale * (np.cos(angle) if angle < np.pi else cosine[label] - margin * np.sin(margin))
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
    return losses


def test_virclass_equals_brute_force(problem):
    features, centres, unlabelled, _, labels = problem
    found = virclass_loss(features, centres, labels, unlabelled)
    np.testing.assert_allclose(found, brute_force(features, [*centres, *unlabelled], labels), rtol=2e-5, atol=2e-5)
    alone = virclass_loss(features, centres, labels, unlabelled[:0])
    np.testing.assert_allclose(
        alone, arcface.margin_softmax_loss(features, centres, labels, scale=32.0, easy=True), rtol=1e-5
    )
    assert (found > alone - 1e-4).all()
    assert (found > alone + 0.01).any()


def test_an_orthogonal_virtual_class_adds_one_to_the_partition_function():
    features, centres = jnp.eye(4)[:2] + jnp.eye(4)[1], jnp.eye(4)[:2]
    labels, options = jnp.array([0, 1]), {"scale": 2.0}
    without = virclass_loss(features, centres, labels, jnp.zeros((0, 4)), **options)
    beside = virclass_loss(features, centres, labels, 5 * jnp.eye(4)[2:3], **options)
    cosine = jnp.take_along_axis(vectors.unit(features) @ centres.T, labels[:, None], 1)[:, 0]
    target = 2 * arcface.target_cosine(cosine, arcface.ARCFACE)
    np.testing.assert_allclose(jnp.exp(beside), jnp.exp(without) + jnp.exp(-target), rtol=1e-5)


def test_virinstance_equals_brute_force_without_gradient_of_virtual_classes(problem):
    _, centres, unlabelled, samples, _ = problem
    places = jnp.arange(6)
    found = virinstance_loss(samples, centres, places, unlabelled)
    for losses, draw in zip(found, samples, strict=True):
        np.testing.assert_allclose(
            losses, brute_force(draw, [*centres, *unlabelled], 11 + places), rtol=2e-5, atol=2e-5
        )
    some = jnp.array([4, 1])
    np.testing.assert_allclose(virinstance_loss(samples[:, some], centres, some, unlabelled), found[:, some], atol=1e-5)
    gradients = jax.jit(jax.grad(lambda *x: virinstance_loss(x[0], x[1], places, x[2]).sum(), (0, 1, 2)))
    of_samples, of_centres, of_unlabelled = gradients(samples, centres, unlabelled)
    assert np.abs(of_samples).max() > 0.1
    assert np.abs(of_centres).max() > 0.1
    np.testing.assert_array_equal(of_unlabelled, 0)


def test_virclass_has_a_gradient_in_unlabelled_embeddings(problem):
    """It moves them away from similar labelled embeddings."""
    features, centres, unlabelled, _, labels = problem
    gradient = jax.grad(lambda u: virclass_loss(features, centres, labels, u).sum())(unlabelled)
    assert (np.abs(gradient).max(1) > 1e-6).all()
    further = virclass_loss(features, centres, labels, unlabelled - 0.1 * gradient)
    assert further.sum() < virclass_loss(features, centres, labels, unlabelled).sum()


def test_unused_virtual_classes_have_no_effect(problem):
    features, centres, unlabelled, samples, labels = problem
    keep = jnp.array([True, False, True, True, True, True])
    rest, places = jnp.flatnonzero(keep), jnp.arange(6)

    def total(features, centres, samples):
        first = virclass_loss(features, centres, labels, unlabelled, keep=keep)
        second = virinstance_loss(samples, centres, places, unlabelled, keep=keep)
        return first.sum() + second.sum(), (first, second)

    gradients, (first, second) = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(features, centres, samples)
    chex.assert_tree_all_finite(gradients)
    np.testing.assert_array_equal(gradients[2][:, 1], 0)
    np.testing.assert_allclose(first, virclass_loss(features, centres, labels, unlabelled[rest]), rtol=1e-5, atol=1e-5)
    alone = virinstance_loss(samples[:, rest], centres, jnp.arange(5), unlabelled[rest])
    np.testing.assert_allclose(second[:, rest], alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(second[:, 1], 0)


def test_unlabelled_faces_similar_to_a_class_are_excluded(problem):
    _, centres, unlabelled, *_ = problem
    power = np.exp(32 * np.asarray(vectors.unit(unlabelled) @ vectors.unit(centres).T, np.float64))
    likely = (power / power.sum(1, keepdims=True)).max(1)
    for limit in (0.5, 0.8, 0.99):
        np.testing.assert_array_equal(virface.unclaimed(unlabelled, centres, limit=limit), likely < limit)
    assert likely[1] > 0.8 > likely.min()


def test_generator():
    generator, features = virface.Generator(hidden=12, latent=5), jnp.float32(np.eye(8)[:3])
    variables = generator.init(jax.random.key(0), features, jax.random.key(1))
    made = generator.apply(variables, features, jax.random.key(2), draws=4)
    assert made.samples.shape == (4, 3, 8)
    assert made.mean.shape == made.log_variance.shape == (3, 5)
    assert np.abs(made.samples[0] - made.samples[1]).max() > 1e-3
    again = generator.apply(variables, features, jax.random.key(2), draws=4)
    np.testing.assert_array_equal(again.samples, made.samples)
    sure = {**variables["params"], "en_var": {"kernel": jnp.zeros((12, 5)), "bias": jnp.full(5, -200.0)}}
    made = generator.apply({"params": sure}, features, jax.random.key(2), draws=4)
    np.testing.assert_array_equal(made.samples, jnp.broadcast_to(made.samples[0], made.samples.shape))


def test_divergence_and_fit():
    np.testing.assert_array_equal(virface.divergence(jnp.zeros((2, 5)), jnp.zeros((2, 5))), 0)
    mean, log_variance = jnp.array([[1.0, -2.0]]), jnp.log(jnp.array([[4.0, 0.25]]))
    by_hand = 0.5 * np.mean([4 + 1 - 1 - np.log(4), 0.25 + 4 - 1 - np.log(0.25)])
    np.testing.assert_allclose(virface.divergence(mean, log_variance), [by_hand], rtol=1e-6)
    rows = jnp.array([[3.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(virface.fit_error(rows, jnp.array([[1.0, 0.0], [1.0, 0.0]])), [0, 1], atol=1e-7)


def test_shape_mismatch_raises(problem):
    features, centres, unlabelled, samples, labels = problem
    with pytest.raises(
        ValueError, match=r"features \(9, 16\), centres \(11, 16\), .* unlabelled \(6, 15\) and keep None"
    ):
        virface.virclass_loss(features, centres, labels, unlabelled[:, 1:])
    with pytest.raises(ValueError, match=r"keep \(5,\), expected \[N, D\], \[C, D\], \[N\], \[U, D\] and \[U\]"):
        virface.virclass_loss(features, centres, labels, unlabelled, keep=jnp.ones(5, bool))
    with pytest.raises(ValueError, match=r"samples \(6, 16\), expected \[S, M, D\]"):
        virface.virinstance_loss(samples[0], centres, jnp.arange(6), unlabelled)


@pytest.fixture(scope="module")
def folders(people_folder):
    """Eight labelled identities with four images each, and nine unlabelled ones with one to three."""
    return people_folder("labelled", [4] * 8), people_folder("unlabelled", [1, 2, 3] * 3)


@pytest.fixture(scope="module")
def small():
    """A backbone of two blocks instead of the experiment's tiny network, with batch statistics over all devices."""
    net = functools.partial(virface.FaceResNet, (1, 1), False, (4, 8), axis_name=AXIS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(experiment.BACKBONES, "tiny", net)
        yield net


def smoke(folders, preset, **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.source": "path", "data.path": str(folders[0]), "data.unlabelled": str(folders[1]),
            "data.image_size": 16, "data.held_out": 0.25, "data.classes": 6, "data.unlabelled_batch": 8,
            "model.embedding_size": 8, "model.hidden": 8, "model.latent": 4, "train.steps": 2, "train.batch_size": 8,
            "train.log_every": 1, "eval.batch_size": 8,
            **changes,
        }
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def stages(folders, small, tmp_path_factory):
    """Workdirs, states and reports of the three stages; each starts from the previous one."""
    root, found, before = tmp_path_factory.mktemp("stages"), {}, ""
    for preset in ("pretrain", "generator", "synthetic"):
        config = smoke(folders, preset, **{"start.workdir": str(before)})
        before = root / preset
        found[preset] = (before, *app.run(config, experiment.build, name="virface", workdir=before, quiet=True))
    return found


def test_every_stage_trains_only_its_parts(stages):
    def differ(part, a, b):
        first, second = (stages[name][1].params[part] for name in (a, b))
        return any(np.any(x != y) for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))

    assert differ("generator", "pretrain", "generator")
    assert not differ("backbone", "pretrain", "generator")
    assert not differ("head", "pretrain", "generator")
    assert all(differ(part, "generator", "synthetic") for part in ("backbone", "head", "generator"))
    chex.assert_trees_all_close(stages["pretrain"][1].model_state, stages["generator"][1].model_state, rtol=1e-6)
    for workdir, _, report in stages.values():
        assert 0 <= report.metrics["tar_at_far_1e-1"] <= 1
        assert (workdir / "report.html").stat().st_size > 20_000
    lines = [json.loads(line) for line in (stages["synthetic"][0] / "metrics.jsonl").read_text().splitlines()]
    names = ("loss_labelled", "loss_unlabelled", "fit_error", "divergence", "own_centre", "kept")
    assert {f"train/{name}" for name in names} <= set(lines[0])


def test_one_device_equals_eight(folders, stages, monkeypatch):
    """Virtual classes come from all devices. The test disables randomness, which differs by device."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape=(), *_, **__: jnp.zeros(shape))
    states = []
    for devices in (1, 8):
        changes = {"start.workdir": str(stages["generator"][0]), "loss.dropout": 0.0, "train.devices": devices}
        config = smoke(folders, "synthetic", **changes)

        def unjudged(config):
            return dataclasses.replace(experiment.build(config), evaluate=lambda state: Report({}))

        states.append(app.run(config, unjudged, quiet=True)[0])
    chex.assert_trees_all_close(states[0].params, states[1].params, rtol=1e-4, atol=2e-5)


def test_unlabelled_batches_have_distinct_identities(folders):
    people = sources.Groups([3, 1, 3, 2, 1, 3])
    assert [list(people[i]) for i in range(len(people))] == [[1, 4], [3], [0, 2, 5]]
    source = experiment.unlabelled_people(smoke(folders, "virclass"))
    rngs = [np.random.default_rng(i) for i in range(3)]
    load = identities.one_each(source, 24, "unlabelled")
    drawn = [load([np.arange(3, 6)], [rng])["unlabelled"] for rng in rngs]
    pictures = [sources.image(source[i], 24) for i in range(3, 6)]
    for image in drawn:
        assert any(np.array_equal(image[0], view) for x in pictures for view in (x, x[:, ::-1]))
    assert not all(np.array_equal(drawn[0], x) for x in drawn)


def test_labels_follow_the_identities(monkeypatch):
    """The face world is stored in random order."""
    stored = [{"image": i, "person": person} for i, person in enumerate([2, 0, 1, 79, 0, 2])]
    monkeypatch.setattr(identities.faces, "load", lambda *_: stored)
    people = identities.Identities(classes=2).first_people(0)
    assert [people[i] for i in range(len(people))] == [
        {"image": 1, "label": 0}, {"image": 2, "label": 1}, {"image": 4, "label": 0}
    ]  # fmt: skip


def test_checkpoints_include_the_position_of_both_streams(folders, stages):
    build = experiment.build(smoke(folders, "virclass", **{"start.workdir": str(stages["pretrain"][0])}))
    stream, other = build.train_data(), build.train_data()
    assert {k: v.shape for k, v in next(stream).items()} == {k: v.shape for k, v in build.batch.items()}
    other.set_state(json.loads(json.dumps(stream.get_state())))
    for _ in range(5):
        chex.assert_trees_all_equal(next(stream), next(other))
    stream.close(), other.close()


def test_earlier_stages_are_trained_without_a_workdir(folders, small, monkeypatch):
    config = smoke(folders, "synthetic", **{"start.steps": 1})
    with pytest.raises(ValueError, match=r"start\.workdir is empty: expected the folder of a finished generator run"):
        experiment.beginning(config)
    known = app.section(identities.Identities, config.data).split(0)[0]
    often = np.tile(np.arange(len(known)), 3)  # the presets' batch of 64 exceeds the number of identities
    source = sources.Subset(known, often, np.array([known[i]["label"] for i in often]))
    monkeypatch.setattr(identities.Identities, "first_people", lambda data, seed, packs: source)
    config.data.source = "face_world"
    params, _ = experiment.beginning(config)
    assert set(params) == {"backbone", "head", "generator"}
    assert experiment.beginning(config)[0] is params


def test_invalid_settings_raise(folders, stages, tmp_path):
    def opened(preset, **changes):
        wired = experiment.build(smoke(folders, preset, **changes))
        if wired.prepare:
            wired.prepare()
        wired.train_data()

    with pytest.raises(ValueError, match="stage is 'all': expected one of pretrain, generator, arcface, virclass"):
        opened("pretrain", stage="all")
    with pytest.raises(ValueError, match=r"model\.name is 'iresnet': expected one of tiny, faceresnet18"):
        opened("pretrain", **{"model.name": "iresnet"})
    with pytest.raises(ValueError, match=r"holds no config\.json: expected a finished run of stage 'pretrain'$"):
        opened("virclass", **{"start.workdir": str(tmp_path)})
    with pytest.raises(ValueError, match="is a run with stage 'pretrain': expected 'generator'"):
        opened("synthetic", **{"start.workdir": str(stages["pretrain"][0])})
    with pytest.raises(ValueError, match=r"data\.unlabelled is empty"):
        opened("virclass", **{"start.workdir": str(stages["pretrain"][0]), "data.unlabelled": ""})
    with pytest.raises(ValueError, match=r"data\.classes is 81: expected 1 to 80, the identities of the face world"):
        opened("pretrain", **{"data.source": "face_world", "data.classes": 81})


@pytest.mark.parametrize("preset", experiment.PRESETS)
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset.startswith("ms1m"):
        assert costs["parameters"] == 74_889_792 + 361_728 + 4287 * 512
        assert config.loss.to_dict() == {
            "scale": 32.0, "angle": 0.5, "dropout": 0.5, "overlap": 0.0, "draws": 5, "fit": 5e3, "prior": 2.0
        }  # fmt: skip
        assert config.optim.weight_decay == 1e-3


def test_published_schedules():
    epochs = {"pretrain": (308, (8, 12, 15, 18), 20), "generator": (617, (3, 5, 7, 9), 10)}
    epochs |= dict.fromkeys(("virclass", "virface"), (617, (4, 6, 8), 10))
    for stage, (steps, falls, last) in epochs.items():
        config = experiment.get_config(f"ms1m_{stage}")
        assert tuple(config.optim.schedule.boundaries) == tuple(steps * fall for fall in falls)
        assert config.train.steps == steps * last
