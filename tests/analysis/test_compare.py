import argparse
import dataclasses
import json

import numpy as np
import pytest

from facejax.analysis import compare, main
from tests.analysis.runs import FakeAnalyzer, faces_of, people

SCORES = np.array([0.9, 0.8, 0.7, 0.35, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, -0.1, -0.2, -0.3])
SAME = np.arange(14) < 4
ENDS = np.array([[0, 0], [1, 1], [2, 2], [3, 3], *([i % 4, (i + 1 + i // 4 % 2) % 4] for i in range(10))])


def points(**options):
    return {p.name: p for p in compare.calibrate(SCORES, SAME, ENDS, **options)}


def test_thresholds_by_hand():
    found = points(targets=(0.2, 0.1, 0.09))
    assert set(found) == {"FMR 20 %", "FMR 10 %", "equal error"}  # 9 % of ten pairs is not one
    for name, threshold, fmr, fnmr in (
        ("FMR 20 %", 0.45, 0.2, 0.25), ("FMR 10 %", 0.55, 0.1, 0.25), ("equal error", 0.45, 0.2, 0.25),
    ):  # fmt: skip
        point = found[name]
        np.testing.assert_allclose((point.threshold, point.fmr, point.fnmr), (threshold, fmr, fnmr), atol=1e-12)


def test_equal_scores_never_exceed_the_target():
    scores = np.array([0.9, 0.5, *[0.5] * 5, *[0.1] * 5])
    ends = np.array([[0, 0], [1, 1], *[[0, 1]] * 10])
    (point,) = (p for p in compare.calibrate(scores, np.arange(12) < 2, ends, (0.2,)) if p.name == "FMR 20 %")
    np.testing.assert_allclose((point.threshold, point.fmr, point.fnmr), (0.7, 0, 0.5))


def test_intervals_are_those_of_a_bootstrap_over_people():
    rng = np.random.default_rng(3)
    ends = rng.integers(0, 12, (80, 2))
    same, accepted = ends[:, 0] == ends[:, 1], rng.random(80) < 0.4
    assert 2 < same.sum() < 20
    found = compare._bootstrap(same, ends)(accepted)
    rates = [[], []]
    for draws in np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), compare.RESAMPLES):
        copies = [draws[a] * (draws[b] if a != b else 1) for a, b in ends]
        for kind, wrong, kept in ((~same, accepted, rates[0]), (same, ~accepted, rates[1])):
            total = sum(c for c, k in zip(copies, kind, strict=True) if k)
            if total:
                kept.append(sum(c for c, k, w in zip(copies, kind, wrong, strict=True) if k and w) / total)
    np.testing.assert_allclose(found, [np.quantile(r, [0.025, 0.975]) for r in rates], rtol=1e-9)


def test_without_an_error_the_interval_is_that_of_as_many_trials_as_people():
    for count in (10, 9):
        ends = np.array([[i, j] for i in range(count) for j in range(i + 1)])
        same = ends[:, 0] == ends[:, 1]
        fmr, fnmr = compare._bootstrap(same, ends)(same)
        np.testing.assert_allclose(fmr[1], 1 - 0.025 ** (1 / 5) if count == 10 else 1)  # five disjoint pairs
        np.testing.assert_allclose(fnmr[1], 1 - 0.025 ** (1 / 10) if count == 10 else 1)


def test_pairs_of_two_forms(tmp_path):
    lines = "# mine\na.jpg b.jpg 1\n\nb.jpg sub/c.jpg 1\nd.jpg a.jpg 0\n"
    (tmp_path / "mine.txt").write_text(lines)
    pairs = compare.read_pairs(tmp_path / "mine.txt")
    assert pairs.files == [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "sub/c.jpg", "d.jpg")]
    assert pairs.people[0] == pairs.people[1] == pairs.people[2] != pairs.people[3]
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist()) == ([0, 1, 3], [1, 2, 0], [1, 1, 0])
    (tmp_path / "tabs.txt").write_text("my a.jpg\tb.jpg\t1\n")
    assert compare.read_pairs(tmp_path / "tabs.txt", "/r").files == ["/r/my a.jpg", "/r/b.jpg"]
    (tmp_path / "lfw.txt").write_text("1\t1\nAda_B\t1\t12\nAda_B\t1\tCy_D\t2\n")
    pairs = compare.read_pairs(tmp_path / "lfw.txt", "/r")
    assert pairs.files == [
        f"/r/{name}" for name in ("Ada_B/Ada_B_0001.jpg", "Ada_B/Ada_B_0012.jpg", "Cy_D/Cy_D_0002.jpg")
    ]
    assert pairs.people.tolist() == [0, 0, 1] and pairs.same.tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b 1\na b maybe\n", "line 2: 'a b maybe', expected \"a b 1\""),
        ("a b 1\nb c 1\n\na c 0\n", "line 4: an impostor pair, but other lines make both files one person"),
        ("10 300\nAda 1\n", "line 2: 'Ada 1', expected \"name 1 2\""),
        ("10\n../x 1 2\n", "line 2: '../x 1 2'"),
        ("# nothing\n", "no pair"),
        ("a b 1\n\xff".encode("latin-1"), "byte 6 is no UTF-8"),
    ],
)
def test_faulty_lists(tmp_path, text, message):
    (tmp_path / "pairs.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"pairs\.txt") as error:
        compare.read_pairs(tmp_path / "pairs.txt")
    assert message in str(error.value)


def test_official_list(test_data):
    pairs = compare.read_pairs(test_data / "faces" / "lfw_pairs.txt")
    assert len(pairs.same) == 6000 and pairs.same.sum() == 3000
    np.testing.assert_array_equal(pairs.people[pairs.first] == pairs.people[pairs.second], pairs.same)


@pytest.fixture
def album(tmp_path):
    """An analyzer of 24 photographs of six people, and the list of all their pairs with one more that is missing."""
    embeddings, labels = people(6, 4, noise=0.15)
    analyzer = FakeAnalyzer({f"{i}.jpg": faces_of(np.stack([e, -e])) for i, e in enumerate(embeddings)})
    rows = [f"{i}.jpg {j}.jpg {int(labels[i] == labels[j])}" for i in range(24) for j in range(i)]
    (tmp_path / "pairs.txt").write_text("\n".join([*rows, "lost.jpg 0.jpg 0"]))
    return analyzer, tmp_path / "pairs.txt"


def command(monkeypatch, analyzer, *argv):
    """Runs `facejax compare` with an analyzer."""
    monkeypatch.setattr(main, "analyzer", lambda args: analyzer)
    parser = argparse.ArgumentParser()
    compare.add_parser(parser.add_subparsers())
    return compare.run(parser.parse_args(["compare", *map(str, argv)]))


def test_calibrate_save_and_compare(monkeypatch, capsys, album, tmp_path):
    analyzer, pairs = album
    saved = tmp_path / "mine.json"
    assert command(monkeypatch, analyzer, "--pairs", pairs, "--save", saved, "--about", "my album") == 1
    told = capsys.readouterr()
    assert told.err.count("lost.jpg") == 1
    (calibration,) = compare.load(saved)
    assert dataclasses.replace(calibration, points=()) == compare.Calibration(
        analyzer.identity, "my album", 6, 24, 36, 240, 1, ()
    )
    assert [p.name for p in calibration.points if p.name[0] == "F"] == ["FMR 10 %", "FMR 1 %"]
    assert command(monkeypatch, analyzer, "0.jpg", "1.jpg", "--calibration", saved, "--fmr", 0.01) == 0
    told = capsys.readouterr().out
    first, second = (analyzer.faces[f"{i}.jpg"].embeddings[0] for i in (0, 1))
    assert f"similarity {first @ second:.4f}: same person" in told and "the largest of 2 faces" in told
    assert '"FMR 1 %"' in told and "net on my album: 6 people, 36 genuine and 240 impostor pairs" in told
    assert command(monkeypatch, analyzer, "0.jpg", "5.jpg", "--calibration", saved, "--all") == 0
    told = capsys.readouterr().out
    assert told.count("different people") == 4 and "faces 1 and 1: similarity" in told
    with pytest.raises(ValueError, match="exists"):
        calibration.save(saved)
    with pytest.raises(ValueError, match="--fmr is 1e-09: 240 impostor pairs show rates of 0\\.0042 to 1"):
        command(monkeypatch, analyzer, "0.jpg", "5.jpg", "--calibration", saved, "--fmr", 1e-9)
    analyzer.identity["recogniser"]["sha256"] = "b" * 64
    with pytest.raises(ValueError, match="not for the weights in use"):
        command(monkeypatch, analyzer, "0.jpg", "5.jpg", "--calibration", saved)


def test_without_an_operating_point_only_the_similarity_is_printed(monkeypatch, capsys, album):
    assert command(monkeypatch, album[0], "0.jpg", "1.jpg") == 0
    told = capsys.readouterr().out
    assert "no operating point was measured for net" in told and "person" not in told


def test_unusable_photographs(monkeypatch, capsys, album):
    album[0].faces["empty.jpg"] = album[0].faces["0.jpg"][[]]
    assert command(monkeypatch, album[0], "empty.jpg", "lost.jpg") == 1
    told = capsys.readouterr()
    assert told.err.splitlines() == ["empty.jpg: no face found", "lost.jpg: an image of 4 bytes does not decode"]
    assert not told.out


@pytest.mark.parametrize("content", ["[", "{}", '{"points": 3}', json.dumps({"identity": {"recogniser": {}}})])
def test_junk_is_no_calibration(tmp_path, content):
    (tmp_path / "junk.json").write_text(content)
    with pytest.raises(ValueError, match=r"junk\.json is no calibration"):
        compare.load(tmp_path / "junk.json")


def test_shipped_operating_points():
    for calibration in compare.load(compare.SHIPPED):
        assert len(calibration.identity["recogniser"]["sha256"]) == 64
        assert all(p.fmr_interval[0] <= p.fmr <= p.fmr_interval[1] for p in calibration.points)
        assert all(p.fnmr_interval[0] <= p.fnmr <= p.fnmr_interval[1] for p in calibration.points)


def test_shipped_points():
    """A measured rate of 0.1 % is the usual one, whatever its last bit."""
    (shipped,) = compare.load(compare.SHIPPED)
    assert shipped.point(None).name == "FMR 0.1 %" and shipped.point(0.05).name == "equal error"
    with pytest.raises(ValueError, match="--fmr is 1e-06: 78,000 impostor pairs show rates of"):
        shipped.point(1e-6)
