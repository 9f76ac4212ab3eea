import os
import pickle
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facejax.data import readers
from facejax.data.readers import recordio
from facejax.data.readers.folder import ImageFolder
from facejax.data.readers.recordio import RecordFile, encode_record, write_records
from facejax.data.readers.verification import VerificationPack, read_pack, write_pack

MAGIC = struct.pack("<I", recordio.MAGIC)


def jpeg(value, size=(8, 6)):
    return cv2.imencode(".jpg", np.full((*size, 3), value, np.uint8))[1].tobytes()


def write_raw(folder, records):
    """Writes records, a dict key -> bytes, in order."""
    (folder / "train.rec").write_bytes(b"".join(records.values()))
    offsets = np.cumsum([0] + [len(r) for r in records.values()])
    lines = [f"{key}\t{offset}\n" for key, offset in zip(records, offsets, strict=False)]
    (folder / "train.idx").write_text("".join(lines))
    return folder / "train.rec"


def test_golden_record():
    record = encode_record(bytes.fromhex("ffd8ffd900"), 7.0, 3)
    expected = "0a23d7ce1d000000 00000000 0000e040 0300000000000000 0000000000000000 ffd8ffd900 000000"
    assert record == bytes.fromhex(expected)
    assert len(record) == 40


@pytest.mark.parametrize("body", [b"abcd" + MAGIC + b"efgh" + MAGIC + MAGIC, b"ab" + MAGIC + b"cd", MAGIC, b""])
def test_magic_word_in_the_payload(tmp_path, body):
    record = encode_record(body, 1.0, 0)
    assert record.count(MAGIC) == (
        1 + sum(body[i : i + 4] == MAGIC for i in range(0, len(body), 4)) if body[:2] != b"ab" or len(body) != 8 else 2
    )
    path = write_raw(tmp_path, {0: record, 1: encode_record(b"next", 0.0, 1)})
    source = RecordFile(path)
    assert source[0] == {"image": body, "label": 1}
    assert source[1]["image"] == b"next"


def test_pack_with_an_index_of_identities(tmp_path):
    records = {
        0: encode_record(b"", 0.0, 0, (4.0, 6.0)),
        2: encode_record(b"two", 0.0, 2, (1.0, 9.0)),
        1: encode_record(b"one", 0.0, 1),
        3: encode_record(b"three", 1.0, 3),
        4: encode_record(b"", 0.0, 4, (1.0, 2.0)),
        5: encode_record(b"", 0.0, 5, (2.0, 4.0)),
    }
    source = RecordFile(write_raw(tmp_path, records))
    assert (len(source), source.num_classes) == (3, 2)
    assert [source[i]["image"] for i in range(3)] == [b"one", b"two", b"three"]
    assert [source[i]["label"] for i in range(3)] == [0, 1, 1]
    (tmp_path / "property").write_text("7,112,112\n")
    source = readers.read(tmp_path)
    assert (source.num_classes, source.image_size) == (7, [112, 112])


def test_written_packs_are_read_back(tmp_path):
    images = [(jpeg(i), i % 3) for i in range(7)]
    write_records(tmp_path, images, (8, 6))
    source = RecordFile(tmp_path / "train.rec")
    assert [(e["image"], e["label"]) for e in (source[i] for i in range(7))] == images
    assert source.num_classes == 3


def test_damaged_packs_raise(tmp_path):
    write_records(tmp_path, [(jpeg(1), 0), (jpeg(2), 1)], (8, 6))
    path = tmp_path / "train.rec"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"train\.rec: the record at offset \d+ of \d+ bytes ends past the file"):
        RecordFile(path)[1]
    path.write_bytes(b"\0" * len(whole))
    with pytest.raises(ValueError, match="no record at offset 0"):
        RecordFile(path)
    path.write_bytes(whole)
    (tmp_path / "train.idx").write_text("0\t0\n1\t99999999\n")
    with pytest.raises(ValueError, match=r"train\.idx: line 2 points at 99999999, past the end"):
        RecordFile(path)
    (tmp_path / "train.idx").write_text("zero\t0\n")
    with pytest.raises(ValueError, match="line 1 is 'zero"):
        RecordFile(path)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6), st.integers(0, 400))
def test_fuzzed_packs_raise_value_errors_only(tmp_path_factory, changes, cut):
    folder = tmp_path_factory.mktemp("fuzz")
    records = {0: encode_record(b"", 0.0, 0, (3.0, 5.0))}
    records |= {k: encode_record(b"x" * 11 + MAGIC * k, float(k), k) for k in (1, 2)}
    records |= {k: encode_record(b"", 0.0, k, (1.0, 2.0)) for k in (3, 4)}
    path = write_raw(folder, records)
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(bytes(data[: max(1, len(data) - cut // 4)]))
    try:
        source = RecordFile(path)
        for i in range(min(len(source), 10)):
            assert isinstance(source[i]["image"], bytes)
    except ValueError as error:
        assert str(path.parent) in str(error)


def test_verification_pack_round_trip(tmp_path):
    pack = VerificationPack([b"a", b"b", b"c", b"d"], np.array([True, False]))
    write_pack(tmp_path / "x.bin", pack)
    again = read_pack(tmp_path / "x.bin")
    assert again.images == pack.images
    assert again.images[2].origin == f"{tmp_path / 'x.bin'}, image 2"
    write_pack(tmp_path / "again.bin", again)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "x.bin").read_bytes()
    np.testing.assert_array_equal(again.same, pack.same)
    arrays = ([np.frombuffer(b"ab", np.uint8), b"c"], [np.bool_(True)])
    (tmp_path / "arrays.bin").write_bytes(pickle.dumps(arrays))
    assert read_pack(tmp_path / "arrays.bin").images == [b"ab", b"c"]
    (tmp_path / "two.bin").write_bytes(pickle.dumps(([b"\xff\xd8", b"\xff"], [True]), protocol=2))
    assert read_pack(tmp_path / "two.bin").images[0] == b"\xff\xd8"


def test_real_pack(test_data):
    pack = read_pack(test_data / "faces" / "insightface_bin" / "small_lfw.bin")
    assert len(pack.images) == 20
    assert pack.same.all()
    assert cv2.imdecode(np.frombuffer(pack.images[3], np.uint8), 1).shape == (112, 112, 3)


@pytest.mark.parametrize(
    "pack", [([np.zeros(2), b"c"], [True]), ([b"a", b"b"], [-1]), ([b"a", b"b"], [2]), ([b"a", b"b"], [0.5])]
)
def test_packs_of_other_numbers_raise(tmp_path, pack):
    """Images of floats are no files, and labels of -1 and 1 are not false and true."""
    (tmp_path / "x.bin").write_bytes(pickle.dumps(pack))
    with pytest.raises(ValueError, match=r"x\.bin: expected images as bytes and labels as booleans"):
        read_pack(tmp_path / "x.bin")


def test_fractional_labels_raise(tmp_path):
    path = write_raw(tmp_path, {0: encode_record(b"one", 0.5, 0)})
    with pytest.raises(ValueError, match="a label that is not a class number"):
        RecordFile(path)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


class Evaluated:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize("thing", [Bomb(), Evaluated()])
def test_malicious_pickle_is_not_executed(tmp_path, monkeypatch, thing):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.bin").write_bytes(pickle.dumps(([b"", b""], [thing])))
    with pytest.raises(
        ValueError,
        match=r"bomb\.bin: not a verification pack: pickle refers to \w+\.\w+, expected arrays and containers",
    ):
        read_pack(tmp_path / "bomb.bin")
    assert not (tmp_path / "exploded").exists()


def test_malformed_verification_packs_raise(tmp_path):
    for content, message in (
        (([b""], [True]), "1 images for 1 pairs"),
        ({"a": 1}, "expected a pickled pair"),
        (([1, 2], [True]), "expected images as bytes"),
    ):
        (tmp_path / "w.bin").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_pack(tmp_path / "w.bin")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=5), st.integers(0, 60))
def test_fuzzed_verification_packs_raise_value_errors_only(tmp_path_factory, changes, cut):
    path = tmp_path_factory.mktemp("fuzz") / "f.bin"
    arrays = ([np.arange(5, dtype=np.uint8), b"abc"], np.array([True]))
    data = bytearray(pickle.dumps(arrays, protocol=2))
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(bytes(data[: len(data) - cut]))
    try:
        assert len(read_pack(path).images) % 2 == 0
    except ValueError as error:
        assert "f.bin" in str(error)


def test_folder(tmp_path):
    for name in ("s10", "s2", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "s2" / "10.png").write_bytes(b"ten")
    (tmp_path / "s2" / "9.png").write_bytes(b"nine")
    (tmp_path / "s2" / "notes.txt").write_bytes(b"")
    (tmp_path / "s10" / "1.JPG").write_bytes(b"one")
    source = ImageFolder(tmp_path)
    assert source.class_names == ["s2", "s10"]
    assert [source[i] for i in range(3)] == [
        {"image": b"nine", "label": 0},
        {"image": b"ten", "label": 0},
        {"image": b"one", "label": 1},
    ]
    with pytest.raises(ValueError, match="no images in its sub-folders"):
        ImageFolder(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"expected a folder that contains train\.rec"):
        readers.read(tmp_path / "nothing")


def test_folder_ignores_dot_names_and_has_one_order(tmp_path):
    """Folders that the file system lists in any order, with what notebooks and macOS leave behind."""
    for name in (".ipynb_checkpoints", "7", "07", "a²", "__MACOSX"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "._1.png").write_bytes(b"resource fork")
    for name in (".ipynb_checkpoints", "7", "07", "a²"):
        (tmp_path / name / "1.png").write_bytes(name.encode())
    source = ImageFolder(tmp_path)
    assert source.class_names == ["07", "7", "a²"]
    assert [source[i]["image"].decode() for i in range(len(source))] == ["07", "7", "a²"]


def test_att_faces(test_data):
    source = readers.read(test_data / "faces" / "att_faces")
    assert (len(source), source.num_classes) == (400, 40)
    assert source.class_names[:3] == ["s1", "s2", "s3"]
