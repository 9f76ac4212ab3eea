"""FaceQnet: a recognition trunk with two new layers predicts the similarity to the person's gallery image.

Hernandez-Ortega, Galbally, Fierrez, Haraksim, Beslay. "FaceQnet: quality assessment for face recognition based on deep
learning". ICB 2019. arXiv:1904.01740 (v0). Hernandez-Ortega, Galbally, Fierrez, Beslay. "Biometric quality: review and
application to face recognition with FaceQnet". 2020. arXiv:2006.03298 (v1). The label is the similarity to the most
compliant image of the person, scaled to 0..1; v1 takes the mean over several recognisers.

Chosen here, not stated in the papers: the width of the first new layer.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax.backbones import resnet
from facejax.ops import vectors


class FaceQnet(nn.Module):
    """Trunk, dropout, two dense layers.

    Attributes:
      trunk: module of (images, train) -> [N, F]; frozen.
      hidden: width of the first new layer.
      dropout: before it; used in v1.
    """

    trunk: nn.Module
    hidden: int = 32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] -> [N]; clipped to 0..1 except in training."""
        x = jax.lax.stop_gradient(self.trunk(images, train=False))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.astype(jnp.float32))
        score = nn.Dense(1, name="score")(nn.relu(nn.Dense(self.hidden, name="hidden")(x)))[:, 0]
        return score if train else jnp.clip(score, 0.0, 1.0)


class Pooled(nn.Module):
    """The published trunk: ResNet-50 of VGGFace2, which takes BGR of 0..255, to the mean of its last map."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] RGB in -1..1 -> [N, 2048]."""
        raw = images[..., ::-1] * 127.5 + 127.5
        maps = resnet.resnet50(stride_in_1x1=True, name="resnet")(raw, train=train, features=True)
        return maps["c5"].mean((1, 2))


def gallery_labels(features: np.ndarray, people: np.ndarray, compliance: np.ndarray) -> np.ndarray:
    """Labels [N] in 0..1: the cosine to the person's most compliant image, min-max scaled over all other images.

    An image is not its own mate: the label of a gallery image is NaN.

    Args:
      features: [N, D], of any length.
      people: [N] int.
      compliance: [N] with the rules for passport photographs; the first of the highest is the gallery image.

    Raises:
      ValueError: every person has one image, or all cosines are equal.
    """
    unit = vectors.unit_rows(features)
    _, person = np.unique(people, return_inverse=True)
    order = np.lexsort((np.arange(len(people)), -np.asarray(compliance), person))
    first = order[np.r_[True, np.diff(person[order]) > 0]]
    cosine = np.sum(unit * unit[first][person], 1)
    cosine[first] = np.nan
    low, high = np.nanmin(cosine, initial=np.inf), np.nanmax(cosine, initial=-np.inf)
    if not high - low >= 1e-6:
        raise ValueError(
            f"gallery_labels: {len(cosine) - len(first)} images beside the gallery with equal cosines: "
            "expected several images of a person"
        )
    return ((cosine - low) / (high - low)).astype(np.float32)


def fused_labels(labels: np.ndarray) -> np.ndarray:
    """v1: the mean over recognisers, [R, N] in 0..1 -> [N]; NaN where one is NaN."""
    if labels.ndim != 2 or ((labels < 0) | (labels > 1)).any():
        low, high = np.nanmin(labels), np.nanmax(labels)
        raise ValueError(f"fused_labels: labels {labels.shape} of {low} to {high}: expected [R, N] in 0..1")
    return np.mean(labels, 0, dtype=np.float32)
