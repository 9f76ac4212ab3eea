"""RankIQA: a network learns to rank images distorted at increasing levels, then a score from a few rated images.

    python -m experiments.rankiqa                                            # rendered faces, two cores
    python -m experiments.rankiqa --config=from_scratch                      # the few rated images only
    python -m experiments.rankiqa --config=live --config.data.path=IMAGES --config.opinions.path=databaserelease2 \
        --config.model.weights=vgg16.pth                                     # VGG-16, 70,000 steps
    python -m experiments.rankiqa --config=tid2013 ... --config.opinions.path=tid2013       # 60,000 steps

IMAGES holds FOLDER/image.bmp, at least 224 pixels high and wide, to be distorted (the authors': Waterloo or the
validation set of Places2); opinions are those of LIVE's release 2, of TID2013, or of a CSV with the columns name,
opinion and perhaps reference. `seed` draws the fifth of the references that is tested on: the protocol is the mean of
`--seeds 10`. The weights are torchvision's.

Published SROCC of the fine-tuned network: LIVE 0.981, TID2013 0.780, CSIQ 0.947; LCC: LIVE 0.982, TID2013 0.799, CSIQ
0.960. In the face world levels of our own distortions stand for opinions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from facejax.backbones import vgg
from facejax.data import distorted, normalize, pipeline, sources, streams, transforms
from facejax.data.distorted import RATED, Distorter
from facejax.data.distortions import DISTORTIONS
from facejax.data.quality_faces import QualityFaces
from facejax.data.readers import opinions
from facejax.evaluate import image_quality
from facejax.evaluate.quality import QualityProtocol, score
from facejax.quality import rankiqa, tinyfqnet
from facejax.recipes import scorer
from facejax.recipes.recogniser import Recogniser
from facejax.train import Experiment, Options, Report, TrainState, app, optim, warm_start
from facejax.train.claims import Claim

NONE = dict.fromkeys(DISTORTIONS, ())
FIELDS = {"level": jnp.int32, "kind": jnp.int32, "opinion": jnp.float32}
BASE = {
    "seed": 0,
    "data": asdict(QualityFaces()),
    "recogniser": asdict(Recogniser()),
    "levels": {  # strengths of each kind of distortion, from mild to strong; see facejax.data.distortions
        **NONE,
        "blur": (0.5, 0.8, 1.2, 1.8, 2.6),
        "noise": (0.0005, 0.002, 0.006, 0.016, 0.04),
        "jpeg": (60.0, 35.0, 20.0, 12.0, 6.0),
        "resolution": (1.3, 1.7, 2.3, 3.2, 4.5),
    },
    "kinds_per_image": 0,  # random kinds of distortion of an image in a step; 0 is all
    "rated": 20,  # images of known level that the second stage trains on, without opinions
    "opinions": {
        "path": "",  # what facejax.data.readers.opinions opens; empty takes the rated images
        "batch": 30,  # images a step of fine-tuning
        "peak": 0.0,  # learning rate of fine-tuning, halved at each of `boundaries`
        "boundaries": (),  # steps from the beginning of fine-tuning
        "crops": 30,  # whose mean score is the score of an image
    },
    "model": {
        "name": "tiny",  # of `NETS`
        "weights": "",  # torchvision's, of "vgg16"
    },
    "loss": {
        "margin": 1.0,  # of the hinges, in units of the score
        "ranking": 0.6,  # steps of the ranking stage; below 1 a share of all
    },
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "decay": "all",
        "schedule": {"kind": "cosine", "peak": 3e-3, "warmup": 0, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=64, steps=300, devices=1)),
    "eval": asdict(QualityProtocol()),
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
TID2013 = {  # the authors' distortions without denoising: 18 lists
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
PRESETS = {
    "synthetic": {},
    "from_scratch": {"loss.ranking": 0.0},
    "live": published("databaserelease2", 48, 1e-5, 20_000, 1e-6, LIVE),
    "tid2013": {**published("tid2013", 45, 1e-4, 10_000, 1e-5, TID2013), "kinds_per_image": 9},
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
    """A trunk whose input is BGR of 0..255 without mean subtraction: [N, H, W, 3] in -1..1 -> [N]."""

    trunk: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        return self.trunk(images[..., ::-1] * 127.5 + 127.5, train=train)[:, 0]


NETS = {"tiny": tinyfqnet.TinyFQNet, "vgg16": lambda: Raw(vgg.vgg16(num_classes=1))}


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run.

    In the face world a batch is distortion series, then rated images. With opinions from a path, batches of series come
    first, then batches of rated images.
    """
    name, rating = config.model.name, config.opinions
    if name not in NETS:
        raise ValueError(f"model.name is {name!r}: expected one of {', '.join(NETS)}")
    if config.model.weights and name != "vgg16":
        raise ValueError(f"model.weights is given, but model.name is {name!r}: expected 'vgg16'")
    distorter = Distorter(config.levels, config.kinds_per_image)
    total, steps, share, series = config.train.batch_size, config.train.steps, config.loss.ranking, distorter.size
    ranking, count = round(share * steps) if share < 1 else int(share), total // series
    if rating.path and (total % series or rating.batch > total):
        raise ValueError(f"train.batch_size is {total}: expected whole series of {series}, and opinions.batch at most")
    if rating.path and not rating.peak > 0:
        raise ValueError(f"opinions.peak is {rating.peak}: expected a learning rate of fine-tuning above 0")
    if not rating.path and (not count or total == count * series):
        raise ValueError(f"train.batch_size is {total}: expected room for series of {series} and rated images")
    data, protocol = QualityFaces(**config.data), QualityProtocol(**config.eval)
    net, recogniser, size = NETS[name](), Recogniser(**config.recogniser), data.image_size

    rated = functools.cache(
        lambda: distorter.rated(data.undegraded("train"), config.rated, np.random.default_rng([config.seed, 1]))
    )

    def load(examples: Any, rngs: Any) -> dict[str, np.ndarray]:
        rows = [row for e, rng in zip(examples, rngs, strict=True) for row in distorter.series(e["image"], rng)]
        rows += [rated()[int(rngs[0].integers(config.rated))] for _ in range(total - len(rows))]
        return pipeline.flipped_batch(rows, [rngs[0]] * len(rows))

    def train_data() -> Any:
        if not rating.path:
            return data.batches(data.undegraded("train"), count, config.seed, load)
        known = opinions.read(rating.path).split(config.seed)["train"]
        rows = sources.Rows({"path": np.array([str(path) for path in known.paths]), "opinion": known.opinion})
        return streams.Chain(
            data.batches(distorted.images_of(data.path, "train"), count, config.seed, distorter.load(size)),
            data.batches(rows, rating.batch, config.seed, distorted.load_rated(size, total)),
            ranking,
        )

    def loss(scores: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        if len(scores) != total:
            raise ValueError(f"{len(scores)} of {total} images meet on a device: expected all of them on one")
        kind, marked = batch["kind"], batch["kind"] == RATED
        group = jnp.where(kind < 0, -1 - jnp.arange(total), kind)
        ranked = rankiqa.ranking_loss(scores, batch["level"], group, margin=config.loss.margin)
        squares = jnp.sum((scores - batch["opinion"]) ** 2, where=marked)
        error = 0.5 * (squares / jnp.maximum(jnp.sum(marked), 1))
        return jnp.where(batch["step"][0] < ranking, ranked, error)

    def prepare() -> Any:
        return read_weights(config.model.weights, without_last(scorer.shapes(net, size)["params"]["trunk"]))

    def begin(variables: Any, start: Any) -> Any:
        trunk, read = variables["params"]["trunk"], warm_start.taken(start, without_last(variables["params"]["trunk"]))
        return {"params": {"trunk": {**read, "classifier": {**trunk["classifier"], **read["classifier"]}}}}

    def evaluate(state: TrainState) -> Report:
        scored = functools.partial(score, net, scorer.variables(state), batch_size=protocol.batch_size)
        if rating.path:
            source = distorted.images_of(data.path, "test")
            images = [transforms.decode(source[i]["image"]) for i in range(min(len(source), 10))]
            test = opinions.read(rating.path).split(config.seed)["test"]
            crops = distorted.Crops(test.paths, size, rating.crops, config.seed)
            rest = image_quality.assess_opinions(scored(crops), test.opinion, rating.crops)
        else:
            source, people = data.undegraded("test"), data.load("test").people
            images = [source[i]["image"] for i in range(min(len(source), 40))]
            paired = len(np.unique(people)) < len(people)
            rest = scorer.report(net, state, data, protocol, recogniser) if paired else Report({})
        return image_quality.assess_series(scored, distorter, images, size) | rest

    return Experiment(
        evaluate=evaluate,
        train_data=train_data,
        **scorer.training(
            net,
            loss,
            two_stages(config, ranking) if rating.path else optim.from_config(config.optim, steps),
            image_size=size,
            batch_size=total,
            fields={name: jax.ShapeDtypeStruct((total,), dtype) for name, dtype in FIELDS.items()},
            microbatches=config.train.microbatches,
            **({"prepare": prepare, "begin": begin} if config.model.weights else {}),
        ),
    )


def two_stages(config: ConfigDict, ranking: int) -> optax.GradientTransformation:
    """Ranking, then fine-tuning, with the authors' multiples of the learning rate.

    Biases 2, the last layer 10, and while fine-tuning fc6 and fc7 10, too; so their biases have 20.
    """
    options, rating = config.optim.to_dict(), config.opinions
    fine = optim.schedule("step", rating.peak, config.train.steps, boundaries=rating.boundaries, factor=0.5)
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


def without_last(trunk: Any) -> Any:
    """Parameters of a VGG-16 without those of its last layer."""
    return {**trunk, "classifier": {name: part for name, part in trunk["classifier"].items() if name != "fc8"}}


def read_weights(path: str, template: Any) -> Any:
    """VGG-16 as torchvision publishes it, without its last layer, for BGR of 0..255.

    torchvision's normalisation is folded into the first kernel and bias. This is exact except at the border, where the
    padding is black in place of grey.
    """
    from facejax.interop import torchvision  # only published weights need it

    found = torchvision.load(path, {"params": template})["params"]
    kernel = found["conv1_1"]["kernel"] / normalize.IMAGENET_STD[:, None]
    bias = found["conv1_1"]["bias"] - np.einsum("hwio,i->o", kernel, normalize.IMAGENET_MEAN)
    first = {"kernel": kernel[:, :, ::-1].astype(np.float32), "bias": bias.astype(np.float32)}
    return {**found, "conv1_1": first}


if __name__ == "__main__":
    app.main(get_config, build)
