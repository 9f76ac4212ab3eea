import numpy as np

from experiments import quality_board
from facejax.data.quality_faces import unmeasured


def test_board(small_world):
    changes = {"data.data_dir": str(small_world), "data.people": 6, "data.test_people": 6, "recogniser.steps": 2}
    changes |= {"train.steps": 1, "train.batch_size": 8}
    report = quality_board.board(["norm", "magface", "sharpness", "random"], 0, changes)
    assert {row["score"] for row in report.tables["Scores of faces"]} == {"norm", "magface", "sharpness", "random"}
    for row in report.tables["Scores of faces"]:
        assert all(np.isfinite(row[column]) for column in quality_board.COLUMNS)
    assert len(report.tables["Verification of sets"]) == 2
    factors = {row["score"]: row for row in report.tables["Correlation with each factor"]}
    assert set(factors["norm"]) == {"score", *quality_board.FACTORS}
    assert factors["sharpness"]["defocus"] > 0.5


def test_each_factor_is_measured_separately():
    """A score that is one factor's absence follows that one alone."""
    rng, count = np.random.default_rng(0), 600
    faces = unmeasured(np.zeros((count, 1, 1, 3), np.uint8), np.arange(count))
    kind = np.arange(count) % 6 - 1
    fault = np.where(kind < 0, 0, rng.random(count))
    faces = faces._replace(kind=kind, fault=fault, yaw=rng.normal(size=count), light=rng.random(count))
    blind = rng.random(count)
    for name, truth in {"pose": np.abs(faces.yaw), "light": faces.light}.items():
        found = quality_board.by_factor(-truth, faces)
        assert found[name] > 0.99 and max(abs(v) for k, v in found.items() if k != name) < 0.4
    found = quality_board.by_factor(np.where(kind == 1, -fault, blind), faces)
    assert found["defocus"] > 0.99 and abs(found["motion"]) < 0.4


def test_every_system_of_the_wing_is_on_the_board():
    modules = {module for module, _ in quality_board.SCORES.values()}
    assert modules >= {
        "tinyfqnet", "eqface", "human_quality", "faceqnet", "pcnet", "rankiqa", "qan", "qan_pp", "sdd_fiqa", "ser_fiq",
        "magface",
    }  # fmt: skip
