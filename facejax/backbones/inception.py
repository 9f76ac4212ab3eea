"""Inception: GoogLeNet (V1), BN-Inception and Inception V3, classifiers with filters of several sizes in parallel.

V1: Szegedy et al. "Going deeper with convolutions". CVPR 2015. arXiv:1409.4842.
BN-Inception: Ioffe & Szegedy. "Batch normalization". ICML 2015. arXiv:1502.03167, its Fig. 5; TF-slim's inception_v2.
V3: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna. "Rethinking the Inception architecture for computer vision". CVPR 2016.
arXiv:1512.00567.
Choices that the papers leave open follow public code: V1 Caffe's bvlc_googlenet (padding of the first layer, Xavier's
uniform, biases of 0.2, dropout), the others TF-slim (96 channels after the pools of 4c and 4d, batch norm, He's
normal).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv, explicit_padding
from facejax.nn.norm import local_response_norm
from facejax.ops.pooling import adaptive_avg_pool, avg_pool, ceil_padding, max_pool

Dtype = Any
Kernel = int | tuple[int, int]

Outputs = jax.Array | list[jax.Array] | dict[str, jax.Array]

xavier_uniform = nn.initializers.lecun_uniform()  # Caffe's "xavier" counts inputs only
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


class Plan(NamedTuple):
    """The parallel branches of a module.

    Attributes:
      branches: of each its successive convolutions, (channels, kernel); several kernels, (channels, kernel, kernel),
        are parallel convolutions whose outputs are concatenated.
      pool: the last branch: "max", "avg", or "" for none.
      pool_channels: of a 1x1 convolution after the pool; 0 has none.
      stride: of every branch's last convolution and of the pool.
      window: side of the pool's window.
    """

    branches: Sequence[Sequence[tuple[int, Kernel] | tuple[int, Kernel, Kernel]]]
    pool: str = "max"
    pool_channels: int = 0
    stride: int = 1
    window: int = 3


Modules = tuple[tuple[str, Plan], ...]


def v1_modules(kernel: int = 5, last_window: int = 3) -> Modules:
    """V1's modules and pools (Table 1): 1x1; 1x1, 3x3; 1x1, 5x5; maximum, 1x1.

    Args:
      kernel: side of the largest filters, which are 5x5 in the paper.
      last_window: of the last pool.
    """

    def plan(ones: int, reduce3: int, threes: int, reduce5: int, fives: int, pool: int) -> Plan:
        return Plan((((ones, 1),), ((reduce3, 1), (threes, 3)), ((reduce5, 1), (fives, kernel))), "max", pool)

    return (
        ("3a", plan(64, 96, 128, 16, 32, 32)),
        ("3b", plan(128, 128, 192, 32, 96, 64)),
        ("pool3", Plan((), stride=2)),
        ("4a", plan(192, 96, 208, 16, 48, 64)),
        ("4b", plan(160, 112, 224, 24, 64, 64)),
        ("4c", plan(128, 128, 256, 24, 64, 64)),
        ("4d", plan(112, 144, 288, 32, 64, 64)),
        ("4e", plan(256, 160, 320, 32, 128, 128)),
        ("pool4", Plan((), stride=2, window=last_window)),
        ("5a", plan(256, 160, 320, 32, 128, 128)),
        ("5b", plan(384, 192, 384, 48, 128, 128)),
    )


def _bn(ones: int, reduce3: int, threes: int, reduce33: int, pairs: int, pool: str, channels: int) -> Plan:
    """A row of the BN paper's Fig. 5: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; pool, 1x1. Without a 1x1 branch it has stride 2."""
    factored = ((reduce3, 1), (threes, 3)), ((reduce33, 1), (pairs, 3), (pairs, 3))
    return Plan((((ones, 1),), *factored), pool, channels) if ones else Plan(factored, pool, channels, stride=2)


BN_MODULES: Modules = (
    ("3a", _bn(64, 64, 64, 64, 96, "avg", 32)),
    ("3b", _bn(64, 64, 96, 64, 96, "avg", 64)),
    ("3c", _bn(0, 128, 160, 64, 96, "max", 0)),
    ("4a", _bn(224, 64, 96, 96, 128, "avg", 128)),
    ("4b", _bn(192, 96, 128, 96, 128, "avg", 128)),
    ("4c", _bn(160, 128, 160, 128, 160, "avg", 96)),
    ("4d", _bn(96, 128, 192, 160, 192, "avg", 96)),
    ("4e", _bn(0, 128, 192, 192, 256, "max", 0)),
    ("5a", _bn(352, 192, 320, 160, 224, "avg", 128)),
    ("5b", _bn(352, 192, 320, 192, 224, "max", 128)),
)


def _v3_35(pool: int) -> Plan:
    """V3's Fig. 5, on maps of 35 pixels."""
    return Plan((((64, 1),), ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3))), "avg", pool)


def _v3_17(c: int) -> Plan:
    """V3's Fig. 6, on maps of 17 pixels: 7x7 convolutions as 1x7 and 7x1."""
    once = (c, 1), (c, (1, 7)), (192, (7, 1))
    twice = (c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))
    return Plan((((192, 1),), once, twice), "avg", 192)


_V3_8 = Plan((((320, 1),), ((384, 1), (384, (1, 3), (3, 1))), ((448, 1), (384, 3), (384, (1, 3), (3, 1)))), "avg", 192)
"""V3's Fig. 7, on maps of 8 pixels: parallel 1x3 and 3x1 convolutions with many channels."""

V3_MODULES: Modules = (
    ("5b", _v3_35(32)),
    ("5c", _v3_35(64)),
    ("5d", _v3_35(64)),
    ("6a", Plan((((384, 3),), ((64, 1), (96, 3), (96, 3))), stride=2)),
    ("6b", _v3_17(128)),
    ("6c", _v3_17(160)),
    ("6d", _v3_17(160)),
    ("6e", _v3_17(192)),
    ("7a", Plan((((192, 1), (320, 3)), ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3))), stride=2)),
    ("7b", _V3_8),
    ("7c", _V3_8),
)
"""By the names of TF-slim and torchvision without "Mixed_"."""


class ConvRelu(nn.Module):
    """A convolution with bias and a ReLU, with the interface of `ConvNorm`; fields as in `facejax.nn.conv.Conv`."""

    features: int
    kernel_size: Kernel
    strides: int = 1
    padding: int | str = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H', W', features]."""
        convolution = Conv(
            self.features, self.kernel_size, self.strides, self.padding, use_bias=True, kernel_init=xavier_uniform,
            bias_init=nn.initializers.constant(0.2), dtype=self.dtype, name="conv",
        )  # fmt: skip
        return nn.relu(convolution(x))


class Mixed(nn.Module):
    """An Inception module: the branches of a plan on one input, concatenated along the channels.

    Attributes:
      plan: the branches.
      width: multiplies their channels.
      block: constructor of a convolution with its norm and activation.
      valid: whether strided layers use no padding, as in V3; if not, TensorFlow's "SAME".
      count_padding: whether average pools count the padding at the edges, as PyTorch's versions do.
      ceil: whether strided pools use the ceil mode of Caffe and PyTorch, as in V1.
    """

    plan: Plan
    width: float
    block: Callable[..., nn.Module]
    valid: bool = False
    count_padding: bool = False
    ceil: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, C'], in the order of the branches, the pool last."""
        plan, outputs = self.plan, []
        padding = 0 if self.valid and plan.stride > 1 else "SAME"
        for b, layers in enumerate(plan.branches):
            y = x
            for i, (channels, *kernels) in enumerate(layers):
                end = (plan.stride, padding) if i == len(layers) - 1 else (1, "SAME")
                names = [f"branch{b}_{i}{letter}" for letter in ("ab" if len(kernels) > 1 else " ")]
                blocks = [
                    self.block(scaled(channels, self.width), kernel, *end, name=name.strip())
                    for kernel, name in zip(kernels, names, strict=True)
                ]
                y = join([block(y, train=train) for block in blocks])
            outputs.append(y)
        if not plan.pool:
            return join(outputs)
        edges = "CEIL" if self.ceil and plan.stride > 1 else padding
        y = pool(plan.pool, x, plan.window, plan.stride, edges, self.count_padding)
        if plan.pool_channels:
            y = self.block(scaled(plan.pool_channels, self.width), 1, name="pool")(y, train=train)
        return join([*outputs, y])


class GoogLeNet(nn.Module):
    """Inception V1: images to class scores.

    Attributes:
      num_classes: C.
      width: multiplies all channels.
      auxiliary: side classifiers after 4a and 4d, in training only; the paper weights their losses by 0.3.
      dropout, auxiliary_dropout: rates before the last layers.
      modules: after the stem.
      batch_norm: torchvision's layout: batch norm replaces biases and local response normalisation, and 4 x 4 means of
        any map replace the 5 x 5 averages of the side classifiers.
      momentum, epsilon, axis_name: of batch norms; see `facejax.nn.norm.BatchNorm`.
      dtype: of the trunk; scores are float32.
    """

    num_classes: int = 1000
    width: float = 1.0
    auxiliary: bool = True
    dropout: float = 0.4
    auxiliary_dropout: float = 0.7
    modules: Modules = v1_modules()
    batch_norm: bool = False
    momentum: float = 0.9997
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False) -> Outputs:
        """Scores of images.

        Args:
          images: [N, H, W, 3], RGB in 0..255 less the mean; 224 pixels in the paper. With side classifiers, except
            torchvision's, the size that the variables were made for is fixed.
          train: whether side classifiers, dropout and the batch's statistics are used.
          features: whether to return every named intermediate.

        Returns:
          [N, C] logits; in training with side classifiers a list [main, after 4a, after 4d]; or {"conv1", "pool1",
          "conv2", "pool2", "3a", ..., "5b", "pooled", "logits"} and in training the side classifiers' under "4a_logits"
          and "4d_logits".
        """
        _check(self, images, 1)
        block = _conv_norm(self) if self.batch_norm else partial(ConvRelu, dtype=self.dtype)
        normalise = (lambda x: x) if self.batch_norm else partial(local_response_norm, k=1.0, alpha=2e-5)
        x = block(scaled(64, self.width), 7, 2, 3, name="conv1")(images, train=train)
        found = {"conv1": x, "pool1": pool("max", x, 3, 2, "CEIL")}
        x = normalise(found["pool1"])
        x = block(scaled(64, self.width), 1, name="conv2_reduce")(x, train=train)
        x = found["conv2"] = block(scaled(192, self.width), 3, 1, 1, name="conv2")(x, train=train)
        x = found["pool2"] = pool("max", normalise(x), 3, 2, "CEIL")
        for name, plan in self.modules:
            x = found[name] = Mixed(plan, self.width, block, ceil=True, name=f"mixed{name}")(x, train=train)
            if self.auxiliary and name in ("4a", "4d") and (train or self.is_initializing()):
                head = AuxiliaryHead(
                    self.num_classes, self.width, self.auxiliary_dropout, block, self.batch_norm, self.dtype,
                    name=f"auxiliary{name}",
                )  # fmt: skip
                found[f"{name}_logits"] = head(x, train=train)
        return _classify(self, x, found, xavier_uniform, train, features)


class AuxiliaryHead(nn.Module):
    """V1's side classifier: 5x5 averages with stride 3, 1x1 convolution, two dense layers (Sec. 5).

    Attributes:
      num_classes: C.
      width: multiplies the 128 channels and the 1024 hidden units.
      dropout: before the last layer.
      block: see `Mixed`.
      adaptive: whether 4 x 4 means of any map replace the 5 x 5 averages, as in torchvision.
      dtype: of all but the scores.
    """

    num_classes: int
    width: float
    dropout: float
    block: Callable[..., nn.Module]
    adaptive: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, num_classes]; maps below 5 pixels (14 in the paper) are averaged globally."""
        x = adaptive_avg_pool(x, (4, 4)) if self.adaptive else _averages(x, ceil=True)
        x = self.block(scaled(128, self.width), 1, name="conv")(x, train=train).reshape(x.shape[0], -1)
        hidden = nn.Dense(scaled(1024, self.width), kernel_init=xavier_uniform, dtype=self.dtype, name="fc1")
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(hidden(x)))
        return nn.Dense(self.num_classes, kernel_init=xavier_uniform, name="fc2")(x.astype(jnp.float32))


class BNInception(nn.Module):
    """GoogLeNet with batch norm and two 3x3 in place of each 5x5; fields as in `GoogLeNet`.

    The first 7x7 is separable: eight filters for each colour, then 1x1, as in the paper.
    """

    num_classes: int = 1000
    width: float = 1.0
    dropout: float = 0.2
    momentum: float = 0.9997
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False) -> Outputs:
        """[N, H, W, 3] RGB in -1..1 -> [N, C], or {"conv1", "pool1", "conv2", "pool2", "3a", ..., "logits"}."""
        _check(self, images, 1)
        block, first, colours = _conv_norm(self), scaled(64, self.width), images.shape[-1]
        filters = min(first // colours, 8) * colours
        x = Conv(
            filters, 7, 2, "SAME", groups=colours, kernel_init=he_normal, dtype=self.dtype, name="conv1_depthwise"
        )(images)
        x = block(first, 1, name="conv1")(x, train=train)
        found = {"conv1": x, "pool1": pool("max", x, 3, 2, "SAME")}
        x = block(first, 1, name="conv2_reduce")(found["pool1"], train=train)
        x = found["conv2"] = block(scaled(192, self.width), 3, 1, 1, name="conv2")(x, train=train)
        x = found["pool2"] = pool("max", x, 3, 2, "SAME")
        for name, plan in BN_MODULES:
            x = found[name] = Mixed(plan, self.width, block, name=f"mixed{name}")(x, train=train)
        return _classify(self, x, found, he_normal, train, features)


class InceptionV3(nn.Module):
    """Inception V3; fields as in `GoogLeNet`, and

    Attributes:
      auxiliary: a side classifier after 6e, in training only; TF-slim weights its loss by 0.4.
      count_padding: see `Mixed`; torchvision's weights need it.
    """

    num_classes: int = 1000
    width: float = 1.0
    auxiliary: bool = True
    dropout: float = 0.2
    count_padding: bool = False
    momentum: float = 0.9997
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False) -> Outputs:
        """Scores of images.

        Args:
          images: [N, H, W, 3] RGB in -1..1, of 75 pixels or more; 299 in the paper.
          train: whether the side classifier, dropout and the batch's statistics are used.
          features: whether to return every named intermediate.

        Returns:
          [N, C] logits; in training with a side classifier a list [main, after 6e]; or {"conv1", "conv2", "conv3",
          "pool1", "conv4", "conv5", "pool2", "5b", ..., "7c", "pooled", "logits"} and in training "6e_logits".
        """
        _check(self, images, 75)
        block, x, found = _conv_norm(self), images, {}
        stem = (
            ("conv1", 32, 3, 2, 0), ("conv2", 32, 3, 1, 0), ("conv3", 64, 3, 1, 1), ("pool1",),
            ("conv4", 80, 1, 1, 0), ("conv5", 192, 3, 1, 0), ("pool2",),
        )  # fmt: skip
        for name, *shape in stem:
            if shape:
                channels, *rest = shape
                x = block(scaled(channels, self.width), *rest, name=name)(x, train=train)
            else:
                x = pool("max", x, 3, 2, 0)
            found[name] = x
        for name, plan in V3_MODULES:
            mixed = Mixed(plan, self.width, block, True, self.count_padding, name=f"mixed{name}")
            x = found[name] = mixed(x, train=train)
            if self.auxiliary and name == "6e" and (train or self.is_initializing()):
                found["6e_logits"] = self._side(block, x, train)
        return _classify(self, x, found, he_normal, train, features)

    def _side(self, block: Callable[..., nn.Module], x: jax.Array, train: bool) -> jax.Array:
        """5x5 averages with stride 3, 1x1, a convolution over the whole map, a dense layer."""
        y = block(scaled(128, self.width), 1, name="auxiliary_conv1")(_averages(x), train=train)
        whole, small = (min(5, y.shape[1]), min(5, y.shape[2])), nn.initializers.truncated_normal(0.01)
        y = block(scaled(768, self.width), whole, kernel_init=small, name="auxiliary_conv2")(y, train=train)
        dense = nn.Dense(self.num_classes, kernel_init=nn.initializers.truncated_normal(0.001), name="auxiliary_fc")
        return dense(y.astype(jnp.float32).mean((1, 2)))


def scaled(channels: int, width: float) -> int:
    """Channels times the width multiplier, at least 4."""
    return max(4, int(channels * width))


def pool(
    kind: str, x: jax.Array, window: int, stride: int, padding: int | str, count_padding: bool = False
) -> jax.Array:
    """Maximum ("max") or mean ("avg") over windows, with padding in any form that `Conv` takes, or "CEIL"."""
    size, step = (window, window), (stride, stride)
    if padding == "CEIL":
        edges = ceil_padding(x.shape[1:3], size, step)
    else:
        edges = explicit_padding(padding, x.shape[1:3], size, step)
    if any(n + sum(edge) < window for n, edge in zip(x.shape[1:3], edges, strict=True)):
        raise ValueError(
            f"a pool of {window} x {window} on a map of {x.shape[1]} x {x.shape[2]}: expected larger images"
        )
    if kind == "max":
        return max_pool(x, size, step, edges)
    return avg_pool(x, size, step, edges, count_padding=count_padding)


def join(parts: Sequence[jax.Array]) -> jax.Array:
    """Maps [N, H, W, C_i] concatenated along the channels."""
    return jnp.concatenate(parts, -1)


def _averages(x: jax.Array, ceil: bool = False) -> jax.Array:
    """5x5 averages with stride 3, in Caffe's ceil mode if asked; smaller maps are averaged globally."""
    window = min(5, x.shape[1]), min(5, x.shape[2])
    if ceil:
        return avg_pool(x, window, (3, 3), ceil_padding(x.shape[1:3], window, (3, 3)), count_padding=False)
    return avg_pool(x, window, (3, 3))


def _conv_norm(net: nn.Module) -> Callable[..., nn.Module]:
    return partial(
        ConvNorm,
        kernel_init=he_normal,
        momentum=net.momentum,
        epsilon=net.epsilon,
        axis_name=net.axis_name,
        dtype=net.dtype,
    )


def _check(net: nn.Module, images: jax.Array, side: int) -> None:
    if images.ndim != 4 or min(images.shape[1:3]) < side:
        raise ValueError(
            f"{type(net).__name__}: images {images.shape}, expected [N, H, W, 3] with sides of {side} pixels or more"
        )
    if net.width <= 0:
        raise ValueError(f"{type(net).__name__}.width is {net.width}: expected above 0")


def _classify(
    net: nn.Module, x: jax.Array, found: dict[str, jax.Array], kernel_init: Any, train: bool, features: bool
) -> Outputs:
    """Global mean, dropout and dense layer, in the caller's scope; returns logits, or all features."""
    found["pooled"] = x.astype(jnp.float32).mean((1, 2))
    kept = nn.Dropout(net.dropout, deterministic=not train)(found["pooled"])
    found["logits"] = nn.Dense(net.num_classes, kernel_init=kernel_init, name="fc")(kept)
    if features:
        return found
    sides = [value for name, value in found.items() if name.endswith("_logits")]
    return [found["logits"], *sides] if train and sides else found["logits"]


googlenet = GoogLeNet
googlenet_torchvision = partial(GoogLeNet, modules=v1_modules(3, 2), batch_norm=True, momentum=0.9, dropout=0.2)
"""torchvision's version, for its weights: batch norm, 3x3 where the paper has 5x5, a last pool of 2x2."""
bn_inception = BNInception
inception_v3 = InceptionV3
inception_v3_torchvision = partial(InceptionV3, count_padding=True, momentum=0.9, dropout=0.5)
"""torchvision's version, for its weights."""
