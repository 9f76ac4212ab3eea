"""The recognisers that come with the code are those of the default settings, and know faces."""

import dataclasses
import functools
import itertools

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import quality_common as common
from facejax.data import transforms
from facejax.data.synthetic import faces
from facejax.metrics import verification
from facejax.ops import vectors

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
    assert len(common._bundled()) == len(found) == 6
    for recogniser in found:
        init = functools.partial(recogniser.net.init, train=False)
        made = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 48, 48, 3), np.float32))
        chex.assert_trees_all_equal_shapes_and_dtypes(dict(recogniser.variables), dict(made))
    with pytest.raises(AssertionError, match="seed 4 of recognition is not in"):
        common.recogniser(CONFIG, 4)


def pictures(task, first, count=12):
    """Six pictures of each of `count` people, the number `first` and those after, and who is on them."""
    task = dataclasses.replace(faces.TASKS[task], per_person=6)
    examples = [example for _, example in faces.generate(task, range(first, first + count))]
    return np.stack([transforms.decode(e["image"]) for e in examples]), np.array([e["person"] for e in examples])


def compared(recogniser, images, people):
    """Cosines of all pairs of pictures, and whether they are of one person."""
    unit, upper = vectors.unit_rows(recogniser(images)), np.triu_indices(len(people), 1)
    return (unit @ unit.T)[upper], (people[:, None] == people)[upper]


def test_they_tell_people_apart_whom_they_have_not_seen(nothing_trains):
    unseen = pictures("recognition", faces.TASKS["recognition"].train)
    for recogniser in (common.recogniser(CONFIG, 0), common.judge(CONFIG)):
        (rate,) = verification.tar_at_far(*compared(recogniser, *unseen), (1e-1,))
        assert rate > 0.9


def test_they_find_those_whom_they_have_seen_more_alike(nothing_trains):
    """Why a half of PCNet's people is labelled by the recogniser of the other half."""
    names = ("recognition", "quality_clean")
    alike = np.zeros((2, 2))
    for (i, seen), (j, shown) in itertools.product(enumerate(names), enumerate(names)):
        cosine, same = compared(common.recogniser(CONFIG, 0, seen), *pictures(shown, 0))
        alike[i, j] = cosine[same].mean()
    assert np.trace(alike) / 2 > np.trace(alike[::-1]) / 2 + 0.02
