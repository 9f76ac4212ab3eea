"""RankIQA: image quality learnt from images at increasing levels of distortion, then from a few rated ones.

Liu, van de Weijer, Bagdanov. "RankIQA: learning from rankings for no-reference image quality assessment". ICCV 2017.
arXiv:1707.08347. The order of two levels of a distortion is known without labels: a network learns to rank all pairs of
a batch in one pass, and is then fine-tuned by regression.

Differs from the authors' code: scores are always quality, higher is better; random crops may touch the last row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def ranking_loss(scores: jax.Array, level: jax.Array, group: jax.Array, *, margin: float = 10.0) -> jax.Array:
    """Hinges over all pairs of a group whose levels differ: the less distorted image leads by the margin (Eq. 5).

    The sum is divided by N, which includes images that are alone in their group.

    Args:
      scores: [N], higher for better images.
      level: [N] int strength of the distortion, 0 is the least.
      group: [N] int; one kind of distortion. Pairs may show different contents.
      margin: epsilon.

    Returns:
      [] their sum divided by the number of images, as in the authors' layer.
    """
    if not scores.shape == level.shape == group.shape:
        raise ValueError(f"ranking_loss: scores {scores.shape}, level {level.shape}, group {group.shape}: expected [N]")
    better = (level[:, None] < level) & (group[:, None] == group)
    hinge = jnp.maximum(margin - (scores[:, None] - scores), 0.0)
    return jnp.sum(hinge, where=better) / len(scores)
