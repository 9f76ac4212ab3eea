"""Small networks of this project, for a first look at photographs without published weights.

`python -m experiments.analysis_demo` trains them on rendered faces alone. Published weights are far better.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facejax import programs
from facejax.alignment import pfld
from facejax.analysis.crops import Aligned, Regions
from facejax.attributes import fsanet, ssrnet
from facejax.backbones import iresnet
from facejax.data import normalize
from facejax.detection import yolo5face
from facejax.detection.base import Detections
from facejax.ops import vectors
from facejax.predictor import Predictor
from facejax.quality import tinyfqnet

MOST_BYTES = 5_000_000
"""Of the asset."""
SIDE = 64
"""Of what the networks of landmarks, pose and age see, pixels."""
SQUARE = 1.3
"""Side of the square that they see, over the longer side of the face's box."""
EMBEDDER_SIDE, QUALITY_SIDE = 56, 48
"""Of what the embedder and the network of quality see of an aligned face, pixels."""
SIZE, SCORE = 224, 0.4
"""Side of what the detector sees, pixels, and the least score of a face."""


class Boxes(yolo5face.YOLO5Face):
    """A YOLO5Face without its five points, which are worse than those of the 68 landmarks."""

    points: ClassVar[int] = 0

    def decode(self, raw: dict[str, jax.Array], size: tuple[int, int]) -> Detections:
        """As of YOLO5Face, with no points."""
        found = super().decode(raw, size)
        return found.replace(points=found.points[:, :, :0])


def detector(lowest: float = SCORE, kind: type[yolo5face.YOLO5Face] = yolo5face.YOLO5Face) -> yolo5face.YOLO5Face:
    """A narrow YOLO5Face for faces of 10 to 250 pixels; it is trained with its points, and used as `Boxes`."""
    trunk = functools.partial(yolo5face.ShuffleTrunk, 24, (48, 96, 128), (3, 4, 2))
    anchors = ((8, 10), (12, 15), (18, 23)), ((27, 34), (40, 51), (60, 76)), ((90, 114), (135, 170), (200, 250))
    net = yolo5face.Net(trunk, (48, 48, 48))
    return kind(net, anchors=anchors, point_weight=0.01, lowest=lowest)


def embedder() -> iresnet.IResNet:
    """An IResNet of four blocks: 128 numbers."""
    return iresnet.IResNet((1, 1, 1, 1), (24, 48, 96, 192), embedding_size=128)


def landmarks() -> pfld.Net:
    """A narrow PFLD."""
    return pfld.Net(68, width=0.375)


def pose() -> fsanet.FSANet:
    """An FSA-Net of a single scoring."""
    return fsanet.FSANet("conv", momentum=0.9)


def age() -> ssrnet.SSRNet:
    """An SSR-Net."""
    return ssrnet.SSRNet(momentum=0.9)


def quality() -> tinyfqnet.TinyFQNet:
    """A tinyFQnet."""
    return tinyfqnet.TinyFQNet()


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "detector": (lambda: detector().net, SIZE),
    "recogniser": (embedder, EMBEDDER_SIDE),
    "landmarks": (landmarks, SIDE),
    "pose": (pose, SIDE),
    "age": (age, SIDE),
    "quality": (quality, QUALITY_SIDE),
}
"""Name -> constructor of the network and the side of its input, pixels."""


@dataclasses.dataclass(frozen=True)
class FaceSquare:
    """The square around the middle of the box; its edges are the crop's.

    Attributes:
      side: of the crop, pixels.
      factor: the square's side over the longer side of the box.
    """

    side: int = 2 * SIDE
    factor: float = SQUARE

    def __call__(self, boxes: np.ndarray, points: np.ndarray | None, size: tuple[int, int]) -> Regions:
        """Regions of faces with `boxes` [F, 4], whose corners are continuous pixels; black beyond the photograph."""
        low, high = np.split(np.float64(boxes), 2, 1)
        length = self.factor * (high - low).max(1, keepdims=True)
        first, scale = (low + high - length) / 2, length[:, 0] / self.side
        matrices = np.zeros((len(boxes), 2, 3))
        matrices[:, (0, 1), (0, 1)] = scale[:, None]
        matrices[:, :, 2] = first + 0.5 * scale[:, None] - 0.5
        everywhere = np.tile(np.float64([-(2**30), -(2**30), 2**30, 2**30]), (len(boxes), 1))
        return Regions(matrices, everywhere, np.concatenate([first, first + length], 1))


Rule = Aligned | FaceSquare


class Network(NamedTuple):
    """A trained network: what it is applied to, where and how.

    Attributes:
      module: the network.
      variables: of it, float32.
      rule: of its crops; None of the detector, which sees the photograph.
      preprocess: uint8 crops [n, side, side, 3] -> its input.
    """

    module: nn.Module
    variables: Any
    rule: Rule | None
    preprocess: Callable[[jax.Array], jax.Array]


def shrunk(side: int) -> Callable[[jax.Array], jax.Array]:
    """Crops [n, S, S, 3] uint8 -> -1..1 [n, side, side, 3], averaged over the pixels that fall together."""

    def preprocess(images: jax.Array) -> jax.Array:
        return jax.image.resize(normalize.symmetric(images), (images.shape[0], side, side, 3), "linear")

    return preprocess


def networks() -> dict[str, Network]:
    """The demo networks by name."""
    kept, aligned, square = variables(), Aligned(), FaceSquare()
    rules = {"recogniser": aligned, "quality": aligned, "landmarks": square, "pose": square, "age": square}
    return {
        name: Network(make(), kept[name], rules.get(name), shrunk(side) if name in rules else normalize.unit)
        for name, (make, side) in NETS.items()
    }


def parts() -> dict[str, Any]:
    """Stages of `FaceAnalyzer` by its arguments' names."""
    from facejax.analysis.stages import NamedDetector, Stage

    found, sha256 = networks(), hashlib.sha256(asset().read_bytes()).hexdigest()
    outputs: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "recogniser": ("embeddings", vectors.unit),
        "landmarks": ("landmarks", lambda raw: raw["points"]),
        "pose": ("pose", lambda raw: raw),
        "age": ("age", lambda raw: raw),
        "quality": ("quality", lambda raw: jnp.clip(raw, 0, 1)),
    }

    def stage(name: str) -> Stage:
        network, (field, output) = found[name], outputs[name]

        def apply(variables: Any, images: jax.Array) -> Any:
            return {field: output(network.module.apply(variables, network.preprocess(images), train=False))}

        options: dict[str, Any] = {"placed": placed} if name == "landmarks" else {}
        options |= {"sha256": sha256, "gives": (field,), "key": f"demo {name}"}
        return Stage(f"demo {name}", network.rule, apply, network.variables, **options)

    predict = Predictor(detector(kind=Boxes), found["detector"].variables, SIZE, key="demo detector")
    return {"detector": NamedDetector(predict, "demo detector", sha256), **{name: stage(name) for name in outputs}}


def placed(outputs: Mapping[str, Any], regions: Regions) -> dict[str, Any]:
    """Landmarks in sides of the square -> continuous pixels of the photograph."""
    low, high = regions.rects[:, None, :2], regions.rects[:, None, 2:]
    return {"landmarks": low + outputs["landmarks"] * (high - low)}


def asset() -> pathlib.Path:
    """The file of the networks."""
    return pathlib.Path(str(importlib.resources.files("facejax") / "assets" / "demo_v1.msgpack"))


@functools.cache
def variables() -> dict[str, Any]:
    """Variables of the networks of `asset` by name. Raises ValueError where they have not been trained."""
    if not asset().is_file():
        raise ValueError("the demo networks are not trained yet: python -m experiments.analysis_demo, about an hour")
    return read(asset())


def shapes(name: str) -> Any:
    """Shapes of the variables that the network applies at inference."""
    make, side = NETS[name]

    def init(key: jax.Array) -> Any:
        return make().init(key, jnp.zeros((2, side, side, 3)), train=False)

    return _used(programs.kept_shapes(lambda: jax.eval_shape(init, jax.random.key(0)), f"demo {name}"))


def _used(variables: Any) -> Any:
    """Without PFLD's branch of training."""
    return {kind: {k: v for k, v in tree.items() if k != "auxiliary"} for kind, tree in variables.items()}


def read(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Variables of all networks by name, float32.

    Raises:
      ValueError: the file is damaged or of other networks.
    """
    try:
        kept = flax.serialization.msgpack_restore(pathlib.Path(file).read_bytes())
        fits = {name: jax.tree.map(np.shape, tree) for name, tree in kept.items()} == _expected()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{file}: no file of the demo networks: {error}") from error
    if not fits:
        raise ValueError(f"{file}: other networks than {', '.join(NETS)} of this version")
    return jax.tree.map(lambda x: np.asarray(x, np.float32), kept)


def _expected() -> dict[str, Any]:
    return {name: jax.tree.map(np.shape, shapes(name)) for name in NETS}


def write(file: str | os.PathLike[str], trained: Mapping[str, Any]) -> int:
    """Writes the variables of all networks in half precision; the number of bytes.

    Raises:
      ValueError: a network is missing or of another shape, a number does not fit, or the file would be too large.
    """
    halves = {name: jax.tree.map(lambda x: np.asarray(x, np.float16), _used(trained[name])) for name in trained}
    if {name: jax.tree.map(np.shape, tree) for name, tree in halves.items()} != _expected():
        raise ValueError(f"networks {', '.join(trained)}: expected {', '.join(NETS)} with the shapes of this version")
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(halves)):
        raise ValueError("a number is too large for half precision")
    encoded = flax.serialization.msgpack_serialize(halves)
    if len(encoded) > MOST_BYTES:
        raise ValueError(f"{len(encoded)} bytes: expected at most {MOST_BYTES}")
    temporary = pathlib.Path(file).with_suffix(".tmp")
    temporary.write_bytes(encoded)
    temporary.replace(file)
    return len(encoded)
