"""IResNet: the residual network of ArcFace, for 112 x 112 faces.

Deng et al., arXiv:1801.07698 (Sec. 3.1), with the "improved" block BN-conv-BN-PReLU-conv-BN and the embedding head
BN-dropout-dense-BN; after the authors' PyTorch code, whose names the weight map follows. It is not the ResNet of
ImageNet: no pooling, stride 1 in the stem, stride in a block's second convolution, no activation after the sum.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facejax.nn.blocks import rematerialised
from facejax.nn.conv import Conv
from facejax.nn.init import torch_default
from facejax.nn.norm import BatchNorm, PReLU

Dtype = Any


class IBasicBlock(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3 with the stride, BN, plus the shortcut; no activation after the sum."""

    features: int
    stride: int
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = partial(Conv, self.features, kernel_init=nn.initializers.normal(0.1), dtype=self.dtype)
        norm = partial(BatchNorm, self.axis_name, dtype=self.dtype)
        shortcut = x
        if self.stride > 1 or x.shape[-1] != self.features:
            shortcut = conv(1, self.stride, name="shortcut_conv")(x)
            shortcut = norm(name="shortcut_bn")(shortcut, train=train)
        x = norm(name="bn1")(x, train=train)
        x = conv(3, padding=1, name="conv1")(x)
        x = PReLU(name="prelu")(norm(name="bn2")(x, train=train))
        x = conv(3, self.stride, padding=1, name="conv2")(x)
        return norm(name="bn3")(x, train=train) + shortcut


class EmbeddingHead(nn.Module):
    """BN, dropout, dense, BN: from the last feature map to embeddings, in float32, in the scope of its caller.

    Attributes:
      embedding_size, dropout, axis_name, dtype: as in IResNet.
    """

    embedding_size: int
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, drop: bool | None = None, flat: bool = False) -> jax.Array:
        """[N, H, W, C] -> [N, D]; `flat`: input of the dense layer [N, HWC]; `drop`: `train` of dropout alone."""
        norm = partial(BatchNorm, self.axis_name)
        x = norm(dtype=self.dtype, name="bn2")(x, train=train)
        x = nn.Dropout(self.dropout, deterministic=not (train if drop is None else drop))(x.reshape(x.shape[0], -1))
        if flat:
            return x
        x = nn.Dense(self.embedding_size, kernel_init=torch_default, name="fc")(x.astype(jnp.float32))
        return norm(use_scale=False, name="features")(x, train=train)  # the reference holds this scale at 1


class IResNet(nn.Module):
    """Images to embeddings.

    Attributes:
      depths: blocks in each stage; the first block of every stage halves the resolution.
      widths: channels of each stage; the stem has the first's.
      embedding_size: D.
      dropout: before the dense layer; 0 in the published PyTorch runs, 0.4 in the paper.
      axis_name: mapped axis over which batch statistics are averaged; the published runs average over none.
      dtype: of the trunk; the dense layer and its batch norm stay in float32.
      remat: whether the backward pass computes the insides of blocks anew, which saves memory; see `rematerialised`.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    embedding_size: int = 512
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: bool = False) -> jax.Array | dict[str, jax.Array]:
        """Embeddings of faces.

        Args:
          images: [N, H, W, 3] RGB, (x - 127.5) / 127.5.
          train: whether dropout and the batch's statistics are used.
          features: whether to return every named intermediate.

        Returns:
          [N, D], not normalised; or {"stem", "stage1", ..., "embedding"}.
        """
        norm = partial(BatchNorm, self.axis_name)
        x = Conv(self.widths[0], 3, padding=1, kernel_init=nn.initializers.normal(0.1), dtype=self.dtype, name="conv1")(
            images
        )
        x = PReLU(name="prelu")(norm(dtype=self.dtype, name="bn1")(x, train=train))
        found = {"stem": x}
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for block in range(depth):
                layer = IBasicBlock(
                    width, 2 if block == 0 else 1, self.axis_name, self.dtype, name=f"layer{stage}_{block}"
                )
                x = rematerialised(layer, self.remat)(x, train=train)
            found[f"stage{stage}"] = x
        head = EmbeddingHead(self.embedding_size, self.dropout, self.axis_name, self.dtype)
        nn.share_scope(self, head)
        x = head(x, train=train)
        return {**found, "embedding": x} if features else x


iresnet18 = partial(IResNet, (2, 2, 2, 2))
iresnet34 = partial(IResNet, (3, 4, 6, 3))
iresnet50 = partial(IResNet, (3, 4, 14, 3))
iresnet100 = partial(IResNet, (3, 13, 30, 3))
iresnet200 = partial(IResNet, (6, 26, 60, 6))
