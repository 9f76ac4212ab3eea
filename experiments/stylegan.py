"""StyleGAN and StyleGAN2: latents are mapped to styles, which control every layer of the generator.

    python -m experiments.stylegan                                   # rendered faces of 32 pixels, two cores
    python -m experiments.stylegan --config=no_mapping               # styles from z itself
    python -m experiments.stylegan --config=paths_in_z               # path lengths in Z; the same training
    python -m experiments.stylegan --config=no_mixing                # one w for all layers in training
    python -m experiments.stylegan --config=stylegan2                # the second version
    python -m experiments.stylegan --sample runs/stylegan/synthetic --seeds 0-15 --truncation 0.7 --out sheet.png
    python -m experiments.stylegan --config=gpu                      # rendered faces of 64 pixels, one GPU
    python -m experiments.stylegan --config=ffhq_1024 --config.data.path=DIR        # 8 GPUs; DIR: images1024x1024
    python -m experiments.stylegan --config=ffhq_1024_v2 --config.data.path=DIR     # 8 GPUs
    python -m experiments.stylegan --config=celebahq                 # 1024 pixels, 8 GPUs

FFHQ is a folder of pictures. CelebA-HQ is read as tfds prepared it (celeb_a_hq needs the authors' archives).

| preset | source of the settings | images | published |
|---|---|---|---|
| ffhq_1024 | StyleGAN's code, 8 GPUs | 25.0 M | FID 4.42, path length in W 233.3, at the end 197.2 |
| celebahq | the same with WGAN-GP, as in the paper | 25.0 M | FID 5.17 |
| ffhq_1024_v2 | StyleGAN2's, configuration F, 8 GPUs | 25.0 M | FID 2.84, path length in W 126.9, at the end 129.4 |

The report has Frechet distances and path lengths with fixed features, which are no FID and no published path lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from facejax.data.generation import GenerationImages
from facejax.evaluate import generation
from facejax.evaluate.generation import GenerationProtocol
from facejax.evaluate.styles import StyleNet, StyleProtocol
from facejax.generation import pggan, stylegan
from facejax.recipes import sampling
from facejax.recipes.gan import DISCRIMINATOR, GENERATOR, Adam, Gan, Growth, Play, Progressive
from facejax.recipes.regularised import Regularised
from facejax.recipes.style_based import Loss, Model, StyleGan
from facejax.train import Experiment, Options, app
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(GenerationImages()),
    "model": asdict(Model()),
    "loss": asdict(Loss(gamma=0.5)),
    "average": 0.99,  # of the generator: decay of a step; 1 or more: half-life in images
    "growth": asdict(Growth(first=8, stable=3200, fading=1600)),  # of version 1
    "optim": asdict(Adam(rate=4e-3)),
    "train": asdict(Options(batch_size=8, steps=2000)),
    "eval": asdict(GenerationProtocol()),
    "styles": asdict(StyleProtocol()),
}
FFHQ = {
    "data": {"source": "folder", "image_size": 1024, "workers": 8},
    "model": {"latent_size": 512, "mapping_layers": 8, "base": 8192, "largest": 512},
    "loss.gamma": 10.0,
    "average": 10_000,
    "growth": {
        "stable": 600_000,
        "fading": 600_000,
        "batch_sizes": (256, 128, 64, 32, 32, 32, 32, 32),
        "rates": (1e-3, 1e-3, 1e-3, 1e-3, 1.5e-3, 2e-3, 3e-3, 3e-3),
    },
    "optim.rate": 1e-3,
    "train": {"batch_size": 32, "steps": 717_967, "devices": 8},
    "eval": {"images": 50_000, "batch_size": 64},
    "styles": {"pairs": 100_000, "epsilon": 1e-4, "crop": True, "images": 10_000, "separable": 0},
}
PRESETS = {
    "synthetic": {},
    "paths_in_z": {"styles.space": "z"},
    "no_mapping": {"model.mapping_layers": 0, "styles.space": "z"},
    "no_mixing": {"loss.mixing": 0.0},
    "stylegan2": {"model.version": 2},
    "gpu": {
        "data.image_size": 64,
        "model": {"latent_size": 512, "mapping_layers": 8, "base": 8192, "largest": 512},
        "average": 10_000,
        "growth": {"stable": 60_000, "fading": 60_000},
        "optim.rate": 1e-3,
        "train": {"batch_size": 64, "steps": 9375, "devices": 1},
    },
    "ffhq_1024": FFHQ,
    "celebahq": FFHQ | {
        "data": {"source": "celeb_a_hq", "image_size": 1024, "workers": 8},
        "loss.kind": "wgan_gp",
        "growth.rates": (1e-3, 1e-3, 1e-3, 1e-3, 1.5e-3, 2e-3, 2e-3, 2e-3),
        "eval": {"images": 30_000, "batch_size": 64},
    },
    "ffhq_1024_v2": FFHQ | {
        "model": {"version": 2, "latent_size": 512, "mapping_layers": 8, "base": 16_384, "largest": 512},
        "optim.rate": 2e-3,
        "train": {"batch_size": 32, "steps": 781_250, "devices": 8},
        "styles": {"pairs": 50_000, "epsilon": 1e-4, "crop": True, "images": 10_000, "separable": 0},
    },
}  # fmt: skip
CLAIM = (
    Claim(
        "stylegan.w",
        "paths through W are perceptually shorter than paths through Z of the same generator",
        metric="ppl",
        better="lower",
        method="synthetic",
        baseline=("paths_in_z",),
    ),
    Claim(
        "stylegan.mapping",
        "factors of faces are easier to separate by planes in W than in the latents of a generator without mapping",
        metric="separability_w",
        better="lower",
        method="synthetic",
        baseline=("no_mapping",),
    ),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def run(config: ConfigDict) -> Progressive | Regularised:
    """Wires networks, losses and schedule."""
    model, loss = Model(**config.model), Loss(**config.loss)
    if model.version == 2 and loss.kind != "logistic":
        raise ValueError(f"loss.kind is {loss.kind!r}: expected 'logistic', the only loss of version 2")
    sections = {
        "data": GenerationImages(**config.data),
        "adam": Adam(**config.optim),
        "options": Options(**config.train),
        "evaluation": GenerationProtocol(**config.eval),
        "average": config.average,
        "seed": config.seed,
    }
    side = config.data.image_size

    def growing(resolution: int, alpha: jax.Array) -> list[Play]:
        made = StyleGan(model, loss, resolution, {"alpha": alpha})
        return [Play(DISCRIMINATOR, made.discriminate), Play(GENERATOR, made.generate)]

    def penalised(active: Sequence[str]) -> list[Play]:
        made = StyleGan(model, loss, side)
        path = [Play(GENERATOR, made.straighten)] if "path" in active else []
        r1 = [Play(DISCRIMINATOR, made.penalise)] if "r1" in active else []
        return [Play(GENERATOR, made.generate), *path, Play(DISCRIMINATOR, made.discriminate), *r1]

    def draw(average: Any, _: Any, latents: jax.Array, resolution: int = side, alpha: Any = None) -> jax.Array:
        options = {} if alpha is None else {"alpha": alpha}
        return model.networks(resolution)[0].apply({"params": average}, latents, **options)

    if model.version == 1:
        paper = Gan(model.latent_size, model.init, growing, draw)
        return Progressive(paper, growth=Growth(**config.growth), faded=pggan.faded, **sections)
    regularisers = {"r1": (DISCRIMINATOR, loss.r1_interval), "path": (GENERATOR, loss.path_interval)}
    init = partial(model.init, resolution=side)
    return Regularised(model.latent_size, init, penalised, regularisers, draw, **sections)


def style_net(config: ConfigDict, state: Any) -> StyleNet:
    """The averaged generator of a state, in two parts."""
    model, side, made = Model(**config.model), config.data.image_size, run(config)
    resolution, options, truncated = side, {}, None
    if isinstance(made, Progressive):
        stage, truncated = made.reached(int(state.step)), stylegan.TRUNCATED_LAYERS
        resolution, options = stage.resolution, {"alpha": float(stage.alpha(int(state.step) - 1))}
    generator = model.networks(resolution)[0]

    def synthesize(variables: Any, styles: jax.Array) -> jax.Array:
        return generation.enlarged(generator.apply(variables, styles, method="synthesize", **options), side)

    return StyleNet(
        lambda variables, latents: generator.apply(variables, latents, method="map"),
        synthesize,
        partial(stylegan.truncated, layers=truncated),
        {"params": state.ema[GENERATOR]},
        np.asarray(state.model_state["w_average"]),
        generator.layers,
        model.latent_size,
        config.eval.batch_size,
    )


def build(config: ConfigDict) -> Experiment:
    """Wires the run and its evaluation."""
    made, protocol = run(config), StyleProtocol(**config.styles)

    def evaluate(state: Any) -> Any:
        report, extractor = made.evaluate(state), made.evaluation.extractor()
        return report | protocol.assess(style_net(config, state), made.data, extractor)

    return dataclasses.replace(made.experiment(), evaluate=evaluate)


def sample(config: ConfigDict, state: Any, seeds: Sequence[int], truncation: float = 1.0) -> np.ndarray:
    """Images of a run's averaged generator; `truncation` is psi."""
    net = style_net(config, state)
    return net.images(np.asarray(net.truncate(net.styles(seeds), net.average, truncation)))


if __name__ == "__main__":
    sampling.main("stylegan", get_config, build, sample, {"truncation": 1.0})
