"""Losses by hand, closed forms of the penalties, and their second derivatives beside reverse over reverse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.nn.equalized import minibatch_stddev
from facejax.ops import adversarial

REAL, FAKE = np.float32([2.0, -0.5]), np.float32([0.5, -3.0])


def test_losses_by_hand():
    expected = {
        "wasserstein_discriminator_loss": [-1.5, -2.5],
        "logistic_discriminator_loss": np.log1p(np.exp([0.5, -3.0])) + np.log1p(np.exp([-2.0, 0.5])),
        "least_squares_discriminator_loss": [1.25, 11.25],
        "hinge_discriminator_loss": [1.5, 1.5],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(adversarial, name)(REAL, FAKE), values, rtol=1e-6)
    np.testing.assert_allclose(adversarial.wasserstein_generator_loss(FAKE), [-0.5, 3.0])
    np.testing.assert_allclose(adversarial.logistic_generator_loss(FAKE), np.log1p(np.exp([-0.5, 3.0])), rtol=1e-6)
    np.testing.assert_allclose(adversarial.least_squares_generator_loss(FAKE), [0.25, 16.0])
    np.testing.assert_allclose(adversarial.drift_penalty(REAL), [4.0, 0.25])


def test_losses_are_computed_in_float32():
    large = jnp.asarray([1000.0, -1000.0], jnp.bfloat16)
    for name in ("wasserstein", "logistic", "least_squares"):
        losses = getattr(adversarial, f"{name}_discriminator_loss")(large, -large)
        assert losses.dtype == jnp.float32 and np.isfinite(losses).all()


def test_penalties_of_a_linear_score():
    """||grad|| is the length of the weights: R1 is its square, the penalty (length - target)^2."""
    weights, images = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
    weights = weights[0]
    length = np.linalg.norm(weights)

    def score(images):
        return jnp.einsum("nhwc,hwc->n", images, weights)

    np.testing.assert_allclose(adversarial.squared_gradient(score, images), np.full(3, length**2), rtol=1e-5)
    np.testing.assert_allclose(adversarial.gradient_penalty(score, images), np.full(3, (length - 1) ** 2), rtol=1e-5)
    np.testing.assert_allclose(adversarial.gradient_penalty(score, images, length), np.zeros(3), atol=1e-9)


def test_the_penalty_of_a_flat_score_is_finite():
    def loss(scale):
        return adversarial.gradient_penalty(lambda x: scale * x.sum((1, 2, 3)), jnp.ones((2, 2, 2, 1))).sum()

    value, gradient = jax.value_and_grad(loss)(0.0)
    assert (value, gradient) == (2.0, 0.0)


def score(params, images):
    """Curved in images and parameters, with samples that depend on each other."""
    x = jnp.tanh(jnp.einsum("nhwc,cd->nhwd", images, params["a"]))
    x = minibatch_stddev(x, 2)
    return (x.sum((1, 2)) ** 2 @ params["b"])[:, 0]


@pytest.mark.parametrize("name", ["input_gradient", "squared_gradient", "gradient_penalty"])
def test_second_derivatives_equal_reverse_over_reverse(name):
    rng = np.random.default_rng(1)
    params = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=(5, 1)).astype(np.float32)}
    images = rng.normal(size=(4, 3, 2, 3)).astype(np.float32)
    weights = rng.normal(size=(4, 3, 2, 3)).astype(np.float32)

    def reduced(gradient):
        if name == "input_gradient":
            return jnp.sum(weights * gradient)
        squared = jnp.sum(gradient**2, (1, 2, 3))
        each = squared if name == "squared_gradient" else (jnp.sqrt(squared) - 1) ** 2
        return each @ weights[:, 0, 0, 0]

    def plain(params, images):
        return reduced(jax.grad(lambda x: score(params, x).sum())(images))

    def ours(params, images):
        found = getattr(adversarial, name)(lambda x: score(params, x), images)
        return jnp.sum(weights * found) if found.ndim > 1 else found @ weights[:, 0, 0, 0]

    found, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(params, images) for f in (ours, plain))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


def test_mixed_images_have_one_weight_each():
    real, fake = np.zeros((5, 2, 2, 3), np.float32), np.ones((5, 2, 2, 3), np.float32)
    mixed = np.asarray(adversarial.mixed_images(jax.random.key(0), real, fake)).reshape(5, -1)
    assert (mixed == mixed[:, :1]).all() and len(set(mixed[:, 0])) == 5
    assert mixed.min() >= 0 and mixed.max() < 1
