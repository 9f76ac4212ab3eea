import sys

import numpy as np
import pytest

from experiments import alignment_board as board
from facejax.train import Report, app, new_figure


def test_every_aligner_sees_as_many_images_and_the_same_faces(monkeypatch, tmp_path, capsys):
    seen = []

    def run(config, build, **options):
        seen.append((config.seed, config.train.steps * config.train.batch_size, config.data.hard_test))
        numbers = {key: float(len(seen)) for key in board.COLUMNS}
        figures = {"Best and worst faces (true green, predicted red)": new_figure(1, 1)[0]}
        return None, Report(numbers, figures=figures, arrays={"errors": np.full(4, 0.01 * len(seen))})

    monkeypatch.setattr(app, "run", run)
    report = board.board(list(board.ALIGNERS), 640, 3, {})
    assert seen == [(3, 640, False)] * len(board.ALIGNERS)
    rows = report.tables["Aligners"]
    assert [row["nme"] for row in rows] == sorted(range(1, len(board.ALIGNERS) + 1))  # best first
    assert set(board.ALIGNERS) < set(report.figures)
    monkeypatch.setattr(sys, "argv", f"board --only dan --images 64 --workdir {tmp_path}".split())
    board.main()
    assert "dan" in capsys.readouterr().out and (tmp_path / "report.html").is_file()
    monkeypatch.setattr(sys, "argv", ["board", "--only", "dan,sdm"])
    with pytest.raises(SystemExit):
        board.main()
    assert "no aligner 'sdm': expected some of wing" in capsys.readouterr().err
