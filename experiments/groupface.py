"""GroupFace: latent groups of balanced size, each with its own branch, add to the embedding.

    python -m experiments.groupface                                            # rendered faces, two cores
    python -m experiments.groupface --config=hard                              # the most probable group's branch alone
    python -m experiments.groupface --config=argmax                            # group labels without balancing
    python -m experiments.groupface --config=ms1m_r100_k32 --config.data.path=DIR \
        --config.recogniser.weights=r100.pth --config.eval.packs=DIR/lfw.bin   # the paper's run, 8 GPUs
    python -m experiments.groupface --config=ms1m_r100_k32 --eval_only --config.eval.packs=lfw.bin,cfp_fp.bin

Published numbers of the soft model with 32 groups, as later papers quote them: LFW 99.85, CPLFW 93.17, CFP-FP 98.63,
AgeDB-30 98.28 (accuracy); MegaFace refined: identification 98.74, verification 98.79; IJB-C TAR at FAR 1e-4: 96.26.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from facejax.data import normalize
from facejax.data.identities import Identities
from facejax.data.sources import Images
from facejax.data.synthetic import faces
from facejax.evaluate import groups, verification
from facejax.evaluate.embedder import Backbone, embed_flipped
from facejax.metrics.verification import flip_embedding
from facejax.recipes import recogniser
from facejax.recipes.recogniser import Recogniser
from facejax.recognition import groupface
from facejax.recognition.heads import Head
from facejax.train import (
    AXIS,
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    map_batches,
    optim,
    supervised_step,
    warm_start,
)
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(Identities(task="groups", classes=400, image_size=32)),
    "model": {
        **asdict(Backbone("tiny", 64)),
        "shared": 256,  # width of the feature that all branches share
        "groups": 4,  # 0: ArcFace, the backbone's own embedding of `embedding_size`
        "hidden": (32, 32),  # widths of the group decision network
        "ensemble": "soft",  # groups weighted by probability; "hard": the most probable group alone; "none": no group
    },
    "recogniser": asdict(Recogniser(dropout=0.0)),  # whose trunk training begins with; 0 steps: random weights
    "loss": asdict(Head()),
    "groups": {
        "weight": 0.1,  # of the grouping loss
        "labels": "self_distributed",  # or "argmax": the most probable group
        "window": 128,  # batches over which the expected probabilities are averaged
    },
    "optim": {**recogniser.OPTIM, "schedule": {**recogniser.OPTIM["schedule"], "peak": 0.02}},
    "train": asdict(Options(batch_size=64, steps=200)),
    "eval": {
        "batch_size": 128,
        "packs": "",  # .bin files of InsightFace, with commas between, evaluated in place of held-out people
        "beta": 0.1,  # weight of the group distance in the group-aware similarity
        "gamma": 1 / 3,  # its exponent
    },
}
PRESETS = {
    "synthetic": {},
    "hard": {"model.ensemble": "hard"},
    "instance": {"model.ensemble": "none"},
    "argmax": {"groups.labels": "argmax"},
    "arcface": {"model.groups": 0},
    "ms1m_r100_k32": {
        "data": {"source": "path", "image_size": 112, "classes": 85_742},
        "model": {
            "name": "iresnet100",
            "embedding_size": 512,
            "dtype": "bfloat16",
            "shared": 4096,
            "groups": 32,
            "hidden": (256, 256),
        },
        "recogniser": {"name": "iresnet100", "embedding_size": 512, "dtype": "bfloat16", "steps": 0},
        "loss": {"scale": 64.0, "sharded": True},
        "optim": {
            "clip": 0.0,
            "clip_only": "",
            "schedule": {"kind": "step", "peak": 0.005, "boundaries": (50_000, 70_000)},
        },
        "train": {"batch_size": 512, "steps": 80_000, "devices": 8, "eval_every": 10_000},
    },
}

CLAIM = (
    Claim(
        "groupface.group_sizes",
        "self-distributed labels keep the groups more even in size than labels of the most probable group",
        metric="group_entropy",
        better="higher",
        method="synthetic",
        baseline=("argmax",),
    ),
    Claim(
        "groupface.verification",
        "embeddings with group branches verify held-out identities better than ArcFace embeddings of the same width",
        metric="tar_at_far_1e-2",
        better="higher",
        method="synthetic",
        baseline=("arcface",),
        seeds=6,
    ),
    Claim(
        "groupface.branches",
        "embeddings with group branches verify held-out identities better than the instance branch alone, on the same "
        "shared feature",
        metric="tar_at_far_1e-2",
        better="higher",
        method="synthetic",
        baseline=("instance",),
    ),
)

LABELS = ("self_distributed", "argmax")


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: ArcFace's data, a network with groups, two losses, and a window of the groups' probabilities."""
    config = app.with_classes(
        config, lambda: app.section(Identities, config.data).count(config.seed, packs=config.eval.packs)
    )
    data, head, groups_of = Identities(**config.data), Head(**config.loss), config.groups
    if groups_of.labels not in LABELS:
        raise ValueError(f"groups.labels is {groups_of.labels!r}: expected one of {', '.join(LABELS)}")
    count, batch_size = config.model.groups, config.eval.batch_size
    net, tx = make_net(config.model), optim.from_config(config.optim, config.train.steps)
    plain = recogniser.training(
        net,
        head,
        tx,
        image_size=data.image_size,
        embedding_size=config.model.embedding_size,
        num_classes=data.classes,
        batch_size=config.train.batch_size,
        devices=config.train.devices,
        microbatches=config.train.microbatches,
    )

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        state = plain["init"](rng)
        variables = {"params": state.params["backbone"], "batch_stats": state.model_state}
        if count:
            trunk = begun(start, {kind: part["backbone"] for kind, part in variables.items()})
            variables = {kind: {**part, "backbone": trunk[kind]} for kind, part in variables.items()}
        else:
            variables = begun(start, variables)
        held = variables["batch_stats"]
        if count:
            held = {"batch_stats": held, "window": jnp.zeros((groups_of.window, count))}
        return state.replace(params={**state.params, "backbone": variables["params"]}, model_state=held)

    def prepare() -> Any:
        ours, task = Recogniser(**config.recogniser), config.data.task
        if not (ours.steps or ours.weights):
            return None
        options = {"image_size": data.image_size, "data_dir": data.data_dir, "task": task}
        everybody = faces.TASKS[task].train
        return ours.embedder(config.seed, classes=everybody, photographs=data.source == "path", **options).variables

    def train_data() -> Any:
        train = data.training(config.seed, packs=config.eval.packs)
        return data.batches(train, config.train.batch_size, config.seed)

    def loss_fn(params: Any, held: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        found, updated = net.apply(
            {"params": params["backbone"], "batch_stats": held["batch_stats"]},
            normalize.symmetric(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        identity = head.loss(found.embedding, params["head"], batch["label"], num_classes=data.classes, rng=rng)
        probabilities = lax.stop_gradient(jax.nn.softmax(found.logits))
        window = groupface.observe(held["window"], lax.pmean(probabilities.mean(0), AXIS))
        expected = groupface.expectation(window)
        labels = jnp.argmax(probabilities, 1)
        if groups_of.labels == "self_distributed":
            labels = groupface.self_distributed_labels(probabilities, expected)
        grouping = optax.softmax_cross_entropy_with_integer_labels(found.logits, labels)
        metrics = {
            "loss": Mean.of(identity),
            "group_loss": Mean.of(grouping),
            "most_expected": Mean.of(expected.max()),
            "most_probable": Mean.of(probabilities.max(1)),
        }
        held = {"batch_stats": updated["batch_stats"], "window": window}
        return identity.mean() + groups_of.weight * grouping.mean(), (held, metrics)

    def look(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        views = [net.apply(variables, normalize.symmetric(x), train=False) for x in (images, images[:, :, ::-1])]
        return {
            "plain": views[0].embedding,
            "mirrored": views[1].embedding,
            "decision": (views[0].decision + views[1].decision) / 2,
            "probability": jax.nn.softmax(views[0].logits),
        }

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params["backbone"], "batch_stats": state.model_state}
        if not count:
            return verification.verify(
                data, config.eval.packs, config.seed, lambda x: embed_flipped(net, variables, x, batch_size)
            )
        variables["batch_stats"] = state.model_state["batch_stats"]

        def grouped(images: np.ndarray | Images) -> groups.Grouped:
            found = map_batches(look, variables, images, batch_size)
            embedding = flip_embedding(found["plain"], found["mirrored"])
            return groups.Grouped(embedding, found["decision"], found["probability"])

        similarity = {"beta": config.eval.beta, "gamma": config.eval.gamma}
        if config.eval.packs:
            return groups.verify_packs(config.eval.packs, data.image_size, grouped, **similarity)
        return groups.verify_held_out(data.split(config.seed)[1], data.image_size, grouped, **similarity)

    step = supervised_step(loss_fn, tx, sharded=plain["sharded"], microbatches=config.train.microbatches)
    parts = {**plain, "init": init, "prepare": prepare, **({"train_step": step} if count else {})}
    return Experiment(evaluate=evaluate, train_data=train_data, **parts)


def make_net(model: ConfigDict) -> Any:
    """The network that the configuration names; a plain backbone without groups."""
    width = model.shared if model.groups else model.embedding_size
    trunk = Backbone(model.name, width, model.dropout, model.dtype, model.remat)
    if not model.groups:
        return trunk.make()
    return groupface.GroupFace(trunk.make(), model.groups, model.embedding_size, tuple(model.hidden), model.ensemble)


def begun(start: Any, trunk: Any) -> Any:
    """A trunk's variables with a recogniser's in place of all but the last layers', which stay random."""
    if start is None:
        return trunk
    last = ("fc", "features")
    return {
        kind: {name: tree if name in last else warm_start.taken(start[kind][name], tree) for name, tree in part.items()}
        for kind, part in trunk.items()
    }


if __name__ == "__main__":
    app.main(get_config, build)
