import dataclasses

import numpy as np
import pytest

from facejax.data.quality_faces import QualityFaces
from facejax.data.sources import Images


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, picture_folder):
    """A folder of five people with four images each, and the images."""
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3)).astype(np.uint8)
    people = {f"p{i}": images[4 * i : 4 * i + 4] for i in range(5)}
    return picture_folder(tmp_path_factory.mktemp("photographs"), people), images


@pytest.fixture(scope="module")
def rendered(small_world):
    return QualityFaces(data_dir=str(small_world), people=6, test_people=6)


def test_rendered_faces_carry_their_degradations(rendered):
    known = rendered.load("train")
    assert known.images.shape == (72, 48, 48, 3) and known.people.max() == 5
    assert known.fault.min() == 0 and 0.5 < known.fault.max() <= 1
    assert ((known.kind == -1) == (known.fault == 0)).all()
    assert len(rendered.undegraded("train")) == np.sum(known.fault == 0)
    sets = rendered.sets("test", 8)
    assert sets.images.shape == (12, 8, 48, 48, 3) and (np.bincount(sets.people) == 2).all()
    assert sets.flat.shape == (96, 48, 48, 3)


def test_people_are_whole_wherever_their_images_lie(rendered):
    three = dataclasses.replace(rendered, people=3)
    assert (np.bincount(three.load("train").people) == 12).all()
    with pytest.raises(ValueError, match=r"data\.people or data\.test_people is 7: expected 1 to 6"):
        dataclasses.replace(rendered, people=7).load("train")


def test_sets_longer_than_an_example(rendered):
    known, sets = rendered.load("test", "sets"), rendered.sets("test", 12)
    assert sets.images.shape[:2] == (6, 12)
    for images, person in zip(sets.images, sets.people, strict=True):
        mine = known.images[known.people == person]
        assert all((image == mine).all((1, 2, 3)).any() for image in images)


def test_images_of_a_path_are_decoded_on_demand(photographs):
    folder, images = photographs
    data = QualityFaces(source="path", path=str(folder), image_size=12, people=3, test_people=2)
    known, test = (data.load(split) for split in ("train", "test"))
    np.testing.assert_array_equal(known.people, np.repeat([0, 1, 2], 4))
    np.testing.assert_array_equal(test.images[[1, 6]], images[[13, 18]])
    np.testing.assert_array_equal(known.images[3], images[3])
    assert test.images.names[:5] == ["p3/0.png", "p3/1.png", "p3/2.png", "p3/3.png", "p4/0.png"]
    assert len(test.images.source_names) == 20 and test.images.source_names[0] == "p0/0.png"
    assert isinstance(test.images, Images) and np.isnan(test.fault).all()
    sets = data.sets("test", 2)
    assert sets.images.shape == (4, 2, 12, 12, 3)
    np.testing.assert_array_equal(sets.images[2], images[16:18])
    np.testing.assert_array_equal(sets.flat[5], images[17])
    with pytest.raises(ValueError, match=r"5 identities: expected data\.people \+ data\.test_people, 7"):
        dataclasses.replace(data, test_people=4).load("test")
