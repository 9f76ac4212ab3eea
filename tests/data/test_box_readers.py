"""Readers of boxes: WIDER FACE, RetinaFace's labels, COCO, Pascal VOC, the tfds catalogue."""

import json

import cv2
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facejax.data.readers import boxes, wider

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
number = st.integers(0, 3000)


def written(tmp_path, text, name="labels.txt"):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


WIDER = """0--Parade/a.jpg
2
449 330 122 149 0 0 0 0 0 0
361 98 0 339 0 0 0 0 0 0
0--Parade/b.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Handshaking/c.jpg
1
10 20 30 40 2 0 1 1 2 1
"""


def test_wider_face(tmp_path):
    file = written(tmp_path, WIDER)
    (tmp_path / "0--Parade").mkdir()
    (tmp_path / "0--Parade/a.jpg").write_bytes(b"content")
    with pytest.warns(UserWarning, match="labels.txt: 1 of 3 boxes have no area: they are ignored"):
        source = wider.read_wider(file, tmp_path)
    assert source.names == ["0--Parade/a.jpg", "0--Parade/b.jpg", "1--Handshaking/c.jpg"]
    assert source.counts.tolist() == [1, 0, 0]
    first = source[0]
    assert first["image"] == b"content"
    assert first["name"] == "0--Parade/a.jpg"
    np.testing.assert_array_equal(first["boxes"], [[449, 330, 571, 479], [361, 98, 361, 437]])
    assert first["boxes"].dtype == np.float32
    assert first["ignored"].tolist() == [False, True]
    assert first["points"].shape == (2, 5, 2)
    assert not first["visible"].any()
    assert source._images[1].boxes.shape == (0, 4)
    assert source._images[2].ignored.tolist() == [True]  # marked invalid


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "line 1: '': expected the path of an image"),
        ("a.jpg\n", "line 2: '': expected the number of faces of 'a.jpg'"),
        ("a.jpg\nx\n", "line 2: 'x': expected the number of faces"),
        ("a.jpg\n-1\n", "line 2: '-1': expected the number"),
        ("a.jpg\n99999999999999999999\n", "line 2: '99999999999999999999': expected the number"),
        ("a.jpg\n999999999\n1 1 1 1 0 0 0 0 0 0\n", "line 3: the file ends before row 999999999 of 'a.jpg'"),
        ("a.jpg\n2\n1 1 1 1 0 0 0 0 0 0\nb.jpg\n", "line 4: 'b.jpg': expected 10 finite numbers"),
        ("a.jpg\n1\n1 1 1 1 0 0 0 0 0\n", "line 3: .* expected 10 finite numbers"),
        ("a.jpg\n1\n1 1 nan 1 0 0 0 0 0 0\n", "line 3: .* expected 10 finite numbers"),
        ("a.jpg\n0\n1 1 1 1 0 0 0 0 0 0\n", "line 3: expected a row of zeros"),
        ("../../etc/a.jpg\n0\n", "line 1: '../../etc/a.jpg': expected the path of an image within its folder"),
        ("/etc/a.jpg\n0\n", "line 1: '/etc/a.jpg': expected the path"),
        (b"\xff\xfe\x00", "not a readable text file"),
    ],
)
def test_damaged_wider_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        wider.read_wider(written(tmp_path, text), tmp_path)


FACE = "449 330 122 149 488.9 373.6 0.0 542.1 376.4 1.0 515.0 412.8 0.0 478.2 425.8 0.0 538.3 431.5 0.0 0.82"


def test_retinaface_labels(tmp_path):
    missing = "10 20 30 40" + " -1.0 -1.0 -1.0" * 5 + " 0.3"
    outside = "0 20 30 40" + " -1.0 25.0 1.0" + " 9 9 0" * 4 + " 0.3"
    text = f"# 0--Parade/a.jpg\n{FACE}\n{missing}\n{outside}\n# 0--Parade/none.jpg\n"
    source = wider.read_retinaface(written(tmp_path, text), tmp_path)
    assert source.names == ["0--Parade/a.jpg", "0--Parade/none.jpg"]
    first = source._images[0]
    np.testing.assert_array_equal(first.boxes[:2], [[449, 330, 571, 479], [10, 20, 40, 60]])
    np.testing.assert_allclose(first.points[0, [0, 4]], [[488.9, 373.6], [538.3, 431.5]], rtol=1e-6)
    assert first.visible.tolist() == [[True] * 5, [False] * 5, [True] * 5]
    assert not first.points[1].any()
    assert source._images[1].points.shape == (0, 5, 2)


def test_retinaface_validation_rows(tmp_path):
    source = wider.read_retinaface(written(tmp_path, "# a.jpg\n1 2 3 4\n5 6 7 8\n"), tmp_path)
    np.testing.assert_array_equal(source._images[0].boxes, [[1, 2, 4, 6], [5, 6, 12, 14]])
    assert source._images[0].visible.shape == (2, 5)
    assert not source._images[0].visible.any()


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "line 1: '': expected '# ' and the path"),
        ("1 2 3 4\n", "line 1: '1 2 3 4': expected '# ' and the path"),
        ("# a.jpg\n1 2 3\n", "line 2: '1 2 3': expected 4 or 20 finite numbers"),
        (f"# a.jpg\n1 2 3 4\n{FACE}\n", "line 3: .*expected 4 or 20 finite numbers"),
        ("#\n1 2 3 4\n", "line 1: '': expected the path of an image"),
        ("# a.jpg\n1 2 3 inf\n", "line 2: .*expected 4 or 20"),
    ],
)
def test_damaged_retinaface_labels(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        wider.read_retinaface(written(tmp_path, text), tmp_path)


@quick
@given(st.lists(st.lists(st.tuples(number, number, number, number, st.booleans()), max_size=4), min_size=1, max_size=4))
def test_wider_round_trip(tmp_path, images):
    text = ""
    for i, rows in enumerate(images):
        lines = [f"{x} {y} {w} {h} 0 0 0 {int(bad)} 0 0" for x, y, w, h, bad in rows] or [" ".join("0" * 10)]
        text += "\n".join([f"e/{i}.jpg", str(len(rows)), *lines]) + "\n"
    found = wider._read_text(written(tmp_path, text), tmp_path)
    assert len(found) == len(images)
    for image, rows in zip(found, images, strict=True):
        expected = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows], np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(image.boxes, expected)
        assert image.ignored.tolist() == [bad or w == 0 or h == 0 for _, _, w, h, bad in rows]


@quick
@pytest.mark.filterwarnings("ignore:.*have no area")
@given(st.data())
def test_changed_files_are_read_or_refused(tmp_path, data):
    """Files with changed bytes raise nothing but ValueError."""
    readers = {
        "wider.txt": (WIDER.encode(), wider.read_wider),
        "label.txt": (f"# a.jpg\n{FACE}\n".encode(), wider.read_retinaface),
        "coco.json": (json.dumps(coco()).encode(), boxes.read_coco),
        "voc.xml": (VOC.encode(), lambda file, folder: boxes.read_voc_file(file)),
    }
    name = data.draw(st.sampled_from(sorted(readers)))
    content, read = readers[name]
    at = data.draw(st.integers(0, len(content) - 1))
    new = data.draw(
        st.one_of(st.binary(max_size=3), st.sampled_from([b"", b"null", b"-1", b"1e999", b"[", b"<", b"{}"]))
    )
    stop = at + data.draw(st.integers(0, 40))
    try:
        read(written(tmp_path, content[:at] + new + content[stop:], name), tmp_path)
    except ValueError as error:
        assert name in str(error)


def test_wider_matlab_files(tmp_path):
    def cells(*values):
        out = np.empty((len(values), 1), object)
        for i, value in enumerate(values):
            out[i, 0] = value
        return out

    content = {
        "event_list": cells("0--Parade"),
        "file_list": cells(cells("a", "b")),
        "face_bbx_list": cells(cells(np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([[9, 9, 2, 2]]))),
        "invalid_label_list": cells(cells(np.array([[0], [1]]), np.array([[0]]))),
    }
    scipy.io.savemat(tmp_path / "split.mat", content)
    source = wider.read_wider(tmp_path / "split.mat", tmp_path)
    assert source.names == ["0--Parade/a.jpg", "0--Parade/b.jpg"]
    np.testing.assert_array_equal(source._images[0].boxes, [[1, 2, 4, 6], [5, 6, 12, 14]])
    assert source._images[0].ignored.tolist() == [False, True]
    del content["invalid_label_list"]
    scipy.io.savemat(tmp_path / "other.mat", content)
    with pytest.raises(ValueError, match=r"other.mat: expected a MATLAB file with event_list.*invalid_label_list"):
        wider.read_wider(tmp_path / "other.mat", tmp_path)
    with pytest.raises(ValueError, match=r"bad.mat: expected a MATLAB file"):
        wider.read_wider(written(tmp_path, b"not MATLAB", "bad.mat"), tmp_path)


@pytest.mark.filterwarnings("ignore:.*have no area")
def test_the_official_validation_set(test_data, tmp_path):
    """The published counts: 3,226 images and 39,708 boxes of 61 events, 11 of them without area."""
    file = test_data / "wider_face_eval/wider_face_val.mat"
    with pytest.warns(UserWarning, match="11 of 39708 boxes have no area"):
        source = wider.read_wider(file, tmp_path)
    assert len(source) == 3226
    assert len({name.partition("/")[0] for name in source.names}) == 61
    assert sum(len(image.boxes) for image in source._images) == 39708


def coco():
    return {
        "images": [{"id": 9, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 90, "bbox": [1.5, 2, 3, 4], "iscrowd": 0, "area": 7.5},
            {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 10, 10], "iscrowd": 1},
        ],
    }


def test_coco(tmp_path):
    source = boxes.read_coco(written(tmp_path, json.dumps(coco())), tmp_path)
    assert source.names == ["a.jpg", "b.jpg"]
    assert source.counts.tolist() == [0, 1]
    image = source._images[1]
    np.testing.assert_array_equal(image.boxes, [[1.5, 2, 4.5, 6], [0, 0, 10, 10]])
    assert image.labels.tolist() == [1, 0]
    assert image.ignored.tolist() == [False, True]
    assert image.areas.tolist() == [7.5, 100]
    assert image.points.shape == (2, 0, 2)
    assert source._images[0].areas.shape == (0,)


def damaged(*path, value=None):
    """COCO's content with one value changed, or removed."""
    content = coco()
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


@pytest.mark.parametrize(
    "content,message",
    [
        ([], "labels.txt: holds a list, expected a dict"),
        (damaged("categories"), "no list categories"),
        (damaged("annotations", 1, "bbox"), "annotation 1: no 'bbox', in {'id': 2"),
        (damaged("annotations", 0, "bbox", value=[1, 2, 3]), "annotation 0: not enough values"),
        (damaged("annotations", 0, "bbox", value=[1, 2, 3, 1e999]), "annotation 0: .*four finite numbers"),
        (damaged("annotations", 0, "area", value=1e999), "annotation 0: area inf: expected a finite number"),
        (damaged("annotations", 0, "image_id", value=4), "annotation 0: image 4, category 90: expected known ids"),
        (damaged("annotations", 0, "image_id", value=[4]), "annotation 0: "),
        (damaged("annotations", 0, "category_id", value=2), "annotation 0: .*expected known ids"),
        (damaged("annotations", 0, value=7), "annotation 0: .*, in 7"),
        (damaged("images", 0, "file_name"), "labels.txt: no 'file_name'"),
        (damaged("images", 0, "file_name", value="../x.jpg"), "image 9: '../x.jpg': expected the path"),
    ],
)
def test_damaged_coco_files(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        boxes.read_coco(written(tmp_path, json.dumps(content)), tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, b"\xff\xff"], ids=["empty", "cut", "deep", "binary"])
def test_files_that_are_no_json(tmp_path, text):
    with pytest.raises(ValueError, match=r"labels.txt: not a readable JSON file"):
        boxes.read_coco(written(tmp_path, text), tmp_path)


VOC = """<annotation><size><width>500</width><height>375</height></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>500</xmax><ymax>375</ymax></bndbox></object>
<object><name>person</name><difficult>1</difficult>
<bndbox><xmax>20</xmax><xmin>11.5</xmin><ymin>31</ymin><ymax>40</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part></object>
</annotation>"""


def test_voc(tmp_path):
    """Pixels 1 to 500 are the whole width, 0..500; parts of persons are no objects."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / name).mkdir(parents=True)
    written(tmp_path / "Annotations", VOC, "000005.xml")
    written(tmp_path / "Annotations", "<annotation/>", "000007.xml")
    written(tmp_path / "ImageSets/Main", "000005\n000007\n", "trainval.txt")
    source = boxes.read_voc([tmp_path, tmp_path], "trainval")
    assert source.names == ["000005", "000007"] * 2
    image = source._images[0]
    assert image.picture == tmp_path / "JPEGImages/000005.jpg"
    np.testing.assert_array_equal(image.boxes, [[0, 0, 500, 375], [10.5, 30, 20, 40]])
    assert image.labels.tolist() == [11, 14]
    assert image.ignored.tolist() == [False, True]
    assert source._images[1].boxes.shape == (0, 4)
    written(tmp_path / "ImageSets/Main", "../000005\n", "test.txt")
    with pytest.raises(ValueError, match=r"test.txt, line 1: '../000005.jpg': expected the path"):
        boxes.read_voc([tmp_path], "test")


BOMB = "<!DOCTYPE a [<!ENTITY x 'xxxxxxxxxx'><!ENTITY y '&x;&x;&x;&x;&x;&x;'>]><annotation>&y;</annotation>"


@pytest.mark.parametrize(
    "text,message",
    [
        (BOMB, "document type 'a': expected none"),
        (BOMB.encode("utf-16"), "document type 'a': expected none"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><annotation/>", "document type 'a'"),
        (VOC[:100], "not a readable XML file"),
        (VOC.replace("dog", "dragon"), "object 0: class 'dragon'"),
        (VOC.replace("<xmin>1</xmin>", "", 1), r"object 0: class 'dog', box \['', '1', '500', '375'\]"),
        (VOC.replace("11.5", "nan"), "object 1: .*expected a class of VOC, four numbers"),
        (VOC.replace("<difficult>1", "<difficult>yes"), "object 1: .*difficult 0 or 1"),
    ],
)
def test_damaged_voc_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        boxes.read_voc_file(written(tmp_path, text))


def test_voc_files_have_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(boxes, "VOC_BYTES", 100)
    with pytest.raises(ValueError, match="bytes: expected at most 100"):
        boxes.read_voc_file(written(tmp_path, VOC))


PNG = cv2.imencode(".png", np.zeros((50, 80, 3), np.uint8))[1].tobytes()


def test_catalogue_examples():
    """A box over the right half of an image of 80 x 50 pixels, of every set."""
    half = np.array([[0, 0.5, 1, 1], [0.2, 0.1, 0.2, 0.3]], np.float32)
    faces = {"bbox": half, "invalid": np.array([True, False])}
    found = boxes.from_catalogue({"image": PNG, "image/filename": b"a.jpg", "faces": faces})
    np.testing.assert_allclose(found["boxes"][0], [40, 0, 80, 50])
    assert found["ignored"].tolist() == [True, True]  # invalid; without area
    assert found["points"].shape == (2, 5, 2)
    assert found["name"] == "a.jpg"
    assert found["labels"].tolist() == [0, 0]
    assert "areas" not in found
    crowd = {"bbox": half, "label": np.array([7, 79]), "is_crowd": np.array([False, True]), "area": np.array([9, 5])}
    found = boxes.from_catalogue({"image": PNG, "objects": crowd})
    assert found["areas"].tolist() == [9, 5]
    assert found["labels"].tolist() == [7, 79]
    assert found["ignored"].tolist() == [False, True]
    assert found["points"].shape == (2, 0, 2)
    voc = {"bbox": np.array([[1 / 50, 1 / 80, 1, 1]]), "label": np.array([11]), "is_difficult": np.array([False])}
    np.testing.assert_allclose(
        boxes.from_catalogue({"image": PNG, "objects": voc}, voc=True)["boxes"], [[0, 0, 80, 50]]
    )
    empty = {"bbox": np.zeros((0, 4)), "label": np.zeros(0, int), "is_crowd": np.zeros(0, bool)}
    assert boxes.from_catalogue({"image": PNG, "objects": empty})["boxes"].shape == (0, 4)


def test_the_catalogue_joins_its_splits(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    class Builder:
        def as_data_source(self, split, decoders):
            objects = {"bbox": np.zeros((0, 4)), "label": np.zeros(0), "is_difficult": np.zeros(0, bool)}
            count = {"train": 2, "validation": 3}[split]
            return [{"image": PNG, "image/filename": f"{split}{i}", "objects": objects} for i in range(count)]

    monkeypatch.setattr(tfds, "builder", lambda *names, **options: Builder())
    source = boxes.Catalogue("voc/2007", "train")
    assert [source[i]["name"] for i in range(len(source))] == [
        "train0",
        "train1",
        *(f"validation{i}" for i in range(3)),
    ]
    with pytest.raises(IndexError, match="example 5: expected 0 to 4"):
        source[5]
    with pytest.raises(ValueError, match="tfds set 'mnist': expected one of wider_face, coco, voc"):
        boxes.Catalogue("mnist", "train")


def test_an_unprepared_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tfds set 'wider_face', not prepared as ArrayRecord in .*"):
        boxes.Catalogue("wider_face", "train", str(tmp_path))
