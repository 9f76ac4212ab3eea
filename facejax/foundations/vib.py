"""Deep VIB: a deep variational information bottleneck.

Alemi, Fischer, Dillon, Murphy. ICLR 2017. arXiv:1612.00410.
A network maps its input to a Gaussian over a code z and classifies a sample of it. An upper bound on I(Z; X), the KL
divergence of that Gaussian from a unit Gaussian, is penalised with weight `beta`. This regularises the classifier and
makes it more robust to attacks. Information is in bits.

Differs from the paper: the Cholesky diagonal of the full-covariance posterior, which the paper does not specify, is
softplus(rho - 5), like the standard deviations in the authors' notebook. The fast gradient sign is the only attack
here. The ImageNet experiment is missing; `VIBHead` takes the features of any backbone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

Covariance = Literal["diagonal", "full"]

BITS = 1.0 / math.log(2.0)  # of one nat
XAVIER = nn.initializers.xavier_uniform()


class Posterior(NamedTuple):
    """A Gaussian p(z|x) per example.

    Attributes:
      mean: [N, K].
      scale: standard deviations [N, K], or lower Cholesky factors of the covariances [N, K, K]; diagonals above 0.
    """

    mean: jax.Array
    scale: jax.Array

    @property
    def diagonal(self) -> jax.Array:
        """[N, K]: the standard deviations, or the diagonal of the Cholesky factors."""
        full = self.scale.ndim > self.mean.ndim
        return jnp.diagonal(self.scale, axis1=-2, axis2=-1) if full else self.scale


def posterior(raw: jax.Array, covariance: Covariance = "diagonal") -> Posterior:
    """The Gaussian that an encoder's outputs parameterise.

    Args:
      raw: [N, 2K] means and rho (K of them) for "diagonal"; [N, K + K (K + 1) / 2] means, rho and the entries below
        the diagonal for "full". Standard deviations start near softplus(-5) = 0.0067.
      covariance: see `raw`.
    """
    if covariance not in get_args(Covariance):
        raise ValueError(f"posterior: covariance {covariance!r}, expected one of {get_args(Covariance)}")
    width = raw.shape[-1]
    latent = width // 2 if covariance == "diagonal" else round(((9 + 8 * width) ** 0.5 - 3) / 2)
    if raw.ndim != 2 or width != encoder_width(latent, covariance):
        raise ValueError(f"posterior: encoder outputs {raw.shape} do not fill a {covariance} posterior's [N, width]")
    mean, rho, below = jnp.split(raw.astype(jnp.float32), [latent, 2 * latent], axis=1)
    scale = nn.softplus(rho - 5.0)
    if covariance == "diagonal":
        return Posterior(mean, scale)
    rows, columns = jnp.tril_indices(latent, -1)
    return Posterior(mean, jax.vmap(jnp.diag)(scale).at[:, rows, columns].set(below))


def encoder_width(latent: int, covariance: Covariance) -> int:
    """Number of parameters of a Gaussian of `latent` dimensions."""
    return 2 * latent if covariance == "diagonal" else latent + latent * (latent + 1) // 2


def sample(posterior: Posterior, rng: jax.Array, samples: int) -> jax.Array:
    """Draws z = mean + scale * noise, [S, N, K]."""
    noise = jax.random.normal(rng, (samples, *posterior.mean.shape))
    if posterior.scale.ndim == posterior.mean.ndim:
        return posterior.mean + posterior.scale * noise
    return posterior.mean + jnp.einsum("nij,snj->sni", posterior.scale, noise)


def kl_bits(posterior: Posterior) -> jax.Array:
    """KL(p(z|x) || N(0, I)) in closed form, [N] bits. Its mean is an upper bound of I(Z; X)."""
    log_scale = jnp.log(jnp.maximum(posterior.diagonal, jnp.finfo(jnp.float32).tiny))
    squared = jnp.square(posterior.scale).reshape(*posterior.mean.shape[:1], -1).sum(1)
    nats = 0.5 * (squared + jnp.sum(jnp.square(posterior.mean) - 1.0 - 2.0 * log_scale, 1))
    return nats * BITS


def cross_entropy_bits(
    logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0, confidence_penalty: float = 0.0
) -> jax.Array:
    """-log2 q(y|z), with the regularisers of the paper's baselines.

    Args:
      logits: [..., N, C].
      labels: [N] int, 0..C-1.
      label_smoothing: part of the target that is spread evenly over all classes, 0..1.
      confidence_penalty: weight of the negative entropy of q (Pereyra et al., arXiv:1701.06548).

    Returns:
      [..., N] bits.
    """
    if logits.shape[-2] != labels.shape[0] or labels.ndim != 1:
        raise ValueError(
            f"cross_entropy_bits: logits {logits.shape} and labels {labels.shape}, expected [..., N, C], [N]"
        )
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32)) * BITS
    target = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return -jnp.sum((target - confidence_penalty * jnp.exp2(log_q)) * log_q, -1)


def averaged_log_probabilities(logits: jax.Array) -> jax.Array:
    """Log of the softmax probabilities' mean over samples of the code: [S, N, C] -> [N, C] nats."""
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), 0) - jnp.log(logits.shape[0])


class VIBHead(nn.Module):
    """A stochastic code and a classifier of it, for the features of any backbone.

    Attributes:
      num_classes: C.
      latent: K, size of the code.
      covariance: of the posterior; the paper uses "full" for K = 2.
      dtype: of the two dense layers.
    """

    num_classes: int
    latent: int = 256
    covariance: Covariance = "diagonal"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        width = encoder_width(self.latent, self.covariance)
        self.encoder = nn.Dense(width, kernel_init=XAVIER, dtype=self.dtype)
        self.decoder = nn.Dense(self.num_classes, kernel_init=XAVIER, dtype=self.dtype)

    def __call__(self, features: jax.Array, *, samples: int = 1) -> tuple[jax.Array, Posterior]:
        """Classifies samples of the code.

        Args:
          features: [N, D].
          samples: S, drawn with the key "latent"; 0 decodes the mean, and the result has S = 1.

        Returns:
          (logits [S, N, C], posterior).
        """
        found = posterior(self.encoder(features), self.covariance)
        codes = sample(found, self.make_rng("latent"), samples) if samples else found.mean[None]
        return self.decode(codes), found

    def decode(self, codes: jax.Array) -> jax.Array:
        """Logits [..., C] of codes [..., K]."""
        return self.decoder(codes)


class Classifier(nn.Module):
    """The paper's multilayer perceptron with its stochastic head, or without one as a baseline.

    Attributes:
      num_classes: C.
      widths: of the hidden layers.
      latent: K; 0 is the deterministic baseline, one dense layer on the same features.
      covariance: see `VIBHead`.
      dropout: rate on the hidden layers.
      dtype: of the dense layers.
    """

    num_classes: int = 10
    widths: tuple[int, ...] = (1024, 1024)
    latent: int = 256
    covariance: Covariance = "diagonal"
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.hidden = [nn.Dense(width, kernel_init=XAVIER, dtype=self.dtype) for width in self.widths]
        self.drop = nn.Dropout(self.dropout)
        if self.latent:
            self.head = VIBHead(self.num_classes, self.latent, self.covariance, self.dtype)
        else:
            self.head = nn.Dense(self.num_classes, kernel_init=XAVIER, dtype=self.dtype)

    def __call__(self, images: jax.Array, *, train: bool, samples: int = 1) -> tuple[jax.Array, Posterior | None]:
        """Logits [S, N, C] of images [N, D] in -1..1 and the posterior; [1, N, C] and None without a bottleneck."""
        features = images
        for layer in self.hidden:
            features = self.drop(nn.relu(layer(features)), deterministic=not train)
        return self.head(features, samples=samples) if self.latent else (self.head(features)[None], None)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Logits [..., C] of codes [..., K]."""
        return self.head.decode(codes)


def fast_gradient_sign(
    objective: Callable[[jax.Array], jax.Array], images: jax.Array, size: float | jax.Array
) -> jax.Array:
    """Images changed by `size` in every pixel to raise the loss (Goodfellow et al., arXiv:1412.6572).

    Args:
      objective: images -> losses [N].
      images: [N, ...], in -1..1, as is the result.
      size: of the step.
    """
    gradient = jax.grad(lambda x: objective(x).sum())(images)
    return jnp.clip(images + size * jnp.sign(gradient), -1.0, 1.0)
