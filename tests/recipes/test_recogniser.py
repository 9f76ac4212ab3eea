"""Recognisers: the bundled ones are those of the default settings; others are trained once and kept on disk."""

import dataclasses
import functools
import itertools

import chex
import jax
import numpy as np
import pytest

from facejax.data import transforms
from facejax.data.synthetic import faces
from facejax.metrics import verification
from facejax.ops import vectors
from facejax.recipes import recogniser as recipe
from facejax.recipes.recogniser import Recogniser, Run

DEFAULT = Recogniser()


@pytest.fixture
def no_training(monkeypatch):
    """Fails where a recogniser would have to be trained."""

    def kept(run, data_dir):
        raise AssertionError(f"seed {run.seed} of {run.task} is not in {recipe.bundle_file()}")

    monkeypatch.setattr(Run, "kept", kept)


def test_the_bundle_holds_the_default_settings(no_training):
    seeds = [DEFAULT.embedder(seed, image_size=48) for seed in range(4)]
    other = DEFAULT.embedder(0, image_size=48, task="quality_clean")
    found = [*seeds, other, DEFAULT.evaluator(image_size=48)]
    assert len(recipe.bundled()) == len(found) == 6
    for embedder in found:
        init = functools.partial(embedder.net.init, train=False)
        made = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 48, 48, 3), np.float32))
        chex.assert_trees_all_equal_shapes_and_dtypes(dict(embedder.variables), dict(made))
        assert embedder.centres.shape == (80, 64)
    with pytest.raises(AssertionError, match="seed 4 of recognition is not in"):
        DEFAULT.embedder(4, image_size=48)


def test_the_bundle_is_of_the_faces_of_today():
    """After a change of these tasks or of the rendering: raise VERSION, `python -m facejax.recipes.recogniser`."""
    assert recipe.VERSION == 1
    keys = {run.task: faces.TASKS[run.task].key for run in recipe.BUNDLE}
    assert keys == {
        "recognition": "recognition_82ba3cc5",
        "recognition_other": "recognition_other_4318b2c1",
        "quality_clean": "quality_clean_4005734c",
    }


def images_of(task, first, count=12):
    """Six images of each of `count` people from number `first` on, and the numbers."""
    task = dataclasses.replace(faces.TASKS[task], per_person=6)
    examples = [example for _, example in faces.generate(task, range(first, first + count))]
    return np.stack([transforms.decode(e["image"]) for e in examples]), np.array([e["person"] for e in examples])


def compare(embedder, images, people):
    """Cosines of all pairs of images, and whether they show one person."""
    unit, upper = vectors.unit_rows(embedder(images)), np.triu_indices(len(people), 1)
    return (unit @ unit.T)[upper], (people[:, None] == people)[upper]


def test_bundled_recognisers_verify_held_out_people(no_training):
    held_out = images_of("recognition", faces.TASKS["recognition"].train)
    for embedder in (DEFAULT.embedder(0, image_size=48), DEFAULT.evaluator(image_size=48)):
        (rate,) = verification.tar_at_far(*compare(embedder, *held_out), (1e-1,))
        assert rate > 0.9


def test_cosines_of_training_people_are_higher(no_training):
    """Why a half of PCNet's people is labelled by the recogniser of the other half."""
    names = ("recognition", "quality_clean")
    cosines = np.zeros((2, 2))
    for (i, trained), (j, shown) in itertools.product(enumerate(names), enumerate(names)):
        embedder = DEFAULT.embedder(0, image_size=48, task=trained)
        cosine, same = compare(embedder, *images_of(shown, 0))
        cosines[i, j] = cosine[same].mean()
    assert np.trace(cosines) / 2 > np.trace(cosines[::-1]) / 2 + 0.02


SMALL = Recogniser(steps=2)


def test_trained_recognisers_are_kept_on_disk(small_world):
    view = {"image_size": 48, "data_dir": str(small_world)}
    first = SMALL.embedder(0, **view)
    files = set((small_world / "recognisers").iterdir())
    again = SMALL.embedder(0, **view)
    np.testing.assert_array_equal(first.centres, again.centres)
    assert set((small_world / "recognisers").iterdir()) == files
    assert not np.array_equal(first.centres, SMALL.embedder(1, **view).centres)
    assert not np.array_equal(first.centres, SMALL.embedder(0, **view, task="recognition_other").centres)


def test_a_bundle_is_written_once_and_then_stays(small_world, monkeypatch, tmp_path):
    run = Run(dataclasses.replace(SMALL, image_size=48), 0)
    monkeypatch.setattr(recipe, "BUNDLE", {run: "small"})
    monkeypatch.setattr(recipe, "bundle_file", lambda: tmp_path / "recognisers.msgpack")
    recipe.bundle(recipe.bundle_file(), str(small_world))
    recipe.bundled.cache_clear()
    own = run.kept(str(small_world))
    monkeypatch.setattr(Run, "kept", None)
    given = SMALL.embedder(0, image_size=48, data_dir="elsewhere")
    written = recipe.bundle_file().read_bytes()
    recipe.bundle(recipe.bundle_file())
    assert recipe.bundle_file().read_bytes() == written
    recipe.bundled.cache_clear()
    variables = {k: own[k] for k in ("params", "batch_stats")}
    chex.assert_trees_all_equal_shapes_and_dtypes(dict(given.variables), variables)
    chex.assert_trees_all_close(dict(given.variables), variables, rtol=1e-3, atol=1e-6)
    assert np.abs(given.centres - own["centres"]).max() > 0  # half precision


def test_photographs_need_weights():
    large = Recogniser(name="iresnet50")
    with pytest.raises(ValueError, match=r"recogniser\.weights is empty: expected a state dict .* iresnet50"):
        large.embedder(0, image_size=112, photographs=True)


def test_weights_are_taken_by_seed(monkeypatch):
    monkeypatch.setattr(recipe, "read_weights", lambda path, net, image_size: path)
    several = Recogniser(weights="a,b,c")
    assert [several.embedder(seed, image_size=48).variables for seed in range(4)] == ["a", "b", "c", "a"]
    assert several.evaluator(image_size=48).variables == "a"


def test_a_recogniser_is_trained_with_arcnegface(small_world):
    view = {"image_size": 48, "data_dir": str(small_world)}
    ours = Recogniser(steps=2, loss="arcnegface").embedder(0, **view).centres
    other = SMALL.embedder(0, **view).centres
    assert ours.shape == other.shape and np.abs(ours - other).max() > 1e-4
