"""VirFace: every unlabelled face is its own negative class, and generated embeddings of it are further samples.

    python -m experiments.virface                    # 24 labelled identities, 1,200 unlabelled ones with two images
    python -m experiments.virface --config=virclass  # without the generator
    python -m experiments.virface --config=arcface   # without unlabelled faces
    python -m experiments.virface --config=ms1m_pretrain --config.data.path=DIR --workdir=A
    python -m experiments.virface --config=ms1m_generator --config.data.path=DIR --config.start.workdir=A --workdir=B
    python -m experiments.virface --config=ms1m_virface --config.data.path=DIR --config.data.unlabelled=DIR2 \
        --config.start.workdir=B --workdir=C

The stages: "pretrain" trains ArcFace on the labelled faces. "generator" trains the generator towards their class
centres and freezes the rest. "virface" trains all parts on labelled and unlabelled faces; "virclass" does so without a
generator, from the first stage. "arcface", the baseline, goes on with labelled faces for as many steps. The miniature
trains the stages before its own in memory.

The ms1m presets are the runs of the authors' code on 4 GPUs, with its list of labelled identities (79,041 images of
4,287). The list of unlabelled ones is not published, so an epoch is one of the labelled list. The learning rates follow
the defaults and remarks of that code: 0.01 in the first stage, 0.1 later. No result on this list was published. Each
preset needs pairs to verify: --config.eval.packs=lfw.bin.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict

from facejax.data import normalize, readers, sources, streams
from facejax.data.identities import Identities, one_each
from facejax.data.synthetic import faces
from facejax.evaluate import verification
from facejax.evaluate.embedder import embed
from facejax.ops import vectors
from facejax.recipes.recogniser import OPTIM
from facejax.recognition import arcface, virface
from facejax.train import AXIS, Experiment, Mean, Options, Report, TrainState, app, optim, supervised_step, warm_start
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "stage": "virface",  # one of STAGES
    "start": {
        "workdir": "",  # of a finished run of the previous stage; empty trains the previous stages in memory
        "steps": 0,  # of each of those; 0 is as their presets have it
    },
    "data": {
        **asdict(Identities(image_size=32, classes=24)),
        "unlabelled": "",  # with source "path": images whose labels only keep a batch from holding an identity twice
        "unlabelled_batch": 128,  # unlabelled images a step
    },
    "model": {
        "name": "tiny",  # of BACKBONES
        "embedding_size": 16,  # numbers of an embedding
        "hidden": 256,  # width of the generator's layers
        "latent": 128,  # of its code
        "dtype": "float32",  # to compute in
    },
    "loss": {
        "scale": 16.0,  # of the cosines
        "angle": 0.5,  # margin, radians
        "dropout": 0.0,  # of labelled embeddings, in the stages with unlabelled ones
        "overlap": 0.0,  # above 0, a face with this probability of a labelled class is no class of its own (0.8)
        "draws": 5,  # generated embeddings for each unlabelled face
        "fit": 5e3 * 16 / 512,  # weight of the generator's error, a mean over embedding_size numbers
        "prior": 2.0,  # weight of its divergence
    },
    "optim": OPTIM,
    "train": asdict(Options(batch_size=64, steps=100)),
    "eval": {
        "batch_size": 128,
        "packs": "",  # .bin files of InsightFace, with commas between, evaluated in place of held-out people
    },
}
STAGES = {
    "pretrain": "",
    "generator": "pretrain",
    "arcface": "pretrain",
    "virclass": "pretrain",
    "virface": "generator",
}
"""Every stage, and the stage whose weights it begins with."""
TRAINED = {"generator": ("generator",), "virface": ("backbone", "head", "generator")}


def published(stage: str, batch: int, epochs: int, falls: tuple[int, ...], peak: float) -> dict[str, Any]:
    """A stage of the authors' code."""
    epoch = 79_041 // batch
    return {
        "stage": stage,
        "data": {"source": "path", "image_size": 112, "classes": 4287, "unlabelled_batch": 128},
        "model": {"name": "faceresnet50", "embedding_size": 512, "dtype": "bfloat16"},
        "loss": {"scale": 32.0, "dropout": 0.5, "fit": 5e3},
        "optim": {
            "weight_decay": 1e-3,
            "clip": 0.0,
            "clip_only": "",
            "schedule": {"kind": "step", "peak": peak, "boundaries": tuple(epoch * fall for fall in falls)},
        },
        "train": {"batch_size": batch, "steps": epoch * epochs, "devices": 4, "eval_every": epoch},
    }


PRESETS = {
    "synthetic": {},
    "virclass": {"stage": "virclass"},
    "arcface": {"stage": "arcface"},
    "pretrain": {"stage": "pretrain", "train.steps": 120},
    "generator": {"stage": "generator", "optim": {"clip": 0.0, "clip_only": ""}},
    "ms1m_pretrain": published("pretrain", 256, 20, (8, 12, 15, 18), 0.01),
    "ms1m_generator": published("generator", 128, 10, (3, 5, 7, 9), 0.1),
    "ms1m_virclass": published("virclass", 128, 10, (4, 6, 8), 0.1),
    "ms1m_virface": published("virface", 128, 10, (4, 6, 8), 0.1),
}

CLAIM = (
    Claim(
        "virface.virclass",
        "training with every unlabelled face as its own negative class raises TAR on held-out identities",
        metric="tar_at_far_1e-2",
        better="higher",
        method="virclass",
        baseline=("arcface",),
        seeds=6,
    ),
    Claim(
        "virface.virinstance",
        "embeddings generated for the unlabelled faces raise TAR further",
        metric="tar_at_far_1e-2",
        better="higher",
        method="synthetic",
        baseline=("arcface", "virclass"),
        seeds=6,
    ),
)

BACKBONES = {
    "tiny": functools.partial(virface.FaceResNet, (1, 1, 1, 1), False, (16, 32, 64, 128)),
    "faceresnet18": virface.faceresnet18,
    "faceresnet34": virface.faceresnet34,
    "faceresnet50": virface.faceresnet50,
    "faceresnet101": virface.faceresnet101,
    "faceresnet152": virface.faceresnet152,
}
SHALLOW = faces.Task("shallow", 48, train=1200, test=1, per_person=2, aligned=True, seed=3)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires one stage."""
    if config.stage not in STAGES:
        raise ValueError(f"stage is {config.stage!r}: expected one of {', '.join(STAGES)}")
    given, people = config, app.section(Identities, config.data)
    config = app.with_classes(config, lambda: people.count(given.seed, packs=given.eval.packs))
    loss, size, batch, classes = config.loss, config.data.image_size, config.train.batch_size, config.data.classes
    data, net = app.section(Identities, config.data), make_backbone(config.model)
    generator = virface.Generator(config.model.hidden, config.model.latent)
    trained = TRAINED.get(config.stage, ("backbone", "head"))
    tx = optax.multi_transform(
        {"trained": optim.from_config(config.optim, config.train.steps), "frozen": optax.set_to_zero()},
        {part: "trained" if part in trained else "frozen" for part in ("backbone", "head", "generator")},
    )
    options = {"scale": loss.scale, "margins": arcface.Margins(angle=loss.angle)}
    both = config.stage in ("virclass", "virface")

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        embedding = jnp.zeros((1, config.model.embedding_size))
        params = {
            "backbone": variables["params"],
            "head": 0.01 * jax.random.normal(jax.random.fold_in(rng, 1), (classes, embedding.shape[1])),
            "generator": generator.init(jax.random.fold_in(rng, 2), embedding, rng)["params"],
        }
        begun = warm_start.taken(start, (params, variables["batch_stats"]))
        return TrainState.create(rng, begun[0], tx, model_state=begun[1])

    def loss_of_generator(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        variables = {"params": params["backbone"], "batch_stats": batch_stats}
        features = net.apply(variables, normalize.symmetric(batch["image"]), train=False)
        losses, metrics = fitting(params, features, batch["label"], rng)
        return losses.mean(), (batch_stats, {"loss": Mean.of(losses), **metrics})

    def loss_of_faces(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        dropped, fitted, drawn = jax.random.split(rng, 3)
        images = jnp.concatenate([batch["image"], batch["unlabelled"]]) if both else batch["image"]
        features, updated = net.apply(
            {"params": params["backbone"], "batch_stats": batch_stats},
            normalize.symmetric(images),
            train=True,
            mutable=["batch_stats"],
        )
        labels, centres = batch["label"], params["head"]
        labelled, mine = features[: len(labels)], features[len(labels) :]
        if not both:
            losses = arcface.margin_softmax_loss(labelled, centres, labels, easy=True, **options)
            return losses.mean(), (updated["batch_stats"], {"loss": Mean.of(losses)})
        others = lax.all_gather(mine, AXIS, tiled=True)  # of all devices: each is a class
        keep = jnp.ones(len(others), bool)
        if loss.overlap:
            keep = virface.unclaimed(others, centres, scale=loss.scale, limit=loss.overlap)
        seen = nn.Dropout(loss.dropout, deterministic=False).apply({}, labelled, rngs={"dropout": dropped})
        losses = virface.virclass_loss(seen, centres, labels, others, keep=keep, **options)
        metrics = {"loss_labelled": Mean.of(losses), "kept": Mean.of(keep)}
        total = losses.mean()
        if config.stage == "virface":
            fit, found = fitting(params, labelled, labels, fitted)
            unit = vectors.unit(lax.stop_gradient(mine))
            samples = generator.apply({"params": params["generator"]}, unit, drawn, draws=loss.draws).samples
            places = lax.axis_index(AXIS) * len(mine) + jnp.arange(len(mine))
            losses = virface.virinstance_loss(samples, centres, places, others, keep=keep, **options)
            total += losses.mean() / jnp.maximum(keep.mean(), 1e-6) + fit.mean()
            metrics |= {"loss_unlabelled": Mean.of(losses, keep[places]), **found}
        return total, (updated["batch_stats"], {"loss": Mean.of(total), **metrics})

    def fitting(params: Any, features: jax.Array, labels: jax.Array, rng: jax.Array) -> tuple[jax.Array, Any]:
        """Losses [N] of the generator on labelled embeddings, and whether it hits their own centres."""
        unit = vectors.unit(lax.stop_gradient(features))
        made = generator.apply({"params": params["generator"]}, unit, rng)
        error = virface.fit_error(made.samples[0], params["head"][labels])
        code = virface.divergence(made.mean, made.log_variance)
        nearest = jnp.argmax(vectors.unit(made.samples[0]) @ vectors.unit(params["head"]).T, 1)
        found = {"fit_error": Mean.of(error), "divergence": Mean.of(code), "own_centre": Mean.of(nearest == labels)}
        return loss.fit * error + loss.prior * code, found

    def train_data() -> Any:
        known = data.batches(data.first_people(config.seed, packs=config.eval.packs), batch, config.seed)
        if not both:
            return known
        source = unlabelled_people(config)
        groups, load = sources.Groups(sources.labels(source), source), one_each(source, size, "unlabelled")
        return streams.Zip(known, data.stream(groups, load, config.data.unlabelled_batch, config.seed))

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params["backbone"], "batch_stats": state.model_state}

        def embeddings(images: np.ndarray | sources.Images) -> np.ndarray:  # of the image alone, as in the reference
            return vectors.unit_rows(embed(net, variables, images, config.eval.batch_size))

        return verification.verify(data, config.eval.packs, config.seed, embeddings)

    fields = {
        "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    if both:
        fields["unlabelled"] = jax.ShapeDtypeStruct((config.data.unlabelled_batch, size, size, 3), jnp.uint8)
    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_of_generator if config.stage == "generator" else loss_of_faces, tx),
        train_data=train_data,
        batch=fields,
        prepare=(lambda: beginning(given)) if STAGES[config.stage] else None,
    )


def make_backbone(model: ConfigDict) -> virface.FaceResNet:
    """The backbone that the configuration names."""
    if model.name not in BACKBONES:
        raise ValueError(f"model.name is {model.name!r}: expected one of {', '.join(BACKBONES)}")
    return BACKBONES[model.name](embedding_size=model.embedding_size, dtype=jnp.dtype(model.dtype))


def beginning(config: ConfigDict) -> tuple[Any, Any]:
    """Parameters and batch statistics of the previous stage."""
    settings = get_config(STAGES[config.stage])
    if config.data.source == "path" and not config.start.workdir:
        raise ValueError(f"start.workdir is empty: expected the folder of a finished {settings.stage} run")
    for part in ("seed", "start", "data", "model", "loss"):
        settings[part] = config[part]
    settings.train.steps = config.start.steps or settings.train.steps
    same = ("data.image_size", "data.classes", "model.name", "model.embedding_size", "model.hidden", "model.latent")
    state = warm_start.previous_stage(settings, build, config.start.workdir, same)
    return state.params, state.model_state


def unlabelled_people(config: ConfigDict) -> Any:
    """Images whose identities training does not use."""
    data = config.data
    if data.source == "path":
        if not data.unlabelled:
            raise ValueError("data.unlabelled is empty: expected what holds the unlabelled images")
        return readers.read(data.unlabelled)
    return faces.load(SHALLOW, "train", data.data_dir or None)


if __name__ == "__main__":
    app.main(get_config, build)
