"""Combinations of endless batch streams. The state contains the positions of all parts, so that runs resume exactly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]


class _Streams:
    """Several streams with `get_state`, `set_state` and `close`."""

    def __init__(self, *streams: Any):
        self._streams = streams

    def __iter__(self) -> Iterator[Batch]:
        return self

    def get_state(self) -> list[Any]:
        return [stream.get_state() for stream in self._streams]

    def set_state(self, state: list[Any]) -> None:
        for stream, part in zip(self._streams, state, strict=True):
            stream.set_state(part)

    @property
    def replaced(self) -> int:
        return sum(stream.replaced for stream in self._streams)

    def replace_bad(self) -> None:
        for stream in self._streams:
            stream.replace_bad()

    def check_images(self) -> tuple[int, list[str]]:
        counts, flaws = zip(*(stream.check_images() for stream in self._streams), strict=True)
        return sum(counts), list(itertools.chain(*flaws))

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


class Zip(_Streams):
    """Merges one batch of every stream into one batch; array names must be distinct."""

    def __next__(self) -> Batch:
        return {name: array for stream in self._streams for name, array in next(stream).items()}


class Chain(_Streams):
    """The first `steps` batches of one stream, then those of another."""

    def __init__(self, first: Any, second: Any, steps: int):
        super().__init__(first, second)
        self._left = steps

    def __next__(self) -> Batch:
        self._left -= 1
        return next(self._streams[self._left < 0])

    def get_state(self) -> list[Any]:
        return [self._left, *super().get_state()]

    def set_state(self, state: list[Any]) -> None:
        self._left = state[0]
        super().set_state(state[1:])
