"""HRNet: keypoints from a map whose resolution was never lost.

    python -m experiments.hrnet                         # 68 landmarks of rendered faces, two cores
    python -m experiments.hrnet --config=stride32       # down to stride 32 and up again, at the same cost
    python -m experiments.hrnet --config=coco_w32_256x192 --config.data.path=DIR --config.model.weights=hrnet_w32.pth
    python -m experiments.hrnet --config=coco_w32_256x192 --config.data.path=DIR --eval_only --workdir= ...
        --config.data.detections=FILE.json --config.eval.weights=pose_hrnet_w32_256x192.pth
    python -m experiments.hrnet --config=mpii_w32 --config.data.path=DIR
    python -m experiments.hrnet --config=imagenet_w18 --config.data.path=DIR    # DIR/train/class/*.jpg, DIR/val/...

COCO's DIR holds annotations/person_keypoints_{train,val}2017.json and images/{train,val}2017/*.jpg; MPII's holds
annot/{train,valid}.json and annot/gt_valid.mat of HRNet's authors, and images/*.jpg. `model.weights` is their
classifier of ImageNet, from which their pose networks start. Four GPUs each.

Published (the authors' code). COCO val2017 AP with detected people and flip test: W32 74.4 (256x192), 75.8 (384x288);
W48 75.1, 76.3; ResNet-50 70.4. MPII PCKh, W32: 90.3 at 0.5, 37.7 at 0.1. ImageNet top-1 error: small v1 27.7, small v2
24.9, W18 23.2, W32 21.5, W48 20.7.
"""

from __future__ import annotations

import pathlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import classification_common as classification
from facejax.backbones import hrnet, resnet
from facejax.data import people, pipeline
from facejax.data.readers.people import CocoPeople, PeopleSource, read_mpii, read_mpii_truth
from facejax.data.synthetic import faces
from facejax.metrics import keypoints, landmarks
from facejax.ops import heatmaps
from facejax.train import (
    Experiment,
    Mean,
    Options,
    Report,
    TrainState,
    app,
    map_batches,
    new_figure,
    optim,
    supervised_step,
)
from facejax.train.claims import Claim

MEAN, DEVIATION = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])  # of ImageNet
STRIDE = 4

BASE = {
    "seed": 0,
    "data": {
        "kind": "face_world",  # or "coco", "mpii"
        "path": "",
        "detections": "",  # COCO's result file with people's boxes; empty evaluates at the annotated boxes
        "data_dir": "",
        "image_size": (64, 64),  # height, width
        "enlarge": 1.0,  # the region that is cut out, in parts of the person's box
        "scale": 0.15,
        "rotation": 20.0,
        "flip": 0.5,
        "half_body": 0.0,
        "sigma": 1.5,  # of the targets, in pixels of the maps
        "threads": 2,
        "workers": 0,
    },
    "model": {
        "name": "tiny",
        "weights": "",  # a PyTorch file of an ImageNet classifier, whose trunk is begun with
        "dtype": "float32",
    },
    "optim": {
        "name": "adam",
        "schedule": {"kind": "cosine", "peak": 4e-3, "warmup": 20, "boundaries": (), "power": 1.0},
    },
    "train": asdict(Options(batch_size=32, steps=200)),
    "eval": {
        "batch_size": 100,
        "decode": "shift",  # a quarter of a pixel; or "peak", "taylor"
        "flip": True,
        "weights": "",  # a PyTorch file of a pose network
    },
}
CLASSIFIER_BASE = {
    **classification.BASE,
    "model": {"name": "w18", "dtype": "bfloat16"},
    "optim": {
        **classification.BASE["optim"],
        "nesterov": True,
        "weight_decay": 1e-4,
        "schedule": {**classification.BASE["optim"]["schedule"], "boundaries": ()},
    },
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
    """A run of the authors on 4 GPUs: Adam 1e-3, a tenth of it from the first epoch named, again from the second."""
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
    """COCO's 149,813 annotated people of train2017."""
    return body("coco", name, size, 149_813, **{"scale": 0.35, "rotation": 45.0, "half_body": 0.3, **options})


def imagenet(name: str) -> dict[str, Any]:
    """SGD 0.05 with Nesterov's momentum, a tenth after 30, 60 and 90 of 100 epochs, 32 images on each of 4 GPUs."""
    schedule = {"kind": "step", "peak": 0.05, "boundaries": (0.3, 0.6, 0.9)}
    return {
        "data": classification.IMAGENET,
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
LAYOUTS = {"face_world": people.FACE_68, "coco": people.COCO, "mpii": people.MPII}
DECODERS = {
    "peak": lambda maps, sigma: heatmaps.peaks(maps),
    "shift": lambda maps, sigma: heatmaps.decode(maps),
    "taylor": lambda maps, sigma: heatmaps.decode_taylor(maps, sigma=sigma),
}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(CLASSIFIER_BASE if preset.startswith("imagenet") else BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    if "classes" in config.data:
        trunk = choose("model.name", config.model.name, TRUNKS)(dtype=jnp.dtype(config.model.dtype))
        return classification.classifier(config, hrnet.Classifier(trunk, config.data.classes), preprocess=preprocess)
    layout = choose("data.kind", config.data.kind, LAYOUTS)
    choose("eval.decode", config.eval.decode, DECODERS)
    net, sigma, batch = make_net(config), config.data.sigma, config.train.batch_size
    size, joints = tuple(config.data.image_size), len(layout.partners)
    tx = optim.from_config(config.optim, config.train.steps)

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((2, *size, 3)), train=False)
        variables = {**variables, "params": hrnet.small_kernels(rng, variables["params"])}
        if config.model.weights:
            variables = with_trunk(config, net, variables)
        return TrainState.create(rng, variables["params"], tx, model_state=variables["batch_stats"])

    def loss_fn(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        del rng
        variables = {"params": params, "batch_stats": batch_stats}
        maps, updated = net.apply(variables, preprocess(batch["image"]), train=True, mutable=["batch_stats"])
        targets, weights = heatmaps.gaussian_maps(
            batch["points"] / STRIDE, maps.shape[1:3], sigma=sigma, visible=batch["visible"]
        )
        losses = heatmaps.squared_error(maps, targets, weights)
        errors = jnp.linalg.norm(heatmaps.decode(maps)[0] - batch["points"] / STRIDE, axis=-1)
        metrics = {"loss": Mean.of(losses), "error": Mean.of(errors, weights > 0)}  # in pixels of the maps
        return losses.mean(), (updated["batch_stats"], metrics)

    def train_data() -> Any:
        options = {name: config.data[name] for name in ("scale", "rotation", "flip", "half_body")}
        load = people.loader(size, layout, people.Augmentation(**options), config.data.enlarge)
        return pipeline.train_batches(
            training_people(config.data),
            load,
            batch,
            seed=config.seed,
            threads=config.data.threads,
            workers=config.data.workers,
        )

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params, "batch_stats": state.model_state}
        if config.eval.weights:
            from facejax.interop import hrnet_torch  # only published weights need it

            variables = hrnet_torch.load(config.eval.weights, jax.eval_shape(lambda v: v, variables))
        source, judge = tested_people(config)
        return judge(find(config, net, variables, source, layout))

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_fn, tx, microbatches=config.train.microbatches),
        train_data=train_data,
        batch={
            "image": jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8),
            "points": jax.ShapeDtypeStruct((batch, joints, 2), jnp.float32),
            "visible": jax.ShapeDtypeStruct((batch, joints), jnp.bool_),
        },
    )


def choose(field: str, name: str, table: dict[str, Any]) -> Any:
    """table[name], or what could have been chosen."""
    if name not in table:
        raise ValueError(f"{field} is {name!r}: expected one of {', '.join(table)}")
    return table[name]


def make_net(config: ConfigDict) -> nn.Module:
    """The pose network that the configuration names."""
    joints, dtype = len(LAYOUTS[config.data.kind].partners), jnp.dtype(config.model.dtype)
    made = choose("model.name", config.model.name, {**TRUNKS, **BASELINES})
    if config.model.name in BASELINES:
        make, width = made
        return hrnet.SimpleBaseline(make(dtype=dtype), joints, width)
    return hrnet.PoseNet(made(finest_only=True, dtype=dtype), joints)


def with_trunk(config: ConfigDict, net: Any, variables: Any) -> Any:
    """The variables with the trunk of the classifier in `model.weights`, which has a few exchanges more."""
    from facejax.interop import hrnet_torch  # only published weights need it

    if config.model.name not in TRUNKS:
        raise ValueError(f"model.weights: expected a model.name of {', '.join(TRUNKS)}, not {config.model.name!r}")
    whole = hrnet.Classifier(net.trunk.clone(finest_only=False, parent=None))
    template = jax.eval_shape(lambda key: whole.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    published = hrnet_torch.load(config.model.weights, template)

    def taken(ours: Any, theirs: Any) -> Any:
        return {k: taken(v, theirs[k]) for k, v in ours.items()} if isinstance(ours, dict) else jnp.asarray(theirs)

    return {kind: {**tree, "trunk": taken(tree["trunk"], published[kind]["trunk"])} for kind, tree in variables.items()}


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, 3] -> mean 0 and deviation 1 of ImageNet's channels."""
    return (images.astype(jnp.float32) - MEAN) / DEVIATION


class FaceWorld:
    """The face world's landmark task as examples of `people`: the whole picture around one face."""

    def __init__(self, split: str, data_dir: str):
        self._source = faces.load("landmarks", split, data_dir or None)
        self._side = faces.TASKS["landmarks"].image_size

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example, side = self._source[index], self._side
        points = np.asarray(example["landmarks68"]) - 0.5  # from pixels' corners to their centres
        place = {"centre": (side / 2, side / 2), "size": (side, side)}
        return {"image": example["image"], "points": points, "visible": np.ones(len(points), bool), **place}


def training_people(data: ConfigDict) -> Any:
    """Everybody to train on."""
    root = pathlib.Path(data.path).expanduser()
    if data.kind == "face_world":
        return FaceWorld("train", data.data_dir)
    if data.kind == "mpii":
        return PeopleSource(read_mpii(root / "annot/train.json", root / "images"))
    annotations = root / "annotations/person_keypoints_train2017.json"
    return PeopleSource(CocoPeople(annotations, root / "images/train2017").people())


def tested_people(config: ConfigDict) -> tuple[Any, Callable[[dict[str, np.ndarray]], Report]]:
    """Everybody to find keypoints of, and what makes a report of those that were found."""
    data, root = config.data, pathlib.Path(config.data.path).expanduser()
    if data.kind == "face_world":
        source = FaceWorld("test", data.data_dir)
        return source, lambda found: judge_faces(config, source, found)
    if data.kind == "mpii":
        source = PeopleSource(read_mpii(root / "annot/valid.json", root / "images"))
        truth = read_mpii_truth(root / "annot/gt_valid.mat")
        return source, lambda found: judge_mpii(config, source, found, truth)
    annotated = CocoPeople(root / "annotations/person_keypoints_val2017.json", root / "images/val2017")
    source = PeopleSource(annotated.detected(data.detections) if data.detections else annotated.people())
    return source, lambda found: judge_coco(config, source, found, annotated)


def find(config: ConfigDict, net: Any, variables: Any, source: Any, layout: people.Layout) -> dict[str, np.ndarray]:
    """Keypoints of every example, in pixels of its picture.

    Returns:
      "points" by the chosen decoder and one entry by each other decoder's name, [N, K, 2]; "heights" [N, K] of the
      maps' peaks.
    """
    size, enlarge = tuple(config.data.image_size), config.data.enlarge

    def load(indices: Any) -> dict[str, np.ndarray]:
        crops = [people.plain(e, size, enlarge) for e in pipeline.fetch(source, indices)]
        return {name: np.stack([c[name] for c in crops]) for name in crops[0]}

    def predict(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images = preprocess(batch["image"])
        maps = net.apply(variables, images, train=False)
        if config.eval.flip:
            of_mirror = net.apply(variables, images[:, :, ::-1], train=False)
            maps = heatmaps.flip_average(maps, of_mirror, layout.partners)
        decoded = {name: decode(maps, config.data.sigma) for name, decode in DECODERS.items()}
        points = {name: STRIDE * points for name, (points, _) in decoded.items()}
        return {**points, "heights": decoded["peak"][1], "matrix": batch["matrix"]}

    found = map_batches(predict, variables, range(len(source)), config.eval.batch_size, load)
    matrix = found.pop("matrix").astype(np.float64)
    back = np.linalg.inv(matrix[:, :, :2])
    placed = {
        name: np.einsum("nij,nkj->nki", back, found[name] - matrix[:, None, :, 2]).astype(np.float32)
        for name in DECODERS
    }
    return {**placed, "points": placed[config.eval.decode], "heights": found["heights"]}


def judge_faces(config: ConfigDict, source: Any, found: dict[str, np.ndarray]) -> Report:
    """Errors in percent of sqrt(width * height) of the landmarks' box, because half profiles have no eye distance."""
    truth = np.stack([source[i]["points"] for i in range(len(source))])
    sizes = landmarks.face_sizes(truth, "box")
    errors = {n: landmarks.normalized_mean_error(found[n], truth, sizes) for n in ("points", *DECODERS)}
    metrics = {
        "nme": 100 * float(errors["points"].mean()),
        "failures_at_8": 100 * landmarks.failure_rate(errors["points"], 0.08),
        "auc_at_8": 100 * landmarks.area_under_curve(errors["points"], 0.08),
        **{f"nme_{name}": 100 * float(errors[name].mean()) for name in DECODERS},
    }
    order = np.argsort(errors["points"])
    rows = order[np.linspace(0, len(order) - 1, 10).astype(int)]
    return Report(
        metrics,
        figures={
            "Faces from the smallest error to the largest: true (green) and found (red)": overlay(
                config, source, found, rows, truth
            ),
            "Faces within an error": error_figure(errors["points"]),
        },
        arrays={"landmarks": found["points"], "errors": errors["points"]},
    )


def judge_coco(config: ConfigDict, source: Any, found: dict[str, np.ndarray], annotated: CocoPeople) -> Report:
    """Rescored, thinned out by OKS, and measured as COCO does."""
    crops = config.data.image_size
    scores = keypoints.rescored([p.score for p in source.people], found["heights"])
    areas = [np.prod(config.data.enlarge * people.shaped(p.size, crops[1] / crops[0])) for p in source.people]
    of_picture = defaultdict(list)
    for number, person in enumerate(source.people):
        of_picture[person.image_id].append(number)
    detections = []
    for image_id in annotated.image_ids:
        numbers = np.array(of_picture[image_id], int)
        points, score = found["points"][numbers], scores[numbers]
        kept = keypoints.oks_nms(points, score, np.array(areas)[numbers])
        detections.append(keypoints.Detections(points[kept], score[kept]))
    truth = [keypoints.People(**annotated.truth(image_id)) for image_id in annotated.image_ids]
    metrics = {k: 100 * v for k, v in keypoints.coco_keypoint_ap(detections, truth).items()}
    return body_report(config, source, found, metrics, {"scores": scores})


def judge_mpii(config: ConfigDict, source: Any, found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> Report:
    """PCKh."""
    sizes = keypoints.head_sizes(truth["heads"])
    metrics = keypoints.pckh(found["points"], truth["points"], truth["visible"], sizes)
    return body_report(config, source, found, {"pckh": metrics.pop("mean"), **metrics}, {})


def body_report(
    config: ConfigDict, source: Any, found: dict[str, np.ndarray], metrics: dict[str, float], arrays: dict[str, Any]
) -> Report:
    """Numbers, and the first ten people with what was found on them."""
    picture = overlay(config, source, found, np.arange(min(10, len(source))))
    return Report(metrics, figures={"Keypoints found": picture}, arrays={"keypoints": found["points"], **arrays})


def overlay(
    config: ConfigDict, source: Any, found: dict[str, np.ndarray], rows: np.ndarray, truth: np.ndarray | None = None
) -> Any:
    """Crops with their keypoints; points and links in red, what is true in green."""
    size, layout = tuple(config.data.image_size), LAYOUTS[config.data.kind]
    columns = -(-len(rows) // 2)
    figure, axes = new_figure(2 * columns, 4 * size[0] / size[1], 2, columns)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, i in zip(axes.ravel(), rows, strict=False):
        crop = people.plain(source[i], size, config.data.enlarge)
        axis.imshow(crop["image"])
        if truth is not None:
            axis.plot(*people.moved(truth[i], crop["matrix"]).T, ".", color="lime", markersize=2)
        points = people.moved(found["points"][i], crop["matrix"])
        for link in layout.links:
            axis.plot(*points[list(link)].T, color="red", linewidth=1)
        axis.plot(*points.T, ".", color="red", markersize=2)
        axis.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5))
    return figure


def error_figure(errors: np.ndarray) -> Any:
    """The cumulative error curve up to 15 %."""
    figure, axis = new_figure(5, 3.2)
    levels = np.linspace(0, 0.15, 151)
    axis.plot(100 * levels, 100 * landmarks.cumulative_error(errors, levels))
    axis.set(xlabel="error, % of the face's size", ylabel="faces, %", ylim=(0, 101), xlim=(0, 15))
    return figure


if __name__ == "__main__":
    app.main(get_config, build)
