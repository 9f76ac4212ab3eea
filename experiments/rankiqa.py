"""RankIQA: a network ranks pictures that were made worse step by step, then learns a score from a few judged ones.

    python -m experiments.rankiqa                                            # rendered faces, two cores
    python -m experiments.rankiqa --config=from_scratch                      # the few labelled ones only
    python -m experiments.rankiqa --config=live --config.data.path=PICTURES --config.opinions.path=databaserelease2 \
        --config.model.weights=vgg16.pth                                     # VGG-16, 70,000 steps
    python -m experiments.rankiqa --config=tid2013 ... --config.opinions.path=tid2013       # 60,000 steps

PICTURES holds FOLDER/picture.bmp, at least 224 pixels high and wide, to be made worse (the authors': Waterloo or the
validation set of Places2); opinions are those of LIVE's release 2, of TID2013, or of a CSV with the columns name,
opinion and perhaps reference. `seed` draws the fifth of the references that is tested on: the protocol is the mean of
`--seeds 10`. The weights are torchvision's.

Published SROCC of the fine-tuned network: LIVE 0.981, TID2013 0.780, CSIQ 0.947; LCC: LIVE 0.982, TID2013 0.799, CSIQ
0.960. In the face world levels of our own distortions stand for opinions.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import arcface
from experiments import quality_common as common
from facejax.backbones import vgg
from facejax.data import readers, sources, transforms
from facejax.data.distortions import DISTORTIONS
from facejax.data.readers import opinions
from facejax.metrics import quality
from facejax.quality import rankiqa, tinyfqnet
from facejax.train import Experiment, Report, app, image_grid, map_batches, new_figure, optim
from facejax.train.claims import Claim

NONE = dict.fromkeys(DISTORTIONS, ())
BASE = {
    "seed": 0,
    "data": common.DATA,
    "recogniser": common.RECOGNISER,
    "levels": {
        **NONE,
        "blur": (0.5, 0.8, 1.2, 1.8, 2.6),
        "noise": (0.0005, 0.002, 0.006, 0.016, 0.04),
        "jpeg": (60.0, 35.0, 20.0, 12.0, 6.0),
        "resolution": (1.3, 1.7, 2.3, 3.2, 4.5),
    },
    "drawn": 0,  # of the kinds of distortion, how many a step ranks; 0 is all
    "labelled": 20,  # pictures of known level: how many
    "opinions": {
        "path": "",  # what facejax.data.readers.opinions opens; empty takes the labelled pictures
        "batch": 30,  # pictures a step of fine-tuning
        "peak": 0.0,  # rate of fine-tuning, halved at each of `boundaries`
        "boundaries": (),
        "crops": 30,  # of a picture that is scored
    },
    "model": {"name": "tiny", "weights": ""},  # weights: of "vgg16"
    "loss": {"margin": 1.0, "ranking": 0.6},  # the part of the steps that ranks
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "decay": "all",
        "schedule": {"kind": "cosine", "peak": 3e-3, "warmup": 0, "boundaries": ()},
    },
    "train": {**common.TRAIN, "devices": 1},
    "eval": common.EVAL,
}


def published(path: str, batch: int, peak: float, steps: int, fine: float, levels: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' run (their solvers): 50,000 steps of ranking, `steps` of fine-tuning."""
    return {
        "data": {"source": "path", "image_size": 224},
        "levels": {**NONE, **levels},
        "opinions": {"path": path, "peak": fine, "boundaries": tuple(range(5000, steps, 5000))},
        "model": {"name": "vgg16"},
        "loss": {"margin": 10.0, "ranking": 50_000},
        "optim": {
            "name": "sgd",
            "weight_decay": 5e-4,
            "decay": "kernels",
            "schedule": {"kind": "step", "peak": peak, "boundaries": (10_000, 20_000, 30_000, 40_000)},
        },
        "train": {"batch_size": batch, "steps": 50_000 + steps},
        "eval": {"batch_size": 120},
    }


LIVE = {
    "kernel_blur": (7.0, 15.0, 39.0, 91.0, 199.0),
    "noise": tuple(2.0**power for power in (-10, -7.5, -5.5, -3.5, 0)),
    "jpeg": (43.0, 12.0, 7.0, 4.0, 0.0),
    "jpeg2000": tuple(24 / bits for bits in (0.46, 0.16, 0.07, 0.04, 0.02)),
}
TID2013 = {
    **{kind: LIVE[kind][:4] for kind in ("kernel_blur", "jpeg", "jpeg2000")},
    "noise": (0.001, 0.005, 0.01, 0.05),
    "colour_noise": (0.0140, 0.0198, 0.0343, 0.0524),
    "high_frequency_noise": (0.001, 0.005, 0.01, 0.05),
    "impulses": (0.005, 0.01, 0.05, 0.1),
    "quantisation": (27.0, 39.0, 55.0, 76.0),
    "pattern": (30.0, 70.0, 150.0, 300.0),
    "blocks": (2.0, 4.0, 8.0, 16.0),
    "brighter": (15.0, 30.0, 45.0, 60.0),
    "darker": (-15.0, -30.0, -45.0, -60.0),
    "more_contrast": (1.2, 1.4, 1.6, 1.8),
    "less_contrast": (0.85, 0.7, 0.55, 0.4),
    "saturation": (0.4, 0.0, -0.4, -0.8),
    "multiplicative_noise": (0.05, 0.09, 0.13, 0.2),
    "colour_quantisation": (64.0, 32.0, 16.0, 8.0),
    "aberration": (2.0, 6.0, 10.0, 14.0),
}
"""All that the authors make but the denoising: 18 lists."""
PRESETS = {
    "synthetic": {},
    "from_scratch": {"loss.ranking": 0.0},
    "live": published("databaserelease2", 48, 1e-5, 20_000, 1e-6, LIVE),
    "tid2013": {**published("tid2013", 45, 1e-4, 10_000, 1e-5, TID2013), "drawn": 9},
}
CLAIM = Claim(
    "rankiqa.ranking",
    "a network first trained to rank distorted faces predicts their distortion level better than one trained on the "
    "few labelled faces only",
    metric="srocc",
    better="higher",
    method="synthetic",
    baseline=("from_scratch",),
)


class Raw(nn.Module):
    """A trunk that wants BGR of 0..255, without the mean taken off: [N, H, W, 3] in -1..1 -> [N]."""

    trunk: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        return self.trunk(images[..., ::-1] * 127.5 + 127.5, train=train)[:, 0]


MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
"""What torchvision's networks expect taken off RGB of 0..1, and divided by."""
NETS = {"tiny": tinyfqnet.TinyFQNet, "vgg16": lambda: Raw(vgg.vgg16(num_classes=1))}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run.

    In the face world the first part of a batch is whole ladders of distortion, the rest are labelled pictures. With
    opinions from a path there are batches of ladders first, then batches of judged pictures.
    """
    if config.model.name not in NETS:
        raise ValueError(f"model.name is {config.model.name!r}: expected one of {', '.join(NETS)}")
    if config.model.weights and config.model.name != "vgg16":
        raise ValueError(f"model.weights is given, but model.name is {config.model.name!r}: expected 'vgg16'")
    size, steps, share = config.train.batch_size, config.train.steps, config.loss.ranking
    ranking = round(share * steps) if share < 1 else int(share)
    ladder = ladder_size(config)
    sources, judged = size // ladder, bool(config.opinions.path)
    if judged and (size % ladder or config.opinions.batch > size):
        raise ValueError(f"train.batch_size is {size}: expected ladders of {ladder}, and opinions.batch at most")
    if judged and not config.opinions.peak > 0:
        raise ValueError(f"opinions.peak is {config.opinions.peak}: expected a rate of fine-tuning above 0")
    if not judged and (not sources or size == sources * ladder):
        raise ValueError(f"train.batch_size is {size}: expected room for ladders of {ladder} and labelled pictures")
    net = NETS[config.model.name]()

    pool = functools.cache(lambda: labelled(config))

    def source() -> Any:
        return _clean(common.people(config.data, "train"))

    def load(examples: Any, rngs: Any) -> dict[str, np.ndarray]:
        rows = [row for e, rng in zip(examples, rngs, strict=True) for row in distorted(config, e["image"], rng)]
        rows += [pool()[int(rngs[0].integers(config.labelled))] for _ in range(size - len(rows))]
        return common.flipped_batch(rows, [rngs[0]] * len(rows))

    def loss(scores: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        if len(scores) != size:
            raise ValueError(f"{len(scores)} of {size} pictures meet on a device: expected all, ladders are not cut")
        group = jnp.where(batch["kind"] < 0, -1 - jnp.arange(size), batch["kind"])
        ranked = rankiqa.ranking_loss(scores, batch["level"], group, margin=config.loss.margin)
        marked = batch["kind"] == JUDGED
        squares = jnp.sum((scores - batch["opinion"]) ** 2, where=marked)
        error = 0.5 * (squares / jnp.maximum(jnp.sum(marked), 1))
        return jnp.where(batch["step"][0] < ranking, ranked, error)

    def start(variables: Any) -> Any:
        if not config.model.weights:
            return variables
        trunk = variables["params"]["trunk"]
        last = {"fc8": trunk["classifier"]["fc8"]}
        template = {**trunk, "classifier": {k: v for k, v in trunk["classifier"].items() if k not in last}}
        read = common.read_later(lambda: read_weights(config.model.weights, template), template)
        return {"params": {"trunk": {**read, "classifier": {**read["classifier"], **last}}}}

    fields = {"level": jnp.int32, "kind": jnp.int32, "opinion": jnp.float32}
    wired = common.regression(
        config,
        net,
        loss,
        source,
        {name: jax.ShapeDtypeStruct((size,), dtype) for name, dtype in fields.items()},
        load=load,
        batch_size=sources,
        tx=optimizer(config, ranking) if judged else None,
        start=start,
    )

    def train_data() -> Any:
        paths, values = opinions_of(config, "train")
        told = common.Rows({"path": np.array([str(path) for path in paths]), "opinion": values})
        return Staged(
            common.batches(config, to_distort(config, "train"), functools.partial(load_ladders, config), sources),
            common.batches(config, told, functools.partial(load_judged, config), config.opinions.batch),
            ranking,
        )

    def evaluate(state: Any) -> Report:
        variables = {"params": state.params, **state.model_state}
        if judged:
            clean = to_distort(config, "test")
            images = [transforms.decode(clean[i]["image"]) for i in range(min(len(clean), 10))]
            return common.together(ladders(config, net, variables, images), with_opinions(config, net, variables))
        test = common.people(config.data, "test").people
        paired = len(np.unique(test)) < len(test)
        report = wired.evaluate(state) if paired else Report({})
        clean = _clean(common.people(config.data, "test"))
        images = [clean[i]["image"] for i in range(min(len(clean), 40))]
        return common.together(ladders(config, net, variables, images), report)

    return dataclasses.replace(wired, evaluate=evaluate, **({"train_data": train_data} if judged else {}))


JUDGED, UNUSED = -1, -2
"""Kinds of the pictures of a batch that are not of a ladder."""


def ladder_size(config: ConfigDict) -> int:
    """Pictures of one content in a batch: the picture itself and its levels, for every kind of distortion of a step."""
    rungs = [len(config.levels[kind]) + 1 for kind in kinds(config)]
    if not 0 <= config.drawn <= len(rungs) or (config.drawn and len(set(rungs)) > 1):
        raise ValueError(
            f"drawn is {config.drawn}: expected 0, or 1 to {len(rungs)} where all kinds have as many levels"
        )
    return sum(rungs[: config.drawn or None])


def kinds(config: ConfigDict) -> list[str]:
    """The kinds of distortion that have levels."""
    return [kind for kind in DISTORTIONS if len(config.levels[kind])]


def distorted(config: ConfigDict, image: np.ndarray, rng: np.random.Generator, drawn: int = 0) -> list[dict[str, Any]]:
    """All levels of all kinds of distortion of one picture, or of `drawn` kinds; itself at level 0 of each."""
    rows, numbers = [], list(DISTORTIONS)
    chosen = kinds(config)
    for kind in rng.choice(chosen, drawn, replace=False) if drawn else chosen:
        images = [image, *(DISTORTIONS[kind](image, strength, rng) for strength in config.levels[kind])]
        rows += [
            {"image": x, "level": np.int32(level), "kind": np.int32(numbers.index(kind)), "opinion": np.float32(-level)}
            for level, x in enumerate(images)
        ]
    return rows


def labelled(config: ConfigDict) -> list[dict[str, Any]]:
    """The few pictures whose level is told: always the same for a seed. Their kind is `JUDGED`."""
    known = _clean(common.people(config.data, "train"))
    rng = np.random.default_rng([config.seed, 1])
    rows = []
    for place in rng.choice(len(known), config.labelled):
        ladder = distorted(config, known[int(place)]["image"], rng)
        rows.append({**ladder[int(rng.integers(len(ladder)))], "kind": np.int32(JUDGED)})
    return rows


def _clean(known: common.Faces) -> common.Rows:
    """Pictures without a fault; all of them, where faults are not known."""
    return common.Rows({"image": common.take(known.images, np.flatnonzero(~(known.fault > 0)))})


def to_distort(config: ConfigDict, split: str) -> sources.Subset:
    """Encoded pictures of data.path: the first four fifths ("train"), or the others ("test")."""
    if not config.data.path:
        raise ValueError("data.path is empty: expected a folder FOLDER/picture.bmp of pictures to make worse")
    found = readers.read(config.data.path)
    cut = len(found) * 4 // 5
    return sources.Subset(found, range(cut) if split == "train" else range(cut, len(found)))


def opinions_of(config: ConfigDict, split: str) -> tuple[list[pathlib.Path], np.ndarray]:
    """Files and opinions [N] of four fifths of the references drawn by the seed ("train"), or of the rest ("test")."""
    found = opinions.read(config.opinions.path)
    names = np.random.default_rng(config.seed).permutation(np.unique(found.reference))
    cut = round(0.8 * len(names))
    if not 0 < cut < len(names):
        raise ValueError(f"{config.opinions.path} holds pictures of {len(names)} references: expected 3 or more")
    rows = np.flatnonzero(np.isin(found.reference, names[:cut] if split == "train" else names[cut:]))
    return [found.paths[i] for i in rows], found.opinion[rows].astype(np.float32)


def cropped(image: np.ndarray, size: int, rng: np.random.Generator, name: str) -> np.ndarray:
    """A square [size, size, 3] from anywhere in a picture; `name` goes into the error."""
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise ValueError(f"{name} has {height} x {width} pixels: expected {size} x {size} or more")
    top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
    return image[top : top + size, left : left + size]


def load_ladders(config: ConfigDict, examples: Sequence[Any], rngs: Sequence[Any]) -> dict[str, np.ndarray]:
    """A batch of ladders: whole pictures are made worse, and a square of each is taken from a place of its own."""
    rows = []
    for example, rng in zip(examples, rngs, strict=True):
        image = transforms.decode(example["image"])
        rows += [
            {**row, "image": cropped(row["image"], config.data.image_size, rng, "a picture of data.path")}
            for row in distorted(config, image, rng, config.drawn)
        ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def load_judged(config: ConfigDict, examples: Sequence[Any], rngs: Sequence[Any]) -> dict[str, np.ndarray]:
    """A batch of judged pictures, a square of each; filled up to the size of the others with what does not count."""
    size, rest = config.data.image_size, config.train.batch_size - len(examples)
    images = [
        cropped(transforms.decode(pathlib.Path(e["path"]).read_bytes()), size, rng, e["path"])
        for e, rng in zip(examples, rngs, strict=True)
    ]
    return {
        "image": np.pad(np.stack(images), ((0, rest), (0, 0), (0, 0), (0, 0))),
        "level": np.zeros(config.train.batch_size, np.int32),
        "kind": np.repeat(np.array([JUDGED, UNUSED], np.int32), (len(examples), rest)),
        "opinion": np.pad(np.array([e["opinion"] for e in examples], np.float32), (0, rest)),
    }


class Staged:
    """The first `steps` batches of one endless stream, then those of another; its position is both of theirs."""

    def __init__(self, first: Any, second: Any, steps: int):
        self._streams, self._left = (first, second), steps

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        self._left -= 1
        return next(self._streams[self._left < 0])

    def get_state(self) -> list[Any]:
        return [self._left, *(stream.get_state() for stream in self._streams)]

    def set_state(self, state: list[Any]) -> None:
        self._left = state[0]
        for stream, part in zip(self._streams, state[1:], strict=True):
            stream.set_state(part)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def optimizer(config: ConfigDict, ranking: int) -> optax.GradientTransformation:
    """Ranking, then fine-tuning, with the authors' multiples of the rate.

    Biases learn at 2 times the rate, the last layer at 10 times, while fine-tuning fc6 and fc7 too; so their biases
    learn at 20 times.
    """
    options = config.optim.to_dict()
    fine = optim.schedule(
        "step", config.opinions.peak, config.train.steps, boundaries=config.opinions.boundaries, factor=0.5
    )
    rate = optim.schedule(steps=config.train.steps, **options.pop("schedule"))

    def layers(*names: str) -> Any:
        return lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: any(getattr(entry, "key", None) in names for entry in path), params
        )

    return optax.chain(
        optim.optimizer(options.pop("name"), optax.join_schedules([rate, fine], [ranking]), **options),
        optax.masked(optax.scale(2.0), lambda params: jax.tree.map(lambda p: p.ndim == 1, params)),
        optax.masked(optax.scale(10.0), layers("fc8")),
        optax.masked(optax.scale_by_schedule(lambda n: jnp.where(n < ranking, 1.0, 10.0)), layers("fc6", "fc7")),
    )


def read_weights(path: str, template: Any) -> Any:
    """VGG-16 as torchvision publishes it, without its last layer, for BGR of 0..255.

    Its first layer expects RGB less a mean and divided by a deviation: that is put into its kernel and bias, which is
    exact but for the black border that it now sees around a picture in place of a grey one.
    """
    from facejax.interop import torchvision  # only published weights need it

    found = torchvision.load(path, {"params": template})["params"]
    kernel = found["conv1_1"]["kernel"] / (255 * DEVIATION[:, None])
    bias = found["conv1_1"]["bias"] - np.einsum("hwio,i->o", kernel, 255 * MEAN)
    first = {"kernel": kernel[:, :, ::-1].astype(np.float32), "bias": bias.astype(np.float32)}
    return {**found, "conv1_1": first}


def with_opinions(config: ConfigDict, net: Any, variables: Any) -> Report:
    """How well a score, the mean over random squares, follows the opinions of pictures of unseen references."""
    paths, told = opinions_of(config, "test")
    crops, size = config.opinions.crops, config.data.image_size

    def load(part: list[tuple[int, pathlib.Path]]) -> np.ndarray:
        return np.stack([squares(i, path) for i, path in part])

    def squares(number: int, path: pathlib.Path) -> np.ndarray:
        image, rng = transforms.decode(path.read_bytes()), np.random.default_rng([config.seed, number])
        return np.stack([cropped(image, size, rng, str(path)) for _ in range(crops)])

    def one(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
        scores = net.apply(variables, arcface.preprocess(batch.reshape(-1, *batch.shape[2:])), train=False)
        return {"score": scores.reshape(-1, crops).mean(1)}

    together = max(config.eval.batch_size // crops, 1)
    scores = map_batches(one, variables, list(enumerate(paths)), together, load)["score"]
    figure, axis = new_figure(4, 3.4)
    axis.plot(told, scores, ".", ms=4)
    axis.set(xlabel="opinion", ylabel="score")
    return Report(
        {"srocc": quality.spearman(scores, told), "lcc": float(np.corrcoef(scores, told)[0, 1])},
        figures={"Score over opinion": figure},
        arrays={"scores": scores, "opinions": told},
    )


def ladders(config: ConfigDict, net: Any, variables: Any, clean: Sequence[np.ndarray]) -> Report:
    """How well levels of unseen pictures, made worse, are told: over all of them, and within a ladder.

    Args:
      config, net, variables: of the run.
      clean: pictures [H, W, 3] uint8; of larger ones than data.image_size, the same square of a whole ladder is taken.
    """
    rng, size = np.random.default_rng(0), config.data.image_size
    rows = [
        {**row, "image": cropped(row["image"], size, np.random.default_rng(i), "a picture of data.path")}
        for i, image in enumerate(clean)
        for row in distorted(config, image, rng)
    ]
    images, level, kind = (np.stack([row[name] for row in rows]) for name in ("image", "level", "kind"))
    scores = common.score(config, net, variables, images)
    starts = np.flatnonzero(level == 0)
    right = [np.mean(np.diff(scores[a:b]) < 0) for a, b in zip(starts, [*starts[1:], len(level)], strict=True)]
    figure, axis = new_figure(5, 3.2)
    for number in np.unique(kind):
        mean = [scores[(kind == number) & (level == step)].mean() for step in np.unique(level)]
        axis.plot(np.unique(level), mean, "o-", label=list(DISTORTIONS)[number])
    axis.set(xlabel="level of distortion", ylabel="mean score")
    axis.legend(frameon=False, fontsize=8, ncols=1 + len(kinds(config)) // 10)
    count = len(kinds(config))
    first = len(images) if len(starts) == count else int(starts[count])
    return Report(
        {"srocc": quality.spearman(scores, -level), "neighbours_ranked": 100 * float(np.mean(right))},
        figures={"Score over level": figure},
        images={"A ladder of each kind": image_grid(images[:first], int(starts[1]))},
    )


if __name__ == "__main__":
    app.main(get_config, build)
