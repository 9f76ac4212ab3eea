"""The recognisers that come with the code are those of the default settings, and know faces."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import quality_common as common
from facejax.data import transforms
from facejax.data.synthetic import faces
from facejax.metrics import verification

CONFIG = ConfigDict({"data": common.DATA, "recogniser": common.RECOGNISER})


@pytest.fixture
def nothing_trains(monkeypatch):
    """Fails where a recogniser would have to be trained."""

    def trained(settings, data_dir):
        raise AssertionError(f"seed {settings.seed} of {settings.data.task} is not in {common.BUNDLED}")

    monkeypatch.setattr(common, "_trained", trained)


def test_they_are_those_of_the_default_settings(nothing_trains):
    """After a change of ArcFace's settings or of the face world: `python -m experiments.quality_common`."""
    found = [common.recogniser(CONFIG, **arguments) for arguments in common.BUNDLE]
    assert len(common._bundled()) == len(found) == 5
    for recogniser in found:
        init = functools.partial(recogniser.net.init, train=False)
        made = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 48, 48, 3), np.float32))
        chex.assert_trees_all_equal_shapes_and_dtypes(dict(recogniser.variables), dict(made))
    with pytest.raises(AssertionError, match="seed 4 of recognition is not in"):
        common.recogniser(CONFIG, 4)


def test_they_tell_people_apart_whom_they_have_not_seen(nothing_trains):
    task = dataclasses.replace(faces.TASKS["recognition"], per_person=6)
    examples = [example for _, example in faces.generate(task, range(task.train, task.train + 12))]
    images = np.stack([transforms.decode(e["image"]) for e in examples])
    people = np.array([e["person"] for e in examples])
    upper = np.triu_indices(len(people), 1)
    same = (people[:, None] == people)[upper]
    for recogniser in (common.recogniser(CONFIG, 0), common.judge(CONFIG)):
        unit = verification.unit(recogniser(images))
        (rate,) = verification.tar_at_far((unit @ unit.T)[upper], same, (1e-1,))
        assert rate > 0.9
