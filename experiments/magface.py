"""MagFace: the direction of an embedding encodes identity, its length the quality of the image.

    python -m experiments.magface                                              # rendered faces with faults, two cores
    python -m experiments.magface --config=arcface                             # the same network, ArcFace's margin
    python -m experiments.magface --config=ms1mv2_r100 --config.data.path=DIR --config.eval.packs=DIR/lfw.bin  # 8 GPUs
    python -m experiments.magface --config=ms1mv2_r100 --eval_only --config.eval.packs=lfw.bin,agedb_30.bin
    python -m experiments.magface --config=ms1mv2_r100 --eval_only --workdir= --config.start.weights=magface.pth ...

Published numbers of MagFace R100 as later papers quote them: LFW 99.83, CFP-FP 98.46, AgeDB-30 98.17 (accuracy);
IJB-C TAR at FAR 1e-4: 95.81, and 95.97 with templates weighted by magnitude.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.data import normalize, sources
from facejax.data.identities import Identities, check_packs
from facejax.data.quality_faces import Faces, QualityFaces, unmeasured
from facejax.data.sources import Images
from facejax.data.synthetic import faces
from facejax.evaluate import magnitude
from facejax.evaluate.embedder import Backbone, embed, read_weights
from facejax.evaluate.quality import QualityProtocol
from facejax.ops import vectors
from facejax.recipes.recogniser import OPTIM, START
from facejax.recognition import magface
from facejax.train import Experiment, Mean, Options, Report, TrainState, app, optim, supervised_step, warm_start
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        **asdict(QualityFaces(image_size=32, people=200)),
        "task": "magnitude",  # of the face world, to train on; one of single images is evaluated on its own people
        "classes": 200,  # identities to train on
        "augment": "flip",  # or "dali"
        "held_out": 0.0,  # share of the identities at `path` that is held out for verification
    },
    "model": asdict(Backbone("tiny", 64)),
    "start": START,
    "loss": {
        "kind": "arcface",  # or "cosface"
        "scale": 16.0,  # of the cosines
        "easy": True,  # "arcface" without its margin where the cosine is not positive
        "lower": 4.0,  # least length; lengths begin near 8, the root of embedding_size
        "upper": 16.0,  # greatest length
        "least": 0.3,  # margin at the least length
        "most": 0.7,  # margin at the greatest length
        "lambda_g": 14.0,  # regulariser weight; 1.5 times its lower bound `magface.least_lambda_g`
    },
    "optim": OPTIM,
    "train": asdict(Options(batch_size=64, steps=600)),
    "eval": {
        **asdict(QualityProtocol()),
        "template": 4,  # images in a template
        "packs": "",  # .bin files of InsightFace, with commas between, evaluated in place of held-out people
    },
}


def published(model: str, **changes: Any) -> dict[str, Any]:
    """MS1MV2 (5,822,653 pictures), 25 epochs of 512, on 8 GPUs; `changes` are of the loss."""
    epoch = 5_822_653 // 512
    return {
        "data": {"source": "path", "image_size": 112, "classes": 85_742, "people": 85_742},
        "model": {"name": model, "embedding_size": 512, "dropout": 0.4, "dtype": "bfloat16"},
        "loss": {"scale": 64.0, **magface.MAG_ARCFACE._asdict(), **changes},
        "optim": {
            "clip": 0.0,
            "clip_only": "",
            "schedule": {"kind": "step", "boundaries": (10 * epoch, 18 * epoch, 22 * epoch)},
        },
        "train": {"batch_size": 512, "steps": 25 * epoch, "devices": 8, "eval_every": epoch},
    }


PRESETS = {
    "synthetic": {},
    "arcface": {"loss": {"least": 0.5, "most": 0.5, "lambda_g": 0.0}},
    "cosface": {"loss": {"kind": "cosface", "least": 0.2, "most": 0.5}},
    "ms1mv2_r50": published("iresnet50"),
    "ms1mv2_r100": published("iresnet100"),
    "ms1mv2_r100_cosface": published("iresnet100", kind="cosface", **magface.MAG_COSFACE._asdict()),
}

CLAIM = (
    Claim(
        "magface.correlation",
        "the norm of MagFace embeddings correlates with picture quality more than the norm of ArcFace embeddings",
        metric="fault_correlation",
        better="higher",
        method="synthetic",
        baseline=("arcface",),
        seeds=6,
    ),
    Claim(
        "magface.rejection",
        "rejecting pictures by the norm of MagFace embeddings removes more errors than by the norm of ArcFace "
        "embeddings",
        metric="aoc",
        better="higher",
        method="synthetic",
        baseline=("arcface",),
        seeds=6,
    ),
    Claim(
        "magface.verification",
        "MagFace embeddings verify held-out identities better than ArcFace embeddings",
        metric="tar_at_far_1e-2",
        better="higher",
        method="synthetic",
        baseline=("arcface",),
        seeds=6,
    ),
    Claim(
        "magface.templates",
        "templates weighted by the norm verify held-out identities better with MagFace than with ArcFace embeddings",
        metric="template_weighted",
        better="higher",
        method="synthetic",
        baseline=("arcface",),
        seeds=6,
    ),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    config = app.with_classes(
        config, lambda: app.section(Identities, config.data).count(config.seed, packs=config.eval.packs)
    )
    loss, size, batch = config.loss, config.data.image_size, config.train.batch_size
    net = magface.Magnified(Backbone(**config.model).make())
    magnitudes = magface.Magnitudes(loss.lower, loss.upper, loss.least, loss.most, loss.lambda_g)
    tx = optim.from_config(config.optim, config.train.steps)
    rendered, single = app.section(QualityFaces, config.data), app.section(Identities, config.data)

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        variables = warm_start.taken(start, net.init(rng, jnp.zeros((2, size, size, 3)), train=False))
        shape = (config.data.classes, config.model.embedding_size)
        centres = vectors.unit(jax.random.uniform(jax.random.fold_in(rng, 1), shape, minval=-1.0))
        params = {"backbone": variables["params"], "head": centres}
        return TrainState.create(rng, params, tx, model_state=variables["batch_stats"])

    def loss_fn(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        features, updated = net.apply(
            {"params": params["backbone"], "batch_stats": batch_stats},
            normalize.bgr_unit(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        losses = magface.magface_loss(
            features,
            params["head"],
            batch["label"],
            kind=loss.kind,
            magnitudes=magnitudes,
            scale=loss.scale,
            easy=loss.easy,
        )
        length = magface.magnitude(features)
        inside = (length > loss.lower) & (length < loss.upper)
        metrics = {"loss": Mean.of(losses), "length": Mean.of(length), "within_limits": Mean.of(inside)}
        return losses.mean(), (updated["batch_stats"], metrics)

    def train_data() -> Any:
        if not several_views(config.data):
            return single.batches(single.training(config.seed, packs=config.eval.packs), batch, config.seed)
        check_packs(config.eval.packs)
        known = rendered.load("train", config.data.task)
        rows = sources.Rows({"image": known.images, "label": known.people.astype(np.int32)})
        return rendered.batches(rows, batch, config.seed)

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params["backbone"], "batch_stats": state.model_state}

        def embeddings(images: np.ndarray | Images) -> np.ndarray:
            return embed(net, variables, images, config.eval.batch_size, preprocess=normalize.bgr_unit)

        if config.eval.packs:
            return magnitude.verify_packs(config.eval.packs, size, embeddings)
        test = held_out(config)
        protocol = app.section(QualityProtocol, config.eval)
        return magnitude.assess(embeddings(test.images), test, protocol, config.eval.template, config.seed)

    return Experiment(
        evaluate=evaluate,
        init=init,
        prepare=(lambda: read_weights(config.start.weights, net, size, "load_magface"))
        if config.start.weights
        else None,
        train_step=supervised_step(loss_fn, tx, microbatches=config.train.microbatches),
        train_data=train_data,
        batch={
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
    )


def several_views(data: ConfigDict) -> bool:
    """Whether an example holds several images of the face world, with known degradations."""
    return data.source != "path" and faces.TASKS[data.task].views > 1


def held_out(config: ConfigDict) -> Faces:
    """Images of held-out people; degradations are unknown (NaN) where they are not made on purpose."""
    if several_views(config.data):
        return app.section(QualityFaces, config.data).load("test")
    _, source = app.section(Identities, config.data).split(config.seed)
    if source is None:
        raise ValueError("no identity is held out for verification: set data.held_out or eval.packs")
    rows = np.arange(len(source))
    return unmeasured(Images(source, rows, config.data.image_size), sources.labels(source))


if __name__ == "__main__":
    app.main(get_config, build)
