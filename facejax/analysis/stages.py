"""The networks applied to one face: the crop of each, its input, its outputs, and their places in the photograph.

A `Stage` is made by one function for each kind of network, from a Linen module and its variables.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax import programs
from facejax.analysis.crops import Aligned, Enlarged, Regions, Roi, Rule, Square
from facejax.backbones.iresnet import EmbeddingHead
from facejax.data import normalize
from facejax.morphable import crops, parameters
from facejax.morphable.parameters import LinearFace, Whitening
from facejax.ops import rotation, vectors
from facejax.predictor import Predictor
from facejax.quality import ser_fiq
from facejax.recognition import magface

BATCHES = (1, 4, 16)
"""Numbers of faces that a network sees at once; each is compiled on its first use."""
SMALL = 32 << 20
"""Variables of up to as many bytes are compiled in, which lets XLA fold the batch norms; larger ones are arguments."""

Outputs = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class NamedDetector:
    """A detector of faces.

    Attributes:
      predict: the network with its post-processing.
      name: for people.
      sha256: of its file; "" for variables of no file.
    """

    predict: Predictor
    name: str = "detector"
    sha256: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A network of faces.

    Attributes:
      name: of the network, for people.
      rule: of its crops.
      apply: (variables, crops [n, side, side, 3] uint8) -> attributes of `Faces` by name, each [n, ...]; places are in
        the crop.
      variables: of the network.
      placed: (outputs, regions) -> outputs in pixels of the photograph.
      sha256: of the file that the variables are from; "" for variables of no file.
      gives: names of the outputs; empty: `apply` is traced for them.
      key: what `apply` is, see `facejax.programs.kept`.
    """

    name: str
    rule: Rule
    apply: Callable[[Any, jax.Array], Outputs]
    variables: Any
    placed: Callable[[Outputs, Regions], Outputs] = lambda outputs, _: outputs
    sha256: str = ""
    gives: tuple[str, ...] = ()
    key: str = ""

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of an output -> its shape for one face."""
        crops = jax.ShapeDtypeStruct((1, self.rule.side, self.rule.side, 3), np.uint8)
        return {name: made.shape[1:] for name, made in jax.eval_shape(self.apply, self.variables, crops).items()}

    @functools.cached_property
    def _call(self) -> Callable[[jax.Array], Outputs]:
        variables, apply = jax.device_put(self.variables), programs.kept(self.apply, self.key)
        if sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) <= SMALL:
            return jax.jit(lambda images: apply(variables, images))
        return functools.partial(jax.jit(apply), variables)

    def __call__(self, images: jax.Array) -> Outputs:
        """Outputs for crops [n, side, side, 3] uint8, with places in the crop. Compiled once for each n."""
        return self._call(images)


def batches(count: int) -> list[int]:
    """Numbers of `BATCHES` that together hold `count` faces: of few kinds, since each kind is compiled; 6 -> [4, 4]."""
    found, left = [BATCHES[2]] * (count // BATCHES[2]), count % BATCHES[2]
    if left > BATCHES[2] - BATCHES[1]:
        return [*found, BATCHES[2]]
    return [*found, *([BATCHES[0]] * left if left < 3 else [BATCHES[1]] * -(-left // BATCHES[1]))]


def checksum(*parts: Any) -> str:
    """SHA-256 of variables, for those that are of no file: names, shapes and numbers of all leaves."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode() + leaf.tobytes())
    return digest.hexdigest()


def recogniser(
    net: nn.Module,
    variables: Any,
    *,
    name: str = "recogniser",
    preprocess: Callable[[jax.Array], jax.Array] = normalize.symmetric,
    width: int = 112,
    magnitudes: bool = False,
    sha256: str = "",
) -> Stage:
    """An embedder of aligned faces, 112 pixels high: unit embeddings.

    Args:
      net: (images, train) -> [n, D].
      variables: of `net`.
      name: of the network.
      preprocess: uint8 RGB -> what the network takes.
      width: of its input, pixels; the crop's columns left and right of them are not seen.
      magnitudes: the embedding's length is the quality (MagFace), no number in 0..1.
      sha256: see `Stage`.
    """
    side = (112 - width) // 2

    def apply(variables: Any, images: jax.Array) -> Outputs:
        raw = net.apply(variables, preprocess(images[:, :, side : 112 - side]), train=False)
        found = {"embeddings": vectors.unit(raw.astype(jnp.float32))}
        return found | ({"quality": magface.magnitude(raw)} if magnitudes else {})

    gives = ("embeddings", "quality") if magnitudes else ("embeddings",)
    return Stage(name, Aligned(), apply, variables, sha256=sha256, gives=gives)


def quality(
    net: nn.Module,
    variables: Any,
    *,
    name: str = "quality",
    preprocess: Callable[[jax.Array], jax.Array] = normalize.symmetric,
    size: int = 112,
    scale: float = 1.0,
    sha256: str = "",
) -> Stage:
    """A quality network of `facejax.quality` (tinyFQnet, FaceQnet, PCNet, RankIQA, QAN++, SDD-FIQA) on aligned faces.

    Args:
      net: (images, train) -> [n] or [n, 1].
      variables: of `net`.
      name: of the network.
      preprocess: uint8 RGB -> what the network takes.
      size: side of its input, pixels; the aligned crop is resized to it.
      scale: factor of the scores, such as 0.01 for SDD-FIQA's 0..100.
      sha256: see `Stage`.
    """

    def apply(variables: Any, images: jax.Array) -> Outputs:
        images = preprocess(images)
        if size != images.shape[1]:
            images = jax.image.resize(images, (images.shape[0], size, size, 3), "linear")
        return {"quality": scale * net.apply(variables, images, train=False).reshape(images.shape[0])}

    return Stage(name, Aligned(), apply, variables, sha256=sha256, gives=("quality",))


def dropout_quality(
    net: nn.Module, variables: Any, *, name: str = "SER-FIQ", masks: int = 100, dropout: float = 0.5, sha256: str = ""
) -> Stage:
    """SER-FIQ of an IResNet, on its own dropout before the dense layer: how alike its embeddings are, scaled to 0..1.

    The scaling is the authors', for their network; of others the order counts, not the number.

    Args:
      net: an `IResNet`, whose rate of dropout is replaced.
      variables: of `net`.
      name: of the network.
      masks: embeddings of a face.
      dropout: probability.
      sha256: see `Stage`.
    """
    head = EmbeddingHead(net.embedding_size, dropout)
    trained = {
        kind: {layer: tree[layer] for layer in ("bn2", "fc", "features") if layer in tree}
        for kind, tree in variables.items()
    }

    def apply(variables: Any, images: jax.Array) -> Outputs:
        both, last = variables
        maps = net.apply(both, normalize.symmetric(images), train=False, features=True)["stage4"]

        def drop(key: jax.Array) -> jax.Array:
            return head.apply(last, maps, train=False, drop=True, rngs={"dropout": key})

        embeddings = ser_fiq.stochastic_embeddings(drop, jax.random.key(0), masks)
        return {"quality": ser_fiq.rescaled(ser_fiq.robustness(embeddings))}

    return Stage(name, Aligned(), apply, (variables, trained), sha256=sha256, gives=("quality",))


def pfld(net: nn.Module, variables: Any, *, name: str = "PFLD", sha256: str = "") -> Stage:
    """The published PFLD: 68 landmarks, relative to a square of 1.2 times the box's shorter side."""

    def apply(variables: Any, images: jax.Array) -> Outputs:
        return {"landmarks": net.apply(variables, normalize.unit(images), train=False)["points"]}

    def placed(outputs: Outputs, regions: Regions) -> Outputs:
        low, high = regions.rects[:, None, :2], regions.rects[:, None, 2:]
        return {"landmarks": low + outputs["landmarks"] * (high - low)}

    return Stage(name, Square(112, 1.2), apply, variables, placed, sha256, ("landmarks",))


def tddfa_v2(
    net: nn.Module, variables: Any, whitening: Whitening, face: LinearFace, *, name: str = "3DDFA_V2", sha256: str = ""
) -> Stage:
    """3DDFA_V2: pose, 68 landmarks and the vertices of `face`, in the coordinates of the published code.

    Args:
      net: of `facejax.reconstruction.tddfa_v2`.
      variables: of `net`.
      whitening: of the vectors that it was trained on.
      face: the mesh, or the 68 landmarks alone; see `facejax.morphable.tddfa_files`.
      name: of the network.
      sha256: see `Stage`.
    """
    rule = Roi()

    def apply(variables: Any, images: jax.Array) -> Outputs:
        variables, face, whitening = variables
        found = net.apply(variables, normalize.bgr_symmetric(images), train=False)["parameters"]
        vector = whitening.restore(found)
        _, turn, _ = parameters.decompose(parameters.split(vector, face.layout).pose)
        mesh = crops.to_image(parameters.reconstruct(face, vector), rule.side, crops.V2)
        angles = jnp.degrees(rotation.to_euler_3ddfa(turn))[:, jnp.array([1, 0, 2])]
        return {"pose": angles, "meshes": mesh, "landmarks": mesh[:, face.landmarks68, :2]}

    def placed(outputs: Outputs, regions: Regions) -> Outputs:
        places = ("meshes", "landmarks")
        return outputs | {name: crops.uncrop_points(outputs[name], regions.rects, rule.side) for name in places}

    return Stage(name, rule, apply, (variables, face, whitening), placed, sha256, ("pose", "meshes", "landmarks"))


def fsanet(nets: Sequence[nn.Module], variables: Sequence[Any], *, name: str = "FSA-Net", sha256: str = "") -> Stage:
    """FSA-Net: the mean of the angles of one or several networks, on crops stretched to 0..255."""

    def apply(variables: Any, images: jax.Array) -> Outputs:
        images = images.astype(jnp.float32)
        low, high = images.min((1, 2, 3), keepdims=True), images.max((1, 2, 3), keepdims=True)
        images = (images - low) * (255 / jnp.maximum(high - low, 1))
        found = [net.apply(v, images, train=False) for net, v in zip(nets, variables, strict=True)]
        return {"pose": sum(found) / len(found)}

    return Stage(name, Enlarged(64, 0.6), apply, tuple(variables), sha256=sha256, gives=("pose",))


def ssrnet(net: nn.Module, variables: Any, *, name: str = "SSR-Net", sha256: str = "") -> Stage:
    """SSR-Net: the age in years."""

    def apply(variables: Any, images: jax.Array) -> Outputs:
        return {"age": net.apply(variables, images.astype(jnp.float32), train=False).reshape(images.shape[0])}

    return Stage(name, Enlarged(64, 0.4), apply, variables, sha256=sha256, gives=("age",))
