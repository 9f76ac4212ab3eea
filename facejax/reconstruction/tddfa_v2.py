"""3DDFA_V2: fast, accurate and stable regression of a 3D face.

Guo, Zhu, Yang, Yang, Lei, Li. "Towards Fast, Accurate and Stable 3D Dense Face Alignment". ECCV 2020. arXiv:2009.09960.
The weights of WPDC come from one reconstruction of the face instead of one per parameter (fWPDC). Two copies of the
network, trained with fWPDC and with the vertex distance (VDC), start from the same weights again and again, and the one
with the lower VDC on a held-out batch goes on (meta-joint optimisation). A branch that regresses 68 landmarks
regularises the training. Short videos, made from every still, teach the network not to tremble.

The authors published no training code; network and evaluation are those of cleardusk/3DDFA_V2. Differs: learning rate,
schedule and the share of the joint cost are ours; videos move in the image plane, heads are not turned in depth.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
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


def short_video(image: np.ndarray, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A still as a video: each frame moves the last one, and is degraded on its own (Sec. 3.3, in the image plane).

    A movement scales by 0.95 to 1.05, turns by up to 3 degrees and shifts by up to 5 of 120 pixels; a frame has
    Gaussian noise of deviation up to 3, and with probability 0.5 a motion blur of 5 pixels in a random direction.

    Args:
      image: [S, S, 3] uint8.
      frames: n.
      rng: of all draws.

    Returns:
      frames [n, S, S, 3], the first without movement; and transforms [n, 2, 3] from the still's points to each frame's,
      in pixels with the first one's centre at 0.5.
    """
    size = image.shape[0]
    matrix, images, moves = np.eye(3), [], []
    for number in range(frames):
        if number:
            angle, scale = np.radians(rng.uniform(-3, 3)), rng.uniform(0.95, 1.05)
            cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
            turn = np.array([[cosine, -sine], [sine, cosine]])
            shift = size / 2 - turn @ [size / 2, size / 2] + rng.uniform(-5, 5, 2) * size / 120
            matrix = np.block([[turn, shift[:, None]], [np.zeros((1, 2)), np.ones((1, 1))]]) @ matrix
        centres = matrix[:2].copy()
        centres[:, 2] += centres[:, :2] @ [0.5, 0.5] - 0.5  # OpenCV's integers are pixel centres
        frame = cv2.warpAffine(image, centres, (size, size), flags=cv2.INTER_LINEAR)
        frame = frame + rng.uniform(0, 3) * rng.normal(size=frame.shape)
        kernel = _line(5, rng.uniform(0, np.pi)) if rng.random() < 0.5 else np.ones((1, 1))
        frame = cv2.filter2D(frame, -1, kernel, borderType=cv2.BORDER_REPLICATE)
        images.append(np.clip(np.rint(frame), 0, 255).astype(np.uint8))
        moves.append(matrix[:2])
    return np.stack(images), np.stack(moves)


def moved(vector: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Vectors [..., D] of a face after similarity transforms [..., 2, 3] of its crop of `size` pixels.

    Args:
      vector: whitening undone, of vertices with y up.
      matrix: of points with y down.
      size: of the crop.
    """
    flip = np.array([1.0, -1.0])
    turn = matrix[..., :2] * flip * flip[:, None]
    shift = (matrix @ [0, size, 1] - [0, size]) * flip
    pose = vector[..., :12].reshape(*vector.shape[:-1], 3, 4)
    flat = turn @ pose[..., :2, :] + np.concatenate([np.zeros((*shift.shape, 3)), shift[..., None]], -1)
    near = np.sqrt(np.linalg.det(turn))[..., None, None] * pose[..., 2:, :]
    rows = np.concatenate([flat, near], -2).reshape(*flat.shape[:-2], 12)
    return np.concatenate([rows, np.broadcast_to(vector[..., 12:], (*rows.shape[:-1], vector.shape[-1] - 12))], -1)


def moved_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points [N, L, 2] after transforms [N, 2, 3], float32."""
    return (np.einsum("nij,nlj->nli", matrix[:, :, :2], points) + matrix[:, None, :, 2]).astype(np.float32)


def jitter(points: np.ndarray, truth: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean over frames and landmarks of ||dp - dq|| / size: how a tracker trembles beside the true movement, [N].

    Args:
      points, truth: [N, n, L, 2] landmarks of n frames; dp and dq are their steps from frame to frame.
      sizes: [N] of the faces.
    """
    steps = np.diff(points, axis=1) - np.diff(truth, axis=1)
    return np.linalg.norm(steps, axis=-1).mean((1, 2)) / sizes


def _line(length: int, angle: float) -> np.ndarray:
    """[length, length] a line through the middle, with sum 1."""
    kernel = np.zeros((length, length))
    steps = np.linspace(-0.5, 0.5, 8 * length) * (length - 1)
    x, y = (np.rint(length // 2 + steps * f).astype(int) for f in (np.cos(angle), np.sin(angle)))
    np.add.at(kernel, (y, x), 1)
    return kernel / kernel.sum()
