"""3DDFA: a dense 3D face model is regressed from a crop by a cascade that sees what it has found so far.

Zhu, Lei, Liu, Shi, Li. "Face Alignment Across Large Poses: A 3D Solution". CVPR 2016. arXiv:1511.07212. Journal: "Face
Alignment in Full Pose Range: A 3D Total Solution", TPAMI 2019, arXiv:1804.01005 (OWPDC). Every stage of the cascade
sees the crop and the projected normalized coordinate code (PNCC) of the current parameters, and regresses an update;
the costs weigh parameters by what they do to the face. `mobilenet` is the network of the authors' PyTorch version
(cleardusk/3DDFA), one pass without PNCC.

Differs: the layers of the paper's network are not published in full: `FourConvolutions` has its shape. The stages are
trained together, each on its predecessor's output without gradient; the paper trains one after the other. The 62
parameters are those of the PyTorch version (the paper has 234, with Euler angles). The journal's second feature, in the
view of the model (PAF), is missing. OWPDC's weights are found by a solver of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from facejax.backbones.mobilenet import MobileNetV1
from facejax.morphable import crops, pncc
from facejax.morphable.parameters import (
    DEPTH,
    POSE,
    LinearFace,
    Whitening,
    at_vertices,
    model_shape,
    pose_scale,
    reconstruct,
    split,
)
from facejax.nn.blocks import ConvNorm
from facejax.nn.init import kaiming_normal_fan_out
from facejax.ops.pooling import max_pool

Dtype = Any

MEAN_SCALE = 0.00057339936
"""Mean scale f over 3DDFA's training crops of 120 pixels, with which its code weighs shape and expression."""


def mobilenet(width: float = 1.0, outputs: int = 62, **options: Any) -> MobileNetV1:
    """cleardusk/3DDFA's MobileNet: ReLU, PyTorch's padding, no dropout. `options` are fields of `MobileNetV1`."""
    fixed = {"dropout": 0.0, "padding": 1, "momentum": 0.9, "epsilon": 1e-5}
    return MobileNetV1(outputs, width, activation=nn.relu, kernel_init=kaiming_normal_fan_out, **{**fixed, **options})


class FourConvolutions(nn.Module):
    """The shape of the paper's network: four convolutions, three poolings, two dense layers.

    Its widths are not published; there, the last two convolutions share no weights between places.

    Attributes:
      outputs: D.
      widths: of the convolutions; the first has stride 2.
      hidden: width of the first dense layer.
      dtype: of the convolutions.
    """

    outputs: int = 62
    widths: Sequence[int] = (16, 32, 64, 96)
    hidden: int = 256
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """[N, S, S, C] -> [N, D]."""
        x = images
        for i, width in enumerate(self.widths):
            x = ConvNorm(width, 3, 2 if i == 0 else 1, 1, dtype=self.dtype, name=f"conv{i}")(x, train=train)
            x = max_pool(x, (2, 2), (2, 2)) if i < len(self.widths) - 1 else x
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x.reshape(x.shape[0], -1).astype(jnp.float32)))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.normal(0.01), name="fc")(x)


class Cascade(nn.Module):
    """K stages, each with crop and PNCC as input and an update of the whitened parameters as output.

    Attributes:
      stages: K.
      make: (name=) -> network of a stage, (images [N, S, S, 6], train=) -> [N, D].
      coarse: pixels of the crop per pixel of the rendered PNCC, along each axis.
      convention: from the parameters' vertices to pixels of the crop.
    """

    stages: int = 3
    make: Callable[..., nn.Module] = mobilenet
    coarse: int = 1
    convention: crops.Convention = crops.FACEJAX

    @nn.compact
    def __call__(self, images: jax.Array, face: LinearFace, whitening: Whitening, *, train: bool) -> jax.Array:
        """Whitened parameters after every stage.

        Args:
          images: [N, S, S, 3] BGR, (x - 127.5) / 128.
          face: with the triangles that PNCC shows.
          whitening: of the parameters; the cascade begins at their mean.
          train: whether the batch's statistics are used.

        Returns:
          [K, N, D].

        Raises:
          ValueError: `coarse` does not divide S.
        """
        size = images.shape[1]
        if size % self.coarse:
            raise ValueError(f"Cascade: crops of {size} pixels, expected a multiple of coarse, {self.coarse}")
        code, found = pncc.coordinate_code(face.mean), []
        current = jnp.zeros((images.shape[0], whitening.mean.shape[0]))
        for stage in range(self.stages):
            current = lax.stop_gradient(current)
            seen = current[:1] if stage == 0 else current  # all begin with the same face
            picture = self._picture(seen, face, code, whitening, size)
            picture = jnp.broadcast_to(picture, (images.shape[0], size, size, 3))
            both = jnp.concatenate([images, picture.astype(images.dtype)], -1)
            current = current + self.make(name=f"stage{stage}")(both, train=train)
            found.append(current)
        return jnp.stack(found)

    def _picture(
        self, current: jax.Array, face: LinearFace, code: jax.Array, whitening: Whitening, size: int
    ) -> jax.Array:
        """PNCC of whitened parameters [N, D], scaled as the crops are: [N, S, S, 3]."""
        small = size // self.coarse
        vertices = crops.to_image(reconstruct(face, whitening.restore(current)), size, self.convention) / self.coarse
        picture = pncc.render_pncc(vertices, face.triangles, code, (small, small))
        return jnp.repeat(jnp.repeat((255 * picture - 127.5) / 128, self.coarse, 1), self.coarse, 2)


def pixels(outputs: jax.Array, size: int) -> jax.Array:
    """Landmarks [N, 68, 2] of a crop of `size` pixels from the 136 outputs of a network, 0 in the middle."""
    return size / 2 * (1 + outputs.reshape(len(outputs), 68, 2))


def resampled(face: LinearFace, key: jax.Array, count: int = 132) -> LinearFace:
    """The 68 landmarks and `count` random vertices, among which landmarks can occur again."""
    others = jax.random.permutation(key, len(face.mean))[:count]
    return at_vertices(face, jnp.concatenate([face.landmarks68, others]))


def pdc(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Parameter distance cost: mean squared difference of whitened parameters [N, D] -> [N]."""
    return jnp.mean((predicted - target) ** 2, -1)


def vdc(predicted: jax.Array, target: jax.Array, face: LinearFace, whitening: Whitening) -> jax.Array:
    """Vertex distance cost: mean squared difference of the vertices' coordinates, with the target's t_z in both.

    Args:
      predicted, target: [N, D] whitened.
      face: the vertices compared, such as those of `resampled`.
      whitening: of the parameters.

    Returns:
      [N], square pixels.
    """
    predicted = predicted.astype(jnp.float32).at[..., DEPTH].set(target[..., DEPTH])
    found, true = (reconstruct(face, whitening.restore(vector)) for vector in (predicted, target))
    return jnp.mean((found - true) ** 2, (-2, -1))


def wpdc_weights(
    predicted: jax.Array, target: jax.Array, face: LinearFace, whitening: Whitening, *, scale: float | None = None
) -> jax.Array:
    """Weights of WPDC, 0..1: how far the face moves if one parameter of the target becomes the predicted one.

    Vertices are affine in every single parameter, so that the distances have closed forms: |dp| times the length of a
    row of the model's coordinates for an element of f R, |dp| sqrt(V) for a translation, f |dp| times the length of the
    basis column for a coefficient. The largest of a face is 1; that of t_z is 0.

    Args:
      predicted, target, face, whitening: as in `vdc`.
      scale: f of coefficients; None: that of each target. The published code has `MEAN_SCALE` for all.

    Returns:
      [N, D], without gradient.
    """
    change = jnp.abs(lax.stop_gradient(predicted) - target) * whitening.std
    truth = split(whitening.restore(target), face.layout)
    lengths = jnp.sqrt(jnp.sum(model_shape(face, truth) ** 2, -2))
    row = jnp.concatenate([lengths, jnp.full_like(lengths[..., :1], len(face.mean) ** 0.5)], -1)
    columns = jnp.sqrt(jnp.sum(face.bases**2, (0, 1)))
    f = pose_scale(truth.pose)[..., None] if scale is None else scale
    moved = jnp.concatenate([row, row, row, jnp.broadcast_to(f * columns, (*row.shape[:-1], len(columns)))], -1)
    weights = (change * moved + 1e-6).at[..., DEPTH].set(0)
    return lax.stop_gradient(weights / weights.max(-1, keepdims=True))


def wpdc(
    predicted: jax.Array, target: jax.Array, face: LinearFace, whitening: Whitening, *, scale: float | None = None
) -> jax.Array:
    """Weighted parameter distance cost: mean of w (p - p*)^2 of whitened parameters; arguments of `wpdc_weights`."""
    weights = wpdc_weights(predicted, target, face, whitening, scale=scale)
    return jnp.mean(weights * (predicted - target) ** 2, -1)


def owpdc_weights(
    predicted: jax.Array,
    target: jax.Array,
    face: LinearFace,
    whitening: Whitening,
    *,
    damping: float = 0.1,
    iterations: int = 60,
) -> jax.Array:
    """Weights of OWPDC, 0..1: which part of the way from the predicted to the true parameters repairs the face best.

    argmin over 0 <= w <= 1 of |V(p + w (p* - p)) - V(p*)|^2 + lambda |w (p* - p)|^2 with V linearised at p*: where the
    way is short (the second term), only parameters that move the face are worth it. lambda is `damping` times the mean
    squared motion of the face per whitened parameter. The solver is a projected gradient with momentum, each
    coordinate's step bounded by its row of the matrix.

    Args:
      predicted, target, face, whitening: as in `vdc`.
      damping: see above.
      iterations: of the solver.

    Returns:
      [N, D], without gradient; that of t_z is 0.
    """
    way = (target - lax.stop_gradient(predicted)).at[..., DEPTH].set(0)
    motion = _motion(target, face, whitening)
    strength = damping * jnp.trace(motion, axis1=-2, axis2=-1) / motion.shape[-1]
    matrix = way[..., :, None] * motion * way[..., None, :]
    full = matrix.sum(-1)
    matrix = matrix + jnp.eye(way.shape[-1]) * (strength[..., None] * way**2)[..., None, :]
    bound = jnp.maximum(jnp.abs(matrix).sum(-1), 1e-20)

    def step(i: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        old, ahead = state
        slope = jnp.einsum("...ij,...j->...i", matrix, ahead, precision=lax.Precision.HIGHEST) - full
        new = jnp.clip(ahead - slope / bound, 0, 1)
        return new, new + i / (i + 3) * (new - old)

    start = jnp.ones_like(way)
    weights, _ = lax.fori_loop(0, iterations, step, (start, start))
    return lax.stop_gradient(weights.at[..., DEPTH].set(0))


def owpdc(predicted: jax.Array, target: jax.Array, face: LinearFace, whitening: Whitening, **options: Any) -> jax.Array:
    """Optimized weighted parameter distance cost: `wpdc` with the weights of `owpdc_weights`."""
    weights = owpdc_weights(predicted, target, face, whitening, **options)
    return jnp.mean(weights * (predicted - target) ** 2, -1)


def _motion(target: jax.Array, face: LinearFace, whitening: Whitening) -> jax.Array:
    """J^T J [N, D, D] of the vertices by the whitened parameters at the target."""
    truth = split(whitening.restore(target), face.layout)
    points = model_shape(face, truth)
    points = jnp.concatenate([points, jnp.ones_like(points[..., :1])], -1)
    sums = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    moved = sums("nij,vjk->nvik", truth.pose[..., :3], face.bases)
    pose = sums("nva,nvb->nab", points, points)
    pose = sums("ij,nab->niajb", jnp.eye(3), pose).reshape(-1, POSE, POSE)
    mixed = sums("nva,nvik->niak", points, moved).reshape(len(pose), POSE, -1)
    form = sums("nvik,nvil->nkl", moved, moved)
    rows = [jnp.concatenate(row, -1) for row in ((pose, mixed), (jnp.swapaxes(mixed, -1, -2), form))]
    return jnp.concatenate(rows, -2) * whitening.std * whitening.std[:, None]


COSTS = {
    "pdc": lambda predicted, target, face, whitening: pdc(predicted, target),
    "vdc": vdc,
    "wpdc": wpdc,
    "owpdc": owpdc,
}
"""Costs (predicted, target, face, whitening) -> [N] by name."""
