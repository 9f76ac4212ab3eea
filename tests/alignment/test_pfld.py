"""PFLD: pose by least squares, the loss and its weights, the network and the published weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pfld as experiment
from facejax.alignment import pfld
from facejax.data.landmark_images import LandmarkImages
from facejax.data.landmark_images import mean_face as mean_face_of
from facejax.interop import pfld as interop
from facejax.ops import rotation
from facejax.train import AXIS
from facejax.train.dry_run import count


@pytest.fixture(scope="module", params=[68, 98])
def mean_face(request):
    return np.asarray(mean_face_of(request.param), np.float64)


def test_angles_of_a_projected_mean_face_are_exact(mean_face):
    angles = np.random.default_rng(0).uniform([-0.5, -1.2, -0.6], [0.5, 1.2, 0.6], (50, 3))
    turned = np.einsum("nij,lj->nli", np.asarray(rotation.from_euler(jnp.asarray(angles))), mean_face)
    points = 37.0 * turned[..., :2] * [1, -1] + [50, 60]
    np.testing.assert_allclose(pfld.pose_of(jnp.asarray(points), mean_face), angles, atol=2e-3)


def test_a_mirrored_face_has_mirrored_angles(mean_face):
    points = np.random.default_rng(1).normal(size=(4, *mean_face.shape[:1], 2)) + 5 * mean_face[:, :2] * [1, -1]
    symmetric = mean_face * [-1, 1, 1]
    found = np.asarray(pfld.pose_of(jnp.asarray(points), mean_face))
    mirrored = np.asarray(pfld.pose_of(jnp.asarray(points * [-1, 1]), symmetric))
    np.testing.assert_allclose(mirrored, found * [1, -1, -1], atol=1e-3)


def test_coinciding_points_have_finite_angles(mean_face):
    assert np.isfinite(pfld.pose_of(jnp.zeros((1, len(mean_face), 2)), mean_face)).all()


def test_loss_by_hand():
    rng = np.random.default_rng(0)
    points, truth = rng.uniform(size=(2, 3, 5, 2))
    angles, true = rng.uniform(-1, 1, (2, 3, 3))
    weights = np.array([1.0, 2.0, 0.5])
    for floor in (0.0, 0.3):
        expected = [
            w * (floor + sum(1 - np.cos(a - b) for a, b in zip(x, y, strict=True))) * ((p - t) ** 2).sum()
            for w, x, y, p, t in zip(weights, angles, true, points, truth, strict=True)
        ]
        np.testing.assert_allclose(pfld.pfld_loss(points, truth, angles, true, weights, floor), expected, rtol=1e-5)


def test_right_angles_leave_no_gradient_but_the_floor():
    points, truth, angles = np.ones((1, 4, 2)), np.zeros((1, 4, 2)), np.full((1, 3), 0.3)
    gradient = jax.grad(lambda p, floor: pfld.pfld_loss(p, truth, angles, angles, np.ones(1), floor).sum())
    assert not np.any(gradient(points, 0.0))
    np.testing.assert_allclose(gradient(points, 0.5), points)


def test_kinds_and_rarity_by_hand():
    degrees = np.array([[0, 40, 0], [-20, 0, 0], [20, -29, 0], [0, 0, 50]], np.float32)
    yes, no = np.array([True, False, False, False]), np.zeros(4, bool)
    member = np.asarray(pfld.kinds(np.radians(degrees), yes, no))
    expected = [[1, 0, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]]
    np.testing.assert_array_equal(member, expected)
    np.testing.assert_allclose(pfld.rarity(member), [4 + 4, 4 / 3 + 4, 4 / 3 + 4, 4 / 3], rtol=1e-6)
    halves = jax.vmap(lambda m: pfld.rarity(m, "d"), axis_name="d")(member.reshape(2, 2, 6)).ravel()
    np.testing.assert_allclose(halves, pfld.rarity(member), rtol=1e-6)  # does not depend on the number of devices


def test_few_keeps_a_part_of_the_rare_faces():
    rare = np.arange(100) % 2 == 0
    rows = experiment.few(rare, 0.2, 0)
    assert rare[rows].mean() == pytest.approx(0.2, abs=0.01) and (~rare[rows]).sum() == 50
    assert np.all(np.diff(rows) > 0) and not np.array_equal(rows, experiment.few(rare, 0.2, 1))
    np.testing.assert_array_equal(experiment.few(rare, 1.0, 0), np.arange(100))
    np.testing.assert_array_equal(experiment.few(rare, 0.9, 0), np.arange(100))  # there are not so many


@pytest.fixture
def sources(monkeypatch):
    """Rarity -> the source of training batches: 20 frontal faces, 20 turned by 0.8 radians, 4 with a smile."""
    face = np.asarray(mean_face_of(68), np.float64)
    yaw = np.where(np.arange(40) % 2 == 0, 0.8, 0.0)
    turned = np.einsum("nij,lj->nli", rotation.from_euler(jnp.stack([0 * yaw, yaw, 0 * yaw], -1)), face)
    faces = [
        {"points": 20 * points[:, :2] * [1, -1] + 32, "attributes": np.array([False, i < 4, False, False]), "yaw": y}
        for i, (points, y) in enumerate(zip(turned, yaw, strict=True))
    ]
    monkeypatch.setattr(LandmarkImages, "source", lambda self, split: faces)
    monkeypatch.setattr(LandmarkImages, "batches", lambda self, size, seed, source: source)

    def made(rarity):
        config = experiment.get_config()
        config.profiles, config.loss.rarity = 0.2, rarity
        found = experiment.build(config).train_data()
        return [found[i] for i in range(len(found))]

    return made


def rarity_of(faces):
    """By counting: 5 profiles and 20 frontal faces, and the smiles among them."""
    profile = np.array([face["yaw"] > 0 for face in faces])
    smile = np.array([face["attributes"][1] for face in faces])
    return profile, np.where(profile, 25 / 5, 25 / 20) + smile * 25 / smile.sum()


def test_weights_are_of_all_chosen_faces(sources):
    faces = sources("data")
    profile, weights = rarity_of(faces)
    assert len(faces) == 25 and profile.sum() == 5
    np.testing.assert_allclose([face["weight"] for face in faces], weights, rtol=1e-5)


def test_rare_faces_are_drawn_as_often_as_they_weigh(sources):
    chosen, drawn = sources("none"), sources("drawn")
    profile, weights = rarity_of(chosen)
    assert len(chosen) == 25 and profile.sum() == 5 and "weight" not in drawn[0]
    times = [sum(face is other for other in drawn) for face in chosen]
    np.testing.assert_allclose(times, experiment.REPEATS * weights / weights.mean(), atol=0.51)


def test_an_unknown_rarity_is_refused():
    config = experiment.get_config()
    config.loss.rarity = "images"
    with pytest.raises(ValueError, match=r"loss\.rarity is 'images': expected one of drawn, data, batch, none"):
        experiment.build(config)


@pytest.mark.parametrize("size", [32, 48])
def test_the_angles_are_of_training_only(size):
    net = pfld.Net(5, width=0.1)
    images = jnp.zeros((2, size, size, 3))
    variables = jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))

    def run(train):
        return jax.eval_shape(lambda v: net.apply(v, images, train=train, mutable=["batch_stats"])[0], variables)

    assert run(False)["points"].shape == (2, 5, 2) and set(run(False)) == {"points"}
    assert run(True)["angles"].shape == (2, 3)


def test_parts_have_the_published_sizes():
    for second, main in (("full", 1_264_548), ("separable", 1_264_548 - 36_864 + 576 + 4_096)):
        net = pfld.Net(second=second)
        shapes = jax.eval_shape(
            lambda key, net=net: net.init(key, jnp.zeros((1, 112, 112, 3)), train=False), jax.random.key(0)
        )
        assert count(shapes["params"]["auxiliary"]) == 463_811
        assert count(shapes["params"]) == main + 463_811


def test_bad_input():
    for shape in ((1, 100, 100, 3), (1, 64, 48, 3), (64, 64, 3)):
        with pytest.raises(ValueError, match="S a multiple of 16"):
            pfld.Net().init(jax.random.key(0), jnp.zeros(shape), train=False)
    with pytest.raises(ValueError, match="second is 'dense', expected full or separable"):
        pfld.Net(second="dense").init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)


def test_published_weights(test_data):
    folder = test_data / "weights/pfld"
    net = pfld.pfld_68_compressed()
    template = jax.eval_shape(lambda k: net.init(k, jnp.zeros((1, 112, 112, 3)), train=False), jax.random.key(0))
    variables = interop.load(folder / "pfld_68.onnx", template)
    recorded = np.load(folder / "reference.npz")
    run = jax.jit(lambda x: net.apply(variables, x, train=False)["points"])
    for images, output in (
        (recorded["random_input"].transpose(0, 2, 3, 1), recorded["random_output"]),
        (recorded["crops_uint8_rgb"] / np.float32(255), recorded["crops_output"]),
    ):
        np.testing.assert_allclose(run(images), output.reshape(-1, 68, 2), atol=1e-4)


@pytest.mark.smoke
def test_a_step_trains_both_branches():
    config = experiment.get_config()
    config.loss.rarity = "data"
    config.train.batch_size, config.data.image_size, config.model.width = 8, 32, 0.1
    config.optim.schedule.warmup = 0  # the first step of a warm-up has the rate 0
    run = experiment.build(config)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (8, 32, 32, 3)).astype(np.uint8),
        "points": np.float32(rng.uniform(4, 28, (8, 68, 2))),
        "visible": np.ones((8, 68), bool),
        "attributes": rng.random((8, 4)) < 0.3,
        "weight": np.float32(rng.uniform(1, 9, 8)),
    }
    assert set(batch) == set(run.batch)
    state = run.init(jax.random.key(0))
    step = jax.jit(lambda *a: jax.vmap(run.train_step, axis_name=AXIS)(*jax.tree.map(lambda x: x[None], a)))
    after, metrics = jax.tree.map(lambda x: x[0], step(state, batch, jax.random.key(1)))
    assert np.isfinite(metrics["landmarks"].total) and np.isfinite(metrics["angles"].total)
    for part in ("fc", "auxiliary", "conv1"):
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params[part], after.params[part])
        assert any(jax.tree.leaves(moved)), part
