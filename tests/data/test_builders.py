import json

import numpy as np
import pytest
import scipy.io

from facejax.data import readers, transforms
from facejax.data.builders import images, store
from facejax.data.readers.matlab import MatlabFaces
from facejax.data.readers.prepared import PreparedImages
from facejax.data.synthetic.faces import png


class Listed:
    num_classes = 2

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


GOOD = [{"image": png(np.full((4 + i, 5, 3), 40 * i, np.uint8)), "label": i % 2} for i in range(5)]


def test_images_are_written_once_in_order(tmp_path):
    prepared = images.prepare(Listed(GOOD), "mine", tmp_path)
    assert [(prepared[i]["image"], int(prepared[i]["label"])) for i in range(5)] == [
        (e["image"], e["label"]) for e in GOOD
    ]
    again = images.prepare(Listed(GOOD), "mine", tmp_path)
    assert again[3]["image"] == GOOD[3]["image"]
    with pytest.raises(ValueError, match=r"has another number of images \(5\) or identities \(2\) than the source"):
        images.prepare(Listed(GOOD[:4]), "mine", tmp_path)


@pytest.mark.parametrize("digest", [True, False])
def test_a_prepared_set_of_other_people_is_not_reused(tmp_path, digest):
    """Equal in name and length; sets of older versions have no digest."""
    found = images.prepare(Listed(GOOD), "mine", tmp_path)
    if not digest:
        metadata = json.loads((found.folder / "metadata.json").read_text())
        del metadata["digest"]
        (found.folder / "metadata.json").write_text(json.dumps(metadata))
    images.prepare(Listed(GOOD), "mine", tmp_path)
    named = Listed(GOOD)
    named.names = list("abcde")
    for other, message in (
        (Listed([{**e, "label": 1 - e["label"]} for e in GOOD]), "other labels"),
        (Listed([{**e, "image": GOOD[-1]["image"]} for e in GOOD]), "other images"),
        (named, "other image names"),
    ):
        with pytest.raises(ValueError, match=f"mine/1.0.0 has {message} than the source: expected the same"):
            images.prepare(other, "mine", tmp_path)


def test_set_prepared_by_another_process_meanwhile_is_read(tmp_path):
    waiting = images.FacejaxImages(source=Listed(GOOD), name="mine", data_dir=tmp_path)
    images.prepare(Listed(GOOD), "mine", tmp_path)
    assert len(store.prepared(waiting, "train", {"image": store.Encoded()})) == 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"image": GOOD[0]["image"], "label": 2}, "image 5 has label 2, expected 0 to 1"),
        ({"image": b"broken", "label": 0}, "image 5: an image of 6 bytes does not decode"),
    ],
)
def test_bad_source_raises_and_leaves_no_files(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        images.prepare(Listed([*GOOD, bad]), "bad", tmp_path)
    assert len(images.prepare(Listed(GOOD), "bad", tmp_path)) == 5
    with pytest.raises(ValueError, match="name 'No Good', expected lower-case"):
        images.prepare(Listed(GOOD), "No Good", tmp_path)


def test_command_prepares_a_set_that_its_path_opens(tmp_path, capsys):
    for i in range(5):
        (tmp_path / "people" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "people" / "ab"[i % 2] / f"{i}.png").write_bytes(GOOD[i]["image"])
    wanted = ["--source", str(tmp_path / "people"), "--name", "ab", "--data_dir", str(tmp_path / "data")]
    images.main(wanted)
    folder = tmp_path / "data" / "facejax_images" / "ab" / "1.0.0"
    assert f"5 images of 2 identities: --config.data.path={folder}\n" in capsys.readouterr().out
    plain, found = readers.read(tmp_path / "people"), readers.read(folder)
    assert isinstance(found, PreparedImages) and found.num_classes == 2 and len(found) == 5
    assert found.names == plain.names == ["a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png"]
    assert found.labels.tolist() == plain.labels == [0, 0, 0, 1, 1]
    examples = [found[3], *found.__getitems__([0, 4])]
    assert [e["image"] for e in examples] == [plain[i]["image"] for i in (3, 0, 4)]
    for change in (["--source", str(tmp_path / "none")], ["--name", "A"]):
        with pytest.raises(SystemExit, match=r"data\.builders\.images: .*(none: expected a folder|name 'A', expected)"):
            images.main([*wanted, *change])


def test_inconsistent_prepared_set_raises(tmp_path):
    found = images.prepare(Listed(GOOD), "mine", tmp_path)
    assert found.names is None
    metadata = found.folder / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"labels": [0, ', '"labels": ['))
    with pytest.raises(ValueError, match="5 images: expected 4 as in its metadata"):
        readers.read(found.folder)
    metadata.write_text('{"num_classes": 2}')
    with pytest.raises(ValueError, match=r"facejax_images/mine/1\.0\.0 without labels: expected a set"):
        readers.read(found.folder)


def test_matlab_images_are_column_major(tmp_path):
    image = np.arange(6).reshape(3, 2)
    scipy.io.savemat(tmp_path / "f.mat", {"X": np.stack([image.ravel(order="F")] * 2), "Y": [[7], [3]]})
    source = MatlabFaces(tmp_path / "f.mat", (3, 2))
    np.testing.assert_array_equal(transforms.decode(source[0]["image"])[..., 0], image)
    assert [source[i]["label"] for i in range(2)] == [1, 0]
    for content, message in (
        ({"X": np.ones((2, 6))}, "expected a MATLAB file with X, Y: no variable Y"),
        ({"X": np.ones((2, 6)), "Y": [1]}, r"X \(2, 6\) and Y"),
    ):
        scipy.io.savemat(tmp_path / "f.mat", content)
        with pytest.raises(ValueError, match=message):
            MatlabFaces(tmp_path / "f.mat", (3, 2))
    (tmp_path / "no.mat").write_bytes(b"nothing at all")
    with pytest.raises(ValueError, match=r"no\.mat: expected a MATLAB file with X, Y"):
        readers.read(tmp_path / "no.mat")


@pytest.mark.parametrize(("values", "bytes_"), [
    (np.array([0, 0.2, 0.5, 1]), [0, 51, 128, 255]),  # im2double's
    (np.array([0, 50.6, 127.4, 255]), [0, 51, 127, 255]),
    (np.array([0, 1, 1, 0], np.uint8), [0, 255, 255, 0]),  # black and white
    (np.array([0, 1, 2, 255], np.uint8), [0, 1, 2, 255]),
])  # fmt: skip
def test_matlab_images_keep_their_scale(tmp_path, values, bytes_):
    scipy.io.savemat(tmp_path / "f.mat", {"X": values[None], "Y": [[1]]})
    image = transforms.decode(MatlabFaces(tmp_path / "f.mat")[0]["image"])[..., 0]
    assert image.ravel(order="F").tolist() == bytes_


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": [[0, np.nan, 1, 1]], "Y": [[1]]}, "X of type float64, expected finite numbers only"),
        ({"X": [[0, 1, 1, 1j]], "Y": [[1]]}, "X of type complex128, expected finite numbers only"),
        ({"X": [[0, 1.0, 1, 1]], "Y": [[np.nan]]}, "Y of type float64, expected finite numbers only"),
        ({"X": [[-1.0, 1, 1, 1]], "Y": [[1]]}, r"grey values range from -1\.0 to 1\.0, expected 0\.\.255 or 0\.\.1"),
    ],
)
def test_matlab_values_without_a_byte_raise(tmp_path, content, message):
    scipy.io.savemat(tmp_path / "f.mat", content)
    with pytest.raises(ValueError, match=message):
        MatlabFaces(tmp_path / "f.mat")


def test_orl(test_data):
    source = readers.read(test_data / "faces" / "orl" / "ORL.mat")
    assert (len(source), source.num_classes) == (400, 40)
    assert transforms.decode(source[0]["image"]).shape == (32, 32, 3)
