"""ArcFace: an additive angular margin makes embeddings of held-out people separable.

    python -m experiments.arcface                                  # rendered faces, held-out people, two cores
    python -m experiments.arcface --config=att_faces --config.data.path=DIR --seeds=4  # photographs, 4 folds of people
    python -m experiments.arcface --config=ms1mv3_r100 --config.data.path=DIR \
        --config.eval.packs=DIR/lfw.bin,DIR/cfp_fp.bin,DIR/agedb_30.bin      # the published run, 8 GPUs
    python -m experiments.arcface --config=ms1mv3_r100 --eval_only --config.eval.packs=lfw.bin,agedb_30.bin
    python -m experiments.arcface --config=ms1mv3_r50 --eval_only --workdir= --config.eval.weights=r50.pth ...
    python -m experiments.arcface --config=ms1mv3_r50 --config.start.weights=r50.pth \
        --config.optim.schedule.peak=0.005 --config.data.path=DIR ...                # fine-tuned on your own people

Published numbers (arcface_torch, IJB-C TAR at FAR 1e-4): ms1mv3_mbf 94.23, ms1mv3_r50 96.37, ms1mv3_r100 96.85,
ms1mv2_r100 96.37, glint360k_r100 97.55; paper, LFW: casia_r50 99.53.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

from ml_collections import ConfigDict

from facejax.data.identities import Identities
from facejax.evaluate import verification
from facejax.evaluate.embedder import Backbone, embed_flipped, read_weights
from facejax.recipes import recogniser
from facejax.recognition.heads import Head
from facejax.train import Experiment, Options, Report, TrainState, app, optim
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(Identities()),
    "model": asdict(Backbone("tiny", 64)),
    "start": recogniser.START,
    "loss": asdict(Head()),
    "optim": recogniser.OPTIM,
    "train": asdict(Options(batch_size=64, steps=300)),
    "eval": {
        "batch_size": 128,
        "packs": "",  # .bin files of InsightFace, with commas between, evaluated in place of held-out people
        "weights": "",  # a PyTorch state dict of arcface_torch, evaluated in place of what was trained
    },
}


def published(
    model: str, classes: int, images: int, epochs: int, decay: float = 5e-4, batch: int = 1024, **changes: Any
) -> dict[str, Any]:
    """A run of arcface_torch on 8 GPUs: SGD 0.1 falling linearly, flips only, half precision, sharded classes."""
    return {
        "data": {"source": "path", "image_size": 112, "classes": classes},
        "model": {"name": model, "embedding_size": 512, "dtype": "bfloat16"},
        "loss": {"scale": 64.0, "angle": 0.5, "grad_mode": "straight_through", "sharded": True},
        "optim": {"weight_decay": decay, "schedule": {"kind": "polynomial"}},
        "train": {"batch_size": batch, "steps": images // batch * epochs, "devices": 8, "eval_every": 2000},
        **changes,
    }


PRESETS = {
    "synthetic": {},
    "softmax": {"loss.kind": "softmax"},
    "cosface": {"loss.angle": 0.0, "loss.cosine": 0.2},
    "arcnegface": {"loss.kind": "arcnegface"},
    "att_faces": {
        "data": {"source": "path", "path": "att_faces", "image_size": 56, "held_out": 0.25, "classes": 30},
        "train": {"batch_size": 60, "steps": 250},
    },
    "folder": {"data": {"source": "path", "image_size": 112, "held_out": 0.2}, "model": {"name": "mobilefacenet"}},
    "casia_r50": {
        **published("iresnet50", 10_572, 490_623, 34, batch=512),
        "optim": {"schedule": {"kind": "step", "boundaries": (20_000, 28_000)}},
        "train": {"batch_size": 512, "steps": 32_000, "devices": 4, "eval_every": 2000},
    },
    "ms1mv2_r100": published("iresnet100", 85_742, 5_822_653, 20),
    "ms1mv3_mbf": published("mobilefacenet", 93_431, 5_179_510, 40, decay=1e-4),
    "ms1mv3_r50": published("iresnet50", 93_431, 5_179_510, 20),
    "ms1mv3_r100": published("iresnet100", 93_431, 5_179_510, 20),
    "glint360k_r100": {
        **published("iresnet100", 360_232, 17_091_657, 20, decay=1e-4),
        "loss": {"scale": 64.0, "angle": 0.0, "cosine": 0.4, "sharded": True},
    },
    "webface42m_r100_pfc02": {
        **published("iresnet100", 2_059_906, 42_474_557, 20),
        "loss": {"scale": 64.0, "angle": 0.0, "cosine": 0.4, "sharded": True, "sample_rate": 0.2},
    },
}

CLAIM = Claim(
    "arcface.margin",
    "an additive angular margin raises TAR on held-out identities above plain softmax",
    metric="tar_at_far_1e-2",
    better="higher",
    method="synthetic",
    baseline=("softmax",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    config = app.with_classes(
        config, lambda: app.section(Identities, config.data).count(config.seed, packs=config.eval.packs)
    )
    data, net = Identities(**config.data), Backbone(**config.model).make()

    def train_data() -> Any:
        train = data.training(config.seed, packs=config.eval.packs)
        return data.batches(train, config.train.batch_size, config.seed)

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params["backbone"], "batch_stats": state.model_state}
        if config.eval.weights:
            variables = read_weights(config.eval.weights, net, data.image_size)
        embed = functools.partial(embed_flipped, net, variables, batch_size=config.eval.batch_size)
        return verification.verify(data, config.eval.packs, config.seed, embed)

    return Experiment(
        evaluate=evaluate,
        train_data=train_data,
        **recogniser.training(
            net,
            Head(**config.loss),
            optim.from_config(config.optim, config.train.steps),
            image_size=data.image_size,
            embedding_size=config.model.embedding_size,
            num_classes=data.classes,
            batch_size=config.train.batch_size,
            devices=config.train.devices,
            microbatches=config.train.microbatches,
            weights=config.start.weights,
        ),
    )


if __name__ == "__main__":
    app.main(get_config, build)
