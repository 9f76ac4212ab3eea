import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from experiments import eqface as experiment
from facejax.data import normalize
from facejax.data.quality_faces import QualityFaces
from facejax.metrics import verification
from facejax.ops import vectors
from facejax.quality import eqface
from facejax.quality.pooling import set_pool
from facejax.recipes.recogniser import Recogniser
from facejax.recognition import arcface
from facejax.train import Report, app, parallel


def test_confidence_is_a_sigmoid_of_the_difference():
    head = eqface.QualityHead(8)
    features = jax.random.normal(jax.random.key(0), (5, 6))
    variables = head.init(jax.random.key(1), features, train=False)
    hidden = features @ variables["params"]["hidden"]["kernel"] / np.sqrt(1 + 1e-5)  # statistics at their start
    logits = jax.nn.relu(hidden) @ variables["params"]["out"]["kernel"]
    confidence = head.apply(variables, features, train=False)
    chex.assert_trees_all_close(confidence, jax.nn.sigmoid(logits[:, 0] - logits[:, 1]), rtol=1e-5)


def test_confident_loss():
    rng = np.random.default_rng(0)
    cosine, labels = jnp.asarray(rng.uniform(-0.9, 0.9, (4, 6))), jnp.array([0, 3, 5, 1])
    logits = arcface.margin_logits(cosine, labels, scale=0.96 * 64, easy=True)
    plain = jax.nn.logsumexp(logits, 1) - logits[jnp.arange(4), labels]
    chex.assert_trees_all_close(eqface.confident_loss(cosine, labels, jnp.ones(4), gamma=0.0), plain, rtol=1e-5)
    focal = eqface.confident_loss(cosine, labels, jnp.ones(4))
    chex.assert_trees_all_close(focal, (1 - jnp.exp(-plain)) ** 2 * plain, rtol=1e-5)
    assert (focal <= 1.00001 * plain).all()
    blind = jnp.full(4, 0.15)
    chex.assert_trees_all_close(
        eqface.confident_loss(cosine, labels, blind), jnp.full(4, (1 - 1 / 6) ** 2 * np.log(6)), rtol=1e-5
    )
    gradients = jax.grad(lambda c, q: eqface.confident_loss(c, labels, q).sum(), (0, 1))(cosine, blind)
    chex.assert_trees_all_close(gradients, jax.tree.map(jnp.zeros_like, gradients), atol=1e-6)
    check_grads(
        lambda c, q: eqface.confident_loss(c, labels, q, scale=4.0), (cosine, jnp.full(4, 0.7)), 1, modes="rev",
        rtol=0.02, atol=0.02,
    )  # fmt: skip


def test_rescaled():
    given = jnp.array([-1.0, 0.2, 0.6, 1.0, 1.2, 7.0])
    chex.assert_trees_all_close(eqface.rescaled(given), jnp.array([0.0, 0.0, 0.48, 0.96, 1.2, 1.2]), atol=1e-6)


def test_progress_is_the_weighted_mean():
    rng = np.random.default_rng(0)
    features, quality = jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.random(5))
    for order in (range(5), (3, 1, 4, 0, 2)):
        progress = eqface.Progress(jnp.zeros(3), jnp.zeros(()))
        for i in order:
            progress = eqface.progressive_update(progress, features[i], quality[i])
        chex.assert_trees_all_close(progress.feature, set_pool(features, quality), rtol=1e-4)
    nothing = eqface.progressive_update(eqface.Progress(jnp.zeros(3), jnp.zeros(())), features[0], jnp.zeros(()))
    assert not np.any(nothing.feature)


def test_images_of_low_confidence_have_no_gradient():
    rng = np.random.default_rng(0)
    features, centres = jnp.asarray(rng.normal(size=(4, 8))), jnp.asarray(rng.normal(size=(6, 8)))
    confidence, labels = jnp.array([0.0, 0.9, 0.2, 0.5]), jnp.array([0, 3, 5, 1])

    def total(features, centres, rows):
        cosine = vectors.unit(features[rows]) @ vectors.unit(centres).T
        return eqface.confident_loss(cosine, labels[rows], confidence[rows]).sum()

    gradients, rest = jax.grad(total, (0, 1)), jnp.array([1, 3])
    of_features, of_centres = gradients(features, centres, jnp.arange(4))
    np.testing.assert_array_equal(of_features[jnp.array([0, 2])], 0)
    assert (np.abs(of_features[rest]).max(1) > 1e-3).all()
    chex.assert_trees_all_close(of_centres, gradients(features, centres, rest)[1], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def second(configured, tmp_path_factory):
    """Workdir, state and report of the second step."""
    module, config = configured("eqface:synthetic")
    workdir = tmp_path_factory.mktemp("second") / "run"
    return workdir, *app.run(config, module.build, name="eqface:synthetic", workdir=workdir, quiet=True)


@pytest.fixture
def one_step(configured, second, monkeypatch):
    """A step of the third stage, at rate 1 and decay 0.5, where all images have the same frozen confidence."""

    def run(preset, confidence):
        changes = {"start.workdir": str(second[0]), "train.steps": 1, "recogniser.dropout": 0.0, "loss.gamma": 0.0}
        changes |= {"optim.schedule.kind": "constant", "optim.schedule.peak": 1.0, "optim.clip": 0.0}
        _, config = configured(f"eqface:{preset}", **changes, **{"optim.weight_decay": 0.5})
        frozen = experiment.second_step(config)
        head = jax.tree.map(np.zeros_like, frozen["head"])
        head["params"]["bn"]["norm"]["bias"] += 1
        head["params"]["out"]["kernel"] += np.array([1, -1]) * np.log(confidence / (1 - confidence)) / 128
        start = {**frozen, "head": head}
        monkeypatch.setattr(experiment, "second_step", lambda config: start)
        built = dataclasses.replace(experiment.build(config), evaluate=lambda state: Report({}))
        state, _ = app.run(config, lambda config: built, quiet=True)
        chex.assert_trees_all_equal(state.model_state["head"], head)
        first = parallel.make_executor(built, "shard_map", 1).init(config.seed, start)
        return config, next(built.train_data()), jax.device_get((first.params, first.model_state)), state

    return run


@pytest.mark.parametrize(("preset", "confidence"), [("recogniser", 1 - 1e-6), ("plain", 1e-6)])
def test_with_all_confidences_one_it_is_arcface(one_step, preset, confidence):
    config, batch, (start, model_state), state = one_step(preset, confidence)

    def loss(params):
        variables = {"params": params["backbone"], "batch_stats": model_state["batch_stats"]}
        net = Recogniser(**config.recogniser).backbone()
        features, _ = net.apply(variables, normalize.symmetric(batch["image"]), train=True, mutable=["batch_stats"])
        options = {"scale": 0.96 * config.loss.scale, "margins": arcface.ARCFACE, "easy": True}
        return arcface.margin_softmax_loss(features, params["centres"], batch["label"], **options).mean()

    gradients = jax.jit(jax.grad(loss))(start)
    gradients["backbone"] = jax.tree.map(lambda g, p: g + 0.5 * p, gradients["backbone"], start["backbone"])
    moved = jax.tree.map(lambda a, b: a - np.asarray(b), start, state.params)
    assert np.abs(moved["centres"]).max() > 1e-3
    chex.assert_trees_all_close(moved, gradients, rtol=1e-3, atol=1e-4)


def test_without_confidence_only_the_decay_remains(one_step):
    _, _, (start, _), state = one_step("recogniser", 0.19)
    np.testing.assert_array_equal(start["centres"], state.params["centres"])
    halved = jax.tree.map(lambda x: 0.5 * x, start["backbone"])
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, state.params["backbone"]), halved)


def test_presets_trace(presets_trace):
    presets_trace("eqface")


def test_published_settings():
    config = experiment.get_config("ms1mv2_recogniser")
    assert (config.optim.schedule.peak, config.optim.weight_decay, config.loss.scale) == (0.05, 5e-4, 64.0)
    assert (config.train.batch_size, config.train.steps, config.optim.schedule.warmup) == (5000, 11_650, 1165)


def test_second_step(second):
    _, state, report = second
    assert {"set_tar_at_far_1e-2", "kept_set_tar_at_far_1e-2", "mean_tar_at_far_1e-2", "aoc"} <= report.metrics.keys()
    assert set(state.params) == {"head", "centres"}


def test_third_step_starts_from_the_second_and_freezes_it(smoke, second):
    state, report = smoke("eqface:recogniser", **{"start.workdir": str(second[0])})
    assert {"tar_at_far_1e-2", "pairs_from_0.3", "set_tar_at_far_1e-2", "aoc"} <= report.metrics.keys()
    assert set(state.params) == {"backbone", "centres"}
    chex.assert_trees_all_equal(state.model_state["recogniser"], second[1].model_state["recogniser"])
    scorer = {"params": second[1].params["head"], "batch_stats": second[1].model_state["batch_stats"]}
    chex.assert_trees_all_equal(state.model_state["head"], scorer)
    np.testing.assert_array_equal(report.arrays["scores"], second[2].arrays["scores"])
    assert np.abs(report.arrays["features"] - second[2].arrays["features"]).max() > 0.01


def test_third_step_trains_the_second_where_no_workdir_is_given(configured):
    _, config = configured("eqface:plain", **{"start.steps": 1})
    frozen = experiment.second_step(config)
    assert experiment.second_step(config)["recogniser"] is frozen["recogniser"]
    _, config = configured("eqface:plain", **{"start.steps": 1, "start.scale": 4.0})
    last, other = (f["head"]["params"]["out"]["kernel"] for f in (frozen, experiment.second_step(config)))
    assert last.shape == (64, 2)
    assert np.abs(last - other).max() > 1e-4


def test_rejected_images():
    people, confidence = np.array([0, 0, 0, 1, 1, 1]), np.array([0.9, 0.05, 0.3, 0.8, 0.3, 0.15])
    angles = np.array([0.0, 2.0, 0.1, 1.5, 1.6, 0.2])
    features = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = experiment.reject_metrics(features, people, confidence, (0.1, 0.2, 0.3))
    assert [found[f"pairs_from_{least}"] for least in (0.1, 0.2, 0.3)] == [20 / 30, 12 / 30, 12 / 30]
    assert found["tar_at_far_1e-1"] < 0.5
    assert found["tar_at_far_1e-2_from_0.3"] == 1  # both images at the threshold stay
    found = experiment.reject_metrics(features, people, 0.1 * confidence, (0.1, 0.2, 0.3))
    assert found["pairs_from_0.1"] == 0
    assert not any("tar" in name and "from" in name for name in found)


def test_dropped_images(configured, second):
    weights, features = second[2].arrays["weights"].reshape(-1, 8), second[2].arrays["features"].reshape(-1, 8, 64)
    middle = float(np.median(weights))
    _, config = configured("eqface:synthetic", **{"eval.drop": middle})
    found = experiment.build(config).evaluate(second[1]).metrics
    pooled = set_pool(features, jnp.asarray(weights), jnp.asarray(weights >= middle))
    people = QualityFaces(**config.data).sets("test", 8).people
    by_hand = verification.all_pairs_tar(pooled, people, (1e-1, 1e-2, 1e-3))
    assert [found[f"kept_set_tar_at_far_1e-{i}"] for i in (1, 2, 3)] == list(by_hand)


def test_bad_input(raises, second, tmp_path):
    def begun(message, workdir=second[0], **changes):
        raises("eqface:recogniser", message, **{"start.workdir": str(workdir)}, **changes)

    def altered(name, **changes):
        saved = json.loads((second[0] / "config.json").read_text())
        saved["config"].update(changes)
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(saved))
        (tmp_path / name / "checkpoints").symlink_to(second[0] / "checkpoints")
        return tmp_path / name

    raises("eqface:synthetic", "expected an IResNet", **{"recogniser.name": "mobilefacenet"})
    raises("eqface:synthetic", "stage is 'head': expected 'quality' or 'recogniser'", stage="head")
    begun(r"holds no config\.json: expected a finished run of stage 'quality'$", tmp_path)
    begun("is a run with stage 'recogniser': expected 'quality'", altered("third", stage="recogniser"))
    longer = {**experiment.get_config().train.to_dict(), "steps": 9}
    begun("has come to step 2: expected the last, 9", altered("unfinished", train=longer))
    begun(r"is a run with model\.hidden 64: expected 32", **{"model.hidden": 32})
    begun(r"is a run with recogniser\.embedding_size 64: expected 16", **{"recogniser.embedding_size": 16})
    empty = r"start\.workdir is empty: expected the folder of a finished run of stage 'quality'$"
    begun(empty, "", **{"data.source": "path"})
