"""PCNet: a confidence such that the worse one of two pictures of a person tells how alike they will be found.

Xie, Byrne, Zisserman. "Inducing predictive uncertainty estimation for face recognition". BMVC 2020. arXiv:2009.00603.
The similarity of two pictures of one person is limited by the worse; so the smaller confidence is regressed to it. The
recogniser must not have been trained on these people, whose pictures it would find too alike: the people are split in
two, a recogniser is trained on each half and used on the other (`experiments.pcnet`).
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
    confidence: jax.Array, embeddings: jax.Array, people: jax.Array, *, worse_only: bool = True
) -> jax.Array:
    """Mean of (similarity - min(q_i, q_j))^2 over the pairs of one person; where both are equal each gets half a slope.

    Args:
      confidence: [N], 0..1.
      embeddings: [N, D] of the fixed recogniser; their cosines are the targets, without gradient.
      people: [N] int.
      worse_only: False regresses the mean of the two confidences, blaming both pictures.

    Returns:
      [] loss; 0 where no two pictures are of one person.
    """
    unit = vectors.unit(embeddings)
    target = jax.lax.stop_gradient(unit @ unit.T)
    first, second = confidence[:, None], confidence[None]
    joint = jnp.minimum(first, second) if worse_only else (first + second) / 2
    pair = (people[:, None] == people) & ~jnp.eye(len(people), dtype=bool)
    return jnp.sum((target - joint) ** 2, where=pair) / jnp.maximum(pair.sum(), 1)


def free_confidences(
    embeddings: np.ndarray, people: np.ndarray, *, worse_only: bool = True, steps: int = 500
) -> np.ndarray:
    """What a network is to learn: confidences [N] of the least loss, every picture's its own, by Adam from 0.5."""
    return np.asarray(_fitted(jnp.asarray(embeddings), jnp.asarray(people), worse_only, steps))


@partial(jax.jit, static_argnums=(2, 3))
def _fitted(embeddings: jax.Array, people: jax.Array, worse_only: bool, steps: int) -> jax.Array:
    tx, start = optax.adam(0.02), jnp.full(len(people), 0.5)
    loss = partial(pair_confidence_loss, embeddings=embeddings, people=people, worse_only=worse_only)
    slope = jax.grad(lambda confidence: len(people) * loss(confidence))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        updates, state = tx.update(slope(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    return lax.scan(step, (start, tx.init(start)), None, steps)[0][0]
