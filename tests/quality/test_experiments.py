"""Every quality experiment runs whole on a few people, and every preset's step can be traced."""

import importlib

import numpy as np
import pytest

from experiments import quality_board, sets_common
from experiments import quality_common as common
from facejax.train import Options, app
from facejax.train.dry_run import dry_run

SMALL = {
    "data.people": 6,
    "data.judged": 6,
    "recogniser.steps": 2,
    "train.steps": 2,
    "train.devices": 1,
    "train.batch_size": 8,
}
RUNS = {
    "tinyfqnet:synthetic": {},
    "tinyfqnet:perceptual": {},
    "sdd_fiqa:synthetic": {"labels.rounds": 2},
    "pcnet:synthetic": {"loss.pictures": 2},
    "ser_fiq:synthetic": {"masks": 3},
    "ser_fiq:on_top": {"masks": 3, "on_top.steps": 3},
    "faceqnet:synthetic": {"recognisers": 2},
    "rankiqa:synthetic": {"train.batch_size": 32},
    "human_quality:synthetic": {"completion.steps": 20},
    "human_quality:matcher": {},
    "eqface:synthetic": {},
    "qan:synthetic": {"train.batch_size": 4},
    "qan_pp:synthetic": {"train.batch_size": 4},
}


def configured(run, small_world, **changes):
    name, preset = run.split(":")
    module = importlib.import_module(f"experiments.{name}")
    config = module.get_config(preset)
    config.data.data_dir = str(small_world)
    config.update_from_flattened_dict({**SMALL, **RUNS.get(run, {}), **changes})
    return module, config


@pytest.mark.parametrize("run", RUNS)
def test_runs(run, small_world):
    module, config = configured(run, small_world)
    _, report = app.run(config, module.build, quiet=True)
    assert all(np.isfinite(value) for value in report.metrics.values()), report.metrics
    assert report.figures and report.images
    assert module.CLAIM is not None


@pytest.mark.parametrize("name", sorted({run.split(":")[0] for run in RUNS}))
def test_every_preset_traces(name):
    module = importlib.import_module(f"experiments.{name}")
    for preset in module.PRESETS:
        config = module.get_config(preset)
        experiment = module.build(config)
        if experiment.train_step is not None:
            assert dry_run(experiment, Options(**config.train))["parameters"] > 0


def test_frozen_trunk_stays(small_world):
    module, config = configured("faceqnet:synthetic", small_world)
    state, _ = app.run(config, module.build, quiet=True)
    trained = common.recogniser(config, config.seed).variables
    np.testing.assert_array_equal(state.params["trunk"]["fc"]["kernel"], trained["params"]["fc"]["kernel"])
    np.testing.assert_array_equal(
        state.model_state["batch_stats"]["trunk"]["bn1"]["norm"]["mean"], trained["batch_stats"]["bn1"]["norm"]["mean"]
    )


def test_recognisers_are_kept_and_told_apart(small_world):
    _, config = configured("ser_fiq:synthetic", small_world)
    first = common.recogniser(config, 0)
    files = set((small_world / "recognisers").iterdir())
    again = common.recogniser(config, 0)
    np.testing.assert_array_equal(first.centres, again.centres)
    assert set((small_world / "recognisers").iterdir()) == files
    assert not np.array_equal(first.centres, common.recogniser(config, 1).centres)


def test_faces_carry_their_faults(small_world):
    _, config = configured("tinyfqnet:synthetic", small_world)
    known = common.people(config.data, "train")
    assert known.images.shape == (72, 48, 48, 3) and known.people.max() == 5
    assert known.fault.min() == 0 and 0.5 < known.fault.max() <= 1
    assert ((known.kind == -1) == (known.fault == 0)).all()
    _, config = configured("qan:synthetic", small_world)
    sets = sets_common.sets(config, "test")
    assert sets.images.shape == (12, 8, 48, 48, 3) and (np.bincount(sets.people) == 2).all()


@pytest.mark.parametrize(
    ("run", "changes", "message"),
    [
        ("tinyfqnet:synthetic", {"label": "beauty"}, "expected 'centre' or 'sharpness'"),
        ("tinyfqnet:synthetic", {"data.people": 7}, "expected 1 to 6"),
        ("sdd_fiqa:synthetic", {"model.name": "r50"}, "expected one of tiny, mobilefacenet"),
        ("pcnet:synthetic", {"loss.pictures": 1}, "expected 2 or more"),
        ("ser_fiq:synthetic", {"recogniser.dropout": 0.0}, "expected above 0"),
        ("ser_fiq:synthetic", {"method": "magic"}, "expected 'same_model'"),
        ("rankiqa:synthetic", {"train.batch_size": 20}, "expected room for ladders of 24"),
        ("human_quality:synthetic", {"score": "charm"}, "expected 'human', 'matcher' or one of"),
        ("eqface:synthetic", {"recogniser.name": "mobilefacenet"}, "expected an IResNet"),
        ("qan:synthetic", {"sets.size": 17}, "nobody has sets.size 17"),
        ("qan:synthetic", {"train.batch_size": 3}, "expected an even number"),
        ("qan_pp:synthetic", {"weighting": "softmax"}, "expected 'minmax', 'l1' or 'mean'"),
    ],
)
def test_bad_input(run, changes, message, small_world):
    module, config = configured(run, small_world, **changes)
    with pytest.raises(ValueError, match=message):
        app.run(config, module.build, quiet=True)


def test_scores_that_say_nothing(small_world):
    _, config = configured("tinyfqnet:synthetic", small_world)
    with pytest.raises(ValueError, match="expected \\(72,\\), all finite"):
        common.assess(config, np.full(72, np.nan))
    with pytest.raises(ValueError, match="all 72 values of a vector are equal"):
        common.assess(config, np.ones(72))


def test_board(small_world):
    changes = {"data.data_dir": str(small_world), "data.people": 6, "data.judged": 6, "recogniser.steps": 2}
    report = quality_board.board(["norm", "sharpness", "random"], 0, changes)
    assert {row["score"] for row in report.tables["Scores of faces"]} == {"norm", "sharpness", "random"}
    assert len(report.tables["Verification of sets"]) == 2
