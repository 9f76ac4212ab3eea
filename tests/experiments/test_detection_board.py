import sys

import numpy as np
import pytest

from experiments import detection_board as board
from facejax.train import Report, app


def test_every_detector_trains_on_as_many_images(monkeypatch):
    seen = []

    def run(config, build, **options):
        seen.append((config.seed, config.train.steps * config.train.batch_size, config.eval.timed))
        numbers = {key: float(len(seen)) for key in board.COLUMNS if key != "nme"}
        return None, Report(numbers, images={"faces": np.zeros((4, 4, 3), np.uint8)})

    monkeypatch.setattr(app, "run", run)
    report = board.board(list(board.DETECTORS), 320, 7, {"eval.batch_size": 8})
    assert seen == [(7, 320, True)] * len(board.DETECTORS)
    rows = report.tables["Detectors"]
    assert [row["ap"] for row in rows] == sorted(range(1, 11), reverse=True)  # best first
    assert rows[0]["detector"] == board.DETECTORS[-1] and np.isnan(rows[0]["nme"])
    assert set(report.images) == set(board.DETECTORS)
    axis = report.figures["AP against multiply-adds"].axes[0]
    assert {text.get_text() for text in axis.texts} == set(board.DETECTORS)


def test_a_row_is_printed_and_kept(faces_folder, tmp_path, monkeypatch, capsys):
    small = {
        "data.kind": "retinaface", "data.path": str(faces_folder), "data.image_size": 64, "data.max_boxes": 4,
        "train.batch_size": 8, "eval.batch_size": 12,
    }  # fmt: skip
    whole = board.board
    monkeypatch.setattr(board, "board", lambda names, images, seed, changes: whole(names, images, seed, small))
    monkeypatch.setattr(sys, "argv", f"board --only scrfd --images 16 --workdir {tmp_path}".split())
    board.main()
    assert "scrfd" in capsys.readouterr().out
    assert "AP against multiply-adds" in (tmp_path / "report.html").read_text()
    monkeypatch.setattr(sys, "argv", ["board", "--only", "scrfd,mtcnn"])
    with pytest.raises(SystemExit):
        board.main()
    assert "no detector 'mtcnn': expected some of scrfd, retinaface" in capsys.readouterr().err
