"""PCNet: a confidence such that the smaller one of two images of a person predicts their similarity.

Xie, Byrne, Zisserman. "Inducing predictive uncertainty estimation for face recognition". BMVC 2020. arXiv:2009.00603.
The worse image limits the similarity of two images of one person, so the smaller confidence is regressed to it. The
recogniser must not have been trained on these people, for its similarities of training images are too high: the people
are split in two, a recogniser is trained on each half and used on the other (`experiments.pcnet`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from facejax.ops import vectors


def pair_confidence_loss(
    confidence: jax.Array, embeddings: jax.Array, people: jax.Array, *, minimum_only: bool = True
) -> jax.Array:
    """Mean of (similarity - min(q_i, q_j))^2 over the pairs of one person; equal confidences share the gradient.

    Args:
      confidence: [N], 0..1.
      embeddings: [N, D] of the fixed recogniser; their cosines are the targets, without gradient.
      people: [N] int.
      minimum_only: False regresses the mean of the two confidences.

    Returns:
      [] loss; 0 where no two images are of one person.
    """
    unit = vectors.unit(embeddings)
    target = jax.lax.stop_gradient(unit @ unit.T)
    first, second = confidence[:, None], confidence[None]
    joint = jnp.minimum(first, second) if minimum_only else (first + second) / 2
    pair = (people[:, None] == people) & ~jnp.eye(len(people), dtype=bool)
    return jnp.sum((target - joint) ** 2, where=pair) / jnp.maximum(pair.sum(), 1)


def free_confidences(
    embeddings: np.ndarray, people: np.ndarray, *, minimum_only: bool = True, steps: int = 500
) -> np.ndarray:
    """Confidences [N] that minimise the loss without a network, by Adam from 0.5: the signal that a network learns.

    Raises:
      ValueError: an embedding is not finite.
    """
    vectors.check_finite(embeddings)
    return np.asarray(_fitted(jnp.asarray(embeddings), jnp.asarray(people), minimum_only, steps))


@partial(jax.jit, static_argnums=(2, 3))
def _fitted(embeddings: jax.Array, people: jax.Array, minimum_only: bool, steps: int) -> jax.Array:
    tx, start = optax.adam(0.02), jnp.full(len(people), 0.5)
    loss = partial(pair_confidence_loss, embeddings=embeddings, people=people, minimum_only=minimum_only)
    gradient = jax.grad(lambda confidence: len(people) * loss(confidence))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        updates, state = tx.update(gradient(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    return lax.scan(step, (start, tx.init(start)), None, steps)[0][0]
