"""LAB: layers, message graph, labels and losses against loops and closed forms; the two optimizers; the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import lab as experiment
from facejax.alignment import lab
from facejax.ops import boundaries
from facejax.train import AXIS, Options
from facejax.train.dry_run import dry_run

TINY = lab.BoundaryEstimator(stacks=2, width=8, boundaries=3, depth=1, message_width=2, message_kernel=3)
REGRESSOR = lab.LandmarkRegressor(landmarks=5, widths=(4, 4, 4, 4), blocks=1, hidden=8, depth=1)
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def estimated():
    return jax.jit(lambda key: TINY.init_with_output(key, IMAGES, train=False))(jax.random.key(0))


def test_heatmaps_of_every_stack(estimated):
    found, variables = estimated
    assert [maps.shape for maps in found] == [(2, 4, 6, 3)] * 2
    assert not np.allclose(found[0], found[1])
    kernels = {name: v["kernel"].shape for name, v in variables["params"]["messages1"].items() if "widen" in name}
    edges = [(sender, receiver) for sender, to in lab.MESSAGES.items() for receiver in to]
    wanted = {}
    for name, sender in ((name, edge[i]) for name, i in (("up", 0), ("down", 1)) for edge in edges):
        wanted[f"{name}_{sender}_widen"] = wanted.get(f"{name}_{sender}_widen", 0) + 2
    assert {name: shape[-1] for name, shape in kernels.items()} == wanted


def test_messages_reach_every_boundary_and_never_return():
    """In each direction the graph has no circle, and all that node 0 knows reaches every other node."""
    edges = {(sender, receiver) for sender, to in lab.MESSAGES.items() for receiver in to}
    assert len(edges) == 22 and all(sender < receiver for sender, receiver in edges)
    assert {receiver for _, receiver in edges} == set(range(1, lab.NODES))


def test_a_message_reaches_as_far_as_its_kernels():
    """A node sees 3 pixels itself; the longest path has 9 messages of two 3x3 convolutions each."""
    net = lab.MessagePassing(width=2, kernel=3)
    image = np.zeros((1, 1, 41, 2), np.float32)
    image[0, 0, 20] = 1
    found = jax.jit(lambda key: net.init_with_output(key, image, train=False)[0])(jax.random.key(0))
    seen = np.flatnonzero(np.abs(found)[0, 0].max(-1) > 0)  # without a bias, zeros stay zeros
    longest = {0: 0}
    for node in range(1, lab.NODES):
        longest[node] = 1 + max(longest[sender] for sender, to in lab.MESSAGES.items() if node in to)
    assert seen.min() == 20 - 1 - 2 * max(longest.values()) and seen.max() == 20 + 1 + 2 * max(longest.values())


def test_a_fusion_keeps_the_features_and_masks_them():
    rng = np.random.default_rng(0)
    features, maps = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 4, 3), (2, 8, 8, 5)))
    net = lab.Fusion(depth=1)
    found, variables = net.init_with_output(jax.random.key(1), features, maps, train=False)
    np.testing.assert_array_equal(found[..., :3], features)
    mask = np.asarray(found[..., 3:] / features)
    assert ((mask > 0) & (mask < 1)).all() and mask.std() > 0.01
    other = net.apply(variables, features, np.zeros_like(maps), train=False)
    assert np.abs(other - found)[..., 3:].max() > 1e-3


def test_landmarks_are_pixels_around_the_centre():
    images, maps = np.zeros((2, 32, 64, 3), np.float32), np.zeros((2, 8, 16, 3), np.float32)
    variables = jax.jit(lambda key: REGRESSOR.init(key, images, maps, train=False))(jax.random.key(0))
    params = {**variables["params"], "fc2": jax.tree.map(jnp.zeros_like, variables["params"]["fc2"])}
    params["fc2"]["bias"] = jnp.zeros(10).at[3].set(0.25)
    found = jax.jit(lambda: REGRESSOR.apply({**variables, "params": params}, images, maps, train=False))()
    assert found.shape == (2, 5, 2)
    np.testing.assert_allclose(found[0, :2], [[31.5, 15.5], [31.5, 15.5 + 0.25 * 32]])


def test_standardized():
    images = np.random.default_rng(0).integers(0, 255, (2, 5, 6, 3)).astype(np.uint8)
    images[0, :, :, 1] = 7
    found = np.asarray(lab.standardized(images))
    assert (found[0, :, :, 1] == 0).all()
    wanted = (images[1, :, :, 2] - images[1, :, :, 2].mean()) / images[1, :, :, 2].std()
    np.testing.assert_allclose(found[1, :, :, 2], wanted, atol=1e-5)


def test_losses_against_loops():
    rng = np.random.default_rng(0)
    maps, targets = rng.normal(size=(2, 2, 4, 5, 3)).astype(np.float32), rng.uniform(size=(2, 4, 5, 3))
    wanted = [sum(((m[n, :, :, b] - targets[n, :, :, b]) ** 2).mean() for m in maps for b in range(3)) for n in (0, 1)]
    np.testing.assert_allclose(lab.boundary_loss(list(maps), targets), wanted, rtol=1e-5)
    points, truth = rng.uniform(0, 64, (2, 2, 7, 2)).astype(np.float32)
    wanted = [np.mean([np.hypot(*(points[n, i] - truth[n, i])) ** 2 for i in range(7)]) / 64**2 for n in (0, 1)]
    np.testing.assert_allclose(lab.landmark_loss(points, truth, 64), wanted, rtol=1e-5)
    gradient = jax.grad(lambda p: lab.landmark_loss(p, truth, 64).sum())(truth)
    assert (gradient == 0).all()


def test_labels_against_a_loop():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 64, (6, 98, 2)).astype(np.float32)
    points = truth + rng.normal(size=truth.shape).astype(np.float32)
    lines = [*boundaries.LINES[98].values()]
    members = np.array([[i in line for i in range(98)] for line in lines])
    found = lab.effective(points, truth, members, theta=1.5, delta=0.6)
    for n in range(6):
        for b, line in enumerate(lines):
            near = [np.hypot(*(points[n, i] - truth[n, i])) < 1.5 for i in line]
            assert found[n, b] == (np.mean(near) >= 0.6)
    assert 0.2 < np.mean(found) < 0.8
    assert (lab.effective(points, truth, members, theta=2, delta=0.6) >= found).all()
    assert (lab.effective(points, truth, members, theta=1.5, delta=0.8) <= found).all()
    assert (jax.grad(lambda p: lab.effective(p, truth, members, theta=1.5, delta=0.6).sum())(points) == 0).all()


def test_a_fraction_equal_to_delta_is_enough():
    truth, members = np.zeros((1, 5, 2), np.float32), np.ones((1, 5), bool)
    points = truth.copy()
    points[0, 0] = 3
    assert lab.effective(points, truth, members, theta=1.5, delta=0.8) == 1
    points[0, 1] = 3
    assert lab.effective(points, truth, members, theta=1.5, delta=0.8) == 0


def test_adversarial_losses():
    """The formulas of the paper with probabilities, at moderate logits; finite at any."""
    rng = np.random.default_rng(0)
    real, fake = rng.normal(0, 2, (2, 4, 13))
    labels = rng.integers(0, 2, (4, 13)).astype(np.float64)
    d_real, d_fake = (1 / (1 + np.exp(-x)) for x in (real, fake))
    wanted = -(np.log(d_real) + np.log(1 - np.abs(d_fake - labels))).mean(-1)
    np.testing.assert_allclose(lab.discriminator_loss(real, fake, labels), wanted, rtol=1e-5)
    np.testing.assert_allclose(lab.adversarial_loss(fake), np.log(1 - d_fake).mean(-1), rtol=1e-5)
    slope = jax.grad(lambda x: lab.adversarial_loss(x).sum())(fake)
    np.testing.assert_allclose(slope, -d_fake / 13, rtol=1e-5)
    for dtype in (jnp.float32, jnp.bfloat16):
        extreme = jnp.array([[-1e4, 1e4]], dtype)
        values = jax.value_and_grad(lambda x: lab.discriminator_loss(x, x, jnp.array([[0.0, 1]])).sum())(extreme)
        assert all(np.isfinite(np.asarray(v, np.float32)).all() for v in values)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: TINY.init(jax.random.key(0), np.zeros((1, 16, 20, 3)), train=False),
            r"BoundaryEstimator: images \(1, 16, 20, 3\), expected \[N, H, W, C\] with sides 8 divides",
        ),
        (
            lambda: lab.BoundaryEstimator(stride=3).init(jax.random.key(0), IMAGES, train=False),
            "BoundaryEstimator.stride is 3: expected 2 or 4",
        ),
        (
            lambda: REGRESSOR.init(jax.random.key(0), IMAGES, np.zeros((1, 4, 6, 3)), train=False),
            r"LandmarkRegressor: images \(2, 16, 24, 3\) and maps \(1, 4, 6, 3\), expected",
        ),
        (
            lambda: lab.effective(np.zeros((1, 5, 2)), np.zeros((1, 5, 2)), np.eye(4), theta=1, delta=0.5),
            r"effective: members \(4, 4\) for landmarks \(1, 5, 2\), expected \[B, L\]",
        ),
        (lambda: settings("synthetic", boundaries="drawn"), "boundaries is 'drawn': expected one of predicted, true"),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def settings(preset, **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.image_size": 32, "estimator.width": 8, "estimator.depth": 1, "estimator.stride": 4,
            "estimator.message_width": 0, "regressor.widths": (4, 4, 4, 4), "regressor.hidden": 8,
            "discriminator.widths": (4, 4), "loss.samples": 20, **changes,
        }
    )  # fmt: skip
    return experiment.build(config)


@pytest.fixture(scope="module")
def stepped():
    """Three states and the metrics of both steps; no landmark is right, and the estimator must deceive above all."""
    changes = {"loss.theta": 0.0, "loss.adversarial": 1e3, "optim.schedule.peak": 1e-4}
    run = settings("synthetic", **changes, **{"discriminator_optim.schedule.peak": 1e-2})
    step = jax.jit(jax.vmap(run.train_step, in_axes=(None, 0, None), out_axes=(None, 0), axis_name=AXIS))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (1, 2, 32, 32, 3)).astype(np.uint8),
        "points": rng.uniform(4, 28, (1, 2, 68, 2)).astype(np.float32),
    }
    states, metrics = [jax.jit(run.init)(jax.random.key(0))], []
    for _ in range(2):
        state, found = step(states[-1], batch, jax.random.key(1))
        states.append(state)
        metrics.append({name: float(m.total[0] / m.count[0]) for name, m in found.items()})
    return states, metrics


def test_each_optimizer_moves_its_own_networks(stepped):
    (first, second, _), metrics = stepped
    for name, rate in (("estimator", 1e-4), ("regressor", 1e-4), ("discriminator", 1e-2)):
        leaves = (jax.tree.leaves(state.params[name]) for state in (first, second))
        moves = [np.abs(a - b).max() for a, b in zip(*leaves, strict=True)]
        np.testing.assert_allclose(max(moves), rate, rtol=1e-2)  # Adam's first step
    assert set(first.params) == {"estimator", "regressor", "discriminator"}
    terms = {"boundary_loss", "landmark_loss", "adversarial_loss", "discriminator_loss", "effective"}
    assert set(metrics[0]) == terms
    assert metrics[0]["effective"] == 0


def test_the_discriminator_does_not_please_the_estimator(stepped):
    """Its own loss falls, and the estimator's grows, although that one has 1000 times the weight."""
    _, (first, second) = stepped
    assert second["discriminator_loss"] < first["discriminator_loss"]
    assert second["adversarial_loss"] > first["adversarial_loss"]


@pytest.mark.parametrize("preset", ["synthetic", "true"])
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    assert costs["parameters"] > 1e5
