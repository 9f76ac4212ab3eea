"""Augmented crops with landmarks beside the training step that takes them: `python -m benchmarks.augmentation`.

PFLD of the published width on 112-pixel crops. Two threads decode photographs of 256 pixels, turn, scale, move, mirror,
blur, cover and colour them; the step is forward, backward and Adam. Each is timed alone: crops keep up with training
where the ratio is above 1.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.compare import record
from facejax.alignment import pfld
from facejax.data import normalize, pipeline
from facejax.data.landmark_images import Augmentation, loader
from facejax.data.landmarks import MIRROR_68

SIZE, PHOTOGRAPH, THREADS = 112, 256, 2
CHANGES = Augmentation(blur=0.3, noise=0.3, occlusion=0.3)


class Source:
    """Photographs as JPEGs in memory, with 68 points each."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        small = rng.integers(0, 255, (50, 9, 9, 3), dtype=np.uint8)
        images = [cv2.resize(image, (PHOTOGRAPH, PHOTOGRAPH), interpolation=cv2.INTER_CUBIC) for image in small]
        self._images = [cv2.imencode(".jpg", image)[1].tobytes() for image in images]
        self._points = rng.uniform(60, 200, (50, 68, 2))

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> dict[str, Any]:
        fields = {"visible": np.ones(68, bool), "region": (128.0, 128.0, 175.0), "attributes": np.zeros(0, bool)}
        return {"image": self._images[index % 50], "points": self._points[index % 50], **fields}


def loading(batch: int, batches: int) -> float:
    """Seconds of `batches` batches."""
    made = pipeline.train_batches(Source(), loader(SIZE, MIRROR_68, CHANGES), batch, seed=0, threads=THREADS)
    for _ in range(4):  # the queue fills while the first ones are awaited
        next(made)
    start = time.perf_counter()
    for _ in range(batches):
        next(made)
    seconds = time.perf_counter() - start
    made.close()
    return seconds


def training(batch: int, batches: int) -> float:
    """Seconds of `batches` training steps, compiled before."""
    net, tx = pfld.Net(68), optax.adam(1e-4)
    images = jnp.zeros((batch, SIZE, SIZE, 3), jnp.uint8)
    variables = dict(jax.jit(lambda k: net.init(k, normalize.unit(images), train=False))(jax.random.key(0)))
    params = variables.pop("params")

    @jax.jit
    def step(params: Any, stats: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            found, updated = net.apply(
                {"params": params, **stats}, normalize.unit(images), train=True, mutable=["batch_stats"]
            )
            return jnp.sum(found["points"] ** 2) + jnp.sum(found["angles"] ** 2), updated

        gradients, updated = jax.grad(loss, has_aux=True)(params)
        changes, state = tx.update(gradients, state)
        return optax.apply_updates(params, changes), updated, state

    carried = jax.block_until_ready(step(params, variables, tx.init(params)))
    start = time.perf_counter()
    for _ in range(batches):
        carried = step(*carried)
    jax.block_until_ready(carried)
    return time.perf_counter() - start


def main() -> None:
    """Prints crops a second and what the training step takes."""
    parser = argparse.ArgumentParser(description="Augmented crops, beside the training step that takes them.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    sizes, count = (arguments.batch, arguments.batches), arguments.batch * arguments.batches
    pairs = [(training(*sizes), loading(*sizes)) for _ in range(arguments.repeats)]
    steps, crops = (list(times) for times in zip(*pairs, strict=True))
    record(f"{count:,} augmented crops of {SIZE} pixels, PFLD's training step", {"the step": steps, "facejax": crops})
    print(f"{count / min(crops):.0f} crops/s; the step takes {count / min(steps):.0f}/s: {min(steps) / min(crops):.2f}")


if __name__ == "__main__":
    main()
