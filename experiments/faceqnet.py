"""FaceQnet v0 and v1: a recognition trunk and two new layers tell the similarity to the person's best picture.

    python -m experiments.faceqnet                                           # v1: three recognisers' labels
    python -m experiments.faceqnet --config=one                              # one recogniser's
    python -m experiments.faceqnet --config=v0                               # one recogniser's, and no dropout
    python -m experiments.faceqnet --config=vggface2 --config.data.path=DIR --config.recogniser.weights=r50.pth \
        --config.model.weights=rcmalli_vggface_tf_notop_resnet50.h5          # v0: the trunk, and another labeller
    python -m experiments.faceqnet --config=vggface2 ... --config.compliance=scores.csv   # name,compliance
    python -m experiments.faceqnet --config=vggface2_v1 ... --config.recogniser.weights=a.pth,b.pth,c.pth

A person's gallery picture is the one of the highest compliance: of a CSV, whose names are "person/file.jpg", from
BioLab-ICAO or whatever checks a passport's rules; without one, the sharpest of those whose faults are not known, and
in the face world the least faulty, most frontal and sharpest.

Published AOC (as the authors of SDD-FIQA ran them; LFW, Adience, IJB-C): v0 0.4963, 0.4837, 0.6175; v1 0.5352, 0.4257,
0.6409.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import arcface
from experiments import quality_common as common
from facejax.backbones import resnet
from facejax.data.readers import tables
from facejax.quality import faceqnet, factors
from facejax.train import Experiment, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": common.DATA,
    "recogniser": common.RECOGNISER,
    "label": "gallery",  # or "sharpness"
    "compliance": "",  # a CSV with the columns name and compliance; empty takes what is known of the pictures
    "recognisers": 3,  # whose labels are fused; none of them is the trunk
    "model": {"trunk": "recogniser", "weights": "", "hidden": 32, "dropout": 0.5},  # weights: of the trunk "resnet50"
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 3e-3, "warmup": 0, "boundaries": ()},
    },
    "train": {**common.TRAIN, "steps": 600},
    "eval": common.EVAL,
}
VGGFACE2 = {
    "data": {"source": "path", "image_size": 224, "people": 300, "judged": 500},
    "recogniser": {**common.PUBLISHED, "image_size": 112},
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
    """ResNet-50 for faces of VGGFace2: BGR of 0..255 as given, to the mean of its last map [N, 2048]."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        raw = images[..., ::-1] * 127.5 + 127.5
        maps = resnet.resnet50(stride_in_1x1=True, name="resnet")(raw, train=train, features=True)
        return maps["c5"].mean((1, 2))


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run: only the two new layers learn."""
    if config.recognisers < 1:
        raise ValueError(f"recognisers is {config.recognisers}: expected 1 or more")
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
    backbone = arcface.make_backbone(config.recogniser)
    if own and not hasattr(backbone, "depths"):
        raise ValueError(f"recogniser.name is {config.recogniser.name!r}: expected an IResNet, whose last map is read")
    trunk = LastMap(backbone) if own else Pooled()
    net = faceqnet.FaceQnet(trunk, config.model.hidden, config.model.dropout)

    def source() -> Any:
        if not own and not config.model.weights:
            raise ValueError("model.weights is empty: expected a Keras file of VGGFace2's ResNet-50, the frozen trunk")
        known = common.people(config.data, "train")
        if own:
            common.recogniser(config, config.seed)  # which `start` reads
        return common.Rows({"image": known.images, "label": label(config, known)})

    def start(variables: Any) -> Any:
        trunk = {part: tree["trunk"] for part, tree in variables.items()}
        if own:
            inner = {part: tree["recogniser"] for part, tree in trunk.items()}
            trunk = {part: {"recogniser": x} for part, x in common.starting_weights(config, inner).items()}
        elif config.model.weights:
            trunk = common.read_later(lambda: read_trunk(config.model.weights, trunk), trunk)
        return {part: {**tree, "trunk": trunk[part]} for part, tree in variables.items()}

    learn = optim.from_config(config.optim, config.train.steps)
    tx = optax.multi_transform(
        {"learn": learn, "keep": optax.set_to_zero()},
        lambda params: {name: "keep" if name == "trunk" else "learn" for name in params},
    )
    return common.regression(
        config,
        net,
        lambda scores, batch: (scores - batch["label"]) ** 2,
        source,
        {"label": jax.ShapeDtypeStruct((config.train.batch_size,), jnp.float32)},
        tx=tx,
        start=start,
    )


def read_trunk(path: str, trunk: Any) -> Any:
    """Published variables of `Pooled`, of the shapes of `trunk`."""
    from facejax.interop import vggface  # only published weights need it

    found = vggface.load(path, {part: tree["resnet"] for part, tree in trunk.items()})
    return {part: {"resnet": tree} for part, tree in found.items()}


def label(config: ConfigDict, known: common.Faces) -> np.ndarray:
    """What the network is told [N]: the similarity to the person's most compliant picture, or sharpness."""
    if config.label == "sharpness":
        return np.sqrt(sharpness(known), dtype=np.float32)
    if config.label != "gallery":
        raise ValueError(f"label is {config.label!r}: expected 'gallery' or 'sharpness'")
    fit = compliance(config, known)
    nets = (common.recogniser(config, config.seed + 1 + i) for i in range(config.recognisers))
    labels = [faceqnet.gallery_labels(net(known.images), known.people, fit) for net in nets]
    return faceqnet.fused_labels(np.stack(labels))


def compliance(config: ConfigDict, known: common.Faces) -> np.ndarray:
    """Compliance [N] with the rules for passports: read, or the least faulty, most frontal and sharpest leads."""
    if config.compliance:
        everybody = getattr(known.images, "source_names", ())
        return tables.numbers(config.compliance, "compliance", common.names(known.images), everybody)
    return sharpness(known) - 10 * np.nan_to_num(known.fault) - np.abs(np.nan_to_num(known.yaw))


def sharpness(known: common.Faces) -> np.ndarray:
    """Sharpness [N], stretched to 0..1."""
    return common.stretched(common.measured(factors.sharpness, known.images))


if __name__ == "__main__":
    app.main(get_config, build)
