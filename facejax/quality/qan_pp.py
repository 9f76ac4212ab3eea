"""QAN++: a separate quality network weights the frames of a video; its scores are scaled to 0..1 within the video.

Liu, Song, Zhang, Liu, Zhou, Yan. "Towards flops-constrained face recognition". ICCV Workshops 2019. arXiv:1909.00632.
The paper's loss is in `facejax.recognition.arcnegface`.

Differs from the authors' code, which does not train the quality network: it is trained here as QAN's, by the set
triplet loss on a frozen recogniser.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.conv import Conv
from facejax.nn.norm import BatchNorm

WIDTHS = (8, 16, 32, 48)


class SharedPReLU(nn.Module):
    """max(x, 0) + a min(x, 0) with one slope for all channels, 0.25 at first."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = self.param("slope", nn.initializers.constant(0.25), ())
        return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)


class QualityNet(nn.Module):
    """A residual network of 122,569 parameters: [N, H, W, 3] -> [N] scores of any sign.

    Attributes:
      axis_name: shares batch statistics over this mapped axis.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        spread = nn.initializers.variance_scaling(2 / 3, "fan_out", "uniform")  # +-sqrt(2 / fan_out)

        def conv(features: int, size: int, stride: int, name: str, x: jax.Array) -> jax.Array:
            return Conv(features, size, stride, size // 2, kernel_init=spread, name=name)(x)

        def norm(name: str, x: jax.Array) -> jax.Array:
            return BatchNorm(self.axis_name, epsilon=2e-5, name=name)(x, train=train)

        x = SharedPReLU(name="prelu")(norm("bn", conv(WIDTHS[0], 3, 1, "stem", images)))
        for stage, width in enumerate(WIDTHS, 1):
            for block in range(2):
                name, stride = f"stage{stage}_{block}", 1 if block else 2
                shortcut = x
                if not block:
                    shortcut = norm(f"{name}_shortcut_bn", conv(width, 1, stride, f"{name}_shortcut", x))
                x = norm(f"{name}_bn1", x)
                x = conv(width, 3, 1, f"{name}_conv1", x)
                x = SharedPReLU(name=f"{name}_prelu1")(norm(f"{name}_bn2", x))
                x = norm(f"{name}_bn3", conv(width, 3, stride, f"{name}_conv2", x))
                x = SharedPReLU(name=f"{name}_prelu2")(x + shortcut)
        x = x.mean((1, 2), keepdims=True)
        return conv(1, 1, 1, "score", x)[:, 0, 0, 0]
