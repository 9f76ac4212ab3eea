"""ResNet: residual networks for ImageNet, whole or as four named feature maps.

He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016. arXiv:1512.03385.
The layout is torchvision's, "v1.5": a bottleneck's stride is in its 3x3 convolution; `stride_in_1x1` puts it in the
first 1x1, as in the paper ("v1") and its authors' detectors. The last stage can dilate its convolutions in place of a
stride, and 3x3 convolutions can be of another kind, such as deformable. With `output_stride` 16 every 3x3 of stage 5 is
dilated by 2 (R-FCN, DeepLab); torchvision's `replace_stride_with_dilation` does not dilate the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.blocks import rematerialised
from facejax.nn.conv import Conv
from facejax.nn.init import kaiming_normal_fan_out, torch_default
from facejax.nn.norm import BatchNorm
from facejax.ops.pooling import max_pool

Dtype = Any
ConvFactory = Callable[..., nn.Module]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the width; the shortcut is added before the last ReLU.

    Attributes:
      features: width of the inner convolutions.
      stride: of the block; in its first 3x3 convolution, or see `stride_in_1x1`.
      dilation: of its 3x3 convolutions.
      bottleneck: whether the block has three convolutions.
      conv: constructor of the 3x3 convolutions.
      stride_in_1x1, axis_name, dtype: see `ResNet`.
    """

    features: int
    stride: int
    dilation: int
    bottleneck: bool
    conv: ConvFactory
    stride_in_1x1: bool = False
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        plain = partial(Conv, kernel_init=kaiming_normal_fan_out, dtype=self.dtype)
        wide = partial(
            self.conv,
            self.features,
            3,
            padding=self.dilation,
            dilation=self.dilation,
            kernel_init=kaiming_normal_fan_out,
            dtype=self.dtype,
        )
        norm = partial(BatchNorm, self.axis_name, dtype=self.dtype)
        outputs, shortcut = self.features * (4 if self.bottleneck else 1), x
        if self.stride > 1 or x.shape[-1] != outputs:
            shortcut = plain(outputs, 1, self.stride, name="shortcut_conv")(x)
            shortcut = norm(name="shortcut_bn")(shortcut, train=train)
        if self.bottleneck:
            layers = [
                plain(self.features, 1, self.stride if self.stride_in_1x1 else 1, name="conv1"),
                wide(strides=1 if self.stride_in_1x1 else self.stride, name="conv2"),
                plain(outputs, 1, name="conv3"),
            ]
        else:
            layers = [wide(strides=self.stride, name="conv1"), wide(strides=1, name="conv2")]
        for i, layer in enumerate(layers, 1):
            x = norm(name=f"bn{i}")(layer(x), train=train)
            x = nn.relu(x) if i < len(layers) else x
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """Images to class scores or feature maps.

    Attributes:
      depths: blocks of stages 2 to 5.
      bottleneck: whether blocks have three convolutions, not two.
      num_classes: C.
      widths: inner channels of stages 2 to 5; the stem has the first's.
      output_stride: 32, or 16: stage 5 then has stride 1 and dilates its 3x3 convolutions by 2.
      stride_in_1x1: a bottleneck's stride is in its first convolution (v1), not in its 3x3 (v1.5).
      conv: constructor of the 3x3 convolutions of `conv_stages`; called as `conv(features, 3, strides=..., padding=...,
        dilation=..., kernel_init=..., dtype=..., name=...)`. All others are `Conv`.
      conv_stages: of 2 to 5.
      axis_name: mapped axis over which batch statistics are averaged; the published runs average over none.
      dtype: of the trunk; the dense layer stays in float32.
      remat: whether the backward pass computes the insides of blocks anew, which saves memory; see `rematerialised`.
    """

    depths: tuple[int, ...]
    bottleneck: bool
    num_classes: int = 1000
    widths: tuple[int, ...] = (64, 128, 256, 512)
    output_stride: int = 32
    stride_in_1x1: bool = False
    conv: ConvFactory = Conv
    conv_stages: tuple[int, ...] = (5,)
    axis_name: str | None = None
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False) -> jax.Array | dict[str, jax.Array]:
        """Scores of classes.

        Args:
          images: [N, H, W, 3] RGB, normalised to mean 0 and deviation 1 per channel.
          train: whether batch norm uses the batch's statistics.
          features: whether to return the stages' outputs; there is then no dense layer.

        Returns:
          [N, num_classes]; or {"c2", "c3", "c4", "c5"}, of strides 4, 8, 16 and `output_stride`.
        """
        if self.output_stride not in (16, 32):
            raise ValueError(f"ResNet.output_stride is {self.output_stride}: expected 16 or 32")
        x = Conv(self.widths[0], 7, 2, 3, kernel_init=kaiming_normal_fan_out, dtype=self.dtype, name="conv1")(images)
        x = nn.relu(BatchNorm(self.axis_name, dtype=self.dtype, name="bn1")(x, train=train))
        x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        found = {}
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 2):
            dilated = stage == 5 and self.output_stride == 16
            conv = self.conv if stage in self.conv_stages else Conv
            for block in range(depth):
                layer = ResidualBlock(
                    width,
                    2 if stage > 2 and block == 0 and not dilated else 1,
                    2 if dilated else 1,
                    self.bottleneck,
                    conv,
                    self.stride_in_1x1,
                    self.axis_name,
                    self.dtype,
                    name=f"layer{stage - 1}_{block}",
                )
                x = rematerialised(layer, self.remat)(x, train=train)
            found[f"c{stage}"] = x
        if features:
            return found
        x = x.astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.num_classes, kernel_init=torch_default, name="fc")(x)


resnet18 = partial(ResNet, (2, 2, 2, 2), False)
resnet34 = partial(ResNet, (3, 4, 6, 3), False)
resnet50 = partial(ResNet, (3, 4, 6, 3), True)
resnet101 = partial(ResNet, (3, 4, 23, 3), True)
resnet152 = partial(ResNet, (3, 8, 36, 3), True)
