"""MATLAB files of version 5 to 7.2: numbers, text, cells and structures, without a call to native code.

The arrays are those of `scipy.io.loadmat`: stored types, text as arrays of strings, cells and fields as objects.
"""

from __future__ import annotations

import math
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from facejax.formats import limits

MATRIX, COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
"""Encodings by type of the stored characters."""
CELL, STRUCT, OBJECT, CHAR = 1, 2, 3, 4
_NUMERIC = range(6, 16)
_COMPLEX = 0x0800
DEEPEST = 32
"""The most cells and structures within each other."""


def variables(
    path: str | os.PathLike[str], needed: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Named variables of a MATLAB file.

    Raises:
      ValueError: not a MATLAB file, a damaged one, or a needed variable is missing, of another class (sparse, function)
        or larger than `facejax.formats.limits` allow.
    """
    try:
        found, others = {}, []
        for name, matrix in _matrices(pathlib.Path(path)):
            if name in needed or name in optional:
                found[name] = matrix()
            elif name:
                others.append(name)
        if missing := [name for name in needed if name not in found]:
            raise ValueError(f"no variable {missing[0]}, only {_listed([*found, *others])}")
        return {name: found[name] for name in (*needed, *optional) if name in found}
    except (OSError, ValueError, struct.error, zlib.error, MemoryError) as error:
        raise ValueError(f"{path}: expected a MATLAB file with {', '.join(needed)}: {error}") from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name if name.isprintable() else repr(name) for name in names[:20]) or "none"


def numbers(path: str | os.PathLike[str], needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """As `variables`, arrays of numbers only."""
    found = variables(path, needed, optional)
    for name, value in found.items():
        if value.dtype.kind not in "iufc":
            raise ValueError(f"{path}: {name} holds no numbers, expected an array of them")
    return found


def _matrices(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Name of every variable, and a function that reads it."""
    limits.memory(path.stat().st_size, "the file")
    data = memoryview(path.read_bytes())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
    if order is None or data[125 if order == "<" else 124] != 1:
        hdf5 = b"\x89HDF\r\n\x1a\n" in (bytes(data[:8]), bytes(data[512:520]))
        raise ValueError("version 7.3 (HDF5), save it with -v7" if hdf5 else "no header of version 5 to 7.2")
    place = 128
    while place < len(data):
        kind, start, stop, after = _element(data, place, len(data), order)
        if kind == COMPRESSED:
            yield _Packed(data[start:stop], order, place).entry()
            place = stop
        elif kind == MATRIX:
            yield _name(data[start:stop], order), lambda s=start, e=stop: _matrix(data[s:e], order, 0)
            place = after
        else:
            raise ValueError(f"an element of type {kind} at byte {place}, expected a matrix")


class _Packed:
    """A compressed variable: its beginning tells its size and its name."""

    def __init__(self, data: memoryview, order: str, place: int):
        self._data, self._order, self._where = data, order, f"the variable at byte {place}"

    def entry(self) -> tuple[str, Any]:
        head = memoryview(zlib.decompressobj().decompress(self._data, 1024))
        kind, size = struct.unpack_from(f"{self._order}II", head)
        if kind != MATRIX:
            raise ValueError(f"{self._where} is of type {kind}, expected a matrix")
        return _name(head[8:], self._order), lambda: self._matrix(size)

    def _matrix(self, size: int) -> np.ndarray:
        limits.memory(size, self._where)
        unpacker = zlib.decompressobj()
        whole = memoryview(unpacker.decompress(self._data, size + 8))
        if len(whole) != size + 8 or not (unpacker.eof or not unpacker.decompress(unpacker.unconsumed_tail, 1)):
            raise ValueError(f"{self._where} does not have its {size} bytes")
        if not unpacker.eof:
            raise ValueError(f"{self._where} ends before its checksum")
        return _matrix(whole[8:], self._order, 0)


def _element(data: memoryview, place: int, end: int, order: str) -> tuple[int, int, int, int]:
    """Type of the element at `place`, first byte and end of its content, and the place of the next element."""
    if place + 8 > end:
        raise ValueError("it ends within an element (a download cut short?)")
    kind, size = struct.unpack_from(f"{order}II", data, place)
    if kind >> 16:  # up to four bytes, within the tag
        kind, size = kind & 0xFFFF, kind >> 16
        start, after = place + 4, place + 8
        if size > 4:
            raise ValueError(f"a short element of {size} bytes, expected at most 4")
    else:
        start = place + 8
        after = start + size + -size % 8
    if start + size > end:
        raise ValueError(f"an element of {size} bytes, expected at most {end - start} (a download cut short?)")
    return kind, start, start + size, min(after, end)


def _head(data: memoryview, order: str) -> tuple[int, int, tuple[int, ...], str, int]:
    """Class, flags, dimensions and name of a matrix, and the place of its content."""
    kind, start, stop, place = _element(data, 0, len(data), order)
    if kind != 6 or stop - start != 8:
        raise ValueError("a matrix without flags")
    flags = struct.unpack_from(f"{order}I", data, start)[0]
    kind, start, stop, place = _element(data, place, len(data), order)
    if kind != 5 or not 8 <= stop - start <= 32 * 4 or (stop - start) % 4:
        raise ValueError("a matrix without two to 32 dimensions")
    shape = struct.unpack_from(f"{order}{(stop - start) // 4}i", data, start)
    if min(shape) < 0:
        raise ValueError(f"a matrix of shape {shape}")
    kind, start, stop, place = _element(data, place, len(data), order)
    if kind not in (1, 2, 16):
        raise ValueError("a matrix without a name")
    return flags & 0xFF, flags, shape, bytes(data[start:stop]).decode("latin-1"), place


def _name(data: memoryview, order: str) -> str:
    return _head(data, order)[3]


def _matrix(data: memoryview, order: str, depth: int) -> np.ndarray:
    if not len(data):
        return np.zeros((1, 0))
    kind, flags, shape, name, place = _head(data, order)
    count = math.prod(shape)
    if kind in _NUMERIC:
        values, place = _numbers(data, place, order, count)
        if flags & _COMPLEX:
            values = values + 1j * _numbers(data, place, order, count)[0]
        return values.reshape(shape, order="F")
    if kind == CHAR:
        return _text(data, place, order, shape, count)
    if kind not in (CELL, STRUCT, OBJECT):
        raise ValueError(f"variable {name!r} of class {kind}, expected numbers, text, a cell array or a structure")
    if depth == DEEPEST:
        raise ValueError(f"cells within cells, expected at most {DEEPEST} levels")
    fields: list[str] = []
    if kind == OBJECT:
        place = _element(data, place, len(data), order)[3]
    if kind != CELL:
        fields, place = _fields(data, place, order)
    items = count * (len(fields) if kind != CELL else 1)
    if max(items, count - 1) > (len(data) - place) // 8:
        raise ValueError(f"{items} cells in {len(data) - place} bytes, expected eight bytes or more for each")
    read = np.empty(items, object)
    for i in range(items):
        inner, start, stop, place = _element(data, place, len(data), order)
        if inner != MATRIX:
            raise ValueError(f"a cell of type {inner}, expected a matrix")
        read[i] = _matrix(data[start:stop], order, depth + 1)
    if kind == CELL:
        return read.reshape(shape, order="F")
    table = np.empty(count, [(field, object) for field in fields] or object)
    for i, field in enumerate(fields):
        table[field] = read[i :: len(fields)]
    return table.reshape(shape, order="F")


def _numbers(data: memoryview, place: int, order: str, count: int) -> tuple[np.ndarray, int]:
    kind, start, stop, after = _element(data, place, len(data), order)
    if kind not in _NUMBERS:
        raise ValueError(f"numbers of type {kind}, expected one of {', '.join(map(str, _NUMBERS))}")
    dtype = np.dtype(order + _NUMBERS[kind])
    if stop - start != count * dtype.itemsize:
        raise ValueError(f"{stop - start} bytes for {count} numbers of {dtype.itemsize} bytes each")
    return np.frombuffer(data[start:stop], dtype).astype(dtype.newbyteorder("="), copy=True), after


def _text(data: memoryview, place: int, order: str, shape: tuple[int, ...], count: int) -> np.ndarray:
    """Strings along the last axis."""
    if not count:
        return np.zeros(shape[:-1], "U1") if shape[-1] == 0 else np.zeros(shape[:-1], f"U{_fits(shape[-1], data)}")
    kind, start, stop, _ = _element(data, place, len(data), order)
    if kind not in _TEXT:
        raise ValueError(f"text of type {kind}, expected one of {', '.join(map(str, _TEXT))}")
    encoding = _TEXT[kind] + ({"<": "-le", ">": "-be"}[order] if kind in (4, 17, 18) else "")
    text = bytes(data[start:stop]).decode(encoding)
    if len(text) != count:
        raise ValueError(f"{len(text)} characters for a text of shape {shape}")
    if len(shape) == 2 and shape[0] == 1:
        return np.array([text], f"U{count}")
    letters = np.array(list(text), "U1").reshape(shape, order="F")
    return np.ascontiguousarray(letters).view(f"U{shape[-1]}").reshape(shape[:-1])


def _fits(length: int, data: memoryview) -> int:
    """`length`, at most that of `data`."""
    return max(min(length, len(data)), 1)


def _fields(data: memoryview, place: int, order: str) -> tuple[list[str], int]:
    """Names of a structure's fields, and the place of its content."""
    kind, start, stop, place = _element(data, place, len(data), order)
    if kind != 5 or stop - start != 4:
        raise ValueError("a structure without the length of its field names")
    length = struct.unpack_from(f"{order}i", data, start)[0]
    _, start, stop, place = _element(data, place, len(data), order)
    if length < 1 or (stop - start) % length:
        raise ValueError(f"field names of {stop - start} bytes, expected {length} for each")
    names = [bytes(data[i : i + length]).partition(b"\0")[0].decode("latin-1") for i in range(start, stop, length)]
    if len(set(names)) < len(names) or "" in names:
        raise ValueError("a structure with two fields of one name, or one without a name")
    return names, place
