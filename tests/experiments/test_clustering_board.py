import sys

import numpy as np
import pytest

from experiments import clustering_board as board
from facejax.data.synthetic import embeddings

SMALL = {"labelled": 30, "noise": 0.5}


@pytest.mark.parametrize("name", ["ogmc", "components", "kmeans", "cdp_single"])
def test_row_of_the_table(name):
    row = board.run(name, SMALL, {"people": 12}, 0)
    assert row["method"] == name and set(row) == {"method", *board.COLUMNS}
    assert row["pairwise_f"] > 0.5 and row["peak MiB"] > 100


def test_online_clusters_follow_the_scale_of_their_distances():
    people = embeddings.hypersphere(6, 0, noise=0.2, drift=0.0, relatives=0.0)
    counts = [len(np.unique(board.online(people.features, scale))) for scale in (0.01, 0.7, 3.0)]
    assert counts == [len(people.labels), 6, 1]


def test_the_table_is_printed_and_kept(tmp_path, monkeypatch, capsys):
    words = f"board --people 12 --labelled 30 --noise 0.5 --only components --workdir {tmp_path}"
    monkeypatch.setattr(sys, "argv", words.split())
    board.main()
    printed = capsys.readouterr().out
    assert "components" in printed and "pairwise_f" in printed
    assert "components" in (tmp_path / "report.html").read_text()
    monkeypatch.setattr(sys, "argv", ["board", "--only", "cdp,ward"])
    with pytest.raises(SystemExit):
        board.main()
    assert "no method 'ward': expected some of cdp" in capsys.readouterr().err


def test_images_become_files_of_embeddings(tmp_path, picture_folder):
    """Those of the training identities and of held-out ones, as unit rows with their labels."""
    rng = np.random.default_rng(0)
    people = {f"p{person}": rng.integers(0, 255, (4, 16, 16, 3)) for person in range(8)}
    folder = picture_folder(tmp_path / "photographs", people)
    settings = {
        "data.source": "path", "data.path": str(folder), "data.image_size": 16,
        "data.held_out": 0.25, "data.classes": 6, "train.steps": 2, "train.batch_size": 8, "train.devices": 1,
        "eval.batch_size": 8,
    }  # fmt: skip
    data, held_out = board.embed_faces(tmp_path, 1, settings)
    source = embeddings.Source(**data)
    known, unseen = source.known(0), source.unseen(0, embeddings.HeldOut(**held_out))
    assert known.views.shape == (1, 24, 256) and unseen.views.shape == (1, 8, 256)
    np.testing.assert_allclose(np.linalg.norm(unseen.features, axis=1), 1, rtol=1e-4)
    assert np.bincount(known.labels).tolist() == [4] * 6
    assert np.unique(unseen.labels, return_counts=True)[1].tolist() == [4, 4]
