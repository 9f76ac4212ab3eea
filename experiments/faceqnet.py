"""FaceQnet v0 and v1: a recognition trunk and two new layers predict the similarity to the person's gallery image.

    python -m experiments.faceqnet                                           # v1: labels of three recognisers
    python -m experiments.faceqnet --config=one                              # labels of one recogniser
    python -m experiments.faceqnet --config=v0                               # labels of one recogniser, no dropout
    python -m experiments.faceqnet --config=vggface2 --config.data.path=DIR --config.recogniser.weights=r50.pth \
        --config.model.weights=rcmalli_vggface_tf_notop_resnet50.h5          # v0: the trunk, and another labeller
    python -m experiments.faceqnet --config=vggface2 ... --config.compliance=scores.csv   # name,compliance
    python -m experiments.faceqnet --config=vggface2_v1 ... --config.recogniser.weights=a.pth,b.pth,c.pth

A person's gallery image is the one of the highest compliance with the rules for passport photographs. It has no label
itself: training takes the person's other images. A CSV gives the
compliance (from BioLab-ICAO or another checker; names are "person/file.jpg"). Without one it is the sharpness or, in
the face world, the image with the least degradation, then the most frontal and sharpest.

Published AOC (as the authors of SDD-FIQA ran them; LFW, Adience, IJB-C): v0 0.4963, 0.4837, 0.6175; v1 0.5352, 0.4257,
0.6409.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.backbones import resnet
from facejax.data import sources
from facejax.data.quality_faces import Faces, QualityFaces
from facejax.data.readers import tables
from facejax.evaluate.quality import QualityProtocol, measure, min_max
from facejax.quality import faceqnet, factors
from facejax.recipes import scorer
from facejax.recipes.recogniser import PUBLISHED, Recogniser
from facejax.train import Experiment, Options, app, optim, warm_start
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(QualityFaces()),
    "recogniser": asdict(Recogniser()),
    "label": "gallery",  # training target: "gallery" (similarity to the gallery image) or "sharpness"
    "compliance": "",  # a CSV with the columns name and compliance; empty takes sharpness and known degradations
    "recognisers": 3,  # whose labels are averaged; the trunk is another one
    "model": {
        "trunk": "recogniser",  # "recogniser" (of this seed), or "resnet50" with published weights
        "weights": "",  # Keras file of the trunk "resnet50"
        "hidden": 32,  # width of the first new layer
        "dropout": 0.5,  # before it
    },
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 3e-3, "warmup": 0, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=64, steps=600)),
    "eval": asdict(QualityProtocol()),
}
VGGFACE2 = {
    "data": {"source": "path", "image_size": 224, "people": 300, "test_people": 500},
    "recogniser": {**PUBLISHED, "image_size": 112},
    "train": {"batch_size": 64, "steps": 20_000, "devices": 1},
}
PRESETS = {
    "synthetic": {},
    "one": {"recognisers": 1},
    "v0": {"recognisers": 1, "model.dropout": 0.0},
    "perceptual": {"label": "sharpness", "recognisers": 1, "model.dropout": 0.0},
    "vggface2": {**VGGFACE2, "recognisers": 1, "model": {"trunk": "resnet50", "dropout": 0.0}},
    "vggface2_v1": {**VGGFACE2, "model": {"trunk": "resnet50"}},
}
CLAIM = (
    Claim(
        "faceqnet.similarity",
        "a regressed similarity to the identity's best picture ranks face quality better than a regressed sharpness",
        metric="aoc",
        better="higher",
        method="v0",
        baseline=("perceptual",),
        system="faceqnet:v0",
    ),
    Claim(
        "faceqnet.committee_dropout",
        "labels of three recognisers with dropout rank face quality better than labels of one without dropout",
        metric="aoc",
        better="higher",
        method="synthetic",
        baseline=("v0",),
        seeds=6,
        system="faceqnet:v1",
    ),
    Claim(
        "faceqnet.committee",
        "labels of three recognisers rank face quality better than labels of one with the same network",
        metric="aoc",
        better="higher",
        method="synthetic",
        baseline=("one",),
        seeds=6,
        system="faceqnet:v1",
    ),
)


class LastMap(nn.Module):
    """An IResNet's last map, flattened as its own dense layer takes it: [N, H, W, 3] in -1..1 -> [N, F]."""

    recogniser: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        maps = self.recogniser(images, train=train, features=True)
        return maps[f"stage{len(self.recogniser.depths)}"].reshape(len(images), -1)


class Pooled(nn.Module):
    """ResNet-50 for faces of VGGFace2: [N, H, W, 3] in -1..1, taken as BGR of 0..255, to the mean of its last map."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        raw = images[..., ::-1] * 127.5 + 127.5
        maps = resnet.resnet50(stride_in_1x1=True, name="resnet")(raw, train=train, features=True)
        return maps["c5"].mean((1, 2))


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: only the two new layers are trained."""
    if config.recognisers < 1:
        raise ValueError(f"recognisers is {config.recognisers}: expected 1 or more")
    if config.label not in ("gallery", "sharpness"):
        raise ValueError(f"label is {config.label!r}: expected 'gallery' or 'sharpness'")
    if config.compliance and config.label != "gallery":
        raise ValueError(f"compliance is given, but label is {config.label!r}: expected 'gallery'")
    files = config.recogniser.weights.split(",")
    if config.recogniser.weights and len(files) < config.recognisers:
        raise ValueError(
            f"recogniser.weights names {len(files)} files for {config.recognisers} recognisers: expected as many"
        )
    own = config.model.trunk == "recogniser"
    if not own and config.model.trunk != "resnet50":
        raise ValueError(f"model.trunk is {config.model.trunk!r}: expected 'recogniser' or 'resnet50'")
    data, protocol = QualityFaces(**config.data), QualityProtocol(**config.eval)
    recogniser = Recogniser(**config.recogniser)
    backbone = recogniser.backbone()
    if own and not hasattr(backbone, "depths"):
        raise ValueError(f"recogniser.name is {recogniser.name!r}: expected an IResNet, whose last map is read")
    trunk = LastMap(backbone) if own else Pooled()
    net = faceqnet.FaceQnet(trunk, config.model.hidden, config.model.dropout)

    def prepare() -> Any:
        if own:
            found = recogniser.embedder(config.seed, **data.view).variables
            return {part: {"recogniser": tree} for part, tree in found.items()}
        if not config.model.weights:
            raise ValueError("model.weights is empty: expected a Keras file of VGGFace2's ResNet-50, the frozen trunk")
        return read_trunk(config.model.weights, scorer.shapes(trunk, data.image_size))

    def begin(variables: Any, start: Any) -> Any:
        trunk = warm_start.taken(start, {part: tree["trunk"] for part, tree in variables.items()})
        return {part: {**tree, "trunk": trunk[part]} for part, tree in variables.items()}

    def labels(known: Faces) -> np.ndarray:
        if config.label == "sharpness":
            return np.sqrt(sharpness(known), dtype=np.float32)
        fit = compliance(known, config.compliance)
        nets = (recogniser.embedder(config.seed + 1 + i, **data.view) for i in range(config.recognisers))
        found = [faceqnet.gallery_labels(embed(known.images), known.people, fit) for embed in nets]
        return faceqnet.fused_labels(np.stack(found))

    def train_data() -> Iterator[dict[str, np.ndarray]]:
        known = data.load("train")
        targets = labels(known)
        source = sources.Rows({"image": known.images, "label": targets}, np.flatnonzero(np.isfinite(targets)))
        return data.batches(source, config.train.batch_size, config.seed)

    tx = optax.multi_transform(
        {"train": optim.from_config(config.optim, config.train.steps), "freeze": optax.set_to_zero()},
        lambda params: {name: "freeze" if name == "trunk" else "train" for name in params},
    )
    return Experiment(
        evaluate=lambda state: scorer.report(net, state, data, protocol, recogniser),
        train_data=train_data,
        **scorer.training(
            net,
            lambda scores, batch: (scores - batch["label"]) ** 2,
            tx,
            image_size=data.image_size,
            batch_size=config.train.batch_size,
            fields={"label": jax.ShapeDtypeStruct((config.train.batch_size,), jnp.float32)},
            microbatches=config.train.microbatches,
            prepare=prepare,
            begin=begin,
        ),
    )


def read_trunk(path: str, template: Any) -> Any:
    """Published variables of `Pooled`, of the shapes of `template`."""
    from facejax.interop import vggface  # only published weights need it

    found = vggface.load(path, {part: tree["resnet"] for part, tree in template.items()})
    return {part: {"resnet": tree} for part, tree in found.items()}


def compliance(known: Faces, path: str) -> np.ndarray:
    """Compliance [N] with the rules for passport photographs: read from a CSV, or from degradation, yaw, sharpness."""
    if path:
        all_names = getattr(known.images, "source_names", ())
        return tables.numbers(path, "compliance", sources.names(known.images), all_names)
    return sharpness(known) - 10 * np.nan_to_num(known.fault) - np.abs(np.nan_to_num(known.yaw))


def sharpness(known: Faces) -> np.ndarray:
    """Sharpness [N], scaled to 0..1."""
    return min_max(measure(factors.sharpness, known.images))


if __name__ == "__main__":
    app.main(get_config, build)
