"""Streams made of others resume at the exact batch, wherever they stopped."""

import chex
import numpy as np
import pytest

from facejax.data import pipeline, sources, streams


def part(name, seed):
    """Batches of 3 of 10 shuffled rows."""
    rows = sources.Rows({name: np.arange(10)})
    return pipeline.train_batches(rows, pipeline.stacked_batch, 3, seed=seed)


MADE = {
    "zip": lambda: streams.Zip(part("a", 0), part("b", 1)),
    "chain": lambda: streams.Chain(part("a", 0), part("a", 1), 4),
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("done", [0, 3, 4, 7])
def test_resume_is_exact(kind, done):
    stream = MADE[kind]()
    for _ in range(done):
        next(stream)
    position = stream.get_state()
    expected = [next(stream) for _ in range(5)]
    stream.close()
    again = MADE[kind]()
    again.set_state(position)
    for one, other in zip(expected, (next(again) for _ in range(5)), strict=False):
        chex.assert_trees_all_equal(one, other)
    again.close()


def test_zip_merges_the_arrays_of_all_parts():
    stream, one, two = MADE["zip"](), part("a", 0), part("b", 1)
    for _ in range(3):
        chex.assert_trees_all_equal(next(stream), next(one) | next(two))


def test_chain_takes_so_many_batches_of_the_first():
    stream, one, two = MADE["chain"](), part("a", 0), part("a", 1)
    for source in [one] * 4 + [two] * 3:
        chex.assert_trees_all_equal(next(stream), next(source))
