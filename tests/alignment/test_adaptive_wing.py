"""Adaptive Wing: loss, weight map, coordinates, sizes, targets, decoding, and the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import grey_dilation

from experiments import adaptive_wing as experiment
from facejax.alignment import adaptive_wing
from facejax.ops import boundaries
from facejax.train import Options, app
from facejax.train.dry_run import count, dry_run

RNG = np.random.default_rng(0)
LOSS = jax.jit(adaptive_wing.adaptive_wing)
LINES = jax.jit(lambda p: boundaries.boundary_maps(p, (16, 16), samples=20, last=False, rounded=True).max(-1))
TINY = adaptive_wing.AdaptiveWing(adaptive_wing.Net(68, stacks=2, depth=1, features=8), samples=20)
TARGETS = jax.jit(lambda p: TINY.targets(p, (16, 16)))
FACE = np.float32(RNG.uniform(4, 60, (3, 68, 2)))


def by_hand(found, target):
    """The paper's formula, one pixel."""
    d, p = abs(target - found), 2.1 - target
    if d < 0.5:
        return 14 * np.log(1 + d**p)
    slope = 14 / (1 + 0.5**p) * p * 0.5 ** (p - 1)
    return slope * d - (0.5 * slope - 14 * np.log(1 + 0.5**p))


@pytest.mark.parametrize(
    ("target", "slope", "offset", "low"), [(1, 9.7978496, -0.4615332, 1.0701), (0, 11.1214216, 2.6254757, 0.11077)]
)
def test_published_values(target, slope, offset, low):
    y = jnp.float32(target)
    np.testing.assert_allclose(LOSS(y + 0.1, y), low, rtol=1e-4)
    np.testing.assert_allclose(LOSS(y - 2.0, y), 2 * slope - offset, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(LOSS)(y + 2, y), slope, rtol=1e-6)
    assert LOSS(y, y) == 0


def test_loss_equals_the_formula_of_every_pixel():
    targets = np.float32(RNG.uniform(0, 1, (4, 5)))
    maps = np.float32(targets + RNG.normal(0, 0.6, (4, 5)))
    found = LOSS(maps, targets)
    np.testing.assert_allclose(found, np.vectorize(by_hand)(maps, targets), rtol=1e-5, atol=1e-6)
    assert (np.abs(maps - targets) < 0.5).mean() > 0.2
    other = adaptive_wing.adaptive_wing(maps, targets, omega=8, theta=0.3, epsilon=0.7, alpha=2.5)
    d, p = np.abs(targets - maps), 2.5 - targets
    slope = 8 / (1 + (0.3 / 0.7) ** p) * p * (0.3 / 0.7) ** (p - 1) / 0.7
    line = slope * d - (0.3 * slope - 8 * np.log(1 + (0.3 / 0.7) ** p))
    np.testing.assert_allclose(other, np.where(d < 0.3, 8 * np.log(1 + (d / 0.7) ** p), line), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", [0.0, 0.4, 1.0])
def test_value_and_slope_continue_at_theta(target):
    slope = jax.grad(lambda d: LOSS(target - d, target))
    below, above = (0.5 + step for step in (-1e-4, 1e-4))
    np.testing.assert_allclose(slope(below), slope(above), rtol=1e-3)
    np.testing.assert_allclose(LOSS(target - below, target), LOSS(target - above, target), rtol=1e-3)


def test_small_errors_keep_their_gradient_on_peaks_only():
    slope = jax.grad(LOSS)
    assert slope(1 - 1e-3, 1.0) < -7  # nearly 14 * 1.1 * 0.001^0.1
    assert abs(slope(1e-3, 0.0)) < 0.03
    assert slope(1.0, 1.0) == 0


def test_gradients_are_finite_and_do_not_reach_the_targets():
    maps = jnp.float32([0, 1, 0.5, 1e20, -1e20])
    targets = jnp.float32([0, 1, 0.5, 1, 0])
    d_maps, d_targets = jax.jit(jax.grad(lambda *x: adaptive_wing.adaptive_wing(*x).sum(), (0, 1)))(maps, targets)
    assert np.isfinite(d_maps).all() and (d_targets == 0).all()
    half = LOSS(maps.astype(jnp.bfloat16), targets.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32 and np.isfinite(half).all()


def test_weight_map_equals_scipys_dilation():
    targets = np.float32(RNG.uniform(0, 0.25, (2, 7, 9, 3)) * (RNG.uniform(size=(2, 7, 9, 3)) < 0.3))
    targets[0, 0, 0, 0] = 0.2
    found = adaptive_wing.weight_map(jnp.asarray(targets))
    np.testing.assert_array_equal(found, grey_dilation(targets, (1, 3, 3, 1)) >= np.float32(0.2))
    assert 0 < np.mean(found) < 1


def test_coordinates():
    found = np.asarray(adaptive_wing.coordinates(3, 5))
    np.testing.assert_allclose(found[:, 1, 0], [-1, 0, 1])
    np.testing.assert_allclose(found[2, :, 1], [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_allclose(found[0, 3, 2], np.hypot(1, 0.5) / np.sqrt(2), rtol=1e-6)


def test_coordinates_of_the_boundary():
    """A kernel of ones sums the channels: zero inputs, the coordinates, and those on the predicted line."""
    layer, x = adaptive_wing.CoordConv(1), jnp.zeros((1, 3, 5, 2))
    boundary = jnp.zeros((1, 3, 5, 1)).at[0, 2, 4, 0].set(0.06).at[0, 0, 0, 0].set(0.04)
    ones = jax.tree.map(jnp.ones_like, layer.init(jax.random.key(0), x, boundary))
    place = adaptive_wing.coordinates(3, 5)
    wanted = (place.sum(-1) + 1).at[2, 4].add(2.0)
    np.testing.assert_allclose(layer.apply(ones, x, boundary)[0, ..., 0], wanted, atol=1e-6)
    ones = jax.tree.map(jnp.ones_like, layer.init(jax.random.key(0), x))
    np.testing.assert_allclose(layer.apply(ones, x)[0, ..., 0], place.sum(-1) + 1, atol=1e-6)


@pytest.mark.parametrize(("stacks", "parameters"), [(1, 6_333_603), (4, 24_153_036)])
def test_sizes(stacks, parameters):
    net = adaptive_wing.Net(98, stacks)
    images = jnp.zeros((1, 256, 256, 3))
    maps, variables = jax.eval_shape(lambda k: net.init_with_output(k, images, train=False), jax.random.key(0))
    assert count(variables["params"]) == parameters
    assert [m.shape for m in maps] == [(1, 64, 64, 99)] * stacks


def test_targets():
    points = FACE.copy()
    points[0, 0], points[1, 1], points[2, 2] = (13.9, 22.1), (300, 10), (np.nan, 3)
    maps = np.asarray(TARGETS(points))
    assert maps.shape == (3, 16, 16, 69)
    assert maps[0, 5, 3, 0] == 1  # floor(22.1 / 4), floor(13.9 / 4)
    np.testing.assert_allclose(maps[0, 5, 5, 0], np.exp(-4 / (2 * 1.75**2)), rtol=1e-5)
    assert maps[0, 5, 7, 0] == 0 and maps[0, 5, 6, 0] > 0  # a window of 7 x 7
    assert not maps[1, ..., 1].any() and not maps[2, ..., 2].any()
    np.testing.assert_allclose(maps[..., -1], LINES(np.floor(points / 4)), atol=1e-5)


@pytest.mark.parametrize("landmarks", [98, 29, 19])
def test_targets_of_other_layouts(landmarks):
    model = adaptive_wing.AdaptiveWing(adaptive_wing.Net(landmarks), samples=10)
    points = np.float32(RNG.uniform(0, 32, (1, landmarks, 2)))
    shape = jax.eval_shape(lambda p: model.targets(p, (8, 8)), points).shape
    assert shape == (1, 8, 8, landmarks + 1)


def test_losses():
    targets = np.asarray(TARGETS(FACE))
    outputs = [np.float32(targets + RNG.normal(0, 0.3, targets.shape)) for _ in range(2)]
    weights = 1 + 10 * (grey_dilation(targets, (1, 3, 3, 1)) >= np.float32(0.2))
    found = jax.jit(TINY.losses)(outputs, {"points": FACE})
    assert list(found) == ["stack_1", "stack_2"]
    for got, maps in zip(found.values(), outputs, strict=True):
        np.testing.assert_allclose(got, (weights * LOSS(maps, targets)).mean((1, 2, 3)), rtol=1e-5)
    plain = adaptive_wing.AdaptiveWing(TINY.net, "squared_error", 0.0, samples=20)
    found = jax.jit(plain.losses)(outputs, {"points": FACE})["stack_2"]
    np.testing.assert_allclose(found, ((outputs[1] - targets) ** 2).mean((1, 2, 3)), rtol=1e-5)


def code_decode(heat):
    """The authors' loop for one map of [H, W]: 1-based peak, a quarter to the higher side, half a cell, four pixels."""
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    x, y = column + 1.0, row + 1.0
    if 0 < column < heat.shape[1] - 1 and 0 < row < heat.shape[0] - 1:
        x += 0.25 * np.sign(heat[row, column + 1] - heat[row, column - 1])
        y += 0.25 * np.sign(heat[row + 1, column] - heat[row - 1, column])
    return 4 * np.array([x - 0.5, y - 0.5])


def test_decode_equals_the_authors_loop():
    maps = [np.float32(RNG.normal(-5, 1, (2, 9, 7, 69))) for _ in range(2)]  # all peaks are negative
    found = jax.jit(TINY.decode)(maps)
    assert set(found) == {"stack_1", "points"}
    for name, heat in zip(("stack_1", "points"), maps, strict=True):
        wanted = [[code_decode(heat[n, ..., k]) for k in range(68)] for n in range(2)]
        np.testing.assert_allclose(found[name], wanted, atol=1e-5)


def test_drawn_and_decoded_points_are_in_their_cell():
    points = TINY.decode([TARGETS(FACE)])["points"]
    assert np.abs(points - FACE).max() <= 2


def smoke(**changes):
    config = experiment.get_config()
    tiny = {
        "data.image_size": 16, "model.stacks": 1, "model.features": 8, "model.depth": 1, "target.samples": 5,
        "train.steps": 2, "train.batch_size": 8, "train.log_every": 1, "eval.batch_size": 200,
    }  # fmt: skip
    config.update_from_flattened_dict(tiny | changes)
    return config


def test_smoke(tmp_path):
    _, report = app.run(smoke(), experiment.build, workdir=tmp_path / "run", quiet=True)
    assert {"nme", "failures_at_8", "nme_pose"} <= set(report.metrics)
    assert "Boundary lines: faces, predicted, true" in report.figures
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000


def test_dry_run():
    config = experiment.get_config("wflw")
    assert dry_run(experiment.build(config), Options(**config.train))["parameters"] == 24_153_036


def test_published_settings():
    steps = {"300w": 94_440, "wflw": 225_000, "cofw": 40_350, "aflw": 600_000}
    for preset in experiment.PRESETS:
        config = experiment.get_config(preset)
        experiment.build(config)
        if preset in steps:
            assert config.train.steps == steps[preset] and config.target.sigma == 1.75
            assert (config.model.stacks, config.model.features, config.model.depth) == (4, 256, 4)
            assert config.data.crop == ("box" if preset == "wflw" else "points")
            assert config.data.augment.colour == 0


def test_both_sides_of_the_claim_have_one_network():
    sides = [experiment.get_config(name) for name in ("synthetic", "squared_error")]
    assert sides[0].model == sides[1].model and sides[0].optim == sides[1].optim


def test_bad_input():
    with pytest.raises(ValueError, match=r"images \(1, 60, 64, 3\), expected \[N, H, W, 3\] with sides that 8 divides"):
        jax.eval_shape(lambda: TINY.net.init(jax.random.key(0), jnp.zeros((1, 60, 64, 3)), train=False))
    net = adaptive_wing.Net(68, features=12)
    with pytest.raises(ValueError, match="features is 12, expected a multiple of 8"):
        jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    with pytest.raises(ValueError, match="loss is 'wing', expected one of adaptive_wing, squared_error"):
        experiment.build(smoke(**{"loss.name": "wing"}))
