"""GroupFace: latent groups that balance themselves, each with a branch of its own, enrich the embedding.

    python -m experiments.groupface                                            # rendered faces, two cores
    python -m experiments.groupface --config=hard                              # the most probable group's branch alone
    python -m experiments.groupface --config=argmax                            # groups' labels that are not evened out
    python -m experiments.groupface --config=ms1m_r100_k32 --config.data.path=DIR \
        --config.recogniser.weights=r100.pth --config.eval.packs=DIR/lfw.bin   # the paper's run, 8 GPUs
    python -m experiments.groupface --config=ms1m_r100_k32 --eval_only --config.eval.packs=lfw.bin,cfp_fp.bin

Published numbers of the soft model with 32 groups, as later papers quote them: LFW 99.85, CPLFW 93.17, CFP-FP 98.63,
AgeDB-30 98.28 (accuracy); MegaFace refined: identification 98.74, verification 98.79; IJB-C TAR at FAR 1e-4: 96.26.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict
from scipy.spatial.distance import cdist

from experiments import arcface as common
from experiments import quality_common as judged
from facejax.data import pipeline
from facejax.data.readers.verification import read_pack
from facejax.data.synthetic import faces
from facejax.metrics import verification
from facejax.metrics.clustering import normalized_mutual_information
from facejax.recognition import groupface
from facejax.train import (
    AXIS,
    Experiment,
    Mean,
    Report,
    TrainState,
    app,
    image_grid,
    map_batches,
    new_figure,
    optim,
    supervised_step,
)
from facejax.train.claims import Claim

BASE = {
    **common.BASE,
    "data": {**common.BASE["data"], "task": "groups", "classes": 400, "image_size": 32},
    "optim": {**common.BASE["optim"], "schedule": {**common.BASE["optim"]["schedule"], "peak": 0.02}},
    "train": {**common.BASE["train"], "steps": 200},
    "model": {
        **common.BASE["model"],
        "shared": 256,  # width of the feature that all branches begin with
        "groups": 4,  # 0: ArcFace, the backbone's own embedding of `embedding_size`
        "hidden": (32, 32),
        "ensemble": "soft",  # or "hard"
    },
    "recogniser": {**judged.RECOGNISER, "dropout": 0.0, "steps": 300},  # whose trunk is begun from; 0 steps: of none
    "groups": {
        "weight": 0.1,
        "labels": "self_distributed",  # or "argmax": the most probable group as it is
        "window": 128,  # batches whose mean is expected
    },
    "eval": {**common.BASE["eval"], "beta": 0.1, "gamma": 1 / 3},
}
PRESETS = {
    "synthetic": {},
    "hard": {"model.ensemble": "hard"},
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
)

LABELS = ("self_distributed", "argmax")


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: ArcFace's data, a network with groups, two losses, and a window of the groups' probabilities."""
    plain = common.build(config)

    def train_data() -> Any:
        if config.recogniser.steps:
            trained(config)
        return plain.train_data()

    if config.model.groups == 0:
        return dataclasses.replace(plain, init=functools.partial(arcface_begun, config, plain), train_data=train_data)
    if config.groups.labels not in LABELS:
        raise ValueError(f"groups.labels is {config.groups.labels!r}: expected one of {', '.join(LABELS)}")
    size, classes, groups = config.data.image_size, config.data.classes, config.model.groups
    net, tx = make_net(config.model), optim.from_config(config.optim, config.train.steps)
    head = jax.eval_shape(plain.init, jax.random.key(0)).params["head"]

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        trunk = begun(config, {kind: part["backbone"] for kind, part in variables.items()})
        variables = {kind: {**part, "backbone": trunk[kind]} for kind, part in variables.items()}
        centres = 0.01 * jax.random.normal(jax.random.fold_in(rng, 1), head.shape)
        held = {"batch_stats": variables["batch_stats"], "window": jnp.zeros((config.groups.window, groups))}
        return TrainState.create(rng, {"backbone": variables["params"], "head": centres}, tx, model_state=held)

    def loss_fn(params: Any, held: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        found, updated = net.apply(
            {"params": params["backbone"], "batch_stats": held["batch_stats"]},
            common.preprocess(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        identity = common.head_loss(config.loss, classes, found.embedding, params["head"], batch["label"], rng)
        probabilities = lax.stop_gradient(jax.nn.softmax(found.logits))
        window = groupface.observe(held["window"], lax.pmean(probabilities.mean(0), AXIS))
        expected = groupface.expectation(window)
        labels = jnp.argmax(probabilities, 1)
        if config.groups.labels == "self_distributed":
            labels = groupface.self_distributed_labels(probabilities, expected)
        grouping = optax.softmax_cross_entropy_with_integer_labels(found.logits, labels)
        metrics = {
            "loss": Mean.of(identity),
            "group_loss": Mean.of(grouping),
            "most_expected": Mean.of(expected.max()),
            "most_probable": Mean.of(probabilities.max(1)),
        }
        held = {"batch_stats": updated["batch_stats"], "window": window}
        return identity.mean() + config.groups.weight * grouping.mean(), (held, metrics)

    def embed(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        views = [net.apply(variables, common.preprocess(x), train=False) for x in (images, images[:, :, ::-1])]
        return {
            "plain": views[0].embedding,
            "mirrored": views[1].embedding,
            "decision": (views[0].decision + views[1].decision) / 2,
            "probability": jax.nn.softmax(views[0].logits),
        }

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params["backbone"], "batch_stats": state.model_state["batch_stats"]}

        def seen(images: np.ndarray) -> dict[str, np.ndarray]:
            found = map_batches(embed, variables, images, config.eval.batch_size)
            return {"embedding": verification.flip_embedding(found.pop("plain"), found.pop("mirrored")), **found}

        if config.eval.packs:
            return judge_packs(config, seen)
        report = common.verify_unseen(config, lambda images: seen(images)["embedding"])
        return judge_groups(config, report, seen)

    step = supervised_step(loss_fn, tx, sharded=plain.sharded, microbatches=config.train.microbatches)
    return dataclasses.replace(plain, init=init, train_step=step, train_data=train_data, evaluate=evaluate)


def make_net(model: ConfigDict) -> groupface.GroupFace:
    """The network that the configuration names."""
    trunk = common.make_backbone(ConfigDict({**model, "embedding_size": model.shared}))
    return groupface.GroupFace(trunk, model.groups, model.embedding_size, tuple(model.hidden), model.ensemble)


def trained(config: ConfigDict) -> judged.Recogniser:
    """The recogniser whose trunk is begun from, trained on all people of the face world's task."""
    task = config.data.task
    return judged.recogniser(config, config.seed, task, data__classes=faces.TASKS[task].train)


def begun(config: ConfigDict, trunk: Mapping[str, Any]) -> Mapping[str, Any]:
    """The variables of a trunk with a recogniser's in place of all but the last layers', which stay random."""
    if not (config.recogniser.steps or config.recogniser.weights):
        return trunk
    shapes = {kind: {k: v for k, v in part.items() if k not in ("fc", "features")} for kind, part in trunk.items()}

    def read() -> Any:
        found = trained(config).variables
        return {kind: {name: found[kind][name] for name in part} for kind, part in shapes.items()}

    found = judged.read_later(read, shapes)
    return {kind: {**trunk[kind], **found[kind]} for kind in trunk}


def arcface_begun(config: ConfigDict, plain: Experiment, rng: jax.Array) -> TrainState:
    """ArcFace's first state, its trunk the same recogniser's."""
    state = plain.init(rng)
    trunk = begun(config, {"params": state.params["backbone"], "batch_stats": state.model_state})
    params = {**state.params, "backbone": trunk["params"]}
    return state.replace(params=params, model_state=trunk["batch_stats"])


def judge_groups(config: ConfigDict, report: Report, seen: Any) -> Report:
    """Adds to the verification of unseen people what the groups are, and the similarity that looks at them.

    "group_entropy" is that of the sizes of groups by the most probable one, over the greatest possible: 1 for even
    groups, 0 for one; "nmi_" compares groups with what is known of a picture.
    """
    _, source = common.people(config)
    examples = pipeline.fetch(source, range(len(source)))
    images = np.stack([common.picture(e, config.data.image_size) for e in examples])
    found, labels = seen(images), report.arrays["labels"]
    group = found["probability"].argmax(1)
    shares = np.bincount(group, minlength=config.model.groups) / len(group)
    metrics = {"group_entropy": entropy(shares), "largest_group": float(shares.max())}
    known = attributes(examples, labels)
    metrics |= {f"nmi_{name}": normalized_mutual_information(truth, group) for name, truth in known.items()}
    fars = (1e-1, 1e-2, 1e-3)
    rates = verification.tar_at_far(*group_aware_pairs(config, found, labels), fars)
    metrics |= {f"tar_at_far_{f:.0e}_group_aware".replace("e-0", "e-"): float(r) for f, r in zip(fars, rates)}
    return dataclasses.replace(
        report,
        metrics={**report.metrics, **metrics},
        figures={**report.figures, "What the groups hold": groups_figure(group, known, config.model.groups)},
        images={**report.images, "Groups, the surest pictures": surest(images, found["probability"], labels)},
        arrays={**report.arrays, "probabilities": found["probability"], "decisions": found["decision"]},
    )


def entropy(shares: np.ndarray) -> float:
    """Entropy of shares [K] that sum to 1 over that of even ones; 1 where there is one group only."""
    some = shares[shares > 0]
    return float(np.sum(some * np.log(1 / some)) / np.log(len(shares))) if len(shares) > 1 else 1.0


def attributes(examples: Any, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What is known of pictures, as classes [N]: the person, and of the face world also what was rendered."""
    known = {"person": labels}
    if "glasses" in examples[0]:
        measured = {
            "age": [e["age"] for e in examples],
            "skin": [e["albedo"][0] for e in examples],
            "yaw": [e["pose"][1] for e in examples],
            "light": [e["light"][0] for e in examples],
        }
        known["glasses"] = np.array([int(e["glasses"] > 0) for e in examples])
        known |= {name: np.digitize(x, np.quantile(x, (1 / 3, 2 / 3))) for name, x in measured.items()}
    return known


def group_aware_pairs(
    config: ConfigDict, found: Mapping[str, np.ndarray], labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Group-aware similarities [P] of all pairs of pictures, and whether the person is the same."""
    upper = np.triu_indices(len(labels), 1)
    cosine = (found["embedding"] @ found["embedding"].T)[upper]
    distance = cdist(found["decision"], found["decision"])[upper]
    similarity = groupface.group_aware_similarity(cosine, distance, beta=config.eval.beta, gamma=config.eval.gamma)
    return similarity, (labels[:, None] == labels)[upper]


def judge_packs(config: ConfigDict, seen: Any) -> Report:
    """The 10-fold protocol on InsightFace's .bin packs, by cosine and by the group-aware similarity."""
    metrics, arrays = {}, {}
    for path in config.eval.packs.split(","):
        pack, name = read_pack(path), pathlib.Path(path).stem
        found = seen(np.stack([common.picture({"image": x}, config.data.image_size) for x in pack.images]))
        embeddings, decisions = found["embedding"], found["decision"]
        squared = verification.squared_distances(embeddings[::2], embeddings[1::2])
        apart = np.linalg.norm(decisions[::2] - decisions[1::2], axis=1)
        aware = groupface.group_aware_similarity(1 - squared / 2, apart, beta=config.eval.beta, gamma=config.eval.gamma)
        metrics[f"{name}_accuracy"] = verification.kfold_accuracy(squared, pack.same).mean
        metrics[f"{name}_accuracy_group_aware"] = verification.kfold_accuracy(2 - 2 * aware, pack.same).mean
        arrays[f"{name}_embeddings"] = embeddings
    return Report(metrics, arrays=arrays)


def groups_figure(group: np.ndarray, known: Mapping[str, np.ndarray], groups: int) -> Any:
    """Sizes of the groups, and for each attribute of few classes how a group's pictures are made up."""
    few = {name: truth for name, truth in known.items() if name != "person"}
    figure, axes = new_figure(2.4 * (1 + len(few)), 3.4, 1, 1 + len(few))
    first, *others = np.ravel(axes)
    places, sizes = np.arange(groups), np.bincount(group, minlength=groups)
    first.bar(places, sizes)
    numbers = {"xlabel": "group", "xticks": places[:: -(-groups // 8)]}
    first.set(title="pictures", **numbers)
    for axis, (name, truth) in zip(others, few.items(), strict=True):
        below = np.zeros(groups)
        names = ("without", "with") if name == "glasses" else ("lowest third", "middle third", "highest third")
        for value in np.unique(truth):
            share = np.bincount(group[truth == value], minlength=groups) / np.maximum(sizes, 1)
            axis.bar(places, share, bottom=below, label=names[value])
            below += share
        axis.set(title=name, **numbers, ylim=(0, 1))
        axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def surest(images: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, rows: int = 8, columns: int = 12) -> Any:
    """A row for each group, the first `rows` of them: of different people, the pictures most probably in it."""
    grid = np.full((min(rows, probabilities.shape[1]), columns, *images.shape[1:]), 255, np.uint8)
    for k in range(len(grid)):
        order = np.argsort(-probabilities[:, k], kind="stable")
        _, first = np.unique(labels[order], return_index=True)
        best = order[np.sort(first)][:columns]
        grid[k, : len(best)] = images[best]
    return image_grid(grid.reshape(-1, *images.shape[1:]), columns)


if __name__ == "__main__":
    app.main(get_config, build)
