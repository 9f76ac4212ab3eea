"""UID-GAN: parts at full size, codes, contents, losses, one training step, presets, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import uid_deblur as experiment
from facejax.backbones.vgg import VGG
from facejax.restoration import uid_deblur
from facejax.restoration.uid_deblur import UID, Code, Discriminator, absolute_error, divergence
from facejax.train import Options, app, parallel
from facejax.train.dry_run import count, dry_run

NET = UID(width=4, blocks=0, code_size=3)
RNGS = {name: jax.random.key(i) for i, name in enumerate(("noise", "code", "random"))}
PARTS = {
    "of_sharp": lambda net, x: net.content.of_sharp(x),
    "of_blurred": lambda net, x: net.content.of_blurred(x),
    "deblur": lambda net, x, code: net.generator.deblur(x, code),
    "reblur": lambda net, x, code: net.generator.blur(x, code),
    "code": lambda net, x: net.blur_code(x).mean,
}


@functools.partial(jax.jit, static_argnums=0)
def run(part, variables, *inputs):
    return NET.apply(variables, *inputs, method=PARTS[part])


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 2, 16, 16, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(images):
    """With weights that are large enough for codes and noise to matter."""
    made = jax.jit(lambda: NET.init(jax.random.key(0), images[0]))()
    return jax.tree.map(lambda x: 10 * x, made)


def test_parts_have_the_published_sizes():
    shapes = jax.eval_shape(lambda key: UID().init(key, jnp.zeros((1, 32, 32, 3))), jax.random.key(0))["params"]
    assert {name: count(part) for name, part in shapes.items()} == {
        "content": 9_018_112, "blur_encoder": 1_344_080, "generator": 9_564_710,
    }  # fmt: skip
    path = [shapes["content"]["blurred"], shapes["content"]["shared"], shapes["blur_encoder"]]
    assert sum(map(count, [*path, shapes["generator"]["shared"], shapes["generator"]["sharp"]])) == 11_815_651
    net = Discriminator()
    picture = jnp.zeros((1, 128, 128, 3))
    scores, judge = jax.eval_shape(lambda key: net.init_with_output(key, picture), jax.random.key(0))
    assert count(judge["params"]) == 8_271_171
    assert [x.shape for x in scores] == [(1, 8, 8), (1, 4, 4), (1, 2, 2)]


def test_the_last_block_of_the_encoders_and_the_first_of_the_generators_are_shared(images, variables):
    params = jax.tree.map(jnp.array, variables["params"])
    params["content"]["sharp"] = params["content"]["blurred"]
    params["generator"]["sharp"] = params["generator"]["blurred"]
    alike, code = {"params": params}, jnp.ones((2, 3))
    content = run("of_blurred", alike, images[0])
    np.testing.assert_allclose(run("of_sharp", alike, images[0]), content, atol=1e-5)
    made = [run(name, alike, content, code) for name in ("deblur", "reblur")]
    np.testing.assert_allclose(*made, atol=1e-5)
    assert np.abs(made[0] - run("deblur", alike, content, 0 * code)).max() > 1e-3


def test_translations_by_hand(images, variables):
    """Without noise and with codes of no variance, every translation is what its name says."""
    sharp, blurred = images
    silent, net = jax.tree.map(jnp.array, variables), NET.clone(noise=0.0)
    silent["params"]["blur_encoder"]["log_variance"]["bias"] -= 200

    of_sharp, of_blurred, deblur, reblur, code_of = (functools.partial(run, part, silent) for part in PARTS)
    code = code_of(blurred)
    expected = {
        "deblurred": deblur(of_blurred(blurred), code),
        "sharp_again": deblur(of_sharp(sharp), code),
        "blurred": reblur(of_sharp(sharp), code),
        "blurred_again": reblur(of_blurred(blurred), code),
    }
    again = code_of(expected["blurred"])
    expected["sharp_cycle"] = deblur(of_blurred(expected["blurred"]), again)
    expected["blurred_cycle"] = reblur(of_sharp(expected["deblurred"]), again)
    methods = {"translate": (sharp, blurred), "translate_random": (sharp, blurred), "__call__": (blurred,),
               "transferred": (sharp, blurred)}  # fmt: skip
    made = jax.jit(lambda: [net.apply(silent, *x, method=method, rngs=RNGS) for method, x in methods.items()])()
    found, random, deblurred, transferred = made
    for name, image in expected.items():
        np.testing.assert_allclose(getattr(found, name), image, atol=2e-4, err_msg=name)
        assert np.abs(image).max() > 0.01, name
    np.testing.assert_allclose(deblurred, expected["deblurred"], atol=2e-4)
    np.testing.assert_allclose(transferred, expected["blurred"], atol=2e-4)
    np.testing.assert_allclose(random.deblurred, deblur(of_blurred(blurred), random.code), atol=2e-4)
    np.testing.assert_allclose(random.blurred, reblur(of_sharp(sharp), random.code), atol=2e-4)
    np.testing.assert_allclose(random.found, code_of(random.blurred), atol=2e-4)
    assert np.abs(random.code).min() > 1e-4


def test_noise_and_draws(images, variables):
    """Contents are noisy in training only; codes have their variance."""
    sharp, blurred = images

    @jax.jit
    def drawn(seed):
        rngs = {name: jax.random.fold_in(jax.random.key(seed), i) for i, name in enumerate(RNGS)}
        contents = NET.apply(variables, sharp, blurred, method=lambda net, *x: net.content(*x), rngs=rngs)
        return contents, NET.apply(variables, sharp, blurred, method="translate", rngs=rngs).deblurred

    contents, deblurred = drawn(0)
    plain = run("of_blurred", variables, blurred)
    spread = contents[1] - plain
    assert abs(float(spread.mean())) < 0.1 and 0.9 < float(spread.std()) < 1.1
    assert np.abs(deblurred - drawn(1)[1]).max() > 1e-3
    code = Code(jnp.full((4000, 2), 3.0), jnp.full((4000, 2), np.log(4.0)))
    samples = NET.apply(variables, code, method=lambda net, code: net._drawn(code), rngs={"code": jax.random.key(0)})
    np.testing.assert_allclose([samples.mean(), samples.std()], [3, 2], atol=0.1)


def test_noise_in_bfloat16_has_its_tails():
    """Contents of a network of zeros are noise alone. JAX's normal numbers in bfloat16 are 128 values up to 2.9."""
    net = UID(width=4, blocks=0, code_size=0, dtype=jnp.bfloat16)
    pictures = jnp.zeros((2, 64, 64, 3))
    zeros = jax.tree.map(jnp.zeros_like, net.init(jax.random.key(0), pictures))
    rngs = {"noise": jax.random.key(1)}
    contents = net.apply(zeros, pictures, pictures, method=lambda net, *x: net.content(*x), rngs=rngs)
    found = np.abs(np.stack(contents).astype(np.float32))
    assert contents[0].dtype == jnp.bfloat16 and found.max() > 3.2 and 0.002 < (found > 3).mean() < 0.0034


def test_without_a_code_the_network_is_a_plain_translator(images):
    net = UID(width=4, blocks=0, code_size=0)

    @jax.jit
    def made():
        variables = net.init(jax.random.key(0), images[0])
        both = [net.apply(variables, *images, method=m, rngs=RNGS) for m in ("translate", "translate_random")]
        return variables, both[0].code, [translated.deblurred for translated in both]

    variables, code, deblurred = made()
    assert set(variables["params"]) == {"content", "generator"}
    np.testing.assert_allclose(*deblurred, atol=1e-5)  # both updates see the same noise
    assert code.mean.shape == (2, 0) and deblurred[0].shape == images[0].shape
    np.testing.assert_array_equal(divergence(code), 0)


def test_losses_by_hand():
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(2, 5, 3)).astype(np.float32)
    expected = 0.5 * (mean**2 + np.exp(log_variance) - log_variance - 1).sum(1)
    np.testing.assert_allclose(divergence(Code(mean, log_variance)), expected, rtol=1e-5)
    np.testing.assert_array_equal(divergence(Code(0 * mean, 0 * mean)), 0)
    gradient = jax.grad(lambda m, v: divergence(Code(m, v)).sum(), (0, 1))(mean, log_variance)
    np.testing.assert_allclose(gradient[0], mean, rtol=1e-5)
    np.testing.assert_allclose(gradient[1], 0.5 * (np.exp(log_variance) - 1), rtol=1e-4, atol=1e-6)
    a, b = rng.normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(absolute_error(a, b), np.abs(a - b).reshape(3, -1).mean(1), rtol=1e-5)
    coarse = (a - b).reshape(3, 1, 4, 1, 4, 3).mean((2, 4))
    found = uid_deblur.perceptual_loss(uid_deblur.coarse_features, {}, a, b)
    np.testing.assert_allclose(found, np.square(coarse).reshape(3, -1).mean(1), rtol=1e-4)
    slope = jax.grad(lambda b: uid_deblur.perceptual_loss(uid_deblur.coarse_features, {}, a, b).sum())(b)
    np.testing.assert_array_equal(slope, 0)


def test_vgg_features_are_those_before_the_third_relu_of_the_third_stage(images):
    vgg = VGG((1, 1, 3), (3, 3, 4))
    variables = jax.jit(lambda: vgg.init(jax.random.key(0), images[0], train=False))()
    found = jax.jit(lambda: uid_deblur.vgg_features(vgg, variables["params"], images[0]))()
    relu = jax.jit(lambda: vgg.apply(variables, images[0], train=False, features=True)["relu3_3"])()
    assert (np.asarray(found) < 0).any()
    np.testing.assert_array_equal(jax.nn.relu(found), relu)


def config_of(preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.source": "text", "data.image_size": 16, "model.width": 4, "model.blocks": 0, "model.patch_width": 4,
            "model.patch_layers": 1, "model.scales": 1, "train.batch_size": 4, "train.steps": 2, "train.devices": 1,
            **changes,
        }
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def trained():
    """(the run, parameters at its start, executor, state and metrics after each of two steps)."""
    run = experiment.build(config_of(**{"loss.random": True, "optim.generator_every": 2, "optim.weight_decay": 0.0}))
    executor, batches, states, metrics = parallel.make_executor(run, "shard_map", 1), run.train_data(), [], []
    state = executor.init(0)
    start = jax.tree.map(np.asarray, state.params)
    for number in (1, 2):
        state, found = executor.step(state, executor.put(next(batches)), run.step_name(number))
        states.append(jax.tree.map(np.asarray, state.params))
        metrics.append(jax.device_get(found))
    batches.close()
    return run, start, executor.local(state), states, metrics


def test_each_update_moves_its_own_players(trained):
    """Discriminators always; encoders and generators in every second step."""
    run, start, _, (first, second), metrics = trained
    assert [run.step_name(number) for number in (1, 2, 3, 4)] == ["discriminators", "both"] * 2
    moved = {name: jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, first[name], start[name]) for name in start}
    assert all(jax.tree.leaves(moved.pop("discriminators")))
    assert not any(jax.tree.leaves(moved))
    assert set(metrics[0]) == {"discriminators"} and {"adversarial", "regression"} < set(metrics[1])
    kernels = [params["content"]["sharp"]["conv0"]["conv"]["kernel"] for params in (second, start)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-5


def test_the_experiment_measures_the_transfer(trained, tmp_path):
    report = trained[0].evaluate(trained[2])
    assert next(iter(report.metrics)) == "psnr"
    assert {"psnr_degraded", "ssim", "transfer_psnr", "transfer_gain", "code_r2", "content_r2"} < set(report.metrics)
    assert report.metrics["psnr"] < report.metrics["psnr_degraded"]
    (picture,) = report.images.values()
    assert picture.shape == (4 * 16, 8 * 16, 3)
    _, known = app.run(config_of("blurred"), experiment.build, quiet=True, workdir=str(tmp_path / "run"))
    assert known.metrics["psnr"] == known.metrics["psnr_degraded"] == report.metrics["psnr_degraded"]
    assert (tmp_path / "run/report.html").stat().st_size > 20_000


@pytest.mark.parametrize("preset", ["celeba", "no_code"])
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    found = dry_run(experiment.build(config), Options(**{**config.train, "devices": 1}))
    assert found["step flops per device"] > 1e8
    if preset == "celeba":
        parts = found["parameters by part"]
        assert parts.pop("discriminators") == 4 * 8_271_171 and sum(parts.values()) == 19_926_902


def test_bad_input_raises(images, variables):
    for wrong in (images[0][0], images[0][:, :15], images[0][..., :2]):
        with pytest.raises(ValueError, match=r"UID: images \(.*\): expected \[N, H, W, 3\] with sides that 4 divides"):
            NET.apply(variables, wrong)
    with pytest.raises(ValueError, match="a map of 1 x 2: expected more than 1 pixels a side to mirror"):
        uid_deblur.reflected(jnp.zeros((1, 1, 2, 3)), 1)
    for field, value, message in (
        ("model.name", "gan", "model.name is 'gan': expected uid or blurred"),
        ("loss.extractor", "vgg", "loss.extractor is 'vgg': expected one of coarse, vgg19, vgg16_face"),
        ("train.batch_size", 3, "train.batch_size is 3: expected an even number, half of it for random codes"),
        ("train.microbatches", 2, "train.microbatches is 2: expected 1, both updates share one pass"),
    ):
        with pytest.raises(ValueError, match=message):
            experiment.build(config_of(**{"loss.random": True, field: value}))
    run = experiment.build(config_of(**{"loss.extractor": "vgg19"}))
    with pytest.raises(ValueError, match=r"loss\.weights is empty: expected a file of VGG's weights"):
        run.prepare()
