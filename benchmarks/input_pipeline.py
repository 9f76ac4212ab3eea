"""Speed of the input pipeline compared with PyTorch's DataLoader: `python -m benchmarks.input_pipeline`.

Both decode 112-pixel JPEGs with OpenCV, flip half of them and form batches of 64, on the same two cores.
"""

from __future__ import annotations

import time

import cv2
import numpy as np

from benchmarks.compare import record
from facejax.data import pipeline, transforms

IMAGES, BATCH, BATCHES = 6000, 64, 150


class Source:
    """JPEGs in memory."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        base = [cv2.resize(rng.integers(0, 255, (7, 7, 3), dtype=np.uint8), (112, 112)) for _ in range(200)]
        encoded = [cv2.imencode(".jpg", image)[1].tobytes() for image in base]
        self._images = [encoded[i % 200] for i in range(IMAGES)]

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"image": self._images[index], "label": index % 200}


def load(examples, rngs):
    """Decodes and flips."""
    images = [transforms.random_flip(transforms.decode(e["image"]), r) for e, r in zip(examples, rngs, strict=True)]
    return {"image": np.stack(images), "label": np.array([e["label"] for e in examples], np.int32)}


def ours(threads: int, workers: int) -> float:
    """Images per second of `train_batches`."""
    batches = pipeline.train_batches(Source(), load, BATCH, seed=0, threads=threads, workers=workers)
    speed = timed(batches)
    batches.close()
    return speed


def theirs(workers: int) -> float:
    """Images per second of torch's DataLoader."""
    import torch

    class Set(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.source, self.rng = Source(), np.random.default_rng(0)

        def __len__(self) -> int:
            return IMAGES

        def __getitem__(self, index: int):
            example = self.source[index]
            image = transforms.random_flip(transforms.decode(example["image"]), self.rng)
            return torch.from_numpy(np.ascontiguousarray(image)), example["label"]

    loader = torch.utils.data.DataLoader(Set(), BATCH, shuffle=True, num_workers=workers, drop_last=True)

    def endless():
        while True:
            yield from loader

    return timed(endless())


def timed(batches) -> float:
    """Images per second after a warm-up."""
    for _ in range(20):
        next(batches)
    start = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    return BATCH * BATCHES / (time.perf_counter() - start)


if __name__ == "__main__":
    cv2.setNumThreads(0)
    found = {"torch 0 workers": theirs(0), "torch 2 workers": theirs(2)}
    found |= {"facejax 2 threads": ours(2, 0), "facejax 4 threads": ours(4, 0), "facejax 2 workers": ours(2, 2)}
    best = max(v for k, v in found.items() if k.startswith("torch"))
    work = f"JPEGs of 112 pixels decoded, mirrored and batched, {BATCH * BATCHES:,} images"
    record(work, {name: [BATCH * BATCHES / speed] for name, speed in found.items()}, "facejax 2 threads")
    for name, speed in found.items():
        print(f"{name:20} {speed:7.0f} images/s   {speed / best:.2f} of torch's best")
