"""Frozen parts of an editor of codes: StyleGAN2's generator of a finished run, predictors trained on rendered faces."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from facejax.data import normalize
from facejax.data.factor_faces import FactorFaces
from facejax.evaluate import generation
from facejax.evaluate.embedder import Backbone, read_weights
from facejax.generation import dystyle, stylegan2
from facejax.ops import pooling
from facejax.train import Experiment, Mean, Options, Report, TrainState, checkpoint, supervised_step, train

NETS = {"training": ((16, 32, 64, 64), 3), "held_out": ((24, 48, 64, 64), 5)}
"""Predictors by name: widths and side of their convolutions. They see different halves of the faces."""


@dataclasses.dataclass(frozen=True)
class Generator:
    """The `generator` section.

    Attributes:
      kind: "renderer": the face world, of known factors (`FactorFaces`), or "stylegan2".
      workdir: of a finished run of `experiments.stylegan` with these settings; needed by "stylegan2".
      resolution, latent_size, base, largest, mapping_layers: of StyleGAN2's generator.
    """

    kind: str = "renderer"
    workdir: str = ""
    resolution: int = 1024
    latent_size: int = 512
    base: int = 16_384
    largest: int = 512
    mapping_layers: int = 8

    def __post_init__(self) -> None:
        if self.kind not in ("renderer", "stylegan2"):
            raise ValueError(f"generator.kind is {self.kind!r}: expected 'renderer' or 'stylegan2'")

    @property
    def net(self) -> stylegan2.Generator:
        """StyleGAN2's generator."""
        sizes = (self.resolution, self.latent_size, self.base, self.largest, self.mapping_layers)
        return stylegan2.Generator(*sizes)

    def shapes(self) -> Any:
        """Shapes of its parameters."""
        return jax.eval_shape(self.net.init, jax.random.key(0), jnp.zeros((1, self.latent_size)))["params"]

    def restored(self) -> Any:
        """The averaged parameters of the run, as NumPy arrays.

        Raises:
          ValueError: no workdir, no checkpoint, or one of another network.
        """
        if not self.workdir:
            raise ValueError("generator.workdir is empty: expected a finished run of experiments.stylegan")
        folder = pathlib.Path(self.workdir) / "checkpoints"
        if not (steps := checkpoint.saved_steps(folder)):
            raise ValueError(f"{self.workdir} holds no checkpoint: expected a finished run of experiments.stylegan")
        leaves = checkpoint.read(folder, steps[-1]).leaves

        def taken(path: Any, like: jax.ShapeDtypeStruct) -> np.ndarray:
            name = f"ema.generator.{jax.tree_util.keystr(path, simple=True, separator='.')}"
            if name not in leaves or leaves[name].shape != like.shape:
                found = leaves[name].shape if name in leaves else "nothing"
                raise ValueError(f"{self.workdir} holds {found} as {name}: expected {like.shape}, of StyleGAN2")
            return leaves[name]

        return jax.tree_util.tree_map_with_path(taken, self.shapes())


class Predictor(nn.Module):
    """Images to attributes and an embedding, by convolutions of stride two.

    Attributes:
      outputs: A + E.
      widths, side: of the convolutions.
    """

    outputs: int
    widths: Sequence[int]
    side: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[N, S, S, 3] in -1..1 -> [N, A + E]: numbers, logits of binary attributes; directions of the shape."""
        x = images
        for width in self.widths:
            x = nn.leaky_relu(nn.Conv(width, (self.side, self.side), 2)(x), 0.2)
        x = nn.leaky_relu(nn.Dense(128)(x.reshape(len(x), -1)), 0.2)
        return nn.Dense(self.outputs)(x)


@dataclasses.dataclass(frozen=True)
class Predictors:
    """The `predictor` section: the training of predictors on rendered faces.

    Attributes:
      steps, batch_size, rate: of Adam, its rate falls to 0.
      noise: largest standard deviation of noise on the images, in units of -1..1.
    """

    steps: int = 500
    batch_size: int = 64
    rate: float = 2e-3
    noise: float = 0.1

    def net(self, name: str, faces: FactorFaces) -> Predictor:
        """The untrained predictor."""
        return Predictor(faces.size, *NETS[name])

    def shapes(self, name: str, faces: FactorFaces) -> Any:
        """Shapes of its variables."""
        images = jnp.zeros((1, faces.image_size, faces.image_size, 3))
        return jax.eval_shape(self.net(name, faces).init, jax.random.key(0), images)

    def trained(self, name: str, faces: FactorFaces, seed: int) -> Any:
        """Its variables, as NumPy arrays; trained once in a process."""
        return _trained(self, name, faces, seed)


@functools.lru_cache(maxsize=8)
def _trained(section: Predictors, name: str, faces: FactorFaces, seed: int) -> Any:
    net, count = section.net(name, faces), len(faces.binary)
    vectors, images = (x[list(NETS).index(name) :: 2] for x in faces.load("train"))
    tx = optax.adam(optax.cosine_decay_schedule(section.rate, section.steps))

    def init(rng: jax.Array) -> TrainState:
        return TrainState.create(rng, net.init(rng, normalize.symmetric(jnp.asarray(images[:1])))["params"], tx)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        keys = jax.random.split(rng, 3)
        rows = jax.random.randint(keys[0], (section.batch_size,), 0, len(images))
        x, z = normalize.symmetric(batch["images"][rows]), batch["vectors"][rows]
        level = section.noise * jax.random.uniform(keys[1], (len(rows), 1, 1, 1))
        found = net.apply({"params": params}, x + level * jax.random.normal(keys[2], x.shape))
        values = faces.values(z)
        wanted = dystyle.targets(found[:, :count], values, jnp.ones_like(values, bool), faces.binary)
        losses = dystyle.attribute_loss(found[:, :count], wanted, faces.binary).sum(1)
        losses += jnp.mean((found[:, count:] - z[:, count:]) ** 2, 1)
        return losses.mean(), (model_state, {"loss": Mean.of(losses)})

    experiment = Experiment(
        evaluate=lambda state: Report({}),
        init=init,
        train_step=supervised_step(loss_fn, tx),
        resident=lambda: {"images": images, "vectors": vectors},
    )
    options = Options(batch_size=jax.device_count(), steps=section.steps)
    state, _ = train(experiment, options, seed=seed + list(NETS).index(name), quiet=True)
    return {"params": jax.tree.map(np.asarray, state.params)}


def wish(words: str, faces: FactorFaces) -> tuple[np.ndarray, np.ndarray]:
    """Values [A] and whether they are edited [A] of words such as "yaw=0.5,glasses=1"; of binary ones the sign counts.

    Raises:
      ValueError: another attribute, or a number beyond -1 to 1.
    """
    names = list(faces.attributes)
    values, active = np.zeros(len(names), np.float32), np.zeros(len(names), bool)
    for word in filter(None, words.split(",")):
        name, _, number = word.strip().partition("=")
        value = float(number) if re.fullmatch(r"-?\d*\.?\d+", number) else np.nan
        if name not in names or not -1 <= value <= 1:
            raise ValueError(f"--edits: {word!r}, expected ATTRIBUTE=NUMBER, -1 to 1, of {', '.join(names)}")
        row = names.index(name)
        values[row], active[row] = np.sign(value) if faces.binary[row] else value, True
    return values, active


CROP = (35 / 256, 223 / 256), (32 / 256, 220 / 256)
"""Rows and columns of an aligned picture that a recogniser sees."""


class World:
    """Codes, images and the outputs of frozen predictors for them.

    Args:
      faces, generator, predictors: sections of the configuration.
      weights: of arcface_torch's iresnet50, whose embeddings are the identity; empty: the shape that predictors see.
      seed: of the predictors' training.
    """

    def __init__(self, faces: FactorFaces, generator: Generator, predictors: Predictors, weights: str, seed: int):
        self.faces, self.generator, self.predictors = faces, generator, predictors
        self.weights, self.seed = weights, seed
        self.known = self.generator.kind == "renderer"
        self.attributes, self.binary = len(self.faces.binary), self.faces.binary
        self.size = self.faces.size if self.known else self.generator.latent_size
        if not self.known and self.faces.layers != self.generator.net.layers:
            raise ValueError(
                f"data.layers is {self.faces.layers}: expected {self.generator.net.layers}, the generator's"
            )
        self.recogniser = Backbone("iresnet50").make() if self.weights else None

    def frozen(self) -> dict[str, Any]:
        """Trained or restored variables by name."""
        names = ("held_out",) if self.known else ("training", "held_out")
        found = {name: self.predictors.trained(name, self.faces, self.seed) for name in names}
        if not self.known:
            found["generator"] = {"params": self.generator.restored()}
        if self.weights:
            found["recogniser"] = read_weights(self.weights, self.recogniser, 112)
        return found

    def shapes(self) -> dict[str, Any]:
        """Zeros of the shapes of `frozen`."""
        found = {"held_out": self.predictors.shapes("held_out", self.faces)}
        if not self.known:
            found |= {
                "training": self.predictors.shapes("training", self.faces),
                "generator": {"params": self.generator.shapes()},
            }
        if self.weights:
            images = jnp.zeros((1, 112, 112, 3))
            found["recogniser"] = jax.eval_shape(
                lambda key: self.recogniser.init(key, images, train=False), jax.random.key(0)
            )
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)

    def codes(self, frozen: Any, normal: jax.Array) -> jax.Array:
        """Codes [N, L, D] of normal numbers [N, D]."""
        if self.known:
            return self.faces.codes(normal)
        w = self.generator.net.apply(frozen["generator"], normal, method="map")
        return jnp.repeat(w[:, None], self.faces.layers, 1)

    def images(self, frozen: Any, codes: jax.Array) -> jax.Array:
        """Images [N, R, R, 3] of StyleGAN2."""
        return self.generator.net.apply(frozen["generator"], codes, method="synthesize")

    def predict(self, frozen: Any, name: str, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Attributes [N, A] and embeddings of images [N, R, R, 3] in -1..1, by the predictor `name`."""
        small = generation.enlarged(images, self.faces.image_size)
        found = self.predictors.net(name, self.faces).apply(frozen[name], small)
        return found[:, : self.attributes], self.identity(frozen, images, found[:, self.attributes :])

    def identity(self, frozen: Any, images: jax.Array, shapes: jax.Array) -> jax.Array:
        """The recogniser's embeddings, where there is one, else the predictor's."""
        if not self.weights:
            return shapes
        rows, columns = (slice(*(round(end * images.shape[1]) for end in ends)) for ends in CROP)
        cropped = pooling.resize_bilinear(images[:, rows, columns], (112, 112))
        return self.recogniser.apply(frozen["recogniser"], cropped, train=False)

    def observe(self, frozen: Any, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Attributes and embeddings that training sees; of the face world, the factors themselves."""
        if self.known:
            vectors = self.faces.vectors(codes)
            return self.faces.outputs(vectors), vectors[:, self.attributes :]
        return self.predict(frozen, "training", self.images(frozen, codes))
