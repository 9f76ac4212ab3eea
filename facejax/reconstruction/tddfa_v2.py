"""3DDFA_V2: fast, accurate and stable regression of a 3D face.

Guo, Zhu, Yang, Yang, Lei, Li. "Towards Fast, Accurate and Stable 3D Dense Face Alignment". ECCV 2020. arXiv:2009.09960.
The weights of WPDC come from one reconstruction of the face instead of one per parameter (fWPDC). Two copies of the
network, trained with fWPDC and with the vertex distance (VDC), start from the same weights again and again, and the one
with the lower VDC on a held-out batch goes on (meta-joint optimisation). A branch that regresses 68 landmarks
regularises the training. Short videos, made from every still, teach the network not to tremble.

The authors published no training code; network and evaluation are those of cleardusk/3DDFA_V2. Differs: learning rate,
schedule and the share of the joint cost are ours. The videos are `facejax.data.short_videos`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from facejax.morphable.parameters import LinearFace, Whitening
from facejax.nn.init import torch_default
from facejax.reconstruction import tddfa

Dtype = Any


class Net(nn.Module):
    """A MobileNet with a layer for the parameters and, in training, one for 68 landmarks.

    Attributes:
      make: constructor of the trunk, (outputs=, dtype=) -> module; with 0 outputs it returns features [N, D].
      parameters: numbers of a vector.
      dtype: of the trunk.
    """

    make: Any = tddfa.mobilenet
    parameters: int = 62
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """[N, S, S, 3] BGR, (x - 127.5) / 128 -> "parameters" [N, 62] whitened; in training "landmarks" [N, 136]."""
        features = self.make(outputs=0, dtype=self.dtype, name="trunk")(images, train=train)
        dense = partial(nn.Dense, kernel_init=torch_default)
        found = {"parameters": dense(self.parameters, name="fc_param")(features)}
        if train or self.is_initializing():
            found["landmarks"] = dense(2 * 68, name="fc_lm")(features)
        return found


mb1 = Net
"""The network of mb1_120x120.pth."""
mb05 = partial(Net, partial(tddfa.mobilenet, 0.5))
"""The network of mb05_120x120.pth."""


def fwpdc(predicted: jax.Array, target: jax.Array, face: LinearFace, whitening: Whitening) -> jax.Array:
    """Fast WPDC (Algorithm 2): sum of (w (p - p*))^2 with the weights of `tddfa.wpdc_weights` of all vertices.

    The weights are those of WPDC, with the face of the true coefficients. Unlike in 3DDFA they are squared.

    Args:
      predicted, target: [N, D] whitened.
      face, whitening: of the parameters.

    Returns:
      [N].
    """
    weights = tddfa.wpdc_weights(predicted, target, face, whitening)
    return jnp.sum((weights * (predicted - target)) ** 2, -1)


def balanced(first: jax.Array, second: jax.Array, axis_name: str | None = None) -> jax.Array:
    """`second` [N], scaled so that its mean over the batch equals that of `first` [N]; the factor has no gradient.

    Args:
      first, second: losses.
      axis_name: the batch is split over this mapped axis.
    """
    means = jnp.stack([first.mean(), second.mean()])
    one, other = lax.stop_gradient(lax.pmean(means, axis_name) if axis_name else means)
    return second * jnp.abs(one) / jnp.maximum(jnp.abs(other), 1e-12)


def joint(first: jax.Array, second: jax.Array, beta: float, axis_name: str | None = None) -> jax.Array:
    """Vanilla joint cost: beta l_fwpdc + (1 - beta) |l_fwpdc / l_vdc| l_vdc, [N]; arguments of `balanced`."""
    return beta * first + (1 - beta) * balanced(first, second, axis_name)


def landmark_error(found: jax.Array, truth: jax.Array, size: int) -> jax.Array:
    """Mean squared error [N] of regressed landmarks.

    Args:
      found: [N, 136] outputs, in half sides of the crop from its middle.
      truth: [N, 68, 2] pixels.
      size: side of the crop.
    """
    return jnp.mean((tddfa.pixels(found, size) - truth) ** 2, (-2, -1))


def jitter(points: np.ndarray, truth: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean over frames and landmarks of ||dp - dq|| / size: how a tracker trembles beside the true movement, [N].

    Args:
      points, truth: [N, n, L, 2] landmarks of n frames; dp and dq are their steps from frame to frame.
      sizes: [N] of the faces.
    """
    steps = np.diff(points, axis=1) - np.diff(truth, axis=1)
    return np.linalg.norm(steps, axis=-1).mean((1, 2)) / sizes
