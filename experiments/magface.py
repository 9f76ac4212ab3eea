"""MagFace: an embedding's direction says who it is, and its length how good the picture is.

    python -m experiments.magface                                              # rendered faces with faults, two cores
    python -m experiments.magface --config=arcface                             # the same network, ArcFace's margin
    python -m experiments.magface --config=ms1mv2_r100 --config.data.path=DIR --config.eval.packs=DIR/lfw.bin  # 8 GPUs
    python -m experiments.magface --config=ms1mv2_r100 --eval_only --config.eval.packs=lfw.bin,agedb_30.bin

Published numbers of MagFace R100 as later papers quote them: LFW 99.83, CFP-FP 98.46, AgeDB-30 98.17 (accuracy);
IJB-C TAR at FAR 1e-4: 95.81, and 95.97 with templates weighted by magnitude.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import arcface as common
from experiments import quality_common as judged
from facejax.data.readers.verification import read_pack
from facejax.data.synthetic import faces
from facejax.metrics import quality, template, verification
from facejax.ops import vectors
from facejax.recognition import magface
from facejax.train import Experiment, Mean, Report, TrainState, app, map_batches, new_figure, optim, supervised_step
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        **judged.DATA,
        "task": "magnitude",  # of the face world, to learn from; a task of single pictures is judged on its own people
        "image_size": 32,
        "people": 200,
        "classes": 200,
        "augment": "flip",
        "held_out": 0.0,  # of the people at `path`
    },
    "model": {"name": "tiny", "embedding_size": 64, "dropout": 0.0, "dtype": "float32"},
    "loss": {
        "kind": "arcface",  # or "cosface"
        "scale": 16.0,
        "easy": True,
        "lower": 4.0,  # lengths begin near 8, the root of the embedding's numbers
        "upper": 16.0,
        "least": 0.3,
        "most": 0.7,
        "pull": 14.0,  # half as much again as `magface.least_pull`
    },
    "optim": common.BASE["optim"],
    "train": {**judged.TRAIN, "steps": 600},
    "eval": {**judged.EVAL, "template": 4, "packs": ""},  # pictures in a template; .bin files, with commas between
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
    "arcface": {"loss": {"least": 0.5, "most": 0.5, "pull": 0.0}},
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
    loss, size, batch = config.loss, config.data.image_size, config.train.batch_size
    net = magface.Magnified(common.make_backbone(config.model))
    magnitudes = magface.Magnitudes(loss.lower, loss.upper, loss.least, loss.most, loss.pull)
    tx = optim.from_config(config.optim, config.train.steps)

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        shape = (config.data.classes, config.model.embedding_size)
        centres = vectors.unit(jax.random.uniform(jax.random.fold_in(rng, 1), shape, minval=-1.0))
        params = {"backbone": variables["params"], "head": centres}
        return TrainState.create(rng, params, tx, model_state=variables["batch_stats"])

    def loss_fn(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        features, updated = net.apply(
            {"params": params["backbone"], "batch_stats": batch_stats},
            preprocess(batch["image"]),
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
        if not of_known_faults(config.data):
            return judged.batches(config, common.people(config)[0], common.loader(config.data))
        seen = judged.people(config.data, "train", config.data.task)
        return judged.batches(config, judged.Rows({"image": seen.images, "label": seen.people.astype(np.int32)}))

    def embed(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {"features": net.apply(variables, preprocess(images), train=False)}

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params["backbone"], "batch_stats": state.model_state}

        def embeddings(images: np.ndarray | judged.Pictures) -> np.ndarray:
            return map_batches(embed, variables, images, config.eval.batch_size, np.asarray)["features"]

        if config.eval.packs:
            return judge_packs(config, embeddings)
        test = unseen(config)
        return judge_people(config, embeddings(test.images), test)

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_fn, tx, microbatches=config.train.microbatches),
        train_data=train_data,
        batch={
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
    )


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 RGB [N, H, W, 3] -> BGR, 0..1: not ArcFace's input."""
    return images[..., ::-1].astype(jnp.float32) / 255


def of_known_faults(data: ConfigDict) -> bool:
    """Whether pictures are the face world's with known faults, several to an example; else they are single ones."""
    return data.source != "path" and faces.TASKS[data.task].views > 1


def unseen(config: ConfigDict) -> judged.Faces:
    """Pictures of people whom training never saw; faults are unknown (NaN) where they are not made on purpose."""
    if of_known_faults(config.data):
        return judged.people(config.data, "test")
    _, source = common.people(config)
    if source is None:
        raise ValueError("nobody is held out for verification: set data.held_out, or eval.packs")
    rows = np.arange(len(source))
    labels = np.array([common.label(source[i]) for i in rows])
    return judged.unmeasured(judged.Pictures(source, rows, config.data.image_size), labels)


def judge_people(config: ConfigDict, features: np.ndarray, test: judged.Faces) -> Report:
    """Lengths [N] as a score of quality, and raw embeddings [N, D] as a means to tell people apart.

    "fault_correlation", "yaw_correlation", "aoc" and "edc_area" are of `quality_common.measures`, with the embeddings'
    own errors; of photographs, which may be few and without an error to begin with, "edc_area" only.
    "edc_area_random" is what chance gets. "recognisable", of rendered ones, is the rank correlation of lengths with the
    mean cosine to the person's other pictures. "template_" is the TAR of templates, each the mean of a few pictures:
    of embeddings made unit length ("plain") and of raw ones, which weighs by magnitude ("weighted"). "accuracy" is of
    the reference's own 1:1 evaluation.
    """
    lengths = np.linalg.norm(features.astype(np.float64), axis=1)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ValueError(f"{np.sum(~(lengths > 0))} of {len(lengths)} embeddings are zero or not finite, expected none")
    compared = judged.compare(features, test.people, *judged.chosen_pairs(test.people, config.eval.pairs))
    fars = (1e-1, 1e-2, 1e-3)
    rates = verification.all_pairs_tar(features, test.people, fars)
    rendered = bool(np.isfinite(test.fault).all())
    scores = {"length": lengths, "random": np.random.default_rng(0).random(len(lengths))}
    scores |= {"true fault": -test.fault} if rendered else {}
    curves = {name: judged.discard_curve(config, s, compared) for name, s in scores.items()}
    metrics = {"edc_area": quality.excess_area(curves["length"], config.eval.limit)}
    metrics = judged.measures(config, lengths, test, compared) if rendered else metrics
    metrics["edc_area_random"] = quality.excess_area(curves["random"], config.eval.limit)
    metrics |= {f"tar_at_far_{far:.0e}".replace("e-0", "e-"): float(r) for far, r in zip(fars, rates, strict=True)}
    metrics |= template_rates(features, test.people, config.eval.template, config.seed)
    metrics["accuracy"] = accuracy_1v1(features, compared, config.seed)
    metrics |= {"length_mean": float(lengths.mean()), "length_std": float(lengths.std())}
    figures = {}
    if rendered:
        metrics["recognisable"] = quality.spearman(lengths, own_cosine(compared, len(lengths)))
        figures["Lengths by fault"] = lengths_figure(lengths, test)
        figures["Length over strength of the fault"] = judged.fault_figure(lengths, test)
    figures["Error over discarded"] = judged.edc_figure(config, curves)
    return Report(
        metrics,
        figures=figures,
        images={"From the shortest to the longest": judged.ranked(lengths, test.images)},
        arrays={"embeddings": features, "labels": test.people},
    )


def own_cosine(compared: judged.Pairs, count: int) -> np.ndarray:
    """Mean cosine [N] of each of `count` pictures with the others of its person."""
    ends = np.concatenate([compared.first[compared.same], compared.second[compared.same]])
    cosine = np.tile(np.cos(np.pi * compared.distance[compared.same]), 2)
    return np.bincount(ends, cosine, count) / np.bincount(ends, minlength=count)


def template_rates(features: np.ndarray, people: np.ndarray, pictures: int, seed: int, far: float = 1e-3) -> dict:
    """TAR of all pairs of templates of `pictures` random pictures of a person each, by both poolings of the paper."""
    order = np.random.default_rng(seed).permutation(len(people))
    order = order[np.argsort(people[order], kind="stable")]
    place = np.arange(len(order)) - np.searchsorted(people[order], people[order])
    names = np.unique(np.stack([people[order], place // pictures]), axis=1, return_inverse=True)
    subjects, templates = names[0][0], names[1].ravel()
    rates = {}
    for name, pooling in (("plain", "magface"), ("weighted", "magface+")):
        pooled, _ = template.template_features(features[order], templates, np.arange(len(order)), pooling)
        rates[f"template_{name}"] = float(verification.all_pairs_tar(pooled, subjects, far)[0])
    return rates


def accuracy_1v1(features: np.ndarray, compared: judged.Pairs, seed: int, pairs: int = 3000) -> float:
    """Ten-fold accuracy as the reference has it, of as many genuine as impostor pairs drawn at random."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(compared.same), np.flatnonzero(~compared.same)]
    each = min(pairs, *map(len, groups))
    chosen = rng.permutation(np.concatenate([rng.choice(group, each, replace=False) for group in groups]))
    left, right = features[compared.first[chosen]], features[compared.second[chosen]]
    return verification.kfold_accuracy_centered(left, right, compared.same[chosen]).mean


def judge_packs(config: ConfigDict, embeddings: Any) -> Report:
    """The reference's evaluation of InsightFace's .bin packs: raw embeddings, no mirror image, centred."""
    metrics, arrays = {}, {}
    for path in config.eval.packs.split(","):
        pack, name = read_pack(path), pathlib.Path(path).stem
        images = np.stack([common.picture({"image": data}, config.data.image_size) for data in pack.images])
        features = embeddings(images)
        accuracy = verification.kfold_accuracy_centered(features[::2], features[1::2], pack.same)
        metrics[f"{name}_accuracy"] = accuracy.mean
        arrays[f"{name}_embeddings"] = features
    return Report(metrics, arrays=arrays)


def lengths_figure(lengths: np.ndarray, test: judged.Faces) -> Any:
    """Histograms of lengths: pictures without a fault, and those with a weak and a strong one of each kind."""
    figure, axes = new_figure(11, 2.6, 1, len(judged.FAULTS))
    span = (lengths.min(), lengths.max())
    for kind, axis in enumerate(axes):
        strong = test.fault > 0.5
        groups = {
            "none": test.kind == -1,
            "weak": (test.kind == kind) & ~strong,
            "strong": (test.kind == kind) & strong,
        }
        for name, rows in groups.items():
            axis.hist(lengths[rows], bins=25, range=span, density=True, histtype="step", lw=1.5, label=name)
        axis.set(title=judged.FAULTS[kind], xlabel="length", yticks=[])
    axes[0].legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    app.main(get_config, build)
