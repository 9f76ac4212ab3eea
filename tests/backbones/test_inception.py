"""GoogLeNet, BN-Inception and Inception V3: published sizes and costs, modules, side classifiers, the experiment."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import inception as experiment
from facejax.backbones import inception
from facejax.backbones.inception import BNInception, GoogLeNet, InceptionV3, Mixed, Plan
from facejax.train import Options, app
from facejax.train.dry_run import count, dry_run, multiply_adds


def shapes(net, size):
    images = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))


def features(net, size, train=False):
    images = jnp.zeros((2, size, size, 3))

    def run(key):
        rngs = {"params": key, "dropout": key}
        return net.init_with_output(rngs, images, train=train, features=True)[0]

    return {name: x.shape[1:] for name, x in jax.eval_shape(run, jax.random.key(0)).items()}


SIDE_4A, SIDE_4D, SIDE_6E = 3_188_840, 3_190_888, 27_161_264 - 23_834_568


@pytest.mark.parametrize(
    ("net", "size", "parameters"),
    [
        (inception.googlenet(), 224, 6_998_552 + SIDE_4A + SIDE_4D),
        (inception.googlenet(auxiliary=False), 224, 6_998_552),
        (inception.googlenet_torchvision(auxiliary=False), 224, 6_624_904),
        (inception.inception_v3(auxiliary=False), 299, 23_834_568),
    ],
)
def test_parameter_counts(net, size, parameters):
    variables = shapes(net, size)
    assert count(variables["params"]) == parameters
    if net == inception.googlenet():
        assert count(variables["params"]["auxiliary4a"]) == SIDE_4A
        assert count(variables["params"]["auxiliary4d"]) == SIDE_4D


@pytest.mark.parametrize(
    ("net", "size", "total"),
    [(inception.bn_inception(), 224, 10_173_112 + 128), (inception.inception_v3(auxiliary=False), 299, 21_802_784)],
)
def test_parameter_counts_of_slim(net, size, total):
    """TF-slim's tests count kernels, shifts, means and variances of all but the classifier; it has no scales.

    Its BN-Inception has 64 biases in the first layer, where ours, as the paper says, has batch norm.
    """
    variables = shapes(net, size)
    trunk = {k: v for k, v in variables["params"].items() if k != "fc"}
    scales = [x for path, x in jax.tree_util.tree_leaves_with_path(trunk) if path[-1].key == "scale"]
    assert count(trunk) - count(scales) + count(variables["batch_stats"]) == total


@pytest.mark.parametrize(
    ("net", "size", "millions"),
    [
        (inception.googlenet_torchvision(auxiliary=False), 224, 1498),
        (inception.inception_v3(auxiliary=False), 299, 5713),
    ],
)
def test_multiply_adds(net, size, millions):
    """torchvision's "_ops"."""
    assert multiply_adds(net, shapes(net, size), size) == pytest.approx(millions, rel=0.002)


def test_named_features_of_v1():
    found = features(GoogLeNet(), 224, train=True)
    sides = {"conv1": 112, "pool1": 56, "conv2": 56, "pool2": 28, "pool3": 14, "pool4": 7}
    assert {name: found[name][0] for name in sides} == sides
    widths = {"3a": 256, "3b": 480, "4a": 512, "4b": 512, "4c": 512, "4d": 528, "4e": 832, "5a": 832, "5b": 1024}
    assert {name: found[name][-1] for name in widths} == widths
    assert (found["pooled"], found["logits"]) == ((1024,), (1000,))
    assert found["4a_logits"] == found["4d_logits"] == (1000,)


def test_named_features_of_bn_inception():
    found = features(BNInception(7), 224)
    expected = {name: (28, 28, c) for name, c in (("3a", 256), ("3b", 320))}
    expected |= dict.fromkeys(("3c", "4a", "4b", "4c", "4d"), (14, 14, 576))
    expected |= dict.fromkeys(("4e", "5a", "5b"), (7, 7, 1024))
    assert {name: found[name] for name in expected} == expected
    assert found["logits"] == (7,)


def test_named_features_of_v3():
    found = features(InceptionV3(7), 299, train=True)
    sides = {"conv1": 149, "conv2": 147, "conv3": 147, "pool1": 73, "conv4": 73, "conv5": 71, "pool2": 35}
    assert {name: found[name][0] for name in sides} == sides
    expected = {"5b": (35, 35, 256), "5c": (35, 35, 288), "5d": (35, 35, 288), "7a": (8, 8, 1280)}
    expected |= dict.fromkeys(("6a", "6b", "6c", "6d", "6e"), (17, 17, 768))
    expected |= dict.fromkeys(("7b", "7c"), (8, 8, 2048))
    assert {name: found[name] for name in expected} == expected
    assert found["6e_logits"] == (7,)


@pytest.mark.parametrize(("net", "size"), [(GoogLeNet(3), 65), (BNInception(3), 50), (InceptionV3(3), 77)])
def test_odd_sizes(net, size):
    assert features(net, size, train=True)["logits"] == (3,)


def test_a_module_joins_1x1_3x3_5x5_and_pool_in_this_order():
    """Against NumPy, on a plan of V1's form."""
    plan = Plan((((4, 1),), ((5, 1), (6, 3)), ((7, 1), (8, 5))), "max", 9)
    net = Mixed(plan, 1.0, inception.ConvRelu)
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 3)).astype(np.float32)
    params = jax.jit(lambda key: net.init(key, jnp.asarray(x), train=False))(jax.random.key(0))["params"]

    def layer(name, x):
        kernel, bias = (np.asarray(params[name]["conv"][k], np.float64) for k in ("kernel", "bias"))
        r = kernel.shape[0] // 2
        padded = np.pad(x, ((0, 0), (r, r), (r, r), (0, 0)))
        y = sum(padded[:, i : i + 4, j : j + 5] @ kernel[i, j] for i, j in np.ndindex(kernel.shape[:2]))
        np.testing.assert_array_equal(bias, np.float32(0.2))
        return np.maximum(y + bias, 0)

    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    pooled = np.max([padded[:, i : i + 4, j : j + 5] for i, j in np.ndindex(3, 3)], 0)
    branches = [
        layer("branch0_0", x),
        layer("branch1_1", layer("branch1_0", x)),
        layer("branch2_1", layer("branch2_0", x)),
        layer("pool", pooled),
    ]
    found = net.apply({"params": params}, x, train=False)
    np.testing.assert_allclose(found, np.concatenate(branches, -1), atol=1e-5)
    assert [b.shape[-1] for b in branches] == [4, 6, 8, 9]


def test_pairs_of_kernels_and_strides():
    block = partial(inception.ConvRelu)
    x = jnp.ones((1, 7, 7, 3))
    pair = Mixed(Plan((((4, 1), (5, (1, 3), (3, 1))),), ""), 1.0, block)
    params = jax.eval_shape(lambda: pair.init(jax.random.key(0), x, train=False))["params"]
    assert params["branch0_1a"]["conv"]["kernel"].shape == (1, 3, 4, 5)
    assert params["branch0_1b"]["conv"]["kernel"].shape == (3, 1, 4, 5)
    for valid, side in ((False, 4), (True, 3)):
        halve = Mixed(Plan((((4, 1), (5, 3)),), stride=2), 1.0, block, valid)
        shape = jax.eval_shape(lambda net=halve: net.init_with_output(jax.random.key(0), x, train=False)[0]).shape
        assert shape == (1, side, side, 8)


def test_average_pooling_counts_padding_only_on_request():
    x = jnp.ones((1, 4, 4, 1))
    for counted, corner in ((False, 1), (True, 4 / 9)):
        pooled = Mixed(Plan((), "avg"), 1.0, inception.ConvRelu, count_padding=counted).apply({}, x, train=False)
        assert pooled[0, 0, 0, 0] == pytest.approx(corner)
        assert pooled[0, 1, 1, 0] == pytest.approx(1)


@pytest.fixture(scope="module")
def small():
    """A narrow GoogLeNet with its side classifiers and some of its modules, its variables and images."""
    modules = tuple(m for m in inception.v1_modules() if m[0] in ("3a", "pool3", "4a", "4d", "pool4", "5b"))
    net = GoogLeNet(3, 0.125, modules=modules)
    images = 60 * jax.random.normal(jax.random.key(0), (1, 48, 48, 3))
    return net, jax.jit(lambda key: net.init(key, images, train=False))(jax.random.key(1)), images


def test_side_classifiers_act_in_training_and_feed_the_stem(small):
    """They lie nearer to the stem, and its gradient grows; the last layer's is as it was."""
    net, variables, images = small
    assert jax.eval_shape(lambda: net.apply(variables, images, train=False)).shape == (1, 3)
    still = net.clone(dropout=0.0, auxiliary_dropout=0.0)

    @jax.jit
    def gradients(params):
        def loss(params, weight):
            main, *sides = still.apply({"params": params}, images, train=True)
            assert len(sides) == 2
            return sum(w * jax.nn.logsumexp(o) - w * o[0, 0] for w, o in zip((1, weight, weight), (main, *sides)))

        return [jax.grad(loss)(params, weight) for weight in (0.0, 0.3)]

    alone, helped = gradients(variables["params"])
    stem = [float(jnp.linalg.norm(g["conv1"]["conv"]["kernel"])) for g in (alone, helped)]
    assert stem[1] > 1.1 * stem[0] > 0
    assert not np.any(alone["auxiliary4a"]["fc2"]["kernel"])
    assert np.any(helped["auxiliary4a"]["fc2"]["kernel"])
    np.testing.assert_allclose(helped["fc"]["kernel"], alone["fc"]["kernel"], atol=1e-5)


def test_response_normalisation_is_caffes(small):
    """Its alpha, 1e-4, is divided by the five channels; k is 1."""
    net, variables, images = small
    found = net.apply(variables, images, train=False, features=True)
    x = np.asarray(found["pool1"], np.float64)
    squares = np.pad(x**2, [(0, 0)] * 3 + [(2, 2)])
    x = x / (1 + 1e-4 / 5 * sum(squares[..., i : i + x.shape[-1]] for i in range(5))) ** 0.75
    params = variables["params"]["conv2_reduce"]["conv"]
    reduced = np.maximum(x @ np.asarray(params["kernel"][0, 0]) + 0.2, 0)
    again = inception.ConvRelu(24, 3, 1, 1)
    expected = again.apply(
        {"params": {"conv": variables["params"]["conv2"]["conv"]}}, jnp.float32(reduced), train=False
    )
    np.testing.assert_allclose(found["conv2"], expected, rtol=1e-4, atol=1e-4)


def test_bad_input_raises():
    with pytest.raises(ValueError, match=r"InceptionV3: images \(1, 74, 74, 3\), expected .* sides of 75 pixels"):
        shapes(InceptionV3(), 74)
    with pytest.raises(ValueError, match=r"GoogLeNet: images \(48, 48, 3\), expected \[N, H, W, 3\]"):
        jax.eval_shape(lambda: GoogLeNet().init(jax.random.key(0), jnp.zeros((48, 48, 3)), train=False))
    with pytest.raises(ValueError, match=r"BNInception.width is 0: expected above 0"):
        shapes(BNInception(width=0), 64)
    with pytest.raises(ValueError, match=r"model.name is 'v4': expected v1, bn or v3"):
        experiment.build(smoke("", **{"model.name": "v4"}))


def smoke(path, **changes):
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {
            "data.path": str(path), "data.image_size": 32, "data.classes": 4, "model.width": 0.0625,
            "train.steps": 3, "train.batch_size": 8, "train.log_every": 1, "eval.batch_size": 8, **changes,
        }
    )  # fmt: skip
    return config


def test_smoke(coloured, tmp_path):
    """Of the plain net, which compiles sooner, with its side classifiers."""
    config = smoke(coloured("train", "val"), **{"model.plain": True})
    _, report = app.run(config, experiment.build, workdir=tmp_path, quiet=True)
    assert set(report.metrics) == {"accuracy", "top5_accuracy", "million_multiply_adds", "million_parameters"}
    assert (tmp_path / "report.html").stat().st_size > 20_000


def test_the_plain_net_costs_as_much():
    costs = []
    for preset in ("synthetic", "plain"):
        config = experiment.get_config(preset)
        net = experiment.make_net(config)
        costs.append(multiply_adds(net, shapes(net, config.data.image_size), config.data.image_size))
    assert costs[1] == pytest.approx(costs[0], rel=0.02)


PARAMETERS = {
    "imagenet_v1": 6_998_552 + SIDE_4A + SIDE_4D,
    "imagenet_bn": 11_188_288,
    "imagenet_v3": 23_834_568 + SIDE_6E,
}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_full_scale_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    assert costs["parameters"] == PARAMETERS[preset]
    assert costs["batch per device"] == 32


@pytest.mark.parametrize(("preset", "dropout"), [("synthetic", 0.0), ("imagenet_v1", 0.7)])
def test_dropout_of_side_classifiers(preset, dropout):
    assert experiment.make_net(experiment.get_config(preset)).auxiliary_dropout == dropout


def test_every_published_preset_is_counted():
    assert {p for p in experiment.PRESETS if p.startswith("imagenet")} == set(PARAMETERS)
