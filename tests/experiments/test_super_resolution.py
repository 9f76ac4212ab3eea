"""The experiment of super-resolution: short runs of every kind of network, stages, presets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import super_resolution as experiment
from facejax.data.restoration import Pair, RestorationImages, small
from facejax.evaluate.restoration import Enlargement, bicubic
from facejax.metrics.image import luma, psnr
from facejax.ops.resize import imresize_on_host
from facejax.restoration import fsrnet
from facejax.restoration import super_resolution as sr
from facejax.train import Options, app
from facejax.train.dry_run import count, dry_run

SMOKE = {"train.steps": 2, "train.batch_size": 4, "train.log_every": 1, "train.devices": 1}


@pytest.fixture(scope="module", autouse=True)
def smallest():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(experiment.NETS, "edsr_small", lambda **o: sr.EDSR(features=4, blocks=1, **o))
        patch.setitem(experiment.NETS, "rrdb_small", lambda **o: sr.RRDBNet(features=4, blocks=1, growth=2, **o))
        patch.setitem(
            experiment.NETS, "fsrnet_small",
            lambda **o: fsrnet.FSRNet(parsing=10, features=4, blocks=(0, 0, 0, 0), stacks=1, depth=1, **o),
        )  # fmt: skip
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, picture_folder):
    rng = np.random.default_rng(0)
    pictures = {"a": rng.integers(0, 255, (5, 33, 40, 3))}
    return str(picture_folder(tmp_path_factory.mktemp("pictures"), pictures))


def config_for(preset, folder, **changes):
    config = experiment.get_config(preset)
    paths = {"data.train": folder, "data.test": folder, "data.patch": 16}
    config.update_from_flattened_dict({**SMOKE, **paths, **changes})
    return config


def test_smoke(folder, tmp_path):
    state, report = app.run(config_for("synthetic", folder), experiment.build, workdir=tmp_path / "run", quiet=True)
    assert next(iter(report.metrics)) == "psnr" and np.isfinite(report.metrics["psnr"])
    assert int(state.step) == 2 and len(report.tables["Images"]) == 5
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    changed = config_for("synthetic", folder, **{"data.scale": 2, "start.workdir": str(tmp_path / "run")})
    built = experiment.build(changed)
    begun = built.init(jax.random.key(0), built.prepare())
    np.testing.assert_array_equal(begun.params["first"]["kernel"], state.params["first"]["kernel"])
    bicubic = app.run(config_for("bicubic", folder), experiment.build, quiet=True)[1]
    assert bicubic.metrics["gain"] == 0
    ensemble = config_for("synthetic", folder, **{"eval.ensemble": True, "eval.tile": 4})
    other = experiment.build(ensemble).evaluate(state)
    assert other.metrics["psnr"] != report.metrics["psnr"]


def test_srcnn_trains_on_the_luminance(folder):
    config = config_for("srcnn", folder)
    report = app.run(config, experiment.build, quiet=True)[1]
    assert report.notes["psnr"].startswith("luminance")
    config.optim.last_rate = 0.1
    tx = experiment.make_optimizer(config)
    params = {f"conv{i}": {"kernel": jnp.ones((1, 1, 1, 1))} for i in (1, 2, 3)}
    updates, _ = tx.update(params, tx.init(params), params)
    last, first = (float(updates[name]["kernel"].squeeze()) for name in ("conv3", "conv1"))
    assert last == pytest.approx(0.1 * first, rel=1e-5)


def test_srcnn_steps_as_in_caffe():
    """1e-4 of half the sum of squares of 21 x 21 pixels of Y; a tenth of it for biases and for the last layer."""
    config, rng = experiment.get_config("div2k_srcnn"), np.random.default_rng(0)
    places = [("conv1", "kernel"), ("conv1", "bias"), ("conv3", "kernel"), ("conv3", "bias")]
    shown = rng.uniform(size=(4, 2, config.data.patch, config.data.patch, 3))
    truth = rng.uniform(size=shown.shape[1:])
    params = {"conv1": {"kernel": 0.1, "bias": 0.2}, "conv3": {"kernel": 0.3, "bias": 0.4}}

    def loss(params):
        found = sum(params[layer][kind] * picture for (layer, kind), picture in zip(places, shown, strict=True))
        return sr.pixel_loss(found, truth, config.loss.kind, config.loss.border).mean()

    tx = experiment.make_optimizer(config)
    updates, _ = tx.update(jax.jit(jax.grad(loss))(params), tx.init(params), params)
    inside = slice(config.data.patch // 2 - 10, config.data.patch // 2 + 11)
    pictures = [(luma(255 * x)[:, inside, inside] - 16) / 255 for x in shown]
    wrong = sum(params[a][b] * y for (a, b), y in zip(places, pictures, strict=True))
    wrong -= (luma(255 * truth)[:, inside, inside] - 16) / 255
    for (layer, kind), picture, rate in zip(places, pictures, (1e-4, 1e-5, 1e-5, 1e-5), strict=True):
        expected = -rate * (wrong * picture).sum() / 2
        assert float(updates[layer][kind]) == pytest.approx(expected, rel=1e-4)


def test_srcnn_learns_where_a_patch_is_enlarged_as_the_whole_image_is():
    config = experiment.get_config("div2k_srcnn")
    net, side, scale = sr.SRCNN(), config.data.patch, config.data.scale
    margin, start = config.loss.border - sum(k // 2 for k in net.kernels), 10
    low = np.random.default_rng(0).uniform(size=(side, side, 3))
    part = low[start : start + side // scale, start : start + side // scale]
    whole, alone = imresize_on_host(low, scale), imresize_on_host(part, scale)
    seen, first = slice(margin, side - margin), scale * start + margin
    expected = whole[first : first + side - 2 * margin, first : first + side - 2 * margin]
    np.testing.assert_allclose(alone[seen, seen], expected, atol=1e-5)


def test_fsrnet_is_measured_on_whole_images():
    config = experiment.get_config("celeba_fsrnet")
    high = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    pair, enlarge = Pair("a", small(high, 8), high), bicubic(8)
    report = app.section(Enlargement, config.eval).assess(enlarge, {"x": [pair]}, config.data.scale)
    assert report.metrics["psnr"] == pytest.approx(psnr(enlarge(pair.low), high, luminance=True))


def test_a_second_stage_begins_with_the_first(folder):
    config = config_for("esrgan", folder, **{"start.steps": 1})
    built = experiment.build(config)
    begun = built.init(jax.random.key(0), start := built.prepare())
    np.testing.assert_array_equal(begun.params["generator"]["first"]["kernel"], start["generator"]["first"]["kernel"])
    state, report = app.run(config, experiment.build, quiet=True)
    assert np.isfinite(report.metrics["psnr"]) and state.ema is None
    moved = state.params["generator"]["first"]["kernel"] - start["generator"]["first"]["kernel"]
    assert 0 < np.abs(moved).max() < 0.1
    config.model.features = "vgg19"
    with pytest.raises(ValueError, match=r"start\.vgg is empty: expected a file of VGG's weights"):
        experiment.beginning(config, experiment.FEATURES["vgg19"]())


def test_faces_with_priors(monkeypatch):
    rng = np.random.default_rng(0)
    faces = [
        {
            "image": rng.integers(0, 255, (32, 32, 3)).astype(np.uint8),
            "points": rng.uniform(0, 32, (68, 2)),
            "name": str(i),
        }
        for i in range(4)
    ]
    monkeypatch.setattr(RestorationImages, "source", lambda self, name, split: faces)
    config = config_for("fsrnet", "faces", **{"data.patch": 32})
    report = app.run(config, experiment.build, quiet=True)[1]
    assert {"psnr", "nme"} <= set(report.metrics) and "inter-ocular" in report.notes["nme"]


@pytest.mark.parametrize("preset", ["synthetic", "srcnn", "rrdb", "fsrnet", "celeba_fsrnet", "div2k_edsr_baseline_x2"])
def test_dry_run(preset):
    config = experiment.get_config(preset)
    assert dry_run(experiment.build(config), Options(**config.train))["step flops per device"] > 0


@pytest.mark.parametrize("preset", [name for name in experiment.PRESETS if name != "bicubic"])
def test_presets_build_the_published_networks(preset):
    config = experiment.get_config(preset)
    built = experiment.build(config)
    state = built.abstract_state(0)
    net = state.params.get("generator", state.params)
    sizes = {"div2k_edsr_x4": 43_089_923, "div2k_esrgan": 16_697_987, "div2k_srgan": 1_549_462, "div2k_srcnn": 8129}
    if preset in sizes:
        assert count(net) == sizes[preset]
    assert (preset in ("esrgan", "div2k_srgan", "div2k_esrgan")) == ("discriminator" in state.params)


def test_wrong_names(folder):
    for field, message in (
        ("model.name", r"model\.name is 'none': expected one of srcnn"),
        ("model.features", r"model\.features is 'none': expected one of random, vgg19"),
        ("stage", "stage is 'none': expected 'pixels' or 'adversarial'"),
    ):
        with pytest.raises(ValueError, match=message):
            experiment.build(config_for("synthetic", folder, **{field: "none"}))
