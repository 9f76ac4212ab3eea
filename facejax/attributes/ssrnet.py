"""SSR-Net: an age in three stages of three classes each, each stage refining the last.

Yang, Huang, Lin, Hsiu, Chuang. "SSR-Net: a compact soft stagewise regression network for age estimation". IJCAI 2018.
Two small streams of convolutions see the face; maps of three depths tell three stages. A stage's expectation over three
classes is a digit of the age, in units that shrink by three from stage to stage; the network also moves the classes
(eta) and stretches their units (Delta), the dynamic range.

`SSRNet` follows the authors' code, where it and the paper differ: class scores pass a ReLU and are no distribution. Not
as there: images are RGB (`facejax.interop.ssrnet` turns the published weights, which expect BGR), and `smallest` can
bound the divisor of a stage, which the published network lets come to zero.

`MultiSSRNet` is the authors' form for several numbers, such as angles (FSA-Net, Sec. 3.2). `SingleStageNet` has the
same two streams and a plain head, regression or expectation over classes: the baselines of the claim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv

Dtype = Any

GLOROT = nn.initializers.glorot_uniform()
POOLS = ((nn.relu, nn.avg_pool), (nn.tanh, nn.max_pool))
"""Activation and pooling of the first stream and of the second."""


class Stages(NamedTuple):
    """What K stages say about numbers of any leading shape.

    Attributes:
      scores: K arrays [..., s_k], weights of the classes.
      shifts: K arrays [..., s_k] or [..., 1], eta: movement of the classes, in units of a class.
      stretches: K arrays [...], Delta: relative change of the unit's divisor.
    """

    scores: Sequence[jax.Array]
    shifts: Sequence[jax.Array]
    stretches: Sequence[jax.Array]


def soft_stagewise(
    stages: Stages,
    span: float,
    *,
    centred: bool = False,
    shift_weight: float = 1.0,
    stretch_weight: float = 1.0,
    smallest: float = 0.0,
) -> jax.Array:
    """Soft stagewise regression (eq. 7): V * sum_k sum_i score_ki (i + eta_ki) / prod_{j <= k} s_j (1 + Delta_j).

    Args:
      stages: what the stages say.
      span: V, width of the range of numbers.
      centred: whether each stage's classes lie around zero, which is number s // 2 of s; else they begin at 0.
      shift_weight, stretch_weight: factors of eta and Delta; 0 for no dynamic range.
      smallest: lower bound of 1 + Delta; 0 as published, where the result overflows as Delta nears -1.

    Returns:
      [...] float32.
    """
    total, unit = 0.0, jnp.float32(span)
    for scores, shifts, stretch in zip(*stages, strict=True):
        scores, shifts, stretch = (x.astype(jnp.float32) for x in (scores, shifts, stretch))
        count = scores.shape[-1]
        classes = jnp.arange(count) - centred * (count // 2)
        unit = unit / (count * jnp.maximum(1 + stretch_weight * stretch, smallest))
        total = total + unit * jnp.sum(scores * (classes + shift_weight * shifts), -1)
    return total


def absolute_error(predicted: jax.Array, truth: jax.Array) -> jax.Array:
    """Mean absolute error of an example's numbers: [N] or [N, D] each -> [N], the loss of SSR-Net and FSA-Net."""
    error = jnp.abs(predicted.astype(jnp.float32) - truth)
    return error.reshape(len(error), -1).mean(1)


class Streams(nn.Module):
    """SSR-Net's trunk: per stream four valid 3x3 convolutions, with pooling after the first three.

    Attributes:
      widths: channels of the first stream and of the second.
      momentum: of the running averages of batch norm.
      axis_name: shares batch statistics over this mapped axis.
      dtype: of the computation.
    """

    widths: tuple[int, int] = (32, 16)
    momentum: float = 0.99
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> list[tuple[jax.Array, jax.Array]]:
        """[N, H, W, 3] in 0..255 -> (map of the first stream, map of the second) of the four depths, shallow first."""
        block = partial(
            ConvNorm,
            use_bias=True,
            kernel_init=GLOROT,
            momentum=self.momentum,
            epsilon=1e-3,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        streams = []
        for name, width, (activation, pool) in zip(("first", "second"), self.widths, POOLS, strict=True):
            x, maps = images, []
            for depth in range(4):
                x = block(width, 3, activation=activation, name=f"{name}{depth}")(x, train=train)
                x = pool(x, (2, 2), (2, 2)) if depth < 3 else x
                maps.append(x)
            streams.append(maps)
        return list(zip(*streams, strict=True))


class StageHead(nn.Module):
    """One stage of SSR-Net: its maps of both streams to class scores, shifts and a stretch.

    Attributes:
      classes: s, number of classes.
      pool: size of the pooling before the dense layers; 1 for none.
      dropout: probability in both streams before the dense layers of the scores.
      dtype: of the computation.
    """

    classes: int
    pool: int
    dropout: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, first: jax.Array, second: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Two maps [N, H, W, *] -> scores [N, s], shifts [N, s], stretch [N]."""
        dense = partial(nn.Dense, kernel_init=GLOROT, dtype=self.dtype)
        flat, narrow = [], []
        for name, x, (_, pool) in zip(("first", "second"), (first, second), POOLS, strict=True):
            x = nn.relu(Conv(10, 1, use_bias=True, kernel_init=GLOROT, dtype=self.dtype, name=f"{name}_reduced")(x))
            x = pool(x, (self.pool,) * 2, (self.pool,) * 2).reshape(x.shape[0], -1)
            flat.append(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            narrow.append(nn.relu(dense(self.classes, name=f"{name}_narrow")(x)))
        stretch = nn.tanh(dense(1, name="stretch")(flat[0] * flat[1]))[:, 0]
        mixed = nn.relu(dense(2 * self.classes, name="mixed")(narrow[0] * narrow[1]))
        return (
            nn.relu(dense(self.classes, name="scores")(mixed)),
            nn.tanh(dense(self.classes, name="shifts")(mixed)),
            stretch,
        )


class SSRNet(nn.Module):
    """SSR-Net for one number per image.

    Attributes:
      classes: s, classes of each stage.
      span: V, width of the range: 101 years; 1 for the authors' network of gender.
      shift_weight, stretch_weight: lambda_local and lambda_d, both 1 in the published networks; 0 for no dynamic range.
      smallest: lower bound of 1 + Delta; see `soft_stagewise`.
      dropout: probability in the fusion blocks.
      widths, momentum, axis_name, dtype: of the trunk; see `Streams`.
    """

    classes: tuple[int, int, int] = (3, 3, 3)
    span: float = 101.0
    shift_weight: float = 1.0
    stretch_weight: float = 1.0
    smallest: float = 0.0
    dropout: float = 0.2
    widths: tuple[int, int] = (32, 16)
    momentum: float = 0.99
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """RGB [N, H, W, 3] in 0..255, published for 64 x 64 -> [N]."""
        return soft_stagewise(
            self.stages(images, train=train),
            self.span,
            shift_weight=self.shift_weight,
            stretch_weight=self.stretch_weight,
            smallest=self.smallest,
        )

    @nn.compact
    def stages(self, images: jax.Array, *, train: bool) -> Stages:
        """The parts of the regression, of arrays [N, s] and [N]."""
        check_size(images, 38)
        trunk = Streams(self.widths, self.momentum, self.axis_name, self.dtype, name="trunk")
        shallow, middle, _, deep = trunk(images.astype(self.dtype), train=train)
        parts = [
            StageHead(classes, pool, self.dropout, self.dtype, name=f"stage{k}")(*maps, train=train)
            for k, (classes, maps, pool) in enumerate(
                zip(self.classes, (deep, middle, shallow), (1, 4, 8), strict=True), 1
            )
        ]
        return Stages(*zip(*parts, strict=True))


class SingleStageNet(nn.Module):
    """A baseline: SSR-Net's streams with a single head of about as many parameters.

    Attributes:
      classes: 1: regression by two dense layers; more: scores of classes whose expectation is the number (DEX, Rothe
        et al., IJCV 2018; 27 classes are as many as three stages of three tell apart).
      span: width of the range, whose classes have centres at equal distances.
      momentum, axis_name, dtype: of the trunk.
    """

    classes: int = 27
    span: float = 101.0
    momentum: float = 0.99
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """RGB [N, H, W, 3] in 0..255 -> logits [N, classes], or numbers [N] with one class."""
        check_size(images, 38)
        trunk = Streams(momentum=self.momentum, axis_name=self.axis_name, dtype=self.dtype, name="trunk")
        maps = trunk(images.astype(self.dtype), train=train)[-1]
        conv = partial(Conv, 10, 1, use_bias=True, kernel_init=GLOROT, dtype=self.dtype)
        first, second = (
            nn.relu(conv(name=f"{name}_reduced")(x)) for name, x in zip(("first", "second"), maps, strict=True)
        )
        x = (first * second).reshape(len(first), -1).astype(jnp.float32)
        if self.classes > 1:
            return nn.Dense(self.classes, kernel_init=GLOROT, name="logits")(x)
        x = nn.relu(nn.Dense(25, kernel_init=GLOROT, name="hidden")(x))
        return self.span * nn.Dense(1, kernel_init=GLOROT, name="number")(x)[:, 0]

    def number(self, outputs: jax.Array) -> jax.Array:
        """The network's outputs -> numbers [N]."""
        return jax.nn.softmax(outputs) @ class_centres(self.classes, self.span) if self.classes > 1 else outputs

    def loss(self, outputs: jax.Array, truth: jax.Array) -> jax.Array:
        """[N]: cross-entropy with the two nearest classes, whose mean is the truth [N]; or the absolute error."""
        if self.classes == 1:
            return absolute_error(outputs, truth)
        place = truth / self.span * self.classes - 0.5
        weights = jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(self.classes)), 0)
        return -jnp.sum(weights / weights.sum(1, keepdims=True) * jax.nn.log_softmax(outputs), 1)


def class_centres(classes: int, span: float) -> jax.Array:
    """Centres [classes] of equal parts of 0..span."""
    return (jnp.arange(classes) + 0.5) * (span / classes)


class SeparableStreams(nn.Module):
    """Trunk of FSA-Net and of the multi-dimensional SSR-Net: per stream seven separable 3x3 convolutions, padded.

    Attributes:
      widths: channels before the first pooling, and after the first, second and third.
      reduced: channels of the 1x1 convolutions on the maps.
      momentum: of the running averages of batch norm.
      axis_name: shares batch statistics over this mapped axis.
      dtype: of the computation.
    """

    widths: tuple[int, int, int, int] = (16, 32, 64, 128)
    reduced: int = 64
    momentum: float = 0.99
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> list[tuple[jax.Array, jax.Array]]:
        """[N, H, W, 3] -> (first stream, second stream) of three depths, deepest first: strides 8, 8 and 4."""
        conv = partial(Conv, kernel_init=GLOROT, dtype=self.dtype)
        streams = []
        for stream, (activation, pool) in zip(("first", "second"), POOLS, strict=True):
            x, maps, number = images.astype(self.dtype), [], 0
            for depth, width in enumerate(self.widths):
                for _ in range(2 if depth else 1):
                    name, number = f"{stream}{number}", number + 1
                    x = conv(x.shape[-1], 3, padding=1, groups=x.shape[-1], name=f"{name}_depthwise")(x)
                    x = self._pointwise(width, activation, f"{name}_pointwise")(x, train=train)
                x = pool(x, (2, 2), (2, 2)) if depth < 3 else x
                maps.append(x)
            reduced = [
                activation(conv(self.reduced, 1, use_bias=True, name=f"{stream}_reduced{k}")(m))
                for k, m in enumerate(maps[:0:-1], 1)
            ]
            streams.append(reduced)
        return list(zip(*streams, strict=True))

    def _pointwise(self, width: int, activation: Callable[[jax.Array], jax.Array], name: str) -> ConvNorm:
        return ConvNorm(
            width,
            1,
            activation=activation,
            use_bias=True,
            kernel_init=GLOROT,
            momentum=self.momentum,
            epsilon=1e-3,
            axis_name=self.axis_name,
            dtype=self.dtype,
            name=name,
        )


class MultiSSRNet(nn.Module):
    """SSR-Net for several numbers around zero, such as yaw, pitch and roll in degrees.

    Attributes:
      outputs: D, numbers per image.
      classes: s, classes of each stage; odd, the middle one is zero.
      span: V, width of the range.
      stretch_weight: lambda_d.
      smallest: lower bound of 1 + Delta; see `soft_stagewise`.
      widths, reduced, momentum, axis_name, dtype: of the trunk; see `SeparableStreams`.
    """

    outputs: int = 3
    classes: tuple[int, int, int] = (3, 3, 3)
    span: float = 99.0
    stretch_weight: float = 1.0
    smallest: float = 0.0
    widths: tuple[int, int, int, int] = (16, 32, 64, 128)
    reduced: int = 64
    momentum: float = 0.99
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """RGB [N, H, W, 3] in 0..255, published for 64 x 64 -> [N, D]."""
        check_size(images, 16)
        trunk = SeparableStreams(self.widths, self.reduced, self.momentum, self.axis_name, self.dtype, name="trunk")
        dense = partial(nn.Dense, kernel_init=GLOROT, dtype=self.dtype)
        parts = []
        for k, (classes, maps) in enumerate(zip(self.classes, trunk(images, train=train), strict=True), 1):
            first, second = (pool(x, (2, 2), (2, 2)) for x, (_, pool) in zip(maps, POOLS, strict=True))
            x = (first * second).reshape(images.shape[0], -1)
            scores = nn.relu(dense(classes * self.outputs, name=f"scores{k}")(x))
            moves = []
            for name in ("stretch", "shift"):
                hidden = nn.tanh(dense(2 * self.outputs, name=f"{name}_hidden{k}")(x))
                moves.append(nn.tanh(dense(self.outputs, name=f"{name}{k}")(hidden)))
            parts.append((scores.reshape(images.shape[0], self.outputs, classes), moves[1][..., None], moves[0]))
        options = {"centred": True, "stretch_weight": self.stretch_weight, "smallest": self.smallest}
        return soft_stagewise(Stages(*zip(*parts, strict=True)), self.span, **options)


def check_size(images: jax.Array, smallest: int) -> None:
    """Raises ValueError unless images are [N, H, W, 3] with sides of at least `smallest` pixels."""
    if images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < smallest:
        raise ValueError(f"images of shape {images.shape}: expected [N, H, W, 3], sides of {smallest} pixels or more")
