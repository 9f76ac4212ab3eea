"""MobileNet V1 and V2: image classifiers and trunks of a few hundred million multiply-adds.

V1: Howard et al. "MobileNets: efficient convolutional neural networks for mobile vision applications". 2017.
arXiv:1704.04861. A 3x3 convolution becomes a depthwise 3x3 and a 1x1: 1 / N + 1 / 9 of the operations.
V2: Sandler, Howard, Zhu, Zhmoginov, Chen. "MobileNetV2: inverted residuals and linear bottlenecks". CVPR 2018.
arXiv:1801.04381. Blocks expand, filter depthwise and project linearly; shortcuts connect the narrow layers.
Differs from the papers: the last depthwise layer of V1 has stride 1 (its Table 1 prints 2, against its own sizes).
Choices that they leave open follow the authors' code: ReLU6 in V1 too, kernels from a truncated normal of 0.09.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.blocks import ConvNorm

Dtype = Any

truncated_normal = nn.initializers.truncated_normal(0.09)

V1_LAYERS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1),
)  # fmt: skip
"""(channels, stride) of V1's layers after the stem (Table 1)."""

V2_GROUPS = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
"""(expansion, channels, blocks, stride of the first) of V2's groups of blocks (Table 2)."""


def rounded(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, never more than a tenth below `channels`."""
    near = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * channels else near


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the input's channels, depthwise 3x3, 1x1 to `features` (Table 1 of V2).

    Attributes:
      features: output channels.
      expansion: t; 1 has no first convolution.
      stride: of the depthwise convolution. With stride 1 and equal input and output channels, the input is added.
      linear: whether the projection has no activation; if not, a ReLU6, which the paper shows to lose information.
      block: constructor of the convolution block.
    """

    features: int
    expansion: int
    stride: int
    linear: bool
    block: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, features]."""
        channels, y = x.shape[-1], x
        wide = channels * self.expansion
        if self.expansion > 1:
            y = self.block(wide, 1, padding=0, name="expand")(y, train=train)
        y = self.block(wide, 3, self.stride, groups=wide, name="depthwise")(y, train=train)
        activation = {"activation": None} if self.linear else {}
        y = self.block(self.features, 1, padding=0, name="project", **activation)(y, train=train)
        return x + y if self.stride == 1 and channels == self.features else y


class MobileNetV1(nn.Module):
    """Images to class scores.

    Attributes:
      num_classes: C; 0 has no classifier and returns the pooled features.
      width: alpha, multiplies all channels.
      separable: depthwise and 1x1 convolutions; if not, one full 3x3 convolution, the baseline of Table 4.
      dropout: rate before the classifier.
      stem_stride: of the first layer; 1 suits images of half the size.
      padding: of the 3x3 convolutions: "SAME" as in TensorFlow, or 1 as in PyTorch's versions.
      activation: after every convolution.
      kernel_init: initialiser of the convolutions.
      momentum, epsilon: of batch norms; the authors' code, 0.9997 and 1e-3.
      axis_name: mapped axis over which batch statistics are averaged.
      dtype: of the trunk; the classifier stays in float32.
    """

    num_classes: int = 1000
    width: float = 1.0
    separable: bool = True
    dropout: float = 1e-3
    stem_stride: int = 2
    padding: int | str = "SAME"
    activation: Callable[[jax.Array], jax.Array] = nn.relu6
    kernel_init: Any = truncated_normal
    momentum: float = 0.9997
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False) -> jax.Array | dict[str, jax.Array]:
        """Scores of images.

        Args:
          images: [N, H, W, 3] RGB in -1..1.
          train: whether dropout and the batch's statistics are used.
          features: whether to return every named intermediate.

        Returns:
          [N, C] logits; or {"stride2", "stride4", ..., "stride32", "pooled", "logits"}, of each stride the last layer.
        """
        block = _block(self, images)
        x = block(max(8, int(32 * self.width)), 3, self.stem_stride, name="stem")(images, train=train)
        stride, found = self.stem_stride, {f"stride{self.stem_stride}": x}
        for i, (channels, step) in enumerate(V1_LAYERS, 1):
            channels = max(8, int(channels * self.width))
            if self.separable:
                x = block(x.shape[-1], 3, step, groups=x.shape[-1], name=f"depthwise{i}")(x, train=train)
                x = block(channels, 1, padding=0, name=f"pointwise{i}")(x, train=train)
            else:
                x = block(channels, 3, step, name=f"conv{i}")(x, train=train)
            stride *= step
            found[f"stride{stride}"] = x
        return _classify(self, x, found, train, features)


class MobileNetV2(nn.Module):
    """Images to class scores; fields and call as in `MobileNetV1`, and

    Attributes:
      linear: linear bottlenecks; False is the paper's ablation (its Fig. 6a), a ReLU6 after every projection.
    """

    num_classes: int = 1000
    width: float = 1.0
    linear: bool = True
    dropout: float = 0.2
    stem_stride: int = 2
    padding: int | str = "SAME"
    activation: Callable[[jax.Array], jax.Array] = nn.relu6
    kernel_init: Any = truncated_normal
    momentum: float = 0.997
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False) -> jax.Array | dict[str, jax.Array]:
        """[N, H, W, 3] -> [N, C], or {"stride2", ..., "stride32", "last", "pooled", "logits"}; see `MobileNetV1`."""
        block = _block(self, images)
        x = block(rounded(32 * self.width), 3, self.stem_stride, name="stem")(images, train=train)
        stride, found = self.stem_stride, {}
        for group, (expansion, channels, blocks, step) in enumerate(V2_GROUPS):
            stride *= step
            for i in range(blocks):
                x = InvertedResidual(
                    rounded(channels * self.width),
                    expansion,
                    step if i == 0 else 1,
                    self.linear,
                    block,
                    name=f"group{group}_{i}",
                )(x, train=train)
            found[f"stride{stride}"] = x
        x = block(max(1280, rounded(1280 * self.width)), 1, padding=0, name="last")(x, train=train)
        return _classify(self, x, {**found, "last": x}, train, features)


def _block(net: MobileNetV1 | MobileNetV2, images: jax.Array) -> Any:
    """The convolution block with the network's settings. Checks the input."""
    if images.ndim != 4:
        raise ValueError(f"{type(net).__name__}: images {images.shape}, expected [N, H, W, 3]")
    if net.width <= 0:
        raise ValueError(f"{type(net).__name__}.width is {net.width}: expected above 0")
    return partial(
        ConvNorm,
        padding=net.padding,
        activation=net.activation,
        kernel_init=net.kernel_init,
        momentum=net.momentum,
        epsilon=net.epsilon,
        axis_name=net.axis_name,
        dtype=net.dtype,
    )


def _classify(
    net: MobileNetV1 | MobileNetV2, x: jax.Array, found: dict[str, jax.Array], train: bool, features: bool
) -> jax.Array | dict[str, jax.Array]:
    """Global mean, dropout and dense layer, in the caller's scope."""
    pooled = x.mean((1, 2)).astype(jnp.float32)
    found = {**found, "pooled": pooled}
    if net.num_classes:
        kept = nn.Dropout(net.dropout, deterministic=not train)(pooled)
        found["logits"] = nn.Dense(net.num_classes, kernel_init=nn.initializers.normal(0.01), name="fc")(kept)
    return found if features else found.get("logits", pooled)


mobilenet_v1 = MobileNetV1
mobilenet_v2 = MobileNetV2
