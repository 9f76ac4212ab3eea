"""ZFNet: AlexNet with smaller filters and strides in its first layers; it won ImageNet 2013.

Zeiler & Fergus, ECCV 2014, arXiv:1311.2901, Fig. 3.

Differs from the paper: it does not give the constants of the contrast normalisation across feature maps; here they are
AlexNet's. The padding reproduces the paper's map sizes (110, 55, 26, 13, 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.backbones.vgg import Classifier
from facejax.nn.conv import Conv
from facejax.nn.norm import local_response_norm
from facejax.ops.pooling import max_pool

Dtype = Any
Initializer = Any


class ZFNet(nn.Module):
    """Five convolutions (7 x 7, 5 x 5 and three of 3 x 3) and three dense layers.

    Attributes:
      num_classes: C of the classifier; None has no classifier.
      widths: channels of the convolutions.
      hidden, dropout: of the head.
      kernel_init: of the convolutions; the default is the paper's, with which a narrow network barely trains.
      dtype: of the computation; the scores are float32.
    """

    num_classes: int | None = 1000
    widths: Sequence[int] = (96, 256, 384, 384, 256)
    hidden: int = 4096
    dropout: float = 0.5
    kernel_init: Initializer = nn.initializers.normal(0.01)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False) -> jax.Array | dict[str, jax.Array]:
        """Class scores or features of images.

        Args:
          images: [N, H, W, 3], RGB in 0..255 less its mean. The classifier is for one size: 224 in the paper.
          train: whether dropout is used.
          features: whether to return every named intermediate.

        Returns:
          [N, C] scores, or without a head the last pool [N, H', W', 256]; or {"relu1", "pool1", "norm1", "relu2",
          "pool2", "norm2", "relu3", "relu4", "relu5", "pool5"} and with a head {"relu6", "relu7", "logits"}.
        """
        if min(images.shape[1:3]) < 53:
            raise ValueError(f"ZFNet: images {images.shape}, expected [N, H, W, 3] with sides of 53 pixels or more")
        x, found = images, {}
        plan = ((7, 2, 1), (5, 2, 0), (3, 1, 1), (3, 1, 1), (3, 1, 1))
        for layer, (width, (size, stride, padding)) in enumerate(zip(self.widths, plan, strict=True), 1):
            convolution = Conv(
                width, size, stride, padding, use_bias=True, kernel_init=self.kernel_init,
                dtype=self.dtype, name=f"conv{layer}",
            )  # fmt: skip
            x = found[f"relu{layer}"] = nn.relu(convolution(x))
            if layer in (1, 2, 5):
                edge = 0 if layer == 5 else 1
                x = found[f"pool{layer}"] = max_pool(x, (3, 3), (2, 2), ((edge, edge),) * 2)
            if layer <= 2:
                x = found[f"norm{layer}"] = local_response_norm(x)
        if self.num_classes is not None:
            found |= Classifier(self.num_classes, self.hidden, self.dropout, self.dtype, name="classifier")(
                x, train=train
            )
            x = found["logits"]
        return found if features else x
