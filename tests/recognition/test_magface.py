import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import magface as experiment
from facejax.backbones import iresnet
from facejax.data import identities, normalize, quality_faces
from facejax.evaluate import embedder, magnitude, quality
from facejax.ops import vectors
from facejax.recognition import arcface, magface
from facejax.recognition.magface import MAG_ARCFACE, MAG_COSFACE, Magnitudes
from facejax.train import Options, app
from facejax.train.dry_run import dry_run


def test_golden_margin_regulariser_and_bound():
    with jax.enable_x64(True):
        length = jnp.array([10.0, 60.0, 110.0])
        np.testing.assert_allclose(magface.margin(length), [0.45, 0.625, 0.8], rtol=1e-12)
        golden = [0.1008264463, 0.0216253444, 0.0181818182]
        np.testing.assert_allclose(magface.regulariser(length), golden, rtol=1e-8)
        np.testing.assert_allclose(magface.regulariser(jnp.array([1.0, 500.0])), [golden[0], golden[2]], rtol=1e-8)
        slope = jax.vmap(jax.grad(magface.regulariser))(jnp.array([10.0 + 1e-9, 110.0 - 1e-9]))
        np.testing.assert_allclose(slope, [-0.0099173554, 0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(magface.least_lambda_g(MAG_ARCFACE), 22.5866667, rtol=1e-7)
    np.testing.assert_allclose(magface.least_lambda_g(MAG_COSFACE), 29.04, rtol=1e-7)


def test_golden_head():
    features, labels = jnp.array([[30.0, 40.0, 5.0], [3.0, 4.0, 1.0]]), jnp.array([0, 1])
    length = jnp.clip(magface.magnitude(features), 10, 110)
    np.testing.assert_allclose(length, [50.2493782, 10], rtol=1e-6)

    @jax.jit
    def losses(features, lambda_g):
        return magface.magface_loss(features, jnp.eye(3), labels, magnitudes=MAG_ARCFACE._replace(lambda_g=lambda_g))

    np.testing.assert_allclose(losses(features, 0.0).mean(), 28.763920, rtol=1e-5)
    np.testing.assert_allclose((losses(features, 1.0) - losses(features, 0.0)).mean(), 0.0624400, rtol=1e-4)
    cosine = vectors.unit(features)
    logits = arcface.margin_logits(cosine, labels, margins=arcface.Margins(angle=magface.margin(length)))
    np.testing.assert_allclose(logits[[0, 1], labels], [3.129080, 27.943342], rtol=1e-5)
    radial = jnp.sum(features * jax.jit(jax.grad(lambda x: losses(x, 35.0).mean()))(features), -1)
    np.testing.assert_allclose(radial, [5.345606, 0], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(9, 6))
    labels = rng.integers(0, 9, 12)
    features = 30 * vectors.unit(jnp.float32(centres[labels] + 0.7 * rng.normal(size=(12, 6))))
    features = features * jnp.linspace(0.5, 3, 12)[:, None]
    return features, jnp.float32(centres), jnp.asarray(labels, jnp.int32)


def test_constant_margin_without_regulariser_equals_arcface_and_cosface(problem):
    features, centres, labels = problem
    for kind, margins in (("arcface", arcface.ARCFACE), ("cosface", arcface.COSFACE)):
        constant = max(margins.angle, margins.cosine)
        options = {"kind": kind, "magnitudes": Magnitudes(least=constant, most=constant, lambda_g=0.0)}
        ours = magface.magface_loss(features, centres, labels, easy=False, **options)
        theirs = arcface.margin_softmax_loss(features, centres, labels, margins=margins)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        assert (jnp.sum(vectors.unit(features) * vectors.unit(centres)[labels], 1) > 0).all()
        np.testing.assert_allclose(magface.magface_loss(features, centres, labels, **options), theirs, rtol=1e-5)


def test_easy_applies_no_margin_to_nonpositive_cosines(problem):
    features, centres, labels = problem
    plain = arcface.margin_softmax_loss(-features, centres, labels, margins=arcface.SOFTMAX)
    free = MAG_ARCFACE._replace(lambda_g=0.0)
    easy = magface.magface_loss(-features, centres, labels, magnitudes=free)
    np.testing.assert_allclose(easy, plain, rtol=1e-5)
    hard = magface.magface_loss(-features, centres, labels, magnitudes=free, easy=False)
    assert (hard != plain).all()


def test_mag_cosface_has_its_margin_at_every_cosine():
    """Half of the true cosines of random embeddings are negative; the authors' ParallelMagLinear with useArcFace=0."""
    rng = np.random.default_rng(0)
    features, centres = (rng.normal(size=(256, 512)) for _ in range(2))
    labels = rng.integers(0, 256, 256)
    units, directions = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, centres))
    cosine, hit = units @ directions.T, np.arange(256) == labels[:, None]
    lengths = np.clip(np.linalg.norm(features, axis=1), 10, 110)
    logits = 64 * (cosine - hit * (0.35 + 0.45 / 100 * (lengths - 10))[:, None])
    expected = np.log(np.exp(logits).sum(1)) - logits[hit]
    arguments = jnp.float32(features), jnp.float32(centres), jnp.asarray(labels)
    found = magface.magface_loss(*arguments, kind="cosface", magnitudes=MAG_COSFACE._replace(lambda_g=0.0))
    assert 0.4 < np.mean(cosine[hit] > 0) < 0.6
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(("kind", "magnitudes"), [("arcface", MAG_ARCFACE), ("cosface", MAG_COSFACE)])
def test_gradient_equals_finite_differences(problem, kind, magnitudes):
    with jax.enable_x64(True):
        features, centres = (jnp.asarray(x, jnp.float64) for x in problem[:2])

        @jax.jit
        def loss(features, centres):
            return magface.magface_loss(
                features, centres, problem[2], kind=kind, magnitudes=magnitudes, scale=8.0
            ).mean()

        jax.test_util.check_grads(loss, (features, centres), order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize(("kind", "magnitudes"), [("arcface", MAG_ARCFACE), ("cosface", MAG_COSFACE)])
def test_optimal_magnitude_is_unique_and_decreases_with_the_angle(kind, magnitudes):
    """The paper's convergence and monotonicity properties, for lambda_g above its bound."""
    assert magnitudes.lambda_g > magface.least_lambda_g(magnitudes)
    lengths, theta = jnp.linspace(10.01, 109.99, 1000), jnp.radians(jnp.linspace(5, 60, 12))
    directions = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])

    def loss(theta, length):
        feature = length * jnp.array([[jnp.cos(theta), jnp.sin(theta)]])
        return magface.magface_loss(feature, directions, jnp.array([0]), kind=kind, magnitudes=magnitudes)[0]

    slopes = jax.jit(jax.vmap(jax.vmap(jax.grad(loss, 1), (None, 0)), (0, None)))(theta, lengths)
    rising = np.asarray(slopes) > 0
    assert (np.diff(rising.astype(int), axis=1) >= 0).all()  # decreases up to the optimal magnitude, then increases
    best = np.where(rising.any(1), rising.argmax(1), len(lengths))
    assert (np.diff(best) <= 0).all()
    assert best[0] > best[-1]


def test_magnitudes_outside_the_limits_have_no_gradient(problem):
    features, centres, labels = problem
    units = vectors.unit(features)
    gradient = jax.jit(jax.grad(lambda x: magface.magface_loss(x, centres, labels).sum()))
    for length, pushed in ((5.0, False), (40.0, True), (150.0, False)):
        radial = np.abs(jnp.sum(gradient(length * units) * units, 1))
        assert (radial > 1e-3).all() if pushed else (radial < 1e-5).all()


def test_zeros_and_aligned_embeddings_have_finite_gradients():
    centres, labels = jnp.eye(3), jnp.array([0, 0, 0])
    features = jnp.array([[0.0, 0.0, 0.0], [20.0, 0.0, 0.0], [-20.0, 0.0, 0.0]])
    for dtype in (jnp.float32, jnp.bfloat16):
        for kind in ("arcface", "cosface"):
            loss = jax.jit(jax.value_and_grad(lambda x, k=kind: magface.magface_loss(x, centres, labels, kind=k).sum()))
            value, gradient = loss(features.astype(dtype))
            assert np.isfinite(value)
            chex.assert_tree_all_finite(gradient)
    np.testing.assert_allclose(magface.magnitude(features), [1e-12, 20, 20])


def test_invalid_input_raises():
    with pytest.raises(ValueError, match="kind 'sphere', expected one of"):
        magface.magface_loss(jnp.ones((2, 3)), jnp.ones((4, 3)), jnp.zeros(2, jnp.int32), kind="sphere")
    with pytest.raises(ValueError, match=r"features \(2, 3\), centres \(4, 2\) and labels \(2,\), expected"):
        magface.magface_loss(jnp.ones((2, 3)), jnp.ones((4, 2)), jnp.zeros(2, jnp.int32))
    for bad in (Magnitudes(lower=0.0), Magnitudes(upper=5.0), Magnitudes(least=0.9)):
        with pytest.raises(ValueError, match="expected 0 < lower < upper and least <= most"):
            magface.margin(jnp.ones(2), bad)


PARAMETERS = {"ms1mv2_r50": 43_590_848, "ms1mv2_r100": 65_156_160}


@pytest.fixture(scope="module")
def photographs(photographs):
    """The shared folder, with a backbone of two blocks instead of the experiment's tiny network."""
    with pytest.MonkeyPatch.context() as patch:
        small = functools.partial(iresnet.IResNet, (1, 1), (4, 8))
        patch.setitem(embedder.MINIATURES, "tiny", small)
        yield photographs


def smoke(path, **changes):
    config = experiment.get_config("synthetic")
    config.update_from_flattened_dict(
        {
            "data.source": "path", "data.path": str(path), "data.image_size": 16, "data.held_out": 0.25,
            "data.classes": 6, "model.embedding_size": 8, "train.steps": 3, "train.batch_size": 8,
            "train.log_every": 1, "eval.batch_size": 8, "eval.template": 2, 
            **changes,
        }
    )  # fmt: skip
    return config


def faces(count=64, people=8):
    """Blank images with and without faults."""
    rng = np.random.default_rng(0)
    fault = rng.random(count) * (np.arange(count) % 4 > 0)
    kind = np.where(fault > 0, rng.integers(0, len(quality_faces.FAULTS), count), -1)
    images = rng.integers(0, 255, (count, 8, 8, 3)).astype(np.uint8)
    found = quality_faces.unmeasured(images, np.arange(count) % people)
    return found._replace(fault=fault, kind=kind, yaw=rng.normal(size=count))


def embeddings_of(test, by_fault):
    """Identity directions with noise that grows with the fault; magnitude 10 minus `by_fault` times the fault."""
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(test.people.max() + 1, 16))[test.people]
    unit = vectors.unit_rows(directions + 3 * test.fault[:, None] * rng.normal(size=directions.shape))
    return unit * (10 - by_fault * test.fault)[:, None]


def assess(features, test):
    return magnitude.assess(features, test, quality.QualityProtocol(), images=4, seed=0)


def test_smoke_and_packs(photographs, pack, tmp_path):
    config = smoke(photographs)
    _, report = app.run(config, experiment.build, workdir=tmp_path / "run", quiet=True)
    assert 0 <= report.metrics["template_weighted"] <= 1
    assert report.arrays["embeddings"].shape == (8, 8)
    assert "edc_area" in report.metrics  # and no correlation with unknown faults
    assert not {"fault_correlation", "yaw_correlation"} & set(report.metrics)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    config.eval.packs = str(pack)
    _, report = app.run(config, experiment.build, workdir=tmp_path / "run", eval_only=True, quiet=True)
    assert 0 <= report.metrics["mine_accuracy"] <= 1
    assert report.arrays["mine_embeddings"].shape == (40, 8)


def test_training_and_evaluation_with_single_images_of_the_face_world(photographs, monkeypatch):
    data = app.section(identities.Identities, smoke(photographs).data)
    sources = dict(zip(("train", "test"), data.split(0), strict=True))
    monkeypatch.setattr(identities.faces, "load", lambda task, split, data_dir: sources[split])
    config = smoke(photographs, **{"data.source": "face_world", "data.task": "recognition", "train.steps": 1})
    _, report = app.run(config, experiment.build, quiet=True)
    assert report.arrays["embeddings"].shape == (8, 8)
    assert report.arrays["labels"].tolist() == [example["label"] for example in sources["test"]]
    assert "fault_correlation" not in report.metrics


def test_magnitudes_correlated_with_faults_improve_weighted_templates():
    test = faces()
    right, wrong = (assess(embeddings_of(test, s), test).metrics for s in (9.0, -9.0))
    np.testing.assert_allclose(right["fault_correlation"], 1, atol=1e-9)
    np.testing.assert_allclose(wrong["fault_correlation"], -1, atol=1e-9)
    assert right["edc_area"] < wrong["edc_area"]
    assert right["aoc"] > wrong["aoc"]
    assert right["recognisable"] > 0.5 > -0.5 > wrong["recognisable"]
    assert right["template_weighted"] > right["template_plain"] == wrong["template_plain"] > wrong["template_weighted"]
    assert right["tar_at_far_1e-2"] == wrong["tar_at_far_1e-2"]  # pairs of single images use directions only
    assert 0.5 < right["accuracy"] <= 1


def test_zero_embeddings_raise():
    features = embeddings_of(faces(), 1.0)
    for bad, count in ((0.0, 2), (np.nan, 2)):
        features[3:5] = bad
        with pytest.raises(ValueError, match=f"{count} of 64 embeddings are zero or not finite, expected none"):
            assess(features, faces())


def test_mean_cosine_with_other_images_of_the_identity():
    people, features = np.arange(12) % 3, np.random.default_rng(0).normal(size=(12, 5))
    found = magnitude.own_cosine(quality.compare(features, people, *np.triu_indices(12, 1)), 12)
    cosine = vectors.unit_rows(features) @ vectors.unit_rows(features).T
    others = (people[:, None] == people) & ~np.eye(12, dtype=bool)
    np.testing.assert_allclose(found, [row[mask].mean() for row, mask in zip(cosine, others, strict=True)], atol=1e-9)


def test_each_template_has_one_identity():
    people = np.repeat(np.arange(5), 4)
    directions = np.eye(5)[people]
    for seed in range(3):
        assert magnitude.template_rates(directions, people, 2, seed) == {"template_plain": 1, "template_weighted": 1}


def test_training_uses_more_identities_with_the_same_evaluation_set(monkeypatch):
    asked = []
    monkeypatch.setattr(experiment.QualityFaces, "load", lambda data, *which: asked.append(which) or faces())
    monkeypatch.setattr(experiment.QualityFaces, "batches", lambda data, source, batch_size, seed: source)
    config = experiment.get_config()
    experiment.build(config).train_data()
    experiment.held_out(config)
    assert asked == [("train", "magnitude"), ("test",)]


@pytest.mark.parametrize("preset", ["synthetic", "cosface", "ms1mv2_r100", "ms1mv2_r100_cosface"])
def test_lambda_g_is_above_its_bound(preset):
    loss = experiment.get_config(preset).loss
    magnitudes = Magnitudes(loss.lower, loss.upper, loss.least, loss.most, loss.lambda_g)
    assert loss.lambda_g > magface.least_lambda_g(magnitudes, loss.scale)


def test_bgr_between_zero_and_one():
    pixels = np.array([[[[0, 102, 255]]]], np.uint8)
    np.testing.assert_allclose(normalize.bgr_unit(pixels)[0, 0, 0], [1.0, 0.4, 0.0], rtol=1e-6)


def test_without_held_out_people_raises(photographs):
    with pytest.raises(ValueError, match="no identity is held out for verification"):
        experiment.held_out(smoke(photographs, **{"data.held_out": 0.0}))
    with pytest.raises(ValueError, match=r"model\.name is 'resnet51': expected one of tiny, iresnet18"):
        experiment.build(smoke(photographs, **{"model.name": "resnet51"}))


@pytest.mark.parametrize("preset", [name for name in experiment.PRESETS if name != "ms1mv2_r100_cosface"])
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    if preset in PARAMETERS:
        assert costs["parameters"] == PARAMETERS[preset] + 85_742 * 512
        assert config.train.batch_size == 512
        assert config.train.steps == 25 * 11_372
        assert tuple(config.optim.schedule.boundaries) == (113_720, 204_696, 250_184)


def test_cosface_preset_differs_only_in_the_loss():
    both = [experiment.get_config(name).to_dict() for name in ("ms1mv2_r100", "ms1mv2_r100_cosface")]
    assert both[0].pop("loss") != both[1].pop("loss")
    assert both[0] == both[1]


def test_published_settings():
    loss = experiment.get_config("ms1mv2_r100").loss.to_dict()
    golden = {"kind": "arcface", "scale": 64.0, "easy": True, "lower": 10.0, "upper": 110.0}
    assert loss == {**golden, "least": 0.45, "most": 0.8, "lambda_g": 35.0}
    cosface = {"kind": "cosface", "least": 0.35, "most": 0.8, "lambda_g": 150.0}
    assert experiment.get_config("ms1mv2_r100_cosface").loss.to_dict() == {**loss, **cosface}
