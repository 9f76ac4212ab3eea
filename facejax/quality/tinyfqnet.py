"""tinyFQnet: a quality score from a network of 21 thousand parameters.

Peng, Liu, Yang, Zhang, Li, Xu. "Deep tiny network for recognition-oriented face image quality assessment". 2021.
arXiv:2106.04852. The quality of an image is the cosine between its embedding and the centre of its person's, under a
frozen recogniser. A tiny network learns to predict it from the image alone.

Chosen here, not stated in the paper: the layers (21,473 parameters here, 21.8 thousand published), the squared
error, and sampling that makes ten bins of the labels equally frequent.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.nn.blocks import ConvNorm
from facejax.ops import vectors

BLOCKS = ((32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 2), (64, 1))
"""(channels, stride) of the separable blocks."""


class TinyFQNet(nn.Module):
    """Faces in, scores out.

    Attributes:
      axis_name: shares batch statistics over this mapped axis.
      dtype: of the convolutions.
    """

    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] in -1..1 -> [N]."""
        block = partial(ConvNorm, axis_name=self.axis_name, dtype=self.dtype)
        x = block(16, 3, 2, 1, name="stem")(images, train=train)
        for i, (channels, stride) in enumerate(BLOCKS):
            x = block(x.shape[-1], 3, stride, 1, groups=x.shape[-1], name=f"depthwise{i}")(x, train=train)
            x = block(channels, 1, name=f"pointwise{i}")(x, train=train)
        return nn.Dense(1, name="score")(x.astype(jnp.float32).mean((1, 2)))[:, 0]


def centre_cosine(features: np.ndarray, people: np.ndarray, *, leave_one_out: bool = True) -> np.ndarray:
    """Labels [N]: the cosine of every embedding and its person's centre, the mean of embeddings of unit length.

    Args:
      features: [N, D], of any length.
      people: [N] int.
      leave_one_out: the centre excludes the image itself.

    Raises:
      ValueError: a person with one image, with `leave_one_out`.
    """
    rows = vectors.unit_rows(features, np.float64)
    _, place, counts = np.unique(people, return_inverse=True, return_counts=True)
    if leave_one_out and counts.min() < 2:
        raise ValueError(f"{np.sum(counts < 2)} people have one image: expected two or more of each")
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, place, rows)
    centre = sums[place] - rows if leave_one_out else sums[place]
    return np.sum(rows * vectors.unit_rows(centre), 1).astype(np.float32)


def balanced_draws(rng: np.random.Generator, labels: np.ndarray, bins: int = 10) -> np.ndarray:
    """N random indices into labels [N], such that each bin of the labels' range is equally likely."""
    edges = np.linspace(labels.min(), labels.max(), bins + 1)
    bin_of = np.clip(np.searchsorted(edges, labels, side="right") - 1, 0, bins - 1)
    chance = 1 / np.bincount(bin_of, minlength=bins)[bin_of]
    return rng.choice(len(labels), len(labels), p=chance / chance.sum())
