"""MobileNet V1 and V2: published sizes and costs, blocks, named features, and the experiment's run and presets."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import facejax
from experiments import mobilenet as experiment
from facejax.backbones import mobilenet
from facejax.backbones.mobilenet import InvertedResidual, MobileNetV1, MobileNetV2, rounded
from facejax.nn.blocks import ConvNorm
from facejax.recipes.classifier import Optimizer, decayed
from facejax.train import Options, app
from facejax.train.dry_run import count, dry_run, multiply_adds
from tests.selection import full_but


def shapes(net, size=224):
    images = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))


def features(net, size):
    images = jnp.zeros((2, size, size, 3))
    found = jax.eval_shape(
        lambda key: net.init_with_output(key, images, train=False, features=True)[0], jax.random.key(0)
    )
    return {name: x.shape[1:] for name, x in found.items()}


def test_parameter_counts_of_parts():
    assert count(shapes(MobileNetV1(num_classes=0))["params"]) == 3_206_976
    assert count(shapes(MobileNetV1(num_classes=1001))["params"]) == 4_233_001
    assert round(count(shapes(MobileNetV1(separable=False))["params"]), -5) == 29_300_000


@pytest.mark.parametrize(
    ("net", "size", "millions"),
    [
        (MobileNetV1(), 224, 569), (MobileNetV1(), 192, 418), (MobileNetV1(), 160, 291), (MobileNetV1(), 128, 186),
        (MobileNetV1(width=0.75), 224, 325), (MobileNetV1(width=0.5), 224, 149), (MobileNetV1(width=0.25), 224, 41),
        (MobileNetV1(separable=False), 224, 4866),
        (MobileNetV2(), 224, 300.8), (MobileNetV2(), 192, 221), (MobileNetV2(width=1.4), 224, 582),
        (MobileNetV2(width=0.5), 224, 97), (MobileNetV2(width=0.35), 224, 59),
    ],
)  # fmt: skip
def test_multiply_adds(net, size, millions):
    """The papers' and TF-slim's numbers, which round."""
    assert multiply_adds(net, shapes(net, size), size) == pytest.approx(millions, rel=0.005, abs=0.6)


def test_a_separable_layer_costs_one_nth_plus_one_ninth_of_a_full_one():
    costs = []
    for separable in (True, False):
        net = MobileNetV1(0, separable=separable)
        costs.append(multiply_adds(net, shapes(net, 64), 64))
    stem, maps = 32**2 * 27 * 32, 32
    separable = full = stem
    channels = 32
    for outputs, stride in mobilenet.V1_LAYERS:
        maps //= stride
        layer = maps**2 * 9 * channels * outputs
        separable, full, channels = separable + layer * (1 / outputs + 1 / 9), full + layer, outputs
    np.testing.assert_allclose(costs, [separable / 1e6, full / 1e6], rtol=1e-6)


def test_rounding_never_loses_a_tenth():
    assert [rounded(c) for c in (32 * 0.35, 24 * 0.35, 24 * 1.4, 18, 3, 11.2)] == [16, 8, 32, 24, 8, 16]
    for channels in np.arange(8, 400, 0.7):
        assert rounded(channels) % 8 == 0
        assert 0.9 * channels <= rounded(channels) <= channels + 8


@pytest.mark.parametrize("size", [64, 50, 33])
def test_named_features(size):
    sides = {stride: -(-size // stride) for stride in (2, 4, 8, 16, 32)}
    expected = {f"stride{s}": (n, n, c) for (s, n), c in zip(sides.items(), (64, 128, 256, 512, 1024), strict=True)}
    assert features(MobileNetV1(5), size) == {**expected, "pooled": (1024,), "logits": (5,)}
    expected = {f"stride{s}": (n, n, c) for (s, n), c in zip(sides.items(), (16, 24, 32, 96, 320), strict=True)}
    last = (sides[32], sides[32], 1280)
    assert features(MobileNetV2(5), size) == {**expected, "last": last, "pooled": (1280,), "logits": (5,)}
    assert features(MobileNetV2(0, padding=1), size)["pooled"] == (1280,)
    for net in (MobileNetV1, MobileNetV2):
        half = {name: shape for name, shape in features(net(5), 2 * size).items() if name.startswith("stride")}
        whole = features(net(5, stem_stride=1), size)
        assert {name: whole[f"stride{int(name[6:]) // 2}"] for name in half} == half


BLOCK = partial(ConvNorm, padding=1, activation=nn.relu6)


@pytest.fixture(scope="module")
def block():
    """An inverted residual of eight channels, its variables random."""
    net = InvertedResidual(8, 3, 1, True, BLOCK)
    x = 3 * jax.random.normal(jax.random.key(0), (2, 5, 7, 8))
    variables = jax.jit(lambda key: net.init(key, x, train=False))(jax.random.key(1))
    return net, variables, x


def test_without_its_last_scale_a_block_is_the_identity(block):
    net, variables, x = block
    params = dict(variables["params"])
    params["project"] = {**params["project"], "bn": {"norm": {"scale": jnp.zeros(8), "bias": jnp.zeros(8)}}}
    variables = {**variables, "params": params}
    np.testing.assert_array_equal(net.apply(variables, x, train=False), x)
    assert net.apply(variables, x, train=True, mutable=["batch_stats"])[0].shape == x.shape
    strided = InvertedResidual(8, 3, 2, True, BLOCK)
    np.testing.assert_array_equal(strided.apply(variables, x, train=False), np.zeros((2, 3, 4, 8)))


def test_a_block_by_hand(block):
    """Expand, every channel alone, project; nothing is clipped after the projection, all is by 6 before it."""
    net, variables, x = block
    kernels = {k: np.asarray(v["conv"]["kernel"], np.float64) for k, v in variables["params"].items()}
    scale = 1 / np.sqrt(1 + 1e-5)

    def relu6(x):
        return np.minimum(np.maximum(x, 0), 6)

    y = relu6(scale * np.asarray(x, np.float64) @ kernels["expand"][0, 0])
    padded = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(padded[:, i : i + 5, j : j + 7] * kernels["depthwise"][i, j, 0] for i in range(3) for j in range(3))
    y = scale * relu6(scale * y) @ kernels["project"][0, 0]
    np.testing.assert_allclose(net.apply(variables, x, train=False), x + y, atol=1e-5)
    clipped = InvertedResidual(8, 3, 1, False, BLOCK)
    np.testing.assert_allclose(clipped.apply(variables, x, train=False), x + relu6(y), atol=1e-5)
    assert (y < 0).any()


def test_an_expansion_of_one_has_no_first_convolution():
    net = InvertedResidual(8, 1, 1, True, BLOCK)
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)), train=False))["params"]
    assert sorted(params) == ["depthwise", "project"]


def test_one_pixel_of_one_image_trains(block):
    """It does not vary: batch norm gives zeros, and finite gradients."""
    net, variables, x = block

    def loss(params, x):
        y, updated = net.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y**2), (y, updated)

    gradients, (y, updated) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x[:1, :1, :1])
    chex.assert_tree_all_finite((gradients, updated))
    np.testing.assert_allclose(y, x[:1, :1, :1], atol=1e-4)


def test_bad_input_raises():
    with pytest.raises(ValueError, match=r"MobileNetV1: images \(32, 32, 3\), expected \[N, H, W, 3\]"):
        jax.eval_shape(lambda: MobileNetV1().init(jax.random.key(0), jnp.zeros((32, 32, 3)), train=False))
    with pytest.raises(ValueError, match=r"MobileNetV2.width is -1: expected above 0"):
        shapes(MobileNetV2(width=-1), 32)
    with pytest.raises(ValueError, match=r"model.name is 'v3': expected v1 or v2"):
        experiment.build(smoke("", **{"model.name": "v3"}))


def smoke(path, **changes):
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {
            "data.path": str(path), "data.image_size": 16, "data.classes": 4, "model.width": 0.25,
            "train.steps": 3, "train.batch_size": 8, "train.log_every": 1, "eval.batch_size": 8, **changes,
        }
    )  # fmt: skip
    return config


def test_smoke(coloured, tmp_path):
    config = smoke(coloured("train", "val"), **{"optim.ema": 0.9, "data.crops": True})
    state, report = app.run(config, experiment.build, workdir=tmp_path, quiet=True)
    assert set(report.metrics) == {"accuracy", "top5_accuracy", "million_multiply_adds", "million_parameters"}
    assert report.metrics["top5_accuracy"] == 100
    assert report.arrays["guess"].shape == (8,)
    assert set(state.params) == set(state.ema)
    assert (tmp_path / "report.html").stat().st_size > 20_000


def test_depthwise_kernels_do_not_decay():
    params = shapes(MobileNetV1(3, width=0.25), 32)["params"]
    mask = decayed(params)
    assert not mask["depthwise1"]["conv"]["kernel"]
    assert not mask["pointwise1"]["bn"]["norm"]["scale"]
    assert mask["pointwise1"]["conv"]["kernel"]
    assert mask["stem"]["conv"]["kernel"]
    assert mask["fc"]["kernel"]


def test_the_rate_falls_in_stairs():
    config = experiment.get_config("imagenet_v1").optim
    params = {"kernel": jnp.zeros((1, 1))}
    tx = Optimizer(**config).make(10)
    state = tx.init(params)
    state = jax.tree.map(lambda x: jnp.full_like(x, 50_045) if x.dtype == jnp.int32 else x, state)
    step, _ = tx.update({"kernel": jnp.ones((1, 1))}, state, params)
    np.testing.assert_allclose(step["kernel"], -0.045 * 0.94, rtol=1e-6)


def test_both_sides_of_the_claim_cost_the_same():
    costs = []
    for preset in ("synthetic", "full_convolution"):
        config = experiment.get_config(preset)
        net = experiment.make_net(config)
        costs.append(multiply_adds(net, shapes(net, config.data.image_size), config.data.image_size))
    assert costs[1] == pytest.approx(costs[0], rel=0.01)


PUBLISHED = {
    "imagenet_v1": ("mobilenet_v1", 64, 569),
    "imagenet_v1_075": ("mobilenet_v1_075", 64, 325),
    "imagenet_v1_050": ("mobilenet_v1_050", 64, 149),
    "imagenet_v1_025": ("mobilenet_v1_025", 64, 41),
    "imagenet_v1_160": ("mobilenet_v1", 64, 290),
    "imagenet_v2": ("mobilenet_v2", 96, 301),
    "imagenet_v2_140": ("mobilenet_v2_140", 96, 582),
}
"""Model, batch a device, million multiply-adds."""


@pytest.mark.parametrize("preset", full_but(PUBLISHED, "imagenet_v1_025", "imagenet_v2"))
def test_full_scale_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    model, batch, million = PUBLISHED[preset]
    assert costs["parameters"] == facejax.model_info(model).parameters
    assert costs["batch per device"] == batch
    assert 2.7 < costs["step flops per device"] / batch / 2e6 / million < 3.3  # forward once, backward twice


def test_every_published_preset_is_counted():
    assert {p for p in experiment.PRESETS if p.startswith("imagenet")} == set(PUBLISHED)
    for preset in PUBLISHED:
        config = experiment.get_config(preset)
        assert experiment.build(config).batch["image"].shape[0] == config.train.batch_size
