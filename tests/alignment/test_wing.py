"""Wing loss: values, gradients, sizes, two stages, balancing, and the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes

from experiments import wing as experiment
from facejax.alignment import wing
from facejax.backbones.resnet import ResNet, resnet50
from facejax.data.landmark_images import LandmarkImages, region_matrix
from facejax.interop import torchvision
from facejax.train import Options, app, optim
from facejax.train.dry_run import count, dry_run

RNG = np.random.default_rng(0)
LOSS = jax.jit(wing.wing)
FACES = np.float32(RNG.uniform(10, 50, (4, 68, 2)))


def by_hand(error, w=10.0, e=2.0):
    """The authors' lgLoss.m."""
    y = abs(error)
    return w * np.log((e + y) / e) if y < w else y + np.log((e + w) / e / np.e) * w


def test_loss_equals_the_authors_formula():
    errors = np.float32([0, 0.1, -1, 3, 9.99, 10, -10.01, 25, 1e4])
    np.testing.assert_allclose(LOSS(errors), np.vectorize(by_hand)(errors), rtol=1e-5)
    np.testing.assert_allclose(LOSS(jnp.float32(30.0)) - 30, 7.917594692, rtol=1e-6)
    other = wing.wing(errors, width=5.0, curvature=0.5)
    np.testing.assert_allclose(other, [by_hand(x, 5.0, 0.5) for x in errors], rtol=1e-5)


def test_gradients():
    slope = jax.jit(jax.vmap(jax.grad(wing.wing)))
    errors = np.float32([0, 1e-4, -2, 9.9, 10.1, -1e30])
    np.testing.assert_allclose(slope(errors), [0, 5, -2.5, 10 / 11.9, 1, -1], rtol=1e-3)
    assert jax.grad(wing.LOSSES["l1"])(jnp.float32(0)) == 0
    half = slope(errors.astype(jnp.bfloat16))
    assert np.isfinite(half.astype(np.float32)).all() and LOSS(errors.astype(jnp.bfloat16)).dtype == jnp.float32


def test_losses_of_the_comparison():
    errors = np.float32([-3, -0.5, 0, 0.2, 2])
    np.testing.assert_allclose(wing.LOSSES["l2"](errors), [4.5, 0.125, 0, 0.02, 2], rtol=1e-6)
    np.testing.assert_allclose(wing.LOSSES["l1"](errors), [3, 0.5, 0, 0.2, 2], rtol=1e-6)
    np.testing.assert_allclose(wing.LOSSES["smooth_l1"](errors), [2.5, 0.125, 0, 0.02, 1.5], rtol=1e-6)


def size(net, side):
    shapes = jax.eval_shape(lambda k: net.init(k, jnp.zeros((1, side, side, 3)), train=False), jax.random.key(0))
    return count(shapes["params"])


@pytest.mark.parametrize(
    ("net", "side", "parameters"),
    [
        (wing.cnn6(19), 64, 3_705_702),
        (wing.cnn6(), 64, 3_806_152),
        (wing.cnn7(), 128, 6_185_288),
        (wing.ResNetPoints(resnet50()), 224, 23_508_032 + 2049 * 136),
    ],
)
def test_sizes(net, side, parameters):
    assert size(net, side) == parameters


def test_outputs_are_all_x_then_all_y():
    net, images = wing.CNN(3, (2,), 4), jnp.ones((1, 4, 4, 3))
    variables = net.init(jax.random.key(0), images, train=False)
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    params["points"]["bias"] = jnp.float32([1, 2, 3, 10, 20, 30])
    np.testing.assert_array_equal(net.apply({"params": params}, images, train=False)[0], [[1, 10], [2, 20], [3, 30]])


@pytest.mark.parametrize("angle", [0.0, 50.0, -120.0])
def test_upright(angle):
    """A face turned by an angle: the crop does not depend on it, its chin is below the eyes, its box in the middle."""
    turn = region_matrix((31.5, 31.5, 80.0), angle, 64)
    points = wing.transformed(jnp.asarray(FACES), jnp.broadcast_to(jnp.float32(turn), (4, 2, 3)))
    found, plain = (np.asarray(wing.transformed(p, wing.upright(p, 48, 1.5))) for p in (points, jnp.asarray(FACES)))
    np.testing.assert_allclose(found, plain, atol=1e-2)
    eyes = found[:, [39, 42]].mean(1)
    np.testing.assert_allclose(found[:, 8, 0], eyes[:, 0], atol=1e-3)
    assert (found[:, 8, 1] > eyes[:, 1]).all()
    low, high = found.min(1), found.max(1)
    np.testing.assert_allclose((low + high) / 2, 23.5, atol=1e-3)
    np.testing.assert_allclose((high - low).max(1), 48 / 1.5, rtol=1e-4)


def test_upright_of_a_collapsed_face_is_finite():
    matrices = wing.upright(jnp.full((1, 68, 2), 20.0), 64)
    np.testing.assert_allclose(matrices[0, :, :2], 64 / (1.25 * 8) * np.eye(2), atol=1e-5)


def test_points_there_and_back():
    matrices = wing.perturbed(wing.upright(jnp.asarray(FACES), 64), jax.random.key(1), 64)
    back = wing.restored(wing.transformed(jnp.asarray(FACES), matrices), matrices)
    np.testing.assert_allclose(back, FACES, atol=1e-4)


def test_perturbed_transforms_stay_within_their_bounds():
    matrices = jnp.broadcast_to(jnp.eye(2, 3), (500, 2, 3))
    found = np.asarray(wing.perturbed(matrices, jax.random.key(0), 40, rotation=10.0, scale=0.2, shift=0.1))
    angles = np.degrees(np.arctan2(found[:, 1, 0], found[:, 0, 0]))
    scales = np.sqrt(np.abs(np.linalg.det(found[..., :2])))
    middles = found[..., :2] @ [19.5, 19.5] + found[..., 2] - 19.5
    for values, bound in ((angles, 10), (scales - 1, 0.2), (middles[:, 0], 4), (middles[:, 1], 4)):
        assert 0.95 * bound < np.abs(values).max() <= bound * 1.001
        assert abs(values.mean()) < 0.15 * bound
    assert len(np.unique(angles)) > 400


def test_warped_images_move_with_the_points():
    """Pixel (column, row) of the crop shows the image at the restored place: colours that tell x and y."""
    row, column = np.mgrid[:32, :32].astype(np.float32)
    images = jnp.asarray(np.stack([column, row], -1))[None]
    matrices = jnp.asarray(region_matrix((15.0, 17.0, 16.0), 25.0, 32), jnp.float32)[None]
    found = np.asarray(wing.warp(images, matrices))
    places = np.float32([[[8, 20], [16, 16], [25, 9]]])
    for (x, y), (u, v) in zip(places[0], np.asarray(wing.restored(jnp.asarray(places), matrices))[0], strict=True):
        np.testing.assert_allclose(found[0, int(y), int(x)], [u, v], atol=1e-3)
    np.testing.assert_allclose(wing.warp(images, jnp.eye(2, 3)[None]), images, atol=1e-5)


def two_stages():
    net = wing.TwoStage(wing.CNN(68, (2, 2), 4), wing.CNN(68, (3, 2), 4), small=16)
    images = jnp.asarray(RNG.uniform(0, 1, (4, 32, 32, 3)), jnp.float32)
    return net, images, net.init(jax.random.key(0), images, train=False)


def test_two_stages():
    net, images, variables = two_stages()
    apply = jax.jit(lambda v, m: net.apply(v, images, train=False, matrices=m))
    given = wing.upright(jnp.asarray(FACES), 32)
    found = apply(variables, given)
    np.testing.assert_array_equal(found["matrices"], given)
    second = wing.CNN(68, (3, 2), 4).apply(
        {"params": variables["params"]["second"]}, wing.warp(images, given), train=False
    )
    np.testing.assert_allclose(found["upright"], second, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["points"], wing.restored(second, given), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["first"], (found["small"] + 0.5) * 2 - 0.5, rtol=1e-5)
    alone = jax.jit(lambda v: net.apply(v, images, train=False))(variables)
    np.testing.assert_allclose(alone["matrices"], wing.upright(alone["first"], 32), rtol=1e-3, atol=1e-3)


def test_no_gradient_passes_from_the_second_stage_to_the_first():
    net, images, variables = two_stages()
    gradient = jax.jit(jax.grad(lambda v: (net.apply(v, images, train=True)["upright"] ** 2).sum()))(variables)[
        "params"
    ]
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient["first"]))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient["second"])) > 0


def code_balanced(shapes, bins):
    """The authors' pdb.m, one shape after the other."""
    mean = shapes.mean(0)
    aligned = []
    for shape in shapes:
        a, b = mean - mean.mean(0), shape - shape.mean(0)
        turn, total = orthogonal_procrustes(b, a)
        aligned.append(total / (b**2).sum() * b @ turn + mean.mean(0))
    flat = np.reshape(aligned, (len(shapes), -1))
    flat = flat - flat.mean(0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    pose = np.abs(flat @ vectors[:, -2 if shapes.shape[1] == 19 else -1])
    fullest, rows = np.histogram(pose, bins)[0].max(), []
    for i in range(bins):
        inside = [
            n for n, p in enumerate(pose) if i * pose.max() / bins <= p <= (i + 1) * pose.max() / bins * (1 + 1e-12)
        ]
        if inside:
            rows += inside * int(fullest / len(inside) + 0.5)
    return rows, pose


@pytest.mark.parametrize(("landmarks", "bins"), [(19, 9), (12, 5)])
def test_balancing_equals_the_authors_procedure(landmarks, bins):
    """Most shapes bend little. With 19 landmarks a larger change of another kind comes first."""
    base, bend, other = RNG.normal(size=(3, landmarks, 2))
    amount = np.abs(RNG.normal(size=(2, 60, 1, 1)))
    shapes = base + 0.2 * amount[0] * bend + (0.5 * amount[1] * other if landmarks == 19 else 0)
    rows, pose = code_balanced(shapes, bins)
    found = wing.balanced(shapes, bins)
    np.testing.assert_array_equal(np.sort(found), np.sort(rows))
    assert set(found) == set(range(60))
    before, after = (np.histogram(pose[r], bins)[0] for r in (np.arange(60), found))
    assert after[before > 0].min() / after.max() > 2 * before[before > 0].min() / before.max()


def test_equal_shares_stay():
    """One shape per bin and side: nothing is repeated more than once, but the shapes on edges."""
    line = np.tile(np.array([[0.0, 0], [1, 0], [0, 1]]), (18, 1, 1))
    line[:, 2, 0] = np.concatenate([-np.arange(9) - 0.5, np.arange(9) + 0.5]) / 100
    counts = np.bincount(wing.balanced(line, 9), minlength=18)
    assert counts.min() >= 1 and counts.max() <= 2


def smoke(**changes):
    config = experiment.get_config()
    tiny = {
        "data.image_size": 32, "model.width": 0.0625, "train.steps": 2, "train.batch_size": 8, "train.log_every": 1,
        "eval.batch_size": 200,
    }  # fmt: skip
    config.update_from_flattened_dict(tiny | changes)
    return config


def test_smoke(tmp_path):
    _, report = app.run(smoke(), experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"nme", "failures_at_8", "nme_pose"} <= set(report.metrics)
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000


def test_outputs_are_offsets_from_the_mean_face():
    def error(offsets, outputs):
        run = experiment.build(smoke(offsets=offsets))
        state = run.init(jax.random.key(0))
        last = {"kernel": jnp.zeros_like(state.params["points"]["kernel"]), "bias": jnp.asarray(outputs)}
        return run.evaluate(state.replace(params={**state.params, "points": last})).metrics["nme"]

    mean = 32 * LandmarkImages(image_size=32).mean_shape().T.ravel() - 0.5
    assert error(2.0, np.zeros(136)) == pytest.approx(error(0.0, mean), rel=1e-4)
    assert error(2.0, np.ones(136) / 2) == pytest.approx(error(0.0, mean + 1), rel=1e-4)


def test_smoke_of_two_stages():
    _, report = app.run(
        smoke(**{"data.image_size": 64, "model.name": "two_stage", "offsets": 0.0}), experiment.build, quiet=True
    )
    assert {"nme", "nme_first"} <= set(report.metrics)


def test_balanced_batches():
    run = experiment.build(smoke(bins=3))
    batch = next(iter(run.train_data()))
    assert batch["image"].shape == (8, 32, 32, 3) and batch["points"].shape == (8, 68, 2)


def test_a_run_begins_from_a_published_trunk(monkeypatch):
    def narrow(landmarks, model):
        return wing.ResNetPoints(ResNet((1, 1, 1, 1), False, widths=(2, 2, 2, 2)), landmarks)

    monkeypatch.setitem(experiment.NETS, "resnet50", narrow)
    monkeypatch.setattr(
        torchvision, "load", lambda path, shapes: jax.tree.map(lambda x: jnp.full(x.shape, 0.5), shapes)
    )
    run = experiment.build(smoke(**{"model.name": "resnet50", "model.trunk": "resnet50.pth"}))
    state = jax.eval_shape(run.init, jax.random.key(0))
    given = run.prepare()
    begun = run.init(jax.random.key(0), given)
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, state)
    for part in (begun.params, begun.model_state["batch_stats"]):
        assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(part["trunk"]))
    assert (begun.params["points"]["kernel"] != 0.5).all()
    with pytest.raises(ValueError, match=r"model\.trunk is set and model.name is 'cnn6': expected resnet50"):
        experiment.build(smoke(**{"model.trunk": "resnet50.pth"}))


def test_dry_run():
    config = experiment.get_config("aflw")
    assert dry_run(experiment.build(config), Options(**config.train))["parameters"] == 3_705_702


def test_published_settings():
    sizes = {
        "aflw": 3_705_702,
        "300w": 3_806_152 + 6_185_288,
        "wflw": 23_508_032 + 2049 * 196,
        "cofw": 23_508_032 + 2049 * 58,
    }
    for preset in experiment.PRESETS:
        config = experiment.get_config(preset)
        run = experiment.build(config)
        if preset in sizes:
            assert count(jax.eval_shape(run.init, jax.random.key(0)).params) == sizes[preset]
            assert (config.loss.name, config.loss.width, config.loss.curvature, config.bins) == ("wing", 10, 2, 9)


@pytest.mark.parametrize(("preset", "enlarge"), [("aflw", 1.0), ("cofw", 1.0), ("wflw", 1.25)])
def test_published_crops_are_the_given_boxes(preset, enlarge):
    data = experiment.get_config(preset).data
    assert (data.crop, data.enlarge) == ("box", enlarge)


@pytest.mark.parametrize(("preset", "outputs"), [("wflw", 196), ("cofw", 58)])
def test_a_sum_over_coordinates_shrinks_the_weights_as_the_authors_mean(preset, outputs):
    settings = experiment.get_config(preset).optim
    assert settings.schedule.peak * outputs == pytest.approx(1e-3)
    tx, weight = optim.from_config(settings, 10), {"w": jnp.ones(1)}
    move, _ = tx.update({"w": jnp.zeros(1)}, tx.init(weight), weight)
    assert float(move["w"][0]) == pytest.approx(-1e-3 * 5e-4, rel=1e-4)


def test_all_sides_of_the_claim_differ_in_the_loss_only():
    sides = [experiment.get_config(name) for name in ("synthetic", "l2", "l1", "smooth_l1")]
    for side in sides:
        side.loss.name = ""
    assert all(side == sides[0] for side in sides)


def test_bad_input():
    with pytest.raises(
        ValueError, match=r"CNN: images \(1, 60, 64, 3\), expected \[N, H, W, 3\] with sides that 32 divides"
    ):
        jax.eval_shape(lambda: wing.CNN().init(jax.random.key(0), jnp.zeros((1, 60, 64, 3)), train=False))
    with pytest.raises(ValueError, match="upright: 5 landmarks, expected one of 68, 98, 29, 19"):
        wing.upright(jnp.zeros((1, 5, 2)), 64)
    with pytest.raises(ValueError, match=r"balanced: shapes \(1, 5, 2\), expected \[N, L, 2\] finite numbers"):
        wing.balanced(np.zeros((1, 5, 2)))
    with pytest.raises(ValueError, match="finite"):
        wing.balanced(np.full((3, 5, 2), np.nan))
    with pytest.raises(ValueError, match=r"loss\.name is 'huber': expected one of l2, l1, smooth_l1, wing"):
        experiment.build(smoke(**{"loss.name": "huber"}))
    with pytest.raises(ValueError, match=r"model\.name is 'cnn8': expected one of cnn6, cnn7, two_stage, resnet50"):
        experiment.build(smoke(**{"model.name": "cnn8"}))
    with pytest.raises(ValueError, match=r"offsets is 3\.0 with two_stage: expected 0"):
        experiment.build(smoke(**{"model.name": "two_stage"}))
