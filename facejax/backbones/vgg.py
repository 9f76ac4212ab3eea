"""VGG: the networks of 3 x 3 convolutions with 16 and 19 layers, and the earlier, faster VGG-M.

Simonyan & Zisserman, ICLR 2015, arXiv:1409.1556 (configurations D and E); Chatfield, Simonyan, Vedaldi, Zisserman,
BMVC 2014, arXiv:1405.3531 (CNN-M). Every intermediate has its Caffe name ("relu1_2", "pool4"), by which perceptual
losses, style transfer and detectors select them.

Differs from the papers: He's normal (fan out) initialises the kernels, as in torchvision, not a shallower network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.conv import Conv
from facejax.nn.init import kaiming_normal_fan_out
from facejax.nn.norm import local_response_norm
from facejax.ops.pooling import ceil_padding, max_pool

Dtype = Any


class Classifier(nn.Module):
    """Two hidden layers with dropout and the class scores: fc6, fc7, fc8.

    Attributes:
      num_classes: C.
      hidden: width of fc6 and fc7.
      dropout: rate after each of them.
      dtype: of the computation; the scores are float32.
    """

    num_classes: int
    hidden: int = 4096
    dropout: float = 0.5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """[N, H, W, C] -> {"relu6", "relu7", "logits"}; H, W, C are flattened in this order."""
        x = x.reshape(x.shape[0], -1)
        found = {}
        for layer in (6, 7):
            dense = nn.Dense(self.hidden, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name=f"fc{layer}")
            x = found[f"relu{layer}"] = nn.relu(dense(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        dense = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="fc8")
        return {**found, "logits": dense(x.astype(jnp.float32))}


class VGG(nn.Module):
    """3 x 3 convolutions in stages, each followed by 2 x 2 max pooling.

    Attributes:
      depths: convolutions in each stage.
      widths: channels of each stage.
      num_classes: C of the classifier; None has no classifier.
      hidden, dropout: of the head.
      dtype: of the computation.
    """

    depths: Sequence[int]
    widths: Sequence[int] = (64, 128, 256, 512, 512)
    num_classes: int | None = None
    hidden: int = 4096
    dropout: float = 0.5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False) -> jax.Array | dict[str, jax.Array]:
        """Class scores or features of images.

        Args:
          images: [N, H, W, 3], as the weights expect them (torchvision's: RGB in 0..1, less the ImageNet mean, divided
            by its deviation). With a head the sides fix its size: 224 in the paper.
          train: whether dropout is used.
          features: whether to return every named intermediate; under jit, unused ones cost nothing.

        Returns:
          [N, C] scores, or without a head [N, H / 32, W / 32, 512] of the last pool; or
          {"relu1_1", "relu1_2", "pool1", ..., "pool5"} and with a head {"relu6", "relu7", "logits"}.
        """
        x, found = images, {}
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for layer in range(1, depth + 1):
                x = _conv(width, 3, padding=1, dtype=self.dtype, name=f"conv{stage}_{layer}")(x)
                x = found[f"relu{stage}_{layer}"] = nn.relu(x)
            x = found[f"pool{stage}"] = max_pool(x, (2, 2), (2, 2))
        return _finish(self, x, found, train, features)


class VGGM(nn.Module):
    """CNN-M: 7 x 7, 5 x 5 and three 3 x 3 convolutions, local response normalisation after the first two.

    Attributes: as in `VGG`; `widths` are of the five convolutions.
    """

    widths: Sequence[int] = (96, 256, 512, 512, 512)
    num_classes: int | None = None
    hidden: int = 4096
    dropout: float = 0.5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False) -> jax.Array | dict[str, jax.Array]:
        """As in `VGG`; the names are {"relu1", "pool1", "relu2", "pool2", "relu3", "relu4", "relu5", "pool5", ...}."""
        x, found = images, {}
        plan = ((7, 2, 0), (5, 2, 1), (3, 1, 1), (3, 1, 1), (3, 1, 1))
        for layer, (width, (size, stride, padding)) in enumerate(zip(self.widths, plan, strict=True), 1):
            x = _conv(width, size, stride, padding, dtype=self.dtype, name=f"conv{layer}")(x)
            x = found[f"relu{layer}"] = nn.relu(x)
            if layer <= 2:
                x = local_response_norm(x)
            if layer in (1, 2, 5):
                x = found[f"pool{layer}"] = max_pool(x, (3, 3), (2, 2), ceil_padding(x.shape[1:3], (3, 3), (2, 2)))
        return _finish(self, x, found, train, features)


def _conv(features: int, *args: Any, **options: Any) -> Conv:
    return Conv(features, *args, use_bias=True, kernel_init=kaiming_normal_fan_out, **options)


def _finish(net: VGG | VGGM, x: jax.Array, found: dict[str, jax.Array], train: bool, features: bool) -> Any:
    """The classifier, if any; returns logits, the last map, or all features."""
    if 0 in x.shape[1:3]:
        raise ValueError(
            f"{type(net).__name__}: a last map of {x.shape[1]} x {x.shape[2]} pixels: expected larger images"
        )
    if net.num_classes is not None:
        head = Classifier(net.num_classes, net.hidden, net.dropout, net.dtype, name="classifier")
        found |= head(x, train=train)
        x = found["logits"]
    return found if features else x


vgg16 = partial(VGG, (2, 2, 3, 3, 3))
vgg19 = partial(VGG, (2, 2, 4, 4, 4))
vgg_m = VGGM
