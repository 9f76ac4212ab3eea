"""MATLAB files: SciPy's reader is the oracle."""

import struct
import zlib

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from facejax.formats import matfile
from tests.damage import check


def value(rng, depth=0):
    """A random variable of any class that the reader knows."""
    kind = rng.integers(0, 8 if depth < 3 else 5)
    shape = tuple(rng.integers(0 if rng.random() < 0.1 else 1, 5, rng.integers(2, 4)))
    if kind == 0:
        return rng.normal(size=shape)
    if kind == 1:
        return rng.integers(0, 100, shape).astype(rng.choice(["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4"]))
    if kind == 2:
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)
    if kind == 3:
        return "".join(rng.choice(list("abcäß xyz"), rng.integers(0, 9)))
    if kind == 4:
        return np.array(["ab", "cde  ", "f"])
    if kind == 5:
        return filled(rng, shape[:2], object, lambda: value(rng, depth + 1))
    if kind == 6:
        return {f"field{i}": value(rng, depth + 1) for i in range(rng.integers(1, 4))}
    fields = [("q", object), ("a_longer_name", object)]
    return filled(rng, shape[:2], fields, lambda: (value(rng, depth + 1), value(rng, depth + 1)))


def filled(rng, shape, dtype, make):
    made = np.empty(shape, dtype)
    for place in np.ndindex(shape):
        made[place] = make()
    return made


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype.newbyteorder("=")
    for name in found.dtype.names or ():
        assert_equal(found[name], expected[name])
    if found.dtype == object:
        for a, b in zip(found.ravel(), expected.ravel(), strict=True):
            assert_equal(a, b)
    elif not found.dtype.names:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_equals_scipy(tmp_path, packed):
    rng = np.random.default_rng(int(packed))
    for number in range(40):
        file = tmp_path / f"{number}.mat"
        scipy.io.savemat(file, {"v": value(rng), "w": value(rng)}, do_compression=packed)
        found, expected = matfile.variables(file, ("v", "w")), scipy.io.loadmat(file)
        for name in ("v", "w"):
            assert_equal(found[name], expected[name])


def test_big_endian_by_hand(tmp_path):
    """A row (1, 2) of doubles "ab", as an old workstation wrote it."""
    body = struct.pack(">IIII", 6, 8, 6, 0) + struct.pack(">IIii", 5, 8, 1, 2) + struct.pack(">HH4s", 2, 1, b"ab")
    body += struct.pack(">IIdd", 9, 16, 1.5, -2.0)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    (tmp_path / "a.mat").write_bytes(header + struct.pack(">II", 14, len(body)) + body)
    np.testing.assert_array_equal(matfile.variables(tmp_path / "a.mat", ("ab",))["ab"], [[1.5, -2.0]])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    cells = filled(None, (2, 2), object, lambda: np.arange(6.0).reshape(2, 3))
    content = {"v": np.eye(4), "c": cells, "s": {"a": "text", "b": np.arange(9)}, "t": np.array(["ab", "cd"])}
    path = tmp_path_factory.mktemp("mat") / "some.mat"
    scipy.io.savemat(path, content)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_files_are_read_or_refused(file, tmp_path, packed):
    content = {name: x for name, x in scipy.io.loadmat(file).items() if name[0] != "_"}
    scipy.io.savemat(tmp_path / "f.mat", content, do_compression=packed)
    data = (tmp_path / "f.mat").read_bytes()
    refused = check(tmp_path / "f.mat", data, lambda path: matfile.variables(path, tuple(content)), 300)
    assert refused > 100


def test_what_is_no_array_of_known_kind_is_named(file, tmp_path):
    with pytest.raises(ValueError, match=r"some\.mat: expected a MATLAB file with x: no variable x, only v, c, s, t"):
        matfile.variables(file, ("x",))
    assert set(matfile.variables(file, ("v",), ("t", "none"))) == {"v", "t"}
    with pytest.raises(ValueError, match="s holds no numbers"):
        matfile.numbers(file, ("v", "s"))
    scipy.io.savemat(tmp_path / "a.mat", {"m": scipy.sparse.identity(3)})
    with pytest.raises(
        ValueError, match="variable 'm' of class 5, expected numbers, text, a cell array or a structure"
    ):
        matfile.variables(tmp_path / "a.mat", ("m",))
    (tmp_path / "a.mat").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    with pytest.raises(ValueError, match=r"a\.mat: .*version 7\.3 \(HDF5\), save it with -v7"):
        matfile.variables(tmp_path / "a.mat", ("m",))
    with pytest.raises(ValueError, match=r"none\.mat: .*No such file"):
        matfile.variables(tmp_path / "none.mat", ("m",))


def test_sizes_are_checked_before_memory_is_taken(tmp_path, monkeypatch):
    scipy.io.savemat(tmp_path / "a.mat", {"m": np.zeros((1000, 1000))}, do_compression=True)
    assert (tmp_path / "a.mat").stat().st_size < 20_000
    monkeypatch.setenv("FACEJAX_MAX_GIB", "0.001")
    taken = []
    monkeypatch.setattr(zlib, "decompressobj", lambda make=zlib.decompressobj: taken.append(1) or make())
    with pytest.raises(ValueError, match=r"a\.mat: .*0\.00745 GiB, expected at most 0\.001 \(FACEJAX_MAX_GIB sets"):
        matfile.variables(tmp_path / "a.mat", ("m",))
    assert taken == [1]  # the head alone
