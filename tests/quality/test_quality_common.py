import chex
import flax.linen as nn
import numpy as np
import pytest

from experiments import quality_common as common
from experiments import sets_common
from facejax.ops import vectors


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, picture_folder):
    """A folder of five people with four pictures each, and what the pictures are."""
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3)).astype(np.uint8)
    people = {f"p{i}": images[4 * i : 4 * i + 4] for i in range(5)}
    return picture_folder(tmp_path_factory.mktemp("photographs"), people), images


def test_recognisers_are_kept_and_told_apart(configured, small_world):
    _, config = configured("ser_fiq:synthetic")
    first = common.recogniser(config, 0)
    files = set((small_world / "recognisers").iterdir())
    again = common.recogniser(config, 0)
    np.testing.assert_array_equal(first.centres, again.centres)
    assert set((small_world / "recognisers").iterdir()) == files
    assert not np.array_equal(first.centres, common.recogniser(config, 1).centres)


def test_recognisers_are_written_for_everybody(configured, small_world, monkeypatch, tmp_path, capsys):
    _, config = configured("ser_fiq:synthetic")
    own = common.recogniser(config, 0)
    monkeypatch.setattr(common, "DATA", {**common.DATA, "data_dir": str(small_world)})
    monkeypatch.setattr(common, "RECOGNISER", {**common.RECOGNISER, "steps": config.recogniser.steps})
    monkeypatch.setattr(common, "BUNDLE", ({"seed": 0},))
    monkeypatch.setattr(common, "BUNDLED", tmp_path / "recognisers.msgpack")
    common.main()
    assert capsys.readouterr().out.endswith("seed 0, recognition\n")
    common._bundled.cache_clear()
    monkeypatch.setattr(common, "_trained", None)
    config.data.data_dir = "elsewhere"
    given = common.recogniser(config, 0)
    written = common.BUNDLED.read_bytes()
    common.main()  # what is there already stays, bit by bit
    assert common.BUNDLED.read_bytes() == written
    common._bundled.cache_clear()
    chex.assert_trees_all_equal_shapes_and_dtypes(given.variables, own.variables)
    chex.assert_trees_all_close(given.variables, own.variables, rtol=1e-3, atol=1e-6)
    assert np.abs(given.centres - own.centres).max() > 0  # halves


def test_one_s_own_pictures_need_a_recogniser_s_weights(configured):
    _, config = configured("ser_fiq:synthetic", **{"data.source": "path", "recogniser.name": "iresnet50"})
    with pytest.raises(ValueError, match=r"recogniser\.weights is empty: expected a state dict .* iresnet50"):
        common.recogniser(config, 0)


def test_weights_are_taken_by_seed(configured, monkeypatch):
    monkeypatch.setattr(common.arcface, "read_weights", lambda settings, net: settings.eval.weights)
    _, config = configured("ser_fiq:synthetic", **{"recogniser.weights": "a,b,c"})
    assert [common.recogniser(config, seed).variables for seed in range(4)] == ["a", "b", "c", "a"]


def test_equal_values_are_stretched_to_nothing():
    np.testing.assert_array_equal(common.stretched(np.array([2.0, 4, 3])), [0, 1, 0.5])
    np.testing.assert_array_equal(common.stretched(np.full(3, 7.0)), np.zeros(3))


def test_faces_carry_their_faults(configured):
    _, config = configured("tinyfqnet:synthetic")
    known = common.people(config.data, "train")
    assert known.images.shape == (72, 48, 48, 3) and known.people.max() == 5
    assert known.fault.min() == 0 and 0.5 < known.fault.max() <= 1
    assert ((known.kind == -1) == (known.fault == 0)).all()
    sets = sets_common.sets(configured("qan:synthetic")[1], "test")
    assert sets.images.shape == (12, 8, 48, 48, 3) and (np.bincount(sets.people) == 2).all()
    config.data.people = 3  # whole people, wherever their pictures lie in the file
    assert (np.bincount(common.people(config.data, "train").people) == 12).all()
    config.data.people = 7
    with pytest.raises(ValueError, match=r"data\.people or data\.judged is 7: expected 1 to 6"):
        common.people(config.data, "train")


def test_pictures_of_a_path_are_decoded_when_asked_for(configured, photographs):
    folder, images = photographs
    _, config = configured("qan:synthetic", **{"data.source": "path", "data.path": str(folder), "data.image_size": 12})
    config.data.people, config.data.judged = 3, 2
    known, test = (common.people(config.data, split) for split in ("train", "test"))
    np.testing.assert_array_equal(known.people, np.repeat([0, 1, 2], 4))
    np.testing.assert_array_equal(test.images[[1, 6]], images[[13, 18]])
    np.testing.assert_array_equal(known.images[3], images[3])
    assert test.images.names[:5] == ["p3/0.png", "p3/1.png", "p3/2.png", "p3/3.png", "p4/0.png"]
    assert len(test.images.source_names) == 20 and test.images.source_names[0] == "p0/0.png"
    assert isinstance(test.images, common.Pictures) and np.isnan(test.fault).all()
    config.sets.size = 2
    sets = sets_common.sets(config, "test")
    assert sets.images.shape == (4, 2, 12, 12, 3)
    np.testing.assert_array_equal(sets.images[2], images[16:18])
    np.testing.assert_array_equal(sets.images.reshape(-1, 12, 12, 3)[5], images[17])
    config.data.judged = 4
    with pytest.raises(ValueError, match=r"holds 5 people: expected data\.people \+ data\.judged, 7"):
        common.people(config.data, "test")


class Middle(nn.Module):
    """Embeds a picture as its pixel at row 3, column 2."""

    @nn.compact
    def __call__(self, images, *, train):
        return images[:, 3, 2]


def test_pictures_of_another_size_are_resized():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    large = pictures.repeat(2, 1).repeat(2, 2)
    recogniser = common.Recogniser(Middle(), {}, np.zeros((0, 3)), 8)
    expected = (pictures[:, 3, 2].astype(np.float32) - 127.5) / 127.5
    np.testing.assert_allclose(recogniser(pictures), expected, atol=1e-6)
    np.testing.assert_allclose(recogniser(large), expected, atol=1e-6)


def test_pairs():
    people = np.repeat([0, 1, 2], 10)
    first, second = common.chosen_pairs(people, 435)
    assert len(first) == 435 and (first < second).all()
    first, second = common.chosen_pairs(people, 100)
    same = people[first] == people[second]
    assert same.sum() == 3 * 45 and 40 < (~same).sum() <= 100
    assert len(set(zip(first[same], second[same], strict=True))) == 135
    features = np.random.default_rng(0).normal(size=(30, 4))
    compared = common.compare(features, people, first, second)
    unit = vectors.unit_rows(features)
    cosine = np.clip((unit[first] * unit[second]).sum(1), -1, 1)
    np.testing.assert_allclose(compared.distance, np.arccos(cosine) / np.pi, rtol=1e-6)
    np.testing.assert_array_equal(compared.same, same)


def test_scores_that_say_nothing(configured):
    _, config = configured("tinyfqnet:synthetic")
    with pytest.raises(ValueError, match="expected \\(72,\\), all finite"):
        common.assess(config, np.full(72, np.nan))
    with pytest.raises(ValueError, match="all 72 values of a vector are equal"):
        common.assess(config, np.ones(72))


def test_scores_of_faces_without_known_faults_or_errors(configured):
    """What is unknown is left out, and so is an area over a curve that begins without an error."""
    _, config = configured("tinyfqnet:synthetic")
    people = np.tile([0, 1], 10)
    test = common.unmeasured(np.zeros((20, 4, 4, 3), np.uint8), people)
    features = np.eye(2)[people] + 0.01 * np.random.default_rng(0).normal(size=(20, 2))
    compared = common.compare(features, people, *common.chosen_pairs(people, 1000))
    assert common.measures(config, np.arange(20.0), test, compared).keys() == {"edc_area"}


def test_sets_longer_than_an_example(configured):
    _, config = configured("qan:synthetic", **{"sets.size": 12})
    known, sets = common.people(config.data, "test", "sets"), sets_common.sets(config, "test")
    assert sets.images.shape[:2] == (6, 12)
    for images, person in zip(sets.images, sets.people, strict=True):
        mine = known.images[known.people == person]
        assert all((image == mine).all((1, 2, 3)).any() for image in images)


def test_sets_of_one_picture(configured):
    """Weights say nothing of a set of one: pooled, it is the picture."""
    _, config = configured("qan:synthetic", **{"sets.size": 1})
    count = len(sets_common.sets(config, "test").people)
    features, weights = np.random.default_rng(0).normal(size=(count, 8)), np.random.default_rng(1).random(count)
    report = sets_common.assess(config, features, weights, "l1")
    assert report.metrics["set_tar_at_far_1e-1"] == report.metrics["mean_tar_at_far_1e-1"]
