import numpy as np
import pytest

from facejax.data.graphs import NodeSource
from facejax.data.readers.graph_folder import read_graph

LABELS = ["cat", "dog", "cat", "-1", "7", "dog", "cat", "7"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    (tmp_path / "edges.txt").write_text("# a comment\n0 1\n2, 1\n1\t0\n3 3\n7 2 # last\n")
    np.save(tmp_path / "features.npy", np.arange(16).reshape(8, 2))
    (tmp_path / "split.txt").write_text("train\ntrain\nvalidation\nnone\ntest\ntrain\ntest\ntrain\n")
    return tmp_path


def test_a_graph_by_hand(folder):
    graph = read_graph(folder)
    assert graph.labels.tolist() == [1, 2, 1, 0, 0, 2, 1, 0]  # 7, cat, dog
    assert list(zip(graph.source.tolist(), graph.destination.tolist())) == [
        (0, 1),
        (1, 0),
        (1, 2),
        (2, 1),
        (2, 7),
        (7, 2),
    ]
    assert graph.features.dtype == np.float32
    assert np.flatnonzero(graph.train).tolist() == [0, 1, 5, 7]
    assert np.flatnonzero(graph.validation).tolist() == [2]
    assert np.flatnonzero(graph.test).tolist() == [4, 6]
    loaded = NodeSource("files", str(folder)).load(0)
    np.testing.assert_array_equal(loaded.features, graph.features)


def test_another_graph_is_numbered_by_the_first_ones_classes(folder):
    names = read_graph(folder).names
    assert names == ("7", "cat", "dog")
    (folder / "labels.txt").write_text("\n".join(label.replace("7", "dog") for label in LABELS) + "\n")
    other = NodeSource("files", "elsewhere").load(0, str(folder), names)
    assert other.labels.tolist() == [1, 2, 1, 0, 2, 2, 1, 2]
    (folder / "labels.txt").write_text("\n".join(label.replace("7", "cow") for label in LABELS) + "\n")
    with pytest.raises(ValueError, match=r"labels.txt: class 'cow': expected one of 7, cat, dog"):
        read_graph(folder, names=names)


def test_without_a_split_and_without_features(folder):
    (folder / "split.txt").unlink()
    (folder / "features.npy").unlink()
    graph = read_graph(folder, seed=1, labelled=1)
    np.testing.assert_array_equal(graph.features, np.eye(8))
    assert np.bincount(graph.labels[graph.train]).tolist() == [1, 1, 1]
    assert (graph.train.sum(), graph.validation.sum(), graph.test.sum()) == (3, 2, 2)
    assert not (graph.train[3] or graph.validation[3] or graph.test[3])
    assert not np.array_equal(graph.train, read_graph(folder, seed=2, labelled=1).train)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.txt", "a\na\n", "labels.txt: 1 classes: expected two or more"),
        ("labels.txt", "a\n\nb\n", "labels.txt: 3 classes: .*no empty line"),
        ("edges.txt", "0 1\n0 8\n", "edges.txt, line 2: node 8: expected 0 to 7, as in labels.txt"),
        ("edges.txt", "0 1 2\n", "edges.txt, line 1: '0 1 2': expected two numbers of nodes"),
        ("edges.txt", "0 x\n", "edges.txt, line 1: '0 x': expected two"),
        ("split.txt", "train\n", "split.txt: 1 lines: expected 8, as labels.txt has"),
        ("split.txt", "train\n" * 8, "split.txt, line 4: train for a node of unknown class: expected none"),
        ("split.txt", "train\n" * 3 + "none\n" * 5, "no node of a known class for validation"),
        ("split.txt", "some\n" * 8, "split.txt, line 1: 'some': expected train, validation, test or none"),
        ("features.npy", None, "features.npy: float64 .*: expected numbers"),
        ("labels.txt", None, "labels.txt: not a readable text file"),
    ],
)
def test_damaged_graphs(folder, name, content, message):
    if content is not None:
        (folder / name).write_text(content)
    elif name == "features.npy":
        np.save(folder / name, np.zeros((3, 2)))
    else:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=message):
        read_graph(folder)
