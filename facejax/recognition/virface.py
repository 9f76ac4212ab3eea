"""VirFace: enhancing face recognition via unlabelled shallow data.

Li, Guo, Li, Chen, Wang, Zuo, Zhang. CVPR 2021, pp. 14729-14738.
Unlabelled data with one or two images per identity cannot be clustered, but its identities are distinct. VirClass makes
every unlabelled embedding of the batch a virtual class, a negative for the labelled faces. VirInstance samples further
embeddings of each virtual class from a generator, trained on labelled identities, and classifies them.

Differs from the paper: the instance loss is the mean over the samples, as in the authors' code ("the reference" below),
not their sum. Differs from the reference: gradients are finite where cos is +-1; aligned images are not cropped to 150
pixels first.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from facejax.backbones.resnet import ResidualBlock
from facejax.nn.conv import Conv
from facejax.nn.init import kaiming_normal_fan_out, torch_default
from facejax.nn.norm import BatchNorm
from facejax.ops import vectors
from facejax.recognition.arcface import ARCFACE, Margins, margin_logits

Dtype = Any


class FaceResNet(nn.Module):
    """ResNet for small faces: a stem of stride 1 without pooling, four stages of stride 2, and one dense layer.

    Attributes:
      depths: blocks of each stage.
      bottleneck: whether blocks have three convolutions instead of two.
      widths: inner channels of each stage; the first is also the width of the stem.
      embedding_size: dimension D of the embedding.
      axis_name: mapped axis over which to share batch statistics (the reference does not share them).
      dtype: of the trunk; the dense layer and its batch norm are float32.
    """

    depths: tuple[int, ...]
    bottleneck: bool
    widths: tuple[int, ...] = (64, 128, 256, 512)
    embedding_size: int = 512
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] RGB, (x - 127.5) / 127.5 -> embeddings [N, D], not normalised."""
        norm = partial(BatchNorm, self.axis_name)
        stem = Conv(self.widths[0], 7, padding=1, kernel_init=kaiming_normal_fan_out, dtype=self.dtype, name="conv1")
        x = nn.relu(norm(dtype=self.dtype, name="bn1")(stem(images), train=train))
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for block in range(depth):
                x = ResidualBlock(
                    width,
                    2 if block == 0 else 1,
                    1,
                    self.bottleneck,
                    Conv,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"layer{stage}_{block}",
                )(x, train=train)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        x = nn.Dense(self.embedding_size, kernel_init=torch_default, name="fc")(x)
        return norm(name="features")(x, train=train)


faceresnet18 = partial(FaceResNet, (2, 2, 2, 2), False)
faceresnet34 = partial(FaceResNet, (3, 4, 6, 3), False)
faceresnet50 = partial(FaceResNet, (3, 4, 6, 3), True)
faceresnet101 = partial(FaceResNet, (3, 4, 23, 3), True)
faceresnet152 = partial(FaceResNet, (3, 8, 36, 3), True)


class Generated(NamedTuple):
    """Output of the generator for embeddings [N, D].

    Attributes:
      samples: [S, N, D] generated embeddings, of any norm.
      mean, log_variance: [N, Z], of the latent code.
    """

    samples: jax.Array
    mean: jax.Array
    log_variance: jax.Array


class Generator(nn.Module):
    """Encodes an embedding to a Gaussian code and decodes samples of the code to embeddings.

    Attributes:
      hidden: width of the layers before and after the code.
      latent: dimension Z of the code.
    """

    hidden: int = 256
    latent: int = 128

    @nn.compact
    def __call__(self, features: jax.Array, rng: jax.Array, *, draws: int = 1) -> Generated:
        """Features [N, D] of unit length -> `draws` samples each; `rng` is the key of the draws."""
        dense = partial(nn.Dense, kernel_init=torch_default)
        x = nn.relu(dense(self.hidden, name="en1")(features))
        mean, log_variance = dense(self.latent, name="en_mean")(x), dense(self.latent, name="en_var")(x)
        noise = jax.random.normal(rng, (draws, *mean.shape))
        x = nn.relu(dense(self.hidden, name="de1")(mean + jnp.exp(log_variance / 2) * noise))
        return Generated(dense(features.shape[-1], name="de2")(x), mean, log_variance)


def fit_error(samples: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared difference, over D, of rows [..., D] after normalisation to unit length. -> [...]."""
    return jnp.mean((vectors.unit(samples) - vectors.unit(targets)) ** 2, -1)


def divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL of a Gaussian code [N, Z] from the standard normal, the mean over Z, not the sum. -> [N]."""
    return -0.5 * jnp.mean(1 + log_variance - mean**2 - jnp.exp(log_variance), -1)


def unclaimed(unlabelled: jax.Array, centres: jax.Array, *, scale: float = 32.0, limit: float = 0.8) -> jax.Array:
    """Whether all class probabilities of unlabelled embeddings [U, D] are below `limit`; centres [C, D]. -> [U] bool.

    Excludes labelled identities among the unlabelled data from the virtual classes. The reference's runs do not use it.
    """
    logits = scale * vectors.unit(lax.stop_gradient(unlabelled)) @ vectors.unit(lax.stop_gradient(centres)).T
    return jax.nn.softmax(logits).max(1) < limit


def virclass_loss(
    features: jax.Array,
    centres: jax.Array,
    labels: jax.Array,
    unlabelled: jax.Array,
    *,
    keep: jax.Array | None = None,
    scale: float = 32.0,
    margins: Margins = ARCFACE,
) -> jax.Array:
    """ArcFace loss of labelled faces over their classes and one virtual class per unlabelled embedding.

    Args:
      features: [N, D] labelled embeddings, of any norm.
      centres: [C, D] class centres, of any norm.
      labels: [N] int, 0..C-1.
      unlabelled: [U, D] embeddings, the virtual class centres, with gradient. U may be 0.
      keep: [U] bool, virtual classes in use; all when None.
      scale, margins: see `arcface.margin_logits`; where angle plus margin exceeds pi, the logit keeps decreasing.

    Returns:
      [N] losses.
    """
    _check("features", features, centres, labels, unlabelled, keep)
    return _cross_entropy(features, centres, unlabelled, labels, keep, scale, margins)


def virinstance_loss(
    samples: jax.Array,
    centres: jax.Array,
    places: jax.Array,
    unlabelled: jax.Array,
    *,
    keep: jax.Array | None = None,
    scale: float = 32.0,
    margins: Margins = ARCFACE,
) -> jax.Array:
    """ArcFace loss of generated embeddings, with the virtual class of their source as label.

    Args:
      samples: [S, M, D], of any norm: S samples for each of M unlabelled embeddings.
      centres: [C, D] class centres.
      places: [M] int, index of the source among the U unlabelled embeddings.
      unlabelled: [U, D] virtual class centres, constants for the gradient.
      keep, scale, margins: see `virclass_loss`.

    Returns:
      [S, M] losses, 0 for samples of unused virtual classes.
    """
    if samples.ndim != 3:
        raise ValueError(f"virinstance_loss: samples {samples.shape}, expected [S, M, D]")
    draws, count, size = samples.shape
    _check("samples", samples[0], centres, places, unlabelled, keep)
    flat, wanted = samples.reshape(-1, size), jnp.tile(places, draws)
    unlabelled = lax.stop_gradient(unlabelled)
    losses = _cross_entropy(flat, centres, unlabelled, len(centres) + wanted, keep, scale, margins)
    return losses.reshape(draws, count) * (1.0 if keep is None else keep[places])


def _cross_entropy(features, centres, unlabelled, labels, keep, scale, margins):
    """[N] losses over classes 0..C+U-1, without the unused virtual classes."""
    classes = jnp.concatenate([vectors.unit(centres), vectors.unit(unlabelled)])
    logits = margin_logits(vectors.unit(features) @ classes.T, labels, scale=scale, margins=margins, easy=True)
    if keep is not None:
        rivals = jnp.concatenate([jnp.ones(len(centres), bool), keep])
        logits = jnp.where(rivals | (labels[:, None] == jnp.arange(len(classes))), logits, -jnp.inf)
    return jax.nn.logsumexp(logits, 1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]


def _check(name, features, centres, labels, unlabelled, keep):
    shapes = (features.shape[1:], centres.shape[1:], unlabelled.shape[1:])
    kept = unlabelled.shape[:1] if keep is None else keep.shape
    if len(set(shapes)) > 1 or features.ndim != 2 or labels.shape != features.shape[:1] or kept != unlabelled.shape[:1]:
        raise ValueError(
            f"{name} {features.shape}, centres {centres.shape}, labels {labels.shape}, unlabelled {unlabelled.shape} "
            f"and keep {None if keep is None else keep.shape}, expected [N, D], [C, D], [N], [U, D] and [U]"
        )
