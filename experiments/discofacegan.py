"""DiscoFaceGAN: faces whose identity, expression, light and pose are chosen, by imitation of a 3D face model.

    python -m experiments.discofacegan                                # rendered faces of 32 pixels, two cores
    python -m experiments.discofacegan --config=imitative             # without the contrastive losses
    python -m experiments.discofacegan --config=unconditional         # without any loss that looks at the face model
    python -m experiments.discofacegan --sample runs/discofacegan/synthetic --seeds 0-15 --truncation 0.7
    python -m experiments.discofacegan --config=ffhq_256 --config.data.path=DIR --config.data.parameters=FILE.npy
        --config.model.bfm=01_MorphableModel.mat,Model_Exp.mat --config.perception.weights=FILE.npz     # 4 GPUs

DIR holds FFHQ's images of 256 pixels, aligned by R-Net's face models without translation and with the scale 1.22; the
.npy file holds R-Net's coefficients of the images, [N, 254] in the order of `facejax.generation.discofacegan.Layout`.

The settings of ffhq_256 are those of the authors' code on 4 P100 (6 d 15 h for the first stage, 5 d 8 h for the
second). No FID of the paper is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.data import normalize
from facejax.data.model_aligned import ModelAlignedImages
from facejax.evaluate import control, generation
from facejax.evaluate.control import Controlled, ControlProtocol, Reader
from facejax.evaluate.generation import GenerationProtocol
from facejax.generation import discofacegan, pggan, stylegan
from facejax.recipes import sampling
from facejax.recipes.controlled import (
    Autoencoding,
    Disco,
    Loss,
    Model,
    Perception,
    Players,
    rendered,
    true_coefficients,
)
from facejax.recipes.gan import DISCRIMINATOR, GENERATOR, Adam, Gan, Growth, Play, Progressive
from facejax.train import Experiment, Options, Report, app, map_batches
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(ModelAlignedImages(zoom=discofacegan.ZOOM)),
    "model": asdict(Model()),
    "loss": asdict(Loss(gamma=0.5, expression_pair=1.0, light_pair=1.0)),
    "autoencoders": asdict(Autoencoding()),
    "perception": asdict(Perception()),
    "average": 0.99,  # of the generator: decay of a step; 1 or more: half-life in images
    "growth": asdict(Growth(first=16, stable=8000, fading=1200)),
    "optim": asdict(Adam(rate=2e-2)),
    "train": asdict(Options(batch_size=8, steps=2000)),
    "eval": asdict(GenerationProtocol(images=500)),
    "control": asdict(ControlProtocol()),
}
PRESETS = {
    "synthetic": {},
    "imitative": {"loss.contrastive_after": -1},
    "unconditional": {"loss.imitative": False, "loss.contrastive_after": -1},
    "perceptual": {"loss.pixels_until": 16},
    "ffhq_256": {
        "data": {"source": "folder", "image_size": 256, "workers": 8},
        "model": {
            "shape": 80,
            "texture": 80,
            "expression": 64,
            "identity": 128,
            "expression_latents": 32,
            "light": 16,
            "noise": 32,
            "widths": (512, 256, 128, 32),
            "vertices": 0,
            "bfm": ("01_MorphableModel.mat", "Model_Exp.mat"),
            "whitened": False,
            "style_size": 512,
            "mapping_layers": 8,
            "mapping_multiplier": 0.01,
            "base": 8192,
            "largest": 512,
        },
        "loss": {"gamma": 10.0, "contrastive_after": 15_000_000, "expression_pair": 10.0, "light_pair": 10.0},
        "autoencoders": {"epochs": 400, "rate": 1e-4, "gamma": 1.0},
        "perception.name": "rnet",
        "average": 10_000,
        "growth": {
            "first": 8,
            "stable": 600_000,
            "fading": 600_000,
            "batch_sizes": (256, 128, 64, 32, 16, 16),
            "rates": (1e-3, 1e-3, 1e-3, 1e-3, 1.5e-3, 2e-3),
        },
        "optim.rate": 1e-3,
        "train": {"batch_size": 16, "steps": 1_055_466, "devices": 4},
        "eval": {"images": 50_000, "batch_size": 64},
    },
}
CLAIM = (
    Claim(
        "discofacegan.imitation",
        "imitative and contrastive losses make generated faces take the pose that is asked for",
        metric="pose_error",
        better="lower",
        method="synthetic",
        baseline=("unconditional",),
    ),
    Claim(
        "discofacegan.disentanglement",
        "imitative and contrastive losses raise the disentanglement score",
        metric="ds",
        better="higher",
        method="synthetic",
        baseline=("unconditional",),
    ),
)
CONTRASTIVE = "contrastive"


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def system(config: ConfigDict) -> Disco:
    """Networks, losses and what is made before."""
    data = ModelAlignedImages(**config.data)
    parts = Model(**config.model), Loss(**config.loss), Autoencoding(**config.autoencoders)
    return Disco(*parts, Perception(**config.perception), data, config.seed)


def progressive(config: ConfigDict, contrastive: bool = False) -> Progressive:
    """Wires networks, losses and schedule of a stage of the training."""
    disco = system(config)

    def plays(resolution: int, alpha: jax.Array) -> list[Play]:
        players = Players(disco, resolution, alpha, contrastive)
        return [Play(DISCRIMINATOR, players.discriminate), Play(GENERATOR, players.generate)]

    def draw(average: Any, frozen: Any, latents: jax.Array, resolution: int, alpha: Any) -> jax.Array:
        inputs = disco.inputs(frozen, latents)
        return Players(disco, resolution, alpha, False).draw({GENERATOR: average}, frozen, inputs)

    return Progressive(
        Gan(disco.model.latents.size, disco.init, plays, draw),
        disco.data,
        Growth(**config.growth),
        Adam(**config.optim),
        Options(**config.train),
        GenerationProtocol(**config.eval),
        average=config.average,
        faded=pggan.faded,
        seed=config.seed,
    )


def build(config: ConfigDict) -> Experiment:
    """Wires the run; once pairs are compared, a step has another name, before whose first the optimizers begin anew."""
    made, disco = progressive(config), system(config)
    whole, last = made.experiment(), made.stages[-1]
    steps, batch, grow = dict(whole.train_step), dict(whole.batch), dict(whole.grow)
    after = config.loss.contrastive_after
    begin = config.train.steps if after < 0 else last.begin + max(0, after - last.images) // last.batch_size
    if begin < config.train.steps:
        steps[CONTRASTIVE] = progressive(config, contrastive=True).experiment().train_step[last.name]
        batch[CONTRASTIVE] = batch[last.name]
        grow.setdefault(begin + 1, made.restarted)

    def init(rng: jax.Array, start: Any = None) -> Any:
        state = made.init(rng)
        return state if start is None else state.replace(model_state=start)

    def evaluate(state: Any) -> Report:
        report, protocol = made.evaluate(state), ControlProtocol(**config.control)
        reader, quality = examiner(config, disco, state)
        real = reader.read(disco.data.real(protocol.images)[0][:], protocol.batch_size)
        found = protocol.assess(controlled(config, state), reader, real)
        tables = {"The reader's errors on real images that it did not see": [quality]} if quality else {}
        return Report(found.metrics) | report | found | Report({}, tables=tables)

    return dataclasses.replace(
        whole,
        evaluate=evaluate,
        init=init,
        prepare=disco.prepare,
        train_step=steps,
        batch=batch,
        grow=grow,
        choose=lambda number: CONTRASTIVE if number > begin else made.reached(number).name,
    )


def examiner(config: ConfigDict, disco: Disco, state: Any) -> tuple[Reader, dict[str, float]]:
    """A perception net that had no part in the training, and its quality; it learns from the held-out people.

    Where no true coefficients are known, the perception net of the training reads the images itself.
    """
    layout, data = disco.model.layout, disco.data
    if data.source != "face_world":

        def read(variables: Any, images: jax.Array) -> jax.Array:
            return disco.perception.read(layout, variables, normalize.symmetric(images), data.image_size)

        return Reader(read, state.model_state["perception"]), {}
    net = discofacegan.SmallNet(layout, tuple(disco.perception.widths), disco.perception.features)
    images, coefficients = data.pictures("test"), true_coefficients(data, "test", layout)
    variables = control.fit_reader(net, images, coefficients, disco.perception.fitting, seed=10**6)
    reader = Reader(lambda variables, images: net.apply(variables, normalize.symmetric(images)), variables)
    count = config.control.images
    seen = reader.read(data.pictures("train")[:count], config.control.batch_size)
    return reader, dict(control.quality(true_coefficients(data, "train", layout)[:count], seen, layout))


def controlled(config: ConfigDict, state: Any) -> Controlled:
    """The averaged generator of a state."""
    made, disco = progressive(config), system(config)
    layout, size = disco.model.layout, config.data.image_size
    stage = made.reached(int(state.step))
    alpha = float(stage.alpha(int(state.step) - 1))
    net = disco.model.networks(stage.resolution)[0]
    variables = {"params": state.ema[GENERATOR], "frozen": state.model_state}

    def run(variables: Any, method: str, x: jax.Array, **options: Any) -> jax.Array:
        return net.apply({"params": variables["params"]}, x, method=method, **options)

    def of_identity(variables: Any, inputs: jax.Array, noise: bool = False) -> jax.Array:
        kept = np.zeros(inputs.shape[1], bool)
        kept[layout.slices()["identity"]], kept[layout.size :] = True, noise
        return run(variables, "map", jnp.where(kept, inputs, 0))

    def decode(variables: Any, latents: jax.Array) -> jax.Array:
        return disco.inputs(variables["frozen"], latents)

    def identities(variables: Any, latents: jax.Array) -> jax.Array:
        inputs = disco.whitened(variables["frozen"], decode(variables, latents))
        return of_identity(variables, inputs, noise=True)

    latents = generation.latents(range(config.control.images), disco.model.latents.size)
    average = map_batches(identities, variables, latents, config.control.batch_size).mean(0)

    def draw(variables: Any, given: tuple[jax.Array, jax.Array]) -> jax.Array:
        inputs, psi = disco.whitened(variables["frozen"], given[0]), given[1]
        styles = stylegan.repeated(run(variables, "map", inputs), net.layers)
        styles = discofacegan.truncated(styles, of_identity(variables, inputs), average, psi[:, None, None])
        images = run(variables, "synthesize", styles, alpha=alpha)
        return generation.to_uint8(generation.enlarged(images, size))

    def render(variables: Any, inputs: jax.Array) -> jax.Array:
        face = variables["frozen"]["face"]
        return generation.to_uint8(rendered(face, inputs[:, : layout.size], layout, size).images)

    return Controlled(decode, draw, render, variables, disco.model.latents, layout)


def sample(config: ConfigDict, state: Any, seeds: Sequence[int], truncation: float = 1.0) -> np.ndarray:
    """Images of a run's averaged generator; `truncation` is psi."""
    net = controlled(config, state)
    inputs = net.inputs(generation.latents(seeds, net.latents.size), config.eval.batch_size)
    return net.images(inputs, config.eval.batch_size, truncation)


if __name__ == "__main__":
    sampling.main("discofacegan", get_config, build, sample, {"truncation": 1.0})
