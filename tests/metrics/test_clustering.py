import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from facejax.metrics import clustering

NAN = float("nan")
GOLDEN = [
    ("0000111223", "0001111233", (0.6, 0.6, 0.6), (0.75, 0.75, 0.75), 0.715934, 0.715934),
    ("000111", "001122", (0.666667, 0.333333, 0.444444), (0.833333, 0.555556, 0.666667), 0.515804, 0.529541),
    ("0011", "0123", (NAN, 0, NAN), (1, 0.5, 0.666667), 0.666667, 0.707107),
    ("0011", "0000", (0.333333, 1, 0.5), (0.5, 1, 0.666667), 0, NAN),
]


@pytest.mark.parametrize(("truth", "predicted", "pairs", "cubed", "arithmetic", "geometric"), GOLDEN)
def test_golden_table(truth, predicted, pairs, cubed, arithmetic, geometric):
    truth, predicted = np.array(list(truth), int), np.array(list(predicted), int)
    for score, expected in ((clustering.pairwise, pairs), (clustering.bcubed, cubed)):
        found = score(truth, predicted)
        np.testing.assert_allclose((found.precision, found.recall, found.f), expected, atol=1e-6)
    nmi = clustering.normalized_mutual_information
    np.testing.assert_allclose(nmi(truth, predicted), arithmetic, atol=1e-6)
    np.testing.assert_allclose(nmi(truth, predicted, average="geometric"), geometric, atol=1e-6)


labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30)


@settings(max_examples=60, deadline=None)
@given(labels)
def test_against_definitions(pairs):
    truth, predicted = np.array(pairs).T
    same = (truth[:, None] == truth) & ~np.eye(len(truth), dtype=bool)
    found = (predicted[:, None] == predicted) & ~np.eye(len(truth), dtype=bool)
    score = clustering.pairwise(truth, predicted)
    if found.any():
        assert score.precision == pytest.approx((same & found).sum() / found.sum())
    if same.any():
        assert score.recall == pytest.approx((same & found).sum() / same.sum())
    full_same, full_found = truth[:, None] == truth, predicted[:, None] == predicted
    both = (full_same & full_found).sum(1)
    cubed = clustering.bcubed(truth, predicted)
    assert cubed.precision == pytest.approx((both / full_found.sum(1)).mean())
    assert cubed.recall == pytest.approx((both / full_same.sum(1)).mean())
    swapped = clustering.bcubed(predicted, truth)
    assert (swapped.precision, swapped.recall) == pytest.approx((cubed.recall, cubed.precision))
    nmi = clustering.normalized_mutual_information(truth, predicted)
    assert nmi == pytest.approx(normalized_mutual_info_score(truth, predicted), abs=1e-9)


def test_unclustered_items_become_singletons():
    np.testing.assert_array_equal(clustering.singletons(np.array([-1, 0, -1, 2])), [3, 0, 4, 2])
    report = clustering.report(np.array([0, 0, 1, 1]), np.array([0, 0, -1, -1]))
    assert (report["pairwise_precision"], report["pairwise_recall"], report["clusters"]) == (1, 0.5, 3)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64, np.float32])
def test_clusters_of_one_do_not_wrap_in_narrow_types(dtype):
    predicted = np.r_[0, np.full(300, -1)].astype(dtype)
    assert clustering.report(np.zeros(301, int), predicted)["clusters"] == 301
    many = np.r_[np.full(40_000, -1), 0].astype(dtype)
    assert len(np.unique(clustering.singletons(many))) == 40_001


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64])
def test_unsigned_labels_are_all_clusters(dtype):
    np.testing.assert_array_equal(clustering.singletons(np.array([3, 255, 0], dtype)), [3, 255, 0])


def test_length_mismatch_raises():
    with pytest.raises(ValueError, match=r"labels are \(3,\), predictions \(2,\)"):
        clustering.pairwise(np.zeros(3, int), np.zeros(2, int))
