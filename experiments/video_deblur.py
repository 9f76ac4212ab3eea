"""OVD: a recurrent network deblurs a video frame by frame, with dynamic temporal blending.

    python -m experiments.video_deblur                        # rendered heads that move, two cores
    python -m experiments.video_deblur --config=strcnn        # recurrent, without blending
    python -m experiments.video_deblur --config=window        # neither: every frame from its five frames alone
    python -m experiments.video_deblur --config=gopro --config.data.path=DIR                    # one GPU
    python -m experiments.video_deblur --config=gopro --eval_only --workdir=RUN --config.data.path=DIR

DIR holds GoPro_Large: train and test, each with VIDEO/blur/NUMBER.png and VIDEO/sharp/NUMBER.png. `python -m
facejax.data.videos` makes the same from folders of sharp frames at a high rate.

Published, PSNR and SSIM of the authors' test videos: not compared, since they are not public. The number of training
steps, the crop and the clip of the preset are ours; the paper's are not known to us.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from facejax.data.videos import DeblurVideos
from facejax.evaluate import deblurring
from facejax.restoration import video_deblur
from facejax.restoration.video_deblur import OVD
from facejax.train import Experiment, Mean, Options, Report, TrainState, app, optim, supervised_step
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": asdict(DeblurVideos()),
    "model": {
        "width": 16,  # channels of the maps
        "blocks": 1,  # residual blocks of the encoder, and of the decoder
        "recurrent": True,  # whether maps are passed on from frame to frame
        "blending": True,  # whether the encoder's map is blended with that of the last frame
        "residual": True,  # whether the blurred frame is added to the output; not in the paper
        "groups": 4,  # of group norm in the residual blocks; 0: batch norm, as in the paper
        "unroll": True,  # whether the training step contains every frame instead of a loop: faster on a CPU
        "dtype": "float32",  # of the computation
    },
    "optim": {
        "name": "adam",
        "weight_decay": 0.0,
        "schedule": {"kind": "cosine", "peak": 2e-3, "warmup": 20, "boundaries": ()},
    },
    "train": asdict(Options(batch_size=8, steps=1500)),
}
PRESETS = {
    "synthetic": {},
    "strcnn": {"model.blending": False},
    "window": {"model": {"recurrent": False, "blending": False}},
    "gopro": {
        "data": {"source": "path", "path": "GoPro_Large", "clip": 13, "crop": 128, "workers": 8},
        "model": {"width": 64, "blocks": 4, "residual": False, "groups": 0, "unroll": False, "dtype": "bfloat16"},
        "optim": {
            "weight_decay": 1e-5,
            "schedule": {"kind": "step", "peak": 1e-4, "warmup": 0, "boundaries": (0.5, 0.75)},
        },
        "train": {"steps": 200_000},
    },
}
CLAIM = (
    Claim(
        "video_deblur.recurrence",
        "a network that passes its features on to the next frame restores frames better than one that sees five frames "
        "alone",
        metric="psnr",
        better="higher",
        method="synthetic",
        baseline=("window",),
    ),
    Claim(
        "video_deblur.blending",
        "dynamic temporal blending raises the PSNR of restored frames above the recurrent network without it",
        metric="psnr",
        better="higher",
        method="synthetic",
        baseline=("strcnn",),
    ),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    data, size = DeblurVideos(**config.data), config.train.batch_size
    net = OVD(**{**config.model, "dtype": jnp.dtype(config.model.dtype)})
    tx = optim.from_config(config.optim, config.train.steps)
    shape = (data.clip, data.crop, data.crop, 3)

    def init(rng: jax.Array) -> TrainState:
        variables = net.init(rng, jnp.zeros((1, *shape)), train=False)
        return TrainState.create(rng, variables["params"], tx, model_state=variables.get("batch_stats", {}))

    def loss_fn(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        del rng
        blurred, sharp = (batch[name].astype(jnp.float32) / 255 for name in ("blurred", "sharp"))
        variables = {"params": params, "batch_stats": batch_stats}
        restored, updated = net.apply(variables, blurred, train=True, mutable=["batch_stats"])
        losses = video_deblur.reconstruction_loss(restored, sharp)
        return losses.mean(), (updated.get("batch_stats", {}), {"loss": Mean.of(losses)})

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params, "batch_stats": state.model_state}

        def restore(frames: Iterable[np.ndarray]) -> Iterator[jax.Array]:
            return video_deblur.stream(net, variables, frames)

        return deblurring.assess_videos(restore, data.videos("test"))

    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=supervised_step(loss_fn, tx, microbatches=config.train.microbatches),
        train_data=functools.partial(data.batches, size, config.seed),
        batch={name: jax.ShapeDtypeStruct((size, *shape), jnp.uint8) for name in ("blurred", "sharp")},
    )


if __name__ == "__main__":
    app.main(get_config, build)
