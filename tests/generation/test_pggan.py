"""PG-GAN's networks at and between whole levels, its loss in closed form, its run, its presets."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import pggan as experiment
from facejax.generation import pggan
from facejax.nn.equalized import downscale, upscale
from facejax.recipes import sampling
from facejax.recipes.gan import DISCRIMINATOR, GENERATOR
from facejax.train import Options, app
from facejax.train.dry_run import dry_run

NETS = pggan.Generator(16, 5, base=32, largest=6), pggan.Discriminator(16, base=32, largest=6)


@pytest.fixture(scope="module")
def variables():
    keys = jax.random.split(jax.random.key(0))
    inputs = jnp.zeros((1, 5)), jnp.zeros((1, 16, 16, 3))
    made = [jax.jit(net.init)(key, x) for net, key, x in zip(NETS, keys, inputs, strict=True)]
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), v) for v in made]


def test_channels():
    full = [pggan.channels(2**r, 8192, 512) for r in range(2, 11)]
    assert full == [512, 512, 512, 512, 256, 128, 64, 32, 16]


@pytest.mark.parametrize("size", [8, 16])
def test_generator_at_both_ends_of_a_fade(variables, size):
    """The parameters of the largest network hold those of the smaller ones."""
    latents = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    net = NETS[0].clone(resolution=size)
    draw = jax.jit(net.apply)
    smaller = upscale(net.clone(resolution=size // 2).apply(variables[0], latents))
    larger = draw(variables[0], latents)
    assert larger.shape == (3, size, size, 3)
    for alpha, expected in ((0.0, smaller), (1.0, larger), (0.5, (smaller + larger) / 2)):
        np.testing.assert_allclose(draw(variables[0], latents, alpha=alpha), expected, rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize("size", [8, 16])
def test_discriminator_at_both_ends_of_a_fade(variables, size):
    images = np.random.default_rng(1).normal(size=(4, size, size, 3)).astype(np.float32)
    net = NETS[1].clone(resolution=size)
    score = jax.jit(net.apply)
    smaller = net.clone(resolution=size // 2).apply(variables[1], downscale(images))
    np.testing.assert_allclose(score(variables[1], images, alpha=0.0), smaller, rtol=1e-5)
    np.testing.assert_allclose(score(variables[1], images, alpha=1.0), score(variables[1], images), rtol=1e-5)


def test_images_of_coarser_levels_are_used_while_fading_only(variables):
    latents = np.ones((2, 5), np.float32)
    for alpha, unused in ((0.5, {"to_rgb4"}), (None, {"to_rgb4", "to_rgb8"})):
        slopes = jax.grad(lambda v, alpha=alpha: NETS[0].apply(v, latents, alpha=alpha).sum())(variables[0])["params"]
        assert {name for name, part in slopes.items() if not np.any(jax.tree.leaves(part)[0])} == unused


def test_real_images_fade_too():
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(pggan.faded(images, 1.0), images)
    np.testing.assert_allclose(pggan.faded(images, 0.0), upscale(downscale(images)))


def test_loss_of_a_linear_discriminator():
    """D(x) = <a, x>: the gradient's norm is ||a|| at every image."""
    rng = np.random.default_rng(0)
    a, real, fake = rng.normal(size=(4, 4, 3)), *rng.normal(size=(2, 3, 4, 4, 3))
    of_real, of_fake = (np.einsum("nhwc,hwc->n", x, a) for x in (real, fake))
    found = pggan.discriminator_loss(
        lambda x: jnp.einsum("nhwc,hwc->n", x, a), real, fake, jax.random.key(0), weight=5.0, target=2.0, drift=0.1
    )
    expected = of_fake - of_real + 5 / 4 * (np.linalg.norm(a) - 2) ** 2 + 0.1 * of_real**2
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(pggan.generator_loss(lambda x: x[:, 0, 0, 0], fake), -fake[:, 0, 0, 0], rtol=1e-6)


def test_low_precision_is_finite(variables):
    """Scores, images, losses and their gradients, with the computation in bfloat16."""
    generator, discriminator = (net.clone(dtype=jnp.bfloat16) for net in NETS)
    latents = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)

    @jax.jit
    def slopes(params):
        fake = generator.apply(params[0], latents)
        score = lambda x: discriminator.apply(params[1], x)  # noqa: E731
        return pggan.discriminator_loss(score, jnp.zeros_like(fake), fake, jax.random.key(0)).mean()

    value, grads = jax.value_and_grad(slopes)(variables)
    assert value.dtype == jnp.float32 and np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_bad_input(variables):
    generator, discriminator = NETS
    with pytest.raises(ValueError, match="a PG-GAN of 48 pixels: expected a power of two"):
        pggan.Generator(48).init(jax.random.key(0), jnp.zeros((1, 512)))
    with pytest.raises(ValueError, match=r"latents \(1, 4\), expected \[N, 5\]"):
        generator.apply(variables[0], jnp.zeros((1, 4)))
    for shape in ((2, 16, 16, 1), (2, 8, 8, 3)):
        with pytest.raises(ValueError, match=r"images \(2, .*\), expected \[N, 16, 16, 3\]"):
            discriminator.apply(variables[1], jnp.zeros(shape))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, picture_folder):
    rng = np.random.default_rng(0)
    return picture_folder(tmp_path_factory.mktemp("pggan"), {"a": rng.integers(0, 256, (40, 16, 16, 3))})


@pytest.fixture(scope="module")
def config(folder):
    config = experiment.get_config()
    config.update_from_flattened_dict(
        {
            "data.source": "folder", "data.path": str(folder), "data.image_size": 16, "model.latent_size": 5,
            "model.base": 32, "model.largest": 6, "growth.first": 8, "growth.stable": 8, "growth.fading": 8,
            "train.batch_size": 8, "train.steps": 4, "train.devices": 2, "eval.images": 16, "eval.batch_size": 16,
            "eval.swd_images": 0,
        }
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    state, report = app.run(config, experiment.build, name="pggan:synthetic", workdir=folder, quiet=True)
    assert report.metrics["frechet_random_cnn@16"] > 0
    assert {"Real images", "Progress of seeds 0 to 15, row by row"} < report.images.keys()
    assert set(state.params) == {GENERATOR, DISCRIMINATOR}
    return folder


def test_a_sheet_of_a_run(workdir, tmp_path, monkeypatch, capsys):
    target = tmp_path / "sheet.png"
    words = ["--sample", str(workdir), "--seeds", "0-2,9", "--out", str(target), "--columns", "2"]
    monkeypatch.setattr(sys, "argv", ["pggan", *words])
    sampling.main("pggan", experiment.get_config, experiment.build, experiment.sample)
    assert capsys.readouterr().out == f"{target}: 4 images of step 4, row by row in the order of --seeds\n"
    whole = np.asarray(Image.open(target))
    assert whole.shape == (32, 32, 3)
    again, step = sampling.newest_images("pggan", experiment.build, experiment.sample, workdir, [9])
    assert step == 4
    np.testing.assert_array_equal(again[0], whole[16:, 16:])
    monkeypatch.setattr(sys, "argv", ["pggan", "--sample", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"experiments.pggan: .* holds no config.json"):
        sampling.main("pggan", experiment.get_config, experiment.build, experiment.sample)


def test_a_run_of_another_resolution_is_not_resumed(config, workdir):
    other = config.copy_and_resolve_references()
    other.data.image_size = 8
    with pytest.raises(ValueError, match=r"started with another configuration \(data.image_size was 16 and is 8\)"):
        app.run(other, experiment.build, name="pggan:synthetic", workdir=workdir, quiet=True)


SHOWN = {
    "synthetic": 19_200, "from_scratch": 19_200, "gpu": 600_000, "celebahq": 12_000_000, "celebahq_1gpu": 12_000_000,
    "celebahq_v1": 19_000_000, "celeba_128": 10_000_000,
}  # fmt: skip
"""Images that the discriminator sees."""


@pytest.mark.parametrize("preset", experiment.PRESETS)
def test_presets(preset):
    config = experiment.get_config(preset)
    made = experiment.progressive(config)
    last = made.stages[-1]
    if made.growth.first < made.data.image_size:  # the training ends after the last fading
        assert last.begin + (last.fading + last.fades_at - last.images) / last.batch_size < config.train.steps
    shown = last.images + (config.train.steps - last.begin) * last.batch_size
    assert shown == pytest.approx(SHOWN[preset], rel=1e-5)
    if preset in ("synthetic", "from_scratch"):
        costs = dry_run(made.experiment(), Options(**config.train))
        assert costs["parameters"] == sum(costs["parameters by part"].values()) > 0


def test_a_dry_run_counts_the_batch_of_the_last_stage():
    config = experiment.get_config()
    config.growth.update({"first": 4, "batch_sizes": (8, 2), "stable": 8, "fading": 8})
    config.update_from_flattened_dict({"data.image_size": 8, "model.base": 32, "model.largest": 8, "train.steps": 40})
    made = experiment.progressive(config)
    costs = dry_run(made.experiment(), Options(**{**config.train, "devices": 1}))
    assert [stage.batch_size for stage in made.stages] == [8, 2] and costs["batch per device"] == 2
