"""DiscoFaceGAN in training: autoencoders, perception and face model that are made first, then the losses of a GAN."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.data.model_aligned import ModelAlignedImages
from facejax.evaluate import control, generation
from facejax.evaluate.control import Fitting
from facejax.formats import arrays
from facejax.generation import discofacegan, pggan, stylegan
from facejax.generation.discofacegan import Autoencoder, Decoder, Face, Latents, Layout
from facejax.morphable import bfm, lighting, tddfa_files
from facejax.morphable.procedural import procedural
from facejax.ops import rotation
from facejax.ops.pooling import resize_bilinear
from facejax.recipes.gan import DISCRIMINATOR, GENERATOR, Params
from facejax.train import Mean

GAMMA = 2.2
"""Of the face world's images; the renderer's colours are not linear."""
RNET_SIZE = 224
LEAST = 32
"""Smaller renderings are averaged from this size."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The `model` section.

    Attributes:
      shape, texture, expression: coefficients of the face model.
      identity, expression_latents, light, pose, noise: latents.
      widths: of the autoencoders' hidden layers, of identity, expression, light and pose.
      vertices: of the face model, about; 0: all.
      bfm: files of the Basel face model and its expressions, see `facejax.morphable.bfm`; empty: the procedural head.
      whitened: the generator sees whitened coefficients, in which all factors together have the same variance, not
        coefficients as they are; a short training needs that.
      style_size: W, and the width of the mapping network.
      mapping_layers, mapping_multiplier: of the mapping network, and its learning rate relative to other layers'.
      base, largest: feature maps at 2 pixels, half as many at each double, and at most so many.
      group: images whose deviation the discriminator sees.
      dtype: of the computation of generator and discriminator.
    """

    shape: int = 10
    texture: int = 10
    expression: int = 6
    identity: int = 20
    expression_latents: int = 6
    light: int = 8
    pose: int = 3
    noise: int = 8
    widths: tuple[int, ...] = (128, 64, 64, 32)
    vertices: int = 700
    bfm: tuple[str, ...] = ()
    whitened: bool = True
    style_size: int = 96
    mapping_layers: int = 2
    mapping_multiplier: float = 1.0
    base: int = 256
    largest: int = 64
    group: int = 4
    dtype: str = "float32"

    @property
    def layout(self) -> Layout:
        """Of coefficients."""
        return Layout(self.shape, self.texture, self.expression)

    @property
    def latents(self) -> Latents:
        """Sizes of latents."""
        return Latents(self.identity, self.expression_latents, self.light, self.pose, self.noise)

    def autoencoders(self, gamma: float = 1.0) -> dict[str, Autoencoder]:
        """By factor."""
        places, widths = self.layout.slices(), dict(zip(discofacegan.FACTORS, self.widths, strict=True))
        sizes = self.latents._asdict()
        return {
            name: Autoencoder(sizes[name], places[name].stop - places[name].start, widths[name], gamma)
            for name in discofacegan.FACTORS
        }

    def networks(self, resolution: int) -> tuple[stylegan.Generator, stylegan.Discriminator]:
        """Generator and discriminator."""
        shape = {"base": self.base, "largest": self.largest, "dtype": jnp.dtype(self.dtype)}
        size = self.layout.size + self.noise
        generator = stylegan.Generator(
            resolution,
            size,
            mapping_layers=self.mapping_layers,
            normalize=False,
            style_size=self.style_size,
            mapping_multiplier=self.mapping_multiplier,
            **shape,
        )
        return generator, stylegan.Discriminator(resolution, group=self.group, **shape)

    def face(self) -> Face:
        """The face model."""
        return _face(self)

    def face_shapes(self) -> Face:
        """Shapes of `face`, without a file."""
        if not self.bfm:
            with jax.ensure_compile_time_eval():
                return jax.eval_shape(self.face)
        vertices, layout = tddfa_files.BFM_VERTICES + 68, self.layout
        shapes = [(vertices, 3, *last) for last in ((), (layout.shape,), (layout.expression,), (), (layout.texture,))]
        shapes += [(tddfa_files.BFM_TRIANGLES, 3), (vertices,)]
        return Face(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))


@functools.lru_cache(maxsize=2)
def _face(model: Model) -> Face:
    source = bfm.from_bfm(*model.bfm, albedo=model.texture) if model.bfm else procedural()
    return discofacegan.make_face(source, model.layout, model.vertices)


@dataclasses.dataclass(frozen=True)
class Loss:
    """The `loss` section: weights, the paper's.

    Attributes:
      gamma: of R1.
      imitative: whether images have to resemble renderings.
      pixels: of the difference in pixels, the only imitative loss up to `pixels_until` pixels.
      pixels_until: side of images.
      identity, floor: weight of the identity loss, and the least value of 1 - cos.
      landmarks, landmarks_later: before and after the contrastive losses begin.
      light, colour: of lighting and skin colour.
      contrastive_after: images after which pairs are compared; negative: never.
      expression_pair, light_pair: of the contrastive losses.
    """

    gamma: float = 10.0
    imitative: bool = True
    pixels: float = 20.0
    pixels_until: int = 32
    identity: float = 3.0
    floor: float = 0.3
    landmarks: float = 500.0
    landmarks_later: float = 100.0
    light: float = 10.0
    colour: float = 20.0
    contrastive_after: int = 8000
    expression_pair: float = 10.0
    light_pair: float = 10.0


@dataclasses.dataclass(frozen=True)
class Autoencoding:
    """The `autoencoders` section.

    Attributes:
      epochs: over all coefficients.
      batch_size: coefficients a step.
      rate: of Adam, halved after 3/8 and 6/8 of the epochs.
      gamma: deviation of the coefficients, whitened, at the beginning; 1 ends in constant decoders in a short training.
    """

    epochs: int = 20
    batch_size: int = 64
    rate: float = 2e-3
    gamma: float = 0.1

    def fit(self, model: Model, coefficients: np.ndarray, seed: int) -> dict[str, Any]:
        """Parameters of the decoders of autoencoders of coefficients [N, D], by factor.

        The coefficients are whitened (choice); the decoders' last layers undo that.
        """
        nets, places = model.autoencoders(self.gamma), model.layout.slices()
        sizes, mean, std = model.latents._asdict(), coefficients.mean(0), coefficients.std(0) + 1e-6
        data = {name: ((coefficients - mean) / std)[:, places[name]] for name in nets}
        data = jax.tree.map(jnp.asarray, data)

        @jax.jit
        def init(key: jax.Array) -> Any:
            keys = jax.random.split(key, len(nets))
            return {
                name: net.init(own, data[name][:1], jnp.zeros((1, sizes[name])))
                for (name, net), own in zip(nets.items(), keys, strict=True)
            }

        def loss(params: Any, chosen: jax.Array, key: jax.Array) -> jax.Array:
            total = 0.0
            for name, net in nets.items():
                key, own = jax.random.split(key)
                normal = jax.random.normal(own, (len(chosen), sizes[name]))
                total += net.apply(params[name], data[name][chosen], normal).mean()
            return total

        steps = max(1, self.epochs * len(coefficients) // self.batch_size)

        def rate(count: jax.Array) -> jax.Array:
            return self.rate * 0.5 ** (8 * count // (3 * steps))

        found = control.fit(loss, init(jax.random.key(seed)), len(coefficients), steps, self.batch_size, rate, seed)
        decoders = {name: jax.tree.map(np.asarray, part["params"]["decoder"]) for name, part in found.items()}
        for name, layers in decoders.items():
            last, place = layers["Dense_3"], places[name]
            bias = last["bias"] * std[place] + mean[place]
            decoders[name] = {**layers, "Dense_3": {"kernel": last["kernel"] * std[place], "bias": bias}}
        return decoders


@dataclasses.dataclass(frozen=True)
class Perception:
    """The `perception` section.

    Attributes:
      name: "small", trained on renderings and on rendered portraits before the GAN, or "rnet".
      weights: with "rnet", an .npz file of its variables, by "trunk/conv1/kernel" and so on.
      widths, features: of the small net.
      steps, batch_size, rate: of its training, see `facejax.evaluate.control.Fitting`.
    """

    name: str = "small"
    weights: str = ""
    widths: tuple[int, ...] = (16, 32, 64)
    features: int = 128
    steps: int = 600
    batch_size: int = 64
    rate: float = 2e-3

    def __post_init__(self) -> None:
        if self.name not in ("small", "rnet"):
            raise ValueError(f"perception.name is {self.name!r}: expected small or rnet")

    @property
    def fitting(self) -> Fitting:
        """Of the small net."""
        return Fitting(self.steps, self.batch_size, self.rate)

    @property
    def zoom(self) -> float:
        """Of the camera that it was trained for."""
        return discofacegan.ZOOM if self.name == "small" else discofacegan.PERCEPTION_ZOOM

    def net(self, layout: Layout) -> Any:
        """The module."""
        if self.name == "rnet":
            return discofacegan.RNet(layout)
        return discofacegan.SmallNet(layout, tuple(self.widths), self.features)

    def read(self, layout: Layout, variables: Any, images: jax.Array, size: int) -> jax.Array:
        """Coefficients and translation [N, D + 3] of images, which are repeated to `size` pixels first."""
        images = generation.enlarged(images, size)
        if self.name == "rnet":
            images = resize_bilinear(images, (RNET_SIZE, RNET_SIZE))
        return self.net(layout).apply(variables, images)

    def fit(self, layout: Layout, face: Face, images: np.ndarray, coefficients: np.ndarray, seed: int) -> Any:
        """Variables of the small net, trained on images uint8 [N, S, S, 3] and on renderings of their coefficients."""
        draw = jax.jit(lambda face, part: generation.to_uint8(rendered(face, part, layout, images.shape[1]).images))
        parts = np.array_split(coefficients, max(1, len(coefficients) // 250))
        drawn = np.concatenate([np.asarray(draw(face, part)) for part in parts])
        both = np.concatenate([images, drawn]), np.tile(coefficients, (2, 1))
        return control.fit_reader(self.net(layout), *both, self.fitting, seed)


def rendered(face: Face, coefficients: jax.Array, layout: Layout, size: int) -> discofacegan.Rendered:
    """Renderings at `size` pixels, averaged from larger ones below `LEAST` pixels."""
    found = discofacegan.render(face, coefficients, layout, max(size, LEAST))
    images, mask = (generation.enlarged(x, size) for x in (found.images, found.mask))
    scale = jnp.array([size, size, size]) / max(size, LEAST)
    return discofacegan.Rendered(images, mask, found.points * scale)


def true_coefficients(data: ModelAlignedImages, split: str, layout: Layout) -> np.ndarray:
    """Coefficients [N, D] of the face world's images.

    Its light is fitted by the renderer's, which is applied to colours that are not linear.
    """
    truth = data.truth(split)

    def shades(normals: jax.Array, light: jax.Array) -> jax.Array:
        given = lighting.directional_light(light[:3], light[3:6], light[6:])
        return lighting.shade(normals.T, given).T ** (1 / GAMMA)

    @jax.jit
    def converted(pose: jax.Array, light: jax.Array) -> Any:
        every = jax.vmap(lambda light: discofacegan.light_coefficients(lambda normals: shades(normals, light)))
        return discofacegan.angles_of(rotation.from_euler(pose)), every(light)

    parts = (
        truth.identity[:, : layout.shape], truth.albedo[:, : layout.texture], truth.expression[:, : layout.expression],
        *converted(truth.pose, truth.light),
    )  # fmt: skip
    return np.concatenate([np.asarray(part, np.float32) for part in parts], 1)


@dataclasses.dataclass(frozen=True)
class Disco:
    """A DiscoFaceGAN.

    Attributes:
      model, loss, autoencoding, perception: sections of the configuration.
      data: training images.
      seed: of what is trained first.
    """

    model: Model
    loss: Loss
    autoencoding: Autoencoding
    perception: Perception
    data: ModelAlignedImages
    seed: int

    def prepare(self) -> dict[str, Any]:
        """{"decoders", "whitening", "perception", "face"}: trained or read."""
        layout, face = self.model.layout, self.model.face()
        if self.data.source == "face_world":
            coefficients = true_coefficients(self.data, "train", layout)
        else:
            coefficients = self.data.coefficients(layout.size)
        if self.perception.name == "rnet":
            perception = read_variables(self.perception.weights, self.empty()["perception"])
        elif self.data.source == "face_world":
            images = self.data.pictures("train")
            perception = self.perception.fit(layout, face, images, coefficients, self.seed)
        else:
            raise ValueError("perception.name is small: expected rnet, for images whose coefficients are estimates")
        decoders = self.autoencoding.fit(self.model, coefficients, self.seed)
        mean, std = coefficients.mean(0), np.maximum(coefficients.std(0), 1e-6)
        for place in layout.slices().values():
            std[place] *= np.sqrt((place.stop - place.start) * len(discofacegan.FACTORS) / layout.size)
        if not self.model.whitened:
            mean, std = np.zeros_like(mean), np.ones_like(std)
        whitening = {"mean": jnp.asarray(mean), "std": jnp.asarray(std)}
        return {"decoders": decoders, "whitening": whitening, "perception": perception, "face": face}

    def init(self, rng: jax.Array, resolution: int) -> tuple[Params, dict[str, Any]]:
        """Parameters by player, and zeros in place of what `prepare` gives."""
        first, second = jax.random.split(rng)
        generator, discriminator = self.model.networks(resolution)
        made = {
            GENERATOR: generator.init(first, jnp.zeros((1, generator.latent_size))),
            DISCRIMINATOR: discriminator.init(second, jnp.zeros((1, resolution, resolution, 3))),
        }
        frozen = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.empty())
        return {player: variables["params"] for player, variables in made.items()}, frozen

    def empty(self) -> dict[str, Any]:
        """Shapes of what `prepare` gives."""
        layout, sizes = self.model.layout, self.model.latents._asdict()
        size = RNET_SIZE if self.perception.name == "rnet" else self.data.image_size
        key, image = jax.random.key(0), jnp.zeros((1, size, size, 3))
        decoders = {
            name: jax.eval_shape(Decoder(net.outputs, net.width).init, key, jnp.zeros((1, sizes[name])))["params"]
            for name, net in self.model.autoencoders().items()
        }
        perception = jax.eval_shape(self.perception.net(layout).init, key, image)
        whitening = dict.fromkeys(("mean", "std"), jax.ShapeDtypeStruct((layout.size,), jnp.float32))
        face = self.model.face_shapes()
        return {"decoders": decoders, "whitening": whitening, "perception": perception, "face": face}

    def inputs(self, frozen: Any, latents: jax.Array) -> jax.Array:
        """Latents [N, Z] to coefficients and noise [N, D + noise]."""
        return discofacegan.inputs(frozen["decoders"], latents, self.model.latents, self.model.layout)

    def whitened(self, frozen: Any, inputs: jax.Array) -> jax.Array:
        """What the generator sees of coefficients and noise [N, D + noise]."""
        noise, whitening = inputs[:, self.model.layout.size :], frozen["whitening"]
        coefficients = (inputs[:, : self.model.layout.size] - whitening["mean"]) / whitening["std"]
        return jnp.concatenate([coefficients, noise], 1)

    def see(self, frozen: Any, images: jax.Array) -> discofacegan.Seen:
        """What the perception net sees in images."""
        layout = self.model.layout
        found = self.perception.read(layout, frozen["perception"], images, self.data.image_size)
        return discofacegan.seen(frozen["face"], found, layout, self.perception.zoom)


@dataclasses.dataclass(frozen=True)
class Players:
    """Losses of the plays at one resolution.

    Attributes:
      disco: the system.
      resolution: side of the images.
      alpha: weight of the new layers.
      contrastive: whether pairs are compared.
    """

    disco: Disco
    resolution: int
    alpha: Any
    contrastive: bool

    def draw(self, params: Params, frozen: Any, inputs: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """Images of coefficients and noise; without `rng` the layers' noise is the same in all."""
        inputs = self.disco.whitened(frozen, inputs)
        rngs = {} if rng is None else {stylegan.NOISE: rng}
        generator = self.disco.model.networks(self.resolution)[0]
        return generator.apply({"params": params[GENERATOR]}, inputs, alpha=self.alpha, rngs=rngs)

    def score(self, params: Params) -> Any:
        """Images -> scores."""
        discriminator = self.disco.model.networks(self.resolution)[1]
        return lambda images: discriminator.apply({"params": params[DISCRIMINATOR]}, images, alpha=self.alpha)

    def latents(self, rng: jax.Array, count: int) -> jax.Array:
        """[count, Z]."""
        return jax.random.normal(rng, (count, self.disco.model.latents.size))

    def discriminate(self, params: Params, frozen: Any, batch: Any, rng: jax.Array) -> Any:
        """The discriminator's loss with its penalty; of images of pairs as well, beside as many of the real ones."""
        first, second, third, fourth = jax.random.split(rng, 4)
        real, score = batch["image"], self.score(params)
        fake = self.draw(params, frozen, self.disco.inputs(frozen, self.latents(first, len(real))), second)
        penalty = stylegan.r1_penalty(score, real, self.disco.loss.gamma)
        terms = {"discriminator_loss": stylegan.discriminator_loss(score, real, fake) + penalty}
        if self.contrastive:
            if len(real) < 4:
                raise ValueError(
                    f"{len(real)} real images a device: expected at least 4, as many as a step has in pairs"
                )
            fake = self.draw(params, frozen, self.pair_inputs(frozen, third), fourth)
            losses = stylegan.discriminator_loss(score, real[:4], fake)
            terms["pairs_discriminator_loss"] = losses + penalty[:4]
        return total(terms, frozen)

    def generate(self, params: Params, frozen: Any, batch: Any, rng: jax.Array) -> Any:
        """The generator's loss."""
        first, second, third, fourth = jax.random.split(rng, 4)
        inputs, score = self.disco.inputs(frozen, self.latents(first, len(batch["image"]))), self.score(params)
        fake = self.draw(params, frozen, inputs, second)
        terms = {"generator_loss": stylegan.generator_loss(score, fake)}
        if self.disco.loss.imitative:
            terms |= self.imitative(frozen, inputs[:, : self.disco.model.layout.size], fake)
        if self.contrastive:
            inputs = self.pair_inputs(frozen, third)
            fake = self.draw(params, frozen, inputs, fourth)
            terms["pairs_generator_loss"] = stylegan.generator_loss(score, fake)
            terms |= self.compare(frozen, inputs, fake)
        return total(terms, frozen)

    def imitative(self, frozen: Any, coefficients: jax.Array, fake: jax.Array) -> dict[str, jax.Array]:
        """The weighted imitative losses of images [N, R, R, 3] of coefficients [N, D].

        While layers are faded in, renderings and masks are faded like real images. The perception net sees images that
        are cut to -1..1.
        """
        loss, layout, face = self.disco.loss, self.disco.model.layout, frozen["face"]
        image, mask, _ = rendered(face, coefficients, layout, self.resolution)
        image, mask = pggan.faded(image, self.alpha), pggan.faded(mask, self.alpha)
        if self.resolution <= loss.pixels_until:
            return {"pixels": loss.pixels * discofacegan.pixel_loss(fake, image, mask)}
        cut = jnp.clip(fake, -1, 1)
        several = jnp.concatenate([cut, (cut + 1) * mask - 1, image])
        found, masked, goal = split(self.disco.see(frozen, several), 3)
        wanted = discofacegan.landmarks(face, coefficients, layout)
        weight = loss.landmarks_later if self.contrastive else loss.landmarks
        identity = discofacegan.identity_loss(masked.identity, goal.identity, loss.floor)
        return {
            "identity": loss.identity * identity,
            "landmarks": weight * discofacegan.landmark_loss(found.landmarks, wanted),
            "light": loss.light * discofacegan.light_loss(found.light, coefficients[:, layout.slices()["light"]]),
            "colour": loss.colour * discofacegan.colour_loss(fake, image, mask),
        }

    def pair_inputs(self, frozen: Any, rng: jax.Array) -> jax.Array:
        """Coefficients and noise of two pairs [4, D + noise]: of expression and light, then with it changed."""
        first, second, third = jax.random.split(rng, 3)
        latents, sizes = self.latents(first, 2), self.disco.model.latents
        expression = discofacegan.pairs(second, latents[:1], "expression", sizes)
        light = discofacegan.pairs(third, latents[1:], "light", sizes)
        return self.disco.inputs(frozen, jnp.concatenate([latents, expression, light]))

    def compare(self, frozen: Any, inputs: jax.Array, fake: jax.Array) -> dict[str, jax.Array]:
        """The weighted contrastive losses of the images [4, R, R, 3] of `pair_inputs`."""
        loss, layout, face = self.disco.loss, self.disco.model.layout, frozen["face"]
        made = rendered(face, inputs[::2, : layout.size], layout, self.resolution)
        moved = discofacegan.expression_pair_loss(*split(fake[::2], 2), *split(made, 2), face)
        lit = discofacegan.light_pair_loss(*split(self.disco.see(frozen, jnp.clip(fake[1::2], -1, 1)), 2))
        return {"expression_pair": loss.expression_pair * moved, "light_pair": loss.light_pair * lit}


def total(terms: dict[str, jax.Array], frozen: Any) -> Any:
    """The sum of the terms' means; what stays frozen; and the terms, to be logged."""
    return sum(term.mean() for term in terms.values()), (frozen, {name: Mean.of(term) for name, term in terms.items()})


def split(tree: Any, parts: int) -> list[Any]:
    """Equal parts of a tuple of arrays, or of an array, along the first axis."""
    if isinstance(tree, jax.Array):
        return jnp.split(tree, parts)
    return [type(tree)(*each) for each in zip(*(jnp.split(x, parts) for x in tree), strict=True)]


def read_variables(path: str, shapes: Any) -> Any:
    """Variables in an .npz file, by names such as "params/trunk/conv1/kernel".

    Raises:
      ValueError: no such file, or one without a variable, or with one of another shape.
    """
    try:
        found = arrays.load_all(path)
    except ValueError as error:
        raise ValueError(f"perception.weights: {error}") from error

    def pick(place: Any, shape: Any) -> jax.Array:
        name = "/".join(entry.key for entry in place)
        if name not in found or found[name].shape != shape.shape:
            given = found[name].shape if name in found else "missing"
            raise ValueError(f"perception.weights {path!r}: {name} is {given}, expected {shape.shape}")
        return jnp.asarray(found[name], shape.dtype)

    return jax.tree_util.tree_map_with_path(pick, shapes)
