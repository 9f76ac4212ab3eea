"""PG-GAN: a generator and a discriminator that grow from 4 pixels to the full resolution while they train.

    python -m experiments.pggan                                                 # rendered faces, two cores
    python -m experiments.pggan --config=from_scratch                           # all layers from the beginning
    python -m experiments.pggan --sample runs/pggan/synthetic --seeds 0-15 --out sheet.png
    python -m experiments.pggan --config=celebahq --config.data.path=DIR        # 8 GPUs; DIR: images of 1024 pixels
    python -m experiments.pggan --config=celeba_128                             # 1 GPU; tfds's celeb_a

Published: CelebA-HQ at 1024 pixels FID 7.30 (paper); 7.79 as the baseline of StyleGAN's paper. The distance that is
printed here has other features and is no FID (`facejax.evaluate.generation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.data.generation import GenerationImages
from facejax.evaluate.generation import GenerationProtocol
from facejax.generation import pggan
from facejax.recipes import sampling
from facejax.recipes.gan import DISCRIMINATOR, GENERATOR, Adam, Gan, Growth, Play, Progressive
from facejax.train import Experiment, Mean, Options, app
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(GenerationImages()),
    "model": {
        "latent_size": 64,
        "base": 128,  # feature maps at 2 pixels, half as many at each double
        "largest": 64,  # and at most so many
        "group": 4,  # images whose deviation the discriminator sees
        "dtype": "float32",  # of the computation
    },
    "loss": {"weight": 10.0, "target": 1.0, "drift": 1e-3},
    "average": 0.99,  # of the generator: decay of a step; 1 or more: half-life in images
    "growth": asdict(Growth(stable=3200, fading=1600)),
    "optim": asdict(Adam(rate=4e-3)),
    "train": asdict(Options(batch_size=8, steps=2400)),
    "eval": asdict(GenerationProtocol(swd_images=200)),
}
CELEBA_HQ = {"batch_sizes": (512, 256, 128, 64, 32, 32, 32, 32, 32),
             "rates": (1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1.5e-3, 2e-3, 3e-3, 3e-3)}  # fmt: skip
CELEBA_128 = {"batch_sizes": (128, 128, 128, 64, 32, 16), "rates": (1e-3,) * 6}


def published(source: str, size: int, growth: dict[str, Any], devices: int, images: int = 12_000_000) -> dict[str, Any]:
    """The authors' second configuration: 600,000 images each to fade in and to stabilise, 12 million in all."""
    schedule = {"first": 4, "stable": 600_000, "fading": 600_000, **growth}
    last = Growth(**schedule).stages(size, growth["batch_sizes"][-1], growth["rates"][-1])[-1]
    steps = last.begin + (images - last.images) // last.batch_size
    return {
        "data": {"source": source, "path": "celebahq" if source == "folder" else "", "image_size": size, "workers": 8},
        "model": {"latent_size": 512, "base": 8192, "largest": 512},
        "average": 0.999,
        "growth": schedule,
        "train": {"batch_size": last.batch_size, "steps": steps, "devices": devices, "save_seconds": 600.0},
        "eval": {"images": 50_000 if source == "celeb_a" else 10_000, "batch_size": 64, "swd_images": 8192},
    }


PRESETS = {
    "synthetic": {},
    "from_scratch": {"growth.first": 32},
    "celebahq": published("folder", 1024, CELEBA_HQ, 8),
    "celeba_128": published("celeb_a", 128, CELEBA_128, 1),
}
CLAIM = Claim(
    "pggan.growing",
    "growing networks give a lower Frechet distance than full ones from the beginning, at equal numbers of images",
    metric="frechet_random_cnn@1000",
    better="lower",
    method="synthetic",
    baseline=("from_scratch",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def progressive(config: ConfigDict) -> Progressive:
    """Wires networks, losses and schedule."""
    data, model = GenerationImages(**config.data), config.model
    shape = {"base": model.base, "largest": model.largest, "dtype": jnp.dtype(model.dtype)}

    def networks(resolution: int) -> tuple[pggan.Generator, pggan.Discriminator]:
        generator = pggan.Generator(resolution, model.latent_size, **shape)
        return generator, pggan.Discriminator(resolution, group=model.group, **shape)

    def init(rng: jax.Array, resolution: int) -> Any:
        generator, discriminator = networks(resolution)
        first, second = jax.random.split(rng)
        made = {
            GENERATOR: generator.init(first, jnp.zeros((1, model.latent_size))),
            DISCRIMINATOR: discriminator.init(second, jnp.zeros((1, resolution, resolution, 3))),
        }
        return {player: variables["params"] for player, variables in made.items()}, {}

    def plays(resolution: int, alpha: jax.Array) -> list[Play]:
        generator, discriminator = networks(resolution)

        def generated(params: Any, count: int, rng: jax.Array) -> jax.Array:
            latents = jax.random.normal(rng, (count, model.latent_size))
            return generator.apply({"params": params[GENERATOR]}, latents, alpha=alpha)

        def scored(params: Any) -> Any:
            return lambda images: discriminator.apply({"params": params[DISCRIMINATOR]}, images, alpha=alpha)

        def judge(params: Any, model_state: Any, batch: Any, rng: jax.Array) -> Any:
            first, second = jax.random.split(rng)
            fake = generated(params, len(batch["image"]), first)
            losses = pggan.discriminator_loss(scored(params), batch["image"], fake, second, **config.loss)
            return losses.mean(), (model_state, {"discriminator_loss": Mean.of(losses)})

        def forge(params: Any, model_state: Any, batch: Any, rng: jax.Array) -> Any:
            losses = pggan.generator_loss(scored(params), generated(params, len(batch["image"]), rng))
            return losses.mean(), (model_state, {"generator_loss": Mean.of(losses)})

        return [Play(DISCRIMINATOR, judge), Play(GENERATOR, forge)]

    def draw(average: Any, model_state: Any, latents: jax.Array, resolution: int, alpha: Any) -> jax.Array:
        return networks(resolution)[0].apply({"params": average}, latents, alpha=alpha)

    return Progressive(
        Gan(model.latent_size, init, plays, draw),
        data,
        Growth(**config.growth),
        Adam(**config.optim),
        Options(**config.train),
        GenerationProtocol(**config.eval),
        average=config.average,
        faded=pggan.faded,
        seed=config.seed,
    )


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    return progressive(config).experiment()


def sample(config: ConfigDict, state: Any, seeds: Sequence[int]) -> np.ndarray:
    """Images of a run's averaged generator."""
    return progressive(config).sample(state, seeds)


if __name__ == "__main__":
    sampling.main("pggan", get_config, build, sample)
