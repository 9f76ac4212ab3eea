"""SSD: a detector that predicts boxes from maps of several scales, and mines its negatives.

    python -m experiments.ssd                            # faces of rendered scenes, two cores
    python -m experiments.ssd --config=single            # as many priors, all on one map
    python -m experiments.ssd --config=argmax            # matching by the best prior of a box, not bipartite
    python -m experiments.ssd --config=voc300 --config.data.path=DIR --config.model.weights=vgg16.pth
    python -m experiments.ssd --config=voc512 --config.data.path=DIR --config.model.weights=vgg16.pth
    python -m experiments.ssd --config=coco300 --config.data.path=COCO --config.model.weights=vgg16.pth

DIR holds VOC2007 and VOC2012 (trained on both trainval sets, tested on VOC2007 test), COCO the folders annotations,
images/train2017 and images/val2017. The weights are torchvision's VGG-16 of ImageNet, subsampled here. One GPU.

Published (paper, with the expansion of images): VOC 2007 mAP 77.2 % with 300 pixels and 79.8 % with 512; COCO
test-dev2015 AP 25.1 % and 28.8 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.backbones.vgg import vgg16
from facejax.data import normalize
from facejax.data.detection import DetectionImages
from facejax.detection import ssd
from facejax.detection.ssd import ReducedVGG, Source
from facejax.recipes.detector import Evaluation, detector
from facejax.train import Experiment, Options, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(DetectionImages(augment="face")),
    "model": {
        "name": "tiny",  # a key of NETS
        "bipartite": True,  # match every box to a prior of its own first
        "ratio": 3.0,  # hard negatives per positive
        "weights": "",  # torchvision's state dict of VGG-16, to begin from
        "dtype": "float32",  # of the computation
    },
    "optim": {
        "name": "adamw",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "decay": "kernels",
        "clip": 10.0,
        "schedule": {"kind": "cosine", "peak": 2e-3, "warmup": 30, "boundaries": ()},
        "bias_rate": 1.0,  # learning rate of biases, in that of kernels
    },
    "train": asdict(Options(batch_size=16, steps=400)),
    "eval": asdict(Evaluation()),
}


def published(
    name: str, size: int, data: Mapping[str, Any], steps: int, boundaries: tuple[float, ...]
) -> dict[str, Any]:
    """The authors' SGD: batches of 32, a rate of 0.001, divided by 10; biases have twice the rate and no decay."""
    return {
        "data": {"image_size": size, "augment": "ssd", "max_boxes": 64, "workers": 8, **data},
        "model": {"name": name},
        "optim": {
            "name": "sgd",
            "clip": 0.0,
            "schedule": {"kind": "step", "peak": 1e-3, "warmup": 0, "boundaries": boundaries},
            "bias_rate": 2.0,
        },
        "train": {"batch_size": 32, "steps": steps, "devices": 1, "eval_every": 10_000},
        "eval": {"batch_size": 16, "protocol": "coco" if data["kind"] == "coco" else "voc2007", "stretch": True},
    }


VOC = {"kind": "voc", "path": "voc", "classes": 20}
COCO = {"kind": "coco", "path": "coco", "classes": 80}
PRESETS = {
    "synthetic": {},
    "single": {"model": {"name": "tiny_single"}},
    "argmax": {"model": {"bipartite": False}},
    "voc300": published("vgg300", 300, VOC, 120_000, (80 / 120, 100 / 120)),
    "voc512": published("vgg512", 512, VOC, 120_000, (80 / 120, 100 / 120)),
    "coco300": published("vgg300_coco", 300, COCO, 400_000, (280 / 400, 360 / 400)),
    "coco512": published("vgg512_coco", 512, COCO, 400_000, (280 / 400, 360 / 400)),
}

CLAIM = Claim(
    "ssd.scales",
    "priors on maps of several scales raise AP above as many priors on one map",
    metric="ap",
    better="higher",
    method="synthetic",
    baseline=("single",),
)

SIDES = ((10.0, 20.0), (20.0, 38.0), (38.0, 66.0), (66.0, 110.0))
"""Sides of the priors of the small networks, in pixels: as many cells as those of SSD300."""


class Model(NamedTuple):
    """A network, its priors, and the deviation of its pixels."""

    net: ssd.Net
    sources: tuple[Source, ...]
    deviation: float = 1.0


def tiny(num_classes: int, dtype: Any) -> Model:
    """6,080 priors of 128 pixels on four maps; with batch norm, because no weights of ImageNet are there."""
    ratios = ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0,))
    sources = tuple(Source(4 * 2**i, (SIDES[i],), ratios[i]) for i in range(4))
    trunk = ReducedVGG((1, 1, 1, 1, 1), (16, 24, 32, 48, 48), 64, True, dtype)
    names = ("relu3_1", "relu4_1", "relu7", "conv6_2")
    net = ssd.Net(num_classes, trunk, ((24, 48, 3, 2, 1),), names, (4, 6, 6, 4), (), True, dtype)
    return Model(net, sources, 64.0)


def tiny_single(num_classes: int, dtype: Any) -> Model:
    """6,144 priors of the same sides, all on the map of stride 8."""
    net = tiny(num_classes, dtype).net.clone(extras=(), sources=("relu4_1",), priors=(24,))
    return Model(net, (Source(8, SIDES, (2.0, 3.0)),), 64.0)


NETS = {
    "tiny": tiny,
    "tiny_single": tiny_single,
    "vgg300": lambda n, dtype: Model(ssd.ssd300(n, dtype), ssd.VOC300),
    "vgg512": lambda n, dtype: Model(ssd.ssd512(n, dtype), ssd.VOC512),
    "vgg300_coco": lambda n, dtype: Model(ssd.ssd300(n, dtype), ssd.COCO300),
    "vgg512_coco": lambda n, dtype: Model(ssd.ssd512(n, dtype), ssd.COCO512),
}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    model = config.model
    if model.name not in NETS:
        raise ValueError(f"model.name is {model.name!r}: expected one of {', '.join(NETS)}")
    net, sources, deviation = NETS[model.name](config.data.classes, jnp.dtype(model.dtype))
    return detector(
        ssd.SSD(net, sources, bipartite=model.bipartite, ratio=model.ratio, deviation=deviation),
        DetectionImages(**config.data),
        make_optimizer(config.optim, config.train.steps),
        Options(**config.train),
        Evaluation(**config.eval),
        seed=config.seed,
        start=(lambda shapes: {"params": {"trunk": read_weights(model.weights)}}) if model.weights else None,
    )


def make_optimizer(settings: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer. With SGD the scales of the L2 norms have weight decay, too, as Caffe decays all but the biases."""

    def is_scale(path: Any, _: Any) -> bool:
        return path[-2].key.endswith("_norm")

    tx = optim.from_config(settings, steps)
    if settings.name != "sgd" or settings.decay != "kernels":
        return tx
    decayed = optax.add_decayed_weights(settings.weight_decay)
    return optax.chain(optax.masked(decayed, lambda params: jax.tree_util.tree_map_with_path(is_scale, params)), tx)


def read_weights(path: str) -> dict[str, Any]:
    """The trunk's parameters, for BGR of 0..255 less its mean.

    torchvision's normalisation is folded into the first layer: exact except at the border, whose padding has another
    colour. Every fourth channel of fc6 and fc7 and every third pixel of fc6's kernel are kept (the paper's Sec. 3).
    """
    from facejax.interop import torchvision  # only published weights need it

    net = vgg16(num_classes=1000)
    shapes = jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, 224, 224, 3)), train=False), jax.random.key(0))
    found = dict(torchvision.load(path, shapes)["params"])
    dense = found.pop("classifier")
    kernel = found["conv1_1"]["kernel"] / normalize.IMAGENET_STD[:, None]
    shift = np.float32([123, 117, 104]) - normalize.IMAGENET_MEAN
    bias = found["conv1_1"]["bias"] + np.einsum("hwio,i->o", kernel, shift)
    found["conv1_1"] = {"kernel": kernel[:, :, ::-1], "bias": bias}
    fc6 = dense["fc6"]["kernel"].reshape(7, 7, 512, 4096)[::3, ::3, :, ::4]
    fc7 = dense["fc7"]["kernel"][None, None, ::4, ::4]
    for name, kernel in (("fc6", fc6), ("fc7", fc7)):
        found[name] = {"kernel": kernel, "bias": dense[name]["bias"][::4]}
    return found


if __name__ == "__main__":
    app.main(get_config, build)
