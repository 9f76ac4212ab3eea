"""RankIQA: image quality learnt from pictures that were made worse step by step, then from a few labelled ones.

Liu, van de Weijer, Bagdanov. "RankIQA: learning from rankings for no-reference image quality assessment". ICCV 2017.
arXiv:1707.08347. Which of two levels of a distortion is worse is known for nothing: a network learns to rank, every
pair of a batch from one pass, and is then fine-tuned by regression.

Differs from the authors' code: scores are always quality, higher is better; random crops may touch the last row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def ranking_loss(scores: jax.Array, level: jax.Array, group: jax.Array, *, margin: float = 10.0) -> jax.Array:
    """Hinges over all pairs of a group whose levels differ: the less distorted shall lead by the margin (Eq. 5).

    The sum is divided by all N scores, those whose group is theirs alone included.

    Args:
      scores: [N], higher for better pictures.
      level: [N] int strength of the distortion, 0 is the least.
      group: [N] int; pictures of one kind of distortion. Pairs may have different contents.
      margin: epsilon.

    Returns:
      [] their sum divided by the number of pictures, as the authors' layer has it.
    """
    if not scores.shape == level.shape == group.shape:
        raise ValueError(f"ranking_loss: scores {scores.shape}, level {level.shape}, group {group.shape}: expected [N]")
    better = (level[:, None] < level) & (group[:, None] == group)
    hinge = jnp.maximum(margin - (scores[:, None] - scores), 0.0)
    return jnp.sum(hinge, where=better) / len(scores)
