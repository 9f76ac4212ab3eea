"""MagFace: a universal representation for face recognition and quality assessment.

Meng, Zhao, Huang, Zhou. CVPR 2021. arXiv:2103.06627.
The margin grows with the magnitude of the embedding and a regulariser rewards large magnitudes, so easy images get
large and hard images small magnitudes: the direction encodes the identity, the magnitude the image quality.

Differs from the authors' code ("the reference" below): gradients are finite where cos is +-1; the trunk is ArcFace's
IResNet followed by a learnt scale (batch norm with eps 1e-5 and update rate 0.1, not 2e-5 and 0.9; dropout of single
elements, not of whole channels).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.ops import vectors
from facejax.recognition import arcface

Kind = Literal["arcface", "cosface"]


class Magnitudes(NamedTuple):
    """Magnitudes from `lower` to `upper` (l_a, u_a) map linearly to margins from `least` to `most` (l_m, u_m).

    Margins are in radians (Mag-ArcFace) or in cosine (Mag-CosFace). Magnitudes are clipped to `lower` and `upper`, with
    zero gradient outside. `lambda_g` is the regulariser weight.
    """

    lower: float = 10.0
    upper: float = 110.0
    least: float = 0.45
    most: float = 0.8
    lambda_g: float = 35.0


MAG_ARCFACE = Magnitudes()
MAG_COSFACE = Magnitudes(least=0.35, lambda_g=150.0)


class Magnified(nn.Module):
    """A backbone and a learnt scale per embedding dimension, which leaves the magnitudes free.

    Attributes:
      backbone: images [N, H, W, 3] -> embeddings [N, D] that end in a batch norm without a scale.
    """

    backbone: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Raw embeddings [N, D]; their magnitude is the quality, see `magnitude`."""
        x = self.backbone(images, train=train)
        return x * self.param("scale", nn.initializers.ones, (x.shape[-1],))


def magnitude(features: jax.Array) -> jax.Array:
    """Norm of each raw embedding, the image quality; 1e-12 with zero gradient for zeros. [..., D] -> [...]."""
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return jnp.sqrt(jnp.maximum(jnp.sum(features * features, -1), arcface.EPS**2))


def margin(length: jax.Array, magnitudes: Magnitudes = MAG_ARCFACE) -> jax.Array:
    """m(a), linear from `least` at `lower` to `most` at `upper` and constant outside. [...] -> [...]."""
    lower, upper, least, most, _ = _checked(magnitudes)
    return least + (most - least) / (upper - lower) * (jnp.clip(length, lower, upper) - lower)


def regulariser(length: jax.Array, magnitudes: Magnitudes = MAG_ARCFACE) -> jax.Array:
    """g(a) = a / u_a^2 + 1 / a of magnitudes in `lower`..`upper`; decreases up to u_a. [...] -> [...]."""
    magnitudes = _checked(magnitudes)
    length = jnp.clip(length, magnitudes.lower, magnitudes.upper)
    return length / magnitudes.upper**2 + 1 / length


def least_lambda_g(magnitudes: Magnitudes, scale: float = 64.0) -> float:
    """Smallest lambda_g with a unique optimal magnitude: s K u_a^2 l_a^2 / (u_a^2 - l_a^2), K the margin's slope."""
    lower, upper, least, most, _ = _checked(magnitudes)
    slope = (most - least) / (upper - lower)
    return scale * slope * (upper * lower) ** 2 / (upper**2 - lower**2)


def magface_loss(
    features: jax.Array,
    centres: jax.Array,
    labels: jax.Array,
    *,
    kind: Kind = "arcface",
    magnitudes: Magnitudes = MAG_ARCFACE,
    scale: float = 64.0,
    easy: bool = True,
) -> jax.Array:
    """Cross-entropy of the softmax with margin m(a), plus lambda_g g(a); the margin has a gradient in a.

    Args:
      features: [N, D] raw embeddings; a zero row has cosine 0 with all centres and no gradient in its magnitude.
      centres: [C, D] class centres, of any norm.
      labels: [N] int, 0..C-1.
      kind: "arcface", cos(theta + m(a)), or "cosface", cos(theta) - m(a).
      magnitudes: limits of magnitude and margin, and lambda_g.
      scale: s.
      easy: for "arcface", no margin where the cosine of the true class is 0 or less, as in the reference; "cosface"
        always has its margin.

    Returns:
      [N] losses, at least float32.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"magface_loss: kind {kind!r}, expected one of {get_args(Kind)}")
    if features.ndim != 2 or centres.shape[1:] != features.shape[1:] or labels.shape != features.shape[:1]:
        raise ValueError(
            f"magface_loss: features {features.shape}, centres {centres.shape} and labels {labels.shape}, "
            "expected [N, D], [C, D] and [N]"
        )
    length = magnitude(features)
    cosine = vectors.unit(features) @ vectors.unit(centres).T
    true = jnp.take_along_axis(cosine, labels[:, None], 1)[:, 0]
    wanted = margin(length, magnitudes)
    if kind == "cosface":
        margins = arcface.Margins(cosine=wanted)
    else:
        margins = arcface.Margins(angle=jnp.where(true > 0, wanted, 0.0) if easy else wanted)
    logits = arcface.margin_logits(cosine, labels, scale=scale, margins=margins)
    identity = jax.nn.logsumexp(logits, 1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return identity + magnitudes.lambda_g * regulariser(length, magnitudes)


def _checked(magnitudes: Magnitudes) -> Magnitudes:
    if not 0 < magnitudes.lower < magnitudes.upper or magnitudes.least > magnitudes.most:
        raise ValueError(f"{magnitudes}: expected 0 < lower < upper and least <= most")
    return magnitudes
