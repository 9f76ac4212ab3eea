import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from facejax.metrics import quality as q

quick = settings(deadline=None, max_examples=50, derandomize=True)
SIMILARITIES = np.array([0.1, 0.5, 0.2, 0.6, 0.7, 0.8, 0.9, 0.3, 0.95, 0.99])
QUALITIES = np.array([1, 1, 2, 3, 4, 4, 5, 6, 7, 8])


def test_golden_error_discard_curve():
    shuffled = np.random.default_rng(0).permutation(10)
    curve = q.error_discard_curve(SIMILARITIES[shuffled], QUALITIES[shuffled], 0.4)
    np.testing.assert_allclose(curve.discarded, np.array([0, 2, 3, 4, 6, 7, 8, 9, 10]) / 10)
    errors = [0.3, 0.25, 0.142857, 0.166667, 0.25, 0.333333, 0, 0, 0]
    np.testing.assert_allclose(curve.errors, errors, atol=1e-6)
    assert q.partial_area(curve, 0.3) == pytest.approx(0.085)
    assert q.theoretical_best_area(0.3, 0.3) == pytest.approx(0.045)
    assert q.theoretical_best_area(0.3, 0.1) == pytest.approx(0.3 * 0.1 - 0.1**2 / 2)
    assert q.excess_area(curve, 0.3) == pytest.approx(0.04)
    assert q.partial_area(curve, 1.0) == pytest.approx(0.1909524)
    assert q.partial_area(curve, 0.25) == pytest.approx(0.2 * 0.3 + 0.05 * 0.25)
    assert q.partial_area(curve, 0.0) == 0


def test_errors_are_strictly_below_the_threshold():
    assert q.error_discard_curve([0.4, 0.4], [1, 1], 0.4).errors[0] == 0


def test_starting_threshold_interpolates_the_quantile():
    assert q.starting_threshold([0.0, 1.0, 2.0, 3.0, 4.0], 0.3) == pytest.approx(1.2)


@quick
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=40),
    st.integers(0, 10),
    st.floats(0, 1),
)
def test_error_discard_curve_equals_the_literal_loop(data, threshold, limit):
    similarities, qualities = np.array(data).T
    discarded, errors = [], []
    for level in np.unique(qualities):
        kept = similarities[qualities >= level]
        discarded.append(1 - len(kept) / len(similarities))
        errors.append(np.mean(kept < threshold))
    curve = q.error_discard_curve(similarities, qualities, threshold)
    np.testing.assert_allclose(curve.discarded, [*discarded, 1])
    np.testing.assert_allclose(curve.errors, [*errors, 0])
    expected = 0.0
    for error, left, right in zip(errors, discarded, [*discarded[1:], 1.0]):
        expected += error * max(0.0, min(right, limit) - left)
    assert q.partial_area(curve, limit) == pytest.approx(expected, abs=1e-12)


def test_limits_of_curve_a():
    rng = np.random.default_rng(1)
    similarities = rng.normal(size=20_000)
    threshold = q.starting_threshold(similarities, 0.1)
    constant = q.error_discard_curve(similarities, np.ones(20_000), threshold)
    assert constant.discarded.tolist() == [0, 1]
    oracle = q.error_discard_curve(similarities, similarities, threshold)
    start, x = oracle.errors[0], oracle.discarded[:-1]
    np.testing.assert_allclose(oracle.errors[:-1], np.maximum(0, start - x) / (1 - x), atol=1e-12)
    random = q.error_discard_curve(similarities, rng.normal(size=20_000), threshold)
    np.testing.assert_allclose(random.errors[random.discarded < 0.8], start, atol=0.02)
    reverse = q.error_discard_curve(similarities, -similarities, threshold)
    areas = [q.excess_area(curve, 0.3) for curve in (oracle, random, reverse)]
    assert 0 < areas[0] < areas[1] < areas[2]


def slow_curve(distances, same, qualities, fmr, convention):
    """Curve B as the two reference programs compute it, separately on each remaining subset."""
    order = np.argsort(qualities, kind="stable")
    points = []
    for ratio in np.arange(0, 0.98, 0.05):
        kept = order[int(ratio * len(order)) :]
        genuine, impostors = np.sort(distances[kept][same[kept]]), np.sort(distances[kept][~same[kept]])
        if convention == "crfiqa":
            thresholds = sorted(set(distances[kept]), reverse=True)
            gaps = [abs(np.sum(impostors <= t) / len(impostors) - fmr) for t in thresholds]
            threshold = thresholds[gaps.index(min(gaps))]
        else:
            index, rate, threshold = len(impostors) - 1, 1.0, None
            while index >= 0:
                if rate == fmr:
                    threshold = impostors[index]
                if index == 0:
                    break
                index = int(index / 10)
                rate /= 10
            if threshold is None:
                continue
        points.append((ratio, 1 - np.sum(genuine < threshold) / len(genuine)))
    return np.array(points).reshape(-1, 2).T


@pytest.mark.parametrize("convention", ["crfiqa", "magface"])
@pytest.mark.parametrize("fmr", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("levels", [30, 10**6])
def test_fnmr_discard_curve_equals_the_literal_loop(convention, fmr, levels):
    rng = np.random.default_rng(int(1 / fmr) + levels)
    same = rng.random(1500) < 0.4
    qualities = rng.integers(0, levels, 1500) / levels
    noise = (1.2 - qualities) * rng.normal(size=1500)
    distances = np.clip(np.where(same, 0.3, 0.6) + 0.15 * noise, 0, 1).round(3)
    curve = q.fnmr_discard_curve(distances, same, qualities, fmr, convention)
    expected = slow_curve(distances, same, qualities, fmr, convention)
    np.testing.assert_allclose(curve.discarded, expected[0])
    np.testing.assert_allclose(curve.errors, expected[1], atol=1e-12)
    if convention == "magface" and fmr == 1e-3:
        assert len(curve.errors) < 20  # too few impostors remain at the end
    else:
        assert len(curve.errors) == 20
        assert q.area(curve) == pytest.approx(np.trapezoid(expected[1], expected[0]))
        assert curve.errors[-1] < curve.errors[0]


def test_magface_convention_needs_more_than_100_impostors_at_fmr_1e_3():
    rng = np.random.default_rng(2)
    for impostors, points in ((100, 0), (101, 1)):
        same = np.r_[np.zeros(impostors, bool), np.ones(10, bool)]
        qualities = np.r_[np.zeros(impostors), np.ones(10)]  # impostors are discarded first
        curve = q.fnmr_discard_curve(rng.random(len(same)), same, qualities, 1e-3, "magface")
        assert len(curve.errors) == points


def test_area_over_curve():
    flat = q.DiscardCurve(q.DISCARD_RATIOS, np.full(20, 0.2))
    assert q.area(flat) == pytest.approx(0.19)
    assert q.area_over_curve(flat) == pytest.approx(0.05)
    assert q.area(flat, 0.32) == pytest.approx(0.32 * 0.2)
    assert q.relative_partial_area(flat, 0.3) == pytest.approx(1)
    falling = q.DiscardCurve(q.DISCARD_RATIOS, 0.2 * (1 - q.DISCARD_RATIOS))
    assert q.relative_partial_area(falling, 0.3) == pytest.approx(0.85)
    assert q.relative_partial_area(falling, 0.33) == pytest.approx(1 - 0.33 / 2)
    assert q.area_over_curve(falling) == pytest.approx(1 - 0.95 + 0.95**2 / 2)


def test_a_million_pairs_within_the_time_limit():
    rng = np.random.default_rng(3)
    same = rng.random(1_000_000) < 0.5
    distances, qualities = rng.random(1_000_000) + ~same, rng.random(1_000_000)
    start = time.perf_counter()
    assert q.area(q.fnmr_discard_curve(distances, same, qualities, 1e-4)) == pytest.approx(0, abs=1e-3)
    assert len(q.error_discard_curve(distances, qualities, 0.5).errors) > 900_000
    assert time.perf_counter() - start < 30


def test_rank_correlations():
    a, b = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]
    assert q.spearman(a, b) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert q.kendall(a, b) == pytest.approx((5 - 1) / 6)
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 9, (2, 60))
    rank = np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]
    assert q.spearman(x, y) == pytest.approx(rank)
    assert q.kendall(x, -x) == pytest.approx(-1)


def test_pair_quality():
    np.testing.assert_array_equal(q.pair_quality([1, 5], [2, 3]), [1, 3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: q.error_discard_curve([0.1], [1, 2], 0.5), "expected two vectors of one length"),
        (lambda: q.error_discard_curve([0.1, np.nan], [1, 2], 0.5), "value nan at 1 is not finite"),
        (lambda: q.fnmr_discard_curve([0.1, 0.2], [1, 1], [1, 2]), "none of the 2 is an impostor pair"),
        (lambda: q.fnmr_discard_curve([0.1, 0.2], [0, 1], [2, 1]), "no genuine pair remains with 0.50 of 2"),
        (lambda: q.fnmr_discard_curve([0.1, 0.2], [0, 1], [1, 2]), "no impostor pair remains with 0.50 of 2"),
        (lambda: q.fnmr_discard_curve([0.1, 0.2], [0, 1], [1]), "expected two vectors of one length"),
        (lambda: q.fnmr_discard_curve([0.1, 0.2], [0, 1], [1, 2], 2e-3, "magface"), "expected a power of ten"),
        (lambda: q.fnmr_discard_curve([0.1, 0.2], [0, 1], [1, 2], 1e-3, "edc"), "expected 'crfiqa' or 'magface'"),
        (lambda: q.partial_area(q.DiscardCurve(np.zeros(1), np.zeros(1)), 1.5), r"in 0\.\.1"),
        (lambda: q.area_over_curve(q.DiscardCurve(q.DISCARD_RATIOS, np.zeros(20))), "expected FNMR.0. > 0"),
        (
            lambda: q.relative_partial_area(q.DiscardCurve(q.DISCARD_RATIOS, np.ones(20)), 0.96),
            "at most the curve's last",
        ),
        (lambda: q.spearman([1, 1], [1, 2]), "expected values that can be ranked"),
    ],
)
def test_invalid_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()
