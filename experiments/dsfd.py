"""DSFD: a face detector with enhanced features and two shots at every face.

    python -m experiments.dsfd                               # faces of rendered scenes, two cores
    python -m experiments.dsfd --config=single_shot          # neither enhancement nor first shot
    python -m experiments.dsfd --config=enhanced             # enhancement without first shot
    python -m experiments.dsfd --config=wider_resnet152 --config.data.path=DIR --config.model.trunk=resnet152.pth

DIR holds WIDER FACE: wider_face_split, WIDER_train/images, WIDER_val/images. The trunk is ImageNet's, a PyTorch state
dict in torchvision's layout. The wider presets take 4 GPUs here; the paper names the batch of 16, not the machine.
`eval.truth` is the folder of the four .mat files of the official evaluation tools; `--config.eval.protocol=faces`
evaluates without them, by face height.

Published, AP in % on WIDER FACE's validation images, easy / medium / hard: the released ResNet-152 with many scales
(`facejax.detection.dsfd.DSFD.multi_scale`) 96.6 / 95.7 / 90.4 (paper), with one scale of 640 pixels 94.29 / 91.47 /
71.39 (SCRFD's README); two shots on VGG-16, as re-implemented with many scales by yxlijun/DSFD.pytorch, 94.6 / 93.7 /
88.0. The presets evaluate one scale.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from facejax.data.detection import DetectionImages
from facejax.detection import dsfd
from facejax.recipes.detector import Evaluation, detector
from facejax.train import Experiment, Options, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(DetectionImages(augment="flip")),
    "model": {
        "name": "tiny",  # a key of NETS
        "fem": True,  # feature enhancement, of the miniature alone; the full networks have it
        "first_shot": True,  # progressive anchor loss, of the miniature alone
        "trunk": "",  # file of the trunk's weights to begin from
        "dtype": "float32",  # of the computation
        "second_weight": 1.0,  # lambda
        "box_weight": 1.0,  # beta
        "by_sampled": True,  # divide the cross-entropy by the sampled anchors; False: by the positives
    },
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 4e-3, "warmup": 30, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=16, steps=1200)),
    "eval": asdict(Evaluation()),
}


def wider(name: str, by_sampled: bool) -> dict[str, Any]:
    """The paper's schedule: 60,000 iterations of 16 images, divided by 10 after 40,000 and 50,000."""
    return {
        "data": {
            "kind": "wider", "path": "wider", "image_size": 640, "max_boxes": 256, "augment": "anchor", "workers": 8,
        },
        "model": {"name": name, "by_sampled": by_sampled},
        "optim": {
            "name": "sgd", "weight_decay": 5e-4,
            "schedule": {"kind": "step", "peak": 1e-3, "warmup": 0, "boundaries": (4 / 6, 5 / 6)},
        },
        "train": {"batch_size": 16, "steps": 60_000, "devices": 4, "eval_every": 10_000},
        "eval": {"batch_size": 4, "protocol": "wider", "truth": "ground_truth"},
    }  # fmt: skip


PRESETS = {
    "synthetic": {},
    "single_shot": {"model": {"fem": False, "first_shot": False}},
    "enhanced": {"model.first_shot": False},
    "wider_resnet152": wider("resnet152", by_sampled=False),
    "wider_dual_vgg16": wider("dual_vgg16", by_sampled=True),
    "wider_dual_resnet152": wider("dual_resnet152", by_sampled=True),
}
CLAIM = (
    Claim(
        "dsfd.dual_shot",
        "feature enhancement and the progressive anchor loss raise AP above one shot on the trunk's features",
        metric="ap",
        better="higher",
        method="synthetic",
        baseline=("single_shot",),
    ),
    Claim(
        "dsfd.enhancement",
        "feature enhancement raises AP above one shot on the trunk's features",
        metric="ap",
        better="higher",
        method="enhanced",
        baseline=("single_shot",),
    ),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def tiny(fem: bool, first_shot: bool, dtype: Any) -> dsfd.Net:
    """Five convolutions as trunk, and levels of strides 4, 8 and 16."""
    maps = dsfd.VGGMaps((1,) * 5, (8, 16, 24, 32, 32), fc=0, extras=(), dtype=dtype)
    return dsfd.dual(maps, products=2 if fem else 0, first_shot=first_shot, norms=dsfd.VGG_NORMS, dtype=dtype)


NETS: dict[str, Callable[..., dsfd.Net]] = {
    "resnet152": dsfd.dsfd_resnet152,
    "vgg16": dsfd.dsfd_vgg16,
    "dual_vgg16": dsfd.dsfd_dual_vgg16,
    "dual_resnet152": dsfd.dsfd_dual_resnet152,
}


def make_detector(settings: ConfigDict) -> dsfd.DSFD:
    """The detector that the `model` section describes."""
    options = {name: settings[name] for name in ("second_weight", "box_weight", "by_sampled")}
    dtype = jnp.dtype(settings.dtype)
    if settings.name == "tiny":
        net = tiny(settings.fem, settings.first_shot, dtype)
        return dsfd.DSFD(net, strides=(4, 8, 16), sizes=(10, 24, 56), **options)
    if settings.name not in NETS:
        raise ValueError(f"model.name is {settings.name!r}: expected one of tiny, {', '.join(NETS)}")
    return dsfd.DSFD(NETS[settings.name](dtype=dtype), **options)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    return detector(
        make_detector(config.model),
        DetectionImages(**config.data),
        optim.from_config(config.optim, config.train.steps),
        Options(**config.train),
        Evaluation(**config.eval),
        seed=config.seed,
        start=functools.partial(read_trunk, config.model.trunk) if config.model.trunk else None,
    )


def read_trunk(path: str, shapes: Any) -> Any:
    """Published variables of the trunk."""
    from facejax.interop import torchvision  # only published weights need it

    maps = {kind: tree["maps"] for kind, tree in shapes.items()}
    if "vgg" in maps["params"]:
        return {"params": {"maps": {"vgg": torchvision.load_vgg_convolutions(path, maps["params"]["vgg"])}}}
    found = torchvision.load(path, {kind: tree["resnet"] for kind, tree in maps.items()})
    return {kind: {"maps": {"resnet": tree}} for kind, tree in found.items()}


if __name__ == "__main__":
    app.main(get_config, build)
