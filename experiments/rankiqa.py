"""RankIQA: a network ranks pictures that were made worse step by step, then learns a score from a few labelled ones.

    python -m experiments.rankiqa                                            # rendered faces, two cores
    python -m experiments.rankiqa --config=from_scratch                      # the few labelled ones only
    python -m experiments.rankiqa --config=live --config.data.path=DIR       # VGG-16, 50,000 steps of ranking

Published SROCC of the fine-tuned network: LIVE 0.981, TID2013 0.780, CSIQ 0.947. These are fine-tuned to people's
opinions; here levels of our own distortions stand for them, in the preset too.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import arcface
from experiments import quality_common as common
from facejax.backbones import vgg
from facejax.data.distortions import DISTORTIONS
from facejax.metrics import quality
from facejax.quality import rankiqa, tinyfqnet
from facejax.train import Experiment, Report, app, image_grid, map_batches, new_figure
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": common.DATA,
    "recogniser": common.RECOGNISER,
    "levels": {
        "blur": (0.5, 0.8, 1.2, 1.8, 2.6),
        "noise": (0.0005, 0.002, 0.006, 0.016, 0.04),
        "jpeg": (60.0, 35.0, 20.0, 12.0, 6.0),
        "resolution": (1.3, 1.7, 2.3, 3.2, 4.5),
        "jpeg2000": (),
    },
    "labelled": 20,  # pictures with an opinion: how many
    "model": {"name": "tiny"},
    "loss": {"margin": 1.0, "ranking": 0.6},  # the part of the steps that ranks
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 3e-3, "warmup": 0, "boundaries": ()},
    },
    "train": {**common.TRAIN, "devices": 1},
    "eval": common.EVAL,
}
PRESETS = {
    "synthetic": {},
    "from_scratch": {"loss.ranking": 0.0},
    "live": {
        "data": {"source": "path", "image_size": 224, "people": 4000, "judged": 744},
        "recogniser": {**common.PUBLISHED, "image_size": 112},
        "levels": {
            "blur": (1.2, 2.5, 6.5, 15.2, 33.2),
            "noise": (0.001, 0.006, 0.022, 0.088, 1.0),
            "jpeg": (43.0, 12.0, 7.0, 4.0, 0.0),
            "resolution": (),
            "jpeg2000": (52.0, 150.0, 343.0, 600.0, 1200.0),
        },
        "labelled": 779,
        "model": {"name": "vgg16"},
        "loss": {"margin": 10.0, "ranking": 50_000},
        "optim": {
            "name": "sgd",
            "weight_decay": 5e-4,
            "schedule": {"kind": "step", "peak": 1e-5, "boundaries": (10_000, 20_000, 30_000, 40_000)},
        },
        "train": {"batch_size": 64, "steps": 70_000, "devices": 1},
    },
}
CLAIM = Claim(
    "a network that ranked distorted faces first tells their level better than one shown the few labelled ones only",
    metric="srocc",
    better="higher",
    method="synthetic",
    baseline=("from_scratch",),
)


class Raw(nn.Module):
    """A trunk that wants BGR of 0..255, without the mean taken off: [N, H, W, 3] in -1..1 -> [N]."""

    trunk: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        return self.trunk(images[..., ::-1] * 127.5 + 127.5, train=train)[:, 0]


NETS = {"tiny": tinyfqnet.TinyFQNet, "vgg16": lambda: Raw(vgg.vgg16(num_classes=1))}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run. The first part of a batch is whole ladders of distortion, the rest are labelled pictures."""
    if config.model.name not in NETS:
        raise ValueError(f"model.name is {config.model.name!r}: expected one of {', '.join(NETS)}")
    size, steps, share = config.train.batch_size, config.train.steps, config.loss.ranking
    ranking = round(share * steps) if share < 1 else int(share)
    kinds = [kind for kind in DISTORTIONS if len(config.levels[kind])]
    ladder = sum(len(config.levels[kind]) + 1 for kind in kinds)
    sources = size // ladder
    if not sources or size == sources * ladder:
        raise ValueError(f"train.batch_size is {size}: expected room for ladders of {ladder} and labelled pictures")
    net = NETS[config.model.name]()

    pool = functools.cache(lambda: labelled(config))

    def source() -> Any:
        return _clean(common.people(config.data, "train"))

    def load(examples: Any, rngs: Any) -> dict[str, np.ndarray]:
        rows = [row for i, (e, rng) in enumerate(zip(examples, rngs, strict=True)) for row in distorted(config, e, rng)]
        rows += [pool()[int(rngs[0].integers(config.labelled))] for _ in range(size - len(rows))]
        return common.flipped_batch(rows, [rngs[0]] * len(rows))

    def loss(scores: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        if len(scores) != size:
            raise ValueError(f"{len(scores)} of {size} pictures meet on a device: expected all, ladders are not cut")
        marked = batch["kind"] < 0
        group = jnp.where(marked, -1 - jnp.arange(len(marked)), batch["kind"])
        ranked = rankiqa.ranking_loss(scores, batch["level"], group, margin=config.loss.margin)
        error = 0.5 * jnp.mean((scores + batch["level"]) ** 2, where=marked)
        return jnp.where(batch["step"][0] < ranking, ranked, error)

    wired = common.regression(
        config,
        net,
        loss,
        source,
        {name: jax.ShapeDtypeStruct((size,), jnp.int32) for name in ("level", "kind")},
        load=load,
        batch_size=sources,
    )

    def evaluate(state: Any) -> Report:
        test = common.people(config.data, "test").people
        paired = len(np.unique(test)) < len(test)
        report = wired.evaluate(state) if paired else Report({})
        variables = {"params": state.params, **state.model_state}
        return with_ladders(config, report, net, variables)

    return dataclasses.replace(wired, evaluate=evaluate)


def distorted(config: ConfigDict, example: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """All levels of all kinds of distortion of one picture, the picture itself at level 0 of each."""
    rows = []
    for number, (kind, distort) in enumerate(DISTORTIONS.items()):
        if len(config.levels[kind]):
            images = [example["image"], *(distort(example["image"], s, rng) for s in config.levels[kind])]
            rows += [
                {"image": image, "level": np.int32(level), "kind": np.int32(number)}
                for level, image in enumerate(images)
            ]
    return rows


def labelled(config: ConfigDict) -> list[dict[str, Any]]:
    """The few pictures whose level is told: always the same for a seed. Their kind is -1."""
    known = _clean(common.people(config.data, "train"))
    rng = np.random.default_rng([config.seed, 1])
    rows = []
    for place in rng.choice(len(known), config.labelled):
        ladder = distorted(config, known[int(place)], rng)
        rows.append({**ladder[int(rng.integers(len(ladder)))], "kind": np.int32(-1)})
    return rows


def _clean(known: common.Faces) -> common.Rows:
    """Pictures without a fault; all of them, where faults are not known."""
    return common.Rows({"image": common.take(known.images, np.flatnonzero(~(known.fault > 0)))})


def with_ladders(config: ConfigDict, report: Report, net: Any, variables: Any) -> Report:
    """Adds how well levels of unseen people's distorted pictures are told: over all of them, and within a ladder."""
    clean = _clean(common.people(config.data, "test"))
    rng = np.random.default_rng(0)
    rows = [row for i in range(min(len(clean), 40)) for row in distorted(config, clean[i], rng)]
    images, level, kind = (np.stack([row[name] for row in rows]) for name in ("image", "level", "kind"))

    def one(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
        return {"score": net.apply(variables, arcface.preprocess(batch), train=False)}

    scores = map_batches(one, variables, images, config.eval.batch_size)["score"]
    ladders = np.flatnonzero(level == 0)
    right = [
        np.mean(np.diff(scores[start:end]) < 0) for start, end in zip(ladders, [*ladders[1:], len(level)], strict=True)
    ]
    metrics = {"srocc": quality.spearman(scores, -level), "neighbours_ranked": 100 * float(np.mean(right))}
    figure, axis = new_figure(5, 3.2)
    for number in np.unique(kind):
        mean = [scores[(kind == number) & (level == step)].mean() for step in np.unique(level)]
        axis.plot(np.unique(level), mean, "o-", label=list(DISTORTIONS)[number])
    axis.set(xlabel="level of distortion", ylabel="mean score")
    axis.legend(frameon=False, fontsize=8)
    first = kind == kind[0]
    return dataclasses.replace(
        report,
        metrics={**metrics, **report.metrics},
        figures={"Score over level": figure, **report.figures},
        images={
            "A ladder of each kind": image_grid(images[: int(ladders[len(np.unique(kind))])], int(first[:20].sum())),
            **report.images,
        },
    )


if __name__ == "__main__":
    app.main(get_config, build)
