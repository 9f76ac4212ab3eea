"""Grain pipelines from a data source to batches: shuffling, loading, augmentation, sharding over processes.

Indices are batched first and each batch is loaded as a whole, because Grain's cost is per element. Every example has
its own random generator, drawn for the global batch, so that the global batches do not depend on the number of
processes. The position is the number of examples that all processes together have read, so restoring it continues
exactly, also with other numbers of processes, workers and threads.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol

import grain
import jax
import numpy as np
from absl import flags

from facejax.data import transforms
from facejax.data.decoding import BadImage, ImageFile

_REPLACED = "replaced"
"""Key under which a batch counts the examples that did not decode, until `Batches` takes it out."""
CHECKED_AT_ONCE = 4096


class Source(Protocol):
    """Random access to examples; an optional `__getitems__(indices)` reads several at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


Load = Callable[[Sequence[Any], Sequence[np.random.Generator]], dict[str, np.ndarray]]


def train_batches(
    source: Source,
    load: Load,
    batch_size: int,
    *,
    seed: int,
    threads: int = 2,
    workers: int = 0,
    process: tuple[int, int] | None = None,
    checked: Callable[[], Source] | None = None,
) -> Batches:
    """Endless batches of this process, reshuffled every epoch; the incomplete last batch of an epoch is dropped.

    Args:
      source: the examples.
      load: (examples, one generator per example) -> batch, a dict of arrays [n, ...].
      batch_size: size of the global batch, a multiple of the number of processes.
      seed: seed of the order and of all augmentation.
      threads: number of batches that this process loads in parallel.
      workers: number of loader processes; 0: this process loads, the fastest choice for images of 112 pixels on few
        cores.
      process: (index, count) of this process; None: those of JAX.
      checked: what `Batches.check_images` decodes, such as the test images, too; None: `source`, or the larger one that
        it is a part of.

    Raises:
      ValueError: `batch_size` is no multiple of the number of processes or exceeds the number of examples.
    """
    index, count = process or (jax.process_index(), jax.process_count())
    if batch_size % count:
        raise ValueError(f"a batch of {batch_size} does not divide among {count} processes")
    if len(source) < batch_size:
        raise ValueError(f"the data has {len(source)} examples, fewer than one batch of {batch_size}")
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().batch(batch_size, drop_remainder=True).repeat()
    checked = checked or (lambda: getattr(source, "whole", source))
    return Batches(dataset, _LoadBatch(source, load, index, count), batch_size, threads, workers, checked)


class Batches:
    """An iterator over the batches of this process; see `train_batches`.

    Args:
      dataset: a Grain MapDataset of the indices of global batches, endless.
      load: what makes the batches from indices.
      batch_size: size of the global batch.
      threads, workers, checked: as in `train_batches`.

    Attributes:
      replaced: number of examples of the batches so far in whose place others stand, see `replace_bad`.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        load: _LoadBatch,
        batch_size: int,
        threads: int,
        workers: int,
        checked: Callable[[], Source],
    ):
        self._dataset, self._load, self._length, self._batch_size = dataset, load, len(load.source), batch_size
        self._threads, self._workers, self._checked = threads, workers, checked
        self._done, self._iterator, self.replaced = 0, None, 0

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._done += 1
        self.replaced += int(batch.pop(_REPLACED, 0))
        return batch

    def replace_bad(self) -> None:
        """Puts other examples of a batch in place of those whose image does not decode, before the first batch.

        A warning names each of them.
        """
        self._load = dataclasses.replace(self._load, replace=True)

    def check_images(self) -> tuple[int, list[str]]:
        """Decodes all image files of training and, where they are known, of the test.

        Returns:
          (number of image files, a sentence for each example with one that does not decode).
        """
        source, count, flaws = self._checked(), 0, []
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(source), CHECKED_AT_ONCE):
                rows = range(start, min(start + CHECKED_AT_ONCE, len(source)))
                for images, flaw in pool.map(functools.partial(_check, source), rows):
                    count += images
                    flaws += filter(None, [flaw])
        return count, flaws

    def get_state(self) -> dict[str, int]:
        """The position: examples read by all processes, the size of the global batch, the length of the data.

        `replaced`, which the log counts, belongs to it.
        """
        position = {"examples": self._done * self._batch_size, "batch_size": self._batch_size, "length": self._length}
        return {**position, "replaced": self.replaced}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position, which may have been saved with another batch size.

        Raises:
          ValueError: the data has another length, or the position lies inside a batch of this size.
        """
        if state["length"] != self._length:
            raise ValueError(f"the data has {self._length} examples and had {state['length']} when the run was saved")
        epoch_batches = self._length // state["batch_size"]
        epoch, batches = divmod(state["examples"] // state["batch_size"], epoch_batches)
        done, inside = divmod(batches * state["batch_size"], self._batch_size)
        if inside:
            raise ValueError(
                f"the run was saved after {batches} batches of {state['batch_size']} in an epoch: batches of "
                f"{self._batch_size} cannot go on from there"
            )
        self.close()
        self._done, self.replaced = epoch * (self._length // self._batch_size) + done, state.get("replaced", 0)

    def close(self) -> None:
        """Ends threads and workers."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _start(self) -> grain.DatasetIterator:
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=2 * self._threads)
        dataset = self._dataset.random_map(self._load)[self._done :].to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # in notebooks and scripts: Grain reads its absl flags
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        return iter(dataset)


def fetch(source: Source, indices: Sequence[int]) -> list[Any]:
    """Examples at `indices`, read with `__getitems__` if the source has it."""
    if hasattr(source, "__getitems__"):
        return list(source.__getitems__([int(i) for i in indices]))
    return [source[int(i)] for i in indices]


def stacked_batch(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
    """Examples stacked by name."""
    del rngs
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def flipped_batch(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
    """Examples stacked by name; each "image" [H, W, 3] is flipped with probability 0.5."""
    batch = stacked_batch(examples, rngs)
    batch["image"] = np.stack([transforms.random_flip(x, rng) for x, rng in zip(batch["image"], rngs, strict=True)])
    return batch


def pad_ragged(rows: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads arrays of different lengths, such as the ragged targets of a batch, to one array.

    Args:
      rows: N arrays [n_i, ...] of one dtype, n_i at most `length`.
      length: size of the result's second axis.

    Returns:
      ([N, length, ...] padded with zeros, [N, length] bool mask of the values).

    Raises:
      ValueError: a row is longer than `length`.
    """
    longest = max(map(len, rows))
    if longest > length:
        raise ValueError(f"a row has {longest} entries: expected {length} at most")
    padded = np.zeros((len(rows), length, *rows[0].shape[1:]), rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded, np.arange(length) < np.array([len(row) for row in rows])[:, None]


@dataclasses.dataclass(frozen=True)
class _LoadBatch(grain.transforms.RandomMap):
    """Global batch of indices -> loaded shard of this process."""

    source: Source
    load: Load
    process_index: int
    process_count: int
    replace: bool = False

    def random_map(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        _end_with_parent()
        width = len(indices) // self.process_count
        mine = slice(self.process_index * width, (self.process_index + 1) * width)
        seeds = rng.integers(0, 2**63, size=len(indices))[mine]
        try:
            return self._loaded(indices[mine], seeds)
        except BadImage:
            if not self.replace:
                raise
        good = [i for i in range(width) if self._is_good(indices[mine][i], seeds[i])]
        if not good:
            raise ValueError(f"none of the {width} images of a batch decodes")
        rows = [i if i in good else good[i % len(good)] for i in range(width)]
        batch = self._loaded(indices[mine][rows], seeds[rows])
        return {**batch, _REPLACED: np.array(width - len(good))}

    def _loaded(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        generators = [np.random.Generator(np.random.Philox(key=int(seed))) for seed in seeds]
        return self.load(fetch(self.source, indices), generators)

    def _is_good(self, index: int, seed: int) -> bool:
        try:
            self._loaded(np.array([index]), np.array([seed]))
        except BadImage as error:
            warnings.warn(f"{error}; another image of its batch takes its place", stacklevel=2)
            return False
        return True


def _check(source: Source, index: int) -> tuple[int, str]:
    """The number of images of an example, encoded, decoded by the source or at a path; what is wrong, "" if nothing."""
    try:
        example = source[index]
        example = example if isinstance(example, Mapping) else {}
        found = ImageFile.read(example["path"]) if "path" in example else example.get("image")
        found = found if isinstance(found, list | tuple) else [found]
        images = [x for x in found if isinstance(x, bytes) or getattr(x, "dtype", None) == np.uint8]
        for image in images:
            if isinstance(image, bytes):
                transforms.decode(image)
    except (ValueError, OSError) as error:
        return 1, str(error)
    return len(images), ""


@functools.cache
def _end_with_parent() -> None:
    """Ends a worker process when its parent has ended, killed parents included."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=wait, daemon=True).start()
