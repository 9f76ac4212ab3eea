import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bilinear_cnn as experiment
from facejax.backbones import vgg
from facejax.foundations import bilinear_cnn
from facejax.interop import torchvision
from facejax.train import Options, app
from facejax.train.dry_run import dry_run


@pytest.fixture(scope="module")
def streams():
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(2, 3, 4, c)), jnp.float32) for c in (5, 6))


def rows(x):
    return np.asarray(x, np.float64).reshape(x.shape[0], -1, x.shape[-1])


def bilinear_pool(a, b):
    return np.asarray(bilinear_cnn.bilinear_pool(a, b))


def test_pooling_equals_the_sum_of_outer_products(streams):
    a, b = streams
    expected = np.stack([sum(np.outer(p, q) for p, q in zip(x, y)) / 12 for x, y in zip(rows(a), rows(b))])
    np.testing.assert_allclose(bilinear_pool(a, b), expected, rtol=1e-5, atol=1e-6)


def test_gradient_equals_the_papers_closed_form(streams):
    """dL/dA = B (dL/dX)^T and dL/dB = A dL/dX, here of a mean over 12 places."""
    a, b = streams
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 6)), jnp.float32)
    d_a, d_b = jax.grad(lambda a, b: jnp.sum(weight * bilinear_cnn.bilinear_pool(a, b)), (0, 1))(a, b)
    w = np.asarray(weight, np.float64)
    np.testing.assert_allclose(rows(d_a), rows(b) @ w.transpose(0, 2, 1) / 12, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rows(d_b), rows(a) @ w / 12, rtol=1e-4, atol=1e-6)


def test_one_stream_with_itself(streams):
    a, _ = streams
    pooled = bilinear_pool(a, a)
    np.testing.assert_array_equal(pooled, pooled.transpose(0, 2, 1))
    assert np.linalg.eigvalsh(pooled).min() > -1e-6
    assert np.linalg.matrix_rank(bilinear_pool(a[:, :1, :2], a[:, :1, :2]), tol=1e-5).tolist() == [2, 2]
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0].astype(np.float32)
    np.testing.assert_allclose(bilinear_pool(a @ rotation.T, a @ rotation.T), rotation @ pooled @ rotation.T, atol=1e-5)


def test_invariances_of_the_descriptor(streams):
    def describe(a, b):
        return np.asarray(bilinear_cnn.normalize(bilinear_cnn.bilinear_pool(a, b).reshape(2, -1)))

    a, b = streams
    np.testing.assert_allclose(np.linalg.norm(describe(a, b), axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(describe(a[:, ::-1, ::-1], b[:, ::-1, ::-1]), describe(a, b), atol=1e-6)
    np.testing.assert_allclose(describe(7 * a, 3 * b), describe(a, b), atol=1e-6)
    one_place = np.einsum("na,nb->nab", a[:, 0, 0], b[:, 0, 0]).reshape(2, -1)
    roots = np.sign(one_place) * np.sqrt(np.abs(one_place))
    expected = roots / np.linalg.norm(roots, axis=1, keepdims=True)
    np.testing.assert_allclose(describe(a[:, :1, :1], b[:, :1, :1]), expected, atol=1e-6)


def test_normalisation_by_finite_differences_and_at_zero():
    x = np.random.default_rng(3).normal(size=6)
    direction, weight = np.random.default_rng(4).normal(size=(2, 6))

    def loss(x):
        roots = np.sign(x) * np.sqrt(np.abs(x))
        return weight @ (roots / np.linalg.norm(roots))

    slope = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
    gradient = jax.grad(lambda x: jnp.dot(jnp.float32(weight), bilinear_cnn.normalize(x)))(jnp.float32(x))
    assert np.dot(gradient, direction) == pytest.approx(slope, rel=2e-3)
    for zeros in (jnp.zeros(6), jnp.array([0.0, 1.0, 0.0, -2.0, 0.0, 0.0])):
        found, gradient = jax.value_and_grad(lambda x: jnp.sum(bilinear_cnn.normalize(x) * weight))(zeros)
        assert np.isfinite(found)
        assert np.isfinite(gradient).all()
    np.testing.assert_allclose(jax.grad(bilinear_cnn.signed_sqrt)(0.0), 0.5 / np.sqrt(1e-5), rtol=1e-5)
    np.testing.assert_allclose(bilinear_cnn.signed_sqrt(jnp.array([-4.0, 0.0, 9.0])), [-2, 0, 3])


def test_compact_is_a_count_sketch_of_the_bilinear_matrix(streams):
    a, b = streams
    hashes = [bilinear_cnn.CountSketch(seed, c, 16) for seed, c in ((0, 5), (1, 6))]
    expected = np.zeros((2, 16))
    for i in range(5):
        for j in range(6):
            place = (hashes[0].bins[i] + hashes[1].bins[j]) % 16
            expected[:, place] += hashes[0].signs[i] * hashes[1].signs[j] * bilinear_pool(a, b)[:, i, j]
    found = bilinear_cnn.compact_bilinear_pool(a, b, *hashes)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    gradient = jax.grad(lambda a: bilinear_cnn.compact_bilinear_pool(a, b, *hashes).sum())(a)
    assert np.isfinite(gradient).all()


def test_compact_keeps_inner_products_in_expectation(streams):
    a, _ = streams
    exact = np.sum(bilinear_pool(a, a)[0] * bilinear_pool(a, a)[1])

    def sketched(seed):
        hashes = [bilinear_cnn.CountSketch(2 * seed + i, 5, 64) for i in range(2)]
        x, y = np.asarray(bilinear_cnn.compact_bilinear_pool(a, a, *hashes))
        return x @ y

    products = [sketched(seed) for seed in range(300)]
    assert abs(np.mean(products) - exact) < 4 * np.std(products) / np.sqrt(300)


def test_textures_that_only_products_separate():
    """Channels with equal means; a class is the sign of the correlation of the first two."""
    rng = np.random.default_rng(5)
    labels = rng.integers(2, size=400)
    x = rng.normal(size=(400, 6, 6, 3))
    x[..., 1] = np.where(labels, 1, -1)[:, None, None] * x[..., 0] + 0.5 * x[..., 1]
    bilinear = bilinear_cnn.normalize(bilinear_cnn.bilinear_pool(jnp.asarray(x), jnp.asarray(x)).reshape(400, -1))
    average = bilinear_cnn.normalize(jnp.asarray(x).mean((1, 2)))

    def accuracy(features):
        features = np.concatenate([features, np.ones((400, 1))], 1)
        weight = np.linalg.lstsq(features[:200], 2.0 * labels[:200] - 1, rcond=None)[0]
        return np.mean((features[200:] @ weight > 0) == labels[200:])

    assert accuracy(bilinear) > 0.98
    assert accuracy(average) < 0.62


TINY = vgg.VGG((1, 1), (4, 6))


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, 36),
        ({"pooling": "average"}, 6),
        ({"pooling": "compact", "sketch_size": 10}, 10),
        ({"other": vgg.VGG((1,), (5,)), "other_layer": "pool1"}, 30),
    ],
)
def test_network(fields, size):
    net = bilinear_cnn.BilinearCNN(3, TINY, "relu2_1", **fields)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = net.init(jax.random.key(1), images, train=False)
    assert variables["params"]["head"]["kernel"].shape == (size, 3)
    described = net.apply(variables, images, train=False, method="describe")
    np.testing.assert_allclose(jnp.linalg.norm(described, axis=1), 1, rtol=1e-4)


def test_two_streams_of_different_resolution_are_resized():
    a, b = bilinear_cnn.same_size(jnp.ones((1, 28, 28, 2)), jnp.ones((1, 27, 27, 3)))
    assert (a.shape, b.shape) == ((1, 27, 27, 2), (1, 27, 27, 3))


def test_weights_of_another_network_raise(monkeypatch):
    monkeypatch.setattr(torchvision, "read_weights", lambda path, key: {"features.0.weight": np.zeros((8, 3, 3, 3))})
    with pytest.raises(ValueError, match=r"vgg\.pth: 1 layers in 'features': expected 2 convolutions"):
        experiment.read_weights({"trunk": "vgg.pth"}, {"trunk": {"conv1_1": {}, "conv2_1": {}}})
    with pytest.raises(ValueError, match=r"model\.other_weights is 'vgg\.pth', but model\.other names no second trunk"):
        experiment.read_weights({"trunk": "", "other": "vgg.pth"}, {"trunk": {}})


def test_bad_input_raises(streams):
    a, b = streams
    with pytest.raises(ValueError, match=r"streams \(2, 3, 4, 5\) and \(2, 3, 3, 6\), expected \[N, H, W, A\]"):
        bilinear_cnn.bilinear_pool(a, b[:, :, :3])
    images = jnp.zeros((1, 8, 8, 3))
    with pytest.raises(ValueError, match="pooling 'max', expected one of"):
        bilinear_cnn.BilinearCNN(3, TINY, "relu2_1", pooling="max").init(jax.random.key(0), images, train=False)
    with pytest.raises(ValueError, match="the trunk has no 'relu5_3', expected one of relu1_1, pool1, relu2_1, pool2"):
        bilinear_cnn.BilinearCNN(3, TINY, "relu5_3").init(jax.random.key(0), images, train=False)
    with pytest.raises(ValueError, match="is 'vgg11': expected one of tiny, vgg16"):
        experiment.build(smoke("", **{"model.trunk": "vgg11"}))


def smoke(path, **changes):
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {
            "data.source": "path", "data.path": str(path), "data.image_size": 16, "data.classes": 4,
            "train.steps": 4, "train.batch_size": 8, "train.log_every": 1, "eval.batch_size": 8, "optim.frozen": 2.0,
            **changes,
        }
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def folder(coloured):
    return coloured("train", "test")


def test_smoke_with_both_steps_and_the_svm(folder):
    config = smoke(folder, **{"eval.svm": True})
    state, report = app.run(config, experiment.build, quiet=True)
    assert set(report.metrics) == {"accuracy", "top5_accuracy", "svm_accuracy"}
    assert 0 <= report.metrics["svm_accuracy"] <= 100
    start = experiment.build(config).init(jax.random.key(0))
    frozen, _ = app.run(smoke(folder, **{"train.steps": 2}), experiment.build, quiet=True)
    run_start = jax.tree.map(np.asarray, frozen.params["trunk"])
    chex.assert_trees_all_equal_shapes(run_start, start.params["trunk"])
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), state.params["trunk"], run_start)
    assert all(jax.tree.leaves(moved))
    assert np.abs(frozen.params["head"]["kernel"]).max() > 0


def test_the_first_stage_does_not_change_the_trunk(folder):
    runs = [
        app.run(smoke(folder, **{"train.steps": n, "optim.frozen": 9.0}), experiment.build, quiet=True) for n in (1, 2)
    ]
    one, two = (state.params for state, _ in runs)
    chex.assert_trees_all_equal(one["trunk"], two["trunk"])
    assert np.any(np.asarray(one["head"]["kernel"]) != np.asarray(two["head"]["kernel"]))


D, M = 14_714_688, 6_528_640
PARAMETERS = {
    "cub_dd": D + 512 * 512 * 200 + 200,
    "cub_dm": D + M + 512 * 512 * 200 + 200,
    "cub_mm": M + 52_429_000,
    "aircraft_dd": D + 512 * 512 * 100 + 100,
    "aircraft_dm": D + M + 512 * 512 * 100 + 100,
    "cars_dd": D + 512 * 512 * 196 + 196,
    "cars_dm": D + M + 512 * 512 * 196 + 196,
}


# multiply-adds of the convolutions for an image of 448 x 448: VGG-16's and VGG-M's, layer by layer
MACS = {"d": 4 * 15_346_630_656, "m": 221**2 * 7**2 * 3 * 96 + 54**2 * 5**2 * 96 * 256 + 27**2 * 3**2 * 512 * 1280}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_full_scale_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    assert costs["parameters"] == PARAMETERS[preset]
    trunks = sum(MACS[trunk] for trunk in set(preset.split("_")[1]))
    assert costs["step flops per device"] == pytest.approx(8 * 3 * 2 * trunks, rel=0.05)


def test_every_published_preset_is_counted():
    assert {p for p in experiment.PRESETS if experiment.get_config(p).data.source == "path"} == set(PARAMETERS)
