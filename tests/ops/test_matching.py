import numpy as np
import pytest

from facejax.ops.matching import hardest, match_by_overlap

OVERLAPS = np.float32(
    [
        [0.9, 0.2, 0.45, 0.1, 0.0],
        [0.6, 0.35, 0.3, 0.36, 0.0],
        [0.0, 0.15, 0.1, 0.1, 0.0],
        [0.99, 0.99, 0.99, 0.99, 0.99],  # padding
    ]
)
MASK = np.array([True, True, True, False])


def test_thresholds():
    found = match_by_overlap(OVERLAPS, MASK, positive=0.45, negative=0.3)
    assert found.positive.tolist() == [True, False, True, False, False]
    assert found.negative.tolist() == [False, False, False, False, True]
    assert np.asarray(found.box)[[0, 2]].tolist() == [0, 0]
    one = match_by_overlap(OVERLAPS, MASK, positive=0.45)
    assert one.negative.tolist() == [False, True, False, True, True]


@pytest.mark.parametrize(
    ("forced", "expected"), [(0.2, [1, 0, 0, 0, 0]), (0.0, [1, 2, 0, 0, 0]), (0.95, [0, 0, 0, 0, 0])]
)
def test_forced_anchors(forced, expected):
    found = match_by_overlap(OVERLAPS, MASK, positive=0.4, forced=forced)
    assert found.positive.tolist() == [True, forced == 0.0, True, False, False]
    assert found.box[0] == expected[0]  # both boxes force anchor 0: the last one has it
    if forced == 0.0:
        assert found.box[1] == 2


def test_no_boxes():
    found = match_by_overlap(OVERLAPS, np.zeros(4, bool), positive=0.5, forced=0.0)
    assert not found.positive.any() and found.negative.all()


def test_hardest():
    losses = np.float32([3, 5, 5, 1, 9, 5])
    where = np.array([True, True, True, True, False, True])
    assert hardest(losses, where, 2).tolist() == [False, True, True, False, False, False]
    assert hardest(losses, where, np.int32(0)).sum() == 0
    assert hardest(losses, where, 100).tolist() == where.tolist()
