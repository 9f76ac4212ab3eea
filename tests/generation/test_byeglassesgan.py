"""ByeGlassesGAN: sizes, wiring of the decoders, losses, who moves in a step, the run, presets, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import byeglassesgan as experiment
from facejax.data import glasses
from facejax.data.glasses import Face
from facejax.generation import byeglassesgan as paper
from facejax.generation.byeglassesgan import ByeGlasses, Output, PatchDiscriminator
from facejax.train import Options, parallel
from facejax.train.dry_run import count, dry_run

NET = ByeGlasses(width=4, depth=2)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 12, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(images):
    """With weights that are large enough for every path to matter."""
    return jax.tree.map(lambda x: 20 * x, jax.jit(NET.init)(jax.random.key(0), images))


def shapes_of(net, *inputs):
    return jax.eval_shape(lambda key: net.init_with_output(key, *inputs), jax.random.key(0))


def test_sizes_of_the_whole_networks():
    picture = jnp.zeros((1, 256, 256, 3))
    out, variables = shapes_of(ByeGlasses(), picture)
    params = variables["params"]
    assert out.image.shape == (1, 256, 256, 3) and out.masks.shape == (1, 256, 256, 2)
    widths = [64, 128, 256, 512, 512]
    encoder = sum(9 * a * b for a, b in zip([3, *widths], widths, strict=False))
    plain = [(512, 512), (1024, 256), (512, 128), (256, 64), (128, 64)]
    shared = [(512, 512), (1536, 256), (768, 128), (384, 64), (192, 64)]
    ups = [9 * sum(a * b for a, b in sizes) for sizes in (plain, shared)]
    expected = {"encoder": encoder, "segmentation": ups[0] + 9 * 64 * 2 + 2, "face": ups[1] + 9 * 128 * 3 + 3}
    assert {name: count(part) for name, part in params.items()} == expected
    assert sum(expected.values()) == 16_558_277
    scores, variables = shapes_of(PatchDiscriminator(), picture)
    assert scores.shape == (1, 30, 30) and count(variables["params"]) == 2_764_737


def test_a_patch_has_70_pixels(monkeypatch):
    """Without norms, which see the whole image, a score depends on 70 x 70 pixels."""
    monkeypatch.setattr(paper, "InstanceNorm", lambda dtype, name: lambda x: x)
    net, image = PatchDiscriminator(width=1), jnp.ones((1, 128, 128, 3))
    variables = jax.tree.map(jnp.ones_like, net.init(jax.random.key(0), image))
    slope = jax.grad(lambda x: net.apply(variables, x)[0, 7, 7])(image)
    seen = np.abs(np.asarray(slope)).sum(-1)[0] > 0
    assert (np.flatnonzero(seen.any(0)) == np.flatnonzero(seen.any(1))).all()
    assert seen.any(0).sum() == 70 and seen.sum() == 70**2


def test_the_face_sees_the_segmentation_and_not_the_other_way(images, variables):
    made = NET.apply(variables, images)
    changed = jax.tree.map(lambda x: x, variables)
    for stage in range(2):
        changed["params"]["segmentation"][f"up{stage}"] = jax.tree.map(
            lambda x: -x, variables["params"]["segmentation"][f"up{stage}"]
        )
        found = NET.apply(changed, images)
        assert np.abs(found.image - made.image).max() > 1e-3, stage
        changed = jax.tree.map(lambda x: x, variables)
    changed["params"]["face"] = jax.tree.map(lambda x: -x, variables["params"]["face"])
    np.testing.assert_array_equal(NET.apply(changed, images).masks, made.masks)
    alone = NET.clone(shares=False)
    assert alone.apply(without_sharing(variables), images).masks.tolist() == made.masks.tolist()
    assert ByeGlasses(4, 2, segments=False, shares=False).apply(
        {"params": {k: v for k, v in without_sharing(variables)["params"].items() if k != "segmentation"}}, images
    ).masks.shape == (2, 16, 12, 0)


def without_sharing(variables):
    """The weights without those for the shared maps, which come last."""
    params = jax.tree.map(lambda x: x, variables["params"])
    for name, width in (("up1", 8), ("out", 4)):
        params["face"][name]["kernel"] = params["face"][name]["kernel"][:, :, :width]
    return {"params": params}


def test_without_outer_norms_the_style_changes_every_region(images):
    styles, net = jnp.eye(2, 5), NET.clone(outer_norm=False)
    variables = jax.tree.map(lambda x: 20 * x, jax.jit(net.init)(jax.random.key(0), images, styles))
    assert variables["params"]["encoder"]["conv0"]["kernel"].shape == (3, 3, 8, 4)
    same = jnp.stack([images[0]] * 2)
    made = net.apply(variables, same, styles).image
    assert (np.abs(made[0] - made[1]).max(-1) > 1e-3).mean() > 0.9


def test_outer_norms_hide_contrast(images, variables):
    """With them the output hardly depends on the strength of an image, without them it does."""
    pale = [NET.apply(variables, x).image for x in (images, 0.5 * images)]
    assert np.abs(pale[0] - pale[1]).max() < 1e-2
    free = NET.clone(outer_norm=False)
    variables = jax.tree.map(lambda x: 20 * x, jax.jit(free.init)(jax.random.key(0), images))
    pale = [free.apply(variables, x).image for x in (images, 0.5 * images)]
    assert np.abs(pale[0] - pale[1]).max() > 1e-2


def test_losses_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 5, 4, 3)).astype(np.float32)
    mask = np.zeros((3, 5, 4), np.float32)
    mask[0, 1:3, 2], mask[1] = 1, 1
    error = np.abs(a - b)
    np.testing.assert_allclose(paper.absolute_error(a, b), error.mean((1, 2, 3)), rtol=1e-5)
    expected = [error[0, 1:3, 2].mean(), error[1].mean(), 0]
    np.testing.assert_allclose(paper.local_error(a, b, mask), expected, rtol=1e-5)
    by_image = [error[0, 1:3, 2].sum() / 60, error[1].mean(), 0]
    np.testing.assert_allclose(paper.local_error(a, b, mask, by_area=False), by_image, rtol=1e-5)
    slope = jax.grad(lambda x: paper.local_error(x, b, mask).sum())(a)
    wanted = np.sign(a - b) * mask[..., None] / np.array([6, 60, 1])[:, None, None, None]
    np.testing.assert_allclose(slope, wanted, rtol=1e-5)

    logits, masks = a[..., :2], (b[..., :2] > 0).astype(np.float32)
    chance = 1 / (1 + np.exp(-logits.astype(float)))
    entropy = -np.where(masks > 0, np.log(chance), np.log(1 - chance))
    np.testing.assert_allclose(paper.segmentation_loss(logits, masks), entropy.mean((1, 2, 3)), rtol=1e-5)
    slope = jax.grad(lambda x: paper.segmentation_loss(x, masks).sum())(logits)
    np.testing.assert_allclose(slope, (chance - masks) / 40, atol=1e-6)
    assert np.isfinite(paper.segmentation_loss(1e4 * logits, masks)).all()

    real, fake = a[..., 0], b[..., 0]
    np.testing.assert_allclose(
        paper.discriminator_loss(real, fake), ((real - 1) ** 2 + fake**2).mean((1, 2)), rtol=1e-5
    )
    np.testing.assert_allclose(paper.adversarial_loss(fake), ((fake - 1) ** 2).mean((1, 2)), rtol=1e-5)
    slope = jax.grad(lambda x: paper.adversarial_loss(x).sum())(fake)
    np.testing.assert_allclose(slope, 2 * (fake - 1) / 20, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        paper.identity_loss(real[:, 0], fake[:, 0]), ((real - fake)[:, 0] ** 2).mean(-1), rtol=1e-5
    )


def test_losses_of_perfect_output_and_of_images_without_glasses_are_zero():
    image, mask = jnp.ones((2, 4, 4, 3)) / 3, jnp.zeros((2, 4, 4)).at[0, 1].set(1)
    masks = jnp.stack([mask, 1 - mask], -1)
    perfect = [
        paper.absolute_error(image, image),
        paper.local_error(image, image, mask),
        paper.segmentation_loss(200 * masks - 100, masks),
        paper.identity_loss(image[:, 0, 0], image[:, 0, 0]),
    ]
    np.testing.assert_allclose(perfect, 0, atol=1e-6)
    np.testing.assert_array_equal(paper.present(mask), [1, 0])
    np.testing.assert_array_equal(paper.masked(image, mask)[1], 0)
    np.testing.assert_array_equal(paper.masked(image, mask)[0, :, :, 0], mask[0] / 3)
    output = Output(-image, jnp.where(masks > 0, 100.0, -100.0))
    np.testing.assert_allclose(paper.pasted(output, image)[..., 0], (1 - 2 * mask) / 3, atol=1e-6)


def faces(count=6, size=32):
    """Discs with five landmarks, two of each person."""
    rng = np.random.default_rng(0)
    points = size * np.array([[0.32, 0.4], [0.68, 0.4], [0.5, 0.6], [0.38, 0.75], [0.62, 0.75]])
    found = []
    for i in range(count):
        image = rng.integers(90, 200, (1, 1, 3)) + rng.integers(-20, 20, (size, size, 3))
        worn = image.copy()
        worn[10:14, 6:-6] //= 2
        found.append(Face(image.astype(np.uint8), points + rng.normal(size=2), i // 2, worn.astype(np.uint8)))
    return tuple(found)


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    monkeypatch.setattr(glasses, "_world", lambda data_dir, size, split: faces(size=size))


def config_of(preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.image_size": 32, "data.threads": 1, "model.width": 4, "model.depth": 2, "model.patch_width": 4,
            "model.patch_layers": 1, "train.batch_size": 4, "train.steps": 2, "train.devices": 1, **changes,
        }
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def executor():
    run = experiment.build(config_of())
    return run, parallel.make_executor(run, "shard_map", 1)


def batch_of(run):
    rng = np.random.default_rng(0)
    return {k: rng.integers(0, 2 if k == "masks" else 256, v.shape).astype(v.dtype) for k, v in run.batch.items()}


def test_both_players_move_and_images_without_glasses_never_reach_the_local_discriminator(executor):
    run, steps = executor
    start = run.prepare()
    batch = batch_of(run)
    batch["masks"][..., 0] = 0
    state = steps.init(0, start)
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = steps.step(state, steps.put(batch), "step")
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max() > 0, state.params, before)
    assert all(jax.tree.leaves(moved["generator"]))
    assert moved["discriminator"]["global"]["score"]["kernel"]
    assert not any(jax.tree.leaves(moved["discriminator"]["local"]))
    values = {name: float(m.total) for name, m in metrics.items()}
    assert values["local_adversarial"] == values["local_error"] == 0 < values["adversarial"]
    weights = experiment.BASE["loss"]
    expected = sum(weights[name] * value for name, value in values.items() if name in weights)
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-5)
    kept = jax.tree.map(lambda a, b: np.array_equal(a, b), state.model_state["recogniser"], dict(start))
    assert all(jax.tree.leaves(kept))


def test_the_report(executor):
    run, steps = executor
    report = run.evaluate(steps.init(0, run.prepare()))
    assert {"psnr_glasses", "psnr_outside_input", "mask_iou", "identity", "tar_truth", "pasted_identity",
            "rendered_error_drop"} < set(report.metrics)  # fmt: skip
    assert report.metrics["pasted_psnr_glasses_input"] == report.metrics["psnr_glasses_input"]
    assert report.metrics["rendered_psnr_glasses_input"] != report.metrics["psnr_glasses_input"]
    assert report.metrics["pasted_psnr_outside"] > report.metrics["psnr_outside"]
    assert {x.shape for x in report.images.values()} == {(5 * 32, 6 * 32, 3)}


def test_samples_show_input_output_and_truth(executor):
    run, steps = executor
    state, pairs = steps.init(0, run.prepare()), experiment.GlassesImages(image_size=32).pairs()
    sheet = experiment.sample(config_of(), state, [4, 1])
    assert sheet.shape == (2, 32, 96, 3)
    for row, face in zip(sheet, (4, 1), strict=True):
        np.testing.assert_array_equal(row[:, :32], pairs.worn[face])
        np.testing.assert_array_equal(row[:, 64:], pairs.bare[face])
    assert np.any(sheet[:, :, 32:64] != sheet[:, :, :32])
    with pytest.raises(ValueError, match=r"--seeds has 6: expected numbers of the held-out faces, 0 to 5"):
        experiment.sample(config_of(), state, [0, 6])


def test_glasses_are_added_with_the_style_of_the_truth():
    run = experiment.build(config_of("add"))
    report = run.evaluate(run.init(jax.random.key(0), run.prepare()))
    assert {"psnr_glasses", "pasted_identity"} < set(report.metrics)
    assert not any(name.startswith("rendered") for name in report.metrics)
    removed = experiment.GlassesImages(image_size=32).pairs()
    first, truth = (report.images["drawn_sheet"][row * 32 : (row + 1) * 32, :32] for row in (0, 2))
    assert any((first == x).all() and (truth == y).all() for x, y in zip(removed.bare, removed.worn, strict=True))


@pytest.mark.parametrize("preset", ["celeba", "no_segmentation", "add"])
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    found = dry_run(experiment.build(config), Options(**{**config.train, "devices": 1}))
    assert found["step flops per device"] > 1e8
    if preset == "celeba":
        assert found["parameters by part"] == {"generator": 16_558_277, "discriminator": 2 * 2_764_737}


def test_the_recogniser_sees_a_crop():
    images = jnp.arange(100.0).reshape(1, 10, 10, 1) * jnp.ones(3)
    part = experiment.recogniser_input(images, (0.2, 0.1, 0.6), 6)
    np.testing.assert_allclose(part, images[:, 2:8, 1:7], atol=1e-4)
    assert experiment.recogniser_input(images, (0.0, 0.0, 1.0), 5).shape == (1, 5, 5, 3)


def test_bad_input_raises(images):
    for wrong in (images[0], images[:, :15], images[..., :2], images[:, :, :4]):
        with pytest.raises(ValueError, match=r"ByeGlasses: images \(.*\): expected \[N, H, W, 3\] with sides of 8 pix"):
            NET.init(jax.random.key(0), wrong)
    with pytest.raises(ValueError, match="shares without segments: expected a segmentation decoder"):
        NET.clone(segments=False).init(jax.random.key(0), images)
    with pytest.raises(ValueError, match="a style with outer_norm: expected outer_norm False, as the norm removes it"):
        NET.init(jax.random.key(0), images, jnp.zeros((2, 5)))
    run = experiment.build(config_of("celeba"))
    with pytest.raises(
        ValueError, match=r"recogniser\.weights is empty: expected a state dict of arcface_torch's iresnet34"
    ):
        run.prepare()
