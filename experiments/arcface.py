"""ArcFace: an additive angular margin makes embeddings of unseen people separable.

    python -m experiments.arcface                                  # rendered faces, unseen people, two cores
    python -m experiments.arcface --config=att_faces --config.data.path=DIR --seeds=4  # photographs, 4 folds of people
    python -m experiments.arcface --config=ms1mv3_r100 --config.data.path=DIR \
        --config.eval.packs=DIR/lfw.bin,DIR/cfp_fp.bin,DIR/agedb_30.bin      # the published run, 8 GPUs
    python -m experiments.arcface --config=ms1mv3_r100 --eval_only --config.eval.packs=lfw.bin,agedb_30.bin
    python -m experiments.arcface --config=ms1mv3_r50 --eval_only --workdir= --config.eval.weights=r50.pth ...

Published numbers (arcface_torch, IJB-C TAR at FAR 1e-4): ms1mv3_mbf 94.23, ms1mv3_r50 96.37, ms1mv3_r100 96.85,
ms1mv2_r100 96.37, glint360k_r100 97.55; paper, LFW: casia_r50 99.53.
"""

from __future__ import annotations

import pathlib
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.backbones import iresnet, mobilefacenet
from facejax.data import pipeline, readers, transforms
from facejax.data.readers.verification import read_pack
from facejax.data.synthetic import faces
from facejax.metrics import verification
from facejax.quality import qan_pp
from facejax.recognition import arcface
from facejax.train import (
    Experiment,
    Mean,
    Options,
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
    "seed": 0,
    "data": {
        "source": "face_world",  # or "path": whatever facejax.data.readers.read opens
        "path": "",
        "task": "recognition",  # of the face world
        "data_dir": "",
        "image_size": 48,
        "classes": 80,
        "held_out": 0.0,  # part of the people at `path` who are kept for verification; the seed chooses which
        "augment": "flip",  # or "dali"
        "threads": 2,
        "workers": 0,
    },
    "model": {"name": "tiny", "embedding_size": 64, "dropout": 0.0, "dtype": "float32"},
    "loss": {
        "kind": "margin",  # "arcnegface"; or "softmax": inner products without normalisation or margin
        "scale": 16.0,
        "multiply": 1.0,
        "angle": 0.5,
        "cosine": 0.0,
        "grad_mode": "exact",
        "filter_above": 0.0,
        "sharded": False,
        "sample_rate": 1.0,
        "chunk": 0,  # above 0: classes at a time on one device, for very many of them
    },
    "optim": {
        "name": "sgd",
        "weight_decay": 5e-4,
        "clip": 5.0,
        "clip_only": "backbone",
        "schedule": {"kind": "cosine", "peak": 0.1, "warmup": 0, "boundaries": (), "power": 1.0},
    },
    "train": asdict(Options(batch_size=64, steps=300)),
    "eval": {"batch_size": 128, "packs": "", "weights": ""},  # packs: .bin files, with commas between
}


def published(
    model: str, classes: int, images: int, epochs: int, decay: float = 5e-4, batch: int = 1024, **changes: Any
) -> dict[str, Any]:
    """A run of arcface_torch on 8 GPUs: SGD 0.1 falling linearly, flips only, half precision, sharded classes."""
    return {
        "data": {"source": "path", "image_size": 112, "classes": classes},
        "model": {"name": model, "embedding_size": 512, "dtype": "bfloat16"},
        "loss": {"scale": 64.0, "angle": 0.5, "grad_mode": "straight_through", "sharded": True},
        "optim": {"weight_decay": decay, "schedule": {"kind": "polynomial"}},
        "train": {"batch_size": batch, "steps": images // batch * epochs, "devices": 8, "eval_every": 2000},
        **changes,
    }


PRESETS = {
    "synthetic": {},
    "softmax": {"loss.kind": "softmax"},
    "cosface": {"loss.angle": 0.0, "loss.cosine": 0.2},
    "arcnegface": {"loss.kind": "arcnegface"},
    "att_faces": {
        "data": {"source": "path", "path": "att_faces", "image_size": 56, "held_out": 0.25, "classes": 30},
        "train": {"batch_size": 60, "steps": 250},
    },
    "folder": {"data": {"source": "path", "image_size": 112, "held_out": 0.2}, "model": {"name": "mobilefacenet"}},
    "casia_r50": {
        **published("iresnet50", 10_572, 490_623, 34, batch=512),
        "optim": {"schedule": {"kind": "step", "boundaries": (20_000, 28_000)}},
        "train": {"batch_size": 512, "steps": 32_000, "devices": 4, "eval_every": 2000},
    },
    "ms1mv2_r100": published("iresnet100", 85_742, 5_822_653, 20),
    "ms1mv3_mbf": published("mobilefacenet", 93_431, 5_179_510, 40, decay=1e-4),
    "ms1mv3_r50": published("iresnet50", 93_431, 5_179_510, 20),
    "ms1mv3_r100": published("iresnet100", 93_431, 5_179_510, 20),
    "glint360k_r100": {
        **published("iresnet100", 360_232, 17_091_657, 20, decay=1e-4),
        "loss": {"scale": 64.0, "angle": 0.0, "cosine": 0.4, "sharded": True},
    },
    "webface42m_r100_pfc02": {
        **published("iresnet100", 2_059_906, 42_474_557, 20),
        "loss": {"scale": 64.0, "angle": 0.0, "cosine": 0.4, "sharded": True, "sample_rate": 0.2},
    },
}

CLAIM = Claim(
    "arcface.margin",
    "an additive angular margin raises TAR on held-out identities above plain softmax",
    metric="tar_at_far_1e-2",
    better="higher",
    method="synthetic",
    baseline=("softmax",),
)

BACKBONES = {
    "tiny": lambda **options: iresnet.IResNet((1, 1, 1, 1), (16, 32, 64, 128), **options),
    "iresnet18": iresnet.iresnet18,
    "iresnet34": iresnet.iresnet34,
    "iresnet50": iresnet.iresnet50,
    "iresnet100": iresnet.iresnet100,
    "iresnet200": iresnet.iresnet200,
    "mobilefacenet": mobilefacenet.mobilefacenet,
}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    size, classes, batch = config.data.image_size, config.data.classes, config.train.batch_size
    net = make_backbone(config.model)
    tx = optim.from_config(config.optim, config.train.steps)
    sharded = ("head",) if config.loss.sharded else ()
    devices = config.train.devices or jax.device_count()
    rows = -(-classes // devices) * devices if sharded else classes

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, size, size, 3)), train=False)
        centres = 0.01 * jax.random.normal(jax.random.fold_in(rng, 1), (rows, config.model.embedding_size))
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
        losses = head_loss(config.loss, classes, features, params["head"], batch["label"], rng)
        return losses.mean(), (updated["batch_stats"], {"loss": Mean.of(losses)})

    def train_data() -> Any:
        source, _ = people(config)
        return pipeline.train_batches(
            source,
            loader(config.data),
            batch,
            seed=config.seed,
            threads=config.data.threads,
            workers=config.data.workers,
        )

    def embed(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        plain, mirrored = (net.apply(variables, preprocess(x), train=False) for x in (images, images[:, :, ::-1]))
        return {"plain": plain, "mirrored": mirrored}

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params["backbone"], "batch_stats": state.model_state}
        if config.eval.weights:
            variables = read_weights(config, net)

        def embeddings(images: np.ndarray) -> np.ndarray:
            return verification.flip_embedding(**_views(map_batches(embed, variables, images, config.eval.batch_size)))

        report = verify_packs(config, embeddings) if config.eval.packs else verify_unseen(config, embeddings)
        return report

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_fn, tx, sharded=sharded, microbatches=config.train.microbatches),
        train_data=train_data,
        batch={
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        },
        sharded=sharded,
    )


def make_backbone(model: ConfigDict) -> Any:
    """The backbone that the configuration names."""
    if model.name not in BACKBONES:
        raise ValueError(f"model.name is {model.name!r}: expected one of {', '.join(BACKBONES)}")
    options = {"embedding_size": model.embedding_size, "dtype": jnp.dtype(model.dtype)}
    if "mobilefacenet" not in model.name:
        options["dropout"] = model.dropout
    return BACKBONES[model.name](**options)


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, 3] -> -1..1."""
    return (images.astype(jnp.float32) - 127.5) / 127.5


def head_loss(
    loss: ConfigDict, classes: int, features: jax.Array, centres: jax.Array, labels: jax.Array, rng: jax.Array
) -> jax.Array:
    """Losses [N] of embeddings against class centres, in the form that the configuration asks for."""
    if loss.kind == "softmax":
        return optax.softmax_cross_entropy_with_integer_labels(features @ centres.T, labels)
    if loss.kind == "arcnegface":
        if loss.sharded or loss.chunk:
            raise ValueError("loss.kind 'arcnegface' needs the dense head: set loss.sharded to False, loss.chunk to 0")
        return qan_pp.arcnegface_loss(features, centres, labels, scale=loss.scale, angle=loss.angle)
    if loss.kind != "margin":
        raise ValueError(f"loss.kind is {loss.kind!r}: expected 'margin', 'arcnegface' or 'softmax'")
    margins = arcface.Margins(loss.multiply, loss.angle, loss.cosine)
    options = {"scale": loss.scale, "margins": margins, "grad_mode": loss.grad_mode}
    if loss.sharded:
        return arcface.sharded_margin_softmax_loss(
            features,
            centres,
            labels,
            axis_name="data",
            num_classes=classes,
            sample_rate=loss.sample_rate,
            rng=rng,
            filter_above=loss.filter_above,
            **options,
        )
    if loss.chunk:
        if loss.filter_above:
            raise ValueError("loss.filter_above needs the dense or the sharded head: set loss.chunk to 0")
        return arcface.chunked_margin_softmax_loss(features, centres, labels, chunk=loss.chunk, **options)
    return arcface.margin_softmax_loss(features, centres, labels, filter_above=loss.filter_above, **options)


class Subset:
    """Some examples of a source, with labels of their own."""

    def __init__(self, source: Any, indices: np.ndarray, labels: np.ndarray):
        self._source, self._indices, self._labels = source, indices, labels

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._source[int(self._indices[index])]["image"], "label": int(self._labels[index])}


def people(config: ConfigDict) -> tuple[Any, Any]:
    """Sources of the people to train on and of those never seen in training (None where nobody is kept back)."""
    data = config.data
    if data.source == "face_world":
        return tuple(faces.load(data.task, split, data.data_dir or None) for split in ("train", "test"))
    if not (data.held_out or config.eval.packs):
        raise ValueError("nobody is held out for verification: set data.held_out, or eval.packs")
    source = readers.read(data.path)
    if not data.held_out:
        return source, None
    labels = all_labels(source)
    names = np.unique(labels)
    fold = np.arange(len(names)) % round(1 / data.held_out) == config.seed % round(1 / data.held_out)
    unseen = np.isin(labels, names[fold])
    known = np.cumsum(~fold) - 1
    train = Subset(source, np.flatnonzero(~unseen), known[np.searchsorted(names, labels[~unseen])])
    return train, Subset(source, np.flatnonzero(unseen), labels[unseen])


def loader(data: ConfigDict) -> pipeline.Load:
    """Decodes and augments a batch; a label beyond the classes is an error, not a silent zero."""
    augment = {
        "flip": transforms.random_flip,
        "dali": lambda x, rng: transforms.dali_aug(transforms.random_flip(x, rng), rng),
    }
    if data.augment not in augment:
        raise ValueError(f"data.augment is {data.augment!r}: expected one of {', '.join(augment)}")
    change, size, classes = augment[data.augment], data.image_size, data.classes

    def load(examples: Any, rngs: Any) -> dict[str, np.ndarray]:
        labels = np.array([label(e) for e in examples], np.int32)
        if labels.min() < 0 or labels.max() >= classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise ValueError(f"a label is {wrong}, but data.classes is {classes}: expected 0 to {classes - 1}")
        images = [change(picture(e, size), rng) for e, rng in zip(examples, rngs, strict=True)]
        return {"image": np.stack(images), "label": labels}

    return load


def picture(example: dict[str, Any], size: int) -> np.ndarray:
    """An example's image, decoded and resized."""
    return transforms.resize(transforms.decode(example["image"]), size, size)


def label(example: dict[str, Any]) -> int:
    """An example's class."""
    return int(example["person"] if "person" in example else example["label"])


def all_labels(source: Any) -> np.ndarray:
    """Classes [N] of a source's examples; only where it does not know them are the examples read."""
    known = getattr(source, "labels", None)
    return np.array(known if known is not None else [label(source[i]) for i in range(len(source))])


def verify_unseen(config: ConfigDict, embeddings: Any) -> Report:
    """All pairs of people never seen in training, by cosine of flip-summed embeddings."""
    _, source = people(config)
    if source is None:
        raise ValueError("nobody is held out for verification: set data.held_out, or eval.packs")
    examples = pipeline.fetch(source, range(len(source)))
    images = np.stack([picture(e, config.data.image_size) for e in examples])
    labels = np.array([label(e) for e in examples])
    features = embeddings(images)
    fars = (1e-1, 1e-2, 1e-3)
    rates = verification.all_pairs_tar(features, labels, fars)
    upper = np.triu_indices(len(labels), 1)
    cosine, same = (features @ features.T)[upper], (labels[:, None] == labels)[upper]
    metrics = {f"tar_at_far_{far:.0e}".replace("e-0", "e-"): float(rate) for far, rate in zip(fars, rates, strict=True)}
    metrics |= {
        "equal_error_rate": verification.equal_error_rate(cosine, same),
        "rank1": verification.leave_one_out_rank1(features, labels),
        "genuine_angle": float(np.degrees(np.arccos(np.clip(cosine[same], -1, 1))).mean()),
        "impostor_angle": float(np.degrees(np.arccos(np.clip(cosine[~same], -1, 1))).mean()),
    }
    return Report(
        metrics,
        figures={"Verification of unseen people": roc_figure(cosine, same)},
        images={
            "Unseen people": image_grid(images[: 8 * 12], 12),
            "Most alike strangers": strangers(images, features, labels),
        },
        arrays={"embeddings": features, "labels": labels},
    )


def verify_packs(config: ConfigDict, embeddings: Any) -> Report:
    """The 10-fold protocol on InsightFace's .bin packs."""
    metrics, arrays = {}, {}
    for path in config.eval.packs.split(","):
        pack, name = read_pack(path), pathlib.Path(path).stem
        images = np.stack([picture({"image": data}, config.data.image_size) for data in pack.images])
        features = embeddings(images)
        distances = verification.squared_distances(features[::2], features[1::2])
        if len(pack.same) >= 10:
            metrics[f"{name}_accuracy"] = float(verification.kfold_accuracy(distances, pack.same).mean)
        metrics[f"{name}_genuine_cosine"] = float(1 - distances[pack.same].mean() / 2)
        arrays[f"{name}_embeddings"] = features
    return Report(metrics, arrays=arrays)


def read_weights(config: ConfigDict, net: Any) -> Any:
    """Published arcface_torch weights (a PyTorch state dict), converted to this backbone."""
    from facejax.interop import arcface_torch  # only evaluation of published weights needs it

    size = config.data.image_size
    template = jax.eval_shape(lambda key: net.init(key, jnp.zeros((2, size, size, 3)), train=False), jax.random.key(0))
    return arcface_torch.load(config.eval.weights, template)


def roc_figure(cosine: np.ndarray, same: np.ndarray) -> Any:
    """ROC on a logarithmic axis beside the two histograms of angles."""
    figure, (left, right) = new_figure(9, 3.6, 1, 2)
    far, tar, _ = verification.roc(cosine, same)
    left.semilogx(np.maximum(far, 1e-6), tar)
    left.set(xlabel="false acceptance rate", ylabel="true acceptance rate", xlim=(1e-5, 1), ylim=(0, 1.01))
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    for mask, name in ((same, "same person"), (~same, "different people")):
        right.hist(angles[mask], bins=90, range=(0, 180), density=True, alpha=0.6, label=name)
    right.set(xlabel="angle between embeddings, degrees", yticks=[])
    right.legend(frameon=False)
    return figure


def strangers(images: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The eight pairs of different people with the nearest embeddings, above one another."""
    scores = np.where(labels[:, None] == labels, -np.inf, features @ features.T)
    order = np.argsort(scores, axis=None)[::-1][: 16 * len(labels)]
    pairs: dict[tuple[int, int], tuple[int, int]] = {}
    for i, j in zip(*np.unravel_index(order, scores.shape), strict=True):
        pairs.setdefault(tuple(sorted((labels[i], labels[j]))), (i, j))
        if len(pairs) == 8:
            break
    return image_grid(images[[i for i, _ in pairs.values()] + [j for _, j in pairs.values()]], len(pairs))


def _views(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"features": found["plain"], "flipped": found["mirrored"]}


if __name__ == "__main__":
    app.main(get_config, build)
