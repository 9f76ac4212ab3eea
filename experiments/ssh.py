"""SSH: a single-stage face detector whose modules see the context of a face.

    python -m experiments.ssh                                # faces of rendered scenes, two cores
    python -m experiments.ssh --config=plain                 # the same without context branches
    python -m experiments.ssh --config=wider --config.data.path=DIR --config.model.trunk=vgg16_caffe.pth    # 4 GPUs

DIR holds WIDER FACE: wider_face_split, WIDER_train/images, WIDER_val/images. The trunk is ImageNet's VGG-16 in
torchvision's layout; the published run began from Caffe's weights, whose inputs are BGR less a mean.
`eval.truth` is the folder of the four .mat files of the official evaluation tools; `--config.eval.protocol=faces`
evaluates without them, by face height.

Published (paper), AP in % on WIDER FACE's validation images, easy / medium / hard: one scale 91.9 / 90.7 / 81.4, image
pyramid 93.1 / 92.1 / 84.5; without context modules more than 0.5 less. The preset evaluates one scale;
`facejax.detection.ssh.SSH.pyramid` is the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from facejax.data.detection import DetectionImages
from facejax.detection import ssh
from facejax.recipes.detector import Evaluation, detector
from facejax.train import Experiment, Options, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(DetectionImages(augment="flip")),
    "model": {
        "name": "tiny",  # a key of NETS
        "context": True,  # False: one 3x3 convolution of equal width in place of the branches
        "trunk": "",  # file of VGG-16's convolutions to begin from
        "dtype": "float32",  # of the computation
    },
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "decay": "kernels",
        "bias_rate": 1.0,  # learning rate of the biases, relative to that of the kernels
        "frozen": 0,  # stages of VGG that stay as they are
        "schedule": {"kind": "cosine", "peak": 4e-3, "warmup": 30, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=16, steps=400)),
    "eval": asdict(Evaluation()),
}
PRESETS = {
    "synthetic": {},
    "plain": {"model.context": False},
    "wider": {
        "data": {"kind": "wider", "path": "wider", "image_size": 1600, "max_boxes": 512, "workers": 8},
        "model": {"name": "vgg16"},
        "optim": {
            "name": "sgd", "weight_decay": 5e-4, "bias_rate": 2.0, "frozen": 2,
            "schedule": {"kind": "step", "peak": 0.004, "warmup": 0, "boundaries": (18 / 21,)},
        },
        "train": {"batch_size": 4, "steps": 21_000, "devices": 4, "eval_every": 0},
        "eval": {"batch_size": 4, "protocol": "wider", "truth": "ground_truth"},
    },
}  # fmt: skip
CLAIM = Claim(
    "ssh.context",
    "context branches raise the AP of small faces above one convolution of equal width",
    metric="ap_small",
    better="higher",
    method="synthetic",
    baseline=("plain",),
)


def tiny(**options: Any) -> ssh.SSH:
    """Four convolutions as trunk, and modules of strides 4, 8 and 16."""
    depths, widths, modules = (1, 1, 1, 1), (8, 16, 24, 32), (8, 16, 16)
    net = ssh.Net(depths, widths, 32, modules, kernel_init=nn.initializers.he_normal(), **options)
    return ssh.SSH(net, (4, 8, 16), ((10, 16), (24, 36), (56, 84)), base=8, borders=(0, 0, 128))


NETS = {"tiny": tiny, "vgg16": lambda **options: ssh.SSH(ssh.ssh_vgg16(**options))}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    if config.model.name not in NETS:
        raise ValueError(f"model.name is {config.model.name!r}: expected one of {', '.join(NETS)}")
    model = NETS[config.model.name](context=config.model.context, dtype=jnp.dtype(config.model.dtype))
    return detector(
        model,
        DetectionImages(**config.data),
        make_optimizer(config.optim, config.train.steps),
        Options(**config.train),
        Evaluation(**config.eval),
        seed=config.seed,
        start=functools.partial(read_trunk, config.model.trunk) if config.model.trunk or config.optim.frozen else None,
    )


def read_trunk(path: str, shapes: Any) -> Any:
    """VGG's published convolutions; ValueError without a path."""
    if not path:
        raise ValueError("model.trunk is empty: optim.frozen keeps stages of VGG, which would stay at random")
    from facejax.interop import torchvision  # only published weights need it

    return {"params": {"vgg": torchvision.load_vgg_convolutions(path, shapes["params"]["vgg"])}}


def make_optimizer(settings: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer, with frozen stages. Biases of VGG have weight decay, too; those of the other layers do not."""
    options = dict(settings)
    frozen = options.pop("frozen")

    def is_bias_of_vgg(path: Any, _: Any) -> bool:
        return path[0].key == "vgg" and path[-1].key == "bias"

    def is_frozen(path: Any, _: Any) -> bool:
        part, layer = path[0].key, path[1].key
        return part == "vgg" and int(layer.removeprefix("conv").split("_")[0]) <= frozen

    def masked(tx: optax.GradientTransformation, chosen: Callable[[Any, Any], bool]) -> optax.GradientTransformation:
        return optax.masked(tx, lambda params: jax.tree_util.tree_map_with_path(chosen, params))

    decay = settings.weight_decay
    return optax.chain(
        *([masked(optax.add_decayed_weights(decay), is_bias_of_vgg)] if decay and settings.decay == "kernels" else []),
        optim.from_config(options, steps),
        masked(optax.set_to_zero(), is_frozen),
    )


if __name__ == "__main__":
    app.main(get_config, build)
