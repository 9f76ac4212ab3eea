"""3DDFA's costs against brute force and SciPy, its cascade, and its run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from experiments import tddfa as experiment
from facejax.data import reconstruction
from facejax.morphable import crops, parameters, pncc
from facejax.morphable.parameters import Layout, LinearFace, Parameters, Whitening
from facejax.ops import rotation
from facejax.reconstruction import tddfa
from facejax.train import app
from facejax.train.dry_run import dry_run
from facejax.train.loop import Options
from tests.selection import full_but

LAYOUT = Layout(3, 2)
D, V, N = LAYOUT.size, 14, 4


@pytest.fixture(scope="module")
def face():
    rng = np.random.default_rng(0)
    mean, bases = rng.normal(size=(V, 3)), rng.normal(size=(V, 3, 5)) / 3
    triangles = jnp.asarray(rng.permuted(np.tile(np.arange(V), (8, 1)), axis=1)[:, :3], jnp.int32)
    arrays = (jnp.asarray(x, jnp.float32) for x in (mean, bases))
    return LinearFace(*arrays, triangles, jnp.array([3, 1, 8], jnp.int32), LAYOUT)


@pytest.fixture(scope="module")
def whitening():
    rng = np.random.default_rng(1)
    mean = np.r_[20, 0, 0, 16, 0, 20, 0, 16, 0, 0, 20, 0, np.zeros(5)]
    return Whitening(*(jnp.asarray(x, jnp.float32) for x in (mean, rng.uniform(0.5, 3, D))))


@pytest.fixture(scope="module")
def pair(whitening):
    """Predicted and true whitened parameters; the true ones have a rotation."""
    rng = np.random.default_rng(2)
    turn = rotation.from_euler(jnp.asarray(rng.normal(size=(N, 3)) * 0.5))
    pose = parameters.compose(jnp.asarray(rng.uniform(15, 25, N)), turn, jnp.asarray(rng.normal(size=(N, 3)) + 16))
    form = jnp.asarray(rng.normal(size=(N, 5)))
    true = parameters.join(Parameters(pose, form[:, :3], form[:, 3:]))
    target = whitening.whiten(true.astype(jnp.float32))
    return target + 0.3 * jnp.asarray(rng.normal(size=target.shape), jnp.float32), target


def vertices(face, whitening, vector):
    return np.asarray(parameters.reconstruct(face, whitening.restore(vector)), np.float64)


def test_weights_are_the_distances_of_faces_with_one_wrong_parameter(face, whitening, pair):
    predicted, target = pair
    moved = np.zeros((N, D))
    for i in range(D):
        one = target.at[:, i].set(predicted[:, i])
        difference = vertices(face, whitening, one) - vertices(face, whitening, target)
        moved[:, i] = np.sqrt((difference**2).sum((1, 2)))
    moved[:, parameters.DEPTH] = 0
    expected = moved / moved.max(1, keepdims=True)
    found = tddfa.wpdc_weights(predicted, target, face, whitening)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5)
    cost = (expected * np.asarray(predicted - target) ** 2).mean(1)
    np.testing.assert_allclose(tddfa.wpdc(predicted, target, face, whitening), cost, rtol=2e-3)


def test_a_given_scale_replaces_that_of_the_coefficients_only(face, whitening, pair):
    predicted, target = pair
    own, given = (tddfa.wpdc_weights(predicted, target, face, whitening, scale=s) for s in (None, 30.0))
    f = parameters.pose_scale(parameters.split(whitening.restore(target), LAYOUT).pose)
    gain = (given / given[:, :1]) / (own / own[:, :1])
    np.testing.assert_allclose(np.delete(gain[:, : parameters.POSE], parameters.DEPTH, 1), 1, rtol=1e-4)
    np.testing.assert_allclose(gain[:, parameters.POSE :], np.tile(30 / f[:, None], 5), rtol=1e-3)


def test_vertex_distance_by_hand_and_no_depth(face, whitening, pair):
    predicted, target = pair
    difference = vertices(face, whitening, predicted.at[:, 11].set(target[:, 11])) - vertices(face, whitening, target)
    found = tddfa.vdc(predicted, target, face, whitening)
    np.testing.assert_allclose(found, (difference**2).mean((1, 2)), rtol=1e-4)
    far = predicted.at[:, 11].add(100.0)
    np.testing.assert_allclose(tddfa.vdc(far, target, face, whitening), found, rtol=1e-6)


@pytest.mark.parametrize("name", tddfa.COSTS)
def test_costs_vanish_at_the_truth_with_finite_gradients(face, whitening, pair, name):
    predicted, target = pair
    cost = jax.jit(lambda p: tddfa.COSTS[name](p, target, face, whitening))
    np.testing.assert_allclose(cost(target), 0, atol=1e-6)
    assert cost(predicted).shape == (N,)
    assert (cost(predicted) > 0).all()
    for at in (target, predicted):
        slope = jax.grad(lambda p: cost(p).sum())(at)
        assert np.isfinite(slope).all()
        if name != "pdc":
            np.testing.assert_array_equal(slope[:, parameters.DEPTH], 0)
    low = cost(predicted.astype(jnp.bfloat16))
    np.testing.assert_allclose(low, cost(predicted), rtol=0.1)


def test_gradients_by_differences(face, whitening, pair):
    """VDC's own; WPDC's is that of its weights held fixed."""
    predicted, target = pair
    direction = jnp.asarray(np.random.default_rng(3).normal(size=predicted.shape), jnp.float32)
    weights = tddfa.wpdc_weights(predicted, target, face, whitening)
    for cost, fixed in (
        (lambda p: tddfa.vdc(p, target, face, whitening).sum(), None),
        (
            lambda p: tddfa.wpdc(p, target, face, whitening).sum(),
            lambda p: (weights * (p - target) ** 2).mean(1).sum(),
        ),
    ):
        value = fixed or cost
        difference = (value(predicted + 1e-2 * direction) - value(predicted - 1e-2 * direction)) / 2e-2
        slope = jnp.vdot(jax.grad(cost)(predicted), direction)
        np.testing.assert_allclose(slope, difference, rtol=5e-3)


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_optimized_weights_are_scipys_minimum(face, whitening, pair, damping):
    predicted, target = pair
    found = tddfa.owpdc_weights(predicted, target, face, whitening, damping=damping, iterations=3000)
    place = jax.jacobian(lambda p: parameters.reconstruct(face, whitening.restore(p)).ravel())
    for p, t, weights in zip(predicted, target, np.asarray(found), strict=True):
        jacobian = np.asarray(place(t), np.float64)
        way = np.array(t - p, np.float64)
        way[11] = 0
        strength = damping * (jacobian**2).sum() / D
        rows = np.concatenate([jacobian * way, np.sqrt(strength) * np.diag(way)])
        goal = np.concatenate([jacobian @ way, np.zeros(D)])
        best = lsq_linear(rows, goal, (0, 1), tol=1e-12)
        value = 0.5 * ((rows @ weights - goal) ** 2).sum()
        assert value <= best.cost * 1.001
    assert (found >= 0).all() and (found <= 1).all()
    quick = tddfa.owpdc_weights(predicted, target, face, whitening, damping=damping)
    assert np.abs(quick - found).max() < 0.1


def test_resampled_vertices_begin_with_the_landmarks(face):
    some = tddfa.resampled(face, jax.random.key(0), 6)
    assert some.mean.shape == (9, 3)
    np.testing.assert_array_equal(some.mean[:3], face.mean[face.landmarks68])
    rest = {tuple(row) for row in np.asarray(some.mean[3:]).tolist()}
    assert len(rest) == 6
    assert rest <= {tuple(row) for row in np.asarray(face.mean).tolist()}
    other = tddfa.resampled(face, jax.random.key(1), 6)
    assert (other.mean[3:] != some.mean[3:]).any()


@pytest.fixture(scope="module")
def cascade(face, whitening):
    net = tddfa.Cascade(2, lambda name: tddfa.FourConvolutions(D, (4, 4, 4, 4), 8, name=name))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    return net, images, jax.jit(lambda k: net.init(k, images, face, whitening, train=False))(jax.random.key(0))


def test_stages_see_the_code_of_what_was_found(face, whitening, cascade):
    net, images, variables = cascade
    found = net.apply(variables, images, face, whitening, train=False)
    assert found.shape == (2, 2, D)
    code, current = pncc.coordinate_code(face.mean), jnp.zeros((2, D))
    for i, expected in enumerate(found):
        placed = crops.to_image(parameters.reconstruct(face, whitening.restore(current)), 32)
        picture = (255 * pncc.render_pncc(placed, face.triangles, code, (32, 32)) - 127.5) / 128
        assert picture.max() > 0.3  # the face is in the picture
        stage = {kind: tree[f"stage{i}"] for kind, tree in variables.items()}
        single = tddfa.FourConvolutions(D, (4, 4, 4, 4), 8)
        current = current + single.apply(stage, jnp.concatenate([images, picture], -1), train=False)
        np.testing.assert_allclose(current, expected, rtol=1e-4, atol=1e-5)


def test_the_code_lies_where_published_crops_show_the_face(face, whitening, monkeypatch):
    placed = []

    def render(vertices, triangles, code, size):
        placed.append(vertices)
        return jnp.zeros((len(vertices), *size, 3))

    monkeypatch.setattr(tddfa.pncc, "render_pncc", render)
    config = experiment.get_config("crops_cascade")
    _, apply = experiment.network(config.model, reconstruction.ReconstructionFaces(**config.data), D)
    current, code = jnp.zeros((1, D)), pncc.coordinate_code(face.mean)
    apply.__self__._picture(current, face, code, whitening, 120)
    expected = np.array(parameters.reconstruct(face, whitening.restore(current))) * [1, -1, 1] + [-0.5, 120.5, 0]
    np.testing.assert_allclose(placed[0], expected, atol=1e-4)


def test_a_stage_sends_no_gradient_to_the_one_before(face, whitening, cascade):
    net, images, variables = cascade

    def last(params):
        return net.apply({**variables, "params": params}, images, face, whitening, train=False)[-1].sum()

    slopes = jax.grad(last)(variables["params"])
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(slopes["stage0"]))
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(slopes["stage1"]))


def test_coarse_pictures_must_fit(face, whitening):
    net = tddfa.Cascade(1, tddfa.mobilenet, 3)
    with pytest.raises(ValueError, match="crops of 32 pixels, expected a multiple of coarse, 3"):
        net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), face, whitening, train=False)


@pytest.mark.parametrize("preset", full_but(experiment.PRESETS, "crops_wpdc_vdc"))
def test_presets_dry_run(preset):
    config = experiment.get_config(preset)
    costs = dry_run(experiment.build(config), Options(**config.train))
    expected = {"crops_wpdc_vdc": 3_270_526, "crops_cascade": 3 * (3_270_526 + 3 * 9 * 32)}
    if preset in expected:
        assert costs["parameters"] == expected[preset]


@pytest.fixture
def small_world(face_examples, monkeypatch):
    monkeypatch.setattr(reconstruction.faces, "load", lambda *_: face_examples[0])
    reconstruction._load.cache_clear()
    yield
    reconstruction._load.cache_clear()


def test_two_costs_take_turns():
    run = experiment.build(experiment.get_config("wpdc_vdc"))
    assert [run.step_name(i) for i in (1, 420, 421, 600)] == ["wpdc", "wpdc", "vdc", "vdc"]


def test_a_cascade_runs(small_world):
    config = experiment.get_config("cascade")
    config.update_from_flattened_dict(
        {"model.coarse": 4, "data.image_size": 32, "train.batch_size": 8, "train.steps": 1, "train.devices": 1}
    )
    state, report = app.run(config, experiment.build, quiet=True)
    whitening = state.model_state["whitening"]
    np.testing.assert_allclose(whitening.mean, reconstruction.ReconstructionFaces(**config.data).whitening().mean)
    rows = report.tables["Errors by yaw, %: mean and std are of the three bins"]
    fitted = next(r for r in rows if r["result"] == "fit to true landmarks" and r["measure"] == "nme")
    assert fitted["images"] < 1.5 < report.metrics["nme_images"]


def test_landmarks_are_regressed_and_fitted(small_world):
    config = experiment.get_config("landmark_fit")
    config.update_from_flattened_dict({"data.image_size": 32, "train.batch_size": 8})
    run = experiment.build(config)
    state = run.init(jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, state.params)
    test = reconstruction.ReconstructionFaces(**config.data).test()
    bias = (test.landmarks68[3] / 16 - 1).ravel()  # the answer for one face
    params["fc"]["bias"] = jnp.asarray(bias)
    report = run.evaluate(state.replace(params=params))
    assert report.arrays["errors"][3] < 1
    assert report.metrics["nme_images"] > 5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model.name": "vgg"}, "model.name is 'vgg': expected one of tiny, mobilenet_2"),
        ({"loss.cost": "l2"}, "loss.cost or loss.last is 'l2': expected one of pdc, vdc, wpdc, owpdc or landmarks"),
        ({"loss.cost": "landmarks", "model.stages": 2}, "expected model.stages 0"),
        ({"eval.protocol": "lfw"}, "eval.protocol is 'lfw'"),
        ({"eval.protocol": "aflw2000"}, "eval.path is empty"),
    ],
)
def test_bad_configurations(change, sentence):
    config = experiment.get_config()
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=sentence):
        experiment.build(config)
