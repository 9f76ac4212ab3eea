import numpy as np
import pytest

from facejax.formats import arrays, limits, texts
from tests.damage import check


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.ones((0, 3), np.float32), np.array(["ab", "c"])])
def test_arrays_are_those_that_numpy_saved(tmp_path, array):
    for made in (array, np.asfortranarray(array)):
        np.save(tmp_path / "a.npy", made)
        np.savez_compressed(tmp_path / "a.npz", x=made, y=2 * np.ones(3))
        for found in (arrays.load(tmp_path / "a.npy"), arrays.load_all(tmp_path / "a.npz")["x"]):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
    assert set(arrays.load_all(tmp_path / "a.npz")) == {"x", "y"}


def test_damaged_arrays_are_read_or_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(12.0).reshape(3, 4))
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(12.0))
    for name, read in (("a.npy", arrays.load), ("a.npz", arrays.load_all)):
        assert check(tmp_path / name, (tmp_path / name).read_bytes(), read, 300) > 30


def test_objects_and_large_arrays_are_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.array([1, None]))
    with pytest.raises(ValueError, match=r"a\.npy: not a readable array: .* of type object: expected numbers"):
        arrays.load(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros(100_000))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:-8])
    with pytest.raises(ValueError, match=r"799992 bytes, expected 800000 .*\(a download cut short\?\)"):
        arrays.load(tmp_path / "a.npy")
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000))
    monkeypatch.setenv("FACEJAX_MAX_GIB", "0.0005")
    for name, read in (("a.npy", arrays.load), ("a.npz", arrays.load_all)):
        with pytest.raises(ValueError, match=rf"{name}: .*: 0\.000745 GiB, expected at most 0\.0005"):
            read(tmp_path / name)


def test_limits_are_set_by_the_environment(monkeypatch):
    monkeypatch.delenv("FACEJAX_MAX_GIB", raising=False)
    assert limits.memory(4 << 30, "it") == 4 << 30
    with pytest.raises(ValueError, match=r"it: 4 GiB, expected at most 4 \(FACEJAX_MAX_GIB sets the limit\)"):
        limits.memory((4 << 30) + 1, "it")
    monkeypatch.setenv("FACEJAX_MAX_GIB", "8")
    limits.memory(8 << 30, "it")
    limits.pixels(20_000, 10_000)
    with pytest.raises(ValueError, match=r"20001 x 10000 pixels: expected at most 200 million"):
        limits.pixels(20_001, 10_000)
    for text in ("much", "0", "nan"):
        monkeypatch.setenv("FACEJAX_MAX_GIB", text)
        with pytest.raises(ValueError, match=f"FACEJAX_MAX_GIB='{text}' in the environment: expected a number above 0"):
            limits.memory(1, "it")


def test_texts(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\x0cc\n")
    assert texts.read(tmp_path / "a.txt") == "a\nb\x0cc\n"
    for content, message in (
        (b"{", "JSONDecodeError|Expecting"),
        (b"\xff", "byte 0 is no UTF-8"),
        (b"[" * 100_000, ""),
    ):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.json: not a readable JSON file: .*{message}"):
            texts.read_json(tmp_path / "a.json", dict)
    (tmp_path / "a.json").write_bytes(b"[]")
    with pytest.raises(ValueError, match=r"a\.json: holds a list, expected a dict"):
        texts.read_json(tmp_path / "a.json", dict)
