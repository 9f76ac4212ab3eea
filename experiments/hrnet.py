"""HRNet: keypoints from feature maps that keep a high resolution through the whole network.

    python -m experiments.hrnet                         # 68 landmarks of rendered faces, two cores
    python -m experiments.hrnet --config=stride32       # a baseline that goes to stride 32 and upsamples, equal cost
    python -m experiments.hrnet --config=coco_w32_256x192 --config.data.path=DIR --config.model.weights=hrnet_w32.pth
    python -m experiments.hrnet --config=coco_w32_256x192 --config.data.path=DIR --eval_only --workdir= ...
        --config.data.detections=FILE.json --config.eval.weights=pose_hrnet_w32_256x192.pth
    python -m experiments.hrnet --config=mpii_w32 --config.data.path=DIR
    python -m experiments.hrnet --config=coco_w32_256x192 --config.data.kind=files --config.data.path=DIR
    python -m experiments.hrnet --config=imagenet_w18 --config.data.path=DIR    # DIR/train/class/*.jpg, DIR/val/...

COCO's DIR holds annotations/person_keypoints_{train,val}2017.json and images/{train,val}2017/*.jpg; MPII's holds
annot/{train,valid}.json and annot/gt_valid.mat of HRNet's authors, and images/*.jpg; of your own keypoints it holds
annotations/{train,val}.json in COCO's format and images/{train,val}. `model.weights` is their
ImageNet classifier, which initialises their pose networks. Four GPUs each.

Published (the authors' code). COCO val2017 AP with detected people and flip test: W32 74.4 (256x192), 75.8 (384x288);
W48 75.1, 76.3; ResNet-50 70.4. MPII PCKh, W32: 90.3 at 0.5, 37.7 at 0.1. ImageNet top-1 error: small v1 27.7, small v2
24.9, W18 23.2, W32 21.5, W48 20.7.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from facejax.backbones import hrnet, resnet
from facejax.data import normalize
from facejax.data.classification import IMAGENET, LabelledImages
from facejax.data.keypoints import KeypointImages
from facejax.evaluate import keypoints as evaluation
from facejax.ops import heatmaps
from facejax.recipes.classifier import Optimizer, Schedule, classifier
from facejax.train import Experiment, Mean, Options, Report, TrainState, app, optim, supervised_step, warm_start
from facejax.train.claims import Claim

STRIDE = 4

BASE = {
    "seed": 0,
    "data": asdict(KeypointImages()),
    "model": {
        "name": "tiny",  # a key of TRUNKS or BASELINES
        "weights": "",  # PyTorch file of an ImageNet classifier whose trunk initialises the network
        "dtype": "float32",  # of the computation
        "remat": False,  # whether the backward pass computes the insides of modules anew, which saves memory
    },
    "optim": {
        "name": "adam",
        "schedule": {"kind": "cosine", "peak": 4e-3, "warmup": 20, "boundaries": (), "power": 1.0},
    },
    "train": asdict(Options(batch_size=32, steps=200)),
    "eval": {
        "batch_size": 100,  # crops a call
        "decode": "shift",  # "peak", "shift" (a quarter pixel to the higher neighbour) or "taylor"
        "flip": True,  # whether maps are averaged with those of the mirrored crop
        "weights": "",  # PyTorch file of a pose network to evaluate
    },
}
CLASSIFIER_BASE = {
    "seed": 0,
    "data": asdict(LabelledImages()),
    "model": {
        "name": "w18",  # a key of TRUNKS
        "dtype": "bfloat16",  # of the computation
        "remat": False,  # whether the backward pass computes the insides of modules anew, which saves memory
    },
    "loss": {"label_smoothing": 0.0},  # part of the target spread over all classes, 0..1
    "optim": asdict(Optimizer(nesterov=True, weight_decay=1e-4, schedule=Schedule())),
    "train": asdict(Options(batch_size=64, steps=300)),
    "eval": {"batch_size": 120},  # images a call
}


def body(
    kind: str,
    name: str,
    size: tuple[int, int],
    instances: int,
    batch: int = 128,
    epochs: tuple[int, int, int] = (170, 200, 210),
    **data: Any,
) -> dict[str, Any]:
    """A run of the authors on 4 GPUs: Adam at 1e-3, divided by 10 after the first and after the second epoch named."""
    first, second, last = epochs
    schedule = {"kind": "step", "peak": 1e-3, "warmup": 0, "boundaries": (first / last, second / last)}
    epoch = instances // batch
    return {
        "data": {"kind": kind, "path": kind, "image_size": size, "enlarge": 1.25, "sigma": 2.0, **data},
        "model": {"name": name, "dtype": "bfloat16"},
        "optim": {"schedule": schedule},
        "train": {"batch_size": batch, "steps": last * epoch, "devices": 4, "eval_every": 10 * epoch},
    }


def coco(name: str, size: tuple[int, int], **options: Any) -> dict[str, Any]:
    """The 149,813 annotated people of COCO's train2017."""
    return body("coco", name, size, 149_813, **{"scale": 0.35, "rotation": 45.0, "half_body": 0.3, **options})


def imagenet(name: str) -> dict[str, Any]:
    """SGD at 0.05 with Nesterov's momentum, divided by 10 after 30, 60 and 90 of 100 epochs, 4 GPUs of 32 images."""
    schedule = {"kind": "step", "peak": 0.05, "boundaries": (0.3, 0.6, 0.9)}
    return {
        "data": IMAGENET,
        "model": {"name": name},
        "optim": {"schedule": schedule},
        "train": {"batch_size": 128, "steps": 100 * 10_009, "devices": 4, "eval_every": 10_009},
    }


PRESETS = {
    "synthetic": {},
    "stride32": {"model.name": "tiny_stride32"},
    "coco_w32_256x192": coco("w32", (256, 192)),
    "coco_w32_384x288": coco("w32", (384, 288), sigma=3.0),
    "coco_w48_256x192": coco("w48", (256, 192)),
    "coco_w48_384x288": coco("w48", (384, 288), batch=96, sigma=3.0),
    "coco_resnet50_256x192": coco(
        "resnet50", (256, 192), epochs=(90, 120, 140), scale=0.3, rotation=40.0, half_body=0.0
    ),
    "mpii_w32": body("mpii", "w32", (256, 256), 22_246, scale=0.25, rotation=30.0),
    "imagenet_w18_small": imagenet("w18_small"),
    "imagenet_w18_small_v2": imagenet("w18_small_v2"),
    "imagenet_w18": imagenet("w18"),
    "imagenet_w32": imagenet("w32"),
    "imagenet_w48": imagenet("w48"),
}

CLAIM = Claim(
    "hrnet.resolution",
    "a network that keeps its resolution locates landmarks better than one of equal cost that goes down to stride 32 "
    "and back",
    metric="nme",
    better="lower",
    method="synthetic",
    baseline=("stride32",),
)

TRUNKS = {
    "tiny": lambda **o: hrnet.HRNet(16, (1, 1, 1), 1, stem_width=16, first_blocks=1, first_width=8, **o),
    "w18_small": hrnet.hrnet_w18_small,
    "w18_small_v2": hrnet.hrnet_w18_small_v2,
    "w18": hrnet.hrnet_w18,
    "w32": hrnet.hrnet_w32,
    "w48": hrnet.hrnet_w48,
}
BASELINES = {
    "tiny_stride32": (lambda **o: resnet.ResNet((1, 1, 1, 1), False, widths=(24, 32, 64, 128), **o), 64),
    "resnet50": (resnet.resnet50, 256),
}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(CLASSIFIER_BASE if preset.startswith("imagenet") else BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires a run on keypoints, or on ImageNet's classes with `CLASSIFIER_BASE`."""
    if "classes" in config.data:
        return build_classifier(config)
    choose("eval.decode", config.eval.decode, evaluation.DECODERS)
    data = KeypointImages(**config.data)
    net, size, batch = make_net(config), tuple(data.image_size), config.train.batch_size
    if config.model.weights and config.model.name not in TRUNKS:
        raise ValueError(f"model.weights: expected a model.name of {', '.join(TRUNKS)}, not {config.model.name!r}")
    joints = len(data.layout.partners)
    tx = optim.from_config(config.optim, config.train.steps)

    def fresh(rng: jax.Array) -> Any:
        return net.init(rng, jnp.zeros((2, *size, 3)), train=False)

    def prepare() -> Any:
        return read_trunk(config.model.weights, net, jax.eval_shape(fresh, jax.random.key(0)))

    def init(rng: jax.Array, start: Any = None) -> TrainState:
        variables = fresh(rng)
        params = hrnet.small_kernels(rng, variables["params"])
        variables = {"params": params, "batch_stats": variables["batch_stats"]}
        if start is not None:
            trunk = warm_start.taken(start, trunk_of(variables))
            variables = {kind: {**tree, "trunk": trunk[kind]} for kind, tree in variables.items()}
        return TrainState.create(rng, variables["params"], tx, model_state=variables["batch_stats"])

    def loss_fn(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        del rng
        variables = {"params": params, "batch_stats": batch_stats}
        maps, updated = net.apply(variables, normalize.imagenet(batch["image"]), train=True, mutable=["batch_stats"])
        targets, weights = heatmaps.gaussian_maps(
            batch["points"] / STRIDE, maps.shape[1:3], sigma=data.sigma, visible=batch["visible"]
        )
        losses = heatmaps.squared_error(maps, targets, weights)
        errors = jnp.linalg.norm(heatmaps.decode(maps)[0] - batch["points"] / STRIDE, axis=-1)
        metrics = {"loss": Mean.of(losses), "error": Mean.of(errors, weights > 0)}  # in pixels of the maps
        return losses.mean(), (updated["batch_stats"], metrics)

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params, "batch_stats": state.model_state}
        if config.eval.weights:
            from facejax.interop import hrnet_torch  # only published weights need it

            variables = hrnet_torch.load(config.eval.weights, jax.eval_shape(lambda v: v, variables))
        source, truth = data.test()
        crops = evaluation.Crops(source, data.layout, size, data.enlarge)
        options = {name: config.eval[name] for name in ("batch_size", "decode", "flip")}
        found = evaluation.find(net, variables, crops, sigma=data.sigma, stride=STRIDE, **options)
        return evaluation.REPORTS[data.kind](crops, found, truth)

    return Experiment(
        evaluate=evaluate,
        init=init,
        prepare=prepare if config.model.weights else None,
        train_step=supervised_step(loss_fn, tx, microbatches=config.train.microbatches),
        train_data=lambda: data.batches(batch, config.seed),
        batch={
            "image": jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8),
            "points": jax.ShapeDtypeStruct((batch, joints, 2), jnp.float32),
            "visible": jax.ShapeDtypeStruct((batch, joints), jnp.bool_),
        },
    )


def build_classifier(config: ConfigDict) -> Experiment:
    """Wires a run on ImageNet."""
    config = app.with_classes(config, lambda: LabelledImages(**config.data).count())
    trunk = choose("model.name", config.model.name, TRUNKS)
    options = {"dtype": jnp.dtype(config.model.dtype), "remat": config.model.remat}
    return classifier(
        hrnet.Classifier(trunk(**options), config.data.classes),
        LabelledImages(**config.data),
        Optimizer(**config.optim),
        Options(**config.train),
        seed=config.seed,
        eval_batch_size=config.eval.batch_size,
        label_smoothing=config.loss.label_smoothing,
        preprocess=normalize.imagenet,
    )


def choose(field: str, name: str, table: dict[str, Any]) -> Any:
    """table[name]. Raises ValueError with the possible names."""
    if name not in table:
        raise ValueError(f"{field} is {name!r}: expected one of {', '.join(table)}")
    return table[name]


def make_net(config: ConfigDict) -> nn.Module:
    """The pose network that the configuration names."""
    joints = len(KeypointImages(**config.data).layout.partners)
    options = {"dtype": jnp.dtype(config.model.dtype), "remat": config.model.remat}
    made = choose("model.name", config.model.name, {**TRUNKS, **BASELINES})
    if config.model.name in BASELINES:
        make, width = made
        return hrnet.SimpleBaseline(make(**options), joints, width)
    return hrnet.PoseNet(made(finest_only=True, **options), joints)


def trunk_of(variables: Any) -> Any:
    """The trunk's part of a pose network's variables."""
    return {kind: variables[kind]["trunk"] for kind in ("params", "batch_stats")}


def read_trunk(path: str, net: Any, variables: Any) -> Any:
    """The trunk's variables from a PyTorch file of a classifier, whose last module has further exchanges.

    Args:
      path: the file.
      net: the pose network.
      variables: of the pose network, or their shapes.
    """
    from facejax.interop import hrnet_torch, names  # only published weights need them

    whole = hrnet.Classifier(net.trunk.clone(finest_only=False, parent=None))
    template = jax.eval_shape(lambda key: whole.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    return names.subtree(trunk_of(hrnet_torch.load(path, template)), trunk_of(variables))


if __name__ == "__main__":
    app.main(get_config, build)
