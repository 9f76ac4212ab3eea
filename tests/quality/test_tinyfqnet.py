import chex
import numpy as np
import pytest

from facejax.quality import tinyfqnet


def test_centre_cosine():
    rng = np.random.default_rng(0)
    people = np.repeat([4, 9], 5)
    features = rng.normal(size=(10, 6)) * rng.uniform(0.1, 9, (10, 1))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    others = unit[1:5].sum(0)
    found = tinyfqnet.centre_cosine(features, people)
    assert found[0] == pytest.approx(unit[0] @ others / np.linalg.norm(others), rel=1e-5)
    own = tinyfqnet.centre_cosine(features, people, leave_one_out=False)
    assert (own > found).all()
    same = np.tile(features[:1], (3, 1))
    chex.assert_trees_all_close(tinyfqnet.centre_cosine(same, np.zeros(3, int)), np.ones(3, np.float32), rtol=1e-6)


def test_centre_cosine_of_a_zero_embedding_is_zero():
    features = np.array([[0.0, 0], [1, 0], [2, 0]])
    chex.assert_trees_all_close(tinyfqnet.centre_cosine(features, np.zeros(3, int)), np.array([0, 1, 1], np.float32))


def test_a_person_with_one_image_raises():
    with pytest.raises(ValueError, match="1 people have one image: expected two or more of each"):
        tinyfqnet.centre_cosine(np.eye(10), np.r_[0, 0, 0, 0, 1, 1, 1, 1, 1, 2])


def test_balanced_draws():
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.uniform(0.93, 1.0, 980), rng.uniform(0.0, 0.1, 20)])
    drawn = labels[tinyfqnet.balanced_draws(rng, labels)]
    assert 0.4 < np.mean(drawn < 0.5) < 0.6
    equal = tinyfqnet.balanced_draws(rng, np.full(1000, 0.3))
    assert len(np.unique(equal)) > 500


def test_presets_trace(presets_trace):
    presets_trace("tinyfqnet")


@pytest.mark.parametrize("preset", ["synthetic", "perceptual"])
def test_smoke(preset, smoke):
    _, report = smoke(f"tinyfqnet:{preset}")
    assert report.arrays["scores"].shape == (72,)


def test_bad_input(raises):
    raises("tinyfqnet:synthetic", "label is 'beauty': expected 'centre' or 'sharpness'", label="beauty")
