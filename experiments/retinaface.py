"""RetinaFace: face detection with five points, and a mesh, as extra supervision.

    python -m experiments.retinaface                           # faces of rendered scenes, two cores
    python -m experiments.retinaface --config=boxes            # without points
    python -m experiments.retinaface --config=dense            # points, and rendered meshes compared with the image
    python -m experiments.retinaface --config=dense_boxes      # rendered meshes, without points
    python -m experiments.retinaface --config=wider_mobilenet025 --config.data.path=DIR      # 1 GPU
    python -m experiments.retinaface --config=wider_resnet50 --config.data.path=DIR          # 4 GPUs
    python -m experiments.retinaface --config=wider_resnet152 --config.data.path=DIR         # the paper's, 4 GPUs
    python -m experiments.retinaface --config=wider_resnet152_dense --config.data.path=DIR   # the same with meshes

DIR holds RetinaFace's annotations of WIDER FACE: train/label.txt, train/images, val/label.txt, val/images. A published
file is evaluated with --eval_only --workdir= --config.eval.weights=mobilenet0.25_Final.pth. The published runs begin
with a trunk trained on ImageNet, these presets with random weights.
`eval.truth` is the folder of the four .mat files of the official evaluation tools; `--config.eval.protocol=faces`
evaluates without them, by face height.

Published AP in % on WIDER FACE's validation images, easy / medium / hard. biubug6/Pytorch_Retinaface (README), images
of the original size: MobileNet-0.25 90.70 / 88.16 / 73.82, ResNet-50 95.48 / 94.04 / 84.43. The paper
(arXiv:1905.00641), ResNet-152, several scales: 95.53 / 95.13 / 90.71 without and 96.35 / 95.83 / 91.29 with deformable
convolutions; with points 96.47 / 96.08 / 91.69; with pixels 96.41 / 95.86 / 91.28; with both 96.94 / 96.18 / 91.86.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.data.detection import DetectionImages
from facejax.detection import retinaface
from facejax.detection import retinaface_mesh as mesh
from facejax.morphable.procedural import procedural
from facejax.recipes.detector import Evaluation, detector
from facejax.train import Experiment, Options, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(DetectionImages(augment="face")),
    "model": {
        "name": "tiny",  # a key of NETS
        "points": 1.0,  # weight of the points' loss
        "pixels": 0.0,  # weight of the pixel loss; 0: no dense branch
        "dtype": "float32",  # of the computation
    },
    "mesh": {
        "vertices": (200, 64, 24),  # of the face and of its coarser versions
        "features": (16, 16),  # widths of the decoder, one for each step
        "order": 3,  # of the graph convolutions
        "code": 24,  # size of the code
        "samples": 1000,  # meshes on which the decoder is trained
        "steps": 1000,  # of the decoder's training
        "batch_size": 16,  # meshes in a step of it
        "learning_rate": 5e-3,
        "crop": 24,  # side of the rendered crops, pixels
        "count": 2,  # rendered anchors per image
    },
    "optim": {
        "name": "sgd",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": {"kind": "cosine", "peak": 0.05, "warmup": 30, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=16, steps=500)),
    "eval": {
        **asdict(Evaluation()),
        "weights": "",  # PyTorch file of a published model to evaluate
    },
}
IMAGES = 12_880
PAPER = {"mesh": {"vertices": (2000, 500, 125, 32), "features": (32, 16, 16), "order": 6, "code": 128, "crop": 64}}


def wider(name: str, size: int, batch: int, devices: int, epochs: int, decays: tuple[int, ...], **changes: Any) -> Any:
    """A run on WIDER FACE by SGD, whose rate is divided by 10 after the epochs `decays`."""
    epoch = IMAGES // batch
    schedule = {"kind": "step", "peak": 1e-3, "warmup": 0, "boundaries": tuple(e / epochs for e in decays)}
    schedule |= changes.pop("schedule", {})
    return {
        "data": {"kind": "retinaface", "path": "wider", "image_size": size, "max_boxes": 128, "workers": 8},
        "model": {"name": name, "dtype": "bfloat16", **changes.pop("model", {})},
        "optim": {"schedule": schedule},
        "train": {"batch_size": batch, "steps": epochs * epoch, "devices": devices, "eval_every": 10 * epoch},
        "eval": {"batch_size": 8, "protocol": "wider", "truth": "ground_truth"},
        **changes,
    }


RESNET152 = functools.partial(
    wider, "resnet152", 640, 32, 4, 80, (55, 68), schedule={"peak": 1e-2, "warmup": 5 * IMAGES // 32}
)
PRESETS = {
    "synthetic": {},
    "boxes": {"model.points": 0.0},
    "dense": {"model.pixels": 0.01},
    "dense_boxes": {"model.points": 0.0, "model.pixels": 0.01},
    "wider_mobilenet025": wider("mobilenet025", 640, 32, 1, 250, (190, 220)),
    "wider_resnet50": wider("resnet50", 840, 24, 4, 100, (70, 90)),
    "wider_resnet152": RESNET152(model={"points": 0.1}),
    "wider_resnet152_dense": RESNET152(model={"points": 0.1, "pixels": 0.01}, **PAPER),
}
CLAIM = Claim(
    "retinaface.points",
    "five points as extra supervision raise the AP of boxes",
    metric="ap",
    better="higher",
    method="synthetic",
    baseline=("boxes",),
)


def tiny(dtype: Any, **options: Any) -> retinaface.RetinaFaceNet:
    """A narrow network with levels of strides 4, 8 and 16."""
    body = retinaface.MobileNetBody(8, ((16, 1), (24, 2), (48, 2), (48, 1), (64, 2), (64, 1)), dtype=dtype)
    return retinaface.RetinaFaceNet(body, 32, levels=(2, 3, 4), dtype=dtype, **options)


NETS: dict[str, tuple[Callable[..., retinaface.RetinaFaceNet], Callable[..., retinaface.RetinaFace]]] = {
    "tiny": (
        tiny,
        functools.partial(retinaface.RetinaFace, strides=(4, 8, 16), sides=((8, 12), (18, 27), (40, 60))),
    ),
    "mobilenet025": (retinaface.retinaface_mobilenet025, retinaface.RetinaFace),
    "resnet50": (retinaface.retinaface_resnet50, retinaface.RetinaFace),
    "resnet152": (retinaface.retinaface_resnet152, retinaface.paper),
}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    evaluation = dict(config.eval)
    weights = evaluation.pop("weights")
    branch = make_branch(config) if config.model.pixels else None
    return detector(
        make_detector(config, branch),
        DetectionImages(**config.data),
        optim.from_config(config.optim, config.train.steps),
        Options(**config.train),
        Evaluation(**evaluation),
        seed=config.seed,
        start=(lambda shapes: {"decoder": {"frozen": pretrain(config, branch)}}) if branch else None,
        load=functools.partial(read, weights) if weights else None,
    )


def make_detector(config: ConfigDict, branch: mesh.PixelBranch | None) -> retinaface.RetinaFace:
    """The detector that the configuration names."""
    if config.model.name not in NETS:
        raise ValueError(f"model.name is {config.model.name!r}: expected one of {', '.join(NETS)}")
    network, model = NETS[config.model.name]
    net = network(dtype=jnp.dtype(config.model.dtype), dense=branch.outputs if branch else 0)
    if branch:
        net = mesh.WithDecoder(net, branch.net, branch.code)
    boxes, logits, *_ = model(None).weights
    return model(net, weights=(boxes, logits, config.model.points, config.model.pixels), dense=branch)


def make_branch(config: ConfigDict) -> mesh.PixelBranch:
    """The decoder of the front of the procedural head, and its renderer."""
    first, *coarser = config.mesh.vertices
    rows, triangles = mesh.face_part(procedural(), first)
    hierarchy = mesh.Hierarchy.of(np.asarray(procedural().mean_shape)[rows], triangles, coarser)
    net = mesh.MeshDecoder(hierarchy, tuple(config.mesh.features), config.mesh.order)
    return mesh.PixelBranch(net, config.mesh.code, config.mesh.crop, config.mesh.count)


def pretrain(config: ConfigDict, branch: mesh.PixelBranch) -> Any:
    """Trains the decoder on random faces."""
    rows, _ = mesh.face_part(procedural(), config.mesh.vertices[0])
    return mesh.pretrained(
        mesh.sampled_meshes(procedural(), rows, config.mesh.samples, config.seed),
        branch.net,
        branch.code,
        steps=config.mesh.steps,
        batch_size=config.mesh.batch_size,
        rate=config.mesh.learning_rate,
        seed=config.seed,
    )


def read(path: str, template: Any) -> Any:
    """Published variables."""
    from facejax.interop import retinaface as weights  # only published weights need it

    return weights.load(path, template)


if __name__ == "__main__":
    app.main(get_config, build)
