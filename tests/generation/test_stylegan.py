"""StyleGAN's and StyleGAN2's layers, styles and penalties in closed form, their runs, their presets."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import stylegan as experiment
from facejax.evaluate.styles import SWEEP
from facejax.generation import stylegan, stylegan2
from facejax.nn.equalized import upscale
from facejax.ops import fir, scaled_conv
from facejax.recipes import sampling
from facejax.recipes.gan import DISCRIMINATOR, GENERATOR, Progressive
from facejax.train import Options, app, parallel
from facejax.train.dry_run import dry_run

STYLES = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
NETS = {
    1: (stylegan.Generator(8, 5, 32, 6, 2), stylegan.Discriminator(8, 32, 6)),
    2: (stylegan2.Generator(8, 5, 32, 6, 2), stylegan2.Discriminator(8, 32, 6)),
}


@pytest.fixture(scope="module")
def params():
    """Random parameters of both networks of both versions."""
    rng, inputs = np.random.default_rng(0), (jnp.zeros((1, 5)), jnp.zeros((1, 8, 8, 3)))
    shapes = {
        version: [jax.eval_shape(net.init, jax.random.key(0), x) for net, x in zip(nets, inputs, strict=True)]
        for version, nets in NETS.items()
    }
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def draw():
    """By version, styles to images."""
    return {version: jax.jit(partial(nets[0].apply, method="synthesize")) for version, nets in NETS.items()}


def test_generator_at_both_ends_of_a_fade(params, draw):
    """The parameters of the larger network hold those of the smaller one, which can be called on its own."""
    own = {"params": params[1][0]["params"]["synthesis"]}
    smaller = upscale(jax.jit(stylegan.Synthesis(4, 32, 6).apply)(own, STYLES[:, :2]))
    larger = draw[1](params[1][0], STYLES, alpha=1.0)
    assert larger.shape == (3, 8, 8, 3)
    for alpha, expected in ((0.0, smaller), (0.5, (smaller + larger) / 2)):
        np.testing.assert_allclose(draw[1](params[1][0], STYLES, alpha=alpha), expected, rtol=2e-5, atol=5e-6)


def test_layers():
    assert [stylegan.layer_count(size) for size in (4, 8, 256, 1024)] == [2, 4, 14, 18]


@pytest.mark.parametrize("version", NETS)
def test_every_style_and_noise_is_used(params, draw, version):
    """Each layer's w changes the image; without a stream noise is fixed, with one it differs between images."""
    own, draw = params[version][0], draw[version]
    same = np.repeat(STYLES[:1], 6, 0)
    same[np.arange(2, 6), np.arange(4)] += 1
    images = np.asarray(draw(own, same))
    np.testing.assert_array_equal(images[0], images[1])
    assert all(np.abs(image - images[0]).max() > 1e-3 for image in images[2:])
    noisy = [np.asarray(draw(own, same[:2], rngs={stylegan.NOISE: jax.random.key(i)})) for i in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert all(np.abs(a - b).max() > 1e-3 for a, b in ((noisy[0][0], noisy[0][1]), (noisy[0], noisy[2])))


def test_mixed_styles():
    first, second = np.zeros((2, 3)), np.ones((2, 3))
    for cutoff in range(1, 5):
        found = stylegan.mixed(first, second, cutoff, 4)
        np.testing.assert_array_equal(found[1, :, 2], np.arange(4) >= cutoff)
    keys = jax.random.split(jax.random.key(0), 2000)
    cutoffs = np.asarray(jax.jit(jax.vmap(partial(stylegan.mixing_cutoff, layers=4, probability=0.9)))(keys))
    np.testing.assert_allclose([np.mean(cutoffs == k) for k in range(6)], [0, 0.3, 0.3, 0.3, 0.1, 0], atol=0.04)


def test_truncated_styles():
    average = np.float32([1, 2, 3, 4, 5])
    np.testing.assert_allclose(stylegan.truncated(STYLES, average, 1.0, None), STYLES, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stylegan.truncated(STYLES, average, 0.0, None), np.broadcast_to(average, (3, 4, 5)))
    found = stylegan.truncated(STYLES, average, 0.25, 3)
    np.testing.assert_allclose(found[:, :3], 0.75 * average + 0.25 * STYLES[:, :3], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[:, 3:], STYLES[:, 3:])
    moved = stylegan.moved(average, STYLES[:, 0], 0.75)
    np.testing.assert_allclose(moved, 0.75 * average + 0.25 * STYLES[:, 0].mean(0), rtol=1e-5)


def test_normalised_maps():
    x = np.random.default_rng(0).normal(3, 2, (2, 5, 7, 3)).astype(np.float32)
    x[0, ..., 1] = 4
    style = np.float32([[0.5, 0, -1, 10, 20, 30], [0, 0, 0, 0, 0, 0]])
    found = np.asarray(stylegan.adaptive(stylegan.instance_norm(x), style))
    np.testing.assert_allclose(found.mean((1, 2)), [[10, 20, 30], [0, 0, 0]], atol=1e-5)
    np.testing.assert_allclose(found.std((1, 2)), [[1.5, 0, 0], [1, 1, 1]], atol=1e-5)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("size", [(3, 5), (4, 4)])
def test_modulated_conv(up, size):
    """Equal to a convolution with each image's own weights; a style's scale does not matter."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 3)).astype(np.float32), rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    style = rng.normal(size=(2, 3)).astype(np.float32)
    found = jax.jit(partial(stylegan2.modulated_conv, up=up))(x, kernel, style)
    weights = kernel * style[:, None, None, :, None]
    weights /= np.sqrt((weights**2).sum((1, 2, 3), keepdims=True))
    form = jax.jit(fir.upscale_conv if up else scaled_conv.conv)
    for i, weight in enumerate(weights):
        np.testing.assert_allclose(found[i : i + 1], form(x[i : i + 1], weight), rtol=1e-4, atol=1e-5)
    other = jax.jit(partial(stylegan2.modulated_conv, up=up))(x, kernel, 7 * style)
    np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-5)


def test_demodulated_maps_have_unit_variance():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(4, 32, 32, 8)).astype(np.float32), rng.normal(size=(3, 3, 8, 16)).astype(np.float32)
    found = np.asarray(stylegan2.modulated_conv(x, kernel, rng.uniform(0.1, 5, (4, 8)).astype(np.float32)))
    np.testing.assert_allclose(found[:, 1:-1, 1:-1].var((1, 2)).mean(), 1, rtol=0.03)


def test_losses_of_a_linear_discriminator():
    """D(x) = <a, x>: R1 is gamma / 2 ||a||^2 at every image."""
    rng = np.random.default_rng(0)
    a, real, fake = rng.normal(size=(4, 4, 3)), *rng.normal(size=(2, 3, 4, 4, 3))
    score = lambda x: jnp.einsum("nhwc,hwc->n", x, a)  # noqa: E731
    np.testing.assert_allclose(stylegan.r1_penalty(score, real, 3.0), 1.5 * (a**2).sum(), rtol=1e-5)
    of_real, of_fake = (np.einsum("nhwc,hwc->n", x, a) for x in (real, fake))
    expected = np.log1p(np.exp(of_fake)) + np.log1p(np.exp(-of_real))
    np.testing.assert_allclose(stylegan.discriminator_loss(score, real, fake), expected, rtol=1e-5)
    np.testing.assert_allclose(stylegan.generator_loss(score, fake), np.log1p(np.exp(-of_fake)), rtol=1e-5)


def test_path_length_of_a_linear_generator():
    """G(w) = A w of one layer: the expected squared length is ||A||^2 / (H W); the average carries a gradient."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(4, 6, 3, 5)).astype(np.float32)
    styles = rng.normal(size=(2000, 1, 5)).astype(np.float32)

    def run(scale):
        synthesize = lambda styles: scale * jnp.einsum("nlw,hvcw->nhvc", styles, matrix)  # noqa: E731
        found = stylegan2.path_length(synthesize, styles, jnp.float32(2.0), jax.random.key(0), decay=0.5)
        return found.penalty.mean(), found

    (value, found), slope = jax.jit(jax.value_and_grad(run, has_aux=True))(1.0)
    np.testing.assert_allclose(np.mean(found.lengths**2), (matrix**2).sum() / 24, rtol=0.05)
    lengths = np.asarray(found.lengths, np.float64)
    average = (2 + lengths.mean()) / 2
    np.testing.assert_allclose(found.average, average, rtol=1e-5)
    np.testing.assert_allclose(value, ((lengths - average) ** 2).mean(), rtol=1e-4)
    expected = (2 * (lengths - average) * (lengths - lengths.mean() / 2)).mean()
    np.testing.assert_allclose(slope, expected, rtol=1e-3)


@pytest.mark.parametrize("version", NETS)
def test_low_precision(params, version):
    """Scores of generated images are float32 with the computation in bfloat16 too."""
    generator, discriminator = (net.clone(dtype=jnp.bfloat16) for net in NETS[version])
    scores = jax.jit(lambda p: discriminator.apply(p[1], generator.apply(p[0], STYLES[:, 0])))(params[version])
    assert scores.dtype == jnp.float32 and np.isfinite(scores).all()


@pytest.mark.parametrize("version", NETS)
def test_bad_input(params, version):
    generator, discriminator = NETS[version]
    paper = {1: stylegan, 2: stylegan2}[version]
    for net, x in ((paper.Generator(48), jnp.zeros((1, 512))), (paper.Synthesis(2), jnp.zeros((1, 0, 512)))):
        with pytest.raises(ValueError, match=r"of (48|2) pixels: expected a power of two, 4 or more"):
            net.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"of 48 pixels: expected a power of two"):
        paper.Discriminator(48).init(jax.random.key(0), jnp.zeros((1, 48, 48, 3)))
    with pytest.raises(ValueError, match=r"latents \(1, 4\), expected \[N, 5\]"):
        generator.apply(params[version][0], jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"styles \(1, 5, 5\), expected \[N, 4, W\]"):
        generator.apply(params[version][0], jnp.zeros((1, 5, 5)), method="synthesize")
    with pytest.raises(ValueError, match=r"images \(2, 4, 4, 3\), expected \[N, 8, 8, 3\]"):
        discriminator.apply(params[version][1], jnp.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match="no layers turn 4 latents into 5, expected as many"):
        stylegan.Mapping(5, 0).apply({}, jnp.zeros((1, 4)))


SMALL = {
    "data.source": "folder", "data.image_size": 4, "model.latent_size": 5, "model.mapping_layers": 1, "model.base": 32,
    "model.largest": 6, "growth.first": 4, "train.batch_size": 8,
    "train.devices": 1, "train.steps": 3, "eval.images": 16,
    "eval.batch_size": 16, "styles.pairs": 0, "styles.images": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, picture_folder):
    rng = np.random.default_rng(0)
    return picture_folder(tmp_path_factory.mktemp("stylegan"), {"a": rng.integers(0, 256, (40, 4, 4, 3))})


def test_a_run_and_its_sheets(folder, tmp_path, monkeypatch, capsys):
    config = experiment.get_config()
    config.update_from_flattened_dict(SMALL | {"data.path": str(folder)})
    state, report = app.run(config, experiment.build, name="stylegan:synthetic", workdir=tmp_path / "run", quiet=True)
    assert report.metrics["frechet_random_cnn@16"] > 0
    assert [row["psi"] for row in report.tables["Truncation, 16 images"]] == [1.0, 0.7, 0.5]
    assert any(title.startswith("Progress") for title in report.images)
    (title,) = (title for title in report.images if title.startswith("Truncation"))
    swept = report.images[title]
    assert swept.shape == (6 * 4, len(SWEEP) * 4, 3)
    column = slice(4 * SWEEP.index(0.0), 4 * SWEEP.index(0.0) + 4)
    np.testing.assert_array_equal(swept[:4, column], swept[4:8, column])  # the average face
    assert np.any(swept[:4, :4] != swept[4:8, :4])
    assert set(state.params) == {GENERATOR, DISCRIMINATOR} and np.abs(state.model_state["w_average"]).max() > 0

    target = tmp_path / "sheet.png"
    words = ["--sample", str(tmp_path / "run"), "--seeds", "0-3", "--truncation", "0", "--out", str(target)]
    monkeypatch.setattr(sys, "argv", ["stylegan", *words])
    sampling.main("stylegan", experiment.get_config, experiment.build, experiment.sample, {"truncation": 1.0})
    assert "4 images of step 3" in capsys.readouterr().out
    tiles = np.asarray(Image.open(target)).reshape(2, 4, 2, 4, 3)
    np.testing.assert_array_equal(tiles[0, :, 0], tiles[1, :, 1])


def test_steps_of_the_second_version(folder):
    """A step with both penalties updates each player twice and moves both averages; the strip gets its first row."""
    config = experiment.get_config("stylegan2")
    config.update_from_flattened_dict(SMALL | {"data.path": str(folder), "train.steps": 8})
    made = experiment.run(config).experiment()
    assert [made.step_name(n) for n in (1, 2, 5, 17)] == ["r1+path", "plain", "path", "r1+path"]
    executor = parallel.make_executor(made, "shard_map", 1)
    state = executor.init(0)
    before = jax.device_get(state)
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
    state, metrics = executor.step(state, executor.put({"image": images}), "r1+path")
    counts = [int(adam[0].count) for adam in state.opt_state.values()]
    assert counts == [2, 2]
    assert metrics.keys() == {"generator_loss", "discriminator_loss", "r1", "path_length", "path_penalty"}
    assert state.model_state["path_average"] > 0 and np.all(before.model_state["w_average"] == 0)
    assert np.abs(state.model_state["w_average"]).max() > 0
    assert np.any(state.frames[0]) and not np.any(state.frames[1:])
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), state.params, before.params)
    assert min(jax.tree.leaves(moved)) > 0


def test_bad_settings():
    for change, message in (
        ({"model.version": 3}, "model.version is 3: expected 1 or 2"),
        ({"loss.kind": "hinge"}, "loss.kind is 'hinge': expected one of logistic, wgan_gp"),
        ({"model.version": 2, "loss.r1_interval": 0}, "the regulariser r1 has an interval of 0 steps"),
        ({"model.version": 2, "loss.kind": "wgan_gp"}, "loss.kind is 'wgan_gp': expected 'logistic', the only loss"),
        ({"styles.space": "y"}, "styles.space is 'y': expected w or z"),
        ({"data.image_size": 48}, "data.image_size is 48: expected a power of two"),
    ):
        config = experiment.get_config()
        config.update_from_flattened_dict(change)
        with pytest.raises(ValueError, match=message):
            experiment.build(config)


SHOWN = {
    "synthetic": 16_000, "paths_in_z": 16_000, "no_mapping": 16_000, "no_mixing": 16_000, "stylegan2": 16_000,
    "gpu": 600_000, "ffhq_1024": 25_000_000, "celebahq": 25_000_000, "ffhq_1024_v2": 25_000_000,
}  # fmt: skip
"""Images that the discriminator sees."""


@pytest.mark.parametrize("preset", experiment.PRESETS)
def test_presets(preset):
    config = experiment.get_config(preset)
    made, shown = experiment.run(config), config.train.steps * config.train.batch_size
    if isinstance(made, Progressive):
        last = made.stages[-1]
        assert last.begin + (last.fading + last.fades_at - last.images) / last.batch_size < config.train.steps
        shown = last.images + (config.train.steps - last.begin) * last.batch_size
    assert shown == pytest.approx(SHOWN[preset], rel=1e-5)
    if preset == "synthetic":
        costs = dry_run(made.experiment(), Options(**config.train))
        assert costs["parameters"] == sum(costs["parameters by part"].values()) > 0
