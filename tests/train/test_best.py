"""The best state is kept, and a run without improvement ends; both resume exactly."""

import dataclasses

import numpy as np
import pytest

from facejax.train import Options, Report, app, checkpoint, train
from facejax.train.logging import read_metrics

VALUES = {2: 0.5, 4: 0.7, 6: 0.6, 8: 0.7, 10: 0.9, 12: 0.1}
"""Of the evaluation after each step."""


class Killed(Exception):
    pass


@pytest.fixture
def run(toy, tmp_path):
    """Trains the toy for twelve steps in `tmp_path / name`, evaluating after every second one by `values`."""

    def run(name, values=VALUES, kill_at=0, **options):
        config = toy.get_config()
        config.train.update(steps=12, log_every=1, eval_every=2, save_every=1000, batch_size=64, **options)

        def evaluate(state):
            if int(state.step) == kill_at:
                raise Killed
            return Report({"score": values[int(state.step)]})

        experiment = dataclasses.replace(toy.build(config), evaluate=evaluate)
        folder = tmp_path / name
        state, report = train(experiment, Options(**config.train), seed=0, quiet=True, workdir=folder)
        return int(state.step), report.metrics["score"], checkpoint.saved_steps(folder / "best")

    return run


def test_the_best_state_is_kept(run, tmp_path):
    assert run("high", keep_best="score") == (12, 0.1, [10])
    assert run("low", keep_best="-score") == (12, 0.1, [12])
    best = checkpoint.read(tmp_path / "high" / "best", 10)
    assert int(best.leaves["step"]) == 10
    assert best.progress.best == {"metric": "score", "value": 0.9, "step": 10}


def test_patience_ends_a_run_and_a_resumed_one(run, tmp_path, capsys):
    assert run("a", keep_best="score", patience=2) == (8, 0.7, [4])  # an equal value is no better one
    log = (tmp_path / "a" / "metrics.jsonl").read_text()
    assert run("a", keep_best="score", patience=2) == (8, 0.7, [4])
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == log
    assert read_metrics(tmp_path / "a" / "metrics.jsonl")[-1] == {"step": 8, "eval/score": 0.7}
    assert run("b", keep_best="score", patience=3) == (12, 0.1, [10])


@pytest.mark.parametrize("kill_at", [4, 6, 8])
def test_a_killed_run_ends_as_one_that_was_not(run, tmp_path, kill_at):
    whole = run("whole", keep_best="score", patience=2)
    with pytest.raises(Killed):
        run("killed", keep_best="score", patience=2, kill_at=kill_at)
    assert run("killed", keep_best="score", patience=2) == whole
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert logs[0] == logs[1]
    states = [checkpoint.read(tmp_path / name / "best", 4).leaves for name in ("whole", "killed")]
    for name, leaf in states[0].items():
        np.testing.assert_array_equal(leaf, states[1][name])


def test_another_metric_begins_anew(run):
    assert run("a", keep_best="score", patience=2)[0] == 8
    assert run("a", keep_best="-score", patience=3) == (12, 0.1, [12])


def test_options_that_cannot_work_raise(run):
    with pytest.raises(ValueError, match=r"train\.keep_best is 'tar': expected one of score"):
        run("a", keep_best="tar")
    with pytest.raises(ValueError, match=r"train\.keep_best compares evaluations: expected train\.eval_every above 0"):
        Options(8, 8, keep_best="score")
    with pytest.raises(
        ValueError, match=r"train\.patience is 2: expected 0, or more with a metric in train\.keep_best"
    ):
        Options(8, 8, eval_every=2, patience=2)


def test_the_best_state_is_evaluated(toy, tmp_path):
    config = toy.get_config()
    config.train.update(steps=4, eval_every=2, batch_size=64, keep_best="-accuracy")

    def go(**options):
        return app.run(config, toy.build, name="toy", workdir=tmp_path / "run", quiet=True, **options)

    go()
    state, report = go(eval_only=True, best=True)
    points = {
        p["step"]: p["eval/accuracy"] for p in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval/accuracy" in p
    }
    best = min(points, key=lambda step: (points[step], step))
    assert int(state.step) == best
    assert report.metrics["accuracy"] == points[best]
    with pytest.raises(ValueError, match="--best: expected --eval_only and a --workdir beside it, and no --average"):
        go(best=True)
