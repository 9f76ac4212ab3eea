"""Trained face embedders: images in, embeddings out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import facejax
from facejax.backbones import iresnet
from facejax.data import normalize, transforms
from facejax.data.sources import Images
from facejax.metrics import verification
from facejax.train import map_batches, parallel

PUBLISHED = ("iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200", "mobilefacenet")
"""Names in `facejax.models` of embedders of 112-pixel images."""
MINIATURES: dict[str, Callable[..., nn.Module]] = {
    "tiny": lambda **options: iresnet.IResNet((1, 1, 1, 1), (16, 32, 64, 128), **options),
}
"""Networks for rendered faces on a CPU, by name."""


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The `model` section of a recognition experiment: an embedding network by name.

    Attributes:
      name: of `PUBLISHED` or `MINIATURES`; "tiny" is an IResNet of four blocks.
      embedding_size: D.
      dropout: before the last layer of an IResNet; MobileFaceNet has none.
      dtype: to compute in.
      remat: whether the backward pass of an IResNet computes the insides of blocks anew: a third more operations, about
        a quarter of the activations' memory.
    """

    name: str = "iresnet50"
    embedding_size: int = 512
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False

    def make(self) -> nn.Module:
        """The untrained network. Raises ValueError at an unknown name, or at `remat` of MobileFaceNet."""
        if self.name not in (*MINIATURES, *PUBLISHED):
            raise ValueError(f"model.name is {self.name!r}: expected one of {', '.join((*MINIATURES, *PUBLISHED))}")
        options = {"dtype": jnp.dtype(self.dtype)}
        if self.name != "mobilefacenet":
            options["dropout"] = self.dropout
        elif self.remat:
            raise ValueError("model.remat is set with mobilefacenet: expected an IResNet")
        if self.remat:
            options["remat"] = True
        if self.name in MINIATURES:
            return MINIATURES[self.name](embedding_size=self.embedding_size, **options)
        return facejax.create_model(self.name, num_features=self.embedding_size, **options)


def read_weights(path: str | os.PathLike[str], net: nn.Module, image_size: int, layout: str = "load") -> Any:
    """Variables of `net` from published weights.

    Args:
      path: a state dict or an ONNX file of arcface_torch, or MagFace's checkpoint.
      net: of `Backbone`, or `facejax.recognition.magface.Magnified` of one.
      image_size: side of the input, pixels.
      layout: function of `facejax.interop.arcface_torch` that reads the file: "load" or "load_magface".
    """
    from facejax.interop import arcface_torch  # only published weights need it

    images = jnp.zeros((2, image_size, image_size, 3))
    template = jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))
    return getattr(arcface_torch, layout)(path, template)


class Embedder(NamedTuple):
    """A trained embedder.

    Attributes:
      net: Linen module; takes images made -1..1.
      variables: its parameters and batch statistics.
      image_size: side of its input, pixels; other images are resized.
      centres: [C, D] of the classes it was trained on; [0, D] where they are unknown.
    """

    net: nn.Module
    variables: Mapping[str, Any]
    image_size: int
    centres: np.ndarray

    @classmethod
    def load(cls, name: str, weights: str | os.PathLike[str], *, embedding_size: int = 512, image_size: int = 112):
        """The backbone `name` with published weights of arcface_torch."""
        net = Backbone(name, embedding_size).make()
        return cls(net, read_weights(weights, net, image_size), image_size, np.zeros((0, embedding_size)))

    def __call__(self, images: np.ndarray | Images, batch_size: int = 128) -> np.ndarray:
        """[N, S, S, 3] uint8 -> [N, D] embeddings, not normalised."""
        return embed(self.net, self.variables, images, batch_size, image_size=self.image_size)


def embed(
    net: nn.Module,
    variables: Any,
    images: np.ndarray | Images,
    batch_size: int,
    *,
    preprocess: Callable[[jax.Array], jax.Array] = normalize.symmetric,
    image_size: int = 0,
) -> np.ndarray:
    """Embeddings [N, D] of images [N, S, S, 3] uint8, not normalised.

    Args:
      net: (images, train) -> [N, D].
      variables: of `net`.
      images: an array, or images decoded batch by batch.
      batch_size: images a call.
      preprocess: uint8 images -> what the network takes.
      image_size: the images are resized to it; 0 leaves them.
    """

    def apply(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
        return {"embedding": net.apply(variables, preprocess(batch), train=False)}

    def fitted(part: np.ndarray) -> np.ndarray:
        if not image_size or part.shape[1] == image_size:
            return part
        return np.stack([transforms.resize(x, image_size, image_size) for x in part])

    return map_batches(apply, variables, images, batch_size, fitted)["embedding"]


def embed_flipped(net: nn.Module, variables: Any, images: np.ndarray | Images, batch_size: int) -> np.ndarray:
    """Unit embeddings [N, D]: those of an image and of its mirror image added up (arcface_torch)."""
    return embedding_function(net, variables, batch_size, flip=True)(images)


def embedding_function(
    net: nn.Module, variables: Any, batch_size: int, *, flip: bool
) -> Callable[[np.ndarray | Images], np.ndarray]:
    """`embed_flipped`, or without `flip` the embeddings of the images alone, for many sets of images: compiled once."""

    def apply(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
        views = {"features": batch, "flipped": batch[:, :, ::-1]} if flip else {"features": batch}
        return {name: net.apply(variables, normalize.symmetric(x), train=False) for name, x in views.items()}

    run = parallel.mapper(apply, variables, batch_size)

    def embedded(images: np.ndarray | Images) -> np.ndarray:
        found = run(images, np.asarray)
        return verification.flip_embedding(**found) if flip else found["features"]

    return embedded
