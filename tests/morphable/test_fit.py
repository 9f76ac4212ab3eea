"""The landmark fit against SciPy's least squares, and on faces of known parameters."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares

from facejax.morphable import fit, parameters
from facejax.morphable.parameters import Layout, LinearFace, Parameters
from facejax.ops import rotation

LAYOUT = Layout(4, 2)
ANGLES = np.float32([[0.1, 0.2, -0.1], [-0.3, 1.2, 0.3], [0.2, -1.4, 0.1]])


@pytest.fixture(scope="module")
def face():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(30, 3)) * 1e5  # in the unit of the Basel model
    bases = rng.normal(size=(30, 3, 6)) * 1e4
    arrays = (jnp.asarray(x, jnp.float32) for x in (mean, bases))
    return LinearFace(*arrays, jnp.zeros((0, 3), jnp.int32), jnp.arange(30), LAYOUT)


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(1)
    pose = parameters.compose(
        jnp.full(3, 5e-4), rotation.from_euler(ANGLES), jnp.asarray(np.c_[rng.uniform(40, 80, (3, 2)), np.zeros(3)])
    )
    coefficients = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    return parameters.join(Parameters(pose.astype(jnp.float32), coefficients[:, :4], coefficients[:, 4:]))


def test_true_parameters_come_back(face, truth):
    points = parameters.reconstruct(face, truth)[..., :2]
    found = fit.fit_landmarks(face, points, prior=100.0, noise=0.01, steps=12)
    np.testing.assert_allclose(parameters.reconstruct(face, found)[..., :2], points, atol=0.02)
    np.testing.assert_allclose(found[:, 12:], truth[:, 12:], atol=0.01)
    np.testing.assert_allclose(found[:, :11], truth[:, :11], rtol=1e-2, atol=1e-6)
    np.testing.assert_array_equal(found[:, 11], 0)


def test_minimum_is_scipys(face, truth):
    rng = np.random.default_rng(2)
    points = np.asarray(parameters.reconstruct(face, truth)[..., :2]) + rng.normal(size=(3, 30, 2))
    weights = (rng.random((3, 30)) > 0.3).astype(np.float32)
    prior, noise = np.array([1, 0.5, 2, 1, 1, 3.0]), 1.5
    found = np.asarray(
        fit.fit_landmarks(face, jnp.asarray(points, jnp.float32), weights, prior=prior, noise=noise, steps=20)
    )
    mean, bases = np.asarray(face.mean, np.float64), np.asarray(face.bases, np.float64)

    def residuals(u, i):
        turn = np.asarray(rotation.from_quaternion(jnp.asarray(u[:4], jnp.float32)), np.float64)
        flat = np.exp(u[4]) * 1e-4 * (mean + bases @ u[7:]) @ turn.T
        error = (flat[:, :2] + u[5:7] - points[i]) * np.sqrt(weights[i])[:, None] / noise
        return np.concatenate([error.ravel(), u[7:] / prior])

    for i in range(3):
        scale, turn, shift = parameters.decompose(parameters.split(jnp.asarray(found[i]), LAYOUT).pose)
        start = np.r_[rotation.to_quaternion(turn), np.log(scale / 1e-4), shift[:2], found[i, 12:]]
        own = (residuals(start, i) ** 2).sum()
        best = 2 * least_squares(residuals, start, args=(i,), diff_step=1e-4).cost
        assert own <= best * (1 + 1e-4)
        far = start + np.r_[np.zeros(7), np.full(6, 0.3)]
        assert own < (residuals(far, i) ** 2).sum()


def test_poses_of_known_faces(face, truth):
    shapes = parameters.model_shape(face, parameters.split(truth, LAYOUT)) / 1e5
    pose = parameters.compose(jnp.full(3, 20.0), rotation.from_euler(ANGLES), jnp.array([[5.0, 9.0, 0.0]] * 3))
    points = parameters.place(shapes, pose)[..., :2]
    np.testing.assert_allclose(fit.fit_pose(shapes, points), pose, rtol=1e-3, atol=1e-3)


def test_bad_input(face):
    with pytest.raises(ValueError, match=r"points \(2, 68, 2\), expected \[N, 30, 2\]"):
        fit.fit_landmarks(face, jnp.zeros((2, 68, 2)))
    with pytest.raises(ValueError, match="expected"):
        fit.fit_pose(jnp.zeros((2, 5, 3)), jnp.zeros((2, 4, 2)))
