"""Style-based GANs in training: StyleGAN's and StyleGAN2's networks, losses and penalties as plays of a step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from facejax.generation import pggan, stylegan, stylegan2
from facejax.recipes.gan import DISCRIMINATOR, GENERATOR, Params
from facejax.train import Mean

LOSSES = ("logistic", "wgan_gp")
Outcome = tuple[jax.Array, tuple[Any, dict[str, Mean]]]
"""What a play's loss returns."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The `model` section of a style-based GAN.

    Attributes:
      version: 1: StyleGAN; 2: StyleGAN2, which does not grow.
      latent_size: of z and of w.
      mapping_layers: 0: w is z, normalised.
      base: feature maps at 2 pixels, half as many at each double.
      largest: and at most so many.
      group: images whose deviation the discriminator sees.
      dtype: of the computation.
    """

    version: int = 1
    latent_size: int = 64
    mapping_layers: int = 4
    base: int = 128
    largest: int = 64
    group: int = 4
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"model.version is {self.version}: expected 1 or 2")

    def networks(self, resolution: int) -> tuple[Any, Any]:
        """Generator and discriminator."""
        paper = stylegan if self.version == 1 else stylegan2
        shape = {"base": self.base, "largest": self.largest, "dtype": jnp.dtype(self.dtype)}
        generator = paper.Generator(resolution, self.latent_size, mapping_layers=self.mapping_layers, **shape)
        return generator, paper.Discriminator(resolution, group=self.group, **shape)

    def init(self, rng: jax.Array, resolution: int) -> tuple[Params, Any]:
        """Parameters by player, and the averages of w and of path lengths."""
        first, second = jax.random.split(rng)
        generator, discriminator = self.networks(resolution)
        made = {
            GENERATOR: generator.init(first, jnp.zeros((1, self.latent_size))),
            DISCRIMINATOR: discriminator.init(second, jnp.zeros((1, resolution, resolution, 3))),
        }
        averages = {"w_average": jnp.zeros(self.latent_size), "path_average": jnp.zeros(())}
        return {player: variables["params"] for player, variables in made.items()}, averages


@dataclasses.dataclass(frozen=True)
class Loss:
    """The `loss` section.

    Attributes:
      kind: "logistic", or PG-GAN's "wgan_gp", for version 1.
      gamma: of R1, the penalty of the logistic loss.
      mixing: probability that a batch has two styles.
      path_weight: of version 2's path lengths.
      r1_interval, path_interval: steps between version 2's penalties; version 1 has R1 in every step.
    """

    kind: str = "logistic"
    gamma: float = 10.0
    mixing: float = 0.9
    path_weight: float = 2.0
    r1_interval: int = 16
    path_interval: int = 4

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise ValueError(f"loss.kind is {self.kind!r}: expected one of {', '.join(LOSSES)}")


@dataclasses.dataclass(frozen=True)
class StyleGan:
    """Losses of plays, at one resolution.

    Attributes:
      model, loss: the sections.
      resolution: side of the images.
      options: of both networks' calls: version 1's alpha.
    """

    model: Model
    loss: Loss
    resolution: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def styles(self, params: Params, averages: Any, count: int, rng: jax.Array) -> tuple[jax.Array, Any]:
        """Styles [count, L, W] of new latents, mixed; and the averages, that of w moved."""
        first, second = jax.random.split(rng)
        generator = self.model.networks(self.resolution)[0]
        latents = jax.random.normal(first, (2 * count, self.model.latent_size))
        w, other = jnp.split(generator.apply({"params": params[GENERATOR]}, latents, method="map"), 2)
        cutoff = stylegan.mixing_cutoff(second, generator.layers, self.loss.mixing)
        averages = {**averages, "w_average": stylegan.moved(averages["w_average"], w)}
        return stylegan.mixed(w, other, cutoff, generator.layers), averages

    def synthesis(self, params: Params, rng: jax.Array) -> Any:
        """Styles -> images, with the noise of `rng`."""
        settings = {"method": "synthesize", "rngs": {stylegan.NOISE: rng}, **self.options}
        generator = self.model.networks(self.resolution)[0]
        return lambda styles: generator.apply({"params": params[GENERATOR]}, styles, **settings)

    def fake(self, params: Params, averages: Any, count: int, rng: jax.Array) -> tuple[jax.Array, Any]:
        """Generated images, and the averages."""
        first, second = jax.random.split(rng)
        styles, averages = self.styles(params, averages, count, first)
        return self.synthesis(params, second)(styles), averages

    def score(self, params: Params) -> Any:
        """Images -> scores."""
        discriminator = self.model.networks(self.resolution)[1]
        return lambda images: discriminator.apply({"params": params[DISCRIMINATOR]}, images, **self.options)

    def discriminate(self, params: Params, averages: Any, batch: Any, rng: jax.Array) -> Outcome:
        """The discriminator's loss, in version 1 with its penalty."""
        score, first, second = self.score(params), *jax.random.split(rng)
        fake, averages = self.fake(params, averages, len(batch["image"]), first)
        if self.loss.kind == "wgan_gp":
            losses = pggan.discriminator_loss(score, batch["image"], fake, second)
        else:
            losses = stylegan.discriminator_loss(score, batch["image"], fake)
            if self.model.version == 1:
                losses += stylegan.r1_penalty(score, batch["image"], self.loss.gamma)
        return losses.mean(), (averages, {"discriminator_loss": Mean.of(losses)})

    def generate(self, params: Params, averages: Any, batch: Any, rng: jax.Array) -> Outcome:
        """The generator's loss."""
        fake, averages = self.fake(params, averages, len(batch["image"]), rng)
        paper = pggan if self.loss.kind == "wgan_gp" else stylegan
        losses = paper.generator_loss(self.score(params), fake)
        return losses.mean(), (averages, {"generator_loss": Mean.of(losses)})

    def penalise(self, params: Params, averages: Any, batch: Any, rng: jax.Array) -> Outcome:
        """R1, times its interval."""
        losses = stylegan.r1_penalty(self.score(params), batch["image"], self.loss.gamma)
        return self.loss.r1_interval * losses.mean(), (averages, {"r1": Mean.of(losses)})

    def straighten(self, params: Params, averages: Any, batch: Any, rng: jax.Array) -> Outcome:
        """The penalty of path lengths of half a batch, times its weight and interval."""
        first, second, third = jax.random.split(rng, 3)
        styles, averages = self.styles(params, averages, max(1, len(batch["image"]) // 2), first)
        found = stylegan2.path_length(self.synthesis(params, second), styles, averages["path_average"], third)
        metrics = {"path_length": Mean.of(found.lengths), "path_penalty": Mean.of(found.penalty)}
        weight = self.loss.path_interval * self.loss.path_weight
        return weight * found.penalty.mean(), ({**averages, "path_average": found.average}, metrics)
