"""SER-FIQ: a face image is good when its embedding hardly changes under dropout.

Terhörst, Kolf, Damer, Kirchbuchner, Kuijper. "SER-FIQ: unsupervised estimation of face image quality based on
stochastic embedding robustness". CVPR 2020. arXiv:2003.09373. The recogniser must have been trained with dropout; only
the layers after the dropout are computed again for each mask. A recogniser without dropout needs a small trained
network on top of it (`OnTop`).
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.ops import vectors


def robustness(embeddings: jax.Array, *, as_printed: bool = False) -> jax.Array:
    """Quality from stochastic embeddings.

    Args:
      embeddings: [T, N, D] of the same N images, T at least 2; normalised here. A zero embedding is orthogonal to
        all others.
      as_printed: Eq. 2, whose sum over pairs is divided by T^2 / 2; otherwise, as the authors' code, the mean over the
        T (T - 1) / 2 pairs.

    Returns:
      [N] in 0..1: 2 * sigmoid(-mean distance); 1 where all embeddings are equal.
    """
    count = embeddings.shape[0]
    if embeddings.ndim != 3 or count < 2:
        raise ValueError(f"robustness: embeddings of shape {embeddings.shape}, expected [T, N, D] with T of 2 or more")
    unit = jnp.swapaxes(vectors.unit(embeddings), 0, 1)
    near = unit - unit[:, :1]  # small differences keep their precision
    square = jnp.sum(near * near, -1)
    square = square[:, :, None] + square[:, None] - 2 * jnp.einsum("nid,njd->nij", near, near)
    none = ~jnp.any(unit, -1)
    square = jnp.where(none[:, :, None] | none[:, None], 2.0, jnp.maximum(square, 0.0))
    distance = jnp.where(jnp.eye(count, dtype=bool), 0.0, jnp.sqrt(square))
    pairs = count * count if as_printed else count * (count - 1)
    return 2 * jax.nn.sigmoid(-distance.sum((1, 2)) / pairs)


def stochastic_embeddings(head: Callable[[jax.Array], jax.Array], rng: jax.Array, masks: int) -> jax.Array:
    """The head's embeddings under `masks` dropout masks: key -> [N, D] becomes [masks, N, D].

    Args:
      head: the layers after the trunk, closed over the trunk's features; takes the key of its dropout.
      rng: of all masks.
      masks: T.
    """
    return jax.lax.map(head, jax.random.split(rng, masks))


def rescaled(quality: jax.Array, alpha: float = 130.0, centre: float = 0.88) -> jax.Array:
    """The authors' scaling of the scores to 0..1, for display only: in float32 the highest become equal."""
    return jax.nn.sigmoid(alpha * (quality - centre))


class OnTop(nn.Module):
    """For a recogniser without dropout: two layers on its embeddings, trained to classify the training people.

    Attributes:
      num_classes: people.
      widths: of both layers; the second's output is the stochastic embedding.
      dropout: before either layer.
    """

    num_classes: int
    widths: tuple[int, int] = (128, 512)
    dropout: float = 0.5

    @nn.compact
    def __call__(self, embeddings: jax.Array, *, drop: bool, classify: bool = False) -> jax.Array:
        """[N, D] -> [N, widths[1]], or logits of people [N, C]."""
        dropout = nn.Dropout(self.dropout, deterministic=not drop)
        x = nn.relu(nn.Dense(self.widths[0], name="first")(dropout(embeddings)))
        x = nn.Dense(self.widths[1], name="second")(dropout(x))
        logits = nn.Dense(self.num_classes, name="people")(nn.relu(x))
        return logits if classify else x
