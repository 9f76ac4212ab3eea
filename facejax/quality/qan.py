"""QAN: one embedding for a set of images, their mean weighted by a quality that a loss on sets trains.

Liu, Yan, Ouyang. "Quality aware network for set to set recognition". CVPR 2017. arXiv:1704.03373. A trunk embeds every
image, a branch predicts a quality in 0..1 for each. The losses are a softmax over people for each image and a triplet
loss of sets, which lowers the weight of harmful images.

Differs from the authors' code (that of the part-based successor, with one part): no contrastive loss, one softmax.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.conv import Conv
from facejax.ops import vectors
from facejax.ops.pooling import avg_pool, max_pool


class QualityBranch(nn.Module):
    """Two 3x3 convolutions, pooling, dense, sigmoid, on a map of the trunk: [N, H, W, C] -> [N] in 0..1.

    Only the pooling and the sigmoid are non-linear.

    Attributes:
      features: channels.
      stem: begins with a 7x7 convolution of stride 2 and pooling, for images in place of maps, as the authors' code.
    """

    features: int = 64
    stem: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        small = nn.initializers.normal(0.01)
        if self.stem:
            x = Conv(self.features, 7, 2, 3, use_bias=True, kernel_init=small, name="conv1")(x)
            x = max_pool(x, (3, 3), (2, 2), ((0, 1), (0, 1)))
        for i in (2, 3):
            x = Conv(self.features, 3, padding=1, use_bias=True, kernel_init=small, name=f"conv{i}")(x)
        window = min(7, *x.shape[1:3])
        x = avg_pool(x, (window, window), (window, window))
        return jax.nn.sigmoid(nn.Dense(1, kernel_init=small, name="out")(x.reshape(x.shape[0], -1))[:, 0])


def set_triplet_loss(sets: jax.Array, people: jax.Array, *, margin: float = 1.2) -> jax.Array:
    """max(0, |a - p|^2 - |a - n|^2 + margin) over all triplets of a batch, on embeddings of unit length.

    Args:
      sets: [S, D].
      people: [S] int.
      margin: delta.

    Returns:
      [] the mean over all triplets of the batch; 0 where there is none.
    """
    unit = vectors.unit(sets)
    distance = 2 - 2 * unit @ unit.T
    same = people[:, None] == people
    positive, negative = same & ~jnp.eye(len(people), dtype=bool), ~same
    hinge = jnp.maximum(distance[:, :, None] - distance[:, None, :] + margin, 0.0)
    triplet = positive[:, :, None] & negative[:, None, :]
    return jnp.sum(hinge, where=triplet) / jnp.maximum(triplet.sum(), 1)
