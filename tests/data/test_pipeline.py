import numpy as np
import pytest

from facejax.data import pipeline


def load(examples, rngs):
    return {"index": np.array(examples), "draw": np.array([rng.random() for rng in rngs])}


def batches(count, process=(0, 1), seed=0, size=6, **options):
    iterator = pipeline.train_batches(range(50), load, size, seed=seed, process=process, **options)
    found = [next(iterator) for _ in range(count)]
    iterator.close()
    return found


def test_epochs_contain_every_example_once_in_new_order():
    found = np.stack([b["index"] for b in batches(16)])
    first, second = found[:8].ravel(), found[8:].ravel()
    assert len(set(first)) == len(set(second)) == 48
    assert first.tolist() != second.tolist()
    assert [b["index"].tolist() for b in batches(3, seed=1)] != found[:3].tolist()


def test_processes_share_the_global_batches():
    whole = batches(4)
    parts = [batches(4, (i, 3)) for i in range(3)]
    for step in range(4):
        for key in ("index", "draw"):
            np.testing.assert_array_equal(np.concatenate([p[step][key] for p in parts]), whole[step][key])


def test_restored_position_repeats_batches_and_draws():
    iterator = pipeline.train_batches(range(50), load, 6, seed=0, process=(0, 1))
    for _ in range(3):
        next(iterator)
    position = iterator.get_state()
    expected = [next(iterator) for _ in range(9)]
    other = pipeline.train_batches(range(50), load, 6, seed=0, process=(0, 1))
    other.set_state(position)
    for batch in expected:
        again = next(other)
        np.testing.assert_array_equal(again["index"], batch["index"])
        np.testing.assert_array_equal(again["draw"], batch["draw"])


def test_impossible_batch_sizes_raise():
    with pytest.raises(ValueError, match="has 50 examples, fewer than one batch of 51"):
        batches(1, size=51)
    with pytest.raises(ValueError, match="batch of 6 does not divide among 4 processes"):
        batches(1, (0, 4))
