import functools

import numpy as np

from experiments import quality_photographs as photographs


def test_degradations_grow_with_their_strength():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (112, 96, 3)).astype(np.uint8)
    for kind in photographs.KINDS:
        moved = [np.abs(photographs.degrade(image, kind, s, rng).astype(int) - image).mean() for s in (0.0, 0.3, 1.0)]
        assert moved[0] < 1 < moved[1] < moved[2], kind


def test_board_of_photographs(test_data, monkeypatch):
    monkeypatch.setattr(photographs, "on_top_scores", functools.partial(photographs.on_top_scores, steps=2))
    weights = test_data / "weights" / "mobilefacenet" / "068.ckpt"
    report = photographs.board(str(test_data / "faces" / "att_faces"), str(weights), people=6, masks=3)
    rows = {row["score"]: row for row in report.tables["Scores of photographs"]}
    assert report.metrics["rank1"] > 0.9
    assert rows["sdd_fiqa label"]["fault_correlation"] > 0.6 > abs(rows["random"]["fault_correlation"]) + 0.3
    assert rows["sdd_fiqa label"]["aoc"] > rows["random"]["aoc"]
