"""MagFace: a universal representation for face recognition and quality assessment.

Meng, Zhao, Huang, Zhou. CVPR 2021. arXiv:2103.06627.
The margin grows with the embedding's length and a regulariser asks for long ones, so pictures that are easy to
recognise get long embeddings and poor ones short: the direction says who it is, the length how good the picture is.

Differs from the authors' code (theirs is "the reference" below): slopes are finite where cos is +-1; the trunk is
ArcFace's IResNet with a learnt scale behind it (batch norm with eps 1e-5 and running averages that move by a tenth,
not 2e-5 and nine tenths; dropout of single numbers, not of whole channels).
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
    """Lengths from `lower` to `upper` (l_a, u_a) get margins from `least` to `most` (l_m, u_m).

    Margins are in radians (Mag-ArcFace) or in cosine (Mag-CosFace). Shorter and longer embeddings count as of length
    `lower` and `upper`, and their length has no gradient. `lambda_g` weighs the regulariser.
    """

    lower: float = 10.0
    upper: float = 110.0
    least: float = 0.45
    most: float = 0.8
    lambda_g: float = 35.0


MAG_ARCFACE = Magnitudes()
MAG_COSFACE = Magnitudes(least=0.35, lambda_g=150.0)


class Magnified(nn.Module):
    """A backbone and a learnt scale for each number of its embeddings: the lengths must be free.

    Attributes:
      backbone: images [N, H, W, 3] -> embeddings [N, D] that end in a batch norm without a scale.
    """

    backbone: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Raw embeddings [N, D]; their length is the quality, see `magnitude`."""
        x = self.backbone(images, train=train)
        return x * self.param("scale", nn.initializers.ones, (x.shape[-1],))


def magnitude(features: jax.Array) -> jax.Array:
    """Length of each raw embedding, the picture's quality; 1e-12 with a slope of 0 for zeros. [..., D] -> [...]."""
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return jnp.sqrt(jnp.maximum(jnp.sum(features * features, -1), arcface.EPS**2))


def margin(length: jax.Array, magnitudes: Magnitudes = MAG_ARCFACE) -> jax.Array:
    """m(a), linear from `least` at `lower` to `most` at `upper` and constant beyond. [...] -> [...]."""
    lower, upper, least, most, _ = _checked(magnitudes)
    return least + (most - least) / (upper - lower) * (jnp.clip(length, lower, upper) - lower)


def regulariser(length: jax.Array, magnitudes: Magnitudes = MAG_ARCFACE) -> jax.Array:
    """g(a) = a / u_a^2 + 1 / a, which falls up to u_a; of lengths within `lower` and `upper`. [...] -> [...]."""
    magnitudes = _checked(magnitudes)
    length = jnp.clip(length, magnitudes.lower, magnitudes.upper)
    return length / magnitudes.upper**2 + 1 / length


def least_lambda_g(magnitudes: Magnitudes, scale: float = 64.0) -> float:
    """The lambda_g from which every embedding has one best length: s K u_a^2 l_a^2 / (u_a^2 - l_a^2), K the slope."""
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
    """Cross-entropy of the softmax with the margin m(a), plus lambda_g g(a). The margin passes its gradient on to a.

    Args:
      features: [N, D] raw embeddings; a row of zeros has cosine 0 with everyone and no slope in its length.
      centres: [C, D] class centres, of any length.
      labels: [N] int, 0..C-1.
      kind: "arcface", cos(theta + m(a)), or "cosface", cos(theta) - m(a).
      magnitudes: limits of length and margin, and lambda_g.
      scale: s.
      easy: no margin where the cosine of the true class is not above 0, as the reference has it.

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
    wanted = jnp.where(true > 0, wanted, 0.0) if easy else wanted
    margins = arcface.Margins(angle=wanted) if kind == "arcface" else arcface.Margins(cosine=wanted)
    logits = arcface.margin_logits(cosine, labels, scale=scale, margins=margins)
    identity = jax.nn.logsumexp(logits, 1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return identity + magnitudes.lambda_g * regulariser(length, magnitudes)


def _checked(magnitudes: Magnitudes) -> Magnitudes:
    if not 0 < magnitudes.lower < magnitudes.upper or magnitudes.least > magnitudes.most:
        raise ValueError(f"{magnitudes}: expected 0 < lower < upper and least <= most")
    return magnitudes
