"""3DDFA: pose, shape and expression of a face model from a crop, at yaw angles up to profile.

    python -m experiments.tddfa                                   # rendered faces, two cores: WPDC
    python -m experiments.tddfa --config=pdc                      # other costs: pdc, vdc, owpdc; wpdc_vdc in turn
    python -m experiments.tddfa --config=cascade                  # two stages, the second sees the first one's PNCC
    python -m experiments.tddfa --config=landmark_fit             # 2D landmarks, to which the model is fitted
    python -m experiments.tddfa --config.eval.path=AFLW2000       # AFLW2000-3D, too
    python -m experiments.tddfa --config=crops_wpdc --config.data.path=DIR --config.eval.path=AFLW2000    # 2 GPUs

DIR holds what cleardusk/3DDFA publishes: train_aug_120x120.zip's folder, train.configs' lists, vectors, whitening and
bases, and visualize/tri.mat. AFLW2000 holds the 2,000 official crops and their labels, see
`facejax.data.readers.aflw2000_crops`.

Published, NME in % of 68 points on AFLW2000-3D, mean +- deviation of the three bins of yaw: cleardusk/3DDFA, PDC
5.644 +- 1.323, VDC 5.030 +- 1.044, WPDC 4.759 +- 0.996, WPDC then VDC 4.252 +- 0.976; the papers, 5.42 +- 2.21 (CVPR)
and 3.79 (TPAMI).
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from facejax.data.reconstruction import LAYOUT, ReconstructionFaces
from facejax.evaluate import reconstruction as evaluation
from facejax.morphable import crops, fit
from facejax.morphable.parameters import LinearFace, Whitening
from facejax.recipes.regressor import Evaluation, no_whitening, regressor, without_face
from facejax.reconstruction import tddfa
from facejax.train import Experiment, Options, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(ReconstructionFaces()),
    "model": {
        "name": "tiny",  # a key of NETS
        "stages": 0,  # of the cascade with PNCC; 0: one pass without
        "coarse": 2,  # pixels of the crop per pixel of the rendered PNCC
        "dtype": "float32",  # of the computation
    },
    "loss": {
        "cost": "wpdc",  # a key of `tddfa.COSTS`, or "landmarks"
        "last": "",  # another cost for the end of the training
        "switch": 1.0,  # part of the training after which it takes over
        "points": 132,  # random vertices beside the 68 landmarks; 0: all vertices
        "scale": 0.0,  # f in WPDC's weights of coefficients; 0: that of each face
        "noise": 1.0,  # pixels, of regressed landmarks to which the model is fitted
    },
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "nesterov": False,
        "rates": ((0.05, 1e-3), (0.6, 2e-3), (0.85, 6e-4), (1.0, 1e-4)),  # (until which part of the training, rate)
    },
    "train": asdict(Options(batch_size=64, steps=600)),
    "eval": asdict(Evaluation()),
}
EPOCH = 636_252  # crops


def published(cost: str, batch: int, peak: float) -> dict[str, Any]:
    """A run of cleardusk/3DDFA: 50 epochs, a fifth of the rate in epochs 1 to 5 and 31 to 40, a 25th at the end."""
    rates = ((0.1, peak / 5), (0.6, peak), (0.8, peak / 5), (1.0, peak / 25))
    steps = EPOCH // batch
    return {
        "data": {"kind": "crops", "path": "3ddfa", "image_size": 120, "workers": 8},
        "model": {"name": "mobilenet_1"},
        "loss": {"cost": cost, "scale": tddfa.MEAN_SCALE},
        "optim": {"name": "sgd", "weight_decay": 5e-4, "nesterov": True, "rates": rates},
        "train": {"batch_size": batch, "steps": 50 * steps, "devices": 2, "eval_every": 0},
        "eval": {"batch_size": 128, "protocol": "aflw2000", "path": "aflw2000"},
    }


def then_vdc(first: dict[str, Any], peak: float = 1e-5) -> dict[str, Any]:
    """The published fine-tuning: 50 more epochs with VDC, without the smaller rate at the beginning."""
    rates = [(until / 2, rate) for until, rate in first["optim"]["rates"]]
    rates += [(0.8, peak), (0.9, peak / 5), (1.0, peak / 25)]
    return {
        **first,
        "loss": {**first["loss"], "last": "vdc", "switch": 0.5},
        "optim": {**first["optim"], "rates": tuple(rates)},
        "train": {**first["train"], "steps": 2 * first["train"]["steps"]},
    }


PRESETS = {
    "synthetic": {},
    "pdc": {"loss.cost": "pdc"},
    "vdc": {"loss.cost": "vdc"},
    "owpdc": {"loss.cost": "owpdc"},
    "wpdc_vdc": {"loss.last": "vdc", "loss.switch": 0.7},
    "cascade": {"model.stages": 2},
    "landmark_fit": {"loss.cost": "landmarks"},
    "crops_wpdc": published("wpdc", 512, 0.02),
    "crops_pdc": published("pdc", 256, 0.01),
    "crops_wpdc_vdc": then_vdc(published("wpdc", 512, 0.02)),
    "crops_cascade": {**published("wpdc", 512, 0.02), "model": {"name": "mobilenet_1", "stages": 3, "coarse": 1}},
}
CLAIM = (
    Claim(
        "tddfa.wpdc",
        "the weighted parameter distance cost aligns faces better than the plain parameter and the vertex distance",
        metric="nme",
        better="lower",
        method="synthetic",
        baseline=("pdc", "vdc"),
    ),
    Claim(
        "tddfa.large_yaw",
        "parameters regressed from the crop align faces of large yaw better than a model fitted to regressed landmarks",
        metric="dense_60_90",
        better="lower",
        method="synthetic",
        baseline=("landmark_fit",),
    ),
)

NETS = {
    "tiny": tddfa.FourConvolutions,
    "mobilenet_2": partial(tddfa.mobilenet, 2.0),
    "mobilenet_1": tddfa.mobilenet,
    "mobilenet_075": partial(tddfa.mobilenet, 0.75),
    "mobilenet_05": partial(tddfa.mobilenet, 0.5),
    "mobilenet_025": partial(tddfa.mobilenet, 0.25),
}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    data, loss, size = ReconstructionFaces(**config.data), config.loss, config.data.image_size
    by_landmarks = loss.cost == "landmarks"
    if by_landmarks and (config.model.stages or loss.last or data.kind != "face_world"):
        raise ValueError("loss.cost is landmarks: expected model.stages 0, loss.last empty, data.kind face_world")
    fresh, apply = network(config.model, data, 2 * 68 if by_landmarks else LAYOUT.size)
    landmarks = jax.ShapeDtypeStruct((config.train.batch_size, 68, 2), jnp.float32)

    def decode(outputs: jax.Array, face: LinearFace, whitening: Whitening) -> jax.Array:
        return whitening.restore(outputs[-1] if config.model.stages else outputs)

    def decode_landmarks(outputs: jax.Array, face: LinearFace, whitening: Whitening) -> jax.Array:
        points = tddfa.pixels(outputs, size)
        upright = crops.from_image(jnp.pad(points, ((0, 0), (0, 0), (0, 1))), size)[..., :2]
        return fit.fit_landmarks(face, upright, noise=loss.noise)

    costs = [name for name in (loss.cost, loss.last) if name]
    losses = {name: landmark_loss(size) if by_landmarks else cost_loss(name, loss.points, loss.scale) for name in costs}
    return regressor(
        fresh,
        apply,
        losses,
        decode_landmarks if by_landmarks else decode,
        data,
        optimizer(config.optim, config.train.steps),
        Options(**config.train),
        Evaluation(**config.eval),
        seed=config.seed,
        choose=lambda step: costs[-1] if step > loss.switch * config.train.steps else costs[0],
        fields={"landmarks68": landmarks} if data.kind == "face_world" else None,
        others=lambda: fits(data),
    )


def network(model: ConfigDict, data: ReconstructionFaces, outputs: int) -> tuple[Any, Any]:
    """Initialiser and application of the network that the configuration names, as `regressor` calls them."""
    if model.name not in NETS:
        raise ValueError(f"model.name is {model.name!r}: expected one of {', '.join(NETS)}")
    make = partial(NETS[model.name], outputs=outputs, dtype=jnp.dtype(model.dtype))
    crop = jnp.zeros((2, data.image_size, data.image_size, 3))
    if not model.stages:
        net = make()
        return lambda key: net.init(key, crop, train=False), without_face(net)
    net = tddfa.Cascade(model.stages, make, model.coarse, data.convention)
    return lambda key: net.init(key, crop, data.resident_face(), no_whitening(), train=False), net.apply


def cost_loss(name: str, points: int, scale: float) -> Any:
    """A cost of `tddfa.COSTS` on `points` random vertices and the landmarks; of a cascade the mean over its stages.

    `scale` is the coefficients' f in WPDC's weights, 0 for that of each face.
    """
    if name not in tddfa.COSTS:
        raise ValueError(f"loss.cost or loss.last is {name!r}: expected one of {', '.join(tddfa.COSTS)} or landmarks")

    def loss(outputs: Any, target: Any, batch: Any, face: LinearFace, whitening: Whitening, key: jax.Array) -> Any:
        seen = tddfa.resampled(face, key, points) if points else face
        options = {"scale": scale} if name == "wpdc" and scale else {}
        cost = partial(tddfa.COSTS[name], target=target, face=seen, whitening=whitening, **options)
        return cost(outputs) if outputs.ndim == 2 else jax.vmap(cost)(outputs).mean(0)

    return loss


def landmark_loss(size: int) -> Any:
    """Squared error of 68 regressed landmarks, in half sides of the crop."""

    def loss(outputs: Any, target: Any, batch: Any, face: LinearFace, whitening: Whitening, key: jax.Array) -> Any:
        return jnp.mean((tddfa.pixels(outputs, size) - batch["landmarks68"]) ** 2, (1, 2)) / (size / 2) ** 2

    return loss


def fits(data: ReconstructionFaces) -> dict[str, evaluation.Surfaces]:
    """The classical fit to the true landmarks of the held-out faces: all of them, and those that the camera sees."""
    test, face = data.test(), data.face()
    fitted = partial(evaluation.fitted, face, test.landmarks68, data.image_size, noise=0.5)
    return {"fit to true landmarks": fitted(), "fit to true visible landmarks": fitted(weights=test.visible68)}


def optimizer(settings: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer with a rate that is constant in parts of the training."""
    options = dict(settings)
    parts = options.pop("rates")
    name, ends = options.pop("name"), [round(until * steps) for until, _ in parts]

    def rate(count: jax.Array) -> jax.Array:
        return jnp.array([value for _, value in parts])[jnp.minimum((count >= jnp.array(ends)).sum(), len(parts) - 1)]

    return optim.optimizer(name, rate, **options)


if __name__ == "__main__":
    app.main(get_config, build)
