import numpy as np
import pytest

from facejax.data import pipeline, readers, sources
from facejax.data.synthetic.faces import png


class Encoded:
    """Encoded images [N, H, W, 3] with classes, read one by one."""

    def __init__(self, images, labels):
        self._images, self._labels = images, labels

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        return {"image": png(self._images[index]), "label": self._labels[index]}


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3)).astype(np.uint8)


def test_a_part_has_the_examples_of_its_rows(images):
    source = Encoded(images, [4, 4, 2, 7, 2, 4])
    part = sources.Part(source, np.array([3, 0]))
    assert len(part) == 2 and part[0] == source[3] and pipeline.fetch(part, [1, 0]) == [source[0], source[3]]


def test_classes_are_read_or_known(images):
    source = Encoded(images, [4, 4, 2, 7, 2, 4])
    np.testing.assert_array_equal(sources.labels(source), [4, 4, 2, 7, 2, 4])
    source.labels = [1] * 6
    np.testing.assert_array_equal(sources.labels(source), [1] * 6)
    assert sources.label({"person": 3, "label": 9}) == 3


def test_subset(images):
    source = Encoded(images, [4, 4, 2, 7, 2, 4])
    part = sources.Subset(source, [5, 2])
    assert len(part) == 2 and [part[i]["label"] for i in range(2)] == [4, 2]
    np.testing.assert_array_equal(sources.image(part[1], 5), images[2])
    assert sources.Subset(source, [5, 2], [0, 1])[1]["label"] == 1


def test_indexed(images):
    example = sources.Indexed(Encoded(images, [0] * 6))[3]
    assert example["index"] == 3 and sources.image(example, 10).shape == (10, 10, 3)


def test_rows_are_taken_in_order():
    rows = sources.Rows({"x": np.arange(4), "y": np.eye(4)}, np.array([3, 3, 0]))
    assert len(rows) == 3 and rows[1]["x"] == 3 and rows[2]["y"][0] == 1
    assert len(sources.Rows({"x": np.arange(4)})) == 4


def test_groups_hold_every_row_of_an_identity_once():
    groups = sources.Groups([7, 2, 7, 5, 2], "all images")
    assert groups.whole == "all images"
    assert [groups[i].tolist() for i in range(len(groups))] == [[1, 4], [3], [0, 2]]


def test_images_are_decoded_on_demand(images, tmp_path, picture_folder):
    folder = readers.read(picture_folder(tmp_path, {"a": images[:4], "b": images[4:]}))
    rows = np.array([[5, 0], [3, 3]])
    found = sources.Images(folder, rows, 5)
    assert found.shape == (2, 2, 5, 5, 3) and len(found) == 2
    np.testing.assert_array_equal(found[:], images[rows])
    np.testing.assert_array_equal(found[0, 1], images[0])
    assert found.names == ["b/1.png", "a/0.png", "a/3.png", "a/3.png"]
    assert len(found.source_names) == 6
    np.testing.assert_array_equal(found.reshape(-1, 5, 5, 3)[2:], images[[3, 3]])
    np.testing.assert_array_equal(sources.take(found, np.array([1, 0]))[1], images[[5, 0]])


def test_arrays_are_named_and_taken_as_images_are(images):
    assert sources.names(images) == ["0", "1", "2", "3", "4", "5"]
    np.testing.assert_array_equal(sources.take(images, np.array([[2], [1]])), images[[[2], [1]]])
