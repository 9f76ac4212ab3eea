import argparse
import json

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial import distance

from facejax.analysis import compare, groups
from facejax.metrics import clustering
from tests.analysis.runs import WEIGHTS, make_run, people, unit


def same_partition(a, b):
    return clustering.pairwise(a, b).f == 1 or (len(set(a)) == len(set(b)) == len(a))


@pytest.mark.parametrize("threshold", [-0.1, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("block", [2**24, 64 * 7])
def test_average_linkage_by_components_is_that_of_all_pairs(monkeypatch, threshold, block):
    monkeypatch.setattr(groups, "BLOCK", block)
    features, _ = people(8, 8, noise=0.35, seed=2)
    tree = hierarchy.linkage(distance.pdist(features.astype(float), "cosine"), "average")
    expected = hierarchy.fcluster(tree, 1 - threshold, "distance")
    assert same_partition(groups.average_linkage(features, threshold), expected)


def test_a_component_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(groups, "LARGEST", 5)
    with pytest.raises(ValueError, match=r"6 faces hang together above a cosine of 0\.36, expected at most 5"):
        groups.average_linkage(people(2, 6)[0], 0.36)


@pytest.mark.parametrize("method", [m for m in groups.METHODS if m != "star_fc"])
def test_methods_find_plain_groups(method):
    features, labels = people(5, 12, noise=0.02)
    assert same_partition(groups.cluster(features, method, k=12), labels)


def test_certainty_by_hand():
    features = unit([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8], [-1, 0]])
    found = groups.grouping(features, np.array([7, 7, 4, 4, 1]))
    assert found.group.tolist() == [0, 0, 1, 1, 2] and found.runner_up.tolist() == [1, 1, 0, 0, 1]
    np.testing.assert_allclose(found.own, [0.8, 0.8, 0.8, 0.8, np.nan], atol=1e-6)
    other = [0.3, (0.6 + 0.96) / 2, 0.3, (0.6 + 0.96) / 2, -0.3]
    np.testing.assert_allclose(found.other, other, atol=1e-6)
    np.testing.assert_allclose(found.certainty, 0.8 - np.array(other), atol=1e-6)
    alone = groups.grouping(features[:2], np.array([3, 3]))
    assert alone.runner_up.tolist() == [-1, -1] and alone.certainty.tolist() == [1, 1]


def command(*argv):
    parser = argparse.ArgumentParser()
    groups.add_parser(parser.add_subparsers())
    return groups.run(parser.parse_args(["group", *map(str, argv)]))


@pytest.fixture
def run(tmp_path):
    embeddings, _ = people(3, 4)
    embeddings = np.concatenate([embeddings, unit([np.eye(16)[0] + 0.93 * np.eye(16)[1], np.eye(16)[9]])])
    return make_run(tmp_path / "run", embeddings)


def test_folder_of_groups(run, tmp_path, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert command(run, "--out", tmp_path / "out", "--uncertain", 0.15) == 0
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "groups.jsonl").read_text().splitlines()]
    assert [line["group"] for line in lines] == [0] * 4 + [1] * 4 + [2] * 4 + [0, 3]
    doubtful = [json.loads(line) for line in (out / "uncertain.jsonl").read_text().splitlines()]
    assert [(line["id"], line["runner_up"]) for line in doubtful] == [(12, 1)] and doubtful[0]["certainty"] < 0.1
    assert (
        lines[13]["own"] is None
        and "14 faces, 3 groups of two or more, 1 faces alone, 1 uncertain" in capsys.readouterr().out
    )
    found = sorted(str(p.relative_to(out / "people")) for p in (out / "people").rglob("*"))
    assert found[:7] == ["00000", "00000.png", *(f"00000/{i:08d}_photo{i}.png" for i in (0, 1, 2, 3, 12))]
    assert found[-3:] == ["alone", "alone.png", "alone/00000013_photo13.png"]
    assert (out / "people/alone/00000013_photo13.png").read_bytes() == (run / "crops/00000013.png").read_bytes()
    assert '"group":3' in (out / "index.html").read_text() and not (tmp_path / "out.partial").exists()
    with pytest.raises(ValueError, match="is not empty"):
        command(run, "--out", out)


def test_threshold_of_the_weights(run, tmp_path, capsys):
    assert command(run, "--out", tmp_path / "out", "--uncertain", 0.1) == 0
    assert "no operating point was measured for net: the threshold 0.48" in capsys.readouterr().err
    points = (compare.Point("FMR 0.1 %", 0.99, 0.001, (0, 1), 0.1, (0, 1)),)
    compare.Calibration(WEIGHTS, "mine", 3, 9, 9, 1000, 0, points).save(tmp_path / "mine.json")
    assert command(run, "--out", tmp_path / "strict", "--calibration", tmp_path / "mine.json") == 0
    told = capsys.readouterr()
    assert not told.err and "0 groups of two or more, 14 faces alone" in told.out


def test_an_interrupted_command_goes_on_and_foreign_files_stay(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(groups, "_sheet", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        command(run, "--out", tmp_path / "out")
    assert (tmp_path / "out.partial" / "people").exists() and not (tmp_path / "out").exists()
    assert command(run, "--out", tmp_path / "out") == 0
    (tmp_path / "more.partial").mkdir()
    (tmp_path / "more.partial" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files"):
        command(run, "--out", tmp_path / "more")


def test_contact_sheet_marks_the_uncertain(run, tmp_path):
    from PIL import Image

    crops = [run / f"crops/{i:08d}.png" for i in range(12)]
    groups._sheet(tmp_path / "sheet.png", crops, [0.5] * 11 + [0.01], 0.15)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 128, 1120, 3)
    assert sheet[128, 112 + 50].tolist() == [255, 0, 0] and sheet[0, 50].tolist() == [0, 0, 0]
    assert sheet[50, 3 * 112 + 50].tolist() == [21, 21, 21]


def test_star_fc_from_a_file(tmp_path):
    import jax

    from facejax.clustering import star_fc
    from facejax.interop import files
    from facejax.ops import knn

    features, _ = people(3, 5)
    net, near = star_fc.EdgeNet(), knn.knn(features, 6)
    graph, edges = knn.affinity(near), star_fc.directed_edges(near)
    variables = net.init(jax.random.key(1), features, graph, *edges)
    files.write_safetensors(tmp_path / "net.safetensors", variables)
    probability = jax.nn.softmax(net.apply(variables, features, graph, *edges))[:, 1]
    middle = float(np.median(probability))
    expected = star_fc.cluster(edges, np.asarray(probability), 15, score=middle, shared=0.72)
    found = groups.cluster(features, "star_fc", middle, k=6, star_fc=tmp_path / "net.safetensors")
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="embeddings of 8 numbers"):
        groups.cluster(features[:, :8], "star_fc", k=6, star_fc=tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="needs --star_fc FILE"):
        groups.cluster(features, "star_fc")


def test_photographs(test_data):
    """Ten people with ten unaligned photographs each."""
    embeddings = np.load(test_data / "weights" / "mobilefacenet" / "reference.npz")["orlraws10P_embedding"]
    found = groups.grouping(embeddings, groups.cluster(embeddings))
    assert clustering.bcubed(np.repeat(np.arange(10), 10), found.group).f > 0.9
