import math

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from facejax.metrics import verification as v

quick = settings(deadline=None, max_examples=25, derandomize=True)


@st.composite
def pairs(draw, levels=12, high=4.0, smallest=10):
    """Distances with many ties, and genuine and impostor labels."""
    n = draw(st.integers(smallest, 43))
    values = np.array(draw(st.lists(st.integers(0, levels), min_size=n, max_size=n))) / levels * high
    same = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    same[:2] = True, False
    return values, same


def slow_kfold(distances_of, same, folds, thresholds):
    accuracies, chosen = [], []
    for train, test in KFold(folds, shuffle=False).split(same):
        distances = distances_of(train)
        accuracy = [np.mean((distances[train] < t) == same[train]) for t in thresholds]
        best = next(t for t, a in zip(thresholds, accuracy) if a == max(accuracy))
        chosen.append(best)
        accuracies.append(np.mean((distances[test] < best) == same[test]))
    return accuracies, chosen


@quick
@given(pairs())
def test_kfold_accuracy_equals_the_literal_loop(data):
    distances, same = data
    result = v.kfold_accuracy(distances, same)
    accuracies, chosen = slow_kfold(lambda train: distances, same, 10, v.ACCURACY_THRESHOLDS)
    chex.assert_trees_all_close(result.folds, np.array(accuracies))
    chex.assert_trees_all_equal(result.thresholds, np.array(chosen))
    assert result.mean == pytest.approx(np.mean(accuracies))
    assert result.std == pytest.approx(np.std(accuracies, ddof=0))


def test_kfold_accuracy_by_hand():
    distances = [0.5, 1.0, 0.25, 2.0]
    same = [True, False, True, False]
    result = v.kfold_accuracy(distances, same, folds=2)
    # The best threshold of the second half is the first above 0.25; it rejects the first half's genuine pair at 0.5.
    np.testing.assert_allclose(result.thresholds, [0.26, 0.51])
    np.testing.assert_allclose(result.folds, [0.5, 1.0])
    assert (result.mean, result.std) == (0.75, 0.25)
    strict = v.kfold_accuracy([0.5, 1.0, 0.5, 1.0], same, folds=2, thresholds=np.array([0.5, 2.0]))
    np.testing.assert_array_equal(strict.folds, [0.5, 0.5])  # 0.5 < 0.5 is false


def test_kfold_sizes_when_folds_do_not_divide():
    masks = list(v._folds(23, 10))
    for mask, (_, test) in zip(masks, KFold(10).split(np.zeros(23))):
        np.testing.assert_array_equal(np.flatnonzero(mask), test)


def test_centered_accuracy_equals_the_literal_loop():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(60, 5)) + 2
    same = np.arange(60) % 2 == 0
    second = np.where(same[:, None], first + 0.7 * rng.normal(size=(60, 5)), rng.normal(size=(60, 5)) + 2)

    def distances(train):
        mean = np.concatenate([first[train], second[train]]).mean(0)
        a, b = first - mean, second - mean
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        return np.arccos(np.clip(cosine, -1, 1)) / math.pi

    result = v.kfold_accuracy_centered(first, second, same)
    accuracies, chosen = slow_kfold(distances, same, 10, v.ACCURACY_THRESHOLDS)
    chex.assert_trees_all_close(result.folds, np.array(accuracies))
    chex.assert_trees_all_equal(result.thresholds, np.array(chosen))
    uncentred = v.kfold_accuracy(v.angular_distances(first, second), same)
    assert result.mean > uncentred.mean


@quick
@given(pairs(levels=40, smallest=24), st.sampled_from([0.0, 0.05, 0.2, 0.5]))
def test_tar_at_far_kfold_equals_the_literal_loop(data, far):
    distances, same = data
    same[:24] = np.arange(24) % 2 == 0  # each of three folds has both kinds of pair
    same[24:] = np.arange(len(same) - 24) % 3 == 0
    tars, fars = [], []
    for train, test in KFold(3, shuffle=False).split(same):
        reached = [np.mean(distances[train][~same[train]] < t) for t in v.TAR_THRESHOLDS]
        if max(reached) >= far:
            threshold = interp1d(reached, v.TAR_THRESHOLDS, kind="linear")(far)
        else:
            threshold = 0.0
        tars.append(np.mean(distances[test][same[test]] < threshold))
        fars.append(np.mean(distances[test][~same[test]] < threshold))
    result = v.tar_at_far_kfold(distances, same, far, folds=3)
    np.testing.assert_allclose(result, [np.mean(tars), np.std(tars), np.mean(fars)])


def test_tar_at_far_kfold_on_a_plateau_and_with_unreachable_far():
    same = np.array([True, False, False] * 2)
    distances = np.array([1.5, 1.0, 3.9999, 1.5, 1.0, 3.9999])
    # Half of the impostors are below every threshold of the plateau 1.001 .. 3.999; its largest accepts 1.5.
    assert v.tar_at_far_kfold(distances, same, 0.5, folds=2) == (1.0, 0.0, 0.5)
    assert v.tar_at_far_kfold(distances, same, 0.6, folds=2) == (0.0, 0.0, 0.0)


@quick
@given(pairs(levels=9, high=1.0))
def test_roc_metrics_equal_the_literal_rules(data):
    scores, same = data
    fars = np.array([0.0, 1e-3, 0.1, 0.25, 1 / 3, 0.5, 1.0])
    conservative = []
    for far in fars:
        tars = [np.mean(scores[same] >= t) for t in [np.inf, *np.unique(scores)] if np.mean(scores[~same] >= t) <= far]
        conservative.append(max(tars))
    np.testing.assert_allclose(v.tar_at_far(scores, same, fars, "conservative"), conservative)
    reached, tar, _ = roc_curve(same, scores)
    nearest = []
    for far in fars:
        gap = np.abs(reached - far)
        near = np.flatnonzero(gap == gap.min())
        nearest.append(tar[near[-1]])  # in a tie the highest FAR and TAR
    np.testing.assert_allclose(v.tar_at_far(scores, same, fars, "ijb"), nearest)
    expected = brentq(lambda far: 1 - far - np.interp(far, reached, tar), 0, 1) if tar[0] < 1 else 0
    assert v.equal_error_rate(scores, same) == pytest.approx(expected, abs=1e-9)
    assert v.equal_error_rate(-scores, ~same) == pytest.approx(expected, abs=1e-9)


def test_tar_conventions_differ_by_hand():
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    same = [True, False, True, False, True, False]
    # FAR 0: 1/3; FAR 1/3: 2/3; FAR 2/3: 1.
    np.testing.assert_allclose(v.tar_at_far(scores, same, [0.3, 0.0], "ijb"), [2 / 3, 1 / 3])
    np.testing.assert_allclose(v.tar_at_far(scores, same, [0.3, 0.0], "conservative"), [1 / 3, 1 / 3])
    np.testing.assert_allclose(v.tar_at_far(scores, same, [0.5], "ijb"), [1.0])  # 1/3 and 2/3 are tied
    assert v.equal_error_rate(scores, same) == pytest.approx(1 / 3)
    assert v.equal_error_rate([1, 2, 3, 4], [False, False, True, True]) == 0
    assert v.equal_error_rate([1, 1, 1, 1], [False, False, True, True]) == 0.5


def test_the_default_is_exact_and_the_ijb_form_accepts_more():
    """At FAR 0.06 the FNMR is 0.70; the IJB form takes the point at FAR 0.1 and reports 0.20."""
    same = np.isin(np.arange(20), [0, 1, 2, 4, 5, 6, 7, 8, 18, 19])
    np.testing.assert_allclose(v.tar_at_far(-np.arange(20), same, [0.06, 0.1]), [0.3, 0.8])
    np.testing.assert_allclose(v.tar_at_far(-np.arange(20), same, [0.06, 0.1], "ijb"), [0.8, 0.8])


def test_conservative_far_counts_are_exact_for_decimal_rates():
    scores = np.r_[np.arange(100) / 100, 0.705]
    same = np.r_[np.zeros(100, bool), True]
    # Accepting the genuine pair accepts exactly 29 of 100 impostors; 0.29 * 100 is below 29 in floating point.
    np.testing.assert_array_equal(v.tar_at_far(scores, same, [0.28, 0.29], "conservative"), [0.0, 1.0])


def signs(rng, n, width=16):
    """Rows of +-1, whose cosines are exact multiples of 1/8 in any order of summation."""
    return rng.choice([-1.0, 1.0], (n, width)).astype(np.float32)


@pytest.mark.parametrize("block", [1, 50, 2**24])
def test_all_pairs_equal_the_list_of_all_pairs(monkeypatch, block):
    monkeypatch.setattr(v, "BLOCK_ELEMENTS", block)
    rng = np.random.default_rng(1)
    for n, people in ((7, 3), (40, 9), (41, 40)):
        embeddings, labels = signs(rng, n), rng.integers(0, people, n)
        embeddings[::3] = embeddings[0]
        row, column = np.triu_indices(n, 1)
        scores = (embeddings @ embeddings.T / 16)[row, column]
        same = labels[row] == labels[column]
        result = v.all_pairs(embeddings, labels)
        assert result.impostors == (~same).sum()
        expected = np.sort([(scores[~same] >= score).sum() for score in scores[same]])
        np.testing.assert_array_equal(result.counts, expected)
        fars = [0, 0.01, 0.1, 0.5, 1]
        np.testing.assert_allclose(
            v.all_pairs_tar(embeddings, labels, fars), v.tar_at_far(scores, same, fars, "conservative")
        )
        far, tar = result.roc()
        corners = sorted({(np.mean(scores[~same] >= t), np.mean(scores[same] >= t)) for t in scores[same]})
        assert set(zip(far, tar)) <= set(corners)
        assert tar[-1] == 1


@pytest.mark.parametrize("block", [1, 2**24])
def test_leave_one_out_rank1(monkeypatch, block):
    monkeypatch.setattr(v, "BLOCK_ELEMENTS", block)
    rng = np.random.default_rng(2)
    embeddings, labels = signs(rng, 30), rng.integers(0, 12, 30)
    hits = []
    for i in range(30):
        others = [j for j in range(30) if j != i]
        mates = [embeddings[i] @ embeddings[j] for j in others if labels[j] == labels[i]]
        strangers = [embeddings[i] @ embeddings[j] for j in others if labels[j] != labels[i]]
        if mates:
            hits.append(max(mates) > max(strangers))
    assert v.leave_one_out_rank1(embeddings, labels) == np.mean(hits)
    assert v.leave_one_out_rank1(np.ones((4, 3)), [0, 0, 1, 1]) == 0  # a collapsed embedding has only ties
    assert v.leave_one_out_rank1([[1, 0], [2, 0], [0, 1]], [5, 5, 5]) == 1


def test_flip_embedding_normalises_the_sum():
    result = v.flip_embedding([[3.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(result, [[3 / math.sqrt(10), 1 / math.sqrt(10)], [0, 0]])
    assert v.xnorm([[3.0, 4.0]], [[0.0, 1.0]]) == 3.0


def test_distances():
    a, b = np.eye(3)[[0, 0, 0]], np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0]])
    np.testing.assert_allclose(v.squared_distances(a, b), [0, 2, 4])
    np.testing.assert_allclose(v.angular_distances(a, 7 * b), [0, 0.5, 1])
    np.testing.assert_allclose(v.angular_distances([[0.0, 0.0]], [[1.0, 0.0]]), [0.5])


def test_roc_equals_scikit_learn():
    rng = np.random.default_rng(3)
    same = rng.random(200) < 0.3
    scores = rng.normal(size=200) + same
    far, tar, _ = v.roc(scores, same)
    assert np.trapezoid(tar, far) == pytest.approx(roc_auc_score(same, scores))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: v.kfold_accuracy([1.0, np.nan], [0, 1], 2), "value nan at 1 is not finite"),
        (lambda: v.kfold_accuracy([1.0, 2.0], [0, 1, 1], 2), "expected two vectors of one length"),
        (lambda: v.kfold_accuracy([1.0, 2.0], [0, 2], 2), "label 2 at 1; expected booleans"),
        (lambda: v.kfold_accuracy([1.0, 2.0], [0, 1], 3), "folds: 3 of 2 pairs"),
        (lambda: v.tar_at_far([1.0, 2.0], [0, 0], [0.1]), "none of the 2 is a genuine pair"),
        (lambda: v.tar_at_far([1.0, 2.0], [1, 1], [0.1], "conservative"), "none of the 2 is an impostor pair"),
        (lambda: v.tar_at_far([1.0, 2.0], [0, 1], [1.1]), r"expected false accept rates in 0\.\.1"),
        (lambda: v.tar_at_far([1.0, 2.0], [0, 1], [0.1], "closest"), "expected 'conservative' or 'ijb'"),
        (lambda: v.tar_at_far_kfold([1.0, 2, 3, 4], [0, 1, 1, 1], folds=2), "fold 1: all pairs are of one kind"),
        (lambda: v.all_pairs(np.ones((3, 2)), [0, 1, 2]), "all 3 are distinct"),
        (lambda: v.all_pairs(np.ones((3, 2)), [1, 1, 1]), "all 3 are equal"),
        (lambda: v.all_pairs(np.ones((3, 2)), [1, 1]), "one per embedding"),
        (lambda: v.all_pairs([[np.inf, 1.0]], [1]), "row 0 is not finite"),
        (lambda: v.leave_one_out_rank1(np.ones((3, 2)), [0, 1, 2]), "none of the 3 occurs twice"),
        (lambda: v.flip_embedding(np.ones((3, 2)), np.ones((3, 1))), "expected twice"),
    ],
)
def test_invalid_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def repeated(scores, people, drawn, fars):
    """Rates of people drawn `drawn` times each: every copy is a person of its own, but no impostor of its copies."""
    copies = [(person, copy, i) for i, person in enumerate(people) for copy in range(drawn[person])]
    genuine, impostors = [], []
    for n, (p, c, i) in enumerate(copies):
        for q, d, j in copies[:n]:
            if (p, c) == (q, d):
                genuine.append(scores[i, j])
            elif p != q:
                impostors.append(scores[i, j])
    same = np.repeat([True, False], [len(genuine), len(impostors)])
    others = scores - 2 * np.eye(len(people))
    probes = [i for p, _, i in copies if np.sum(people == p) > 1]
    pairs = [*genuine, *impostors], same
    rank1 = np.mean([people[others[i].argmax()] == people[i] for i in probes])
    return [*v.tar_at_far(*pairs, fars), v.equal_error_rate(*pairs), rank1]


def test_intervals_are_those_of_people_drawn_again(monkeypatch):
    rng = np.random.default_rng(0)
    people = rng.permutation(np.repeat(np.arange(7), (1, 2, 2, 3, 3, 4, 5)))
    features = v.unit_rows(np.eye(7)[people] + 0.6 * rng.normal(size=(20, 7)))
    fars, found = (0.3, 0.1, 0.02), []
    monkeypatch.setattr(v.np, "nanpercentile", lambda x, *_, **__: found.append(x) or np.zeros((2, 5)))
    v.bootstrap_intervals(features, people, fars, samples=12, seed=5)
    draws = np.random.default_rng(5)
    for row in found[0]:
        drawn = np.bincount(draws.integers(7, size=7), minlength=7)
        np.testing.assert_allclose(row, repeated(features @ features.T, people, drawn, fars))


def test_intervals_hold_the_value_and_narrow_with_people():
    rng = np.random.default_rng(0)

    def width(count):
        people = np.repeat(np.arange(count), 4)
        features = rng.normal(size=(count, 16))[people] + 0.9 * rng.normal(size=(4 * count, 16))
        found = v.bootstrap_intervals(features, people, (0.01,))
        (low, high), rank1 = found.tar[0], v.leave_one_out_rank1(features, people)
        assert low <= v.all_pairs_tar(features, people, (0.01,))[0] <= high
        assert found.rank1[0] <= rank1 <= found.rank1[1]
        return high - low

    assert 0 < width(150) < 0.6 * width(20)
    assert all(np.isnan(ends).all() for ends in v.bootstrap_intervals(np.eye(3), np.arange(3), (0.1,)))
