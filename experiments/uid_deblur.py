"""UID-GAN: deblurring learnt from sharp and blurred images that are no pairs, by disentangling blur from content.

    python -m experiments.uid_deblur                          # rendered heads, two cores
    python -m experiments.uid_deblur --config=no_code         # the same cycle without a blur code
    python -m experiments.uid_deblur --config=blurred         # the blurred images themselves
    python -m experiments.uid_deblur --config=text            # images of letters
    python -m experiments.uid_deblur --config=celeba --config.data.path=DIR --config.loss.weights=vgg19.pth    # one GPU

DIR holds trainA (sharp), trainB (blurred), testA and testB (pairs of equal names). In the paper, CelebA's images are
split into 100,000 sharp ones, 100,000 that are blurred by random motion, and 2,137 for testing; the kernels are not
published. `loss.weights` is VGG-19 in torchvision's layout; with `--config.loss.extractor=vgg16_face`, VGG-16 trained
on faces in the same layout.

The paper's PSNR and SSIM are of its own test images, so there is no number to expect here.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.backbones.vgg import vgg16, vgg19
from facejax.data import normalize
from facejax.data.unpaired import UnpairedImages, blur
from facejax.evaluate import deblurring
from facejax.evaluate.deblurring import Triple
from facejax.metrics.image import eight_bit
from facejax.recipes import restorer
from facejax.restoration import uid_deblur
from facejax.restoration.uid_deblur import UID, Discriminator
from facejax.restoration.uid_deblur import absolute_error as error
from facejax.train import Experiment, Mean, Options, Report, TrainState, app, map_batches, reduce_gradients
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(UnpairedImages()),
    "model": {
        "name": "uid",  # "blurred": no network, the input itself
        "width": 8,  # channels of the first layers
        "blocks": 1,  # residual blocks of every encoder and generator besides the shared ones
        "code_size": 8,  # numbers of a blur code; 0: content and blur are not disentangled
        "noise": 1.0,  # standard deviation of the noise on contents in training
        "patch_width": 8,  # channels of the first layer of the discriminators
        "patch_layers": 3,  # their layers of stride 2
        "scales": 1,  # image sizes at which they look
        "dtype": "float32",  # of the computation
    },
    "loss": {
        "cycle": 10.0,  # weight of the translations back
        "again": 10.0,  # weight of the reconstructions from an image's own content
        "divergence": 0.01,  # weight of the codes' divergence from the prior
        "perceptual": 1.0,  # weight of the difference in features between the blurred and the deblurred image
        "random": False,  # whether random codes make a second update, as in the reference but not in the paper's loss
        "regression": 10.0,  # weight, in it, of the error of random codes found in images made with them
        "extractor": "coarse",  # of these features, a key of EXTRACTORS
        "weights": "",  # file of the extractor's weights
    },
    "optim": {
        "momentum": 0.5,
        "weight_decay": 1e-4,
        "rate": 2e-3,  # constant in the first half of the run, then falling to 0
        "generator_every": 1,  # steps of the discriminators for each of encoders and generators
    },
    "train": asdict(Options(batch_size=8, steps=300)),
    "eval": {"batch_size": 60},  # images a call
}
PRESETS = {
    "synthetic": {},
    "no_code": {"model.code_size": 0},
    "blurred": {"model.name": "blurred"},
    "text": {"data": {"source": "text", "shortest": 3.0, "longest": 6.0}},
    "celeba": {
        "data": {"source": "path", "path": "celeba", "image_size": 128, "resize": 144, "workers": 8},
        "model": {"width": 64, "blocks": 3, "patch_width": 64, "patch_layers": 4, "scales": 3},
        "loss": {"perceptual": 0.1, "random": True, "extractor": "vgg19"},
        "optim": {"rate": 2e-4, "generator_every": 2},
        "train": {"batch_size": 2, "steps": 80 * 50_000},
    },
}
CLAIM = (
    Claim(
        "uid_deblur.deblurs",
        "images restored without pairs are nearer to the sharp ones than the blurred images",
        metric="psnr",
        better="higher",
        method="synthetic",
        baseline=("blurred",),
    ),
    Claim(
        "uid_deblur.code",
        "disentangling blur from content raises the PSNR above the same cycle without a blur code",
        metric="psnr",
        better="higher",
        method="synthetic",
        baseline=("no_code",),
    ),
)
EXTRACTORS = {
    "coarse": (None, uid_deblur.coarse_features),
    "vgg19": (vgg19(), uid_deblur.vgg_features),
    "vgg16_face": (vgg16(), uid_deblur.vgg_features),
}
"""Name -> the network with weights, if any, and the function of (network,) parameters and images."""
DISCRIMINATORS = ("sharp", "blurred", "sharp_random", "blurred_random")


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    data, model, loss, size = UnpairedImages(**config.data), config.model, config.loss, config.train.batch_size
    if model.name == "blurred":
        return Experiment(lambda _: assess_input(data))
    if model.name != "uid":
        raise ValueError(f"model.name is {model.name!r}: expected uid or blurred")
    if loss.extractor not in EXTRACTORS:
        raise ValueError(f"loss.extractor is {loss.extractor!r}: expected one of {', '.join(EXTRACTORS)}")
    if loss.random and size % 2:
        raise ValueError(f"train.batch_size is {size}: expected an even number, half of it for random codes")
    if config.train.microbatches != 1:
        raise ValueError(f"train.microbatches is {config.train.microbatches}: expected 1, both updates share one pass")
    dtype = jnp.dtype(model.dtype)
    net = UID(model.width, model.blocks, model.code_size, model.noise, dtype)
    discriminator = Discriminator(model.patch_width, model.patch_layers, model.scales, dtype)
    random = loss.random and model.code_size > 0
    names = DISCRIMINATORS if random else DISCRIMINATORS[:2]
    vgg, extract = EXTRACTORS[loss.extractor]
    extract = functools.partial(extract, vgg) if vgg else extract
    settings, half = config.optim, config.train.steps // 2
    tx = optax.chain(optax.add_decayed_weights(settings.weight_decay), optax.scale_by_adam(settings.momentum))
    rate = optax.join_schedules(
        [optax.constant_schedule(settings.rate), optax.linear_schedule(settings.rate, 0.0, half)], [half]
    )
    image = jnp.zeros((1, data.image_size, data.image_size, 3))

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        keys = jax.random.split(rng, 6)
        drawn = zip(names, keys[:4], strict=False)
        discriminators = {name: discriminator.init(key, image)["params"] for name, key in drawn}
        params = {**net.init(keys[4], image)["params"], "discriminators": discriminators}
        if start is None:
            start = vgg.init(keys[5], image, train=False)["params"] if vgg else {}
        opt_state = {name: tx.init(part) for name, part in params.items()}
        return TrainState(jnp.zeros((), jnp.int32), rng, params, opt_state, {"extractor": start})

    def step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array, *, generate: bool = True) -> Any:
        sharp, blurred = (normalize.symmetric(batch[name]) for name in ("sharp", "blurred"))
        if random:
            (sharp, other_sharp), (blurred, other_blurred) = (jnp.split(x, 2) for x in (sharp, blurred))
        keys = dict(zip(("noise", "code", "random"), jax.random.split(rng, 3), strict=True))
        params, opt_state = dict(state.params), dict(state.opt_state)
        discriminators = params.pop("discriminators")

        def made(method: str) -> Any:
            return jax.vjp(
                lambda players: net.apply({"params": players}, sharp, blurred, method=method, rngs=keys), params
            )

        def scores(discriminators: Any, name: str, images: jax.Array) -> list[jax.Array]:
            return discriminator.apply({"params": discriminators[name]}, images)

        def fooled(sharp: jax.Array, blurred: jax.Array, suffix: str = "") -> jax.Array:
            pairs = ((f"sharp{suffix}", sharp), (f"blurred{suffix}", blurred))
            return sum(uid_deblur.adversarial_loss(scores(discriminators, *pair)) for pair in pairs)

        def perceptual(images: jax.Array) -> jax.Array:
            return uid_deblur.perceptual_loss(extract, state.model_state["extractor"], images, blurred)

        def first_loss(t: uid_deblur.Translated) -> Any:
            losses = {
                "adversarial": fooled(t.deblurred, t.blurred),
                "cycle": error(t.sharp_cycle, sharp) + error(t.blurred_cycle, blurred),
                "again": error(t.sharp_again, sharp) + error(t.blurred_again, blurred),
                "divergence": uid_deblur.divergence(t.code),
                "perceptual": perceptual(t.deblurred),
            }
            return weighed(losses), losses

        def second_loss(r: uid_deblur.Random) -> Any:
            losses = {
                "adversarial": fooled(r.deblurred, r.blurred, "_random"),
                "regression": error(r.found, r.code),
                "perceptual": perceptual(r.deblurred),
            }
            return weighed(losses), losses

        def weighed(losses: dict[str, jax.Array]) -> jax.Array:
            return sum(loss.get(name, 1.0) * values for name, values in losses.items()).mean()

        def update(name: str, part: Any, grads: Any) -> Any:
            updates, opt_state[name] = tx.update(reduce_gradients(grads), opt_state[name], part)
            return jax.tree.map(lambda p, u: p - rate(state.step) * u, part, updates)

        t, back = made("translate")
        compared = {"sharp": (sharp, t.deblurred), "blurred": (blurred, t.blurred)}
        if random:
            r, back_random = made("translate_random")
            compared |= {"sharp_random": (other_sharp, r.deblurred), "blurred_random": (other_blurred, r.blurred)}

        def discriminator_loss(discriminators: Any) -> Any:
            losses = sum(
                uid_deblur.discriminator_loss(scores(discriminators, name, real), scores(discriminators, name, fake))
                for name, (real, fake) in compared.items()
            )
            return losses.mean(), losses

        grads, losses = jax.grad(discriminator_loss, has_aux=True)(discriminators)
        metrics = {"discriminators": Mean.of(losses)}
        discriminators = update("discriminators", discriminators, grads)
        if generate:
            grads, losses = jax.grad(first_loss, has_aux=True)(t)
            (grads,) = back(grads)
            new = {name: update(name, params[name], grads[name]) for name in params}
            metrics |= {name: Mean.of(values) for name, values in losses.items()}
            if random:
                grads, losses = jax.grad(second_loss, has_aux=True)(r)
                (grads,) = back_random(grads)
                new |= {name: update(name, new[name], grads[name]) for name in ("content", "generator")}
                metrics["regression"] = Mean.of(losses["regression"])
            params = new
        params["discriminators"] = discriminators
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    def evaluate(state: TrainState) -> Report:
        players = {name: part for name, part in state.params.items() if name != "discriminators"}
        pairs = data.pairs()

        def run(method: Any, *images: np.ndarray) -> np.ndarray:
            def apply(players: Any, batch: tuple[jax.Array, ...]) -> jax.Array:
                return net.apply({"params": players}, *map(normalize.symmetric, batch), method=method)

            return map_batches(apply, players, images, config.eval.batch_size)

        def images(method: Any, *inputs: np.ndarray) -> np.ndarray:
            return eight_bit(127.5 * run(method, *inputs) + 127.5)

        report = deblurring.assess_images(Triple(pairs.blurred, images(None, pairs.blurred), pairs.sharp))
        if not model.code_size or np.isnan(pairs.kernels).any():
            return report
        transfer = functools.partial(images, "transferred")
        report |= deblurring.assess_transfer(transfer, lambda image, kernel: blur(image, *kernel), *pairs)
        for name, method in (("code", blur_codes), ("content", mean_contents)):
            report.metrics[f"{name}_r2"] = deblurring.explained(run(method, pairs.blurred), pairs.kernels)
        return report

    steps = {"both": step, "discriminators": functools.partial(step, generate=False)}
    every = settings.generator_every
    batch = dict.fromkeys(("sharp", "blurred"), jax.ShapeDtypeStruct((size, *image.shape[1:]), jnp.uint8))
    return Experiment(
        evaluate=evaluate,
        init=init,
        prepare=functools.partial(restorer.vgg_weights, vgg, loss.weights, "loss.weights") if vgg else None,
        train_step=step if every == 1 else steps,
        choose=None if every == 1 else lambda number: "discriminators" if number % every else "both",
        train_data=lambda: data.batches(size, config.seed),
        batch=batch if every == 1 else dict.fromkeys(steps, batch),
    )


def blur_codes(net: UID, blurred: jax.Array) -> jax.Array:
    """The means of the blur codes [N, Z]."""
    return net.blur_code(blurred).mean


def mean_contents(net: UID, blurred: jax.Array) -> jax.Array:
    """The contents, averaged over the image [N, C]."""
    return net.content.of_blurred(blurred).mean((1, 2))


def assess_input(data: UnpairedImages) -> Report:
    """The blurred test images in place of restored ones."""
    pairs = data.pairs()
    return deblurring.assess_images(Triple(pairs.blurred, pairs.blurred, pairs.sharp))


if __name__ == "__main__":
    app.main(get_config, build)
