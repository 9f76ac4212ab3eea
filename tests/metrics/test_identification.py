import struct
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facejax.metrics import identification as d

quick = settings(deadline=None, max_examples=50, derandomize=True)


@pytest.mark.parametrize("block", [1, 2**24])
def test_megaface_equals_the_literal_loop(monkeypatch, block):
    monkeypatch.setattr(d, "BLOCK_ELEMENTS", block)
    rng = np.random.default_rng(0)
    centres = rng.integers(-3, 4, (6, 4))
    identities = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 1])  # 4 and 5 have no mate
    probes = (centres[identities] + rng.integers(-1, 2, (12, 4))).astype(np.float64)
    distractors = rng.integers(-4, 5, (40, 4)).astype(np.float64)  # integers, so ties are exact
    result = d.megaface(probes, identities, distractors, ranks=(1, 3, 10))
    squared = ((probes[:, None] - distractors) ** 2).sum(-1)
    ranks, counts = [], []
    for i in range(12):
        for j in range(12):
            if i != j and identities[i] == identities[j]:
                own = ((probes[i] - probes[j]) ** 2).sum()
                ranks.append(1 + (squared[i] <= own).sum())
                counts.append((squared <= own).sum())
    ranks = np.array(ranks)
    np.testing.assert_allclose(result.identification, [np.mean(ranks <= k) for k in (1, 3, 10)])
    assert 0 < result.identification[0] < 1
    np.testing.assert_array_equal(result.false_accepts.counts, np.sort(counts))
    assert result.false_accepts.impostors == 12 * 40
    assert result.false_accepts.tar([0.01]) == np.mean(np.array(counts) <= 4)


def test_refined_lists_by_hand():
    features = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    identities, noisy = np.array([3, 3, 3, 8]), np.array([False, False, True, False])
    refined = d.refine_probes(features, identities, noisy, np.random.default_rng(0))
    assert refined.shape == (4, 3) and refined.dtype == np.float32
    np.testing.assert_array_equal(refined[[0, 1, 3], :2], features[[0, 1, 3]])
    np.testing.assert_allclose(refined[2, :2], [0.5**0.5, 0.5**0.5], atol=2e-3)
    assert refined[2, 0] != refined[2, 1]
    assert np.linalg.norm(refined[2]) == pytest.approx(1)
    assert not refined[:, 2].any()
    distractors = d.refine_distractors(features[:2], [False, True])
    np.testing.assert_array_equal(distractors, np.array([[1, 0, 0], [0, 1, 100]], np.float32))
    raw = d.megaface(np.float32([[0, 1], [0, 0.9]]), [1, 1], np.float32([[0, 1], [1, 0]]))
    clean = d.megaface(np.float32([[0, 1, 0], [0, 0.9, 0]]), [1, 1], d.refine_distractors([[0, 1], [1, 0]], [1, 0]))
    assert raw.identification == [0] and clean.identification == [1]


@pytest.mark.parametrize("block", [1, 2**24])
def test_cmc(monkeypatch, block):
    monkeypatch.setattr(d, "BLOCK_ELEMENTS", block)
    gallery = [[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 1.0]]
    labels = [0, 1, 2, 3]
    probes = [[1.0, 0.1], [1.0, 0.1], [0.0, 1.0], [1.0, 0.1]]
    # Ranks: 0 is first; 1 ties with 3 for second, so third; 1 ties with 3 for first, so second; 2 is last.
    np.testing.assert_allclose(d.cmc(probes, [0, 1, 1, 2], gallery, labels, 5), [0.25, 0.5, 0.75, 1, 1])
    # With several mates in the gallery, the best one determines the rank.
    np.testing.assert_allclose(d.cmc(probes[:1], [0], gallery, [0, 1, 0, 0], 2), [1, 1])


@quick
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_feature_files_round_trip(values):
    with tempfile.NamedTemporaryFile() as file:
        d.write_feature(file.name, values)
        np.testing.assert_array_equal(d.read_feature(file.name), np.float32(values))
        with open(file.name, "rb") as stream:
            assert stream.read() == struct.pack(f"<4i{len(values)}f", len(values), 1, 4, 5, *values)


@quick
@given(st.binary(max_size=40))
def test_invalid_feature_files_raise(data):
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with pytest.raises(ValueError, match="offset 0: header"):
            d.read_feature(file.name)


def test_truncated_feature_files_raise(tmp_path):
    path = tmp_path / "x.bin"
    d.write_feature(path, [1.0, 2.0])
    whole = path.read_bytes()
    for data in (whole[:-1], whole + b"\0"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.bin, offset 16: \d bytes; expected 8 for n = 2"):
            d.read_feature(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.megaface(np.ones((2, 3)), [1, 1], np.ones((2, 2))), r"expected \[P, D\], \[P\], \[M, D\]"),
        (lambda: d.megaface(np.ones((2, 3)), [1, 2], np.ones((2, 3))), "none of the 2 occurs twice"),
        (lambda: d.megaface(np.ones((2, 3)), [1, 1], np.ones((2, 3)), (1, 3)), r"expected 1\.\.2"),
        (lambda: d.megaface(np.ones((2, 3)), [1, 1], np.full((2, 3), np.nan)), "near distractor 0 are not finite"),
        (lambda: d.refine_probes(np.ones((2, 3)), [1, 2], [0, 1], np.random.default_rng(0)), "identity 2: all images"),
        (lambda: d.cmc(np.ones((2, 3)), [1, 2], np.ones((2, 3)), [1, 3]), "1 of 2 have no mate"),
        (lambda: d.cmc(np.ones((2, 3)), [1], np.ones((2, 3)), [1, 3]), "expected one each"),
        (lambda: d.write_feature("unused", []), "expected .n. with n > 0"),
    ],
)
def test_invalid_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()
