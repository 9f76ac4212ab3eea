"""3DDFA_V2: its costs against brute force, short videos, the choice between two costs, and the published weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tddfa_v2 as experiment
from facejax.data import normalize
from facejax.interop import tddfa_v2 as interop
from facejax.morphable import parameters
from facejax.morphable.parameters import Layout, LinearFace, Parameters, Whitening
from facejax.ops import rotation
from facejax.reconstruction import tddfa, tddfa_v2
from facejax.train import AXIS, Experiment, Mean, TrainState

LAYOUT = Layout(3, 2)
D, V, N = LAYOUT.size, 14, 4


@pytest.fixture(scope="module")
def face():
    rng = np.random.default_rng(0)
    arrays = (jnp.asarray(x, jnp.float32) for x in (rng.normal(size=(V, 3)), rng.normal(size=(V, 3, 5)) / 3))
    return LinearFace(*arrays, jnp.zeros((0, 3), jnp.int32), jnp.array([3, 1, 8], jnp.int32), LAYOUT)


@pytest.fixture(scope="module")
def whitening():
    mean = np.r_[20, 0, 0, 16, 0, 20, 0, 16, 0, 0, 20, 0, np.zeros(5)]
    deviation = np.random.default_rng(1).uniform(0.5, 3, D)
    return Whitening(*(jnp.asarray(x, jnp.float32) for x in (mean, deviation)))


@pytest.fixture(scope="module")
def vectors():
    """True vectors [N, D] with a rotation."""
    rng = np.random.default_rng(2)
    turn = rotation.from_euler(jnp.asarray(rng.normal(size=(N, 3)) * 0.5))
    pose = parameters.compose(jnp.asarray(rng.uniform(15, 25, N)), turn, jnp.asarray(rng.normal(size=(N, 3)) + 16))
    form = jnp.asarray(rng.normal(size=(N, 5)))
    return parameters.join(Parameters(pose, form[:, :3], form[:, 3:])).astype(jnp.float32)


def test_fast_weights_equal_brute_force(face, whitening, vectors):
    target = whitening.whiten(vectors)
    predicted = target + 0.3 * jnp.asarray(np.random.default_rng(3).normal(size=target.shape), jnp.float32)

    def surface(vector):
        return np.asarray(parameters.reconstruct(face, whitening.restore(vector)), np.float64)

    distance = np.zeros((N, D))
    for i in range(D):
        one = surface(target.at[:, i].set(predicted[:, i])) - surface(target)
        distance[:, i] = np.sqrt((one**2).sum((1, 2)))
    distance[:, parameters.DEPTH] = 0
    weights = distance / distance.max(1, keepdims=True)
    expected = ((weights * np.asarray(predicted - target)) ** 2).sum(1)
    np.testing.assert_allclose(tddfa_v2.fwpdc(predicted, target, face, whitening), expected, rtol=3e-3)
    slope = jax.grad(lambda p: tddfa_v2.fwpdc(p, target, face, whitening).sum())(predicted)
    np.testing.assert_allclose(slope, 2 * weights**2 * np.asarray(predicted - target), rtol=1e-2, atol=1e-5)


def test_balanced_loss_has_the_first_ones_mean_and_the_second_ones_direction():
    first, second = jnp.array([1.0, 3.0]), jnp.array([10.0, 30.0])
    np.testing.assert_allclose(tddfa_v2.balanced(first, second), [1, 3])
    np.testing.assert_allclose(tddfa_v2.joint(first, second, 0.3).mean(), 2)
    slope = jax.grad(lambda a, b: tddfa_v2.joint(a, b, 0.3).sum(), (0, 1))(first, second)
    np.testing.assert_allclose(slope[0], [0.3, 0.3])  # the ratio has no gradient
    np.testing.assert_allclose(slope[1], [0.07, 0.07], rtol=1e-6)
    assert np.isfinite(tddfa_v2.balanced(first, 0 * second)).all()
    halves = jax.vmap(lambda a, b: tddfa_v2.balanced(a, b, "d"), axis_name="d")(first[:, None], second[:, None])
    np.testing.assert_allclose(halves[:, 0], [1, 3])  # one ratio for all devices


def test_jitter_by_hand():
    truth = np.cumsum(np.ones((2, 4, 5, 2)), 1)
    assert (tddfa_v2.jitter(truth + 7, truth, np.ones(2)) == 0).all()  # a constant error does not tremble
    shaken = truth.copy()
    shaken[0, 1, :, 0] += 3  # two of three steps are wrong by 3
    np.testing.assert_allclose(tddfa_v2.jitter(shaken, truth, np.array([2.0, 1.0])), [3 * 2 / 3 / 2, 0])


class Fixed:
    """A network whose parameters are its output."""

    def apply(self, variables, images, train):
        del train
        return {"parameters": jnp.broadcast_to(variables["params"], (len(images), D))}


@pytest.mark.parametrize(("fast", "slow", "winner"), [(0.1, 0.5, "fwpdc"), (0.5, 0.1, "vdc"), (np.nan, 0.5, "vdc")])
def test_the_copy_with_the_lower_vertex_distance_goes_on(face, whitening, vectors, fast, slow, winner):
    target = whitening.whiten(vectors[:1])[0]

    def step(error):
        def train_step(state, batch, rng):
            value = Mean.of(jnp.ones(1))
            return state.replace(step=state.step + 1, params=target + error, opt_state=jnp.float32(error)), {
                "loss": value
            }

        return train_step

    def init(rng, start):
        return TrainState(jnp.int32(0), rng, target + 1, jnp.float32(1), {"whitening": whitening, "variables": {}})

    run = Experiment(
        evaluate=None, init=init, train_step={"fwpdc": step(fast), "vdc": step(slow)}, choose=lambda n: "fwpdc",
        batch={"fwpdc": {}, "vdc": {}},
    )  # fmt: skip
    run = experiment.alternating(run, Fixed(), 3)
    assert [run.choose(n) for n in range(1, 9)] == ["both"] * 3 + ["choice"] + ["both"] * 3 + ["choice"]
    batch = {"image": np.zeros((1, 4, 4, 3), np.uint8), "parameters": vectors[:1], "face": face}

    def mapped(name, state):
        one = jax.tree.map(lambda x: jnp.asarray(x)[None], (state, batch))
        done = jax.vmap(lambda s, b: run.train_step[name](s, b, None)[0], axis_name=AXIS)(*one)
        return jax.tree.map(lambda x: x[0], done)

    state = mapped("both", run.init(jax.random.key(0), None))
    np.testing.assert_array_equal(state.other.params, target + slow)
    state = mapped("choice", state)
    error = {"fwpdc": fast, "vdc": slow}[winner]
    for one in (state, state.other):
        np.testing.assert_array_equal(one.params, target + np.float32(error))
        assert one.opt_state == np.float32(error) and one.step == 2


@pytest.fixture(scope="module")
def published(test_data):
    net = tddfa_v2.mb05()
    shapes = jax.eval_shape(lambda k: net.init(k, jnp.zeros((1, 120, 120, 3)), train=False), jax.random.key(0))
    return net, interop.load(test_data / "weights/3ddfa_v2/mb05_120x120.pth", shapes)


def test_published_weights(published, test_data):
    net, variables = published
    recorded = np.load(test_data / "weights/3ddfa_v2/reference.npz")
    run = jax.jit(lambda x: net.apply(variables, x, train=False)["parameters"])
    found = run(recorded["random_input"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(found, recorded["random_param_normalized"], atol=1e-4)
    crops = normalize.bgr_symmetric(jnp.asarray(recorded["crops_uint8_bgr"])[..., ::-1])
    np.testing.assert_allclose(run(crops), recorded["crops_param_normalized"], atol=1e-4)
    with pytest.raises(ValueError, match="the weights do not match the model"):
        whole = tddfa_v2.mb1()
        shapes = jax.eval_shape(lambda k: whole.init(k, jnp.zeros((1, 120, 120, 3)), train=False), jax.random.key(0))
        interop.load(test_data / "weights/3ddfa_v2/mb05_120x120.pth", shapes)


def test_published_numbers_on_aflw2000(test_data):
    config = experiment.get_config("aflw2000_mb05")
    config.eval.path, config.eval.weights = str(test_data / "aflw2000"), str(test_data / "weights/3ddfa_v2")
    metrics = experiment.build(config).evaluate(None).metrics
    wanted = {"nme": 3.79, "nme_images": 3.35, "renewed_nme": 3.02, "renewed_nme_images": 2.61}
    for name, value in wanted.items():
        assert abs(metrics[name] - value) < 0.01, name


def test_the_branch_of_landmarks_is_of_training_only():
    net = tddfa_v2.Net(experiment.TRUNKS["tiny"])
    images = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(lambda k: net.init(k, images, train=False), jax.random.key(0))

    def outputs(train):
        return jax.eval_shape(lambda v: net.apply(v, images, train=train, mutable=["batch_stats"])[0], variables)

    assert set(outputs(False)) == {"parameters"} and outputs(True)["landmarks"].shape == (2, 136)
    truth = np.random.default_rng(7).uniform(0, 32, (2, 68, 2))
    perfect = (truth / 16 - 1).reshape(2, 136)
    np.testing.assert_allclose(tddfa_v2.landmark_error(jnp.asarray(perfect), truth, 32), 0, atol=1e-6)
    assert tddfa.pixels(jnp.asarray(perfect), 32).shape == (2, 68, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.cost": "wpdc"}, "loss.cost is 'wpdc': expected vdc, fwpdc, joint or meta"),
        ({"model.name": "vgg"}, "model.name is 'vgg': expected one of tiny"),
        ({"loss.frames": 7}, "train.batch_size is 64: expected a multiple of loss.frames, 7"),
        ({"data.kind": "crops"}, "loss.landmarks needs landmarks: expected data.kind face_world"),
    ],
)
def test_bad_settings(changes, message):
    config = experiment.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        experiment.build(config)


@pytest.mark.parametrize("preset", ["synthetic", "stills", "crops_meta"])
def test_rounds_end_with_a_choice(preset):
    """Else the run would give the network of one cost, chosen by nobody."""
    config = experiment.get_config(preset)
    assert experiment.build(config).choose(config.train.steps) == "choice"


def test_normalisation_of_the_crops():
    np.testing.assert_allclose(
        normalize.bgr_symmetric(jnp.array([[[[0, 127, 255]]]])), [[[[0.99609375, -0.00390625, -0.99609375]]]]
    )
