"""Losses of generators and discriminators, and penalties on gradients with respect to images.

Scores are a discriminator's raw outputs. Losses are unreduced, in float32: of scores [N] come [N] losses.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Score = Callable[[jax.Array], jax.Array]


def wasserstein_discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """D(fake) - D(real) (Arjovsky et al., arXiv:1701.07875)."""
    return _wide(fake) - _wide(real)


def wasserstein_generator_loss(fake: jax.Array) -> jax.Array:
    """-D(fake); also the generator's loss beside a hinge."""
    return -_wide(fake)


def logistic_discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """softplus(D(fake)) + softplus(-D(real)) (Goodfellow et al., arXiv:1406.2661)."""
    return jax.nn.softplus(_wide(fake)) + jax.nn.softplus(-_wide(real))


def logistic_generator_loss(fake: jax.Array) -> jax.Array:
    """softplus(-D(fake)): the non-saturating form."""
    return jax.nn.softplus(-_wide(fake))


def least_squares_discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """(D(real) - 1)^2 + D(fake)^2 (Mao et al., arXiv:1611.04076, a factor of 1/2 apart)."""
    return (_wide(real) - 1) ** 2 + _wide(fake) ** 2


def least_squares_generator_loss(fake: jax.Array) -> jax.Array:
    """(D(fake) - 1)^2."""
    return (_wide(fake) - 1) ** 2


def hinge_discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """max(0, 1 - D(real)) + max(0, 1 + D(fake)) (Lim and Ye, arXiv:1705.02894)."""
    return jax.nn.relu(1 - _wide(real)) + jax.nn.relu(1 + _wide(fake))


def drift_penalty(real: jax.Array) -> jax.Array:
    """D(real)^2, which keeps Wasserstein scores near zero (PG-GAN, appendix A.1)."""
    return _wide(real) ** 2


def input_gradient(score: Score, x: jax.Array) -> jax.Array:
    """The gradient of sum(score(x)) with respect to `x`, for penalties that are differentiated in their turn.

    It equals `jax.grad` in value and in its own gradient, with respect to `x` and to all that `score` closes over. That
    second gradient is computed forward over reverse: the gradient of the directional derivative along the cotangent. It
    then contains first derivatives of layers only, which for convolutions on a CPU runs up to six times as fast as
    reverse over reverse. It has no third derivative in forward mode.

    Args:
      score: x -> [N] or any shape. Where samples depend on each other (minibatch standard deviation), the gradient of
        the sum contains these terms, as in PyTorch's and TensorFlow's code.
      x: float32, [N, ...].
    """
    closed, constants = jax.closure_convert(score, x)
    return _input_gradient(closed, x, constants)


def squared_gradient(score: Score, images: jax.Array) -> jax.Array:
    """Squared norm of the gradient at every image, [N]: R1 at real and R2 at generated images, without their gamma / 2.

    Mescheder et al., "Which training methods for GANs do actually converge?", arXiv:1801.04406.
    """
    return jnp.sum(_wide(input_gradient(score, images)) ** 2, range(1, images.ndim))


def gradient_penalty(score: Score, images: jax.Array, target: float = 1.0) -> jax.Array:
    """(norm of the gradient - target)^2 at every image, [N] (WGAN-GP: Gulrajani et al., arXiv:1704.00028).

    Its gradient is finite, zero, where the norm is zero. PG-GAN multiplies by 10 / target^2.
    """
    squared = squared_gradient(score, images)
    positive = squared > 0
    norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)
    return (norm - target) ** 2


def mixed_images(rng: jax.Array, real: jax.Array, fake: jax.Array) -> jax.Array:
    """Random points between pairs of images, where WGAN-GP's penalty is taken: one uniform weight for each pair."""
    weight = jax.random.uniform(rng, (len(real), *(1,) * (real.ndim - 1)))
    return real + weight * (fake - real)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, np.float32))


def _gradient(score, x, constants):
    return jax.grad(lambda x: jnp.sum(_wide(score(x, *constants))))(x)


_input_gradient = jax.custom_vjp(_gradient, nondiff_argnums=(0,))


def _forward(score, x, constants):
    return _gradient(score, x, constants), (x, constants)


def _backward(score, saved, direction):
    def along(x, constants):
        return jax.jvp(lambda x: jnp.sum(_wide(score(x, *constants))), (x,), (direction,))[1]

    return jax.grad(along, (0, 1))(*saved)


_input_gradient.defvjp(_forward, _backward)
