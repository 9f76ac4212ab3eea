"""PG-GAN: a generator and a discriminator that grow from 4 pixels to the full resolution while they train.

    python -m experiments.pggan                                      # rendered faces of 32 pixels, two cores
    python -m experiments.pggan --config=from_scratch                # all layers from the beginning, as many images
    python -m experiments.pggan --sample runs/pggan/synthetic --seeds 0-15 --out sheet.png
    python -m experiments.pggan --config=gpu                         # rendered faces of 64 pixels, one GPU
    python -m experiments.pggan --config=celebahq                    # 1024 pixels, 8 GPUs
    python -m experiments.pggan --config=celeba_128                  # 128 pixels, one GPU

CelebA-HQ and CelebA are read as tfds prepared them (celeb_a_hq needs the authors' archives); a folder of pictures is
read with --config.data.source=folder --config.data.path=DIR.

| preset | source of the schedule | images | published |
|---|---|---|---|
| celebahq | authors' code, preset v2 for 8 GPUs | 12.0 M | SWD of a re-training: mean 4.66 (mmgeneration) |
| celebahq_1gpu | the same for 1 GPU | 12.0 M | |
| celebahq_v1 | the same, preset v1, 1 GPU: the paper's | 19.0 M | FID 7.79 (Table 1 of StyleGAN's paper) |
| celeba_128 | authors' Theano code, last row of the ablation | 10.0 M | |

The report has the Frechet distance of fixed features, which is no FID; SWD is the paper's.
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
        "latent_size": 64,  # numbers of a latent
        "base": 128,  # feature maps at 2 pixels, half as many at each double
        "largest": 64,  # and at most so many
        "group": 4,  # images whose deviation the discriminator sees
        "dtype": "float32",  # of the computation
    },
    "loss": {
        "weight": 10.0,  # of the gradient penalty
        "target": 1.0,  # norm of the gradient without penalty
        "drift": 1e-3,  # weight of the squared scores of real images
    },
    "average": 0.99,  # of the generator: decay of a step; 1 or more: half-life in images
    "growth": asdict(Growth(stable=3200, fading=1600)),
    "optim": asdict(Adam(rate=4e-3)),
    "train": asdict(Options(batch_size=8, steps=2400)),
    "eval": asdict(GenerationProtocol(swd_images=200)),
}
CELEBAHQ = {
    "data": {"source": "celeb_a_hq", "image_size": 1024, "workers": 8},
    "model": {"latent_size": 512, "base": 8192, "largest": 512},
    "average": 0.999,
    "growth": {
        "stable": 600_000,
        "fading": 600_000,
        "batch_sizes": (512, 256, 128, 64, 32, 32, 32, 32, 32),
        "rates": (1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1.5e-3, 2e-3, 3e-3, 3e-3),
    },
    "optim.rate": 1e-3,
    "train": {"batch_size": 32, "steps": 277_732, "devices": 8},
    "eval": {"images": 30_000, "batch_size": 64, "swd_images": 16_384},
}
PRESETS = {
    "synthetic": {},
    "from_scratch": {"growth.first": 32},
    "gpu": {
        "data.image_size": 64,
        "model": {"latent_size": 512, "base": 8192, "largest": 512},
        "average": 0.999,
        "growth": {"stable": 60_000, "fading": 60_000},
        "optim.rate": 1e-3,
        "train": {"batch_size": 64, "steps": 9375, "devices": 1},
    },
    "celebahq": CELEBAHQ,
    "celebahq_1gpu": CELEBAHQ | {
        "growth.batch_sizes": (128, 128, 128, 64, 32, 16, 8, 4, 4),
        "growth.rates": (1e-3,) * 8 + (1.5e-3,),
        "train": {"batch_size": 4, "steps": 1_354_683, "devices": 1},
    },
    "celebahq_v1": CELEBAHQ | {
        "model.group": 16,
        "growth.stable": 800_000,
        "growth.fading": 800_000,
        "growth.batch_sizes": (16, 16, 16, 16, 16, 16, 14, 6, 3),
        "growth.rates": (),
        "train": {"batch_size": 16, "steps": 3_264_285, "devices": 1},
    },
    "celeba_128": {
        "data": {"source": "celeb_a", "image_size": 128, "workers": 8},
        "model": {"latent_size": 512, "base": 2048, "largest": 512, "group": 16},
        "average": 0.999,
        "growth": {"stable": 800_000, "fading": 800_000},
        "optim.rate": 1e-3,
        "train": {"batch_size": 16, "steps": 625_000, "devices": 1},
        "eval": {"images": 50_000, "batch_size": 256, "swd_images": 16_384},
    },
}  # fmt: skip


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

        def discriminate(params: Any, model_state: Any, batch: Any, rng: jax.Array) -> Any:
            first, second = jax.random.split(rng)
            fake = generated(params, len(batch["image"]), first)
            losses = pggan.discriminator_loss(scored(params), batch["image"], fake, second, **config.loss)
            return losses.mean(), (model_state, {"discriminator_loss": Mean.of(losses)})

        def generate(params: Any, model_state: Any, batch: Any, rng: jax.Array) -> Any:
            losses = pggan.generator_loss(scored(params), generated(params, len(batch["image"]), rng))
            return losses.mean(), (model_state, {"generator_loss": Mean.of(losses)})

        return [Play(DISCRIMINATOR, discriminate), Play(GENERATOR, generate)]

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
