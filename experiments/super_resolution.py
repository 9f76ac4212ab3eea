"""Super-resolution: SRCNN, EDSR, SRResNet and RRDBNet, SRGAN and ESRGAN on top of them, and FSRNet for faces.

    python -m experiments.super_resolution                          # EDSR x4 on faces and photographs, two cores
    python -m experiments.super_resolution --config=srcnn           # SRCNN; bicubic, rrdb and esrgan likewise
    python -m experiments.super_resolution --config=fsrnet          # faces x8 with landmarks and parsing maps as priors
    python -m experiments.super_resolution --config=fsrnet_blind    # the same network without them
    python -m experiments.super_resolution --config=div2k_edsr_x4 --config.start.workdir=X2      # 1 GPU
    python -m experiments.super_resolution --config=div2k_esrgan --config.start.workdir=RRDB --config.start.vgg=FILE
    python -m experiments.super_resolution --config=celeba_fsrnet   # 1 GPU

The presets div2k_* read `tfds:div2k/bicubic_x*`, prepared as ArrayRecord, or any folders of images
(`--config.data.train=DIR --config.data.test=Set5,Set14`); celeba_fsrnet reads `tfds:celeb_a`. X2 is the workdir of a
finished div2k_edsr_x2 run: at x3 and x4 EDSR begins with its weights. RRDB is that of div2k_rrdb (for div2k_srgan:
div2k_srresnet). FILE holds VGG-19 in torchvision's layout. `--config.eval.ensemble=True` is the "+" of EDSR's authors.

Published (PSNR in dB). DIV2K's validation images, RGB, 6 pixels more cut off than the scale (authors' code;
`--config.eval.luminance=False --config.eval.border=6`): EDSR baseline x2 34.61, x3 30.92, x4 28.95; EDSR x2 35.03, x3
31.26, x4 29.25. CelebA x8 (paper, as others quote it): bicubic 23.75, FSRNet 26.31.
The authors trained SRCNN on 91 images, SRResNet and SRGAN on ImageNet, FSRNet with more landmarks and parsing maps.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from facejax.backbones.vgg import VGG, vgg19
from facejax.data.restoration import PARSING, RestorationImages
from facejax.evaluate.restoration import Enlargement, bicubic
from facejax.recipes import restorer
from facejax.restoration import fsrnet, srgan
from facejax.restoration import super_resolution as sr
from facejax.train import Experiment, Options, Report, TrainState, app, optim, warm_start
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "stage": "pixels",  # or "adversarial", which begins with the generator of the former
    "start": {
        "workdir": "",  # of a finished run: of stage "pixels" to begin the second stage (empty: trained now), or of
        # another scale to begin the first
        "steps": 0,  # of the first stage where it is trained now; 0: as its preset says
        "vgg": "",  # file of VGG-19's weights, for the second stage with model.features=vgg19
    },
    "data": asdict(RestorationImages(memory=True)),
    "model": {
        "name": "edsr_small",  # a key of NETS, or "bicubic"
        "discriminator": "small",  # a key of DISCRIMINATORS
        "features": "random",  # a key of FEATURES
        "dtype": "float32",  # of the computation
    },
    "loss": {
        "kind": "l1",  # "l1" or "l2" of RGB; "luminance", l2 of Y; "fsrnet"
        "border": 0,  # pixels at each border that do not count
        "priors": 1.0,  # weight of FSRNet's priors
    },
    "adversary": asdict(restorer.Adversary(layer="2_2", ema_decay=0.0)),
    "optim": {
        "name": "adam", "momentum": 0.9, "b2": 0.999, "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 2e-3, "warmup": 0, "boundaries": (), "factor": 0.5},
        "last_rate": 1.0,  # learning rate of SRCNN's last layer and of its biases, relative to that of other kernels
    },
    "train": asdict(Options(batch_size=16, steps=400)),
    "eval": asdict(Enlargement()),
}  # fmt: skip
FACES = {"train": "faces", "test": "faces", "scale": 8, "patch": 64, "face_size": 64, "points": True}
SMALL = {"batch_size": 8, "steps": 250}


def div2k(name: str, scale: int, patch: int, **sections: Any) -> dict[str, Any]:
    """A preset at full size: EDSR's settings unless `sections` say otherwise."""
    data = {
        "train": f"tfds:div2k/bicubic_x{scale}",
        "test": f"tfds:div2k/bicubic_x{scale}",
        "repeats": 20,
        "workers": 4,
    }
    plan = {"kind": "step", "peak": 1e-4, "boundaries": (200_000,)}
    whole = {"optim": {"schedule": plan}, "train": {"steps": 300_000, "devices": 1, "eval_every": 0}}
    return {"data": {**data, "scale": scale, "patch": patch}, "model": {"name": name}, **whole, **sections}


def gan(name: str, discriminator: str, patch: int, adversary: restorer.Adversary, steps: int, falls: tuple[int, ...],
        factor: float, b2: float) -> dict[str, Any]:  # fmt: skip
    """A second stage at full size."""
    plan = {"kind": "step", "peak": 1e-4, "boundaries": falls, "factor": factor}
    return div2k(
        name, 4, patch, stage="adversarial", adversary=asdict(adversary), optim={"b2": b2, "schedule": plan},
        train={"steps": steps, "devices": 1, "eval_every": 0},
    ) | {"model": {"name": name, "discriminator": discriminator, "features": "vgg19"}}  # fmt: skip


PRESETS = {
    "synthetic": {},
    "bicubic": {"model.name": "bicubic"},
    "srcnn": {
        "data.patch": 32, "model.name": "srcnn", "loss": {"kind": "luminance", "border": 6}, "train.steps": 3000,
    },
    "rrdb": {"data.patch": 32, "model.name": "rrdb_small", "train.steps": 600},
    "esrgan": {
        "data.patch": 32, "model.name": "rrdb_small", "stage": "adversarial", "optim.schedule.peak": 5e-4,
        "train.steps": 300,
    },
    "fsrnet": {"data": FACES, "model.name": "fsrnet_small", "loss.kind": "fsrnet", "train": SMALL},
    "fsrnet_blind": {
        "data": FACES, "model.name": "fsrnet_small", "loss": {"kind": "fsrnet", "priors": 0.0}, "train": SMALL,
    },
    "div2k_edsr_baseline_x2": div2k("edsr_baseline", 2, 96),
    "div2k_edsr_baseline_x3": div2k("edsr_baseline", 3, 144),
    "div2k_edsr_baseline_x4": div2k("edsr_baseline", 4, 192),
    "div2k_edsr_x2": div2k("edsr", 2, 96),
    "div2k_edsr_x3": div2k("edsr", 3, 144),
    "div2k_edsr_x4": div2k("edsr", 4, 192),
    # 1e-4 of Caffe's loss, half the sum of the squares of 21 x 21 pixels; these depend on 33 x 33, the rest of a patch
    # lies where the enlargement is not that of the whole image
    "div2k_srcnn": div2k(
        "srcnn", 3, 45, loss={"kind": "luminance", "border": 12},
        optim={"name": "sgd", "last_rate": 0.1, "schedule": {"kind": "constant", "peak": 1e-4 * 21**2 / 2}},
        train={"batch_size": 128, "steps": 15_000_000, "devices": 1, "eval_every": 0},
    ),
    "div2k_srresnet": div2k(
        "srresnet", 4, 96, loss={"kind": "l2"}, optim={"schedule": {"kind": "constant", "peak": 1e-4}},
        train={"steps": 1_000_000, "devices": 1, "eval_every": 0},
    ),
    "div2k_srgan": gan(
        "srresnet", "srgan", 96,
        restorer.Adversary("plain", 1e-3, 0.0, feature_loss="l2", before_relu=False, ema_decay=0.0),
        200_000, (100_000,), 0.1, 0.999,
    ),
    "div2k_rrdb": div2k(
        "rrdb", 4, 128, train={"steps": 1_000_000, "devices": 1, "eval_every": 0},
        optim={"b2": 0.99, "schedule": {
            "kind": "step", "peak": 2e-4, "boundaries": (200_000, 400_000, 600_000, 800_000),
        }},
    ),
    "div2k_esrgan": gan(
        "rrdb", "esrgan", 128, restorer.Adversary(), 400_000, (50_000, 100_000, 200_000, 300_000), 0.5, 0.99
    ),
    "celeba_fsrnet": {
        "data": {
            **FACES, "train": "tfds:celeb_a", "test": "tfds:celeb_a", "patch": 128, "memory": False, "workers": 4,
        },
        "model.name": "fsrnet_celeba", "loss.kind": "fsrnet",
        "optim": {
            "name": "rmsprop", "momentum": 0.0, "b2": 0.99, "schedule": {"kind": "constant", "peak": 2.5e-4},
        },
        "train": {"batch_size": 14, "steps": 300_000, "devices": 1, "eval_every": 0},
        "eval.border": -8,  # whole images, as the authors' test script
    },
}  # fmt: skip
FIRST = {"rrdb_small": "rrdb", "rrdb": "div2k_rrdb", "srresnet": "div2k_srresnet"}
"""Preset of the first stage, by network."""
CLAIM = (
    Claim(
        "super_resolution.edsr",
        "EDSR enlarges images four times with a higher PSNR than SRCNN and bicubic interpolation",
        metric="psnr",
        better="higher",
        method="synthetic",
        baseline=("srcnn", "bicubic"),
    ),
    Claim(
        "super_resolution.srcnn",
        "SRCNN enlarges images four times with a higher PSNR than bicubic interpolation",
        metric="psnr",
        better="higher",
        method="srcnn",
        baseline=("bicubic",),
    ),
    Claim(
        "super_resolution.priors",
        "facial priors raise the PSNR of faces enlarged eight times by FSRNet",
        metric="psnr",
        better="higher",
        method="fsrnet",
        baseline=("fsrnet_blind",),
    ),
    Claim(
        "super_resolution.detail",
        "an adversarial second stage brings the detail of enlarged images closer to that of the truth",
        metric="detail_error",
        better="lower",
        method="esrgan",
        baseline=("rrdb",),
    ),
)

NETS = {
    "srcnn": sr.SRCNN,
    "edsr_small": functools.partial(sr.EDSR, features=32, blocks=4, residual_scale=1.0),
    "edsr_baseline": sr.edsr_baseline,
    "edsr": sr.EDSR,
    "srresnet": sr.SRResNet,
    "rrdb_small": functools.partial(sr.RRDBNet, features=16, blocks=2, growth=8),
    "rrdb": sr.RRDBNet,
    "fsrnet_small": functools.partial(
        fsrnet.FSRNet, parsing=len(PARSING), features=16, blocks=(1, 2, 1, 1), stacks=1, depth=2, residual=True
    ),
    "fsrnet": fsrnet.FSRNet,
    "fsrnet_celeba": functools.partial(fsrnet.FSRNet, landmarks=5, parsing=0),
}
DISCRIMINATORS = {
    "small": functools.partial(srgan.Discriminator, (16, 32, 64), hidden=32),
    "srgan": srgan.srgan_discriminator,
    "esrgan": srgan.esrgan_discriminator,
}
FEATURES = {"random": functools.partial(VGG, (2, 2), (16, 32)), "vgg19": vgg19}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires one stage."""
    data, protocol = app.section(RestorationImages, config.data), app.section(Enlargement, config.eval)
    options, tests = config.loss, functools.cache(data.tests)
    if config.model.name == "bicubic":
        return Experiment(lambda _: protocol.assess(bicubic(data.scale), tests(), data.scale))
    for field, table in (("name", NETS), ("discriminator", DISCRIMINATORS), ("features", FEATURES)):
        if config.model[field] not in table:
            raise ValueError(f"model.{field} is {config.model[field]!r}: expected one of {', '.join(table)}")
    if config.stage not in ("pixels", "adversarial"):
        raise ValueError(f"stage is {config.stage!r}: expected 'pixels' or 'adversarial'")
    net = NETS[config.model.name](scale=data.scale, dtype=jnp.dtype(config.model.dtype))
    fields, tx = restorer.batch_fields(data, net, config.train.batch_size), make_optimizer(config)

    def loss(found: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        truth = restorer.unit(batch["high"])
        if options.kind != "fsrnet":
            return {options.kind: sr.pixel_loss(found, truth, options.kind, options.border)}
        priors = fsrnet.prior_maps(batch["points"], batch["parsing"], truth.shape[1:3])
        return fsrnet.loss(found, truth, priors, prior_weight=options.priors)

    def evaluate(state: TrainState) -> Report:
        params = state.params if state.ema is None else state.ema
        stats = state.model_state
        if config.stage == "adversarial":
            params, stats = params["generator"], {"batch_stats": stats["generator"]}
        return protocol.network(net, {"params": params, **stats}, tests(), data.scale)

    if config.stage == "adversarial":
        discriminator = DISCRIMINATORS[config.model.discriminator](dtype=jnp.dtype(config.model.dtype))
        vgg, adversary = FEATURES[config.model.features](), app.section(restorer.Adversary, config.adversary)
        parts = restorer.adversarial(net, discriminator, vgg, adversary, tx, fields, lambda: beginning(config, vgg))
    else:
        prepare = (lambda: of_other_scale(config)) if config.start.workdir else None
        parts = restorer.by_pixels(net, loss, tx, fields, microbatches=config.train.microbatches, prepare=prepare)
    return Experiment(evaluate=evaluate, train_data=lambda: data.batches(config.train.batch_size, config.seed), **parts)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer, with another rate of SRCNN's last layer and of its biases."""
    settings = dict(config.optim)
    rate = settings.pop("last_rate")
    tx = optim.from_config(settings, config.train.steps)
    if rate == 1:
        return tx

    def slow(path: Any, _: Any) -> bool:
        return path[0].key == "conv3" or path[-1].key == "bias"

    return optax.chain(
        tx, optax.masked(optax.scale(rate), lambda params: jax.tree_util.tree_map_with_path(slow, params))
    )


def beginning(config: ConfigDict, vgg: VGG) -> dict[str, Any]:
    """The generator of the first stage, trained now or read, and the weights of the features."""
    settings = config.copy_and_resolve_references()
    settings.stage, settings.start = "pixels", BASE["start"]
    first = get_config(FIRST.get(config.model.name, "synthetic"))
    settings.loss, settings.optim = first.loss, first.optim
    settings.train.steps = config.start.steps or first.train.steps
    state = warm_start.previous_stage(settings, build, config.start.workdir, ("data.scale", "model.name"))
    found = {"generator": state.params, "generator_stats": state.model_state.get("batch_stats", {})}
    if config.model.features == "random":
        return found
    return {**found, "vgg": restorer.vgg_weights(vgg, config.start.vgg, "start.vgg")}


def of_other_scale(config: ConfigDict) -> Any:
    """Parameters of a finished run of the same network at another scale."""
    return warm_start.restore(config.start.workdir, build, {"stage": "pixels", "model.name": config.model.name}).params


if __name__ == "__main__":
    app.main(get_config, build)
