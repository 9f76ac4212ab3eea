import contextlib

import cv2
import numpy as np
import pytest

from facejax.data import classification, pipeline, sources, streams
from facejax.data.decoding import BadImage, ImageFile


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


def after(state, size, count, process=(0, 1), **options):
    iterator = pipeline.train_batches(range(50), load, size, seed=0, process=process, **options)
    iterator.set_state(state)
    found = [next(iterator) for _ in range(count)]
    iterator.close()
    return found


def position(size, done):
    iterator = pipeline.train_batches(range(50), load, size, seed=0, process=(0, 1))
    for _ in range(done):
        next(iterator)
    iterator.close()
    return iterator.get_state()


def test_another_batch_size_goes_on_with_the_very_next_example():
    """Batches of 4, then of 8 or 2: what the epoch has not shown yet follows, in the order of the epoch."""
    assert position(4, 6) == {"examples": 24, "batch_size": 4, "length": 50, "replaced": 0}
    whole = np.concatenate([b["index"] for b in batches(12, size=4)])
    for size in (8, 2):
        rest = np.concatenate([b["index"] for b in after(position(4, 6), size, 24 // size)])
        np.testing.assert_array_equal(rest, whole[24:])
    second_epoch = np.concatenate([b["index"] for b in batches(24, size=4)])[48:]  # an epoch has 12 batches of 4
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in after(position(4, 12), 2, 24)]), second_epoch)


def test_a_position_that_cannot_be_converted_raises():
    with pytest.raises(ValueError, match="after 5 batches of 4 in an epoch: batches of 8 cannot go on from there"):
        after(position(4, 5), 8, 1)
    with pytest.raises(ValueError, match="the data has 50 examples and had 51 when the run was saved"):
        after({**position(4, 5), "length": 51}, 4, 1)


def test_a_position_does_not_depend_on_processes_threads_and_workers():
    expected = batches(6)[3:]
    for options in ({"threads": 5}, {"workers": 2}):
        for found, batch in zip(after(position(6, 3), 6, 3, **options), expected, strict=True):
            for key in batch:
                np.testing.assert_array_equal(found[key], batch[key])
    parts = [after(position(6, 3), 6, 3, (i, 2)) for i in range(2)]
    for step, batch in enumerate(expected):
        np.testing.assert_array_equal(np.concatenate([p[step]["draw"] for p in parts]), batch["draw"])


def test_impossible_batch_sizes_raise():
    with pytest.raises(ValueError, match="has 50 examples, fewer than one batch of 51"):
        batches(1, size=51)
    with pytest.raises(ValueError, match="batch of 6 does not divide among 4 processes"):
        batches(1, (0, 4))


class Pictures:
    """Images whose grey level is their number; those in `bad` do not decode."""

    def __init__(self, count, bad):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        encoded = cv2.imencode(".png", np.full((2, 2), index, np.uint8))[1].tobytes()
        return {"image": ImageFile(encoded[: 20 if index in self.bad else None], f"picture {index}"), "label": index}


def numbers(examples, rngs):
    images = np.stack([sources.image(e, 2) for e in examples])
    return {"number": images[:, 0, 0, 0].astype(int), "draw": np.array([rng.random() for rng in rngs])}


def test_another_image_of_the_batch_takes_the_place_of_a_bad_one():
    def found(bad, skip=True):
        iterator = pipeline.train_batches(Pictures(12, bad), numbers, 4, seed=0, process=(0, 1))
        if skip:
            iterator.replace_bad()
        with contextlib.closing(iterator):
            batches = [next(iterator) for _ in range(3)]
        return batches, iterator.replaced

    none = found((), skip=False)
    with pytest.warns(UserWarning, match=r"^picture 7: an image of 20 bytes .*; another image of its batch"):
        bad = found((3, 7))
    with pytest.raises(BadImage, match=r"picture [37]: an image of 20 bytes does not decode"):
        found((3, 7), skip=False)
    with pytest.raises(ValueError, match="none of the 4 images of a batch decodes"), pytest.warns(UserWarning):
        found(range(12))
    assert (bad[1], none[1]) == (2, 0)
    for batch, whole in zip(bad[0], none[0], strict=True):
        assert batch.keys() == {"number", "draw"}
        good = ~np.isin(whole["number"], (3, 7))
        for name in batch:
            np.testing.assert_array_equal(batch[name][good], whole[name][good])
        rows = [batch["number"][good].tolist().index(n) for n in batch["number"]]
        np.testing.assert_array_equal(batch["draw"], batch["draw"][good][rows])


def test_the_number_of_bad_images_belongs_to_the_position():
    def opened():
        iterator = pipeline.train_batches(Pictures(12, (3, 7)), numbers, 4, seed=0, process=(0, 1))
        iterator.replace_bad()
        return iterator

    with contextlib.closing(opened()) as whole, contextlib.closing(opened()) as resumed, pytest.warns(UserWarning):
        for _ in range(3):
            next(whole)
        resumed.set_state(whole.get_state())
        for _ in range(3):
            next(whole)
            next(resumed)
    assert resumed.replaced == whole.replaced == 4


def test_images_at_paths_decoded_ones_and_those_of_the_test_are_checked(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    training = [{"path": tmp_path / "a.png"}, {"image": np.zeros((2, 2, 3), np.uint8)}, (0, 1)]
    test = Pictures(4, (2,))
    options = {"seed": 0, "process": (0, 1), "checked": lambda: sources.Chain(training, test)}
    count, flaws = pipeline.train_batches(training, numbers, 2, **options).check_images()
    assert count == 6
    assert [flaw.partition(": ")[0] for flaw in flaws] == [str(tmp_path / "a.png"), "picture 2"]


def test_all_bad_images_are_found_at_once():
    source = sources.Part(sources.Subset(Pictures(12, (3, 7)), range(10)), range(5))  # the whole source is read
    iterator = pipeline.train_batches(source, numbers, 4, seed=0, process=(0, 1))
    both = streams.Zip(iterator, pipeline.train_batches(range(8), load, 4, seed=0, process=(0, 1)))
    count, flaws = both.check_images()
    assert count == 12
    assert [flaw.partition(":")[0] for flaw in flaws] == ["picture 3", "picture 7"]
    both.replace_bad()
    assert both.replaced == 0


def test_other_processes_replace_bad_images_too():
    def found(workers):
        iterator = pipeline.train_batches(Pictures(12, (3, 7)), numbers, 4, seed=0, workers=workers, process=(0, 1))
        iterator.replace_bad()
        with contextlib.closing(iterator):
            batches = [next(iterator) for _ in range(3)]
        return batches, iterator.replaced

    with pytest.warns(UserWarning, match="picture 7"):
        here, count = found(0)
    there, other = found(1)
    assert count == other == 2
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a["number"], b["number"])
        np.testing.assert_array_equal(a["draw"], b["draw"])


def test_a_folder_of_held_out_images_is_checked_with_training(tmp_path):
    for part, names in (("train", "ab"), ("val", "b")):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / part / name / "0.png"), np.zeros((2, 2), np.uint8))
    (tmp_path / "val" / "b" / "1.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="no image of 1 of 2 classes"):
        train, held_out = classification.folders(tmp_path)
    assert (len(train), len(held_out), len(train.whole)) == (2, 2, 4)
    count, flaws = pipeline.train_batches(train, numbers, 2, seed=0, process=(0, 1)).check_images()
    assert count == 4
    assert [flaw.partition(": ")[0] for flaw in flaws] == [str(tmp_path / "val" / "b" / "1.png")]
