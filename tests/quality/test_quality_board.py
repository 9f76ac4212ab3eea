import numpy as np

from experiments import quality_board


def test_board(small_world):
    changes = {"data.data_dir": str(small_world), "data.people": 6, "data.judged": 6, "recogniser.steps": 2}
    report = quality_board.board(["norm", "sharpness", "random"], 0, changes)
    assert {row["score"] for row in report.tables["Scores of faces"]} == {"norm", "sharpness", "random"}
    assert all(np.isfinite(row["aoc"]) for row in report.tables["Scores of faces"])
    assert len(report.tables["Verification of sets"]) == 2


def test_every_system_of_the_wing_is_on_the_board():
    modules = {module for module, _ in quality_board.SCORES.values()}
    assert modules >= {
        "tinyfqnet", "eqface", "human_quality", "faceqnet", "pcnet", "rankiqa", "qan", "qan_pp", "sdd_fiqa", "ser_fiq",
        "magface",
    }  # fmt: skip
