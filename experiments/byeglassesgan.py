"""ByeGlassesGAN: glasses taken off faces, learnt from faces into which glasses are drawn.

    python -m experiments.byeglassesgan                           # rendered faces, two cores
    python -m experiments.byeglassesgan --config=no_sharing       # the face decoder does not see the segmentation
    python -m experiments.byeglassesgan --config=no_segmentation  # no segmentation decoder
    python -m experiments.byeglassesgan --config=no_identity      # no recogniser in the loss
    python -m experiments.byeglassesgan --config=add              # puts glasses on instead (not in the paper)
    python -m experiments.byeglassesgan --sample runs/byeglassesgan/synthetic --seeds 0-7 --columns 2 --out sheet.png
    python -m experiments.byeglassesgan --config=celeba --config.data.path=DIR --config.recogniser.weights=r34.pth

DIR holds CelebA's img_align_celeba, list_attr_celeba.txt, list_landmarks_align_celeba.txt and list_eval_partition.txt;
the recogniser's weights are arcface_torch's ResNet-34. The paper's glasses, loss weights, optimizer, rate and number of
steps are not known: those of the preset are our choice, and there is no number to expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.data import normalize
from facejax.data.glasses import CODE, GlassesImages, Pairs
from facejax.evaluate import glasses as protocol
from facejax.evaluate.glasses import Translated
from facejax.generation import byeglassesgan as paper
from facejax.generation.byeglassesgan import ByeGlasses, PatchDiscriminator
from facejax.metrics.image import eight_bit
from facejax.recipes import sampling
from facejax.recipes.gan import DISCRIMINATOR, GENERATOR, Adam, GanState, Play, play
from facejax.recipes.recogniser import Recogniser
from facejax.train import Experiment, Mean, Options, Report, app, map_batches
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(GlassesImages()),
    "model": {
        "width": 16,  # channels of the first layer
        "depth": 4,  # layers of stride 2
        "segments": True,  # whether there is a segmentation decoder
        "shares": True,  # whether its maps are shown to the face decoder
        "outer_norm": False,  # whether the layers next to images have a norm, as in the paper
        "patch_width": 16,  # channels of the first layer of the discriminators
        "patch_layers": 2,  # their layers of stride 2
        "dtype": "float32",  # of the computation
    },
    "loss": {
        "adversarial": 1.0,  # weight of the global discriminator
        "local_adversarial": 1.0,  # weight of the discriminator of the glasses' region
        "error": 100.0,  # weight of the absolute error of the image
        "local_error": 200.0,  # weight of that of the glasses' region
        "segmentation": 30.0,  # weight of the masks' cross-entropy
        "identity": 5.0,  # weight of the squared difference of the recogniser's features
        "by_area": True,  # whether the local error is divided by the region's area
    },
    "recogniser": asdict(Recogniser(image_size=48)),
    "crop": (0.0, 0.0, 1.0),  # top, left and side of what the recogniser sees, in parts of the image's side
    "optim": asdict(Adam(2e-3, 0.5, 0.999)),
    "train": asdict(Options(batch_size=8, steps=400)),
    "eval": {"batch_size": 60},  # images a call
}
PRESETS = {
    "synthetic": {},
    "no_sharing": {"model.shares": False},
    "no_segmentation": {"model": {"segments": False, "shares": False}},
    "no_identity": {"loss.identity": 0.0},
    "add": {"data.task": "add"},
    "celeba": {
        "data": {"source": "celeba", "path": "celeba", "image_size": 256, "workers": 8},
        "model": {"width": 64, "depth": 5, "outer_norm": True, "patch_width": 64, "patch_layers": 3},
        "loss": {"segmentation": 3.0},
        "optim": {"rate": 2e-4},
        "recogniser": {"name": "iresnet34", "embedding_size": 512, "dropout": 0.0, "image_size": 112},
        "crop": (0.2, 0.16, 0.68),
        "train": {"batch_size": 16, "steps": 200_000},
    },
}
CLAIM = Claim(
    "byeglassesgan.identity",
    "a recogniser in the loss raises the identity cosine, by another recogniser, of faces without their glasses",
    metric="identity",
    better="higher",
    method="synthetic",
    baseline=("no_identity",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    data, model, loss, batch_size = GlassesImages(**config.data), config.model, config.loss, config.train.batch_size
    dtype, adds, size = jnp.dtype(model.dtype), data.task == "add", data.image_size
    net = make_net(config)
    discriminator = PatchDiscriminator(model.patch_width, model.patch_layers, dtype)
    recogniser = Recogniser(**config.recogniser)
    extractor, photographs = recogniser.backbone(), data.source == "celeba"
    optimizer = Adam(**config.optim).make()
    options = {"image_size": recogniser.image_size, "data_dir": data.data_dir, "photographs": photographs}

    def init(rng: jax.Array, start: Any = None) -> GanState:
        image, keys = jnp.zeros((1, size, size, 3)), jax.random.split(rng, 4)
        players = {
            GENERATOR: net.init(keys[0], image, jnp.zeros((1, CODE)) if adds else None)["params"],
            DISCRIMINATOR: {
                name: discriminator.init(key, image)["params"]
                for name, key in zip(("global", "local"), keys[1:3], strict=True)
            },
        }
        if start is None:
            crop = jnp.zeros((2, recogniser.image_size, recogniser.image_size, 3))
            start = dict(extractor.init(keys[3], crop, train=False))
        return GanState(
            step=jnp.zeros((), jnp.int32),
            rng=rng,
            params=players,
            opt_state={name: optimizer.init(part) for name, part in players.items()},
            model_state={"recogniser": start},
            ema={GENERATOR: jax.tree.map(jnp.copy, players[GENERATOR])},
        )

    def features(variables: Any, images: jax.Array) -> jax.Array:
        return extractor.apply(variables, recogniser_input(images, config.crop, recogniser.image_size), train=False)

    def scores(params: Any, images: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        views = {"global": images, "local": paper.masked(images, mask)}
        return tuple(discriminator.apply({"params": params[name]}, view) for name, view in views.items())

    def discriminate(params: Any, state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        del rng
        target, glasses = normalize.symmetric(batch["target"]), batch["masks"][..., 0].astype(jnp.float32)
        made = jax.lax.stop_gradient(translated(config, params[GENERATOR], batch).image)
        real, fake = (scores(params[DISCRIMINATOR], images, glasses) for images in (target, made))
        whole, local = (paper.discriminator_loss(*scores) for scores in zip(real, fake, strict=True))
        local = local * paper.present(glasses)
        return (whole + local).mean(), (state, {"discriminator": Mean.of(whole + local)})

    def generate(params: Any, state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        del rng
        target, masks = normalize.symmetric(batch["target"]), batch["masks"].astype(jnp.float32)
        made, logits = translated(config, params[GENERATOR], batch)
        whole, local = scores(params[DISCRIMINATOR], made, masks[..., 0])
        losses = {
            "adversarial": paper.adversarial_loss(whole),
            "local_adversarial": paper.adversarial_loss(local) * paper.present(masks[..., 0]),
            "error": paper.absolute_error(made, target),
            "local_error": paper.local_error(made, target, masks[..., 0], loss.by_area),
        }
        if model.segments:
            losses["segmentation"] = paper.segmentation_loss(logits, masks)
        if loss.identity:
            found = features(state["recogniser"], jnp.concatenate([made, target]))
            losses["identity"] = paper.identity_loss(*jnp.split(found, 2))
        total = sum(loss[name] * values for name, values in losses.items())
        return total.mean(), (state, {"loss": Mean.of(total)} | {k: Mean.of(v) for k, v in losses.items()})

    def step(state: GanState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        plays = (Play(DISCRIMINATOR, discriminate), Play(GENERATOR, generate))
        optimizers = dict.fromkeys(state.params, optimizer)
        return play(state, batch, rng, plays, optimizers, decay=0.0, microbatches=config.train.microbatches)

    def evaluate(state: GanState) -> Report:
        evaluator = recogniser.evaluator(**options)

        def embed(images: np.ndarray) -> np.ndarray:
            top, left, side = (round(part * size) for part in config.crop)
            return evaluator(images[:, top : top + side, left : left + side], config.eval.batch_size)

        report = protocol.assess(translate(config, state, data.pairs()), embed)
        if model.segments:
            report |= protocol.assess(translate(config, state, data.pairs(), paste=True), embed, "pasted_")
        if adds or (others := data.rendered()) is None:
            return report
        return report | protocol.assess(translate(config, state, others), embed, "rendered_")

    fields = {"image": (size, size, 3), "target": (size, size, 3), "masks": (size, size, 2), "style": (CODE,)}
    types = {"style": jnp.float32}
    return Experiment(
        evaluate=evaluate,
        init=init,
        prepare=lambda: recogniser.embedder(0, **options).variables,
        train_step=step,
        train_data=lambda: data.batches(batch_size, config.seed),
        batch={k: jax.ShapeDtypeStruct((batch_size, *shape), types.get(k, jnp.uint8)) for k, shape in fields.items()},
    )


def make_net(config: ConfigDict) -> ByeGlasses:
    """The generator."""
    model = config.model
    dtype = jnp.dtype(model.dtype)
    return ByeGlasses(model.width, model.depth, model.segments, model.shares, model.outer_norm, dtype)


def translated(config: ConfigDict, params: Any, batch: dict[str, jax.Array]) -> paper.Output:
    """The generator's output for a batch of images uint8 and styles."""
    style = batch["style"] if config.data.task == "add" else None
    return make_net(config).apply({"params": params}, normalize.symmetric(batch["image"]), style)


def translate(config: ConfigDict, state: GanState, pairs: Pairs, paste: bool = False) -> Translated:
    """Pairs whose glasses were taken off, or put on; with `paste` the input stays outside of the found mask."""
    images, truth = (pairs.bare, pairs.worn) if config.data.task == "add" else (pairs.worn, pairs.bare)

    def apply(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        made = translated(config, params, batch)
        image = paper.pasted(made, normalize.symmetric(batch["image"])) if paste else made.image
        return {"image": image, "glasses": made.masks[..., :1] > 0}

    batch = {"image": images, "style": pairs.style}
    made = map_batches(apply, state.params[GENERATOR], batch, config.eval.batch_size)
    found = made["glasses"][..., 0] if config.model.segments else None
    return Translated(images, eight_bit(127.5 * made["image"] + 127.5), truth, pairs.glasses, found, pairs.person)


def sample(config: ConfigDict, state: GanState, seeds: Sequence[int]) -> np.ndarray:
    """Held-out faces of these numbers, [N, S, 3 S, 3]: input, output and truth side by side."""
    pairs = GlassesImages(**config.data).pairs()
    if max(seeds) >= len(pairs.bare):
        raise ValueError(
            f"--seeds has {max(seeds)}: expected numbers of the held-out faces, 0 to {len(pairs.bare) - 1}"
        )
    made = translate(config, state, Pairs(*(x[list(seeds)] for x in pairs)))
    return np.concatenate([made.images, made.made, made.truth], 2)


def recogniser_input(images: jax.Array, crop: tuple[float, float, float], side: int) -> jax.Array:
    """The crop of images [N, S, S, 3] for the recogniser, resized to `side` pixels."""
    top, left, extent = (round(part * images.shape[1]) for part in crop)
    part = images[:, top : top + extent, left : left + extent]
    return jax.image.resize(part, (len(images), side, side, 3), "linear")


if __name__ == "__main__":
    sampling.main("byeglassesgan", get_config, build, sample)
